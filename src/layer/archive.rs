//! A layer kept as one uncompressed tar and an index of its entries, never unpacked.
//!
//! [`Indexer`] reads the tar once, as a stream, and makes the [`Index`]; after that a lookup is a search in memory and
//! reading is a `pread` in the tar. Nothing in a tar ever becomes a path, an owner or a device on the host.
//!
//! What a tar means as a layer: as the OCI image specification (layer.md) has it, and where that is silent, as
//! extracting it with umoci or containerd would show.
//!
//! - An entry replaces an earlier one of the same name with all that is below it, except that a directory keeps what is
//!   in it and takes the newer attributes. An entry below something that is no directory replaces that by a directory.
//! - Directories that are not in the tar but have something below them are *implied*: they show the attributes the
//!   layers below have there, or 0755 of root at time 0.
//! - `.wh.NAME` deletes NAME in the layers below, whatever its type and wherever it stands in the tar; NAME in the same
//!   tar stays. `.wh..wh..opq` makes its directory opaque. Other names beginning `.wh..wh.` are ignored.
//! - Hard links may lead to an entry further down and through each other, within this tar.
//! - A device 0:0 is a device.

mod beneath;
mod build;
mod content;
mod error;
mod finish;
mod header;
mod index;
mod indexer;
mod pax;
mod sparse;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::ffi::CStr;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use rustix::io::{Errno, Result};

pub use content::Archived;
pub use error::{IndexError, Problem};
pub use index::{Extent, Index, Inode, NameEntry, Xattrs};
pub use indexer::{Indexer, Limits, build_index};

use super::attr::{Attr, Kind};
use super::error::{Cause, SetupError};
use super::handle::HandleSpace;
use super::lower::{Listed, Lower, Medium};
use super::mark::{self, Marks};
use super::stack::{Beneath, Owner};

/// Number of the root directory in every index.
pub const ROOT: u32 = 0;
/// Added to an inode's position in the index: numbers 0 and 1 are taken in a mount.
const FIRST_NUMBER: u64 = 2;
/// Device numbers of archive layers: this bit and the position of the layer. The kernel's have 20 bits of minor
/// and 12 of major number.
const DEVICE: u64 = 1 << 63;
/// Stands for the filesystem type in a handle: "plyf".
const FS_TYPE: u64 = 0x706c_7966;
const BLOCK: u64 = 512;

/// A tar with its index, open.
#[derive(Debug)]
pub struct Archive {
    tar: OwnedFd,
    index: Index,
    dev: u64,
    /// Shown in place of the owner and group of every file.
    owner: Option<(u32, u32)>,
}

impl Archive {
    /// `position` is that of the layer in its stack; `owner` is shown in place of the true owners.
    pub fn new(tar: OwnedFd, index: Index, position: usize, owner: Option<(u32, u32)>) -> Self {
        Self {
            tar,
            index,
            dev: DEVICE | position as u64,
            owner,
        }
    }

    /// Its index.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// All its inode numbers are below this.
    pub fn end(&self) -> u64 {
        u64::from(self.index.inodes()) + FIRST_NUMBER
    }

    /// Stands for the device number.
    pub fn dev(&self) -> u64 {
        self.dev
    }

    /// How origins name its inodes.
    pub fn handles(&self) -> HandleSpace {
        HandleSpace {
            uuid: self.index.id(),
            fs_type: FS_TYPE,
        }
    }

    /// The origin of a copy of an inode.
    pub fn origin(&self, inode: u32) -> Vec<u8> {
        self.handles()
            .encode_number(u64::from(inode) + FIRST_NUMBER)
    }

    /// The inode called `name` in the directory `dir`. ENOENT for a whiteout.
    pub fn find(&self, dir: u32, name: &[u8]) -> Result<u32> {
        let dir = self.index.inode(dir)?;
        let found = self.index.find(&dir, name)?.ok_or(Errno::NOENT)?;
        found.inode.ok_or(Errno::NOENT)
    }

    /// Whether the directory `dir` has a whiteout for `name`.
    pub fn has_whiteout(&self, dir: u32, name: &[u8]) -> Result<bool> {
        let dir = self.index.inode(dir)?;
        let found = self.index.find(&dir, name)?;
        Ok(found.is_some_and(|found| found.inode.is_none()))
    }

    /// Calls `each` for every name in the directory `dir`; whiteouts as `.wh.NAME`, opaqueness as its marker.
    pub fn list(&self, dir: u32, each: &mut impl FnMut(Listed<'_>) -> Result<()>) -> Result<()> {
        let dir = self.index.inode(dir)?;
        let mut marker = mark::AUFS_PREFIX.to_vec();
        let whiteout = Some(Kind::File);
        if dir.opaque {
            each(Listed {
                name: mark::AUFS_OPAQUE,
                kind: whiteout,
            })?;
        }
        for entry in self.index.list(&dir)? {
            let NameEntry { name, inode } = entry?;
            if let Some(number) = inode {
                let kind = Some(self.index.inode(number)?.kind);
                each(Listed { name, kind })?;
            } else {
                marker.truncate(mark::AUFS_PREFIX.len());
                marker.extend_from_slice(name);
                each(Listed {
                    name: &marker,
                    kind: whiteout,
                })?;
            }
        }
        Ok(())
    }

    /// Attributes of an inode.
    pub fn stat(&self, number: u32) -> Result<Attr> {
        let inode = self.index.inode(number)?;
        let device = matches!(inode.kind, Kind::CharDevice | Kind::BlockDevice);
        let (uid, gid) = self.owner.unwrap_or((inode.uid, inode.gid));
        let directory = inode.kind == Kind::Directory;
        Ok(Attr {
            ino: u64::from(number) + FIRST_NUMBER,
            dev: self.dev,
            size: if directory { 4096 } else { inode.size },
            blocks: self.stored(&inode)?.div_ceil(BLOCK),
            atime: inode.mtime,
            mtime: inode.mtime,
            ctime: inode.mtime,
            uid,
            gid,
            nlink: inode.nlink,
            rdev: if device {
                u32::try_from(inode.place).map_err(|_| Errno::IO)?
            } else {
                0
            },
            blksize: 4096,
            mode: inode.mode,
            kind: inode.kind,
            mount_root: false,
        })
    }

    /// Bytes of content in the tar.
    fn stored(&self, inode: &Inode) -> Result<u64> {
        if inode.kind != Kind::File {
            return Ok(0);
        }
        if !inode.sparse {
            return Ok(inode.size);
        }
        let (first, count) = self.index.extent_range(inode)?;
        if count == 0 {
            return Ok(0);
        }
        // They are consecutive in the tar.
        let (first, last) = (
            self.index.extent(first),
            self.index.extent(first + count - 1),
        );
        let end = last.tar.saturating_add(last.length);
        Ok(end.saturating_sub(first.tar))
    }

    /// Marks of an inode.
    pub fn marks(&self, number: u32) -> Result<Marks> {
        let inode = self.index.inode(number)?;
        Ok(Marks {
            opaque: inode.opaque,
            default_acl: self
                .index
                .xattrs(&inode)
                .any(|(name, _)| name == mark::DEFAULT_ACL),
            ..Marks::default()
        })
    }

    /// The value of an xattr.
    pub fn xattr(&self, number: u32, wanted: &CStr) -> Result<Option<Vec<u8>>> {
        let inode = self.index.inode(number)?;
        let mut xattrs = self.index.xattrs(&inode);
        let found = xattrs.find(|(name, _)| *name == wanted.to_bytes());
        Ok(found.map(|(_, value)| value.to_vec()))
    }

    /// Names of all xattrs, each ended by NUL.
    pub fn xattr_names(&self, number: u32) -> Result<Vec<u8>> {
        let inode = self.index.inode(number)?;
        let mut names = Vec::new();
        for (name, _) in self.index.xattrs(&inode) {
            names.extend_from_slice(name);
            names.push(0);
        }
        Ok(names)
    }

    /// The target of a symlink; EINVAL for anything else.
    pub fn link_target(&self, number: u32) -> Result<Vec<u8>> {
        let inode = self.index.inode(number)?;
        self.index.target(&inode).map(<[u8]>::to_vec)
    }

    /// Filesystem statistics of where the tar is.
    pub fn stat_fs(&self) -> Result<rustix::fs::StatVfs> {
        rustix::fs::fstatvfs(&self.tar)
    }
}

/// Opens a tar as the layer at `position`. Without the file `index` the index is made in memory.
pub(super) fn open(
    position: usize,
    given: &Path,
    index: Option<(&Path, Option<&Beneath>)>,
    owner: Owner,
) -> std::result::Result<Lower, SetupError> {
    let fail = |path: &Path, problem: &dyn std::fmt::Display, hint: &str| {
        let path = path.display();
        SetupError::new(Cause::Lower, format!("lower layer {path}: {problem}{hint}"))
    };
    let system = |error: &std::io::Error| {
        let words = super::describe(Errno::from_io_error(error).unwrap_or(Errno::IO));
        fail(given, &words, "")
    };
    let path = std::fs::canonicalize(given).map_err(|error| system(&error))?;
    let tar = File::open(&path).map_err(|error| system(&error))?;
    let length = tar.metadata().map_err(|error| system(&error))?.len();
    let index = match index {
        Some((index, beneath)) => Index::open(index)
            .and_then(|whole| match beneath {
                Some(at) => Index::from_bytes(whole.beneath(at)),
                None => Ok(whole),
            })
            .map_err(|error| fail(index, &error, ""))?,
        None => build_index(&tar).map_err(|error| match error.problem {
            Problem::Compressed(_) => {
                fail(&path, &error, ": give it to 'plyfs load', or unpack it")
            }
            Problem::NotTar => fail(&path, &error, ": name a directory or a tar"),
            _ => fail(&path, &error, ""),
        })?,
    };
    if index.tar_length() != length {
        let hint = ": the file was changed, or the index is that of another";
        return Err(fail(
            &path,
            &"its index is of a tar of another length",
            hint,
        ));
    }
    let me = match owner {
        Owner::Auto => !super::ids::can_give_files_away(),
        Owner::Me => true,
        Owner::Image => false,
    };
    let owner = me.then(super::own_ids);
    let archive = Archive::new(tar.into(), index, position, owner);
    Ok(Lower {
        position,
        path,
        dev: archive.dev(),
        handles: Some(archive.handles()),
        medium: Medium::Archive(Arc::new(archive)),
    })
}

/// The content of a regular file in `archive`.
pub fn content(archive: &Arc<Archive>, number: u32) -> Result<Archived> {
    let inode = archive.index.inode(number)?;
    match inode.kind {
        Kind::File => Ok(Archived::new(Arc::clone(archive), inode)),
        Kind::Directory => Err(Errno::ISDIR),
        _ => Err(Errno::INVAL),
    }
}
