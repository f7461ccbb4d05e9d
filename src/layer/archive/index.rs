//! The index of a tar: everything about its entries but the content of files, in one block of bytes that is used
//! where it lies, mapped or in memory.
//!
//! All numbers are little-endian. A section begins where the one before it ends.
//!
//! ```text
//! header, 128 bytes
//!     0  magic "plyfsidx"
//!     8  u32 version = 1
//!    12  u32 number of inodes, at least 1; inode 0 is the root directory
//!    16  u32 number of names
//!    20  u32 number of extents
//!    24  u64 bytes of the string section
//!    32  u64 length of the tar in bytes
//!    40  zero
//!    64  SHA-256 of all behind the header
//!    96  SHA-256 of the 96 bytes above
//! inodes, 52 bytes each, in the order in which the tar begins them
//!     0  u16 permission bits (07777)
//!     2  u8  kind: 0 file, 1 directory, 2 symlink, 3 character device, 4 block device, 5 FIFO
//!     3  u8  flags: 1 sparse file, 2 opaque directory, 4 implied directory (not itself in the tar)
//!     4  u32 owner
//!     8  u32 group
//!    12  u32 modification time, nanoseconds
//!    16  i64 modification time, seconds since 1970
//!    24  u64 size: bytes of a file, of a symlink's target; 0 for others
//!    32  u64 file: offset of its content in the tar; sparse file: first extent; symlink: offset of its target in
//!            the strings; directory: first name; device: number in the kernel's 32-bit encoding
//!    40  u32 sparse file: number of extents; directory: number of names
//!    44  u32 links: names of a file; 2 + subdirectories of a directory
//!    48  u32 1 + offset of its xattrs in the strings, 0 if it has none
//! names, 12 bytes each: those of one directory together, sorted by bytes
//!     0  u32 offset in the strings
//!     4  u32 inode, 0xffffffff for a whiteout
//!     8  u32 length in bytes, 1 to 255
//! extents, 24 bytes each: those of one file together, ascending, without overlap, consecutive in the tar
//!     0  u64 offset in the file
//!     8  u64 length
//!    16  u64 offset in the tar
//! strings: names, targets of symlinks, and xattrs:
//!     u16 number of xattrs, then for each: u16 length of its name, u32 length of its value, name, value
//! ```
//!
//! Names of xattrs are what a directory layer would have on disk: marks of a union in the tar are escaped
//! ([`xattr_on_disk`](crate::layer::mark::xattr_on_disk)), so nothing in a tar is ever taken for a mark of ours.
//!
//! Opening checks the header and the length, not the body, so it costs the same for any size; [`Index::verify`] checks
//! all. Every read is checked against the bounds: a damaged index answers EIO or shows nonsense, and no more.

use std::fs::File;
use std::ops::Deref;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::io::{Errno, Result};
use sha2::{Digest, Sha256};

use super::error::{IndexError, Problem};
use crate::layer::attr::{Kind, Time};
use crate::layer::sys::Mapping;

pub(super) const MAGIC: &[u8; 8] = b"plyfsidx";
pub(super) const VERSION: u32 = 1;
pub(super) const HEADER: usize = 128;
pub(super) const INODE: usize = 52;
pub(super) const NAME: usize = 12;
pub(super) const EXTENT: usize = 24;
/// In place of the inode of a name: it is deleted in the layers below.
pub(super) const WHITEOUT: u32 = u32::MAX;

/// Flags of an inode.
pub(super) mod flag {
    pub(in super::super) const SPARSE: u8 = 1;
    pub(in super::super) const OPAQUE: u8 = 2;
    pub(in super::super) const IMPLIED: u8 = 4;
}

/// Kinds by their number in the index.
pub(super) const KINDS: [Kind; 6] = [
    Kind::File,
    Kind::Directory,
    Kind::Symlink,
    Kind::CharDevice,
    Kind::BlockDevice,
    Kind::Fifo,
];

#[derive(Debug)]
enum Bytes {
    Owned(Vec<u8>),
    Mapped(Mapping),
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Owned(bytes) => bytes,
            Self::Mapped(mapping) => mapping,
        }
    }
}

/// An index, ready to be asked.
#[derive(Debug)]
pub struct Index {
    bytes: Bytes,
    inodes: u32,
    names: u32,
    extents: u32,
    names_at: usize,
    extents_at: usize,
    strings_at: usize,
    tar_length: u64,
}

/// An inode of the index.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Inode {
    /// Permission bits with suid, sgid and sticky (07777).
    pub mode: u16,
    /// What it is.
    pub kind: Kind,
    /// Owner as in the tar.
    pub uid: u32,
    /// Group as in the tar.
    pub gid: u32,
    /// Last modification.
    pub mtime: Time,
    /// Length of a file, or of a symlink's target, in bytes.
    pub size: u64,
    /// Names of a file, 2 + subdirectories of a directory.
    pub nlink: u32,
    /// The directory hides what the layers below have at its path.
    pub opaque: bool,
    /// The directory is not itself in the tar, only something below it.
    pub implied: bool,
    /// The file has an extent map.
    pub(super) sparse: bool,
    pub(super) place: u64,
    pub(super) count: u32,
    xattrs: u32,
}

/// A name in a directory of the index.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct NameEntry<'a> {
    /// The name; of a whiteout, what it deletes.
    pub name: &'a [u8],
    /// Number of its inode; `None` for a whiteout.
    pub inode: Option<u32>,
}

/// A run of bytes of a sparse file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Extent {
    /// Offset in the file.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
    /// Offset in the tar.
    pub tar: u64,
}

fn short(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap_or_default())
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap_or_default())
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap_or_default())
}

/// `u32` to an offset.
fn wide(value: u32) -> usize {
    value as usize
}

impl Index {
    /// Maps an index file. The file must not be changed by anybody while it is used; the store replaces its files
    /// and never writes into one.
    pub fn open(path: &Path) -> std::result::Result<Self, IndexError> {
        let failed = |error: std::io::Error| IndexError::general(Problem::Io(error.to_string()));
        let file = File::open(path).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length < HEADER {
            return Err(IndexError::general(Problem::Index("is cut off")));
        }
        let mapping = Mapping::new(file.as_fd(), length).map_err(|error| failed(error.into()))?;
        Self::new(Bytes::Mapped(mapping))
    }

    /// Takes an index that is in memory.
    pub fn from_bytes(bytes: Vec<u8>) -> std::result::Result<Self, IndexError> {
        Self::new(Bytes::Owned(bytes))
    }

    fn new(bytes: Bytes) -> std::result::Result<Self, IndexError> {
        let damaged = |what| IndexError::general(Problem::Index(what));
        let Some(header) = bytes.get(..HEADER) else {
            return Err(damaged("is cut off"));
        };
        if !header.starts_with(MAGIC) {
            return Err(damaged("is no index"));
        }
        if word(header, 8) != VERSION {
            return Err(damaged("is of another version: load the image again"));
        }
        if header[96..] != *Sha256::digest(&header[..96]) {
            return Err(damaged("has a damaged header"));
        }
        let (inodes, names, extents) = (word(header, 12), word(header, 16), word(header, 20));
        let strings = usize::try_from(long(header, 24)).map_err(|_| damaged("is cut off"))?;
        let section = |count: u32, size: usize| wide(count).checked_mul(size);
        let layout = || {
            let names_at = HEADER.checked_add(section(inodes, INODE)?)?;
            let extents_at = names_at.checked_add(section(names, NAME)?)?;
            let strings_at = extents_at.checked_add(section(extents, EXTENT)?)?;
            let end = strings_at.checked_add(strings)?;
            (end == bytes.len()).then_some((names_at, extents_at, strings_at))
        };
        let (names_at, extents_at, strings_at) = layout().ok_or_else(|| damaged("is cut off"))?;
        let tar_length = long(header, 32);
        if inodes == 0 {
            return Err(damaged("has no root"));
        }
        Ok(Self {
            bytes,
            inodes,
            names,
            extents,
            names_at,
            extents_at,
            strings_at,
            tar_length,
        })
    }

    /// Checks the body against its checksum.
    pub fn verify(&self) -> std::result::Result<(), IndexError> {
        if self.bytes[64..96] == *Sha256::digest(&self.bytes[HEADER..]) {
            Ok(())
        } else {
            Err(IndexError::general(Problem::Index("is damaged")))
        }
    }

    /// The bytes to write into a file.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Length of the tar it describes.
    pub fn tar_length(&self) -> u64 {
        self.tar_length
    }

    /// Number of inodes.
    pub fn inodes(&self) -> u32 {
        self.inodes
    }

    /// Number of names, whiteouts included.
    pub fn names(&self) -> u32 {
        self.names
    }

    /// Number of extents of all sparse files.
    pub(super) fn extents(&self) -> u32 {
        self.extents
    }

    /// What tells it from other indexes.
    pub fn id(&self) -> [u8; 16] {
        self.bytes[64..80].try_into().unwrap_or_default()
    }

    /// The inode by this number.
    pub fn inode(&self, number: u32) -> Result<Inode> {
        if number >= self.inodes {
            return Err(Errno::IO);
        }
        let at = HEADER + wide(number) * INODE;
        let raw = &self.bytes[at..at + INODE];
        let kind = *KINDS.get(usize::from(raw[2])).ok_or(Errno::IO)?;
        let flags = raw[3];
        Ok(Inode {
            mode: short(raw, 0) & 0o7777,
            kind,
            uid: word(raw, 4),
            gid: word(raw, 8),
            mtime: Time {
                sec: long(raw, 16).cast_signed(),
                nsec: word(raw, 12).min(999_999_999),
            },
            size: long(raw, 24).min(i64::MAX as u64),
            nlink: word(raw, 44),
            opaque: kind == Kind::Directory && flags & flag::OPAQUE != 0,
            implied: kind == Kind::Directory && flags & flag::IMPLIED != 0,
            sparse: kind == Kind::File && flags & flag::SPARSE != 0,
            place: long(raw, 32),
            count: word(raw, 40),
            xattrs: word(raw, 48),
        })
    }

    /// The names of a directory: first and number. ENOTDIR for anything else.
    fn range(&self, dir: &Inode) -> Result<(usize, usize)> {
        if dir.kind != Kind::Directory {
            return Err(Errno::NOTDIR);
        }
        let first = usize::try_from(dir.place).map_err(|_| Errno::IO)?;
        let count = wide(dir.count);
        match first.checked_add(count) {
            Some(end) if end <= wide(self.names) => Ok((first, count)),
            _ => Err(Errno::IO),
        }
    }

    /// The name at a position that is within [`Index::range`].
    fn name(&self, position: usize) -> Result<NameEntry<'_>> {
        let at = self.names_at + position * NAME;
        let raw = &self.bytes[at..at + NAME];
        let inode = word(raw, 4);
        Ok(NameEntry {
            name: self.string(word(raw, 0).into(), wide(word(raw, 8)))?,
            inode: (inode != WHITEOUT).then_some(inode),
        })
    }

    fn string(&self, at: u64, length: usize) -> Result<&[u8]> {
        let strings = &self.bytes[self.strings_at..];
        let at = usize::try_from(at).map_err(|_| Errno::IO)?;
        let end = at.checked_add(length).ok_or(Errno::IO)?;
        strings.get(at..end).ok_or(Errno::IO)
    }

    /// Looks `name` up in a directory; `None` if it is not there.
    pub fn find(&self, dir: &Inode, name: &[u8]) -> Result<Option<NameEntry<'_>>> {
        let (first, count) = self.range(dir)?;
        let (mut low, mut high) = (first, first + count);
        while low < high {
            let middle = low.midpoint(high);
            let entry = self.name(middle)?;
            match entry.name.cmp(name) {
                std::cmp::Ordering::Equal => return Ok(Some(entry)),
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        Ok(None)
    }

    /// The names of a directory, sorted by bytes, whiteouts among them.
    pub fn list(&self, dir: &Inode) -> Result<impl Iterator<Item = Result<NameEntry<'_>>>> {
        let (first, count) = self.range(dir)?;
        Ok((first..first + count).map(|position| self.name(position)))
    }

    /// The target of a symlink.
    pub fn target(&self, link: &Inode) -> Result<&[u8]> {
        if link.kind != Kind::Symlink {
            return Err(Errno::INVAL);
        }
        let length = usize::try_from(link.size).map_err(|_| Errno::IO)?;
        self.string(link.place, length)
    }

    /// Names and values of the xattrs of an inode.
    pub fn xattrs(&self, of: &Inode) -> Xattrs<'_> {
        let Some(at) = of.xattrs.checked_sub(1) else {
            return Xattrs { left: 0, rest: &[] };
        };
        let rest = self.bytes[self.strings_at..]
            .get(wide(at)..)
            .unwrap_or_default();
        match rest.split_at_checked(2) {
            Some((count, rest)) => Xattrs {
                left: short(count, 0),
                rest,
            },
            None => Xattrs { left: 0, rest: &[] },
        }
    }

    /// Number of extents of a sparse file, checked to be there.
    pub(super) fn extent_range(&self, file: &Inode) -> Result<(usize, usize)> {
        let first = usize::try_from(file.place).map_err(|_| Errno::IO)?;
        let count = wide(file.count);
        match first.checked_add(count) {
            Some(end) if file.sparse && end <= wide(self.extents) => Ok((first, count)),
            _ => Err(Errno::IO),
        }
    }

    /// The extent at a position within [`Index::extent_range`].
    pub(super) fn extent(&self, position: usize) -> Extent {
        let at = self.extents_at + position * EXTENT;
        let raw = &self.bytes[at..at + EXTENT];
        Extent {
            offset: long(raw, 0),
            length: long(raw, 8),
            tar: long(raw, 16),
        }
    }
}

/// Iterates over xattrs: name and value.
#[derive(Clone, Debug)]
pub struct Xattrs<'a> {
    left: u16,
    rest: &'a [u8],
}

impl<'a> Iterator for Xattrs<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let (head, rest) = self.rest.split_at_checked(6)?;
        let (name, rest) = rest.split_at_checked(usize::from(short(head, 0)))?;
        let (value, rest) = rest.split_at_checked(wide(word(head, 2)))?;
        self.rest = rest;
        Some((name, value))
    }
}
