//! PAX extended headers: records of `LENGTH KEY=VALUE\n`. Values may hold any byte, so records are told apart by their
//! length alone. Of several records of one key the last counts.

use super::error::Problem;
use crate::layer::attr::Time;
use crate::layer::mark;

/// Longest name and value of an xattr Linux knows, and longest list of names.
const XATTR_NAME: usize = 255;
const XATTR_MAX: usize = 65536;

/// What an extended header says about the entry behind it.
#[derive(Debug, Default)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<i64>,
    pub(super) gid: Option<i64>,
    pub(super) mtime: Option<Time>,
    /// By their names on disk, sorted.
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: PaxSparse,
}

/// What says that the entry is a sparse file.
#[derive(Debug, Default)]
pub(super) struct PaxSparse {
    pub(super) major: Option<u64>,
    pub(super) minor: Option<u64>,
    pub(super) name: Option<Vec<u8>>,
    pub(super) real_size: Option<u64>,
    /// Offsets and lengths, in turn (versions 0.0 and 0.1).
    pub(super) map: Option<Vec<u64>>,
}

impl Pax {
    /// Parses the body of an `x` header.
    pub(super) fn parse(mut body: &[u8]) -> Result<Self, Problem> {
        let mut pax = Self::default();
        while !body.is_empty() {
            let (record, rest) = split_record(body).ok_or(Problem::Pax("bad record length"))?;
            let equals = record.iter().position(|&byte| byte == b'=');
            let equals = equals.filter(|&at| at > 0);
            let at = equals.ok_or(Problem::Pax("record without a key"))?;
            pax.take(&record[..at], &record[at + 1..])?;
            body = rest;
        }
        // Stable, so the last of several is the first from behind.
        pax.xattrs.sort_by(|a, b| a.0.cmp(&b.0));
        pax.xattrs.reverse();
        pax.xattrs.dedup_by(|a, b| a.0 == b.0);
        pax.xattrs.reverse();
        let names: usize = pax.xattrs.iter().map(|(name, _)| name.len() + 1).sum();
        if names > XATTR_MAX {
            return Err(Problem::Pax("more xattrs than a file can have"));
        }
        Ok(pax)
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), Problem> {
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            return self.add_xattr(name, value);
        }
        if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
            let name = percent_decoded(name).ok_or(Problem::Pax("malformed LIBARCHIVE.xattr"))?;
            let value = base64_decoded(value).ok_or(Problem::Pax("malformed LIBARCHIVE.xattr"))?;
            return self.add_xattr(&name, &value);
        }
        let number = |what| decimal(value).ok_or(Problem::Pax(what));
        match key {
            // Nothing behind the sign takes back what was said before.
            b"path" => self.path = filled(value)?,
            b"linkpath" => self.link = filled(value)?,
            b"size" if value.is_empty() => self.size = None,
            b"size" => self.size = Some(number("malformed size")?),
            b"uid" => self.uid = id(value, "malformed uid")?,
            b"gid" => self.gid = id(value, "malformed gid")?,
            b"mtime" if value.is_empty() => self.mtime = None,
            b"mtime" => self.mtime = Some(time(value).ok_or(Problem::Pax("malformed mtime"))?),
            b"GNU.sparse.major" => self.sparse.major = Some(number("malformed sparse version")?),
            b"GNU.sparse.minor" => self.sparse.minor = Some(number("malformed sparse version")?),
            b"GNU.sparse.name" => self.sparse.name = filled(value)?,
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => {
                self.sparse.real_size = Some(number("malformed sparse size")?);
            }
            b"GNU.sparse.map" => {
                let numbers = value
                    .split(|&byte| byte == b',')
                    .filter(|part| !part.is_empty());
                let map = numbers.map(decimal).collect::<Option<_>>();
                self.sparse.map = Some(map.ok_or(Problem::Pax("malformed sparse map"))?);
            }
            b"GNU.sparse.offset" => self.sparse_number(value, 0)?,
            b"GNU.sparse.numbytes" => self.sparse_number(value, 1)?,
            _ => {}
        }
        Ok(())
    }

    /// Version 0.0: offset and length come in records of their own, in turn.
    fn sparse_number(&mut self, value: &[u8], place: usize) -> Result<(), Problem> {
        let number = decimal(value).ok_or(Problem::Pax("malformed sparse map"))?;
        let map = self.sparse.map.get_or_insert_default();
        if map.len() % 2 != place {
            return Err(Problem::Pax("sparse offsets and lengths out of turn"));
        }
        map.push(number);
        Ok(())
    }

    fn add_xattr(&mut self, name: &[u8], value: &[u8]) -> Result<(), Problem> {
        if name.is_empty() || name.len() > XATTR_NAME || name.contains(&0) {
            return Err(Problem::Pax("xattr with an impossible name"));
        }
        if value.len() > XATTR_MAX {
            return Err(Problem::Pax("xattr longer than Linux knows"));
        }
        // What has no name on disk is what a union wrote for itself.
        let Ok(name) = mark::xattr_on_disk(name) else {
            return Ok(());
        };
        self.xattrs.push((name.into_owned(), value.to_vec()));
        Ok(())
    }
}

/// The first record without its length and newline, and what is behind it.
fn split_record(body: &[u8]) -> Option<(&[u8], &[u8])> {
    let blank = body.iter().take(20).position(|&byte| byte == b' ')?;
    let length = usize::try_from(decimal(&body[..blank])?).ok()?;
    let (record, rest) = body.split_at_checked(length)?;
    let record = record.get(blank + 1..)?.strip_suffix(b"\n")?;
    Some((record, rest))
}

/// A path or link target; `None` if empty.
fn filled(value: &[u8]) -> Result<Option<Vec<u8>>, Problem> {
    if value.contains(&0) {
        return Err(Problem::Pax("NUL in a name"));
    }
    Ok((!value.is_empty()).then(|| value.to_vec()))
}

fn id(value: &[u8], what: &'static str) -> Result<Option<i64>, Problem> {
    let (digits, sign) = match value.strip_prefix(b"-") {
        Some(digits) => (digits, -1),
        None => (value, 1),
    };
    if value.is_empty() {
        return Ok(None);
    }
    let number = decimal(digits).ok_or(Problem::Pax(what))?;
    Ok(Some(sign * number.cast_signed()))
}

/// Decimal digits, below 2^63.
pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(digits).ok()?;
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse()
        .ok()
        .filter(|&value| i64::try_from(value).is_ok())
}

/// Decimal seconds, perhaps negative, perhaps with a fraction; beyond nanoseconds it is cut off.
fn time(value: &[u8]) -> Option<Time> {
    let (negative, digits) = match value.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, value),
    };
    let mut parts = digits.splitn(2, |&byte| byte == b'.');
    let whole = decimal(parts.next()?)?.cast_signed();
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let nsec = (0..9).fold(0, |sum, place| {
        sum * 10 + u32::from(fraction.get(place).map_or(0, |digit| digit - b'0'))
    });
    let (sec, nsec) = match (negative, nsec) {
        (false, nsec) => (whole, nsec),
        (true, 0) => (-whole, 0),
        (true, nsec) => (-whole - 1, 1_000_000_000 - nsec),
    };
    Some(Time { sec, nsec })
}

fn percent_decoded(text: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, behind)) = rest.split_first() {
        rest = behind;
        if byte == b'%' {
            let digit = |at: usize| char::from(*behind.get(at)?).to_digit(16);
            decoded.push(u8::try_from(digit(0)? * 16 + digit(1)?).ok()?);
            rest = &behind[2..];
        } else {
            decoded.push(byte);
        }
    }
    Some(decoded)
}

/// RFC 4648, padded or not.
fn base64_decoded(text: &[u8]) -> Option<Vec<u8>> {
    let text = text
        .strip_suffix(b"==")
        .or_else(|| text.strip_suffix(b"="))
        .unwrap_or(text);
    let mut decoded = Vec::with_capacity(text.len() / 4 * 3 + 2);
    for group in text.chunks(4) {
        let mut bits = 0_u32;
        for &byte in group {
            let value = match byte {
                b'A'..=b'Z' => byte - b'A',
                b'a'..=b'z' => byte - b'a' + 26,
                b'0'..=b'9' => byte - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            bits = (bits << 6) | u32::from(value);
        }
        let bytes = match group.len() {
            4 => 3,
            3 => 2,
            2 => 1,
            _ => return None,
        };
        bits <<= 6 * (4 - group.len());
        decoded.extend_from_slice(&bits.to_be_bytes()[1..=bytes]);
    }
    Some(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &str, value: &[u8]) -> Vec<u8> {
        crate::layer::archive::testing::pax_record(key, value)
    }

    #[test]
    fn records_are_told_apart_by_length_so_values_may_hold_anything() {
        let mut body = record("SCHILY.xattr.user.x", b"a\n20 size=7\nb=\0");
        body.extend(record("size", b"5"));
        let pax = Pax::parse(&body).unwrap();
        assert_eq!(pax.size, Some(5));
        assert_eq!(
            pax.xattrs,
            [(b"user.x".to_vec(), b"a\n20 size=7\nb=\0".to_vec())]
        );
    }

    #[test]
    fn of_two_records_of_one_key_the_last_counts_and_an_empty_one_takes_it_back() {
        let body = [record("size", b"5"), record("size", b"7")].concat();
        assert_eq!(Pax::parse(&body).unwrap().size, Some(7));
        let body = [record("path", b"a"), record("path", b"")].concat();
        assert_eq!(Pax::parse(&body).unwrap().path, None);
    }

    #[test]
    fn malformed_records_are_refused() {
        for body in [
            &b"5 a=b"[..],
            b"99 path=x\n",
            b"-1 path=x\n",
            b"99999999999999999999999 path=x\n",
            b"0 path=x\n",
            b"2 path=x\n",
            b"path=x\n",
            b"6 pathx\n",
            b"5 =x\n",
            b"16 mtime=1e3\n1\n",
            b"13 mtime=NaN\n",
            b"11 size=-1\n",
            b"28 size=99999999999999999999\n",
            b"11 path=a\0\n",
            b"25 GNU.sparse.numbytes=1\n",
        ] {
            assert!(
                Pax::parse(body).is_err(),
                "{:?}",
                body.escape_ascii().to_string()
            );
        }
    }

    #[test]
    fn times_have_signs_and_fractions() {
        for (text, sec, nsec) in [
            ("0", 0, 0),
            ("8589934592.5", 8_589_934_592, 500_000_000),
            ("1.0000000019", 1, 1),
            ("-1", -1, 0),
            ("-1.5", -2, 500_000_000),
            ("-0.25", -1, 750_000_000),
        ] {
            assert_eq!(time(text.as_bytes()), Some(Time { sec, nsec }), "{text}");
        }
        for bad in ["", "-", "x", "1.x", "--1", "1.-2"] {
            assert_eq!(time(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn xattrs_of_libarchive_are_decoded_and_marks_of_a_union_escaped() {
        let body = [
            record("LIBARCHIVE.xattr.user.a%3Db", b"AAEC/w"),
            record("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            record("SCHILY.xattr.user.fuseoverlayfs.opaque", b"y"),
        ]
        .concat();
        let escaped = mark::xattr_on_disk(b"trusted.overlay.opaque").unwrap();
        assert_eq!(
            Pax::parse(&body).unwrap().xattrs,
            [
                (escaped.into_owned(), b"y".to_vec()),
                (b"user.a=b".to_vec(), vec![0, 1, 2, 255]),
            ]
        );
    }
}
