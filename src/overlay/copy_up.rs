//! Copy-up: an object of a lower layer gets its own copy in the upper, complete or not at all.
//!
//! ```text
//! parents first, from the topmost missing one
//! lock node.copying                            a second writer waits here; readers go on reading the lower
//! stage in the workdir: data, then owner, xattrs and ACLs, mode, times, origin
//! sync the data                                fsync=auto and strict
//! lock the parent directory; is the name still this node?
//! publish by one rename (or a link from the hard-link index), restore the parent's times
//! the node's place becomes the upper
//! ```
//!
//! Data is copied while nothing but `node.copying` is held. If we are killed in between, the upper has all of the
//! object or nothing, and the rest lies in the workdir, which the next mount empties.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{OFlags, XattrFlags};
use rustix::io::{Errno, Result};

use super::Overlay;
use super::attr::{SetTime, times};
use super::index::Source;
use super::node::{Alias, DirState, Node, ROOT, Real};
use super::place::Place;
use crate::layer::at::{At, UpperAt};
use crate::layer::attr::{Attr, Kind};
use crate::layer::best_effort;
use crate::layer::capability;
use crate::layer::copy::{copy_content, copy_times, copy_xattrs};
use crate::layer::handle::index_name;
use crate::layer::io;
use crate::layer::lower::LowerFile;
use crate::layer::mark::{self, Mark, NlinkMark};
use crate::layer::name::{Name, OwnedName};
use crate::layer::stack::Durability;
use crate::layer::workdir::Staged;

/// How much of a file's data the caller needs in the upper.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Data {
    /// None now: with `metacopy` it stays in the lower until it is written.
    Later,
    /// The first bytes; the rest is about to be cut off.
    UpTo(u64),
    /// All.
    All,
}

/// A copy in the workdir, ready to be published.
struct Copy<'a> {
    staged: Staged<'a>,
    /// Its open file, for a regular file.
    fd: Option<OwnedFd>,
    /// Where its data still is, for a metadata-only copy.
    data: Option<LowerFile>,
    /// Attributes of the lower object.
    lower: Attr,
    /// Its origin, if the filesystem has file handles.
    origin: Option<Vec<u8>>,
}

impl Overlay {
    /// Makes sure that `node` is in the upper, with its data if `data` says so. Takes no lock of the caller's:
    /// neither `names` nor a directory may be held.
    pub(super) fn copy_up(&self, node: &Arc<Node>, data: Data) -> Result<()> {
        if node.kind == Kind::Directory {
            return self.copy_up_dir(node);
        }
        if is_copied(node, data) {
            return Ok(());
        }
        self.upper()?;
        let _copying = node.copying.lock();
        if is_copied(node, data) {
            return Ok(());
        }
        let source = match &node.state().real {
            Real::Lower(file) => Some(file.clone()),
            _ => None,
        };
        match source {
            Some(file) => self.copy_up_file(node, &file, data),
            None => self.complete_data(node, data),
        }
    }

    /// Whether a change to `ino` has to copy data first, which may take long. `data`: the change is to its data.
    pub fn copies_data(&self, ino: u64, data: bool) -> bool {
        self.nodes
            .get(ino)
            .is_some_and(|node| self.node_copies_data(&node, data))
    }

    /// As [`Overlay::copies_data`], for a rename of what `parent/name` is known to be.
    pub fn rename_copies_data(&self, parent: u64, name: Name<'_>) -> bool {
        let Some(parent) = self.nodes.get(parent) else {
            return false;
        };
        let Some(dir) = &parent.dir else { return false };
        let Some(ino) = dir.state.lock().index.find(name).map(|entry| entry.node) else {
            return false;
        };
        let Some(node) = self.nodes.get(ino) else {
            return false;
        };
        self.copies_to_rename(&node) || self.node_copies_data(&node, false)
    }

    fn node_copies_data(&self, node: &Node, data: bool) -> bool {
        if node.kind != Kind::File || self.stack.upper.is_none() {
            return false;
        }
        let state = node.state();
        let lower = matches!(state.real, Real::Lower(_)) && state.attr.size > 0;
        let unless_meta = data || !self.options.metacopy;
        (lower && unless_meta) || (data && state.data.is_some())
    }

    fn copy_up_file(&self, node: &Arc<Node>, file: &LowerFile, data: Data) -> Result<()> {
        let alias = node.state().aliases.first().cloned();
        if let Some(alias) = &alias {
            self.copy_up_dir(&alias.parent)?;
        }
        let copy = self.stage_copy(file, data)?;
        let _names = self.names.read();
        // Unlinking and renaming need `names` exclusively, so the name is what it is until we are done.
        let Some(alias) = node.state().aliases.first().cloned() else {
            return self.adopt_unlinked(node, copy);
        };
        if !alias.parent.in_upper() {
            return Err(Errno::STALE);
        }
        self.publish_copy(node, &alias, copy)
    }

    /// Stages a complete copy of `file`.
    fn stage_copy(&self, file: &LowerFile, data: Data) -> Result<Copy<'_>> {
        let upper = self.upper()?;
        let lower = file.stat()?;
        let cut =
            lower.kind == Kind::File && matches!(data, Data::UpTo(size) if size != lower.size);
        let (staged, fd, data) = match lower.kind {
            Kind::File => self.stage_content(file, &lower, data)?,
            Kind::Symlink => {
                let target = file.link_target()?;
                (upper.stage_symlink(&target)?, None, None)
            }
            // In the upper it would be a whiteout; mknod refuses it for the same reason.
            _ if mark::is_whiteout(&lower) => return Err(Errno::PERM),
            kind => (upper.stage_node(kind, 0o600, lower.rdev)?, None, None),
        };
        let place = Place::Lower(file.clone());
        let origin = file.origin()?;
        self.copy_metadata(&place, &lower, staged.at(), origin.as_deref())?;
        if cut {
            // What appears is a truncated file already, and a truncation is a change.
            staged.at().set_times(&times(None, Some(SetTime::Now)))?;
        }
        self.counters.count(&self.counters.copy_ups);
        if let Some(fd) = &fd
            && (data.is_none() || upper.durability == Durability::Strict)
        {
            upper.sync(fd, upper.durability != Durability::Strict)?;
        }
        Ok(Copy {
            staged,
            fd,
            data,
            lower,
            origin,
        })
    }

    fn stage_content(
        &self,
        file: &LowerFile,
        lower: &Attr,
        data: Data,
    ) -> Result<(Staged<'_>, Option<OwnedFd>, Option<LowerFile>)> {
        let upper = self.upper()?;
        let content = self.stack.data_of(file, lower)?;
        let (staged, fd) = upper.stage_file(0o600)?;
        if data == Data::Later && self.options.metacopy && upper.prefix.is_some() {
            io::truncate(&fd, lower.size)?;
            upper.set_mark(staged.at(), Mark::Metacopy, b"")?;
            return Ok((staged, Some(fd), Some(content)));
        }
        let size = match data {
            Data::UpTo(size) => lower.size.min(size),
            Data::Later | Data::All => lower.size,
        };
        self.copy_content(&content, &fd, size)?;
        Ok((staged, Some(fd), None))
    }

    /// Copies the first `size` bytes of `content`.
    fn copy_content(&self, content: &LowerFile, to: &OwnedFd, size: u64) -> Result<()> {
        if size == 0 {
            return Ok(());
        }
        let from = content.content()?;
        let attr = content.stat()?;
        let method = copy_content(&from, to, &Attr { size, ..attr })?;
        self.counters.copied(method, size);
        if size < attr.size {
            // A reflink takes the whole file.
            io::truncate(to, size)?;
        }
        tracing::debug!(name = ?content.name, bytes = size, ?method, "copied up");
        Ok(())
    }

    /// Gives `to` everything but the data: owner, xattrs, mode, times, origin. The mode is set once, after the owner
    /// whose change would clear suid; the times last.
    fn copy_metadata(
        &self,
        from: &Place,
        lower: &Attr,
        to: UpperAt<'_>,
        origin: Option<&[u8]>,
    ) -> Result<()> {
        let upper = self.upper()?;
        let now = to.read().stat()?;
        let mut wanted = *lower;
        if upper.override_name.is_none() {
            let give = |wanted: Attr| {
                let owned = Attr {
                    mode: now.mode,
                    ..wanted
                };
                upper.set_owner_and_mode(to, &owned, &now)
            };
            if let Err(error) = give(wanted) {
                // What an ordinary user may not give away stays his, if its owner is never shown.
                wanted = self.ids.keep_squashed(wanted, &now).ok_or(error)?;
                give(wanted)?;
            }
        }
        if !from.is_sealed() {
            copy_xattrs(
                &self.xattr_names(from)?,
                |name| self.xattr(from, name),
                |name, value| upper.set_xattr(to, name, value, XattrFlags::empty()),
            )?;
        }
        upper.set_mark_if_possible(to, Mark::Origin, origin.unwrap_or_default())?;
        let now = to.read().stat()?;
        upper.set_owner_and_mode(to, &wanted, &now)?;
        copy_times(lower, to)
    }

    /// Publishes a staged copy at `alias`, whose parent is in the upper.
    fn publish_copy(&self, node: &Arc<Node>, alias: &Alias, copy: Copy<'_>) -> Result<()> {
        let upper = self.upper()?;
        let dir = alias.parent.dir.as_ref().ok_or(Errno::NOTDIR)?;
        let mut state = dir.state.lock();
        let parent_fd = self.upper_dir(&alias.parent)?;
        let parent_attr = upper.stat(upper.pinned(parent_fd.as_fd()).read())?;
        let name = alias.name.get();
        let Copy {
            staged,
            mut fd,
            data,
            lower,
            origin,
        } = copy;
        let mut attr = upper.stat(staged.at().read())?;
        let indexable = match &node.state().real {
            Real::Lower(file) => self.can_index(file),
            _ => false,
        };
        let index_as = match (&self.index_fd, &origin) {
            (Some(_), Some(origin)) if lower.nlink > 1 && indexable => {
                Some(Name::from_bytes(&index_name(origin))?.to_owned())
            }
            _ => None,
        };
        self.mark_impure(&mut state, upper.pinned(parent_fd.as_fd()))?;
        let real = if let Some(entry) = index_as {
            let known =
                self.publish_indexed(node, &staged, &entry, &lower, (parent_fd.as_fd(), name))?;
            if let Some(known) = known {
                (attr, fd) = (known, None);
            }
            self.note_indexed(&attr, origin.as_deref().unwrap_or_default());
            Real::Indexed(entry)
        } else {
            upper.with_mode(upper.pinned(parent_fd.as_fd()), 0o300, || {
                staged.publish(parent_fd.as_fd(), name)
            })?;
            Real::Upper
        };
        state.index.update(name, |entry| {
            (entry.source, entry.below) = (Source::Upper, true);
        });
        restore_times(&parent_attr, upper.pinned(parent_fd.as_fd()));
        let synced = upper.sync_if_strict(&parent_fd);
        alias.parent.stale();
        drop(state);
        self.moved_up(node, real, attr, fd, data);
        synced
    }

    /// Publishes an inode with several names: first into the index, then at the name. Should the index have had it
    /// already, that one is the inode; its attributes are returned.
    fn publish_indexed(
        &self,
        node: &Arc<Node>,
        staged: &Staged<'_>,
        entry: &OwnedName,
        lower: &Attr,
        (dir, name): (std::os::fd::BorrowedFd<'_>, Name<'_>),
    ) -> Result<Option<Attr>> {
        let upper = self.upper()?;
        let index = self.index_fd.as_ref().ok_or(Errno::IO)?;
        let union = node.state().attr.nlink;
        let offset = i32::try_from(i64::from(union) - i64::from(lower.nlink)).unwrap_or(0);
        let mark = NlinkMark::Lower(offset).encode();
        upper.set_mark_if_possible(staged.at(), Mark::Nlink, mark.as_bytes())?;
        let count = lower.nlink.to_string();
        upper.set_mark_if_possible(staged.at(), Mark::LowerNlink, count.as_bytes())?;
        let is_new = match staged.publish_new(index.as_fd(), entry.get()) {
            // A mount that was killed before its link had published it.
            Err(Errno::EXIST) => false,
            other => other.map(|()| true)?,
        };
        self.index_used.store(true, Ordering::Relaxed);
        let inode = upper.at(index.as_fd(), entry.get()).read();
        let linked = upper.with_mode(upper.pinned(dir), 0o300, || upper.link(inode, dir, name));
        if is_new && linked.is_err() {
            let removed = upper.unlink(index.as_fd(), entry.get());
            best_effort("take a copy out of the index again", removed);
        }
        linked?;
        node.state().set_union_nlink(union);
        (!is_new).then(|| upper.stat(inode)).transpose()
    }

    /// Gives an indexed inode the name `alias` in the upper, which so far only the lower shows.
    pub(super) fn link_up(&self, node: &Arc<Node>, alias: &Alias) -> Result<()> {
        let upper = self.upper()?;
        let dir = alias.parent.dir.as_ref().ok_or(Errno::NOTDIR)?;
        let mut state = dir.state.lock();
        let name = alias.name.get();
        let lower = match state.index.find(name).map(|entry| entry.source) {
            Some(Source::Lower(position)) => state
                .lowers
                .get(usize::from(position))
                .ok_or(Errno::IO)?
                .stat(name)?,
            Some(Source::Upper) => return Ok(()),
            Some(Source::Whiteout) | None => return Err(Errno::NOENT),
        };
        let parent_fd = self.upper_dir(&alias.parent)?;
        let parent_attr = upper.stat(upper.pinned(parent_fd.as_fd()).read())?;
        let held = self.held(node)?;
        if let Some(union) = node.state().union_nlink() {
            let offset = i32::try_from(i64::from(union) - i64::from(lower.nlink)).unwrap_or(0);
            let mark = NlinkMark::Lower(offset).encode();
            upper.set_mark_if_possible(held.change(upper), Mark::Nlink, mark.as_bytes())?;
        }
        self.mark_impure(&mut state, upper.pinned(parent_fd.as_fd()))?;
        upper.with_mode(upper.pinned(parent_fd.as_fd()), 0o300, || {
            upper.link(held.read(), parent_fd.as_fd(), name)
        })?;
        state.index.update(name, |entry| {
            (entry.source, entry.below) = (Source::Upper, true);
        });
        restore_times(&parent_attr, upper.pinned(parent_fd.as_fd()));
        node.stale();
        alias.parent.stale();
        drop(state);
        self.store_nlink(node)
    }

    /// Copies up an inode that has no name any more: it lives on without one.
    fn adopt_unlinked(&self, node: &Arc<Node>, copy: Copy<'_>) -> Result<()> {
        let upper = self.upper()?;
        let pinned = upper.keep(copy.staged.at().read())?;
        let attr = upper.stat(copy.staged.at().read())?;
        let Copy {
            staged, fd, data, ..
        } = copy;
        drop(staged);
        self.moved_up(node, Real::Pinned(Arc::new(pinned)), attr, fd, data);
        Ok(())
    }

    /// The node is in the upper from now on.
    fn moved_up(
        &self,
        node: &Node,
        real: Real,
        attr: Attr,
        fd: Option<OwnedFd>,
        data: Option<LowerFile>,
    ) {
        let slot = fd.filter(|_| data.is_none()).map(|fd| {
            let slot = self.stack.fds.files.slot();
            slot.put(fd);
            (slot, true)
        });
        let mut state = node.state();
        state.real = real;
        state.moves = state.moves.wrapping_add(1);
        // What identifies the object from now on; the rest is read again.
        state.attr = attr;
        state.data = data.map(Box::new);
        state.set_open_file(slot);
        state.copied_up();
    }

    /// Marks a directory as holding copied-up entries, which the kernel wants to know for inode numbers.
    pub(super) fn mark_impure(&self, state: &mut DirState, at: UpperAt<'_>) -> Result<()> {
        if !state.impure {
            self.upper()?.set_mark_if_possible(at, Mark::Impure, b"y")?;
            state.impure = true;
        }
        Ok(())
    }

    /// Brings the data of a metadata-only copy to the upper.
    fn complete_data(&self, node: &Arc<Node>, data: Data) -> Result<()> {
        let upper = self.upper()?;
        let Some(content) = node.state().data.clone() else {
            return Ok(());
        };
        let held = {
            let _names = self.names.read();
            self.held(node)?
        };
        // The name may move while we copy; the object itself does not.
        let pinned = upper.pin(held.read())?;
        let at = upper.pinned(pinned.as_fd());
        let before = upper.stat(at.read())?;
        let on_disk = at.read().stat()?;
        let caps = at.read().xattr(capability::NAME)?;
        let fd = upper.with_mode(at, 0o600, || upper.open(at.read(), OFlags::RDWR))?;
        let size = match data {
            Data::UpTo(size) => before.size.min(size),
            Data::Later | Data::All => before.size,
        };
        self.copy_content(&content, &fd, size)?;
        io::truncate(
            &fd,
            if data == Data::UpTo(size) {
                size
            } else {
                before.size
            },
        )?;
        upper.sync(&fd, true)?;
        if let Some(caps) = caps {
            at.set_xattr(capability::NAME, &caps, XattrFlags::empty())?;
        }
        if at.read().stat()?.mode != on_disk.mode {
            // Writing cleared suid or sgid.
            at.chmod(on_disk.mode)?;
        }
        if data != Data::UpTo(size) || size == before.size {
            copy_times(&before, at)?;
        }
        upper.remove_mark(at, Mark::Metacopy)?;
        upper.remove_mark(at, Mark::Redirect)?;
        let mut state = node.state();
        state.data = None;
        state.moves = state.moves.wrapping_add(1);
        let slot = self.stack.fds.files.slot();
        slot.put(fd);
        state.set_open_file(Some((slot, true)));
        state.stale();
        Ok(())
    }

    /// Makes sure that a directory and all above it are in the upper.
    pub(super) fn copy_up_dir(&self, dir: &Arc<Node>) -> Result<()> {
        self.upper()?;
        while !dir.in_upper() {
            let mut missing = Vec::new();
            // From here up to the first directory that is in the upper.
            {
                let _names = self.names.read();
                let mut next = Arc::clone(dir);
                while next.ino != ROOT && !next.in_upper() {
                    let alias = next.state().aliases.first().cloned();
                    let Some(alias) = alias else {
                        self.adopt_removed_dir(&next)?;
                        break;
                    };
                    missing.push(std::mem::replace(&mut next, alias.parent));
                }
            }
            while let Some(next) = missing.pop() {
                let _names = self.names.read();
                let alias = next.state().aliases.first().cloned();
                // Or it was moved or removed meanwhile.
                match alias.filter(|alias| alias.parent.in_upper()) {
                    Some(alias) => self.copy_up_one_dir(&next, &alias)?,
                    None => break,
                }
            }
        }
        Ok(())
    }

    /// Copies up a directory that was removed: it lives on without a name, for those who have it open.
    fn adopt_removed_dir(&self, node: &Arc<Node>) -> Result<()> {
        let upper = self.upper()?;
        let own = node.dir.as_ref().ok_or(Errno::NOTDIR)?;
        let mut state = own.state.lock();
        let lower = Arc::clone(state.shown_lower().ok_or(Errno::NOENT)?);
        let attr = lower.stat_self()?;
        let staged = upper.stage_dir(0o700)?;
        self.copy_metadata(&Place::LowerDir(lower), &attr, staged.at(), None)?;
        let fd = upper.open(staged.at().read(), OFlags::DIRECTORY)?;
        own.pin(Arc::new(upper.keep(At::Pinned(fd.as_fd()))?));
        state.in_upper = true;
        drop(state);
        node.state().copied_up();
        Ok(())
    }

    /// Copies up one directory (not what is in it). The caller holds `names`.
    fn copy_up_one_dir(&self, node: &Arc<Node>, alias: &Alias) -> Result<()> {
        let upper = self.upper()?;
        let parent = alias.parent.dir.as_ref().ok_or(Errno::NOTDIR)?;
        let mut parent_state = parent.state.lock();
        let own = node.dir.as_ref().ok_or(Errno::NOTDIR)?;
        let mut state = own.state.lock();
        if state.in_upper {
            return Ok(());
        }
        let lower = Arc::clone(state.shown_lower().ok_or(Errno::NOENT)?);
        let attr = lower.stat_self()?;
        let origin = match lower.as_file().filter(|_| !lower.is_sealed()) {
            Some(file) => file.origin()?,
            None => None,
        };
        let staged = upper.stage_dir(0o700)?;
        let place = Place::LowerDir(lower);
        self.copy_metadata(&place, &attr, staged.at(), origin.as_deref())?;
        let marks = upper.marks(staged.at().read())?;
        if upper.durability == Durability::Strict {
            upper.sync(&upper.open(staged.at().read(), OFlags::DIRECTORY)?, false)?;
        }
        let parent_fd = self.upper_dir(&alias.parent)?;
        let parent_attr = upper.stat(upper.pinned(parent_fd.as_fd()).read())?;
        self.mark_impure(&mut parent_state, upper.pinned(parent_fd.as_fd()))?;
        let target = (parent_fd.as_fd(), alias.name.get());
        upper.with_mode_to_move(staged.at(), target, || {
            upper.with_mode(upper.pinned(parent_fd.as_fd()), 0o300, || {
                staged.publish(target.0, target.1)
            })
        })?;
        restore_times(&parent_attr, upper.pinned(parent_fd.as_fd()));
        let synced = upper.sync_if_strict(&parent_fd);
        let update = |entry: &mut super::index::Entry| {
            (entry.source, entry.below) = (Source::Upper, true);
        };
        parent_state.index.update(alias.name.get(), update);
        state.in_upper = true;
        state.default_acl = marks.default_acl;
        drop((state, parent_state));
        node.state().copied_up();
        alias.parent.stale();
        synced
    }
}

/// A copy-up is no change of the directory. It has happened, so failing to hide it does not make it fail.
pub(super) fn restore_times(before: &Attr, dir: UpperAt<'_>) {
    best_effort("restore the times of a directory", copy_times(before, dir));
}

fn is_copied(node: &Node, data: Data) -> bool {
    let state = node.state();
    !matches!(state.real, Real::Lower(_)) && (data == Data::Later || state.data.is_none())
}
