//! Removing names. What a lower layer still shows is hidden by a whiteout; nothing is copied up to be removed,
//! except an inode with several names whose count of them has to be kept somewhere.

use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::io::{Errno, Result};

use super::Overlay;
use super::copy_up::Data;
use super::index::Source;
use super::node::{DirState, Node, Real};
use super::rename::keep_data_path;
use crate::layer::at::At;
use crate::layer::attr::Kind;
use crate::layer::name::Name;

impl Overlay {
    /// unlink(2).
    pub fn unlink(&self, parent: u64, name: Name<'_>) -> Result<()> {
        self.remove(parent, name, false)
    }

    /// rmdir(2).
    pub fn remove_dir(&self, parent: u64, name: Name<'_>) -> Result<()> {
        self.remove(parent, name, true)
    }

    fn remove(&self, parent: u64, name: Name<'_>, directory: bool) -> Result<()> {
        self.upper()?;
        let parent = self.node(parent)?;
        self.copy_up_dir(&parent)?;
        let node = self.prepare_victim(&parent, name)?.ok_or(Errno::NOENT)?;
        match (node.kind == Kind::Directory, directory) {
            (true, false) => return Err(Errno::ISDIR),
            (false, true) => return Err(Errno::NOTDIR),
            _ => {}
        }
        let _names = self.names.write();
        if !node.is_at(&parent, name) {
            return Err(Errno::NOENT);
        }
        let dir = parent.dir.as_ref().ok_or(Errno::NOTDIR)?;
        let mut state = dir.state.lock();
        if directory {
            self.check_empty(&node)?;
        }
        let fd = self.upper_dir(&parent)?;
        self.remove_entry(&parent, &mut state, name, &node)?;
        drop(state);
        self.lose_name(&node, &parent, name)?;
        self.upper()?.sync_if_strict(&fd)
    }

    /// Finds the node of a name that is about to go and brings an inode with several names into the index.
    /// Neither `names` nor a directory may be held.
    pub(super) fn prepare_victim(
        &self,
        parent: &Arc<Node>,
        name: Name<'_>,
    ) -> Result<Option<Arc<Node>>> {
        let Some(node) = self.find_child(parent, name)? else {
            return Ok(None);
        };
        if self.has_links_below(&node) {
            self.bring_up(&node, (parent, name), Data::Later)?;
        }
        Ok(Some(node))
    }

    /// The node of `parent/name`, if there is one.
    pub(super) fn find_child(
        &self,
        parent: &Arc<Node>,
        name: Name<'_>,
    ) -> Result<Option<Arc<Node>>> {
        let _names = self.names.read();
        let dir = parent.dir.as_ref().ok_or(Errno::NOTDIR)?;
        let child = self.child(parent, &mut dir.state.lock(), name)?;
        Ok(child.map(|child| Arc::clone(child.node())))
    }

    /// Whether the inode's names are counted by the index, or would be once it is copied up.
    pub(super) fn has_links_below(&self, node: &Node) -> bool {
        if self.index_fd.is_none() || node.kind == Kind::Directory {
            return false;
        }
        let state = node.state();
        match &state.real {
            Real::Lower(file) => state.attr.nlink > 1 && self.can_index(file),
            Real::Indexed(_) => true,
            _ => false,
        }
    }

    /// ENOTEMPTY unless the directory shows nothing. The caller holds `names` exclusively.
    pub(super) fn check_empty(&self, node: &Arc<Node>) -> Result<()> {
        let dir = node.dir.as_ref().ok_or(Errno::NOTDIR)?;
        let mut state = dir.state.lock();
        self.complete_index(node, &mut state)?;
        if state.index.visible() > 0 {
            Err(Errno::NOTEMPTY)
        } else {
            Ok(())
        }
    }

    /// Takes `name` away on disk and in the index of its directory.
    fn remove_entry(
        &self,
        parent: &Arc<Node>,
        state: &mut DirState,
        name: Name<'_>,
        node: &Arc<Node>,
    ) -> Result<()> {
        let upper = self.upper()?;
        let fd = self.upper_dir(parent)?;
        let directory = node.kind == Kind::Directory;
        let (source, below) = match state.index.find(name) {
            Some(entry) => (entry.source, entry.below),
            None => return Err(Errno::NOENT),
        };
        let hide = match source {
            Source::Upper => {
                self.pin_last_name(node)?;
                self.store_nlink(node)?;
                if below {
                    upper.whiteout_over(fd.as_fd(), name, directory)?;
                } else if directory {
                    upper.remove_dir(fd.as_fd(), name)?;
                } else {
                    upper.unlink(fd.as_fd(), name)?;
                }
                below
            }
            Source::Lower(_) => {
                upper.whiteout(fd.as_fd(), name)?;
                true
            }
            Source::Whiteout => return Err(Errno::NOENT),
        };
        state.index.take_away(name, hide);
        parent.stale();
        Ok(())
    }

    /// Keeps an upper object reachable whose last known name is about to go, if anyone may still use it.
    pub(super) fn pin_last_name(&self, node: &Arc<Node>) -> Result<()> {
        if let Some(dir) = &node.dir {
            if self.nodes.is_referenced(node.ino) {
                let fd = self.upper_dir(node)?;
                dir.pin(Arc::new(self.upper()?.keep(At::Pinned(fd.as_fd()))?));
            }
            return Ok(());
        }
        let (alias, names, real, elsewhere) = {
            let state = node.state();
            let alias = state.aliases.first().cloned();
            let elsewhere = state.data.is_some();
            (alias, state.aliases.len(), state.real.clone(), elsewhere)
        };
        let indexed = matches!(real, Real::Indexed(_));
        let referenced = self.nodes.is_referenced(node.ino);
        let Some(alias) = alias.filter(|_| names == 1 && (indexed || referenced)) else {
            return Ok(());
        };
        let held = self.held(node)?;
        if elsewhere {
            // Should it get another name, its data is found by this one.
            let upper = self.upper()?;
            keep_data_path(upper, held.change(upper), &alias.parent, alias.name.get())?;
        }
        if matches!(real, Real::Upper) {
            let pinned = self.upper()?.keep(held.read())?;
            node.state().real = Real::Pinned(Arc::new(pinned));
        }
        Ok(())
    }

    /// The node no longer has the name `parent/name`.
    pub(super) fn lose_name(
        &self,
        node: &Arc<Node>,
        parent: &Arc<Node>,
        name: Name<'_>,
    ) -> Result<()> {
        let unnamed = {
            let mut state = node.state();
            state.remove_alias(parent, name);
            if let Real::Lower(_) = state.real {
                let count = state.union_nlink().unwrap_or(state.attr.nlink);
                state.set_union_nlink(count.saturating_sub(1));
            } else if let Some(count) = state.union_nlink() {
                state.set_union_nlink(count.saturating_sub(1));
            }
            state.stale();
            state.aliases.is_empty()
        };
        if let Some(dir) = &node.dir {
            dir.state.lock().dead = true;
            if dir.pinned().is_none() {
                // Nothing on disk can be asked any more.
                let mut state = node.state();
                state.attr.nlink = 0;
                state.fresh = true;
            }
            dir.upper.clear();
        }
        self.drop_index_if_unused(node)?;
        if unnamed {
            self.nodes.drop_if_unused(node.ino);
        }
        Ok(())
    }
}
