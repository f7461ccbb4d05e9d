//! The staging area: nothing appears in the upper half-made.
//!
//! ```text
//! WORKDIR/                       locked (flock) while mounted
//!   work/                        temporaries `#HEX`, emptied at mount; what a crash leaves lies here
//!   work/#HEX.MODE.INODE         notes of modes to put back, see `layer/widen.rs`
//!   work/incompat/volatile/      present while a volatile mount is alive or after it crashed
//!   index/                       hard links to copied-up inodes, named by the hex of their origin
//! ```
//!
//! The layout is the kernel's, so either can mount what the other left.

use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};
use rustix::io::{Errno, Result};

use super::at::{At, UpperAt};
use super::attr::Kind;
use super::fd::Fds;
use super::lower::list;
use super::name::{Name, OwnedName};
use super::upper::is_flag_unknown;

/// Directory of temporaries below the workdir.
pub(super) const WORK: &str = "work";
/// Directory of the hard-link index below the workdir.
pub const INDEX: &str = "index";
/// Marker of a volatile mount, below `work`.
pub(super) const VOLATILE: [&str; 2] = ["incompat", "volatile"];

/// The opened workdir.
#[derive(Debug)]
pub struct Workdir {
    /// `WORKDIR/work`.
    pub(super) temp: OwnedFd,
    next: AtomicU64,
    fds: Arc<Fds>,
}

impl Workdir {
    pub(super) fn new(temp: OwnedFd, fds: Arc<Fds>) -> Self {
        Self {
            temp,
            fds,
            next: AtomicU64::new(0),
        }
    }

    /// A name no other temporary has.
    pub(super) fn fresh_name(&self) -> Result<OwnedName> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        Name::from_bytes(format!("#{number:x}").as_bytes()).map(Name::to_owned)
    }

    fn staged(&self, make: impl FnOnce(BorrowedFd<'_>, &[u8]) -> Result<()>) -> Result<Staged<'_>> {
        let name = self.fresh_name()?;
        make(self.temp.as_fd(), name.get().bytes())?;
        Ok(Staged {
            workdir: self,
            name,
            present: Cell::new(true),
        })
    }

    /// A new empty regular file and a descriptor to fill it.
    pub(super) fn stage_file(&self, mode: u16) -> Result<(Staged<'_>, OwnedFd)> {
        let flags =
            OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let mode = Mode::from_raw_mode(mode.into());
        let name = self.fresh_name()?;
        let open = || rustix::fs::openat(&self.temp, name.get().bytes(), flags, mode);
        let fd = self.fds.retry(open)?;
        Ok((
            Staged {
                workdir: self,
                name,
                present: Cell::new(true),
            },
            fd,
        ))
    }

    /// A new directory.
    pub(super) fn stage_dir(&self, mode: u16) -> Result<Staged<'_>> {
        self.staged(|dir, name| rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(mode.into())))
    }

    /// A new symlink.
    pub(super) fn stage_symlink(&self, target: &[u8]) -> Result<Staged<'_>> {
        self.staged(|dir, name| rustix::fs::symlinkat(target, dir, name))
    }

    /// A new device, FIFO or socket.
    pub(super) fn stage_node(&self, kind: Kind, mode: u16, rdev: u32) -> Result<Staged<'_>> {
        self.staged(|dir, name| make_node(dir, name, kind, mode, rdev))
    }

    /// Another name of an existing object.
    pub(super) fn stage_link(&self, of: At<'_>) -> Result<Staged<'_>> {
        self.staged(|dir, name| link(of, dir, name))
    }

    /// Deletes `name` of the temporaries with everything in it.
    pub(super) fn remove(&self, name: Name<'_>) -> Result<()> {
        self.fds.retry(|| remove_tree(self.temp.as_fd(), name))
    }
}

/// An object in the workdir, removed when dropped unless it was published.
#[derive(Debug)]
pub struct Staged<'a> {
    workdir: &'a Workdir,
    name: OwnedName,
    present: Cell<bool>,
}

impl Staged<'_> {
    /// The staged object.
    pub fn at(&self) -> UpperAt<'_> {
        let (dir, name) = self.place();
        UpperAt::new(At::Entry(dir, name))
    }

    /// Moves it to `dir/name`, replacing a non-directory there in the same instant.
    pub fn publish(&self, dir: BorrowedFd<'_>, name: Name<'_>) -> Result<()> {
        let own = self.name.get().bytes();
        rustix::fs::renameat(&self.workdir.temp, own, dir, name.bytes())?;
        self.present.set(false);
        Ok(())
    }

    /// Moves it to `dir/name`; EEXIST if there is something.
    pub fn publish_new(&self, dir: BorrowedFd<'_>, name: Name<'_>) -> Result<()> {
        let own = self.name.get().bytes();
        let flags = RenameFlags::NOREPLACE;
        match rustix::fs::renameat_with(&self.workdir.temp, own, dir, name.bytes(), flags) {
            Err(error) if is_flag_unknown(error) => {
                let staged = At::Entry(self.workdir.temp.as_fd(), self.name.get());
                link(staged, dir, name.bytes())?;
                // A name that is left is one more in the link count until this is dropped, which tries again.
                self.workdir.remove(self.name.get())?;
            }
            other => other?,
        }
        self.present.set(false);
        Ok(())
    }

    /// Where it lies. What is swapped with it is deleted in its stead.
    pub fn place(&self) -> (BorrowedFd<'_>, Name<'_>) {
        (self.workdir.temp.as_fd(), self.name.get())
    }
}

impl Drop for Staged<'_> {
    fn drop(&mut self) {
        if self.present.get() {
            super::best_effort("remove a temporary", self.workdir.remove(self.name.get()));
        }
    }
}

/// mknodat(2).
pub(super) fn make_node(
    dir: BorrowedFd<'_>,
    name: &[u8],
    kind: Kind,
    mode: u16,
    rdev: u32,
) -> Result<()> {
    let (major, minor) = super::attr::decode_dev(rdev);
    let dev = rustix::fs::makedev(major, minor);
    rustix::fs::mknodat(
        dir,
        name,
        kind.file_type(),
        Mode::from_raw_mode(mode.into()),
        dev,
    )
}

/// Gives `of` another name.
pub(super) fn link(of: At<'_>, dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    match of {
        At::Entry(from, old) => rustix::fs::linkat(from, old.bytes(), dir, name, AtFlags::empty()),
        At::Pinned(fd) => {
            let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd));
            rustix::fs::linkat(rustix::fs::CWD, path, dir, name, AtFlags::SYMLINK_FOLLOW)
        }
    }
}

/// Deletes `dir/name`, a directory with all it holds. What a directory's mode keeps from its owner is allowed first.
pub(super) fn remove_tree(dir: BorrowedFd<'_>, name: Name<'_>) -> Result<()> {
    match rustix::fs::unlinkat(dir, name.bytes(), AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM) => {}
        other => return other,
    }
    match rustix::fs::unlinkat(dir, name.bytes(), AtFlags::REMOVEDIR) {
        Err(Errno::NOTEMPTY | Errno::EXIST) => {}
        other => return other,
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = || rustix::fs::openat(dir, name.bytes(), flags, Mode::empty());
    let inner = match open() {
        Err(Errno::ACCESS) => {
            UpperAt::new(At::Entry(dir, name)).chmod(0o700)?;
            open()?
        }
        other => other?,
    };
    let mode = rustix::fs::fstat(&inner)?.st_mode;
    if mode & 0o700 != 0o700 {
        // Somebody else's directory may be emptied all the same, by root or by whom its group bits let in.
        super::best_effort(
            "open a directory for its removal",
            UpperAt::new(At::Pinned(inner.as_fd())).chmod(0o700),
        );
    }
    let mut names = Vec::new();
    list(&inner, |entry| {
        names.push(Name::from_bytes(entry.name)?.to_owned());
        Ok(())
    })?;
    for child in names {
        remove_tree(inner.as_fd(), child.get())?;
    }
    rustix::fs::unlinkat(dir, name.bytes(), AtFlags::REMOVEDIR)
}
