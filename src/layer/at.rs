//! One object in a layer and what may be done to it.
//!
//! [`At`] only reads. [`UpperAt`] is made by [`super::upper::Upper`], or for an upper at rest, and is the only type with
//! calls that change something, so no code path can write to a lower layer.

use std::ffi::{CStr, OsStr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags, Timestamps, XattrFlags};
use rustix::io::{Errno, Result};

use super::attr::Attr;
use super::name::Name;
use super::sys;

/// Longest xattr value and list Linux knows (`XATTR_SIZE_MAX`, `XATTR_LIST_MAX`).
const XATTR_MAX: usize = 65536;

/// An object: a name in a directory that is held open, or a descriptor of the object itself.
#[derive(Clone, Copy, Debug)]
pub enum At<'a> {
    /// `name` in the directory; a symlink is itself, never followed.
    Entry(BorrowedFd<'a>, Name<'a>),
    /// The object a descriptor (possibly `O_PATH`) refers to; the only way to one without a name.
    Pinned(BorrowedFd<'a>),
}

/// The magic link to what `fd` refers to.
fn proc_fd(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// Retries `read` with a larger buffer until the answer fits.
fn with_growing_buffer(read: impl Fn(&mut [u8]) -> Result<usize>) -> Result<Vec<u8>> {
    let mut small = [0; 512];
    match read(&mut small) {
        Ok(length) => return Ok(small[..length].to_vec()),
        Err(Errno::RANGE) => {}
        Err(error) => return Err(error),
    }
    let mut large = vec![0; XATTR_MAX];
    let length = read(&mut large)?;
    large.truncate(length);
    Ok(large)
}

impl At<'_> {
    /// Its attributes. Never waits for a remote server or for our own mount: what is known is good enough.
    pub fn stat(self) -> Result<Attr> {
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
        let stat = match self {
            Self::Entry(dir, name) => {
                rustix::fs::statx(dir, name.bytes(), flags, StatxFlags::BASIC_STATS)?
            }
            Self::Pinned(fd) => rustix::fs::statx(
                fd,
                c"",
                flags | AtFlags::EMPTY_PATH,
                StatxFlags::BASIC_STATS,
            )?,
        };
        Ok(Attr::from_statx(&stat))
    }

    /// An xattr's value; `None` if there is none by that name, or none can be there at all.
    pub fn xattr(self, attr: &CStr) -> Result<Option<Vec<u8>>> {
        match with_growing_buffer(|buffer| self.raw_xattr(attr, buffer)) {
            Ok(value) => Ok(Some(value)),
            Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn raw_xattr(self, attr: &CStr, buffer: &mut [u8]) -> Result<usize> {
        match self {
            Self::Entry(dir, name) => sys::getxattrat(dir, name.bytes(), attr, buffer),
            Self::Pinned(fd) => match rustix::fs::fgetxattr(fd, attr, &mut *buffer) {
                Err(Errno::BADF) => rustix::fs::getxattr(proc_fd(fd), attr, buffer),
                other => other,
            },
        }
    }

    /// Names of all xattrs, each ended by NUL; empty where there can be none.
    pub fn xattr_names(self) -> Result<Vec<u8>> {
        match with_growing_buffer(|buffer| self.raw_xattr_names(buffer)) {
            Err(Errno::OPNOTSUPP) => Ok(Vec::new()),
            other => other,
        }
    }

    fn raw_xattr_names(self, buffer: &mut [u8]) -> Result<usize> {
        match self {
            Self::Entry(dir, name) => sys::listxattrat(dir, name.bytes(), buffer),
            Self::Pinned(fd) => match rustix::fs::flistxattr(fd, &mut *buffer) {
                Err(Errno::BADF) => rustix::fs::listxattr(proc_fd(fd), buffer),
                other => other,
            },
        }
    }

    /// Whether xattrs can be listed here.
    pub(super) fn lists_xattrs(self) -> bool {
        self.raw_xattr_names(&mut []) != Err(Errno::OPNOTSUPP)
    }

    /// Target of a symlink.
    pub fn read_link(self) -> Result<Vec<u8>> {
        let target = match self {
            Self::Entry(dir, name) => rustix::fs::readlinkat(dir, name.bytes(), Vec::new())?,
            Self::Pinned(fd) => rustix::fs::readlinkat(fd, c"", Vec::new())?,
        };
        Ok(target.into_bytes())
    }

    /// Opens it with `flags`; never follows a symlink, never waits for a FIFO's other end.
    pub(super) fn open(self, flags: OFlags) -> Result<OwnedFd> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        match self {
            Self::Entry(dir, name) => {
                rustix::fs::openat(dir, name.bytes(), flags | OFlags::NOFOLLOW, Mode::empty())
            }
            Self::Pinned(fd) => rustix::fs::open(proc_fd(fd), flags, Mode::empty()),
        }
    }

    /// A descriptor that keeps the object alive and reachable, without any right to its content.
    pub(super) fn pin(self) -> Result<OwnedFd> {
        match self {
            Self::Entry(dir, name) => {
                let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                rustix::fs::openat(dir, name.bytes(), flags, Mode::empty())
            }
            Self::Pinned(fd) => rustix::io::fcntl_dupfd_cloexec(fd, 0),
        }
    }

    /// The kernel's file handle of the object.
    pub(super) fn file_handle(self) -> Result<sys::RawHandle> {
        match self {
            Self::Entry(dir, name) => sys::file_handle(dir, name.bytes()),
            Self::Pinned(fd) => sys::file_handle(fd, b""),
        }
    }

    /// Filesystem statistics.
    pub fn stat_fs(self) -> Result<rustix::fs::StatVfs> {
        let (Self::Entry(fd, _) | Self::Pinned(fd)) = self;
        rustix::fs::fstatvfs(fd)
    }
}

/// An object of the upper or the workdir.
#[derive(Clone, Copy, Debug)]
pub struct UpperAt<'a>(At<'a>);

impl<'a> UpperAt<'a> {
    /// For `layer::upper` and `layer::at_rest` only: what is named here must lie in an upper or its workdir.
    pub(super) fn new(at: At<'a>) -> Self {
        Self(at)
    }

    /// The reading view.
    pub fn read(self) -> At<'a> {
        self.0
    }

    /// Changes permission bits (07777).
    pub fn chmod(self, mode: u16) -> Result<()> {
        let mode = Mode::from_raw_mode(u32::from(mode));
        match self.0 {
            At::Entry(dir, name) => sys::chmodat(dir, name.bytes(), mode),
            At::Pinned(fd) => match rustix::fs::fchmod(fd, mode) {
                Err(Errno::BADF) => rustix::fs::chmod(proc_fd(fd), mode),
                other => other,
            },
        }
    }

    /// Changes owner and group; `None` leaves one as it is. The system clears suid and sgid.
    pub fn chown(self, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
        let uid = uid.map(rustix::fs::Uid::from_raw);
        let gid = gid.map(rustix::fs::Gid::from_raw);
        match self.0 {
            At::Entry(dir, name) => {
                rustix::fs::chownat(dir, name.bytes(), uid, gid, AtFlags::SYMLINK_NOFOLLOW)
            }
            At::Pinned(fd) => rustix::fs::chownat(fd, c"", uid, gid, AtFlags::EMPTY_PATH),
        }
    }

    /// Sets access and modification time.
    pub fn set_times(self, times: &Timestamps) -> Result<()> {
        match self.0 {
            At::Entry(dir, name) => {
                rustix::fs::utimensat(dir, name.bytes(), times, AtFlags::SYMLINK_NOFOLLOW)
            }
            At::Pinned(fd) => rustix::fs::utimensat(fd, c"", times, AtFlags::EMPTY_PATH),
        }
    }

    /// Sets an xattr; `flags` as of setxattr(2).
    pub fn set_xattr(self, attr: &CStr, value: &[u8], flags: XattrFlags) -> Result<()> {
        match self.0 {
            At::Entry(dir, name) => sys::setxattrat(dir, name.bytes(), attr, value, flags),
            At::Pinned(fd) => match rustix::fs::fsetxattr(fd, attr, value, flags) {
                Err(Errno::BADF) => rustix::fs::setxattr(proc_fd(fd), attr, value, flags),
                other => other,
            },
        }
    }

    /// Removes an xattr.
    pub fn remove_xattr(self, attr: &CStr) -> Result<()> {
        match self.0 {
            At::Entry(dir, name) => sys::removexattrat(dir, name.bytes(), attr),
            At::Pinned(fd) => match rustix::fs::fremovexattr(fd, attr) {
                Err(Errno::BADF) => rustix::fs::removexattr(proc_fd(fd), attr),
                other => other,
            },
        }
    }
}

/// Names in an xattr list as the system returns it.
pub fn split_names(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|&byte| byte == 0)
        .filter(|name| !name.is_empty())
}

/// Opens the directory `name` for listing and as the base of further names; only searchable ones as `O_PATH`.
pub(super) fn open_directory(dir: impl AsFd, name: &[u8]) -> Result<OwnedFd> {
    match open_listable(&dir, name) {
        Err(Errno::ACCESS) => open_searchable(dir, name),
        other => other,
    }
}

/// As [`open_directory`]; EACCES if it cannot be listed.
pub(super) fn open_listable(dir: impl AsFd, name: &[u8]) -> Result<OwnedFd> {
    open_as(dir, name, OFlags::RDONLY)
}

/// As [`open_directory`], never for listing.
pub(super) fn open_searchable(dir: impl AsFd, name: &[u8]) -> Result<OwnedFd> {
    open_as(dir, name, OFlags::PATH)
}

fn open_as(dir: impl AsFd, name: &[u8], access: OFlags) -> Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | access;
    rustix::fs::openat(dir, OsStr::from_bytes(name), flags, Mode::empty())
}
