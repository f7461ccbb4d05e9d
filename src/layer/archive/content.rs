//! Reading a file out of the tar.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::io::{Errno, Result};

use super::Archive;
use super::index::{Extent, Inode};
use crate::layer::io;

/// The content of a file in a tar: extents of it, everything between them reads as zeros.
#[derive(Clone, Debug)]
pub struct Archived {
    archive: Arc<Archive>,
    inode: Inode,
}

impl Archived {
    pub(super) fn new(archive: Arc<Archive>, inode: Inode) -> Self {
        Self { archive, inode }
    }

    /// Length in bytes.
    pub fn size(&self) -> u64 {
        self.inode.size
    }

    /// The tar.
    pub fn tar(&self) -> BorrowedFd<'_> {
        self.archive.tar.as_fd()
    }

    /// The first extent that ends behind `offset`.
    pub fn extent_from(&self, offset: u64) -> Result<Option<Extent>> {
        let inode = &self.inode;
        if !inode.sparse {
            let whole = Extent {
                offset: 0,
                length: inode.size,
                tar: inode.place,
            };
            return Ok((offset < inode.size).then_some(whole));
        }
        let index = &self.archive.index;
        let (first, count) = index.extent_range(inode)?;
        let ends = |position| {
            let extent = index.extent(position);
            extent.offset.saturating_add(extent.length)
        };
        let (mut low, mut high) = (first, first + count);
        while low < high {
            let middle = low.midpoint(high);
            if ends(middle) <= offset {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let found = (low < first + count).then(|| index.extent(low));
        Ok(found.filter(|extent| extent.offset < inode.size))
    }

    /// Fills `buffer` from `offset`; shorter only at the end of the file. EIO if the tar has become shorter.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize> {
        let left = self.size().saturating_sub(offset);
        let wanted = buffer
            .len()
            .min(usize::try_from(left).unwrap_or(usize::MAX));
        let buffer = &mut buffer[..wanted];
        let mut done = 0;
        while done < wanted {
            let position = offset + done as u64;
            let (hole, run) = self.next_run(position)?;
            let rest = &mut buffer[done..];
            let hole = rest.len().min(usize::try_from(hole).unwrap_or(usize::MAX));
            rest[..hole].fill(0);
            done += hole;
            let rest = &mut rest[hole..];
            let length = rest
                .len()
                .min(usize::try_from(run.length).unwrap_or(usize::MAX));
            if io::read_at(self.tar(), &mut rest[..length], run.tar)? < length {
                return Err(Errno::IO);
            }
            done += length;
        }
        Ok(wanted)
    }

    /// As [`Archived::read_at`], but `None` if that would have to wait for the disk.
    pub fn read_cached_at(&self, buffer: &mut [u8], offset: u64) -> Result<Option<usize>> {
        let left = usize::try_from(self.size().saturating_sub(offset)).unwrap_or(usize::MAX);
        let wanted = buffer.len().min(left);
        if wanted == 0 {
            return Ok(Some(0));
        }
        let (hole, run) = self.next_run(offset)?;
        if hole > 0 || run.length < wanted as u64 {
            return Ok(None);
        }
        // The end of the file is not the end of the tar.
        match io::read_cached_at(self.tar(), &mut buffer[..wanted], run.tar, u64::MAX)? {
            Some(count) if count == wanted => Ok(Some(count)),
            _ => Ok(None),
        }
    }

    /// From `offset`, which is within the file: length of the hole, and the run of data behind it.
    fn next_run(&self, offset: u64) -> Result<(u64, Extent)> {
        let end = self.size();
        let Some(extent) = self.extent_from(offset)? else {
            let none = Extent {
                offset: end,
                length: 0,
                tar: 0,
            };
            return Ok((end - offset, none));
        };
        let begin = extent.offset.max(offset);
        let skipped = begin - extent.offset;
        let run = Extent {
            offset: begin,
            length: (extent.length - skipped).min(end - begin),
            tar: extent.tar.checked_add(skipped).ok_or(Errno::IO)?,
        };
        // Nothing of no length would let a reader stand still.
        if run.length == 0 && begin == offset {
            return Err(Errno::IO);
        }
        Ok((begin - offset, run))
    }

    /// lseek(2) with `SEEK_DATA` (`data`) or `SEEK_HOLE`.
    pub fn seek(&self, offset: u64, data: bool) -> Result<u64> {
        if offset >= self.size() {
            return Err(Errno::NXIO);
        }
        let mut position = offset;
        loop {
            let (hole, run) = self.next_run(position)?;
            if data {
                return if run.length == 0 {
                    Err(Errno::NXIO)
                } else {
                    Ok(run.offset)
                };
            }
            if hole > 0 {
                return Ok(position);
            }
            // Two extents may touch.
            position = run.offset + run.length;
            if position >= self.size() {
                return Ok(self.size());
            }
        }
    }

    /// The run of data at `offset` in the tar, if there is no hole: offset in the tar and length.
    pub fn run_at(&self, offset: u64) -> Result<Option<(u64, u64)>> {
        if offset >= self.size() {
            return Ok(None);
        }
        let (hole, run) = self.next_run(offset)?;
        Ok((hole == 0).then_some((run.tar, run.length)))
    }
}
