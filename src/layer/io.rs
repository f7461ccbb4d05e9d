//! Reading and writing the content of an open file.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::{Errno, Result};

/// Calls `part` with the number of bytes done until that is `length`, or a part is nothing. An error counts only
/// before the first byte.
fn in_parts(length: usize, mut part: impl FnMut(usize) -> Result<usize>) -> Result<usize> {
    let mut done = 0;
    while done < length {
        match part(done) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(Errno::INTR) => {}
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        }
    }
    Ok(done)
}

/// Fills `buffer` from `offset`; shorter only at the end of the file.
pub fn read_at(fd: BorrowedFd<'_>, buffer: &mut [u8], offset: u64) -> Result<usize> {
    in_parts(buffer.len(), |done| {
        rustix::io::pread(fd, &mut buffer[done..], offset + done as u64)
    })
}

/// As [`read_at`], but only from memory: `None` if it would have to wait for the disk.
pub fn read_cached_at(
    fd: BorrowedFd<'_>,
    buffer: &mut [u8],
    offset: u64,
    size: u64,
) -> Result<Option<usize>> {
    let wanted = buffer.len();
    let mut slices = [std::io::IoSliceMut::new(buffer)];
    let flags = rustix::io::ReadWriteFlags::NOWAIT;
    match rustix::io::preadv2(fd, &mut slices, offset, flags) {
        Ok(count) if count == wanted || offset + count as u64 >= size => Ok(Some(count)),
        Ok(_) | Err(Errno::AGAIN) => Ok(None),
        Err(Errno::OPNOTSUPP | Errno::INVAL) => read_at(fd, buffer, offset).map(Some),
        Err(error) => Err(error),
    }
}

/// Writes `data` at `offset`; a short count only if the filesystem took part of it and then failed.
pub fn write_at(fd: BorrowedFd<'_>, data: &[u8], offset: u64) -> Result<usize> {
    in_parts(data.len(), |done| {
        rustix::io::pwrite(fd, &data[done..], offset + done as u64)
    })
}

/// ftruncate(2).
pub fn truncate(fd: impl AsFd, size: u64) -> Result<()> {
    rustix::fs::ftruncate(fd, size)
}

/// fallocate(2) with the raw `mode` bits of a request.
pub fn allocate(fd: impl AsFd, mode: u32, offset: u64, length: u64) -> Result<()> {
    rustix::fs::fallocate(fd, FallocateFlags::from_bits_retain(mode), offset, length)
}

/// lseek(2) with `SEEK_DATA` (`data`) or `SEEK_HOLE`.
pub fn seek(fd: impl AsFd, offset: u64, data: bool) -> Result<u64> {
    rustix::fs::seek(
        fd,
        if data {
            SeekFrom::Data(offset)
        } else {
            SeekFrom::Hole(offset)
        },
    )
}

/// `copy_file_range(2)`; falls back to EOPNOTSUPP as the kernel does, upon which the client copies itself.
pub fn copy_range(from: (impl AsFd, u64), to: (impl AsFd, u64), length: usize) -> Result<usize> {
    let (mut input, mut output) = (from.1, to.1);
    rustix::fs::copy_file_range(from.0, Some(&mut input), to.0, Some(&mut output), length)
}
