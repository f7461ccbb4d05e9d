//! The system calls rustix has no wrapper for, each behind a safe function. The only `unsafe` of the crate.
//!
//! The `*xattrat` calls exist since Linux 6.13; on older kernels the same object is reached by its path below
//! `/proc/self/fd`, which is as safe (the directory is pinned by its descriptor, the last component is never
//! followed) but five times slower.
#![expect(unsafe_code, reason = "raw system calls without a safe wrapper")]

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::{Errno, Result};

/// Set once the kernel has answered ENOSYS to a `*xattrat` call.
static NO_XATTRAT: AtomicBool = AtomicBool::new(false);
/// Set once the kernel has answered ENOSYS to `fchmodat2` (Linux 6.6).
static NO_FCHMODAT2: AtomicBool = AtomicBool::new(false);

/// A file mapped for reading.
#[derive(Debug)]
pub(super) struct Mapping {
    start: std::ptr::NonNull<u8>,
    length: usize,
}

// SAFETY: it is memory that nobody writes, and unmapping it is allowed from any thread.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `length` bytes of `file`, which has so many; `length` is not 0. The caller vouches that the file
    /// is not changed or cut while it is mapped: what is read could change, or the process be killed by SIGBUS.
    pub(super) fn new(file: BorrowedFd<'_>, length: usize) -> Result<Self> {
        // SAFETY: a new private mapping at an address of the kernel's choice touches no memory of ours.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ,
                libc::MAP_PRIVATE,
                file.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO));
        }
        let start = std::ptr::NonNull::new(start.cast()).ok_or(Errno::IO)?;
        Ok(Self { start, length })
    }
}

impl std::ops::Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `length` bytes from `start` are mapped and readable until drop.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping made by `new`; no slice of it outlives `self`.
        unsafe {
            libc::munmap(self.start.as_ptr().cast(), self.length);
        }
    }
}

/// System call numbers, the same on every architecture but alpha; libc does not name them yet.
const SYS_SETXATTRAT: libc::c_long = 463;
const SYS_GETXATTRAT: libc::c_long = 464;
const SYS_LISTXATTRAT: libc::c_long = 465;
const SYS_REMOVEXATTRAT: libc::c_long = 466;

/// `struct xattr_args` of linux/xattr.h.
#[repr(C, align(8))]
struct XattrArgs {
    value: u64,
    size: u32,
    flags: u32,
}

/// A path argument: at most `NAME_MAX` bytes and no NUL, or EINVAL.
fn c_path(name: &[u8]) -> Result<CString> {
    CString::new(name).map_err(|_| Errno::INVAL)
}

fn check(result: libc::c_long) -> Result<usize> {
    usize::try_from(result).map_err(|_| {
        let code = std::io::Error::last_os_error()
            .raw_os_error()
            .unwrap_or(libc::EIO);
        Errno::from_raw_os_error(code)
    })
}

/// The object's path below /proc: `/proc/self/fd/DIR/NAME`.
fn proc_path(dir: BorrowedFd<'_>, name: &[u8]) -> Result<CString> {
    let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    c_path(&path)
}

/// Whether the answer means that the kernel lacks the call; remembers it.
fn lacks(flag: &AtomicBool, result: Result<usize>) -> bool {
    let lacking = result == Err(Errno::NOSYS);
    if lacking {
        flag.store(true, Ordering::Relaxed);
    }
    lacking
}

/// Reads an xattr of `dir/name` without following a symlink. ERANGE if `buffer` is too small.
pub(super) fn getxattrat(
    dir: BorrowedFd<'_>,
    name: &[u8],
    attr: &CStr,
    buffer: &mut [u8],
) -> Result<usize> {
    if !NO_XATTRAT.load(Ordering::Relaxed) {
        let path = c_path(name)?;
        let args = XattrArgs {
            value: buffer.as_mut_ptr() as u64,
            size: u32::try_from(buffer.len()).unwrap_or(u32::MAX),
            flags: 0,
        };
        // SAFETY: all pointers outlive the call; `args` describes `buffer` exactly.
        let result = check(unsafe {
            libc::syscall(
                SYS_GETXATTRAT,
                dir.as_raw_fd(),
                path.as_ptr(),
                libc::AT_SYMLINK_NOFOLLOW,
                attr.as_ptr(),
                &raw const args,
                size_of::<XattrArgs>(),
            )
        });
        if !lacks(&NO_XATTRAT, result) {
            return result;
        }
    }
    rustix::fs::lgetxattr(proc_path(dir, name)?, attr, buffer)
}

/// Names of the xattrs of `dir/name`, each ended by NUL. ERANGE if `buffer` is too small.
pub(super) fn listxattrat(dir: BorrowedFd<'_>, name: &[u8], buffer: &mut [u8]) -> Result<usize> {
    if !NO_XATTRAT.load(Ordering::Relaxed) {
        let path = c_path(name)?;
        // SAFETY: all pointers outlive the call; the length is the buffer's.
        let result = check(unsafe {
            libc::syscall(
                SYS_LISTXATTRAT,
                dir.as_raw_fd(),
                path.as_ptr(),
                libc::AT_SYMLINK_NOFOLLOW,
                buffer.as_mut_ptr(),
                buffer.len(),
            )
        });
        if !lacks(&NO_XATTRAT, result) {
            return result;
        }
    }
    rustix::fs::llistxattr(proc_path(dir, name)?, buffer)
}

/// Sets an xattr of `dir/name`; `flags` as of setxattr(2).
pub(super) fn setxattrat(
    dir: BorrowedFd<'_>,
    name: &[u8],
    attr: &CStr,
    value: &[u8],
    flags: rustix::fs::XattrFlags,
) -> Result<()> {
    if !NO_XATTRAT.load(Ordering::Relaxed) {
        let path = c_path(name)?;
        let args = XattrArgs {
            value: value.as_ptr() as u64,
            size: u32::try_from(value.len()).map_err(|_| Errno::TOOBIG)?,
            flags: flags.bits(),
        };
        // SAFETY: all pointers outlive the call; `args` describes `value` exactly.
        let result = check(unsafe {
            libc::syscall(
                SYS_SETXATTRAT,
                dir.as_raw_fd(),
                path.as_ptr(),
                libc::AT_SYMLINK_NOFOLLOW,
                attr.as_ptr(),
                &raw const args,
                size_of::<XattrArgs>(),
            )
        });
        if !lacks(&NO_XATTRAT, result) {
            return result.map(drop);
        }
    }
    rustix::fs::lsetxattr(proc_path(dir, name)?, attr, value, flags)
}

/// Removes an xattr of `dir/name`.
pub(super) fn removexattrat(dir: BorrowedFd<'_>, name: &[u8], attr: &CStr) -> Result<()> {
    if !NO_XATTRAT.load(Ordering::Relaxed) {
        let path = c_path(name)?;
        // SAFETY: all pointers outlive the call.
        let result = check(unsafe {
            libc::syscall(
                SYS_REMOVEXATTRAT,
                dir.as_raw_fd(),
                path.as_ptr(),
                libc::AT_SYMLINK_NOFOLLOW,
                attr.as_ptr(),
            )
        });
        if !lacks(&NO_XATTRAT, result) {
            return result.map(drop);
        }
    }
    rustix::fs::lremovexattr(proc_path(dir, name)?, attr)
}

/// Changes the mode of `dir/name` without following a symlink (fchmodat2, else an `O_PATH` descriptor).
pub(super) fn chmodat(dir: BorrowedFd<'_>, name: &[u8], mode: rustix::fs::Mode) -> Result<()> {
    if !NO_FCHMODAT2.load(Ordering::Relaxed) {
        let path = c_path(name)?;
        // SAFETY: the path outlives the call.
        let result = check(unsafe {
            libc::syscall(
                libc::SYS_fchmodat2,
                dir.as_raw_fd(),
                path.as_ptr(),
                mode.bits(),
                libc::AT_SYMLINK_NOFOLLOW,
            )
        });
        if !lacks(&NO_FCHMODAT2, result) {
            return result.map(drop);
        }
    }
    let flags =
        rustix::fs::OFlags::PATH | rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::CLOEXEC;
    let fd = rustix::fs::openat(dir, name, flags, rustix::fs::Mode::empty())?;
    rustix::fs::chmod(format!("/proc/self/fd/{}", fd.as_raw_fd()), mode)
}

/// A kernel file handle as `name_to_handle_at(2)` returns it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct RawHandle {
    /// The filesystem's own type number of the handle.
    pub(super) kind: i32,
    /// Opaque bytes, at most 128.
    pub(super) bytes: Vec<u8>,
}

/// The file handle of `dir/name` (of `dir` itself if `name` is empty). EOPNOTSUPP if there are none here.
pub(super) fn file_handle(dir: BorrowedFd<'_>, name: &[u8]) -> Result<RawHandle> {
    const MAX: usize = 128;
    #[repr(C)]
    struct Buffer {
        bytes: u32,
        kind: i32,
        data: [u8; MAX],
    }
    let path = c_path(name)?;
    let mut buffer = Buffer {
        bytes: 128,
        kind: 0,
        data: [0; MAX],
    };
    let mut mount_id: libc::c_int = 0;
    let flags = if name.is_empty() {
        libc::AT_EMPTY_PATH
    } else {
        0
    };
    // SAFETY: `buffer` has the layout of struct file_handle with room for MAX bytes, as `bytes` says.
    check(unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            dir.as_raw_fd(),
            path.as_ptr(),
            &raw mut buffer,
            &raw mut mount_id,
            flags,
        )
    })?;
    let length = (buffer.bytes as usize).min(MAX);
    Ok(RawHandle {
        kind: buffer.kind,
        bytes: buffer.data[..length].to_vec(),
    })
}

/// The filesystem's UUID (`FS_IOC_GETFSUUID`, Linux 6.9); ENOTTY where it has none.
pub(super) fn filesystem_uuid(fd: BorrowedFd<'_>) -> Result<[u8; 16]> {
    /// `struct fsuuid2` of linux/fs.h.
    #[repr(C)]
    struct FsUuid {
        len: u8,
        uuid: [u8; 16],
    }
    /// `_IOR(0x15, 0, struct fsuuid2)`.
    const FS_IOC_GETFSUUID: libc::c_ulong = 0x8011_1500;
    let mut answer = FsUuid {
        len: 0,
        uuid: [0; 16],
    };
    // SAFETY: the kernel writes at most 17 bytes, the size encoded in the request number.
    check(libc::c_long::from(unsafe {
        libc::ioctl(fd.as_raw_fd(), FS_IOC_GETFSUUID, &raw mut answer)
    }))?;
    Ok(answer.uuid)
}

/// The UUID of a btrfs (`BTRFS_IOC_FS_INFO`), which has no `FS_IOC_GETFSUUID`; ENOTTY for others.
pub(super) fn btrfs_uuid(fd: BorrowedFd<'_>) -> Result<[u8; 16]> {
    /// `struct btrfs_ioctl_fs_info_args` of linux/btrfs.h.
    #[repr(C)]
    struct FsInfo {
        max_id: u64,
        num_devices: u64,
        fsid: [u8; 16],
        rest: [u64; 124],
    }
    /// `_IOR(0x94, 31, struct btrfs_ioctl_fs_info_args)`.
    const BTRFS_IOC_FS_INFO: libc::c_ulong = 0x8400_941f;
    let mut answer = FsInfo {
        max_id: 0,
        num_devices: 0,
        fsid: [0; 16],
        rest: [0; 124],
    };
    // SAFETY: the kernel reads and writes at most 1024 bytes, the size encoded in the request number.
    check(libc::c_long::from(unsafe {
        libc::ioctl(fd.as_raw_fd(), BTRFS_IOC_FS_INFO, &raw mut answer)
    }))?;
    Ok(answer.fsid)
}

/// `ioctl(FS_IOC_FSGETXATTR)`: `struct fsxattr` of linux/fs.h as bytes.
pub(super) fn extended_flags(fd: BorrowedFd<'_>) -> Result<[u8; 28]> {
    const FS_IOC_FSGETXATTR: libc::c_ulong = 0x801c_581f;
    let mut all = [0_u8; 28];
    // SAFETY: the kernel writes at most 28 bytes, the size encoded in the request number.
    check(libc::c_long::from(unsafe {
        libc::ioctl(fd.as_raw_fd(), FS_IOC_FSGETXATTR, all.as_mut_ptr())
    }))?;
    Ok(all)
}

/// `ioctl(FS_IOC_FSSETXATTR)`.
pub(super) fn set_extended_flags(fd: BorrowedFd<'_>, all: &[u8; 28]) -> Result<()> {
    const FS_IOC_FSSETXATTR: libc::c_ulong = 0x401c_5820;
    // SAFETY: the kernel reads at most 28 bytes, the size encoded in the request number.
    check(libc::c_long::from(unsafe {
        libc::ioctl(fd.as_raw_fd(), FS_IOC_FSSETXATTR, all.as_ptr())
    }))
    .map(drop)
}

/// Makes the detached mount `tree` read-only and without access times.
pub(super) fn make_read_only(tree: &impl AsFd) -> Result<()> {
    /// `struct mount_attr` of linux/mount.h.
    #[repr(C)]
    struct MountAttr {
        set: u64,
        clear: u64,
        propagation: u64,
        userns_fd: u64,
    }
    let attr = MountAttr {
        set: libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOATIME,
        clear: libc::MOUNT_ATTR__ATIME,
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: the path is a literal and `attr` has the size that is passed.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    })
    .map(drop)
}

/// Tells the allocator that this process is long-lived with many small objects used by few threads: one heap, grown
/// in steps of a MiB. Without it, glibc gives a new thread a heap that grows page by page, with a system call each.
pub(super) fn tune_allocator() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt has no preconditions; an answer of 0 leaves everything as it was.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_TOP_PAD, 1 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 8 << 20);
    }
}
