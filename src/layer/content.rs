//! The bytes of a file of a lower layer, wherever they are.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::io::{Errno, Result};

use super::archive::Archived;
use super::io;

/// The content of a regular file, open for reading.
#[derive(Clone, Debug)]
pub enum Content {
    /// A file of its own.
    File(Arc<OwnedFd>),
    /// Part of a tar.
    Archived(Archived),
}

impl Content {
    /// Fills `buffer` from `offset`; shorter only at the end of the file.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize> {
        match self {
            Self::File(fd) => io::read_at(fd.as_fd(), buffer, offset),
            Self::Archived(file) => file.read_at(buffer, offset),
        }
    }

    /// As [`Content::read_at`], but `None` if that would have to wait for the disk. `size` is the length of the file.
    pub fn read_cached_at(
        &self,
        buffer: &mut [u8],
        offset: u64,
        size: u64,
    ) -> Result<Option<usize>> {
        match self {
            Self::File(fd) => io::read_cached_at(fd.as_fd(), buffer, offset, size),
            Self::Archived(file) => file.read_cached_at(buffer, offset),
        }
    }

    /// lseek(2) with `SEEK_DATA` (`data`) or `SEEK_HOLE`.
    pub fn seek(&self, offset: u64, data: bool) -> Result<u64> {
        match self {
            Self::File(fd) => io::seek(fd.as_fd(), offset, data),
            Self::Archived(file) => file.seek(offset, data),
        }
    }

    /// `copy_file_range(2)` from `offset` to `to`; a hole of an archived file answers EOPNOTSUPP, upon which the
    /// client copies itself.
    pub fn copy_range(&self, offset: u64, to: (impl AsFd, u64), length: usize) -> Result<usize> {
        match self {
            Self::File(fd) => io::copy_range((fd, offset), to, length),
            Self::Archived(file) => match file.run_at(offset)? {
                Some((start, run)) => {
                    let length = length.min(usize::try_from(run).unwrap_or(usize::MAX));
                    io::copy_range((file.tar(), start), to, length)
                }
                None if offset >= file.size() => Ok(0),
                None => Err(Errno::OPNOTSUPP),
            },
        }
    }
}
