//! Hard links across copy-up: the index.
//!
//! The names of a lower inode stay names of one inode. When it is copied up, the upper inode also gets a name in
//! `WORKDIR/index`, made of the origin; a name that is not in the upper yet finds the inode there. How many names
//! the union has is kept in `overlay.nlink`, in the form that stays true if the next step never happens: relative
//! to the lower inode while names move to the upper, relative to the upper inode while they are added and removed.
//!
//! Symlinks, FIFOs, sockets and devices can carry neither mark where marks are xattrs of users. What such an inode was
//! copied up from is told by its entry; of its names only those in the upper are known after a remount, so the link
//! count is that of the upper inode, and the entry stays when they are gone.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use rustix::io::{Errno, Result};

use super::Overlay;
use super::lookup::{Resolved, count_names};
use super::node::{Node, Real, State};
use crate::layer::at::At;
use crate::layer::attr::{Attr, Kind};
use crate::layer::handle::{index_name, origin_of_index_name};
use crate::layer::lower::LowerFile;
use crate::layer::mark::{self, Mark, NlinkMark};
use crate::layer::name::{Name, OwnedName};

/// Origins of the inodes in the index that can carry no xattr, by inode number of the upper; read from the index when
/// the first is asked for. A leaf lock, but that reading is done under it.
#[derive(Debug, Default)]
pub(super) struct BareOrigins(Mutex<Option<FxHashMap<u64, Vec<u8>>>>);

impl BareOrigins {
    fn find(
        &self,
        ino: u64,
        read: impl FnOnce() -> Result<FxHashMap<u64, Vec<u8>>>,
    ) -> Result<Option<Vec<u8>>> {
        let mut known = self.0.lock();
        let origins = match &mut *known {
            Some(origins) => origins,
            none => none.insert(read()?),
        };
        Ok(origins.get(&ino).cloned())
    }

    fn add(&self, ino: u64, origin: &[u8]) {
        if let Some(known) = &mut *self.0.lock() {
            known.insert(ino, origin.to_owned());
        }
    }
}

impl Overlay {
    /// Whether the names of a lower inode are kept one inode: the index can hold it, or nothing can change.
    pub(super) fn keeps_links(&self, file: &LowerFile) -> bool {
        self.stack.upper.is_none() || self.can_index(file)
    }

    /// Whether an inode of this layer can be in the index, which names inodes by their file handles.
    pub(super) fn can_index(&self, file: &LowerFile) -> bool {
        self.index_fd.is_some() && file.dir.lower().handles.is_some()
    }

    /// The index entry of the inode with this origin, if it is the inode with these attributes.
    pub(super) fn index_entry(&self, origin: &[u8], attr: &Attr) -> Result<Option<OwnedName>> {
        let Some(found) = self.look_up_index(origin)? else {
            return Ok(None);
        };
        Ok(((found.1.dev, found.1.ino) == (attr.dev, attr.ino)).then_some(found.0))
    }

    /// The origin of an upper object that can carry no xattr, if it is in the index: the name of its entry there tells.
    pub(super) fn origin_from_index(&self, attr: &Attr) -> Result<Option<Vec<u8>>> {
        let Some(index) = self.index_fd.as_ref().filter(|_| self.has_index()) else {
            return Ok(None);
        };
        let origin = self.bare_origins.find(attr.ino, || {
            let (upper, mut origins) = (self.upper()?, FxHashMap::default());
            upper.list(upper.index().ok_or(Errno::IO)?, |entry| {
                if matches!(entry.kind, Some(Kind::File | Kind::Directory)) {
                    return Ok(());
                }
                if let Some(origin) = origin_of_index_name(entry.name) {
                    let at = At::Entry(index.as_fd(), Name::from_bytes(entry.name)?);
                    match upper.stat(at) {
                        // A copy-up that failed took it out again.
                        Err(Errno::NOENT) => {}
                        found => drop(origins.insert(found?.ino, origin)),
                    }
                }
                Ok(())
            })?;
            Ok(origins)
        })?;
        // The entry may have gone since, and another object have its number.
        let Some(origin) = origin else {
            return Ok(None);
        };
        Ok(self.index_entry(&origin, attr)?.map(|_| origin))
    }

    /// Notes what was published in the index.
    pub(super) fn note_indexed(&self, copy: &Attr, origin: &[u8]) {
        if copy.kind != Kind::File {
            self.bare_origins.add(copy.ino, origin);
        }
    }

    pub(super) fn has_index(&self) -> bool {
        self.index_used.load(Ordering::Relaxed)
    }

    fn look_up_index(&self, origin: &[u8]) -> Result<Option<(OwnedName, Attr)>> {
        let Some(index) = &self.index_fd else {
            return Ok(None);
        };
        if !self.has_index() {
            return Ok(None);
        }
        let name = index_name(origin);
        let Ok(name) = Name::from_bytes(&name) else {
            return Ok(None);
        };
        match self.upper()?.stat(At::Entry(index.as_fd(), name)) {
            Ok(attr) if mark::is_whiteout(&attr) => Ok(None),
            Ok(attr) => Ok(Some((name.to_owned(), attr))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What a name of the lower inode `file` shows if that inode was copied up by another name.
    pub(super) fn find_indexed(
        &self,
        file: &LowerFile,
        lower: &Attr,
        number: u64,
    ) -> Result<Option<Resolved>> {
        if lower.nlink < 2 || !self.can_index(file) || !self.has_index() {
            return Ok(None);
        }
        let Some(origin) = file.origin()? else {
            return Ok(None);
        };
        let Some((name, attr)) = self.look_up_index(&origin)? else {
            return Ok(None);
        };
        let index = self.index_fd.as_ref().ok_or(Errno::IO)?;
        let marks = self.upper()?.marks(At::Entry(index.as_fd(), name.get()))?;
        let mut state = State::new(attr, Real::Indexed(name));
        count_names(&mut state, marks.nlink, || Some(lower.nlink));
        if marks.metacopy {
            let data = self.stack.data_of(file, lower)?;
            state.data = Some(Box::new(data));
        }
        Ok(Some(Resolved::file(number, state)))
    }

    /// Whether a node and what was just resolved under the same number are one inode. Nothing stops another name of
    /// it from being copied up in between, so one may have been seen before that and the other after.
    pub(super) fn is_one_inode(known: &Node, new: &State) -> bool {
        let (real, dev, ino) = {
            let state = known.state();
            if state.replaced {
                return false;
            }
            (state.real.clone(), state.attr.dev, state.attr.ino)
        };
        if (dev, ino) == (new.attr.dev, new.attr.ino) {
            return true;
        }
        match (&real, &new.real) {
            (Real::Lower(file), Real::Indexed(entry))
            | (Real::Indexed(entry), Real::Lower(file)) => file.origin().is_ok_and(|origin| {
                origin.is_some_and(|it| index_name(&it) == entry.get().bytes())
            }),
            _ => false,
        }
    }

    /// Writes the union's link count, relative to the upper inode: before that gains or loses a name together with the
    /// union, or after it gained one that the union had already.
    pub(super) fn store_nlink(&self, node: &Arc<Node>) -> Result<()> {
        let Some(union) = node.state().union_nlink() else {
            return Ok(());
        };
        let upper = self.upper()?;
        let held = self.held(node)?;
        let own = upper.stat(held.read())?.nlink;
        let offset = i64::from(union) - i64::from(own);
        let mark = NlinkMark::Upper(i32::try_from(offset).unwrap_or(0)).encode();
        upper.set_mark_if_possible(held.change(upper), Mark::Nlink, mark.as_bytes())
    }

    /// Changes the union's link count in memory after a name came or went.
    pub(super) fn count_link(node: &Node, by: i32) {
        let mut state = node.state();
        if let Some(count) = state.union_nlink() {
            state.set_union_nlink(count.saturating_add_signed(by));
        }
        state.stale();
    }

    /// Removes the index entry of an inode whose last name in the union is gone. Not where no mark kept the count: there
    /// may be more names than are known of.
    pub(super) fn drop_index_if_unused(&self, node: &Arc<Node>) -> Result<()> {
        let entry = {
            let state = node.state();
            match &state.real {
                Real::Indexed(name) if state.union_nlink() == Some(0) => name.clone(),
                _ => return Ok(()),
            }
        };
        let upper = self.upper()?;
        let index = Arc::clone(self.index_fd.as_ref().ok_or(Errno::IO)?);
        let pinned = match upper.keep(upper.at(index.as_fd(), entry.get()).read()) {
            // Too many of those already: the entry goes on leading to the inode.
            Err(Errno::MFILE | Errno::NFILE) => return Ok(()),
            other => other?,
        };
        node.state().real = Real::Pinned(Arc::new(pinned));
        upper.unlink(index.as_fd(), entry.get())
    }
}
