//! Copying up a directory with all that is in it, so that it needs no layer below: to rename it without a redirect.
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
use super::node::{Alias, DirState, Node};
use super::options::RedirectDir;
use crate::layer::attr::Kind;
use crate::layer::best_effort;
use crate::layer::mark::Mark;
use crate::layer::name::{Name, OwnedName};
use crate::layer::upper::Upper;

/// A directory on the way through a tree.
struct Level {
    dir: Arc<Node>,
    /// Names in it that are still to be done.
    left: Vec<OwnedName>,
    /// How often it was listed again, because a name had gone when its turn came.
    looks: u8,
}

/// Others cannot rename something in a directory just before its turn so often.
const MOST_LOOKS: u8 = 100;

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
        self.renames_by() == RedirectDir::Copy && has_lowers(node)
    }

    /// Copies up a directory with all in it, and makes it opaque. Neither `names` nor a directory may be held.
    pub(super) fn copy_up_tree(&self, top: &Arc<Node>) -> Result<()> {
        let mut levels = vec![self.level(top)?];
        while let Some(level) = levels.last_mut() {
            let dir = Arc::clone(&level.dir);
            let name = level.left.pop();
            let done = match &name {
                Some(name) => self
                    .copy_up_name(&dir, name)
                    .and_then(|below| below.map(|below| self.level(&below)).transpose()),
                None => self.cut_off(&dir).map(|()| None),
            };
            match done {
                Ok(Some(below)) => levels.push(below),
                Ok(None) if name.is_some() => {}
                Ok(None) => drop(levels.pop()),
                // Renamed or removed meanwhile, unless it is so again and again.
                Err(Errno::NOENT | Errno::STALE) if level.looks < MOST_LOOKS => {
                    level.looks += 1;
                    level.left = self.names_in(&dir)?;
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
            looks: 0,
        })
    }

    pub(super) fn names_in(&self, dir: &Arc<Node>) -> Result<Vec<OwnedName>> {
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
    pub(super) fn cut_off(&self, node: &Arc<Node>) -> Result<()> {
        let _names = self.names.read();
        let upper = self.upper()?;
        let own = node.dir.as_ref().ok_or(Errno::NOTDIR)?;
        let mut state = own.state.lock();
        if state.dead {
            return Ok(());
        }
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
}

/// Whether a directory takes something from lower layers.
pub(super) fn has_lowers(node: &Node) -> bool {
    let own = node.dir.as_ref();
    own.is_some_and(|own| !own.state.lock().lowers.is_empty())
}

/// Makes a directory opaque, and removes what hid names below.
fn hide_lowers(state: &mut DirState, upper: &Upper, fd: &OwnedFd) -> Result<()> {
    let is_lower = |entry: &Entry| matches!(entry.source, Source::Lower(_));
    if !state.index.complete || state.index.iter().any(is_lower) {
        return Err(Errno::STALE);
    }
    let at = upper.pinned(fd.as_fd());
    let before = upper.stat(at.read())?;
    // Its inode number is that of the lower directory, which must not change now.
    let shown = state.shown_lower().filter(|lower| !lower.is_sealed());
    let shown = shown.and_then(|lower| lower.as_file());
    if let Some(origin) = shown.map(|file| file.origin()).transpose()?.flatten() {
        upper.set_mark_if_possible(at, Mark::Origin, &origin)?;
    }
    let entries: Vec<Entry> = state.index.iter().cloned().collect();
    let (whiteouts, shown): (Vec<Entry>, Vec<Entry>) = entries
        .into_iter()
        .partition(|entry| entry.source == Source::Whiteout);
    if upper.marks(at.read())?.xattr_whiteouts {
        // Files that delete only as long as the directory says so.
        for entry in &whiteouts {
            let replace = || upper.whiteout_over(fd.as_fd(), entry.name.get(), false);
            upper.with_mode(at, 0o300, replace)?;
        }
    }
    if !state.opaque {
        upper.set_opaque(at)?;
        state.opaque = true;
    }
    state.lowers.clear();
    for entry in shown {
        let alone = Entry::new(entry.name, entry.kind, Source::Upper, false);
        state.index.refresh(&alone);
    }
    for entry in whiteouts {
        let name = entry.name.get();
        match upper.with_mode(at, 0o300, || upper.remove_whiteout(fd.as_fd(), name)) {
            Ok(()) => drop(state.index.remove(name)),
            left => {
                best_effort("remove a whiteout", left);
                let alone = Entry::new(entry.name, entry.kind, Source::Whiteout, false);
                state.index.refresh(&alone);
            }
        }
    }
    restore_times(&before, at);
    Ok(())
}
