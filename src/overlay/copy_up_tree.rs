//! Copying up directories with all that is in them, so that they need no layer below: to rename one without a redirect,
//! and to make an upper complete for those who follow none.
//!
//! ```text
//! for each directory, those in it first
//!   copy up the directory
//!   copy up the files in it with their data, and give linked ones the names they have here
//!   once all it shows is in the upper, make it opaque; then its redirect can go
//! ```
//!
//! The mount shows the same at every moment. What was copied when it fails, or is killed, stays as ordinary copy-ups.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::io::{Errno, Result};

use super::Overlay;
use super::copy_up::{Data, restore_times};
use super::index::{Entry, Source};
use super::node::{Alias, DirState, Node, ROOT, Real};
use super::options::RedirectDir;
use crate::layer::attr::Kind;
use crate::layer::mark::Mark;
use crate::layer::name::{Name, OwnedName};
use crate::layer::upper::Upper;

/// A directory on the way through a tree.
struct Level {
    dir: Arc<Node>,
    /// Names in it that are still to be done.
    left: Vec<OwnedName>,
    /// A name had gone when its turn came, so the directory is looked through again.
    unsure: bool,
}

/// Why an upper could not be made complete.
#[derive(Debug)]
pub struct Incomplete {
    /// The path in the mount, from its root.
    pub path: Vec<u8>,
    /// What went wrong. ENOENT: it leads to what none of the layers below has.
    pub error: Errno,
}

impl Overlay {
    /// How a directory with lower parts is renamed. Without xattrs there is no redirect.
    pub(super) fn renames_by(&self) -> RedirectDir {
        let takes_marks = (self.stack.upper.as_ref()).is_some_and(|upper| upper.prefix.is_some());
        match self.options.redirect_dir {
            RedirectDir::On if !takes_marks => RedirectDir::Copy,
            other => other,
        }
    }

    /// Whether a rename of it first copies up all that is in it.
    pub(super) fn copies_to_rename(&self, node: &Node) -> bool {
        has_lowers(node) && self.renames_by() == RedirectDir::Copy
    }

    /// Copies up a directory with all in it, and makes it opaque. Neither `names` nor a directory may be held.
    pub(super) fn copy_up_tree(&self, top: &Arc<Node>) -> Result<()> {
        let mut levels = vec![self.level(top)?];
        while let Some(level) = levels.last_mut() {
            let dir = Arc::clone(&level.dir);
            let Some(name) = level.left.pop() else {
                if std::mem::take(&mut level.unsure) {
                    level.left = self.names_in(&dir)?;
                    continue;
                }
                self.cut_off(&dir)?;
                levels.pop();
                continue;
            };
            match self.copy_up_name(&dir, &name) {
                Ok(None) => {}
                Ok(Some(below)) => {
                    let below = self.level(&below)?;
                    levels.push(below);
                }
                // Renamed or removed meanwhile, or it cannot be copied.
                Err(Errno::NOENT | Errno::STALE)
                    if self.find_child(&dir, name.get())?.is_none() =>
                {
                    level.unsure = true;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn level(&self, dir: &Arc<Node>) -> Result<Level> {
        self.copy_up_dir(dir)?;
        Ok(Level {
            left: self.names_in(dir)?,
            dir: Arc::clone(dir),
            unsure: false,
        })
    }

    fn names_in(&self, dir: &Arc<Node>) -> Result<Vec<OwnedName>> {
        let _names = self.names.read();
        let own = dir.dir.as_ref().ok_or(Errno::NOTDIR)?;
        let mut state = own.state.lock();
        self.complete_index(dir, &mut state)?;
        let shown = state
            .index
            .iter()
            .filter(|entry| entry.source != Source::Whiteout);
        Ok(shown.map(|entry| entry.name.clone()).collect())
    }

    /// Copies up what has this name; a directory that is made of lower ones, too, is returned instead.
    fn copy_up_name(&self, dir: &Arc<Node>, name: &OwnedName) -> Result<Option<Arc<Node>>> {
        let Some(node) = self.find_child(dir, name.get())? else {
            return Ok(None);
        };
        if node.kind == Kind::Directory {
            return Ok(Some(node).filter(|node| has_lowers(node)));
        }
        self.bring_up(&node, (dir, name.get()), Data::All)?;
        Ok(None)
    }

    /// Gets an object into the upper, under this one of its names.
    pub(super) fn bring_up(
        &self,
        node: &Arc<Node>,
        (parent, name): (&Arc<Node>, Name<'_>),
        data: Data,
    ) -> Result<()> {
        self.copy_up(node, data)?;
        if self.has_links_below(node) {
            let _names = self.names.read();
            let alias = Alias {
                parent: Arc::clone(parent),
                name: name.to_owned(),
            };
            self.link_up(node, &alias)?;
        }
        Ok(())
    }

    /// Makes a directory opaque of which all that shows is in the upper: its lower parts, and what hides them, have no
    /// meaning any more.
    fn cut_off(&self, node: &Arc<Node>) -> Result<()> {
        let _names = self.names.read();
        let upper = self.upper()?;
        let own = node.dir.as_ref().ok_or(Errno::NOTDIR)?;
        let mut state = own.state.lock();
        let fd = self.upper_dir(node)?;
        let at = upper.pinned(fd.as_fd());
        if !state.lowers.is_empty() || (state.opaque && state.index.whiteouts() > 0) {
            hide_lowers(&mut state, upper, &fd)?;
        }
        if own.redirect().is_some() {
            upper.remove_mark(at, Mark::Redirect)?;
            own.set_redirect(None);
        }
        let synced = upper.sync_if_strict(&fd);
        drop(state);
        node.stale();
        synced
    }

    /// Makes the upper complete for readers that follow no redirects, find no data by a metadata-only copy and know no
    /// index of hard links. How many objects that were not.
    pub fn complete(&self) -> std::result::Result<usize, Incomplete> {
        let root = self.node(ROOT).map_err(|error| Incomplete {
            path: Vec::new(),
            error,
        })?;
        let mut done = 0;
        loop {
            let indexed = self.has_index();
            done += self.complete_below(&root)?;
            // Names of what came into the index may be where there was nothing to look for before.
            if self.has_index() == indexed {
                return Ok(done);
            }
        }
    }

    fn complete_below(&self, root: &Arc<Node>) -> std::result::Result<usize, Incomplete> {
        let mut done = 0;
        // Directories with their paths, which only errors need.
        let mut left = vec![(Arc::clone(root), Vec::new())];
        while let Some((dir, path)) = left.pop() {
            let below = |name: &OwnedName| [&path[..], b"/", name.get().bytes()].concat();
            // Whiteouts in an opaque directory are what a conversion left that was killed.
            let listed = self.names_in(&dir).and_then(|names| {
                if dir.dir.as_ref().is_some_and(|own| own.state.lock().opaque) {
                    self.cut_off(&dir)?;
                }
                Ok(names)
            });
            let names = listed.map_err(|error| Incomplete {
                path: path.clone(),
                error,
            })?;
            for name in names {
                let completed = self.complete_name(&dir, &name);
                let (more, node) = completed.map_err(|error| Incomplete {
                    path: below(&name),
                    error,
                })?;
                done += usize::from(more);
                left.extend(node.map(|node| (node, below(&name))));
            }
        }
        Ok(done)
    }

    /// Whether something was done about a name, and the directory if there may be more to do in it.
    fn complete_name(
        &self,
        dir: &Arc<Node>,
        name: &OwnedName,
    ) -> Result<(bool, Option<Arc<Node>>)> {
        let Some(node) = self.find_child(dir, name.get())? else {
            return Ok((false, None));
        };
        if let Some(own) = &node.dir {
            let redirected = own.redirect().is_some();
            if redirected {
                let state = own.state.lock();
                if state.lowers.is_empty() && !state.opaque {
                    return Err(Errno::NOENT);
                }
                drop(state);
                self.copy_up_tree(&node)?;
            }
            // Names of an inode in the index may be anywhere.
            let descend = node.in_upper() || self.has_index();
            return Ok((redirected, descend.then_some(node)));
        }
        let (data, indexed) = {
            let state = node.state();
            (state.data.is_some(), matches!(state.real, Real::Indexed(_)))
        };
        if data {
            self.copy_up(&node, Data::All)?;
        }
        let linked = indexed && !is_upper_name(dir, name.get());
        if linked {
            self.copy_up_dir(dir)?;
            self.bring_up(&node, (dir, name.get()), Data::All)?;
        }
        Ok((data || linked, None))
    }
}

/// Whether a directory takes something from lower layers.
pub(super) fn has_lowers(node: &Node) -> bool {
    let own = node.dir.as_ref();
    own.is_some_and(|own| !own.state.lock().lowers.is_empty())
}

/// Makes a directory opaque, and removes what hid names below.
fn hide_lowers(state: &mut DirState, upper: &Upper, fd: &OwnedFd) -> Result<()> {
    let is_lower = |entry: &Entry| matches!(entry.source, Source::Lower(_));
    if state.index.iter().any(is_lower) {
        return Err(Errno::STALE);
    }
    let at = upper.pinned(fd.as_fd());
    let before = upper.stat(at.read())?;
    // Its inode number is that of the lower directory, which must not change now.
    let shown = state.shown_lower().and_then(|lower| lower.as_file());
    if let Some(origin) = shown.map(|file| file.origin()).transpose()?.flatten() {
        upper.set_mark_if_possible(at, Mark::Origin, &origin)?;
    }
    upper.set_opaque(at)?;
    state.opaque = true;
    state.lowers.clear();
    let entries: Vec<Entry> = state.index.iter().cloned().collect();
    for entry in entries {
        if entry.source == Source::Whiteout {
            upper.with_mode(at, 0o300, || {
                upper.clear_whiteout(fd.as_fd(), entry.name.get());
                Ok(())
            })?;
            state.index.remove(entry.name.get());
        } else {
            let alone = Entry::new(entry.name, entry.kind, Source::Upper, false);
            state.index.refresh(&alone);
        }
    }
    restore_times(&before, at);
    Ok(())
}

/// Whether the upper has this name in the directory.
fn is_upper_name(dir: &Node, name: Name<'_>) -> bool {
    let own = dir.dir.as_ref();
    own.is_some_and(|own| {
        let state = own.state.lock();
        let entry = state.index.find(name);
        entry.is_some_and(|entry| entry.source == Source::Upper)
    })
}
