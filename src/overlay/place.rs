//! From a node to the object on disk.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::io::{Errno, Result};

use super::Overlay;
use super::node::{Node, ROOT, Real};
use crate::layer::at::{At, UpperAt};
use crate::layer::attr::Attr;
use crate::layer::lower::{LowerDir, LowerFile};
use crate::layer::name::OwnedName;
use crate::layer::upper::Upper;

/// An object on disk, found and held.
#[derive(Clone, Debug)]
pub enum Place {
    /// A non-directory of a lower layer.
    Lower(LowerFile),
    /// A directory of a lower layer.
    LowerDir(Arc<LowerDir>),
    /// An object of the upper.
    Upper(Held),
}

/// An object of the upper: a name in a directory that is held open, or the object itself.
#[derive(Clone, Debug)]
pub struct Held {
    fd: Arc<OwnedFd>,
    name: Option<OwnedName>,
}

impl Held {
    /// For reading.
    pub fn read(&self) -> At<'_> {
        match &self.name {
            Some(name) => At::Entry(self.fd.as_fd(), name.get()),
            None => At::Pinned(self.fd.as_fd()),
        }
    }

    /// For changing.
    pub fn change<'a>(&'a self, upper: &'a Upper) -> UpperAt<'a> {
        match &self.name {
            Some(name) => upper.at(self.fd.as_fd(), name.get()),
            None => upper.pinned(self.fd.as_fd()),
        }
    }
}

impl Place {
    /// A directory of a lower layer on which something else is mounted: nothing of it can be asked.
    pub fn is_sealed(&self) -> bool {
        matches!(self, Self::LowerDir(dir) if dir.is_sealed())
    }

    /// Target of a symlink.
    pub fn link_target(&self) -> Result<Vec<u8>> {
        match self {
            Self::Lower(file) => file.link_target(),
            Self::LowerDir(_) => Err(Errno::INVAL),
            Self::Upper(held) => held.read().read_link(),
        }
    }
}

impl Overlay {
    /// The upper, or EROFS.
    pub(super) fn upper(&self) -> Result<&Upper> {
        self.stack.upper.as_ref().ok_or(Errno::ROFS)
    }

    /// The node of a request; ESTALE if the kernel asks for one it should not know.
    pub(super) fn node(&self, ino: u64) -> Result<Arc<Node>> {
        self.nodes.get(ino).ok_or(Errno::STALE)
    }

    /// The descriptor of a directory in the upper, which must have it.
    pub(super) fn upper_dir(&self, node: &Arc<Node>) -> Result<Arc<OwnedFd>> {
        loop {
            match self.try_upper_dir(node) {
                Err(Errno::AGAIN) => {}
                other => return other,
            }
        }
    }

    fn try_upper_dir(&self, node: &Arc<Node>) -> Result<Arc<OwnedFd>> {
        let dir = node.dir.as_ref().ok_or(Errno::NOTDIR)?;
        let upper = self.upper()?;
        if let Some(pinned) = dir.pinned() {
            return Ok(Arc::clone(pinned));
        }
        // Directories above are opened first, from the lowest that is open, without recursion.
        let mut closed = vec![(Arc::clone(node), None)];
        while let Some((lowest, _)) = closed.last() {
            let own = lowest.dir.as_ref().ok_or(Errno::NOTDIR)?;
            let open = own.pinned().is_some() || own.upper.is_open();
            if lowest.ino == ROOT || open {
                break;
            }
            let alias = lowest
                .state()
                .aliases
                .first()
                .cloned()
                .ok_or(Errno::NOENT)?;
            if let Some((_, name)) = closed.last_mut() {
                *name = Some(alias.name);
            }
            closed.push((alias.parent, None));
        }
        let mut above: Option<Arc<OwnedFd>> = None;
        for (dir, name) in closed.into_iter().rev() {
            above = Some(self.open_upper_dir(upper, &dir, above.as_ref().zip(name.as_ref()))?);
        }
        above.ok_or(Errno::NOENT)
    }

    /// The descriptor of one directory, opened as a name in the directory above if it is not open.
    fn open_upper_dir(
        &self,
        upper: &Upper,
        node: &Arc<Node>,
        above: Option<(&Arc<OwnedFd>, &OwnedName)>,
    ) -> Result<Arc<OwnedFd>> {
        let dir = node.dir.as_ref().ok_or(Errno::NOTDIR)?;
        if let Some(pinned) = dir.pinned() {
            return Ok(Arc::clone(pinned));
        }
        self.stack.fds.get(&dir.upper, || match above {
            Some((above, name)) => upper.open_dir(above.as_fd(), name.get()),
            None if node.ino == ROOT => upper.open_root(),
            // It was closed since we looked.
            None => Err(Errno::AGAIN),
        })
    }

    /// Where `node` is now. The caller holds `names`, so the answer stays true while it does.
    pub(super) fn place(&self, node: &Arc<Node>) -> Result<Place> {
        if let Some(dir) = &node.dir {
            let state = dir.state.lock();
            if !state.in_upper {
                let lower = state.shown_lower().cloned().ok_or(Errno::NOENT)?;
                return Ok(Place::LowerDir(lower));
            }
            drop(state);
            let fd = self.upper_dir(node)?;
            return Ok(Place::Upper(Held { fd, name: None }));
        }
        let (real, alias) = {
            let state = node.state();
            (state.real.clone(), state.aliases.first().cloned())
        };
        match real {
            Real::Lower(file) => Ok(Place::Lower(file)),
            Real::Pinned(fd) => Ok(Place::Upper(Held { fd, name: None })),
            Real::Indexed(name) => {
                let index = self.index_fd.as_ref().ok_or(Errno::IO)?;
                Ok(Place::Upper(Held {
                    fd: Arc::clone(index),
                    name: Some(name),
                }))
            }
            Real::Upper => {
                let alias = alias.ok_or(Errno::NOENT)?;
                let fd = self.upper_dir(&alias.parent)?;
                if self.own.0 != 0 && alias.parent.state().attr.mode & 0o100 == 0 {
                    // Who had it open before the directory was closed goes on using it.
                    let pinned = self.upper()?.pin_in(fd.as_fd(), alias.name.get())?;
                    return Ok(Place::Upper(Held {
                        fd: Arc::new(pinned),
                        name: None,
                    }));
                }
                Ok(Place::Upper(Held {
                    fd,
                    name: Some(alias.name),
                }))
            }
            Real::Directory => Err(Errno::IO),
        }
    }

    /// As [`Overlay::place`], for an object that must already be in the upper.
    pub(super) fn held(&self, node: &Arc<Node>) -> Result<Held> {
        match self.place(node)? {
            Place::Upper(held) => Ok(held),
            _ => Err(Errno::ROFS),
        }
    }

    /// Attributes of what is at `place`.
    pub(super) fn stat(&self, place: &Place) -> Result<Attr> {
        match place {
            Place::Lower(file) => file.stat(),
            Place::LowerDir(dir) => dir.stat_self(),
            Place::Upper(held) => self.upper()?.stat(held.read()),
        }
    }

    /// An xattr of what is at `place`, by its name in the layer.
    pub(super) fn xattr(&self, place: &Place, attr: &CStr) -> Result<Option<Vec<u8>>> {
        match place {
            Place::Lower(file) => file.xattr(attr),
            Place::LowerDir(dir) => dir.xattr_self(attr),
            Place::Upper(held) => self.upper()?.xattr(held.read(), attr),
        }
    }

    /// Names in the layer of all xattrs of what is at `place`, each ended by NUL.
    pub(super) fn xattr_names(&self, place: &Place) -> Result<Vec<u8>> {
        match place {
            Place::Lower(file) => file.xattr_names(),
            Place::LowerDir(dir) => dir.xattr_names_self(),
            Place::Upper(held) => self.upper()?.xattr_names(held.read()),
        }
    }

    /// Attributes of `node` as on disk, with the link count of the union. Owners are not mapped yet. The caller must
    /// not hold the node's own `DirState`.
    pub(super) fn attr(&self, node: &Arc<Node>) -> Result<Attr> {
        let before = {
            let state = node.state();
            if state.fresh && self.options.timeout.is_none() {
                return Ok(state.attr);
            }
            state.changes
        };
        let mut attr = self.stat(&self.place(node)?)?;
        if let Some(dir) = &node.dir
            && dir.pinned().is_none()
            && dir.state.lock().sources() > 1
        {
            attr.nlink = 1;
        }
        let mut state = node.state();
        if let Some(data) = &state.data {
            attr.blocks = data.stat().map_or(attr.blocks, |data| data.blocks);
        }
        if let Some(union) = state.union_nlink() {
            attr.nlink = union;
        }
        // A change that came in between makes what was read old already.
        if state.changes == before {
            state.attr = attr;
            state.fresh = !state.behind;
        }
        Ok(attr)
    }
}
