//! One 512-byte header block of a tar. Formats: POSIX.1-2001 ustar, GNU tar's `tar.h`, star; leniencies are those of
//! Go's archive/tar, which docker, containerd and podman read layers with.

use super::error::Problem;

pub(super) const BLOCK: usize = 512;

/// A header with a valid checksum.
#[derive(Debug)]
pub(super) struct Header<'a> {
    block: &'a [u8; BLOCK],
    format: Format,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Format {
    V7,
    Ustar,
    Star,
    Gnu,
}

impl<'a> Header<'a> {
    pub(super) fn new(block: &'a [u8; BLOCK]) -> Result<Self, Problem> {
        if !has_checksum(block) {
            return Err(Problem::Checksum);
        }
        let format = match (&block[257..263], &block[263..265]) {
            (b"ustar ", b" \0") => Format::Gnu,
            (b"ustar\0", b"00") if &block[508..] == b"tar\0" => Format::Star,
            (b"ustar\0", _) => Format::Ustar,
            _ => Format::V7,
        };
        Ok(Self { block, format })
    }

    pub(super) fn kind(&self) -> u8 {
        self.block[156]
    }

    /// The name with the prefix that ustar splits off.
    pub(super) fn path(&self) -> Vec<u8> {
        let name = text(&self.block[..100]);
        let prefix = match self.format {
            Format::V7 => &[],
            Format::Ustar => text(&self.block[345..500]),
            Format::Star => text(&self.block[345..476]),
            Format::Gnu => self.misplaced_prefix(),
        };
        if prefix.is_empty() {
            name.to_vec()
        } else {
            [prefix, b"/", name].concat()
        }
    }

    /// Go before 1.8, and so docker before 1.13, wrote a prefix where GNU tar has two times.
    fn misplaced_prefix(&self) -> &[u8] {
        let valid = |field: &[u8]| field[0] == 0 || number(field).is_some();
        if valid(&self.block[345..357]) && valid(&self.block[357..369]) {
            return &[];
        }
        let prefix = text(&self.block[345..500]);
        if prefix.is_ascii() { prefix } else { &[] }
    }

    pub(super) fn link_name(&self) -> &[u8] {
        text(&self.block[157..257])
    }

    pub(super) fn mode(&self) -> Result<u16, Problem> {
        let mode = number(&self.block[100..108]).ok_or(Problem::Field("mode"))?;
        // Some writers put the file type there too.
        Ok(u16::try_from(mode & 0o7777).unwrap_or(0))
    }

    pub(super) fn uid(&self) -> Result<i64, Problem> {
        number(&self.block[108..116]).ok_or(Problem::Field("uid"))
    }

    pub(super) fn gid(&self) -> Result<i64, Problem> {
        number(&self.block[116..124]).ok_or(Problem::Field("gid"))
    }

    pub(super) fn size(&self) -> Result<u64, Problem> {
        size(&self.block[124..136]).ok_or(Problem::Field("size"))
    }

    pub(super) fn mtime(&self) -> Result<i64, Problem> {
        number(&self.block[136..148]).ok_or(Problem::Field("mtime"))
    }

    /// Major and minor number of a device.
    pub(super) fn device(&self) -> Result<(u32, u32), Problem> {
        let part = |field: &[u8], limit: u32| {
            let value = u32::try_from(number(field)?).ok()?;
            (value < limit).then_some(value)
        };
        let major = part(&self.block[329..337], 1 << 12);
        let minor = part(&self.block[337..345], 1 << 20);
        major.zip(minor).ok_or(Problem::Field("device number"))
    }

    /// The part of an old GNU sparse map that is in the header, and whether it goes on behind it.
    pub(super) fn sparse_map(&self) -> (&[u8], bool) {
        (&self.block[386..482], self.block[482] != 0)
    }

    /// Length of an old GNU sparse file with its holes.
    pub(super) fn real_size(&self) -> Result<u64, Problem> {
        size(&self.block[483..495]).ok_or(Problem::Field("real size"))
    }
}

/// Up to the first NUL.
fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|&byte| byte == 0);
    &field[..end.unwrap_or(field.len())]
}

/// A number that is not negative.
pub(super) fn size(field: &[u8]) -> Option<u64> {
    u64::try_from(number(field)?).ok()
}

/// A number: octal between blanks or NULs (nothing at all is 0), or two's complement with the top bit set.
fn number(field: &[u8]) -> Option<i64> {
    let (&first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        // Seven bits and the sign of the first byte.
        let start = i128::from((first << 1).cast_signed() >> 1);
        let value = rest.iter().try_fold(start, |value, &byte| {
            let shifted = value.checked_mul(256)?;
            (shifted.unsigned_abs() < 1 << 100).then_some(shifted | i128::from(byte))
        })?;
        return i64::try_from(value).ok();
    }
    let blank = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field.iter().position(|byte| !blank(byte));
    let Some(start) = start else { return Some(0) };
    let digits = text(&field[start..]).trim_ascii_end();
    digits.iter().try_fold(0_i64, |value, &digit| {
        let digit = i64::from(digit.checked_sub(b'0').filter(|&digit| digit < 8)?);
        value.checked_mul(8)?.checked_add(digit)
    })
}

/// The sum of all bytes, the checksum's own taken as blanks. Some old writers summed signed bytes.
fn has_checksum(block: &[u8; BLOCK]) -> bool {
    let field = 148..156;
    let Some(stored) = number(&block[field.clone()]) else {
        return false;
    };
    let bytes = || {
        block
            .iter()
            .enumerate()
            .map(|(at, &byte)| if field.contains(&at) { b' ' } else { byte })
    };
    let unsigned: i64 = bytes().map(i64::from).sum();
    let signed: i64 = bytes().map(|byte| i64::from(byte.cast_signed())).sum();
    stored == unsigned || stored == signed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_twos_complement_and_nothing_else() {
        for (field, value) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"77777777", Some(0o77_777_777)),
            (b"\x80\0\0\0\0\0\x01\0", Some(256)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff", Some(-1)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (
                b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff",
                Some(i64::MAX),
            ),
            (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", None),
            (b"\xbf\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
            (b"00008\0\0\0", None),
            (b"-1\0\0\0\0\0\0", None),
            (b"12 34\0\0\0", None),
        ] {
            assert_eq!(number(field), value, "{field:?}");
        }
    }

    #[test]
    fn both_kinds_of_checksum_are_taken_and_no_other() {
        let mut block = [0; BLOCK];
        block[0] = 0xe9;
        let mut with = |sum: u32| {
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            Header::new(&block).is_ok()
        };
        assert!(with(8 * 32 + 0xe9));
        assert!(with(8 * 32 + 0xe9 - 256));
        assert!(!with(8 * 32 + 0xe9 + 1));
    }
}
