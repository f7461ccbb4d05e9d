//! Reading a tar as a stream.

use std::fs::File;
use std::io::{self, Write};

use super::error::{IndexError, Problem};
use super::index::Index;

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
            size: u64::MAX,
        }
    }
}

/// Makes an index of the uncompressed tar that is written to it.
#[derive(Debug)]
pub struct Indexer {
    limits: Limits,
    failed: Option<IndexError>,
}

impl Indexer {
    /// Refuses what goes beyond `limits`.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            failed: None,
        }
    }

    /// The index of all that was written, after the last byte of the tar.
    pub fn finish(self) -> Result<Index, IndexError> {
        Err(self
            .failed
            .unwrap_or_else(|| IndexError::general(Problem::Truncated)))
    }
}

impl Write for Indexer {
    /// Takes all of `bytes`. After an error every further call fails with the same; [`Indexer::finish`] returns it
    /// with its type.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() as u64 > self.limits.size {
            self.failed = Some(IndexError::general(Problem::NotTar));
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

/// The index of the tar in `file`, read from its beginning.
pub fn build_index(mut file: &File) -> Result<Index, IndexError> {
    let mut indexer = Indexer::new(Limits::default());
    match io::copy(&mut file, &mut indexer) {
        Err(error) if indexer.failed.is_none() => {
            Err(IndexError::general(Problem::Io(error.to_string())))
        }
        _ => indexer.finish(),
    }
}
