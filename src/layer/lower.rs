//! Read-only layers. No type here has a call that changes anything.
//!
//! A lower layer never changes while it is mounted, so its directories form an immutable chain: a [`LowerDir`]
//! knows its parent and name for good. What the union needs of a layer is the methods of [`LowerDir`] and
//! [`LowerFile`] and no more (entries, attributes, marks, link target, xattrs, content). Two kinds of layer answer
//! them: a directory, by system calls, with descriptors opened on demand; and an archive, from its index.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use rustix::fs::{OFlags, RawDir, SeekFrom};
use rustix::io::{Errno, Result};

use super::archive::{self, Archive, Archived};
use super::at::{At, open_directory};
use super::attr::{Attr, Kind};
pub use super::content::Content;
use super::fd::{FdSlot, Fds};
use super::file_flags::FileFlags;
use super::handle::HandleSpace;
use super::mark::{self, Marks, Prefix};
use super::name::{Name, OwnedName};
use super::override_stat;

/// One lower layer.
#[derive(Debug)]
pub struct Lower {
    /// Position in the stack, 0 is the topmost lower.
    pub position: usize,
    /// Where it was found, absolute: a directory or a tar.
    pub path: PathBuf,
    /// Device number of its root; one of our own for an archive.
    pub dev: u64,
    /// How its file handles are written; `None` where there are none.
    pub handles: Option<HandleSpace>,
    /// What it is kept in.
    pub medium: Medium,
}

/// What a layer is kept in.
#[derive(Debug)]
pub enum Medium {
    /// A directory of the system.
    Directory(Tree),
    /// A tar and its index.
    Archive(Arc<Archive>),
}

/// A layer that is a directory.
#[derive(Debug)]
pub struct Tree {
    /// The xattr that overrides owner and mode, if its root carries one.
    pub override_name: Option<&'static CStr>,
    /// The namespace whose marks are believed.
    pub prefix: Prefix,
    /// What other filesystems mounted inside hide; see [`Lower::set_covered`].
    pub covered: OnceLock<Attr>,
    /// Device and inode of the upper and the workdir where they lie in this layer; see [`Lower::hide`].
    pub hidden: OnceLock<[(u64, u64); 2]>,
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
        if let Some(tree) = self.tree() {
            tree.covered.get_or_init(|| attr);
        }
    }

    /// Says which directories are the upper and the workdir. Where they lie in this layer they show as empty directories:
    /// what changes is no part of a layer.
    pub fn hide(&self, upper: (u64, u64), work: (u64, u64)) {
        if let Some(tree) = self.tree() {
            tree.hidden.get_or_init(|| [upper, work]);
        }
    }

    /// The directory, if it is one.
    pub fn tree(&self) -> Option<&Tree> {
        match &self.medium {
            Medium::Directory(tree) => Some(tree),
            Medium::Archive(_) => None,
        }
    }

    /// The archive, if it is one.
    pub fn archive(&self) -> Option<&Arc<Archive>> {
        match &self.medium {
            Medium::Directory(_) => None,
            Medium::Archive(archive) => Some(archive),
        }
    }

    /// The xattr that overrides owner and mode, if there is one.
    pub fn override_name(&self) -> Option<&'static CStr> {
        self.tree()?.override_name
    }

    /// It may have directories in it that show empty: the upper, or something mounted there.
    pub fn may_seal(&self) -> bool {
        self.tree()
            .is_some_and(|tree| !tree.private || tree.hidden.get().is_some())
    }

    /// Whether an object with these attributes is a whiteout. A device of an archive is a device.
    pub fn is_whiteout(&self, attr: &Attr) -> bool {
        self.tree().is_some() && mark::is_whiteout(attr)
    }
}

/// A directory of a lower layer.
#[derive(Debug)]
pub struct LowerDir {
    lower: Arc<Lower>,
    place: Option<(Arc<LowerDir>, OwnedName)>,
    way: Way,
}

/// How a directory is reached.
#[derive(Debug)]
enum Way {
    /// A directory of the system.
    Open {
        slot: Arc<FdSlot>,
        /// Listing moves the descriptor's position.
        listing: Mutex<()>,
    },
    /// Something else is mounted here: shown as an empty directory, never entered.
    Sealed,
    /// By its number in the index of the archive; the error is what all calls answer.
    Indexed(Result<u32>),
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
        && let Some(over) = override_stat::of(at, name)?
    {
        over.apply(&mut attr);
    }
    Ok(attr)
}

impl LowerDir {
    /// The root of `lower`.
    pub fn root(lower: &Arc<Lower>) -> Arc<Self> {
        let way = match &lower.medium {
            Medium::Directory(tree) => Way::open(tree),
            Medium::Archive(_) => Way::Indexed(Ok(archive::ROOT)),
        };
        Arc::new(Self {
            lower: Arc::clone(lower),
            place: None,
            way,
        })
    }

    /// The directory `name` in this one; `attr` are its attributes.
    pub fn child(self: &Arc<Self>, name: OwnedName, attr: &Attr) -> Arc<Self> {
        let way = match &self.lower.medium {
            Medium::Archive(archive) => Way::Indexed(
                self.number()
                    .and_then(|dir| archive.find(dir, name.get().bytes())),
            ),
            Medium::Directory(_) if self.is_sealed() || attr.mount_root => Way::Sealed,
            Medium::Directory(tree) => Way::open(tree),
        };
        Arc::new(Self {
            lower: Arc::clone(&self.lower),
            place: Some((Arc::clone(self), name)),
            way,
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

    /// The directory itself as a file of its parent; `None` for the root.
    pub fn as_file(&self) -> Option<LowerFile> {
        let (dir, name) = self.place.as_ref()?;
        Some(LowerFile {
            dir: Arc::clone(dir),
            name: name.clone(),
        })
    }

    /// Something else is mounted here, or it is the upper or workdir, so that only an empty directory can be shown.
    pub fn is_sealed(&self) -> bool {
        matches!(self.way, Way::Sealed)
    }

    /// The archive and the directory's number in it; `None` for a directory of the system.
    fn indexed(&self) -> Option<(&Arc<Archive>, Result<u32>)> {
        match (&self.lower.medium, &self.way) {
            (Medium::Archive(archive), Way::Indexed(number)) => Some((archive, *number)),
            _ => None,
        }
    }

    fn number(&self) -> Result<u32> {
        self.indexed().map_or(Err(Errno::IO), |(_, number)| number)
    }

    /// The layer as a directory of the system.
    fn tree(&self) -> Result<&Tree> {
        self.lower.tree().ok_or(Errno::IO)
    }

    /// Its descriptor. Directories above are opened first, from the lowest that is open, without recursion.
    fn fd(&self) -> Result<Arc<OwnedFd>> {
        let tree = self.tree()?;
        let is_open = |dir: &Self| dir.slot().is_ok_and(|slot| slot.is_open());
        let mut closed = vec![self];
        while let Some((parent, _)) = &closed[closed.len() - 1].place {
            if is_open(closed[closed.len() - 1]) {
                break;
            }
            closed.push(parent);
        }
        let mut above: Option<Arc<OwnedFd>> = None;
        for dir in closed.into_iter().rev() {
            let fd = tree.fds.get(dir.slot()?, || match (&dir.place, &above) {
                (Some((_, name)), Some(above)) => open_directory(above, name.get().bytes()),
                (None, _) => open_directory(&tree.root, b"."),
                // It was closed since we looked.
                (Some((parent, name)), None) => open_directory(&*parent.fd()?, name.get().bytes()),
            })?;
            above = Some(fd);
        }
        above.ok_or(Errno::NOENT)
    }

    fn slot(&self) -> Result<&Arc<FdSlot>> {
        match &self.way {
            Way::Open { slot, .. } => Ok(slot),
            Way::Sealed => Err(Errno::NOENT),
            Way::Indexed(_) => Err(Errno::IO),
        }
    }

    /// Calls `each` for every name. Whiteouts and opaqueness of an archive come as the files that mean them.
    pub fn list(&self, mut each: impl FnMut(Listed<'_>) -> Result<()>) -> Result<()> {
        if let Some((archive, number)) = self.indexed() {
            return archive.list(number?, &mut each);
        }
        let Way::Open { listing, .. } = &self.way else {
            return Ok(());
        };
        let fd = self.fd()?;
        let _exclusive = listing.lock();
        match list(&fd, each) {
            // The descriptor is O_PATH because we may not read the directory.
            Err(Errno::BADF) => Err(Errno::ACCESS),
            other => other,
        }
    }

    fn with<T>(&self, name: Name<'_>, act: impl FnOnce(At<'_>) -> Result<T>) -> Result<T> {
        if self.is_sealed() {
            return Err(Errno::NOENT);
        }
        act(At::Entry(self.fd()?.as_fd(), name))
    }

    /// Acts on the directory itself, which is one of the system.
    fn with_self<T>(&self, act: impl FnOnce(At<'_>) -> Result<T>) -> Result<T> {
        if self.is_sealed() {
            return Err(Errno::NODATA);
        }
        act(At::Pinned(self.fd()?.as_fd()))
    }

    /// Its file flags; an archive has none, and what is sealed cannot be asked.
    pub fn file_flags(&self, extended: bool) -> Result<FileFlags> {
        if self.is_sealed() || self.indexed().is_some() {
            return Ok(FileFlags::none(extended));
        }
        self.with_self(|at| at.file_flags(extended))
    }

    /// Attributes of `name`.
    pub fn stat(&self, name: Name<'_>) -> Result<Attr> {
        if let Some((archive, number)) = self.indexed() {
            return archive.stat(archive.find(number?, name.bytes())?);
        }
        let tree = self.tree()?;
        let mut attr = self.with(name, |at| stat(at, tree.override_name))?;
        if attr.mount_root && !tree.private {
            // What is mounted here is not the layer's; asking it might even be asking ourselves.
            let ino = attr.ino;
            attr = tree.covered.get().copied().unwrap_or(attr);
            (attr.mount_root, attr.nlink) = (true, 1);
            attr.ino = if attr.dev == self.lower.dev {
                attr.ino
            } else {
                ino
            };
        }
        let hidden = tree.hidden.get();
        if hidden.is_some_and(|hidden| hidden.contains(&(attr.dev, attr.ino))) {
            (attr.mount_root, attr.nlink) = (true, 1);
        }
        Ok(attr)
    }

    /// Attributes of the directory itself.
    pub fn stat_self(&self) -> Result<Attr> {
        if let Some((archive, number)) = self.indexed() {
            return archive.stat(number?);
        }
        if self.is_sealed()
            && let Some(file) = self.as_file()
        {
            return file.stat();
        }
        stat(At::Pinned(self.fd()?.as_fd()), self.tree()?.override_name)
    }

    /// Marks of `name`.
    pub fn marks(&self, name: Name<'_>) -> Result<Marks> {
        if let Some((archive, number)) = self.indexed() {
            return archive.marks(archive.find(number?, name.bytes())?);
        }
        let prefix = self.tree()?.prefix;
        self.with(name, |at| Marks::read(at, prefix))
    }

    /// Marks of the directory itself.
    pub fn marks_self(&self) -> Result<Marks> {
        if let Some((archive, number)) = self.indexed() {
            return archive.marks(number?);
        }
        let prefix = self.tree()?.prefix;
        self.with_self(|at| Marks::read(at, prefix))
    }

    /// An xattr of the directory itself, by its name in the layer.
    pub fn xattr_self(&self, attr: &CStr) -> Result<Option<Vec<u8>>> {
        let over = self.lower.override_name();
        match self.indexed() {
            Some((archive, number)) => archive.xattr(number?, attr),
            None => self.with_self(|at| override_stat::xattr(at, over, attr)),
        }
    }

    /// Names in the layer of all xattrs of the directory itself, each ended by NUL.
    pub fn xattr_names_self(&self) -> Result<Vec<u8>> {
        let over = self.lower.override_name();
        match self.indexed() {
            Some((archive, number)) => archive.xattr_names(number?),
            None => self.with_self(|at| override_stat::xattr_names(at, over)),
        }
    }

    /// Statistics of the filesystem it is on.
    pub fn stat_fs(&self) -> Result<rustix::fs::StatVfs> {
        match self.indexed() {
            Some((archive, _)) => archive.stat_fs(),
            None => self.with_self(|at| at.stat_fs()),
        }
    }

    /// The directory is not in its layer itself, only something below it: the attributes it should show are those of
    /// the layers below, if they have it.
    pub fn is_implied(&self) -> bool {
        self.indexed().is_some_and(|(archive, number)| {
            number.is_ok_and(|number| archive.index().inode(number).is_ok_and(|dir| dir.implied))
        })
    }

    /// Whether a whiteout file for `name` lies in this directory.
    pub fn has_aufs_whiteout(&self, name: Name<'_>) -> bool {
        if let Some((archive, number)) = self.indexed() {
            return number
                .is_ok_and(|dir| archive.has_whiteout(dir, name.bytes()).unwrap_or(false));
        }
        mark::aufs_whiteout(name).is_ok_and(|mark| self.stat(mark.get()).is_ok())
    }

    /// Whether the directory carries the opaque marker file.
    pub fn has_aufs_opaque(&self) -> bool {
        if self.indexed().is_some() {
            return self.marks_self().is_ok_and(|marks| marks.opaque);
        }
        Name::from_bytes(mark::AUFS_OPAQUE).is_ok_and(|name| self.stat(name).is_ok())
    }
}

impl Drop for LowerDir {
    /// Lets go of the directories above one after the other: a chain may be longer than the stack is deep.
    fn drop(&mut self) {
        let mut above = self.place.take();
        while let Some((parent, _)) = above {
            above = Arc::into_inner(parent).and_then(|mut parent| parent.place.take());
        }
    }
}

impl Way {
    fn open(tree: &Tree) -> Self {
        Self::Open {
            slot: tree.fds.dirs.slot(),
            listing: Mutex::new(()),
        }
    }
}

impl LowerFile {
    /// The archive and the file's number in it; `None` if its layer is a directory.
    fn indexed(&self) -> Option<Result<(&Arc<Archive>, u32)>> {
        let (archive, dir) = self.dir.indexed()?;
        let name = self.name.get().bytes();
        Some(dir.and_then(|dir| Ok((archive, archive.find(dir, name)?))))
    }

    /// Its layer is an archive.
    pub fn is_archived(&self) -> bool {
        self.dir.indexed().is_some()
    }

    /// Attributes.
    pub fn stat(&self) -> Result<Attr> {
        self.dir.stat(self.name.get())
    }

    /// Marks.
    pub fn marks(&self) -> Result<Marks> {
        self.dir.marks(self.name.get())
    }

    /// An xattr, by its name in the layer.
    pub fn xattr(&self, attr: &CStr) -> Result<Option<Vec<u8>>> {
        let over = self.dir.lower.override_name();
        match self.indexed() {
            Some(found) => found.and_then(|(archive, number)| archive.xattr(number, attr)),
            None => self.read(|at| override_stat::xattr(at, over, attr)),
        }
    }

    /// Names in the layer of all xattrs, each ended by NUL.
    pub fn xattr_names(&self) -> Result<Vec<u8>> {
        let over = self.dir.lower.override_name();
        match self.indexed() {
            Some(found) => found.and_then(|(archive, number)| archive.xattr_names(number)),
            None => self.read(|at| override_stat::xattr_names(at, over)),
        }
    }

    /// Target of a symlink.
    pub fn link_target(&self) -> Result<Vec<u8>> {
        match self.indexed() {
            Some(found) => found.and_then(|(archive, number)| archive.link_target(number)),
            None => self.read(|at| at.read_link()),
        }
    }

    /// Opens the content for reading. Access times stay as they are where the system lets us.
    pub fn content(&self) -> Result<Content> {
        match self.archived()? {
            Some(content) => Ok(Content::Archived(content)),
            None => self.open().map(|fd| Content::File(Arc::new(fd))),
        }
    }

    /// The content if the layer is an archive; no descriptor is needed for it.
    pub fn archived(&self) -> Result<Option<Archived>> {
        match self.indexed() {
            None => Ok(None),
            Some(found) => {
                let (archive, number) = found?;
                archive::content(archive, number).map(Some)
            }
        }
    }

    /// Opens the file, which is one of a directory.
    pub fn open(&self) -> Result<OwnedFd> {
        let open = |extra| {
            let fds = &self.dir.tree()?.fds;
            self.read(|at| fds.retry(|| at.open(OFlags::RDONLY | extra)))
        };
        if self.dir.tree()?.private {
            return open(OFlags::empty());
        }
        match open(OFlags::NOATIME) {
            Err(Errno::PERM) => open(OFlags::empty()),
            other => other,
        }
    }

    /// Its file flags; an archive has none.
    pub fn file_flags(&self, extended: bool) -> Result<FileFlags> {
        if self.is_archived() {
            return Ok(FileFlags::none(extended));
        }
        self.read(|at| at.file_flags(extended))
    }

    fn read<T>(&self, act: impl FnOnce(At<'_>) -> Result<T>) -> Result<T> {
        self.dir.with(self.name.get(), act)
    }

    /// Origin of a copy of it in the kernel's format; `None` where the filesystem has no handles.
    pub fn origin(&self) -> Result<Option<Vec<u8>>> {
        if let Some(found) = self.indexed() {
            return found.map(|(archive, number)| Some(archive.origin(number)));
        }
        let Some(space) = &self.dir.lower.handles else {
            return Ok(None);
        };
        match self.read(|at| space.encode(at)) {
            Ok(handle) => Ok(Some(handle)),
            Err(Errno::OPNOTSUPP | Errno::OVERFLOW) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
