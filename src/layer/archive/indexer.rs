//! Reading a tar as a stream.
//!
//! What is read is what Go's archive/tar reads, for that is what docker, containerd and podman take layers with: two
//! programs that see different entries in one tar are an attack (CVE-2025-62518 and others). So a PAX `size` counts
//! over the header's, links, devices and directories have no body whatever their size says, of two extended headers
//! the last counts, and a GNU long name counts over a PAX `path`.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use super::build::{Builder, Item, What};
use super::error::{IndexError, Problem};
use super::header::{BLOCK, Header};
use super::index::Index;
use super::pax::Pax;
use super::sparse::Sparse;
use crate::layer::attr::{Kind, Time, encode_dev};

/// Longest target of a symlink Linux reads.
const TARGET_MAX: usize = 4095;

/// What an index may grow to. The defaults are far above any real image.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// Names, directories that are only implied included.
    pub entries: u32,
    /// Bytes of one PAX header or long name.
    pub header: u32,
    /// Bytes of one path.
    pub path: u32,
    /// Extents of all sparse files together.
    pub extents: u32,
    /// Bytes of names, link targets and xattrs together.
    pub strings: u32,
    /// Bytes of the tar.
    pub size: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entries: 8_000_000,
            header: 1 << 20,
            path: 64 << 10,
            extents: 1_000_000,
            strings: 1 << 31,
            size: i64::MAX.cast_unsigned(),
        }
    }
}

/// What the next bytes are.
#[derive(Debug)]
enum State {
    /// A header.
    Header,
    /// A header that speaks about the next entry: what it is, bytes left of its body.
    Meta(Meta, u64),
    /// Content or padding: bytes left.
    Skip(u64),
    /// A block of the map of a sparse file.
    Map(Box<Mapped>),
    /// The second block of the end.
    EndBlock,
    /// Whatever follows the end.
    Behind,
}

#[derive(Clone, Copy, Debug)]
enum Meta {
    Pax,
    LongName,
    LongLink,
}

/// A sparse file whose map is not complete.
#[derive(Debug)]
struct Mapped {
    sparse: Sparse,
    item: Item,
    /// Bytes of the body left.
    left: u64,
    /// The map is text in the body (PAX 1.0), else blocks between header and body (old GNU).
    text: bool,
}

/// Makes an index of the uncompressed tar that is written to it.
#[derive(Debug)]
pub struct Indexer {
    limits: Limits,
    builder: Builder,
    state: State,
    block: Box<[u8; BLOCK]>,
    /// Bytes of `block` that are filled.
    filled: usize,
    /// Bytes taken so far.
    offset: u64,
    meta: Vec<u8>,
    pax: Option<Pax>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    /// Name and offset of the entry being read.
    entry: Vec<u8>,
    began: u64,
    failed: Option<IndexError>,
}

impl Indexer {
    /// Refuses what goes beyond `limits`.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            builder: Builder::new(limits),
            state: State::Header,
            block: Box::new([0; BLOCK]),
            filled: 0,
            offset: 0,
            meta: Vec::new(),
            pax: None,
            long_name: None,
            long_link: None,
            entry: Vec::new(),
            began: 0,
            failed: None,
        }
    }

    /// The index of all that was written, after the last byte of the tar.
    pub fn finish(self) -> Result<Index, IndexError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let dangling = self.pax.is_some() || self.long_name.is_some() || self.long_link.is_some();
        let whole = match self.state {
            State::Header => !dangling,
            State::EndBlock | State::Behind => true,
            State::Meta(..) | State::Skip(_) | State::Map(_) => false,
        };
        if !whole || self.filled > 0 {
            let problem = match compression(&self.block[..]) {
                Some(by) if self.offset < BLOCK as u64 => Problem::Compressed(by),
                _ if self.offset < BLOCK as u64 => Problem::NotTar,
                _ => Problem::Truncated,
            };
            let between = matches!(self.state, State::Header | State::EndBlock) && !dangling;
            return Err(if between {
                IndexError {
                    problem,
                    entry: Vec::new(),
                    offset: self.offset - self.filled as u64,
                }
            } else {
                IndexError {
                    problem,
                    entry: self.entry,
                    offset: self.began,
                }
            });
        }
        Index::from_bytes(self.builder.finish(self.offset)?)
    }

    /// How many of the next bytes do not matter: [`Indexer::skip`] may pass over so many.
    pub fn skippable(&self) -> u64 {
        match &self.state {
            _ if self.failed.is_some() => 0,
            State::Skip(left) => *left,
            State::Behind => u64::MAX,
            _ => 0,
        }
    }

    /// Passes over `count` bytes instead of writing them, at most as many as are [`Indexer::skippable`].
    pub fn skip(&mut self, count: u64) {
        let count = count.min(self.skippable());
        self.offset = self.offset.saturating_add(count);
        if let State::Skip(left) = &mut self.state {
            *left -= count;
            if *left == 0 {
                self.state = State::Header;
            }
        }
    }

    /// Takes some of `bytes`, which are not empty; how many.
    fn step(&mut self, bytes: &[u8]) -> Result<usize, Problem> {
        let skippable = self.skippable();
        let taken = if skippable > 0 {
            let taken = bytes
                .len()
                .min(usize::try_from(skippable).unwrap_or(usize::MAX));
            self.skip(taken as u64);
            taken
        } else if let State::Meta(meta, left) = self.state {
            let taken = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            self.meta.extend_from_slice(&bytes[..taken]);
            self.offset += taken as u64;
            self.state = State::Meta(meta, left - taken as u64);
            if left == taken as u64 {
                self.take_meta(meta)?;
            }
            taken
        } else {
            let taken = bytes.len().min(BLOCK - self.filled);
            self.block[self.filled..self.filled + taken].copy_from_slice(&bytes[..taken]);
            self.filled += taken;
            self.offset += taken as u64;
            if self.filled == BLOCK {
                self.filled = 0;
                self.take_block()?;
            }
            taken
        };
        if self.offset > self.limits.size {
            return Err(Problem::Limit {
                what: "bytes of the layer",
                limit: self.limits.size,
            });
        }
        Ok(taken)
    }

    fn take_block(&mut self) -> Result<(), Problem> {
        match std::mem::replace(&mut self.state, State::Header) {
            State::Map(mapped) => self.take_map(mapped),
            State::EndBlock if self.block.iter().all(|&byte| byte == 0) => {
                self.state = State::Behind;
                Ok(())
            }
            State::EndBlock => Err(Problem::AfterEnd),
            _ => self.take_header(),
        }
    }

    fn take_header(&mut self) -> Result<(), Problem> {
        let block = *self.block;
        if self.pax.is_none() && self.long_name.is_none() && self.long_link.is_none() {
            self.began = self.offset - BLOCK as u64;
            self.entry.clear();
        }
        if block.iter().all(|&byte| byte == 0) {
            self.state = State::EndBlock;
            return Ok(());
        }
        let header = Header::new(&block).map_err(|problem| self.no_tar(&block, problem))?;
        let size = header.size();
        match header.kind() {
            b'x' => self.begin_meta(Meta::Pax, size?),
            b'L' => self.begin_meta(Meta::LongName, size?),
            b'K' => self.begin_meta(Meta::LongLink, size?),
            // A global header or a volume label says nothing about a file.
            b'g' | b'V' => self.skip_body(size?, 0),
            _ => self.take_entry(&header),
        }
    }

    /// A wrong checksum in the first block means that this is something else.
    fn no_tar(&self, block: &[u8], problem: Problem) -> Problem {
        if self.offset > BLOCK as u64 {
            return problem;
        }
        compression(block).map_or(Problem::NotTar, Problem::Compressed)
    }

    fn begin_meta(&mut self, meta: Meta, size: u64) -> Result<(), Problem> {
        if size > self.limits.header.into() {
            return Err(Problem::Limit {
                what: "bytes of a PAX header or long name",
                limit: self.limits.header.into(),
            });
        }
        self.meta.clear();
        self.state = State::Meta(meta, size);
        if size == 0 {
            self.take_meta(meta)
        } else {
            Ok(())
        }
    }

    fn take_meta(&mut self, meta: Meta) -> Result<(), Problem> {
        let size = self.meta.len() as u64;
        match meta {
            Meta::Pax => self.pax = Some(Pax::parse(&self.meta)?),
            Meta::LongName => self.long_name = Some(until_nul(&self.meta)),
            Meta::LongLink => self.long_link = Some(until_nul(&self.meta)),
        }
        self.skip_body(size, size)
    }

    /// Goes on behind a body of `size` bytes, `taken` of which have been read.
    fn skip_body(&mut self, size: u64, taken: u64) -> Result<(), Problem> {
        let padded = size
            .checked_next_multiple_of(BLOCK as u64)
            .filter(|padded| self.offset.checked_add(*padded).is_some());
        let left = padded.ok_or(Problem::Field("size"))? - taken;
        self.state = if left == 0 {
            State::Header
        } else {
            State::Skip(left)
        };
        Ok(())
    }

    fn take_entry(&mut self, header: &Header<'_>) -> Result<(), Problem> {
        let mut pax = self.pax.take().unwrap_or_default();
        let (long_name, long_link) = (self.long_name.take(), self.long_link.take());
        let path = long_name
            .or_else(|| pax.sparse.name.take())
            .or_else(|| pax.path.take())
            .unwrap_or_else(|| header.path());
        self.entry = path;
        let link = long_link
            .or_else(|| pax.link.take())
            .unwrap_or_else(|| header.link_name().to_vec());
        let size = match pax.size {
            Some(size) => size,
            None => header.size()?,
        };
        let old_directory = header.kind() == 0 && self.entry.last() == Some(&b'/');
        let what = match header.kind() {
            0 if old_directory => What::Directory,
            0 | b'0' | b'7' | b'S' => What::File(size, self.offset),
            b'1' => What::HardLink(link),
            b'2' => What::Symlink(checked_target(link)?),
            b'3' => device(Kind::CharDevice, header)?,
            b'4' => device(Kind::BlockDevice, header)?,
            b'5' | b'D' => What::Directory,
            b'6' => What::Fifo,
            other => return Err(Problem::Type(other)),
        };
        let own = |value: i64, field| {
            let id = u32::try_from(value).ok().filter(|&id| id != u32::MAX);
            id.ok_or(Problem::Field(field))
        };
        let item = Item {
            mode: header.mode()?,
            uid: own(pax.uid.map_or_else(|| header.uid(), Ok)?, "uid")?,
            gid: own(pax.gid.map_or_else(|| header.gid(), Ok)?, "gid")?,
            mtime: match pax.mtime {
                Some(time) => time,
                None => Time {
                    sec: header.mtime()?,
                    nsec: 0,
                },
            },
            xattrs: std::mem::take(&mut pax.xattrs),
            what,
        };
        match item.what {
            What::File(..) => self.take_file(header, &pax, item, size),
            // GNU tar's list of what is in the directory.
            What::Directory if header.kind() == b'D' => {
                self.add(item)?;
                self.skip_body(size, 0)
            }
            _ => self.add(item),
        }
    }

    fn add(&mut self, item: Item) -> Result<(), Problem> {
        self.builder.insert(&self.entry, item, self.began)
    }

    fn take_file(
        &mut self,
        header: &Header<'_>,
        pax: &Pax,
        item: Item,
        size: u64,
    ) -> Result<(), Problem> {
        let said = &pax.sparse;
        let limit = self.limits.extents;
        let version = (said.major.unwrap_or(0), said.minor.unwrap_or(0));
        let new = said.map.is_some() || said.major.is_some();
        if header.kind() == b'S' {
            let (regions, more) = header.sparse_map();
            let mut sparse = Sparse::new(header.real_size()?, limit);
            sparse.take_regions(regions)?;
            let mapped = Box::new(Mapped {
                sparse,
                item,
                left: size,
                text: false,
            });
            return self.go_on_with_map(mapped, more);
        }
        if !new {
            self.add(item)?;
            return self.skip_body(size, 0);
        }
        let real = said.real_size.ok_or(Problem::Sparse("no real size"))?;
        let mut sparse = Sparse::new(real, limit);
        let text = match (version, &said.map) {
            ((1, 0), _) => true,
            ((0, 0 | 1), Some(map)) => {
                sparse.take_numbers(map)?;
                false
            }
            _ => return Err(Problem::Sparse("a map of an unknown version")),
        };
        let mapped = Box::new(Mapped {
            sparse,
            item,
            left: size,
            text,
        });
        self.go_on_with_map(mapped, text)
    }

    fn take_map(&mut self, mut mapped: Box<Mapped>) -> Result<(), Problem> {
        let more = if mapped.text {
            let left = mapped.left.checked_sub(BLOCK as u64);
            mapped.left = left.ok_or(Problem::Sparse("the map is longer than the file"))?;
            mapped.sparse.take_text(&self.block)?
        } else {
            mapped.sparse.take_extension(&self.block)?
        };
        self.go_on_with_map(mapped, more)
    }

    fn go_on_with_map(&mut self, mapped: Box<Mapped>, more: bool) -> Result<(), Problem> {
        if more {
            self.state = State::Map(mapped);
            return Ok(());
        }
        let Mapped {
            sparse,
            mut item,
            left,
            ..
        } = *mapped;
        let size = sparse.size;
        item.what = What::Sparse(size, sparse.extents(self.offset, left)?);
        self.add(item)?;
        self.skip_body(left, 0)
    }
}

impl Write for Indexer {
    /// Takes all of `bytes`. After an error every further call fails with the same; [`Indexer::finish`] returns it
    /// with its type.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut rest = bytes;
        while !rest.is_empty() && self.failed.is_none() {
            match self.step(rest) {
                Ok(taken) => rest = &rest[taken..],
                Err(problem) => {
                    self.failed = Some(IndexError {
                        problem,
                        entry: std::mem::take(&mut self.entry),
                        offset: self.began,
                    });
                }
            }
        }
        match &self.failed {
            Some(error) => Err(io::Error::new(io::ErrorKind::InvalidData, error.clone())),
            None => Ok(bytes.len()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn until_nul(bytes: &[u8]) -> Vec<u8> {
    let end = bytes.iter().position(|&byte| byte == 0);
    bytes[..end.unwrap_or(bytes.len())].to_vec()
}

fn checked_target(target: Vec<u8>) -> Result<Vec<u8>, Problem> {
    match target.len() {
        0 => Err(Problem::Name("a symlink without a target")),
        length if length > TARGET_MAX => Err(Problem::Name(
            "the symlink's target is longer than 4095 bytes",
        )),
        _ => Ok(target),
    }
}

fn device(kind: Kind, header: &Header<'_>) -> Result<What, Problem> {
    let (major, minor) = header.device()?;
    Ok(What::Device(kind, encode_dev(major, minor)))
}

/// What compressed the bytes, by how they begin.
fn compression(start: &[u8]) -> Option<&'static str> {
    [
        (&b"\x1f\x8b"[..], "gzip"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"BZh", "bzip2"),
        (b"\xfd7zXZ\0", "xz"),
    ]
    .into_iter()
    .find_map(|(magic, name)| start.starts_with(magic).then_some(name))
}

/// The index of the tar in `file`, read from its beginning; the content of files is not read.
pub fn build_index(file: &File) -> Result<Index, IndexError> {
    let failed = |error: &io::Error| IndexError::general(Problem::Io(error.to_string()));
    let length = file.metadata().map_err(|error| failed(&error))?.len();
    let mut indexer = Indexer::new(Limits::default());
    let mut buffer = vec![0; 64 * 1024];
    while indexer.offset < length {
        let skippable = indexer.skippable().min(length - indexer.offset);
        // What is near comes with the next read anyway.
        if skippable >= buffer.len() as u64 {
            indexer.skip(skippable);
            continue;
        }
        let count = file
            .read_at(&mut buffer, indexer.offset)
            .map_err(|error| failed(&error))?;
        if count == 0 || indexer.write(&buffer[..count]).is_err() {
            break;
        }
    }
    indexer.finish()
}
