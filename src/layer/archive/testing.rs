//! Tars for tests, made byte by byte, so that they can be wrong in every way.

use super::header::BLOCK;

/// One record of a PAX header.
pub(super) fn pax_record(key: &str, value: &[u8]) -> Vec<u8> {
    let body = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
    let mut length = body.len() + 1;
    while format!("{length}").len() + body.len() != length {
        length += 1;
    }
    [length.to_string().as_bytes(), &body].concat()
}

/// A header block that can be changed before it is written.
#[derive(Clone)]
pub(super) struct Head(pub(super) [u8; BLOCK]);

impl Head {
    pub(super) fn new(kind: u8, name: impl AsRef<[u8]>) -> Self {
        let mut head = Self([0; BLOCK]);
        let name = name.as_ref();
        head.0[..name.len()].copy_from_slice(name);
        head.0[156] = kind;
        head.0[257..265].copy_from_slice(b"ustar\x0000");
        let mode = if kind == b'5' { 0o755 } else { 0o644 };
        head.octal(100, 8, mode)
            .octal(108, 8, 0)
            .octal(116, 8, 0)
            .octal(136, 12, 0)
    }

    /// Writes the old GNU magic in place of that of POSIX.
    pub(super) fn gnu(self) -> Self {
        self.bytes(257, b"ustar  \0")
    }

    pub(super) fn bytes(mut self, at: usize, bytes: &[u8]) -> Self {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    pub(super) fn octal(self, at: usize, width: usize, value: u64) -> Self {
        let digits = format!("{value:0width$o}\0", width = width - 1);
        self.bytes(at, digits.as_bytes())
    }

    pub(super) fn mode(self, mode: u64) -> Self {
        self.octal(100, 8, mode)
    }

    pub(super) fn size(self, size: u64) -> Self {
        self.octal(124, 12, size)
    }

    pub(super) fn mtime(self, mtime: u64) -> Self {
        self.octal(136, 12, mtime)
    }

    pub(super) fn link(self, target: impl AsRef<[u8]>) -> Self {
        self.bytes(157, target.as_ref())
    }

    /// The block with its checksum.
    pub(super) fn done(mut self) -> [u8; BLOCK] {
        self.0[148..156].fill(b' ');
        let sum: u32 = self.0.iter().map(|&byte| u32::from(byte)).sum();
        self.bytes(148, format!("{sum:06o}\0 ").as_bytes()).0
    }
}

/// A tar in the making.
#[derive(Clone, Default)]
pub(super) struct Tar(pub(super) Vec<u8>);

impl Tar {
    /// Adds a header and a padded body, the header's size left as it is.
    pub(super) fn raw(mut self, head: Head, body: &[u8]) -> Self {
        self.0.extend_from_slice(&head.done());
        self.0.extend_from_slice(body);
        let padded = self.0.len().next_multiple_of(BLOCK);
        self.0.resize(padded, 0);
        self
    }

    /// Adds a header and a body of the size it has.
    pub(super) fn add(self, head: Head, body: &[u8]) -> Self {
        self.raw(head.size(body.len() as u64), body)
    }

    pub(super) fn file(self, name: &str, body: &str) -> Self {
        self.add(Head::new(b'0', name), body.as_bytes())
    }

    pub(super) fn dir(self, name: &str) -> Self {
        self.add(Head::new(b'5', name), b"")
    }

    pub(super) fn symlink(self, name: &str, target: &str) -> Self {
        self.add(Head::new(b'2', name).link(target), b"")
    }

    pub(super) fn hard_link(self, name: &str, target: &str) -> Self {
        self.add(Head::new(b'1', name).link(target), b"")
    }

    /// Adds an extended header for the entry that is added next.
    pub(super) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let body: Vec<u8> = records
            .iter()
            .flat_map(|(key, value)| pax_record(key, value))
            .collect();
        self.add(Head::new(b'x', "PaxHeader"), &body)
    }

    /// Adds a GNU long name (`L`) or link (`K`).
    pub(super) fn long(self, kind: u8, name: &[u8]) -> Self {
        self.add(
            Head::new(kind, "././@LongLink").gnu(),
            &[name, b"\0"].concat(),
        )
    }

    /// Adds the end.
    pub(super) fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 2 * BLOCK, 0);
        self.0
    }
}
