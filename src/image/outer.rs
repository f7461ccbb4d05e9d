//! The tar around an image: which files it has, and where.
//!
//! Only headers are read. What is refused are headers that could be read in two ways; everything else that is odd is
//! merely not found by those who look for it. Format: POSIX ustar and pax, GNU long names.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use tar::{EntryType, Header};

use super::digest::plain;
use super::error::{ImageError, Result, why};

/// A file of the tar.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Entry {
    /// Content at an offset of the tar.
    File { offset: u64, size: u64 },
    /// The path of another entry.
    Link(Vec<u8>),
    /// Has no content.
    Other,
}

const BLOCK: u64 = 512;
/// Longest extended header: Go's limit.
const EXTENDED_MAX: u64 = 1 << 20;
/// An image has a few files per layer.
const ENTRIES_MAX: usize = 1_000_000;

/// What extended headers say of the entry that follows.
#[derive(Default)]
struct Extended {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
}

/// Finds all files of the tar.
pub(super) fn scan(file: &File) -> Result<HashMap<Vec<u8>, Entry>> {
    let length = file.metadata().map_err(|error| unreadable(&error))?.len();
    let mut entries = HashMap::new();
    let mut extended = Extended::default();
    let mut at = 0;
    while let Some(header) = header_at(file, at, length)? {
        let kind = header.entry_type();
        let size = match extended.size {
            Some(size) if !is_extended(kind) => size,
            _ => header
                .entry_size()
                .map_err(|_| malformed(at, "its size is malformed"))?,
        };
        // Links and directories have no content, whatever their size says.
        let size = if has_content(kind) { size } else { 0 };
        let begin = at + BLOCK;
        let end = begin.checked_add(size).filter(|&end| end <= length);
        let end = end.ok_or_else(|| malformed(at, "it is truncated"))?;
        if is_extended(kind) {
            extend(&mut extended, file, kind, begin, size, at)?;
        } else {
            let said = std::mem::take(&mut extended);
            add(&mut entries, &header, said, begin, size);
            if entries.len() > ENTRIES_MAX {
                return Err(malformed(at, "it has too many entries for an image"));
            }
        }
        at = end.div_ceil(BLOCK) * BLOCK;
    }
    Ok(entries)
}

fn has_content(kind: EntryType) -> bool {
    !matches!(
        kind,
        EntryType::Link
            | EntryType::Symlink
            | EntryType::Char
            | EntryType::Block
            | EntryType::Directory
            | EntryType::Fifo
    )
}

/// A header about the next entry, or about all.
fn is_extended(kind: EntryType) -> bool {
    matches!(
        kind,
        EntryType::XHeader
            | EntryType::XGlobalHeader
            | EntryType::GNULongName
            | EntryType::GNULongLink
    )
}

/// The header at `at`; `None` at the end of the archive.
fn header_at(file: &File, at: u64, length: u64) -> Result<Option<Header>> {
    if at >= length {
        // Tars without end blocks are read by everybody.
        return if at == 0 { Err(no_tar()) } else { Ok(None) };
    }
    let mut header = Header::new_old();
    if at + BLOCK > length {
        return Err(if at == 0 {
            no_tar()
        } else {
            malformed(at, "it is truncated")
        });
    }
    file.read_exact_at(header.as_mut_bytes(), at)
        .map_err(|error| unreadable(&error))?;
    match check(&header) {
        Block::Header => Ok(Some(header)),
        _ if at == 0 => Err(no_tar()),
        Block::Zeros => Ok(None),
        Block::Other => Err(malformed(at, "the header's checksum is wrong")),
    }
}

/// Whether something that begins with `block` may be a tar.
pub(super) fn check_first(block: &[u8]) -> Result<()> {
    let mut header = Header::new_old();
    let whole = header.as_mut_bytes();
    let Some(block) = block.get(..whole.len()) else {
        return Err(no_tar());
    };
    whole.copy_from_slice(block);
    match check(&header) {
        Block::Header => Ok(()),
        Block::Zeros | Block::Other => Err(no_tar()),
    }
}

/// What a block is that should be a header.
enum Block {
    Header,
    Zeros,
    Other,
}

fn check(header: &Header) -> Block {
    if header.as_bytes().iter().all(|&byte| byte == 0) {
        return Block::Zeros;
    }
    let sum = |from: &dyn Fn(u8) -> i64| -> i64 {
        let bytes = header.as_bytes().iter().enumerate();
        let value = |(index, &byte)| {
            if (148..156).contains(&index) {
                from(b' ')
            } else {
                from(byte)
            }
        };
        bytes.map(value).sum()
    };
    // Some old programs added up signed bytes.
    let sums = [sum(&i64::from), sum(&|byte| i64::from(byte.cast_signed()))];
    match header.cksum() {
        Ok(said) if sums.contains(&i64::from(said)) => Block::Header,
        _ => Block::Other,
    }
}

fn extend(
    extended: &mut Extended,
    file: &File,
    kind: EntryType,
    begin: u64,
    size: u64,
    at: u64,
) -> Result<()> {
    if size > EXTENDED_MAX {
        return Err(malformed(at, "an extended header is longer than 1 MiB"));
    }
    let mut body = vec![0; usize::try_from(size).unwrap_or_default()];
    file.read_exact_at(&mut body, begin)
        .map_err(|error| unreadable(&error))?;
    let name = |body: &[u8]| body.split(|&byte| byte == 0).next().map(<[u8]>::to_vec);
    match kind {
        EntryType::GNULongName => extended.path = name(&body),
        EntryType::GNULongLink => extended.link = name(&body),
        EntryType::XHeader => {
            for (key, value) in
                records(&body).ok_or_else(|| malformed(at, "its pax header is malformed"))?
            {
                match key {
                    b"path" => extended.path = Some(value.to_vec()),
                    b"linkpath" => extended.link = Some(value.to_vec()),
                    b"size" => {
                        let size = std::str::from_utf8(value)
                            .ok()
                            .and_then(|size| size.parse().ok());
                        extended.size =
                            Some(size.ok_or_else(|| malformed(at, "its size is malformed"))?);
                    }
                    _ => {}
                }
            }
        }
        // Global headers have nothing that matters here.
        _ => {}
    }
    Ok(())
}

/// The records `LENGTH KEY=VALUE\n` of a pax header.
fn records(mut body: &[u8]) -> Option<Vec<(&[u8], &[u8])>> {
    let mut records = Vec::new();
    while !body.is_empty() {
        let blank = body.iter().position(|&byte| byte == b' ')?;
        let length: usize = std::str::from_utf8(&body[..blank]).ok()?.parse().ok()?;
        let record = body.get(blank + 1..length)?.strip_suffix(b"\n")?;
        let equals = record.iter().position(|&byte| byte == b'=')?;
        records.push((&record[..equals], &record[equals + 1..]));
        body = &body[length..];
    }
    Some(records)
}

fn add(
    entries: &mut HashMap<Vec<u8>, Entry>,
    header: &Header,
    said: Extended,
    offset: u64,
    size: u64,
) {
    let path = said
        .path
        .unwrap_or_else(|| header.path_bytes().into_owned());
    // Nobody asks for a name that leads out.
    let Some(path) = clean(&path) else { return };
    let kind = header.entry_type();
    let target = said
        .link
        .or_else(|| header.link_name_bytes().map(|name| name.into_owned()));
    let entry = match kind {
        EntryType::Symlink => {
            let parent = path
                .rsplitn(2, |&byte| byte == b'/')
                .nth(1)
                .unwrap_or_default();
            let target = target.unwrap_or_default();
            let whole = if target.starts_with(b"/") {
                target
            } else {
                [parent, b"/", &target[..]].concat()
            };
            clean(&whole).map_or(Entry::Other, Entry::Link)
        }
        EntryType::Link => target
            .and_then(|target| clean(&target))
            .map_or(Entry::Other, Entry::Link),
        kind if kind.is_file() || kind == EntryType::Continuous => Entry::File { offset, size },
        _ => Entry::Other,
    };
    entries.insert(path, entry);
}

/// `path` without `.`, `..`, and doubled or leading slashes; `None` if it leads out.
pub(super) fn clean(path: &[u8]) -> Option<Vec<u8>> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join(&b'/'))
}

fn no_tar() -> ImageError {
    ImageError::malformed("it is not a tar archive")
}

fn malformed(at: u64, what: &str) -> ImageError {
    ImageError::malformed(format!("the tar is damaged at byte {at}: {}", plain(what)))
}

fn unreadable(error: &io::Error) -> ImageError {
    ImageError::malformed(format!("cannot read the archive: {}", why(error)))
}
