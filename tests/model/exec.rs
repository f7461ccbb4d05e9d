//! Executes one operation on one merged tree and tells the outcome as text.

use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    self, AtFlags, CWD, FallocateFlags, FileType, Gid, Mode, OFlags, RawDir, RenameFlags, SeekFrom,
    Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::{self, Errno};
use rustix::process::geteuid;

use super::generate::SLOTS;
use super::script::{Access, Alloc, Caller, Flag, How, Node, Op};
use super::snapshot::{attributes, hash, is_whiteout, xattrs};
use crate::support::run::as_user;

/// Never block on a FIFO, never become a controlling terminal's owner.
const OPEN: OFlags = OFlags::NONBLOCK.union(OFlags::CLOEXEC);

/// A merged tree and the descriptors kept open in it.
pub(crate) struct Hands {
    root: PathBuf,
    slots: [Option<OwnedFd>; SLOTS],
}

type Outcome = Result<String, Errno>;

impl Hands {
    pub(crate) fn new(root: &Path) -> Self {
        Self {
            root: root.to_path_buf(),
            slots: Default::default(),
        }
    }

    /// Closes what is kept open, so that the tree can be unmounted.
    pub(crate) fn close_all(&mut self) {
        self.slots = Default::default();
    }

    /// Whether the descriptor's file has lost its last name.
    pub(crate) fn is_unlinked(&self, slot: usize) -> bool {
        self.slot(slot)
            .and_then(fs::fstat)
            .is_ok_and(|stat| stat.st_nlink == 0)
    }

    /// The slots whose descriptors are of the same file as that of `slot`.
    pub(crate) fn same_file(&self, slot: usize) -> Vec<usize> {
        let file = |slot| {
            let stat = self.slot(slot).and_then(fs::fstat).ok()?;
            Some((stat.st_dev, stat.st_ino))
        };
        (0..SLOTS)
            .filter(|other| file(*other).is_some() && file(*other) == file(slot))
            .collect()
    }

    /// Executes `op`; the text is equal on two trees that behave alike.
    pub(crate) fn perform(&mut self, op: &Op) -> String {
        match self.dispatch(op) {
            Ok(text) if text.is_empty() => "ok".to_string(),
            Ok(text) => format!("ok: {text}"),
            Err(errno) => std::io::Error::from(errno).to_string(),
        }
    }

    /// Executes `op` as `caller`.
    pub(crate) fn perform_as(&mut self, caller: Caller, op: &Op) -> String {
        match caller {
            Caller::Root => self.perform(op),
            Caller::User => as_user(1000, || self.perform(op)),
        }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    fn open(&self, path: &str, flags: OFlags, mode: u32) -> Result<OwnedFd, Errno> {
        fs::openat(CWD, self.at(path), flags | OPEN, Mode::from_raw_mode(mode))
    }

    fn slot(&self, slot: usize) -> Result<&OwnedFd, Errno> {
        self.slots[slot].as_ref().ok_or(Errno::BADF)
    }

    fn dispatch(&mut self, op: &Op) -> Outcome {
        match op {
            Op::Open { slot, path, access } => {
                self.slots[*slot] = None;
                let flags = match access {
                    Access::Read => OFlags::RDONLY,
                    Access::Write => OFlags::RDWR,
                    Access::Append => OFlags::RDWR | OFlags::APPEND,
                    Access::Dir => OFlags::RDONLY | OFlags::DIRECTORY,
                };
                self.slots[*slot] = Some(self.open(path, flags, 0)?);
                Ok(String::new())
            }
            Op::SlotClose { slot } => {
                self.slots[*slot] = None;
                Ok(String::new())
            }
            Op::SlotRead { .. }
            | Op::SlotWrite { .. }
            | Op::SlotTruncate { .. }
            | Op::SlotStat { .. }
            | Op::SlotChmod { .. }
            | Op::SlotSync { .. }
            | Op::SlotReaddir { .. }
            | Op::SlotLink { .. } => self.on_slot(op),
            Op::Create { .. }
            | Op::Write { .. }
            | Op::Truncate { .. }
            | Op::Fallocate { .. }
            | Op::CopyRange { .. }
            | Op::Read { .. } => self.data(op),
            Op::Mkdir { .. }
            | Op::Rmdir { .. }
            | Op::Unlink { .. }
            | Op::Rename { .. }
            | Op::Link { .. }
            | Op::Symlink { .. }
            | Op::Mknod { .. } => self.names(op),
            Op::SetXattr { .. }
            | Op::SetAcl { .. }
            | Op::RemoveXattr { .. }
            | Op::ListXattr { .. } => self.xattr(op),
            _ => self.metadata(op),
        }
    }

    fn on_slot(&self, op: &Op) -> Outcome {
        match op {
            Op::SlotRead { slot } => content(self.slot(*slot)?),
            Op::SlotWrite {
                slot,
                off,
                len,
                fill,
            } => write(self.slot(*slot)?, *off, *len, *fill),
            Op::SlotTruncate { slot, len } => done(fs::ftruncate(self.slot(*slot)?, *len)),
            Op::SlotStat { slot } => Ok(attributes(&fs::fstat(self.slot(*slot)?)?)),
            Op::SlotChmod { slot, mode } => {
                done(fs::fchmod(self.slot(*slot)?, Mode::from_raw_mode(*mode)))
            }
            Op::SlotSync { slot } => done(fs::fsync(self.slot(*slot)?)),
            Op::SlotReaddir { slot } => {
                let fd = self.slot(*slot)?;
                fs::seek(fd, SeekFrom::Start(0))?;
                listing(fd)
            }
            Op::SlotLink { slot, path } => {
                let source = format!("/proc/self/fd/{}", self.slot(*slot)?.as_raw_fd());
                done(fs::linkat(
                    CWD,
                    source,
                    CWD,
                    self.at(path),
                    AtFlags::SYMLINK_FOLLOW,
                ))
            }
            _ => unreachable!("not an operation on a slot: {op}"),
        }
    }

    fn data(&self, op: &Op) -> Outcome {
        match op {
            Op::Create { path, mode, excl } => {
                let excl = if *excl { OFlags::EXCL } else { OFlags::empty() };
                let fd = self.open(path, OFlags::CREATE | OFlags::WRONLY | excl, *mode)?;
                Ok(attributes(&fs::fstat(&fd)?))
            }
            Op::Write {
                path,
                how,
                off,
                len,
                fill,
            } => {
                let flags = match how {
                    How::At => OFlags::empty(),
                    How::Append => OFlags::APPEND,
                    How::Trunc => OFlags::TRUNC,
                };
                write(
                    &self.open(path, OFlags::WRONLY | flags, 0)?,
                    *off,
                    *len,
                    *fill,
                )
            }
            Op::Truncate { path, len } => {
                done(fs::ftruncate(self.open(path, OFlags::WRONLY, 0)?, *len))
            }
            Op::Fallocate {
                path,
                alloc,
                off,
                len,
            } => {
                let flags = match alloc {
                    Alloc::Extend => FallocateFlags::empty(),
                    Alloc::KeepSize => FallocateFlags::KEEP_SIZE,
                    Alloc::Punch => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
                    Alloc::Zero => FallocateFlags::ZERO_RANGE,
                };
                let fd = self.open(path, OFlags::WRONLY, 0)?;
                fs::fallocate(&fd, flags, *off, *len)?;
                // Whether a hole where there was one is a change is up to the filesystem, in btrfs to chance.
                let now = Timespec {
                    tv_sec: 0,
                    tv_nsec: fs::UTIME_NOW,
                };
                done(fs::futimens(
                    &fd,
                    &Timestamps {
                        last_access: now,
                        last_modification: now,
                    },
                ))
            }
            Op::CopyRange {
                from,
                to,
                from_off,
                to_off,
                len,
            } => {
                let (from, to) = (
                    self.open(from, OFlags::RDONLY, 0)?,
                    self.open(to, OFlags::WRONLY, 0)?,
                );
                copy_range(&from, &to, (*from_off, *to_off), *len)
            }
            Op::Read { path } => content(&self.open(path, OFlags::RDONLY, 0)?),
            _ => unreachable!("not an operation on data: {op}"),
        }
    }

    fn names(&self, op: &Op) -> Outcome {
        done(match op {
            Op::Mkdir { path, mode } => fs::mkdirat(CWD, self.at(path), Mode::from_raw_mode(*mode)),
            Op::Rmdir { path } => fs::unlinkat(CWD, self.at(path), AtFlags::REMOVEDIR),
            Op::Unlink { path } => fs::unlinkat(CWD, self.at(path), AtFlags::empty()),
            Op::Rename { from, to, flag } => {
                let flags = match flag {
                    Flag::None => RenameFlags::empty(),
                    Flag::NoReplace => RenameFlags::NOREPLACE,
                    Flag::Exchange => RenameFlags::EXCHANGE,
                    Flag::Whiteout => RenameFlags::WHITEOUT,
                };
                fs::renameat_with(CWD, self.at(from), CWD, self.at(to), flags)
            }
            Op::Link { from, to } => {
                fs::linkat(CWD, self.at(from), CWD, self.at(to), AtFlags::empty())
            }
            Op::Symlink { target, path } => fs::symlinkat(target, CWD, self.at(path)),
            Op::Mknod { path, node, mode } => {
                let (kind, device) = match node {
                    Node::Fifo => (FileType::Fifo, 0),
                    Node::Socket => (FileType::Socket, 0),
                    Node::Device => (FileType::CharacterDevice, fs::makedev(240, 7)),
                    Node::Whiteout => (FileType::CharacterDevice, 0),
                };
                fs::mknodat(CWD, self.at(path), kind, Mode::from_raw_mode(*mode), device)
            }
            _ => unreachable!("not an operation on names: {op}"),
        })
    }

    fn metadata(&self, op: &Op) -> Outcome {
        match op {
            Op::Chmod { path, mode } => {
                let mode = Mode::from_raw_mode(*mode);
                done(fs::chmodat(CWD, self.at(path), mode, AtFlags::empty()))
            }
            Op::Chown { path, uid, gid } => {
                let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
                done(fs::chownat(
                    CWD,
                    self.at(path),
                    uid,
                    gid,
                    AtFlags::SYMLINK_NOFOLLOW,
                ))
            }
            Op::Utimes { path, mtime, nanos } => {
                let time = Timespec {
                    tv_sec: *mtime,
                    tv_nsec: *nanos,
                };
                let times = Timestamps {
                    last_access: time,
                    last_modification: time,
                };
                done(fs::utimensat(
                    CWD,
                    self.at(path),
                    &times,
                    AtFlags::SYMLINK_NOFOLLOW,
                ))
            }
            Op::Readdir { path } => listing(&self.open(path, OFlags::DIRECTORY, 0)?),
            Op::Stat { path } => Ok(attributes(&fs::lstat(self.at(path))?)),
            Op::Readlink { path } => {
                let target = fs::readlinkat(CWD, self.at(path), Vec::new())?;
                Ok(target.to_string_lossy().into_owned())
            }
            _ => unreachable!("not an operation on metadata: {op}"),
        }
    }

    fn xattr(&self, op: &Op) -> Outcome {
        match op {
            Op::SetXattr {
                path,
                name,
                len,
                fill,
                flag,
            } => {
                let flag = match flag {
                    Flag::NoReplace => XattrFlags::CREATE,
                    Flag::Exchange => XattrFlags::REPLACE,
                    _ => XattrFlags::empty(),
                };
                done(fs::lsetxattr(
                    self.at(path),
                    *name,
                    &pattern(*fill, *len),
                    flag,
                ))
            }
            Op::SetAcl {
                path,
                default,
                perm,
            } => {
                let kind = if *default { "default" } else { "access" };
                let name = format!("system.posix_acl_{kind}");
                let path = self.at(path);
                let mode = fs::lstat(&path)?.st_mode;
                if mode & 0o170_000 == 0o120_000 {
                    return Ok("a symlink has no ACL".to_string());
                }
                // The kernel tells a FUSE daemon that the caller's groups do not allow to keep sgid, in a request
                // that the daemon's library cannot read yet (FUSE_SETXATTR_EXT).
                if mode & 0o2000 != 0 && !default && !geteuid().is_root() {
                    return Ok("sgid may go with the old ACL".to_string());
                }
                done(fs::lsetxattr(path, name, &acl(*perm), XattrFlags::empty()))
            }
            Op::RemoveXattr { path, name } => done(fs::lremovexattr(self.at(path), *name)),
            Op::ListXattr { path } => xattrs(&self.at(path)),
            _ => unreachable!("not an operation on xattrs: {op}"),
        }
    }
}

fn done(result: Result<(), Errno>) -> Outcome {
    result.map(|()| String::new())
}

/// Bytes that depend on the position, so that a misplaced block shows.
pub(crate) fn pattern(fill: u64, len: usize) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(fill);
    std::iter::repeat_with(|| rng.u8(..)).take(len).collect()
}

fn write(fd: &OwnedFd, off: u64, len: usize, fill: u64) -> Outcome {
    let bytes = pattern(fill, len);
    let mut at = 0;
    while at < bytes.len() {
        at += io::pwrite(fd, &bytes[at..], off + at as u64)?;
    }
    Ok(String::new())
}

/// Size and hash of all that can be read.
pub(crate) fn content(fd: &OwnedFd) -> Outcome {
    let mut bytes = Vec::new();
    let mut block = vec![0; 128 * 1024];
    loop {
        let read = io::pread(fd, &mut block[..], bytes.len() as u64)?;
        if read == 0 {
            return Ok(format!("{} bytes {:016x}", bytes.len(), hash(&bytes)));
        }
        bytes.extend_from_slice(&block[..read]);
    }
}

fn copy_range(
    from: &OwnedFd,
    to: &OwnedFd,
    (mut off, mut dest): (u64, u64),
    len: usize,
) -> Outcome {
    let mut left = len;
    while left > 0 {
        let copied = fs::copy_file_range(from, Some(&mut off), to, Some(&mut dest), left)?;
        if copied == 0 {
            break;
        }
        left -= copied;
    }
    Ok(format!("{} bytes", len - left))
}

/// Names and types in an open directory, sorted; without the kernel's whiteouts, see `snapshot::Listing`.
fn listing(fd: &OwnedFd) -> Outcome {
    let mut space = [MaybeUninit::<u8>::uninit(); 2048];
    let mut raw = RawDir::new(fd, &mut space);
    let mut names = Vec::new();
    while let Some(entry) = raw.next() {
        let entry = entry?;
        if is_whiteout(fd, entry.file_name(), entry.file_type()) {
            continue;
        }
        let name = entry.file_name().to_string_lossy();
        names.push(format!("{name}:{:?}", entry.file_type()));
    }
    names.sort();
    Ok(names.join(" "))
}

/// An ACL with one named user, as the kernel stores it.
fn acl(perm: u16) -> Vec<u8> {
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    let entries = [
        (1, 7, u32::MAX),
        (2, perm, 1000),
        (4, 5, u32::MAX),
        (0x10, 7, u32::MAX),
        (0x20, 4, u32::MAX),
    ];
    for (tag, perm, id) in entries {
        let (tag, perm): (u16, u16) = (tag, perm);
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&perm.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    bytes
}
