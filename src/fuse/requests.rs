//! `impl fuser::Filesystem`: each handler decodes, asks the overlay, replies; no policy.
//!
//! No-open mode, unless files are passed through: OPEN, OPENDIR, FLUSH and ACCESS are answered ENOSYS, after which the kernel stops asking, serves
//! files and listings from its caches, and names files by node in every READ and WRITE.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, Generation,
    INodeNo, IoctlFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek,
    ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use rustix::io::Errno as SysErrno;

use super::adapter::{
    Adapter, guarded, reply_empty, reply_entry, reply_written, reply_xattr, with_buffer,
};
use super::negotiate::negotiate;
use super::stats::Op;
use super::{convert, first_open};
use crate::layer::attr::Kind;
use crate::layer::name::Name;
use crate::overlay::Overlay;
use crate::overlay::attr::Changes;
use crate::overlay::create::New;
use crate::overlay::rename::Mode;

/// A range of a file that may take longer to copy or allocate than handing it to another thread.
const LONG_RANGE: u64 = 1 << 20;

impl Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let passes = self.passthrough.is_some();
        negotiate(
            config,
            self.acl,
            self.overlay.options().timeout.is_some(),
            passes,
        );
        Ok(())
    }

    fn destroy(&mut self) {
        self.stop();
        self.overlay.finish();
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let _timer = self.begin(req, Op::Lookup);
        if let Some(attr) = self
            .first_open
            .look_up(parent, name, (req.uid(), req.gid()))
        {
            return reply.entry(&first_open::LIFE, &attr, Generation(0));
        }
        match guarded(|| self.overlay.lookup(parent.0, Name::new(name)?)) {
            Ok(None) => reply.entry(&self.ttl, &convert::negative(), Generation(0)),
            Ok(Some(found)) => reply_entry(&self.ttl, reply, Ok(found)),
            Err(error) => reply.error(error),
        }
    }

    fn forget(&self, req: &Request, ino: INodeNo, nlookup: u64) {
        let _timer = self.begin(req, Op::Forget);
        self.overlay.forget(ino.0, nlookup);
    }

    fn getattr(&self, req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let _timer = self.begin(req, Op::Getattr);
        match guarded(|| self.overlay.get_attr(ino.0)) {
            Ok(attr) => reply.attr(&self.ttl, &convert::file_attr(&attr)),
            Err(error) => reply.error(error),
        }
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let changes = Changes {
            mode: mode.map(convert::permissions),
            uid,
            gid,
            size,
            atime: atime.map(convert::set_time),
            mtime: mtime.map(convert::set_time),
        };
        let timer = self.begin(req, Op::Setattr);
        if changes.size.is_some()
            && let Some(error) = self.must_look_again(ino)
        {
            return reply.error(error);
        }
        let (ttl, caller) = (self.ttl, convert::caller(req, 0));
        let may_block = self
            .overlay
            .copies_data(ino.0, changes.size.is_some_and(|size| size > 0));
        let act = move |overlay: &Overlay| overlay.set_attr(ino.0, &changes, &caller);
        self.answer(timer, may_block, act, move |answer| match answer {
            Ok(attr) => reply.attr(&ttl, &convert::file_attr(&attr)),
            Err(error) => reply.error(error),
        });
    }

    fn readlink(&self, req: &Request, ino: INodeNo, reply: ReplyData) {
        let _timer = self.begin(req, Op::Readlink);
        match guarded(|| self.overlay.read_link(ino.0)) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(error),
        }
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let _timer = self.begin(req, Op::Mknod);
        let kind = Kind::from_type(rustix::fs::FileType::from_raw_mode(mode));
        let new = if kind == Kind::File {
            New::File
        } else {
            New::Special(kind, rdev)
        };
        reply_entry(
            &self.ttl,
            reply,
            self.create_entry(req, (parent, name), (mode, umask), new),
        );
    }

    fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let _timer = self.begin(req, Op::Mkdir);
        let answer = self.create_entry(req, (parent, name), (mode, umask), New::Directory);
        reply_entry(&self.ttl, reply, answer);
    }

    fn symlink(
        &self,
        req: &Request,
        parent: INodeNo,
        link_name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let _timer = self.begin(req, Op::Symlink);
        let new = New::Symlink(target.as_os_str().as_bytes());
        reply_entry(
            &self.ttl,
            reply,
            self.create_entry(req, (parent, link_name), (0o777, 0), new),
        );
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _timer = self.begin(req, Op::Unlink);
        reply_empty(
            reply,
            guarded(|| self.overlay.unlink(parent.0, Name::new(name)?)),
        );
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _timer = self.begin(req, Op::Rmdir);
        reply_empty(
            reply,
            guarded(|| self.overlay.remove_dir(parent.0, Name::new(name)?)),
        );
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let timer = self.begin(req, Op::Rename);
        let mode = match flags {
            flags if flags.is_empty() => Mode::Replace,
            RenameFlags::RENAME_NOREPLACE => Mode::NoReplace,
            RenameFlags::RENAME_EXCHANGE => Mode::Exchange,
            // RENAME_WHITEOUT is for unions below, not for users of one, as in the kernel.
            _ => return reply.error(Errno::EINVAL),
        };
        let (old, new) = match (Name::new(name), Name::new(newname)) {
            (Ok(old), Ok(new)) => (old.to_owned(), new.to_owned()),
            (Err(error), _) | (_, Err(error)) => return reply.error(convert::errno(error)),
        };
        let may_block = self.overlay.rename_copies_data(parent.0, old.get())
            || (mode == Mode::Exchange && self.overlay.rename_copies_data(newparent.0, new.get()));
        let act = move |overlay: &Overlay| {
            overlay.rename((parent.0, old.get()), (newparent.0, new.get()), mode)
        };
        self.answer(timer, may_block, act, move |answer| {
            reply_empty(reply, answer);
        });
    }

    fn link(
        &self,
        req: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        let timer = self.begin(req, Op::Link);
        let name = match Name::new(newname) {
            Ok(name) => name.to_owned(),
            Err(error) => return reply.error(convert::errno(error)),
        };
        let (ttl, may_block) = (self.ttl, self.overlay.copies_data(ino.0, false));
        let act = move |overlay: &Overlay| overlay.link(ino.0, newparent.0, name.get());
        self.answer(timer, may_block, act, move |answer| {
            reply_entry(&ttl, reply, answer);
        });
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let timer = self.begin(req, Op::Open);
        self.open_file(timer, ino, (flags, convert::caller(req, 0)), reply);
    }

    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let timer = self.begin(req, Op::Read);
        let size = size as usize;
        let at_once = with_buffer(size, |buffer| {
            match guarded(|| self.overlay.read_cached(ino.0, offset, buffer)) {
                Ok(None) => return Some(reply),
                Ok(Some(count)) => reply.data(&buffer[..count]),
                Err(error) => reply.error(error),
            }
            None
        });
        let Some(reply) = at_once else { return };
        let overlay = Arc::clone(&self.overlay);
        self.pool.run(move || {
            with_buffer(size, |buffer| {
                match guarded(|| overlay.read(ino.0, offset, buffer)) {
                    Ok(count) => reply.data(&buffer[..count]),
                    Err(error) => reply.error(error),
                }
            });
            drop(timer);
        });
    }

    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let clear_suid = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        let timer = self.begin(req, Op::Write);
        if self.overlay.copies_data(ino.0, true) {
            let data = data.to_vec();
            let act = move |overlay: &Overlay| overlay.write(ino.0, offset, &data, clear_suid);
            return self.answer(timer, true, act, move |answer| reply_written(reply, answer));
        }
        reply_written(
            reply,
            guarded(|| self.overlay.write(ino.0, offset, data, clear_suid)),
        );
    }

    fn flush(
        &self,
        req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        let _timer = self.begin(req, Op::Flush);
        reply.error(Errno::ENOSYS);
    }

    fn release(
        &self,
        req: &Request,
        ino: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let _timer = self.begin(req, Op::Release);
        self.close_file(ino, handle);
        reply.ok();
    }

    fn fsync(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        let timer = self.begin(req, Op::Fsync);
        self.sync(timer, ino, datasync, reply);
    }

    fn opendir(&self, req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let _timer = self.begin(req, Op::Opendir);
        reply.error(Errno::ENOSYS);
    }

    fn readdir(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let _timer = self.begin(req, Op::Readdir);
        let answer = guarded(|| {
            self.overlay.read_dir(ino.0, offset, false, |entry| {
                let kind = convert::file_type(entry.kind);
                reply.add(
                    INodeNo(entry.ino),
                    entry.cookie,
                    kind,
                    OsStr::from_bytes(entry.name),
                )
            })
        });
        match answer {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error),
        }
    }

    fn readdirplus(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let _timer = self.begin(req, Op::Readdirplus);
        let answer = guarded(|| {
            self.overlay.read_dir(ino.0, offset, true, |entry| {
                let (number, attr, generation) = convert::listed(entry);
                let name = OsStr::from_bytes(entry.name);
                reply.add(number, entry.cookie, name, &self.ttl, &attr, generation)
            })
        });
        match answer {
            Ok(()) => reply.ok(),
            Err(error) => return reply.error(error),
        }
        if offset == 0 {
            self.read_ahead(req, ino);
        }
    }

    fn fsyncdir(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        let timer = self.begin(req, Op::Fsyncdir);
        self.sync(timer, ino, datasync, reply);
    }

    fn statfs(&self, req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let _timer = self.begin(req, Op::Statfs);
        match guarded(|| self.overlay.stat_fs()) {
            Ok(stat) => reply.statfs(
                stat.f_blocks,
                stat.f_bfree,
                stat.f_bavail,
                stat.f_files,
                stat.f_ffree,
                u32::try_from(stat.f_bsize).unwrap_or(4096),
                u32::try_from(stat.f_namemax).unwrap_or(255),
                u32::try_from(stat.f_frsize).unwrap_or(4096),
            ),
            Err(error) => reply.error(error),
        }
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let timer = self.begin(req, Op::Setxattr);
        if Self::is_own_xattr(name) {
            return reply.error(Errno::EPERM);
        }
        let flags = flags.cast_unsigned();
        let (name, value) = (name.as_bytes().to_vec(), value.to_vec());
        let may_block = self.overlay.copies_data(ino.0, false);
        let act = move |overlay: &Overlay| overlay.set_xattr(ino.0, &name, &value, flags);
        self.answer(timer, may_block, act, move |answer| {
            reply_empty(reply, answer);
        });
    }

    fn getxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let _timer = self.begin(req, Op::Getxattr);
        let answer = guarded(|| match self.own_xattr(ino, name) {
            Some(answer) => answer,
            None => self.overlay.get_xattr(ino.0, name.as_bytes()),
        });
        reply_xattr(reply, size, answer);
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let _timer = self.begin(req, Op::Listxattr);
        reply_xattr(
            reply,
            size,
            guarded(|| self.overlay.list_xattr(ino.0, &convert::caller(req, 0))),
        );
    }

    fn removexattr(&self, req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let timer = self.begin(req, Op::Removexattr);
        let name = name.as_bytes().to_vec();
        let may_block = self.overlay.copies_data(ino.0, false);
        let act = move |overlay: &Overlay| overlay.remove_xattr(ino.0, &name);
        self.answer(timer, may_block, act, move |answer| {
            reply_empty(reply, answer);
        });
    }

    fn access(&self, req: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        let _timer = self.begin(req, Op::Access);
        // The kernel checks permissions itself (default_permissions).
        reply.error(Errno::ENOSYS);
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let _timer = self.begin(req, Op::Create);
        match self.create_entry(req, (parent, name), (mode, umask), New::File) {
            Ok(found) => self.created(found, reply),
            Err(error) => reply.error(error),
        }
    }

    fn fallocate(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let timer = self.begin(req, Op::Fallocate);
        let mode = mode.cast_unsigned();
        let may_block = length > LONG_RANGE || self.overlay.copies_data(ino.0, true);
        let act = move |overlay: &Overlay| overlay.allocate(ino.0, mode, offset, length);
        self.answer(timer, may_block, act, move |answer| {
            reply_empty(reply, answer);
        });
    }

    fn lseek(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let _timer = self.begin(req, Op::Lseek);
        let answer = guarded(|| {
            let offset = u64::try_from(offset).map_err(|_| SysErrno::NXIO)?;
            let data = match whence {
                libc::SEEK_DATA => true,
                libc::SEEK_HOLE => false,
                _ => return Err(SysErrno::INVAL),
            };
            self.overlay.seek(ino.0, offset, data)
        });
        match answer {
            Ok(offset) => reply.offset(offset.cast_signed()),
            Err(error) => reply.error(error),
        }
    }

    fn ioctl(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        command: u32,
        data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        let timer = self.begin(req, Op::Ioctl);
        self.control(timer, ino, (command, data), reply);
    }

    fn copy_file_range(
        &self,
        req: &Request,
        ino_in: INodeNo,
        _fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        _fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let timer = self.begin(req, Op::CopyFileRange);
        let may_block = len > LONG_RANGE || self.overlay.copies_data(ino_out.0, true);
        let act = move |overlay: &Overlay| {
            // The answer has 32 bits.
            let length = usize::try_from(len.min(1 << 30)).unwrap_or(1 << 30);
            overlay.copy_range((ino_in.0, offset_in), (ino_out.0, offset_out), length)
        };
        self.answer(timer, may_block, act, move |answer| {
            reply_written(reply, answer);
        });
    }
}
