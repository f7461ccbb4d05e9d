//! The writable layer: every call of the crate that changes a layer is a method here or of what it returns, but for
//! those that rewrite an upper at rest (`layer/at_rest/convert.rs`).

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags, XattrFlags};
use rustix::io::{Errno, Result};

use super::at::{self, At, UpperAt};
use super::attr::{Attr, Kind};
use super::fd::Fds;
use super::handle::HandleSpace;
use super::lower::{self, Listed};
use super::mark::{self, Mark, Marks, Prefix};
use super::name::{Name, OwnedName};
use super::override_stat::Override;
use super::stack::Durability;
use super::workdir::{self, Staged, Workdir};

mod xattr;

/// How deletions are recorded in this upper.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum WhiteoutForm {
    /// A character device 0:0, the kernel's form.
    Device,
    /// A file `.wh.NAME`.
    Aufs,
}

/// The upper directory with its workdir.
#[derive(Debug)]
pub struct Upper {
    /// Where it was found, absolute.
    pub path: PathBuf,
    /// Where its workdir was found, absolute.
    pub work_path: PathBuf,
    /// Device number of both.
    pub dev: u64,
    /// How its file handles are written.
    pub handles: Option<HandleSpace>,
    /// Form of new whiteouts.
    pub whiteouts: WhiteoutForm,
    /// Namespace of new marks; `None` where the filesystem takes no xattrs of ours.
    pub prefix: Option<Prefix>,
    /// Owner and mode are written to this xattr instead of the files.
    pub override_name: Option<&'static CStr>,
    /// When data reaches the disk.
    pub durability: Durability,
    /// The descriptors of the mount.
    pub(super) fds: Arc<Fds>,
    pub(super) root: OwnedFd,
    pub(super) workdir: Workdir,
    pub(super) index: Option<OwnedFd>,
    /// Held for its lock; the workdir itself.
    pub(super) _lock: OwnedFd,
    /// A whiteout in the workdir that others are hard links of, by name.
    pub(super) whiteout: Mutex<Option<OwnedName>>,
    /// `renameat2(RENAME_WHITEOUT)` has not been refused yet.
    pub(super) rename_whiteout: AtomicBool,
}

impl Upper {
    /// The root directory.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Opens the directory `dir/name`.
    pub fn open_dir(&self, dir: BorrowedFd<'_>, name: Name<'_>) -> Result<OwnedFd> {
        self.with_mode(self.pinned(dir), 0o100, || {
            self.open_directory(self.at(dir, name), (dir, name.bytes()))
        })
    }

    /// As [`Upper::pin`], of `dir/name` although `dir` may not be searched.
    pub fn pin_in(&self, dir: BorrowedFd<'_>, name: Name<'_>) -> Result<OwnedFd> {
        self.with_mode(self.pinned(dir), 0o100, || self.pin(At::Entry(dir, name)))
    }

    /// Opens the root once more.
    pub fn open_root(&self) -> Result<OwnedFd> {
        self.open_directory(self.pinned(self.root()), (self.root(), b"."))
    }

    /// A union has to list directories too that their owner may only search.
    fn open_directory(
        &self,
        at: UpperAt<'_>,
        (dir, name): (BorrowedFd<'_>, &[u8]),
    ) -> Result<OwnedFd> {
        match self.with_mode(at, 0o400, || at::open_listable(dir, name)) {
            Err(Errno::ACCESS | Errno::PERM | Errno::ROFS) => at::open_searchable(dir, name),
            other => other,
        }
    }

    /// Opens an object with `flags`; never follows a symlink, never waits for a FIFO's other end.
    pub fn open(&self, at: At<'_>, flags: OFlags) -> Result<OwnedFd> {
        self.fds.retry(|| at.open(flags))
    }

    /// A descriptor by which the object is found for as long as a request takes, whatever happens to its name.
    pub fn pin(&self, at: At<'_>) -> Result<OwnedFd> {
        self.fds.retry(|| at.pin())
    }

    /// A descriptor that keeps an object alive which has no name, for as long as anybody uses it.
    pub fn keep(&self, at: At<'_>) -> Result<OwnedFd> {
        self.fds.keep(|| at.pin())
    }

    /// `name` in an upper directory.
    pub fn at<'a>(&self, dir: BorrowedFd<'a>, name: Name<'a>) -> UpperAt<'a> {
        UpperAt::new(At::Entry(dir, name))
    }

    /// The object a descriptor got from this upper refers to.
    pub fn pinned<'a>(&self, fd: BorrowedFd<'a>) -> UpperAt<'a> {
        UpperAt::new(At::Pinned(fd))
    }

    /// Marks of an object, also of one that its owner may not read.
    pub fn marks(&self, at: At<'_>) -> Result<Marks> {
        let read = || Marks::read(at, self.prefix.unwrap_or(Prefix::User));
        let marks = read()?;
        if !marks.unread {
            return Ok(marks);
        }
        let readable = self.with_mode(UpperAt::new(at), 0o400, || match read() {
            Ok(marks) if marks.unread => Err(Errno::ACCESS),
            other => other,
        });
        Ok(readable.unwrap_or(marks))
    }

    /// Attributes with the override applied.
    pub fn stat(&self, at: At<'_>) -> Result<Attr> {
        lower::stat(at, self.override_name)
    }

    /// Calls `each` for every name in an upper directory; the caller excludes others from the descriptor.
    pub fn list(
        &self,
        dir: BorrowedFd<'_>,
        each: impl FnMut(Listed<'_>) -> Result<()>,
    ) -> Result<()> {
        match lower::list(&dir, each) {
            Err(Errno::BADF) => Err(Errno::ACCESS),
            other => other,
        }
    }

    /// The staging area.
    pub fn workdir(&self) -> &Workdir {
        &self.workdir
    }

    /// Stages a regular file; the descriptor is open for reading and writing.
    pub fn stage_file(&self, mode: u16) -> Result<(Staged<'_>, OwnedFd)> {
        self.workdir.stage_file(mode)
    }

    /// Stages a directory.
    pub fn stage_dir(&self, mode: u16) -> Result<Staged<'_>> {
        self.workdir.stage_dir(mode)
    }

    /// Stages a symlink.
    pub fn stage_symlink(&self, target: &[u8]) -> Result<Staged<'_>> {
        self.workdir.stage_symlink(target)
    }

    /// Stages a device, FIFO or socket; where owner and mode are overridden, a file stands for it.
    pub fn stage_node(&self, kind: Kind, mode: u16, rdev: u32) -> Result<Staged<'_>> {
        if self.override_name.is_some() {
            return self.stage_file(mode | 0o600).map(|(staged, _)| staged);
        }
        self.workdir.stage_node(kind, mode, rdev)
    }

    /// Stages another name of an object of this upper.
    pub fn stage_link(&self, of: At<'_>) -> Result<Staged<'_>> {
        self.workdir.stage_link(of)
    }

    /// Creates and opens a regular file; EEXIST if the name is taken.
    pub fn create_file(&self, dir: BorrowedFd<'_>, name: Name<'_>, mode: u16) -> Result<OwnedFd> {
        let flags =
            OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let mode = Mode::from_raw_mode(mode.into());
        self.fds
            .retry(|| rustix::fs::openat(dir, name.bytes(), flags, mode))
    }

    /// mkdir(2).
    pub fn make_dir(&self, dir: BorrowedFd<'_>, name: Name<'_>, mode: u16) -> Result<()> {
        rustix::fs::mkdirat(dir, name.bytes(), Mode::from_raw_mode(mode.into()))
    }

    /// symlink(2).
    pub fn make_symlink(&self, dir: BorrowedFd<'_>, name: Name<'_>, target: &[u8]) -> Result<()> {
        rustix::fs::symlinkat(target, dir, name.bytes())
    }

    /// mknod(2).
    pub fn make_node(
        &self,
        dir: BorrowedFd<'_>,
        name: Name<'_>,
        kind: Kind,
        mode: u16,
        rdev: u32,
    ) -> Result<()> {
        workdir::make_node(dir, name.bytes(), kind, mode, rdev)
    }

    /// link(2).
    pub fn link(&self, of: At<'_>, dir: BorrowedFd<'_>, name: Name<'_>) -> Result<()> {
        workdir::link(of, dir, name.bytes())
    }

    /// unlink(2).
    pub fn unlink(&self, dir: BorrowedFd<'_>, name: Name<'_>) -> Result<()> {
        rustix::fs::unlinkat(dir, name.bytes(), AtFlags::empty())
    }

    /// Removes a directory that holds nothing but whiteouts: out of sight first if it is not quite empty.
    pub fn remove_dir(&self, dir: BorrowedFd<'_>, name: Name<'_>) -> Result<()> {
        match rustix::fs::unlinkat(dir, name.bytes(), AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            other => return other,
        }
        let temp = self.workdir.fresh_name()?;
        let target = (self.workdir.temp.as_fd(), temp.get());
        self.with_mode_to_move(self.at(dir, name), target, || {
            self.rename((dir, name), target, false)
        })?;
        super::best_effort(
            "remove an emptied directory",
            self.workdir.remove(temp.get()),
        );
        Ok(())
    }

    /// renameat2(2) within the upper.
    pub fn rename(
        &self,
        (from, old): (BorrowedFd<'_>, Name<'_>),
        (to, new): (BorrowedFd<'_>, Name<'_>),
        exchange: bool,
    ) -> Result<()> {
        if exchange {
            let flags = RenameFlags::EXCHANGE;
            return rustix::fs::renameat_with(from, old.bytes(), to, new.bytes(), flags);
        }
        rustix::fs::renameat(from, old.bytes(), to, new.bytes())
    }

    /// Swaps two objects of the upper or the workdir, in one step where the filesystem can. `to` is a whiteout, or shows
    /// nothing of what is below.
    ///
    /// Network filesystems and FUSE often know no `RENAME_EXCHANGE`. There `to`, and `from` if it hides something, stay
    /// hidden by whiteout files while their objects are elsewhere, so that nothing of the lowers appears if we are killed
    /// meanwhile.
    pub fn swap(
        &self,
        from: (BorrowedFd<'_>, Name<'_>),
        to: (BorrowedFd<'_>, Name<'_>),
        hides: bool,
    ) -> Result<()> {
        match self.rename(from, to, true) {
            Err(error) if is_flag_unknown(error) => {}
            other => return other,
        }
        let aside = self.workdir.fresh_name()?;
        let aside = (self.workdir.temp.as_fd(), aside.get());
        let swap = || {
            self.rename(to, aside, false)?;
            let moved = self.rename(from, to, false);
            let target = if moved.is_ok() { from } else { to };
            moved.and(self.rename(aside, target, false))
        };
        self.hidden(to, || {
            if hides {
                self.hidden(from, swap)
            } else {
                swap()
            }
        })
    }

    /// Does something with the object at a name while nothing of the lowers can appear there. A whiteout file beside an
    /// object hides only what is below it.
    fn hidden<T>(
        &self,
        (dir, name): (BorrowedFd<'_>, Name<'_>),
        act: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let Ok(mark) = mark::aufs_whiteout(name) else {
            return act();
        };
        match self.create_file(dir, mark.get(), 0) {
            Err(Errno::EXIST) => {}
            other => drop(other?),
        }
        let done = act();
        super::best_effort("remove a whiteout", self.unlink(dir, mark.get()));
        done
    }

    /// Renames and leaves a whiteout at the old name, in one step where the filesystem can.
    pub fn rename_and_whiteout(
        &self,
        (from, old): (BorrowedFd<'_>, Name<'_>),
        (to, new): (BorrowedFd<'_>, Name<'_>),
    ) -> Result<()> {
        if self.whiteouts == WhiteoutForm::Aufs {
            // The mark first: were we killed in between, the name is gone rather than doubled only on disk.
            self.whiteout(from, old)?;
            return self.rename((from, old), (to, new), false);
        }
        if self.rename_whiteout.load(Ordering::Relaxed) {
            let flags = RenameFlags::WHITEOUT;
            match rustix::fs::renameat_with(from, old.bytes(), to, new.bytes(), flags) {
                Err(error) if is_flag_unknown(error) => {
                    self.rename_whiteout.store(false, Ordering::Relaxed);
                }
                other => return other,
            }
        }
        self.hidden((from, old), || {
            self.rename((from, old), (to, new), false)?;
            self.whiteout(from, old)
        })
    }

    /// Records that `name`, of which this upper has nothing, is deleted.
    pub fn whiteout(&self, dir: BorrowedFd<'_>, name: Name<'_>) -> Result<()> {
        match self.whiteouts {
            WhiteoutForm::Device => self.link_whiteout(|from| {
                workdir::link(
                    At::Entry(self.workdir.temp.as_fd(), from),
                    dir,
                    name.bytes(),
                )
            }),
            WhiteoutForm::Aufs => {
                match self.create_file(dir, mark::aufs_whiteout(name)?.get(), 0) {
                    Err(Errno::EXIST) => Ok(()),
                    other => other.map(drop),
                }
            }
        }
    }

    /// Replaces what this upper has at `name` by a whiteout, in one step where the filesystem can. A directory
    /// must hold nothing but whiteouts.
    pub fn whiteout_over(&self, dir: BorrowedFd<'_>, name: Name<'_>, is_dir: bool) -> Result<()> {
        if self.whiteouts == WhiteoutForm::Aufs {
            self.whiteout(dir, name)?;
            return if is_dir {
                self.remove_dir(dir, name)
            } else {
                self.unlink(dir, name)
            };
        }
        let temp = self.workdir.fresh_name()?;
        let temp_dir = self.workdir.temp.as_fd();
        self.link_whiteout(|from| {
            workdir::link(At::Entry(temp_dir, from), temp_dir, temp.get().bytes())
        })?;
        let whiteout = (temp_dir, temp.get());
        let renamed = self.with_mode_to_move(self.at(dir, name), whiteout, || {
            if is_dir {
                self.swap(whiteout, (dir, name), false)
            } else {
                self.rename(whiteout, (dir, name), false)
            }
        });
        if is_dir || renamed.is_err() {
            super::best_effort(
                "remove what a whiteout replaced",
                self.workdir.remove(temp.get()),
            );
        }
        renamed
    }

    /// Removes the whiteout at `name`, where there is an object now. Should it stay, that is shown all the same.
    pub fn clear_whiteout(&self, dir: BorrowedFd<'_>, name: Name<'_>) {
        super::best_effort("remove a whiteout", self.remove_whiteout(dir, name));
    }

    /// As [`Upper::clear_whiteout`], telling whether it is gone.
    pub fn remove_whiteout(&self, dir: BorrowedFd<'_>, name: Name<'_>) -> Result<()> {
        if let Ok(mark) = mark::aufs_whiteout(name) {
            match self.unlink(dir, mark.get()) {
                Err(Errno::NOENT) => {}
                Err(error) => return Err(error),
                Ok(()) if self.whiteouts == WhiteoutForm::Aufs => return Ok(()),
                Ok(()) => {}
            }
        }
        if self.is_whiteout(dir, name)? {
            self.unlink(dir, name)
        } else {
            Ok(())
        }
    }

    /// Whether the name itself is taken by a whiteout (a device, or a file with the xattr), which a new object must
    /// replace.
    pub fn is_whiteout(&self, dir: BorrowedFd<'_>, name: Name<'_>) -> Result<bool> {
        let at = At::Entry(dir, name);
        match at.stat() {
            Ok(attr) if mark::is_whiteout(&attr) => Ok(true),
            Ok(attr) if attr.kind == Kind::File && attr.size == 0 => {
                self.marks(at).map(|marks| marks.whiteout)
            }
            Ok(_) | Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Runs `link` with the shared whiteout, renewing that when it has too many links.
    fn link_whiteout(&self, link: impl Fn(Name<'_>) -> Result<()>) -> Result<()> {
        let mut shared = self.whiteout.lock();
        if let Some(name) = &*shared {
            match link(name.get()) {
                Err(Errno::MLINK | Errno::NOENT) => {}
                other => return other,
            }
        }
        let name = self.workdir.fresh_name()?;
        let temp = self.workdir.temp.as_fd();
        workdir::make_node(temp, name.get().bytes(), Kind::CharDevice, 0, 0)?;
        *shared = Some(name.clone());
        link(name.get())
    }

    /// Writes a mark. Does nothing where the filesystem takes no xattrs of ours.
    pub fn set_mark(&self, at: UpperAt<'_>, mark: Mark, value: &[u8]) -> Result<()> {
        let Some(prefix) = self.prefix else {
            return Ok(());
        };
        self.with_mode(at, 0o600, || {
            at.set_xattr(mark.name(prefix), value, XattrFlags::empty())
        })
    }

    /// Writes a mark the union can do without: symlinks and devices take no `user.` xattrs.
    pub fn set_mark_if_possible(&self, at: UpperAt<'_>, mark: Mark, value: &[u8]) -> Result<()> {
        match self.set_mark(at, mark, value) {
            Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSPC) => Ok(()),
            other => other,
        }
    }

    /// Removes a mark in either namespace.
    pub fn remove_mark(&self, at: UpperAt<'_>, mark: Mark) -> Result<()> {
        for prefix in [Prefix::Trusted, Prefix::User] {
            match self.with_mode(at, 0o600, || at.remove_xattr(mark.name(prefix))) {
                Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM) | Ok(()) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Makes the directory `at` hide what is below it.
    pub fn set_opaque(&self, at: UpperAt<'_>) -> Result<()> {
        if self.prefix.is_some() {
            return self.set_mark(at, Mark::Opaque, b"y");
        }
        let fd = self.open(at.read(), OFlags::DIRECTORY | OFlags::RDONLY)?;
        let marker = Name::from_bytes(mark::AUFS_OPAQUE)?;
        let made = self.with_mode(at, 0o300, || self.create_file(fd.as_fd(), marker, 0));
        match made {
            Err(Errno::EXIST) => Ok(()),
            other => other.map(drop),
        }
    }

    /// Gives `at` the owner, group and mode of `attr`: in the files, or in the override xattr.
    pub fn set_owner_and_mode(&self, at: UpperAt<'_>, attr: &Attr, now: &Attr) -> Result<()> {
        if let Some(name) = self.override_name.filter(|_| attr.kind != Kind::Symlink) {
            let value = Override::of(attr).encode();
            let set = || at.set_xattr(name, value.as_bytes(), XattrFlags::empty());
            return self.with_mode(at, 0o600, set);
        }
        if (attr.uid, attr.gid) != (now.uid, now.gid) {
            match at.chown(Some(attr.uid), Some(attr.gid)) {
                // No override is read of a symlink: it has the owner it can have.
                Err(Errno::PERM | Errno::INVAL) if self.override_name.is_some() => {}
                other => other?,
            }
        }
        let cleared_by_chown = attr.mode & 0o6000 != 0;
        if attr.kind != Kind::Symlink && (attr.mode != now.mode || cleared_by_chown) {
            at.chmod(attr.mode)?;
        }
        Ok(())
    }

    /// Waits until the data of `fd` is on disk, unless the mount is volatile.
    pub fn sync(&self, fd: &impl AsFd, data_only: bool) -> Result<()> {
        match data_only {
            _ if self.durability.is_volatile() => Ok(()),
            true => rustix::fs::fdatasync(fd),
            false => rustix::fs::fsync(fd),
        }
    }

    /// Syncs a directory whose entries changed, where `fsync=strict` promises that.
    pub fn sync_if_strict(&self, dir: &impl AsFd) -> Result<()> {
        if self.durability == Durability::Strict {
            self.sync(dir, false)
        } else {
            Ok(())
        }
    }

    /// The directory of the hard-link index, if it is kept.
    pub fn index(&self) -> Option<BorrowedFd<'_>> {
        self.index.as_ref().map(AsFd::as_fd)
    }

    /// Writes everything to disk at the end of a mount and takes the volatile marker away.
    pub fn finish(&self) -> Result<()> {
        if self.durability == Durability::Volatile {
            let [outer, inner] = workdir::VOLATILE;
            let temp = &self.workdir.temp;
            rustix::fs::syncfs(temp)?;
            rustix::fs::unlinkat(temp, format!("{outer}/{inner}"), AtFlags::REMOVEDIR)?;
            rustix::fs::unlinkat(temp, outer, AtFlags::REMOVEDIR)?;
        }
        if let Some(name) = self.whiteout.lock().take() {
            self.workdir.remove(name.get())?;
        }
        Ok(())
    }
}

/// What filesystems answer that do not know a flag of renameat2(2).
pub(super) fn is_flag_unknown(error: Errno) -> bool {
    matches!(error, Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP)
}
