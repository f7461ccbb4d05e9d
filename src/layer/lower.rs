//! Read-only layers. No type here has a call that changes anything.
//!
//! A lower layer never changes while it is mounted, so its directories form an immutable chain: a [`LowerDir`]
//! knows its parent and name for good and opens its descriptor on demand. What the union needs of a layer is
//! the methods of [`LowerDir`] and [`LowerFile`] and no more (entries, attributes, marks, link target, xattrs,
//! content); a layer kept in an archive answers the same questions.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use rustix::fs::{OFlags, RawDir, SeekFrom};
use rustix::io::{Errno, Result};

use super::at::{At, open_directory};
use super::attr::{Attr, Kind};
use super::fd::{FdSlot, Fds};
use super::handle::HandleSpace;
use super::mark::{self, Marks, Prefix};
use super::name::{Name, OwnedName};
use super::override_stat::Override;

/// One lower layer.
#[derive(Debug)]
pub struct Lower {
    /// Position in the stack, 0 is the topmost lower.
    pub position: usize,
    /// Where it was found, absolute.
    pub path: PathBuf,
    /// Device number of its root.
    pub dev: u64,
    /// How its file handles are written; `None` where there are none.
    pub handles: Option<HandleSpace>,
    /// The xattr that overrides owner and mode, if its root carries one.
    pub override_name: Option<&'static CStr>,
    /// The namespace whose marks are believed.
    pub prefix: Prefix,
    /// What other filesystems mounted inside hide; see [`Lower::set_covered`].
    pub covered: OnceLock<Attr>,
    /// A private clone of the mount: nothing mounted inside it is visible, and access times stay.
    pub private: bool,
    /// The root, kept open.
    pub root: OwnedFd,
    /// The descriptors of the mount.
    pub fds: Arc<Fds>,
}

impl Lower {
    /// Says what the mountpoint looked like before it was covered. Where a layer is not a private clone, this is what
    /// it shows in place of anything mounted inside it.
    pub fn set_covered(&self, attr: Attr) {
        self.covered.get_or_init(|| attr);
    }
}

/// A directory of a lower layer.
#[derive(Debug)]
pub struct LowerDir {
    lower: Arc<Lower>,
    place: Option<(Arc<LowerDir>, OwnedName)>,
    slot: Arc<FdSlot>,
    /// Listing moves the descriptor's position.
    listing: Mutex<()>,
    /// Something else is mounted here: shown as an empty directory, never entered.
    sealed: bool,
}

/// Anything in a directory of a lower layer, by name.
#[derive(Clone, Debug)]
pub struct LowerFile {
    /// Its directory.
    pub dir: Arc<LowerDir>,
    /// Its name there.
    pub name: OwnedName,
}

/// One name of a listing.
#[derive(Clone, Copy, Debug)]
pub struct Listed<'a> {
    /// The name as it is on disk, marks included.
    pub name: &'a [u8],
    /// What it is, if the filesystem tells.
    pub kind: Option<Kind>,
}

/// Bytes of a listing asked for at once.
const LIST_BUFFER: usize = 32 * 1024;

/// Calls `each` for every name in the directory behind `fd`, except `.` and `..`.
pub(super) fn list(fd: &impl AsFd, mut each: impl FnMut(Listed<'_>) -> Result<()>) -> Result<()> {
    let mut buffer = Vec::with_capacity(LIST_BUFFER);
    rustix::fs::seek(fd, SeekFrom::Start(0))?;
    let mut dir = RawDir::new(fd, buffer.spare_capacity_mut());
    while let Some(entry) = dir.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if matches!(name, b"." | b"..") {
            continue;
        }
        let kind = match entry.file_type() {
            rustix::fs::FileType::Unknown => None,
            known => Some(Kind::from_type(known)),
        };
        each(Listed { name, kind })?;
    }
    Ok(())
}

/// Attributes of `at` with the override of its layer applied.
pub(super) fn stat(at: At<'_>, override_name: Option<&CStr>) -> Result<Attr> {
    let mut attr = at.stat()?;
    if let Some(name) = override_name
        && let Some(value) = at.xattr(name)?
        && let Some(over) = Override::parse(&value)
    {
        over.apply(&mut attr);
    }
    Ok(attr)
}

impl LowerDir {
    /// The root of `lower`.
    pub fn root(lower: &Arc<Lower>) -> Arc<Self> {
        let slot = lower.fds.dirs.slot();
        Arc::new(Self {
            lower: Arc::clone(lower),
            place: None,
            slot,
            listing: Mutex::new(()),
            sealed: false,
        })
    }

    /// The directory `name` in this one; `attr` are its attributes.
    pub fn child(self: &Arc<Self>, name: OwnedName, attr: &Attr) -> Arc<Self> {
        Arc::new(Self {
            lower: Arc::clone(&self.lower),
            place: Some((Arc::clone(self), name)),
            slot: self.lower.fds.dirs.slot(),
            listing: Mutex::new(()),
            sealed: self.sealed || attr.mount_root,
        })
    }

    /// Its layer.
    pub fn lower(&self) -> &Arc<Lower> {
        &self.lower
    }

    /// Components from the root of the layer.
    pub fn path(&self) -> Vec<OwnedName> {
        let mut path = Vec::new();
        let mut dir = self;
        while let Some((parent, name)) = &dir.place {
            path.push(name.clone());
            dir = parent;
        }
        path.reverse();
        path
    }

    /// Its descriptor. Directories above are opened first, from the lowest that is open, without recursion.
    fn fd(&self) -> Result<Arc<OwnedFd>> {
        let fds = &self.lower.fds;
        let mut closed = vec![self];
        while let Some((parent, _)) = &closed[closed.len() - 1].place {
            if closed[closed.len() - 1].slot.is_open() {
                break;
            }
            closed.push(parent);
        }
        let mut above: Option<Arc<OwnedFd>> = None;
        for dir in closed.into_iter().rev() {
            let fd = fds.get(&dir.slot, || match (&dir.place, &above) {
                (Some((_, name)), Some(above)) => open_directory(above, name.get().bytes()),
                (None, _) => open_directory(&dir.lower.root, b"."),
                // It was closed since we looked.
                (Some((parent, name)), None) => open_directory(&*parent.fd()?, name.get().bytes()),
            })?;
            above = Some(fd);
        }
        above.ok_or(Errno::NOENT)
    }

    /// The directory itself as a file of its parent; `None` for the root.
    pub fn as_file(&self) -> Option<LowerFile> {
        let (dir, name) = self.place.as_ref()?;
        Some(LowerFile {
            dir: Arc::clone(dir),
            name: name.clone(),
        })
    }

    /// Calls `each` for every name.
    pub fn list(&self, each: impl FnMut(Listed<'_>) -> Result<()>) -> Result<()> {
        if self.sealed {
            return Ok(());
        }
        let fd = self.fd()?;
        let _exclusive = self.listing.lock();
        match list(&fd, each) {
            // The descriptor is O_PATH because we may not read the directory.
            Err(Errno::BADF) => Err(Errno::ACCESS),
            other => other,
        }
    }

    fn with<T>(&self, name: Name<'_>, act: impl FnOnce(At<'_>) -> Result<T>) -> Result<T> {
        if self.sealed {
            return Err(Errno::NOENT);
        }
        act(At::Entry(self.fd()?.as_fd(), name))
    }

    /// Attributes of `name`.
    pub fn stat(&self, name: Name<'_>) -> Result<Attr> {
        let mut attr = self.with(name, |at| stat(at, self.lower.override_name))?;
        if attr.mount_root && !self.lower.private {
            // What is mounted here is not the layer's; asking it might even be asking ourselves.
            let ino = attr.ino;
            attr = self.lower.covered.get().copied().unwrap_or(attr);
            (attr.mount_root, attr.nlink) = (true, 1);
            attr.ino = if attr.dev == self.lower.dev {
                attr.ino
            } else {
                ino
            };
        }
        Ok(attr)
    }

    /// Marks of `name`.
    pub fn marks(&self, name: Name<'_>) -> Result<Marks> {
        let prefix = self.lower.prefix;
        self.with(name, |at| Marks::read(at, prefix))
    }

    /// Marks of the directory itself.
    pub fn marks_self(&self) -> Result<Marks> {
        let prefix = self.lower.prefix;
        self.read_self(|at| Marks::read(at, prefix))
    }

    /// Something else is mounted here, so that only an empty directory can be shown.
    pub fn is_sealed(&self) -> bool {
        self.sealed
    }

    /// Attributes of the directory itself.
    pub fn stat_self(&self) -> Result<Attr> {
        if self.sealed
            && let Some(file) = self.as_file()
        {
            return file.stat();
        }
        stat(At::Pinned(self.fd()?.as_fd()), self.lower.override_name)
    }

    /// Acts on the directory itself, reading.
    pub fn read_self<T>(&self, act: impl FnOnce(At<'_>) -> Result<T>) -> Result<T> {
        if self.sealed {
            return Err(Errno::NODATA);
        }
        act(At::Pinned(self.fd()?.as_fd()))
    }

    /// Whether a whiteout file for `name` lies in this directory.
    pub fn has_aufs_whiteout(&self, name: Name<'_>) -> bool {
        mark::aufs_whiteout(name).is_ok_and(|mark| self.stat(mark.get()).is_ok())
    }

    /// Whether the directory carries the opaque marker file.
    pub fn has_aufs_opaque(&self) -> bool {
        Name::from_bytes(mark::AUFS_OPAQUE).is_ok_and(|name| self.stat(name).is_ok())
    }
}

impl LowerFile {
    /// Acts on it, reading.
    pub fn read<T>(&self, act: impl FnOnce(At<'_>) -> Result<T>) -> Result<T> {
        self.dir.with(self.name.get(), act)
    }

    /// Attributes.
    pub fn stat(&self) -> Result<Attr> {
        self.dir.stat(self.name.get())
    }

    /// Marks.
    pub fn marks(&self) -> Result<Marks> {
        self.dir.marks(self.name.get())
    }

    /// Opens the content for reading. Access times stay as they are where the system lets us.
    pub fn open(&self) -> Result<OwnedFd> {
        let fds = &self.dir.lower.fds;
        let open = |extra| self.read(|at| fds.retry(|| at.open(OFlags::RDONLY | extra)));
        if self.dir.lower.private {
            return open(OFlags::empty());
        }
        match open(OFlags::NOATIME) {
            Err(Errno::PERM) => open(OFlags::empty()),
            other => other,
        }
    }

    /// Origin of a copy of it in the kernel's format; `None` where the filesystem has no handles.
    pub fn origin(&self) -> Result<Option<Vec<u8>>> {
        let Some(space) = &self.dir.lower.handles else {
            return Ok(None);
        };
        match self.read(|at| space.encode(at)) {
            Ok(handle) => Ok(Some(handle)),
            Err(Errno::OPNOTSUPP | Errno::OVERFLOW) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The layer's override of owner and mode is for the union, not for its users.
    pub fn override_name(&self) -> Option<&'static CStr> {
        self.dir.lower.override_name
    }
}
