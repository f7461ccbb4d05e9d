//! Changes as the tar archive of an image layer.
//!
//! Format: POSIX.1-2001 (pax) over ustar headers, with the conventions of the OCI image specification, layer.md:
//! names without a leading slash, a directory before what is in it, `.wh.NAME` for a deletion, before its siblings.
//! Extended attributes are pax records `SCHILY.xattr.NAME`. Holes are written as zeros, since the specification
//! advises against sparse entries; sockets cannot be stored.
//!
//! The same changes always give the same bytes: entries come in the order of [`Comparison::walk`], the first name of a
//! hard-linked file carries the data, pax records stand in a fixed order, and nothing of the machine (user names,
//! access times, inode numbers, padding) is written.

use std::collections::HashMap;
use std::io::{self, Write};

use super::compare::xattrs;
use super::{Action, Change, Comparison, WalkError};
use crate::layer::acl;
use crate::layer::attr::{Kind, Time, decode_dev};
use crate::layer::lower::LowerFile;
use crate::layer::mark;
use crate::layer::name::Name;
use crate::layer::view::{Inode, Object, Place, View};

const BLOCK: usize = 512;
/// File data is read in pieces of this size.
const PIECE: usize = 256 * 1024;
/// Largest values of the numeric fields: seven and eleven octal digits.
const MAX_7: u64 = 0o777_7777;
const MAX_11: u64 = 0o777_7777_7777;

/// How a layer is written.
#[derive(Clone, Copy, Debug, Default)]
pub struct LayerOptions {
    /// Times after this one (seconds since 1970) are recorded as this one.
    pub latest: Option<i64>,
}

/// What went into a layer.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct LayerSummary {
    /// Paths that are new.
    pub added: u64,
    /// Paths that changed, with the directories above changes.
    pub changed: u64,
    /// Paths that are gone.
    pub deleted: u64,
    /// Sockets that were left out.
    pub sockets: u64,
}

impl LayerSummary {
    /// Whether the layer says nothing.
    pub fn is_empty(&self) -> bool {
        self.added + self.changed + self.deleted == 0
    }

    fn count(&mut self, action: Action) {
        match action {
            Action::Added => self.added += 1,
            Action::Changed => self.changed += 1,
            Action::Deleted => self.deleted += 1,
        }
    }
}

/// Writes what `comparison` finds to `out` as one layer, whole archive.
pub fn write<W: Write>(
    comparison: &Comparison,
    options: LayerOptions,
    out: W,
) -> Result<(W, LayerSummary), WalkError> {
    let mut writer = Writer {
        out,
        options,
        first_names: HashMap::new(),
        summary: LayerSummary::default(),
        buffer: Vec::new(),
    };
    comparison.walk(|change| writer.add(&comparison.after, change))?;
    let end = writer.out.write_all(&[0; 2 * BLOCK]);
    end.and_then(|()| writer.out.flush())
        .map_err(|error| WalkError {
            path: Vec::new(),
            error,
        })?;
    Ok((writer.out, writer.summary))
}

struct Writer<W> {
    out: W,
    options: LayerOptions,
    /// The first name of every file of several names.
    first_names: HashMap<Inode, Vec<u8>>,
    summary: LayerSummary,
    buffer: Vec<u8>,
}

/// One entry before it is encoded.
struct Entry<'a> {
    path: &'a [u8],
    kind: u8,
    mode: u16,
    uid: u32,
    gid: u32,
    size: u64,
    mtime: Time,
    link: &'a [u8],
    device: (u32, u32),
    /// Pax records of its own.
    records: Vec<(Vec<u8>, Vec<u8>)>,
}

impl<W: Write> Writer<W> {
    fn add(&mut self, view: &View, change: &Change<'_>) -> io::Result<()> {
        match change.after {
            None => self.add_whiteout(change.path)?,
            Some(object) if object.kind() == Kind::Socket => {
                self.summary.sockets += 1;
                if change.before.is_none() {
                    return Ok(());
                }
                // What it replaced is gone all the same.
                self.add_whiteout(change.path)?;
            }
            Some(object) => self.add_object(view, change.path, object)?,
        }
        self.summary.count(change.action);
        Ok(())
    }

    fn add_whiteout(&mut self, path: &[u8]) -> io::Result<()> {
        let (parent, name) = match path.iter().rposition(|&byte| byte == b'/') {
            Some(slash) => (&path[..=slash], &path[slash + 1..]),
            None => (&path[..0], path),
        };
        let mark = mark::aufs_whiteout(Name::from_bytes(name)?)?;
        let path = [parent, mark.get().bytes()].concat();
        self.put(&Entry {
            path: &path,
            kind: b'0',
            mode: 0,
            uid: 0,
            gid: 0,
            size: 0,
            mtime: Time::default(),
            link: b"",
            device: (0, 0),
            records: Vec::new(),
        })
    }

    fn add_object(&mut self, view: &View, path: &[u8], object: &Object) -> io::Result<()> {
        let attr = &object.attr;
        let mut entry = Entry {
            path,
            kind: b'0',
            mode: attr.mode,
            uid: attr.uid,
            gid: attr.gid,
            size: 0,
            mtime: self.time(attr.mtime),
            link: b"",
            device: (0, 0),
            records: records(object)?,
        };
        let file = match &object.place {
            Place::Directory(_) => {
                let path = [path, b"/"].concat();
                (entry.path, entry.kind) = (&path, b'5');
                return self.put(&entry);
            }
            Place::File(file) => file,
        };
        if let Some(first) = self.first_name(path, object) {
            (entry.link, entry.kind) = (&first, b'1');
            return self.put(&entry);
        }
        match attr.kind {
            Kind::Symlink => {
                let target = file.link_target()?;
                (entry.link, entry.kind, entry.mode) = (&target, b'2', 0o777);
                self.put(&entry)
            }
            Kind::CharDevice | Kind::BlockDevice => {
                let char = attr.kind == Kind::CharDevice;
                entry.kind = if char { b'3' } else { b'4' };
                entry.device = decode_dev(attr.rdev);
                self.put(&entry)
            }
            Kind::Fifo => {
                entry.kind = b'6';
                self.put(&entry)
            }
            _ => {
                entry.size = attr.size;
                self.put(&entry)?;
                self.put_data(&view.data(object)?, attr.size)
            }
        }
    }

    /// The name under which the file was written before; remembers this one otherwise.
    fn first_name(&mut self, path: &[u8], object: &Object) -> Option<Vec<u8>> {
        // What only the index has is one link there, and one for each name that leads to it.
        if object.attr.nlink < 2 && !object.is_indexed() {
            return None;
        }
        let inode = object.inode();
        if let Some(first) = self.first_names.get(&inode) {
            return Some(first.clone());
        }
        self.first_names.insert(inode, path.to_vec());
        None
    }

    fn time(&self, time: Time) -> Time {
        let latest = self.options.latest.map(|sec| Time { sec, nsec: 0 });
        latest.map_or(time, |latest| time.min(latest))
    }

    fn put(&mut self, entry: &Entry<'_>) -> io::Result<()> {
        let mut records = Vec::new();
        let mut want = |key: &str, value: Vec<u8>| records.push((key.as_bytes().to_vec(), value));
        let plain = |field: &[u8]| field.len() <= 100 && field.is_ascii();
        if !plain(entry.link) {
            want("linkpath", entry.link.to_vec());
        }
        if !plain(entry.path) {
            want("path", entry.path.to_vec());
        }
        if entry.size > MAX_11 {
            want("size", entry.size.to_string().into());
        }
        for (key, id) in [("uid", entry.uid), ("gid", entry.gid)] {
            if u64::from(id) > MAX_7 {
                want(key, id.to_string().into());
            }
        }
        let seconds = u64::try_from(entry.mtime.sec).ok();
        if entry.mtime.nsec != 0 || seconds.is_none_or(|seconds| seconds > MAX_11) {
            want("mtime", decimal(entry.mtime).into());
        }
        records.extend(entry.records.iter().cloned());
        if !records.is_empty() {
            let body: Vec<u8> = records.iter().flat_map(record).collect();
            let header = Entry {
                path: b"PaxHeaders.0/entry",
                kind: b'x',
                mode: 0,
                uid: 0,
                gid: 0,
                size: body.len() as u64,
                mtime: Time::default(),
                link: b"",
                device: (0, 0),
                records: Vec::new(),
            };
            self.out.write_all(&header.ustar())?;
            self.out.write_all(&body)?;
            self.pad(body.len() as u64)?;
        }
        self.out.write_all(&entry.ustar())
    }

    fn put_data(&mut self, file: &LowerFile, size: u64) -> io::Result<()> {
        if size == 0 {
            return Ok(());
        }
        let content = file.content()?;
        self.buffer
            .resize(usize::try_from(size).unwrap_or(PIECE).min(PIECE), 0);
        let mut offset = 0;
        while offset < size {
            let left = usize::try_from(size - offset).unwrap_or(PIECE).min(PIECE);
            let got = content.read_at(&mut self.buffer[..left], offset)?;
            if got == 0 {
                return Err(io::Error::other("became shorter while it was read"));
            }
            self.out.write_all(&self.buffer[..got])?;
            offset += got as u64;
        }
        self.pad(size)
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let over = usize::try_from(size % BLOCK as u64).unwrap_or(0);
        self.out.write_all(&[0; BLOCK][..(BLOCK - over) % BLOCK])
    }
}

/// The pax records for the xattrs of an object, in the order of their names.
fn records(object: &Object) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let xattrs = xattrs(object)?;
    if xattrs
        .iter()
        .any(|(name, value)| acl::names_unknown_ids(name, value))
    {
        return Err(io::Error::other(
            "its ACL names a user or group whom this user namespace does not know",
        ));
    }
    Ok(xattrs
        .into_iter()
        .map(|(name, value)| {
            let value = if name == b"security.capability" {
                plain_capability(value)
            } else {
                value
            };
            ([b"SCHILY.xattr.", &name[..]].concat(), value)
        })
        .collect())
}

/// A file capability without the namespace it was set in: revision 3 of `struct vfs_ns_cap_data` (linux/capability.h)
/// as revision 2, which is the former without its last field, the user id of the namespace's root.
fn plain_capability(value: Vec<u8>) -> Vec<u8> {
    const REVISION_2: u8 = 2;
    const REVISION_3: u8 = 3;
    match value.as_slice() {
        [flags, 0, 0, REVISION_3, rest @ ..] if rest.len() == 20 => {
            [&[*flags, 0, 0, REVISION_2], &rest[..16]].concat()
        }
        _ => value,
    }
}

/// `LENGTH KEY=VALUE\n`, where LENGTH counts itself.
fn record((key, value): &(Vec<u8>, Vec<u8>)) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [format!("{length} ").as_bytes(), key, b"=", value, b"\n"].concat()
}

/// Seconds with as many decimals as needed; pax times count away from zero, ours down.
fn decimal(time: Time) -> String {
    let (sign, sec, nsec) = if time.sec < 0 && time.nsec > 0 {
        ("-", -(time.sec + 1), 1_000_000_000 - time.nsec)
    } else {
        ("", time.sec, time.nsec)
    };
    if nsec == 0 {
        return format!("{sign}{sec}");
    }
    let fraction = format!("{nsec:09}");
    format!("{sign}{sec}.{}", fraction.trim_end_matches('0'))
}

impl Entry<'_> {
    /// The 512-byte header. What does not fit a field stands in a pax record, and the field is cut or zero.
    fn ustar(&self) -> [u8; BLOCK] {
        let mut header = [0; BLOCK];
        let mut text = |at: usize, length: usize, value: &[u8]| {
            let value = &value[..value.len().min(length)];
            header[at..at + value.len()].copy_from_slice(value);
        };
        text(0, 100, self.path);
        text(156, 1, &[self.kind]);
        text(157, 100, self.link);
        text(257, 8, b"ustar\x0000");
        let mut octal = |at: usize, digits: usize, value: u64, max: u64| {
            let value = if value > max { 0 } else { value };
            text(at, digits, format!("{value:0digits$o}").as_bytes());
        };
        octal(100, 7, self.mode.into(), MAX_7);
        octal(108, 7, self.uid.into(), MAX_7);
        octal(116, 7, self.gid.into(), MAX_7);
        octal(124, 11, self.size, MAX_11);
        octal(136, 11, u64::try_from(self.mtime.sec).unwrap_or(0), MAX_11);
        octal(329, 7, self.device.0.into(), MAX_7);
        octal(337, 7, self.device.1.into(), MAX_7);
        let sum: u64 =
            header.iter().map(|&byte| u64::from(byte)).sum::<u64>() + 8 * u64::from(b' ');
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        header
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_its_own_length() {
        let of = |length| record(&(b"k".to_vec(), vec![b'v'; length]));
        assert_eq!(of(1), b"6 k=v\n");
        // "99 k=" is 5 bytes and the newline one: from 94 on the length has three digits.
        for length in [1, 3, 4, 5, 92, 93, 94, 95, 990, 991, 992] {
            let record = of(length);
            let digits = record.split(|&byte| byte == b' ').next().unwrap();
            let digits = std::str::from_utf8(digits).unwrap();
            assert_eq!(digits.parse::<usize>().unwrap(), record.len());
        }
    }

    #[test]
    fn times_are_decimal_fractions_on_both_sides_of_1970() {
        let time = |sec, nsec| decimal(Time { sec, nsec });
        assert_eq!(time(7, 0), "7");
        assert_eq!(time(7, 120_000_000), "7.12");
        assert_eq!(time(-1, 500_000_000), "-0.5");
        assert_eq!(time(-2, 750_000_000), "-1.25");
        assert_eq!(time(-3, 0), "-3");
    }

    #[test]
    fn a_capability_loses_its_namespace_and_nothing_else() {
        let mut namespaced = vec![1, 0, 0, 3];
        namespaced.extend(1..=16);
        namespaced.extend(1000_u32.to_le_bytes());
        let mut plain = vec![1, 0, 0, 2];
        plain.extend(1..=16);
        assert_eq!(plain_capability(namespaced), plain);
        assert_eq!(plain_capability(plain.clone()), plain);
    }
}
