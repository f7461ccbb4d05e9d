//! Bytes and metadata from one object to another.

use std::ffi::{CStr, CString};
use std::os::fd::AsFd;

use rustix::fs::{SeekFrom, Timespec, Timestamps};
use rustix::io::{Errno, Result};

use super::archive::Archived;
use super::at::{At, UpperAt, split_names};
use super::attr::{Attr, Time};
use super::content::Content;
use super::mark;

/// How the data of a file was copied.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Method {
    /// Nothing to copy.
    None,
    /// Extents are shared (FICLONE).
    Reflink,
    /// `copy_file_range(2)`.
    CopyRange,
    /// Read and write through our memory.
    ReadWrite,
}

/// Largest piece that is cheaper to read and write than to hand to `copy_file_range`.
const SMALL: u64 = 64 * 1024;
const PIECE: usize = 1024 * 1024;
/// Usual unit of allocation.
const ALLOCATION: u64 = 4096;

/// Copies the first `attr.size` bytes of `from` to the empty file `to`; holes stay holes. EIO if `from` is shorter.
pub fn copy_content(from: &Content, to: &impl AsFd, attr: &Attr) -> Result<Method> {
    match from {
        Content::File(from) => copy_data(from, to, attr),
        Content::Archived(from) => copy_archived(from, to, attr.size),
    }
}

fn copy_archived(from: &Archived, to: &impl AsFd, size: u64) -> Result<Method> {
    let size = size.min(from.size());
    let mut copier = Copier {
        from: &from.tar(),
        to,
        ranges: true,
        buffer: Vec::new(),
        method: Method::None,
    };
    let mut position = 0;
    while position < size
        && let Some(extent) = from.extent_from(position)?
        && extent.offset < size
    {
        let length = extent.length.min(size - extent.offset);
        copier.ranges &= length > SMALL;
        copier.copy(extent.tar, extent.offset, length)?;
        position = extent.offset + length;
    }
    if position < size {
        rustix::fs::ftruncate(to, size)?;
    }
    Ok(copier.method)
}

/// Copies the first `attr.size` bytes of the file `from`, as [`copy_content`].
pub fn copy_data(from: &impl AsFd, to: &impl AsFd, attr: &Attr) -> Result<Method> {
    let size = attr.size;
    if size == 0 {
        return Ok(Method::None);
    }
    // Sharing less than a block saves nothing, and the next write into it makes xfs set aside 128 KiB.
    if size >= ALLOCATION && rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(Method::Reflink);
    }
    let mut copier = Copier {
        from,
        to,
        ranges: size > SMALL,
        buffer: Vec::new(),
        method: Method::None,
    };
    let sparse = attr.blocks.saturating_mul(512) < size;
    if sparse {
        copier.copy_extents(size)?;
    } else {
        copier.copy(0, 0, size)?;
    }
    // A filesystem that allocates ahead of a growing file (xfs) keeps that while the file is open, as it may be for
    // long: this gives it back.
    let allocated = At::Pinned(to.as_fd()).stat()?.blocks.saturating_mul(512);
    if sparse || allocated > size.next_multiple_of(ALLOCATION) {
        rustix::fs::ftruncate(to, size)?;
    }
    Ok(copier.method)
}

struct Copier<'a, F, T> {
    from: &'a F,
    to: &'a T,
    /// `copy_file_range` has not been refused yet.
    ranges: bool,
    buffer: Vec<u8>,
    method: Method,
}

impl<F: AsFd, T: AsFd> Copier<'_, F, T> {
    fn copy_extents(&mut self, size: u64) -> Result<()> {
        let mut position = 0;
        while position < size {
            let start = match rustix::fs::seek(self.from, SeekFrom::Data(position)) {
                Ok(start) => start,
                Err(Errno::NXIO) => return Ok(()),
                Err(_) => return self.copy(position, position, size - position),
            };
            let end = rustix::fs::seek(self.from, SeekFrom::Hole(start))?.min(size);
            self.copy(start, start, end.saturating_sub(start))?;
            position = end;
        }
        Ok(())
    }

    /// Copies `length` bytes from the offset `input` to the offset `output`.
    fn copy(&mut self, mut input: u64, mut output: u64, length: u64) -> Result<()> {
        let end = output.checked_add(length).ok_or(Errno::FBIG)?;
        while output < end {
            let left = usize::try_from(end - output).unwrap_or(usize::MAX);
            let done = if self.ranges {
                self.copy_range(input, output, left)?
            } else {
                0
            };
            let done = if done > 0 {
                done
            } else {
                self.read_write(input, output, left)?
            };
            if done == 0 {
                return Err(Errno::IO);
            }
            (input, output) = (input + done as u64, output + done as u64);
        }
        Ok(())
    }

    fn copy_range(&mut self, mut input: u64, mut output: u64, length: usize) -> Result<usize> {
        let length = length.min(1 << 30);
        match rustix::fs::copy_file_range(
            self.from,
            Some(&mut input),
            self.to,
            Some(&mut output),
            length,
        ) {
            Ok(done) => {
                self.method = Method::CopyRange;
                Ok(done)
            }
            Err(error @ (Errno::NOSPC | Errno::DQUOT | Errno::IO | Errno::FBIG)) => Err(error),
            Err(_) => {
                self.ranges = false;
                Ok(0)
            }
        }
    }

    fn read_write(&mut self, input: u64, output: u64, length: usize) -> Result<usize> {
        self.method = Method::ReadWrite;
        self.buffer.resize(length.min(PIECE), 0);
        let got = rustix::io::pread(self.from, &mut self.buffer[..], input)?;
        let mut written = 0;
        while written < got {
            written +=
                rustix::io::pwrite(self.to, &self.buffer[written..got], output + written as u64)?;
        }
        Ok(got)
    }
}

/// Copies the xattrs with these `names` and the values that `value` tells, except our own marks, by `set`. Failing
/// to copy `security.*` or an ACL is an error, as in the kernel (`ovl_must_copy_xattr`); others are dropped where the
/// upper cannot hold them.
pub fn copy_xattrs(
    names: &[u8],
    value: impl Fn(&CStr) -> Result<Option<Vec<u8>>>,
    set: impl Fn(&CStr, &[u8]) -> Result<()>,
) -> Result<()> {
    for name in split_names(names) {
        if mark::is_private(name) {
            continue;
        }
        let c_name = CString::new(name).map_err(|_| Errno::INVAL)?;
        let must = name.starts_with(b"security.") || name.starts_with(b"system.posix_acl_");
        let copied = match value(&c_name) {
            Ok(Some(value)) => set(&c_name, &value),
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        match copied {
            // The capability's owner has no id here; dropping it is what every union does.
            Err(Errno::OVERFLOW) if name == b"security.capability" => {
                tracing::warn!(attr = %name.escape_ascii(), "xattr cannot be expressed here, dropped");
            }
            // Labels of a security module are the system's to set.
            Err(error) if must && name != b"security.selinux" => return Err(error),
            Err(error) if matches!(error, Errno::NOSPC | Errno::DQUOT | Errno::IO) => {
                return Err(error);
            }
            Err(error) => {
                tracing::debug!(attr = %name.escape_ascii(), %error, "xattr not copied");
            }
            Ok(()) => {}
        }
    }
    Ok(())
}

fn timespec(time: Time) -> Timespec {
    Timespec {
        tv_sec: time.sec,
        tv_nsec: time.nsec.into(),
    }
}

/// Sets access and modification time of `to` to those of `attr`.
pub fn copy_times(attr: &Attr, to: UpperAt<'_>) -> Result<()> {
    to.set_times(&Timestamps {
        last_access: timespec(attr.atime),
        last_modification: timespec(attr.mtime),
    })
}
