//! Compressed layers and archives, recognised by their first bytes: media types and file names are not to be trusted.

use std::io::{self, BufReader, Read};

use bzip2::read::MultiBzDecoder;
use flate2::bufread::MultiGzDecoder;
use lzma_rust2::XzReader;

/// How bytes are compressed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Compression {
    /// Not at all.
    None,
    /// One or more members.
    Gzip,
    /// One or more frames.
    Zstd,
    /// Old archives.
    Bzip2,
    /// Old archives.
    Xz,
}

/// Bytes needed to tell.
pub(super) const MAGIC: usize = 6;
const BUFFER: usize = 256 << 10;

impl Compression {
    /// What bytes that begin with `head` are compressed with.
    pub fn of(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [b'B', b'Z', b'h', ..] => Self::Bzip2,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            _ => Self::None,
        }
    }

    /// What `source` unpacks to.
    pub(super) fn decoder<'a>(self, source: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
        let source = BufReader::with_capacity(BUFFER, source);
        Ok(match self {
            Self::None => Box::new(source),
            Self::Gzip => Box::new(MultiGzDecoder::new(source)),
            // Reads one frame after the other; windows above 128 MiB are refused.
            Self::Zstd => Box::new(zstd::Decoder::with_buffer(source)?),
            Self::Bzip2 => Box::new(MultiBzDecoder::new(source)),
            Self::Xz => Box::new(XzReader::new(source, true)),
        })
    }
}

/// Looks at the beginning of `source` and returns what it unpacks to.
pub(super) fn open<'a>(mut source: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut head = Vec::with_capacity(MAGIC);
    source.by_ref().take(MAGIC as u64).read_to_end(&mut head)?;
    let compression = Compression::of(&head);
    compression.decoder(io::Cursor::new(head).chain(source))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::write::GzEncoder;

    use super::*;

    fn unpacked(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut unpacked = Vec::new();
        open(bytes)?.read_to_end(&mut unpacked)?;
        Ok(unpacked)
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn every_kind_is_recognised_and_all_members_are_read() {
        let two = |part: &[u8]| [part, part].concat();
        let zstd = zstd::encode_all(&b"hello"[..], 3).unwrap();
        // `printf hello | bzip2` and `printf hello | xz --check=crc32`
        let bzip2 = b"BZh91AY&SY\x19\x31\x65\x3d\x00\x00\x00\x81\x00\x02\x44\xa0\x00\x21\x9a\x68\
            \x33\x4d\x07\x33\x8b\xb9\x22\x9c\x28\x48\x0c\x98\xb2\x9e\x80";
        let xz = b"\xfd7zXZ\x00\x00\x01\x69\x22\xde\x36\x02\x00\x21\x01\x16\x00\x00\x00\x74\x2f\xe5\xa3\x01\x00\
            \x04hello\x00\x00\x00\x00\x86\xa6\x10\x36\x00\x01\x19\x05\xbc\xe8\xec\xcb\x90\x42\x99\x0d\x01\x00\
            \x00\x00\x00\x01\x59\x5a";
        for (compression, compressed) in [
            (Compression::None, b"hello".to_vec()),
            (Compression::Gzip, gzip(b"hello")),
            (Compression::Zstd, zstd),
            (Compression::Bzip2, bzip2.to_vec()),
            (Compression::Xz, xz.to_vec()),
        ] {
            assert_eq!(Compression::of(&compressed), compression);
            assert_eq!(
                unpacked(&two(&compressed)).unwrap(),
                two(b"hello"),
                "{compression:?}"
            );
        }
        assert_eq!(unpacked(b"").unwrap(), b"");
    }

    #[test]
    fn truncated_and_damaged_streams_are_errors() {
        let whole = gzip(&vec![7; 100_000]);
        unpacked(&whole[..whole.len() - 3]).unwrap_err();
        let mut damaged = whole.clone();
        *damaged.last_mut().unwrap() ^= 1;
        unpacked(&damaged).unwrap_err();
        unpacked(&[&whole[..], b"garbage"].concat()).unwrap_err();
        let zstd = zstd::encode_all(&vec![7; 100_000][..], 3).unwrap();
        unpacked(&zstd[..zstd.len() - 3]).unwrap_err();
    }
}
