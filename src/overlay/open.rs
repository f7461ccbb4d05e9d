//! Reading and writing file content. There are no handles: each request finds the node's current real file, so a
//! file opened before its copy-up reads what was written after it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::io::{Errno, Result};

use super::Overlay;
use super::copy_up::Data;
use super::node::{Node, Real};
use super::place::{Held, Place};
use crate::layer::archive::Archived;
use crate::layer::attr::Kind;
use crate::layer::content::Content;
use crate::layer::io;
use crate::layer::upper::Upper;

/// A real file that the kernel may read and write itself.
#[derive(Debug)]
pub struct Backing {
    /// The file.
    pub file: Arc<OwnedFd>,
    /// It is a lower's: not to be written.
    pub lower: bool,
}

impl Overlay {
    /// Reads into `buffer` from `offset`; shorter only at the end of the file.
    pub fn read(&self, ino: u64, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let node = self.node(ino)?;
        self.content(&node)?.read_at(buffer, offset)
    }

    /// As [`Overlay::read`], but `None` if that would have to wait for the disk.
    pub fn read_cached(&self, ino: u64, offset: u64, buffer: &mut [u8]) -> Result<Option<usize>> {
        let node = self.node(ino)?;
        let content = self.content(&node)?;
        let size = {
            let state = node.state();
            if state.fresh {
                state.attr.size
            } else {
                u64::MAX
            }
        };
        content.read_cached_at(buffer, offset, size)
    }

    /// Writes `data` at `offset`. `clear_suid`: the caller may not keep suid and sgid.
    pub fn write(&self, ino: u64, offset: u64, data: &[u8], clear_suid: bool) -> Result<usize> {
        let node = self.node(ino)?;
        self.copy_up(&node, Data::All)?;
        let fd = self.file(&node, true)?;
        let written = io::write_at(fd.as_fd(), data, offset);
        node.stale();
        self.clear_privileges(&node, clear_suid)?;
        written
    }

    /// What a write takes away from a file, and the system does not by itself.
    fn clear_privileges(&self, node: &Arc<Node>, suid: bool) -> Result<()> {
        if !suid && !self.upper()?.keeps_capabilities() {
            return Ok(());
        }
        let _names = self.names.read();
        self.clear_kept_capabilities(node)?;
        self.clear_suid(node, suid)
    }

    /// fallocate(2).
    pub fn allocate(&self, ino: u64, mode: u32, offset: u64, length: u64) -> Result<()> {
        let node = self.node(ino)?;
        self.copy_up(&node, Data::All)?;
        let done = io::allocate(self.file(&node, true)?.as_fd(), mode, offset, length);
        node.stale();
        self.clear_privileges(&node, false)?;
        done
    }

    /// lseek(2) with `SEEK_DATA` (`data`) or `SEEK_HOLE`.
    pub fn seek(&self, ino: u64, offset: u64, data: bool) -> Result<u64> {
        let node = self.node(ino)?;
        self.content(&node)?.seek(offset, data)
    }

    /// `copy_file_range(2)` between two files of the mount.
    pub fn copy_range(&self, from: (u64, u64), to: (u64, u64), length: usize) -> Result<usize> {
        let (source, target) = (self.node(from.0)?, self.node(to.0)?);
        self.copy_up(&target, Data::All)?;
        let input = self.content(&source)?;
        let output = self.file(&target, true)?;
        let copied = input.copy_range(from.1, (output.as_fd(), to.1), length);
        target.stale();
        self.clear_privileges(&target, false)?;
        match copied {
            // Between two filesystems the client copies by reading and writing.
            Err(Errno::XDEV | Errno::NOSYS) => Err(Errno::OPNOTSUPP),
            other => other,
        }
    }

    /// fsync(2) or fdatasync(2); a file that is not in the upper has nothing to sync.
    pub fn sync(&self, ino: u64, data_only: bool) -> Result<()> {
        let node = self.node(ino)?;
        let Some(upper) = &self.stack.upper else {
            return Ok(());
        };
        if !node.in_upper() {
            return Ok(());
        }
        if node.kind == Kind::Directory {
            let _names = self.names.read();
            return upper.sync(&self.upper_dir(&node)?, data_only);
        }
        if node.state().data.is_some() {
            // Only metadata is in the upper yet.
            let fd = {
                let _names = self.names.read();
                upper.open(self.held(&node)?.read(), OFlags::RDONLY)?
            };
            return upper.sync(&fd, data_only);
        }
        upper.sync(&*self.file(&node, false)?, data_only)
    }

    /// The content of a file, for reading.
    fn content(&self, node: &Arc<Node>) -> Result<Content> {
        let _names = self.names.read();
        match self.archived(node)? {
            Some(content) => Ok(Content::Archived(content)),
            None => self.file_locked(node, false).map(Content::File),
        }
    }

    /// The content if it is in an archive, which needs no descriptor of its own. The caller holds `names`.
    fn archived(&self, node: &Arc<Node>) -> Result<Option<Archived>> {
        if !self.stack.has_archives || node.kind != Kind::File {
            return Ok(None);
        }
        let (file, attr) = {
            let state = node.state();
            let file = match (&state.data, &state.real) {
                _ if state.open_file().is_some() => return Ok(None),
                (Some(data), _) => (**data).clone(),
                (None, Real::Lower(file)) => file.clone(),
                _ => return Ok(None),
            };
            (file, state.attr)
        };
        self.stack.data_of(&file, &attr)?.archived()
    }

    /// Copies up a file with its data.
    pub fn copy_up_data(&self, ino: u64) -> Result<()> {
        self.copy_up(&self.node(ino)?, Data::All)
    }

    /// The real file behind a node, for `write` already copied up. `None`: all access has to go through us. That is so
    /// for a lower file that may be copied up while it is open, unless `lowers` says that its readers may miss that;
    /// and always for one of several names, which could not all be led to the copy.
    pub fn backing(&self, ino: u64, write: bool, lowers: bool) -> Result<Option<Backing>> {
        let node = self.node(ino)?;
        let _names = self.names.read();
        let (lower, links) = {
            let state = node.state();
            let lower = state.data.is_some() || matches!(state.real, Real::Lower(_));
            (lower, state.attr.nlink)
        };
        let fixed = self.is_read_only() || (lowers && links == 1 && !write);
        if lower && !fixed {
            return Ok(None);
        }
        if self.archived(&node)?.is_some() {
            // The kernel reads whole files only, not parts of a tar.
            return Ok(None);
        }
        let file = self.file_locked(&node, write)?;
        if write {
            // Nobody tells us of the writes.
            self.clear_kept_capabilities(&node)?;
        }
        let writable = node
            .state()
            .open_file()
            .is_some_and(|(_, writable)| writable);
        // All opens at a time share one backing, so it has to take writes.
        Ok((lower || writable).then_some(Backing { file, lower }))
    }

    /// The kernel writes the file of `ino` itself from now on, or does no longer.
    pub fn set_written_behind(&self, ino: u64, on: bool) {
        if let Ok(node) = self.node(ino) {
            let mut state = node.state();
            state.behind = on;
            state.stale();
        }
    }

    /// Takes the name from a node whose lower file has readers of its own: the name gets a new node when it is looked
    /// up next, and the old one goes on without.
    pub fn detach(&self, ino: u64) -> Result<()> {
        let _names = self.names.write();
        let node = self.node(ino)?;
        if node.in_upper() {
            self.pin_last_name(&node)?;
        }
        let mut state = node.state();
        state.replaced = true;
        state.aliases.clear();
        Ok(())
    }

    /// Runs `act` on the node's open file. The caller holds `names`.
    pub(super) fn with_file<T>(
        &self,
        node: &Arc<Node>,
        write: bool,
        act: impl FnOnce(BorrowedFd<'_>) -> Result<T>,
    ) -> Result<T> {
        let fd = self.file_locked(node, write)?;
        act(fd.as_fd())
    }

    /// The node's open file, open for writing if `write`.
    fn file(&self, node: &Arc<Node>, write: bool) -> Result<Arc<OwnedFd>> {
        let _names = self.names.read();
        self.file_locked(node, write)
    }

    fn file_locked(&self, node: &Arc<Node>, write: bool) -> Result<Arc<OwnedFd>> {
        if node.kind != Kind::File {
            return Err(if node.kind == Kind::Directory {
                Errno::ISDIR
            } else {
                Errno::INVAL
            });
        }
        let (cached, moves) = {
            let state = node.state();
            (state.open_file(), state.moves)
        };
        if let Some((slot, writable)) = cached
            && (writable || !write)
        {
            return self
                .stack
                .fds
                .get(&slot, || self.open_real(node, writable).map(|open| open.0));
        }
        let (fd, writable) = self.open_real(node, write)?;
        if write && !writable {
            return Err(Errno::ACCESS);
        }
        let mut state = node.state();
        if state.moves != moves {
            // It was copied up while we opened the lower file.
            drop(state);
            return self.file_locked(node, write);
        }
        let slot = self.stack.fds.files.slot();
        slot.put(fd);
        state.set_open_file(Some((Arc::clone(&slot), writable)));
        drop(state);
        self.stack
            .fds
            .get(&slot, || self.open_real(node, writable).map(|open| open.0))
    }

    /// Opens what holds the data of `node`; says whether it takes writes.
    fn open_real(&self, node: &Arc<Node>, write: bool) -> Result<(OwnedFd, bool)> {
        let data = node.state().data.clone();
        if let Some(data) = data {
            return if write {
                Err(Errno::ROFS)
            } else {
                data.open().map(|fd| (fd, false))
            };
        }
        match self.place(node)? {
            Place::Lower(_) if write => Err(Errno::ROFS),
            Place::Lower(file) => {
                let attr = node.state().attr;
                self.stack
                    .data_of(&file, &attr)?
                    .open()
                    .map(|fd| (fd, false))
            }
            Place::LowerDir(_) => Err(Errno::ISDIR),
            Place::Upper(held) => open_upper(self.upper()?, &held, write),
        }
    }
}

/// Opens a file of the upper, for writing if it can be. A client may hold a file open with rights its mode no
/// longer grants (or never did, for the one who created it), so the owner's rights are widened for the moment.
fn open_upper(upper: &Upper, held: &Held, write: bool) -> Result<(OwnedFd, bool)> {
    match upper.open(held.read(), OFlags::RDWR) {
        Ok(fd) => return Ok((fd, true)),
        Err(Errno::ACCESS | Errno::ROFS | Errno::TXTBSY | Errno::PERM) => {}
        Err(error) => return Err(error),
    }
    if !write && let Ok(fd) = upper.open(held.read(), OFlags::RDONLY) {
        return Ok((fd, false));
    }
    let open = || upper.open(held.read(), OFlags::RDWR);
    upper
        .with_mode(held.change(upper), 0o600, open)
        .map(|fd| (fd, true))
}

#[cfg(test)]
mod tests;
