//! Where an image comes from: an archive, which is a tar, or a directory with the same files in it.
//!
//! Both are asked for files by path. Paths come from inside the archive and are not trusted: in a directory they are
//! resolved beneath it; in a tar only what the tar has exists, its symlinks and hard links included.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::compress::{self, Compression};
use super::digest::plain;
use super::error::{Context, ImageError, Result, why};
use super::manifest::JSON_MAX;
use super::outer::{self, Entry};
use crate::layer::beneath::open_beneath;

/// An opened archive or directory.
#[derive(Debug)]
pub(super) enum Source {
    /// The directory, opened.
    Dir(OwnedFd),
    /// The tar, uncompressed, and what is in it.
    Tar {
        file: Arc<File>,
        entries: HashMap<Vec<u8>, Entry>,
    },
}

/// A regular file of a source, or a range of the archive.
#[derive(Clone, Debug)]
pub(super) struct Part {
    file: Arc<File>,
    offset: u64,
    /// Length in bytes.
    pub(super) size: u64,
}

/// Reads a [`Part`] from its beginning.
#[derive(Debug)]
pub(super) struct PartReader {
    part: Part,
    position: u64,
}

/// So many bytes tell whether something is a tar.
const FIRST: usize = 512;
/// Symlinks in an archive lead at most so far.
const LINKS_MAX: usize = 16;

impl Source {
    /// Opens what is at `path`; `-` is stdin. Compressed archives and stdin are first copied, uncompressed, to a file
    /// made by `spool`, at most `limit` bytes.
    pub(super) fn open(
        path: &Path,
        spool: impl FnOnce() -> io::Result<File>,
        limit: u64,
    ) -> Result<Self> {
        let cannot = || format!("cannot read {}", path.display());
        if path == Path::new("-") {
            return Self::spooled(io::stdin(), spool, limit);
        }
        // Not blocking on a FIFO nobody writes to.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = rustix::fs::open(path, flags, Mode::empty()).context(cannot)?;
        let file = File::from(fd);
        let kind = file.metadata().context(cannot)?.file_type();
        if kind.is_dir() {
            return Ok(Self::Dir(file.into()));
        }
        if !kind.is_file() {
            // A pipe, as `<(docker save app)` makes it, may be waited for after all.
            return Self::spooled(File::open(path).context(cannot)?, spool, limit);
        }
        let whole = Part::whole(file).context(cannot)?;
        if whole.compression().context(cannot)? == Compression::None {
            return Self::tar(whole.file);
        }
        Self::spooled(whole.reader(), spool, limit)
    }

    fn spooled(
        from: impl Read,
        spool: impl FnOnce() -> io::Result<File>,
        limit: u64,
    ) -> Result<Self> {
        let mut file = spool().context(|| "cannot make a temporary file in the image store")?;
        let mut reader = compress::open(from).map_err(|error| damaged(&error))?;
        // What is no tar, and may never end, is not copied.
        let mut first = Vec::with_capacity(FIRST);
        let read = reader.by_ref().take(FIRST as u64).read_to_end(&mut first);
        read.map_err(|error| damaged(&error))?;
        outer::check_first(&first)?;
        copy(&mut io::Cursor::new(first).chain(reader), &mut file, limit)?;
        Self::tar(Arc::new(file))
    }

    fn tar(file: Arc<File>) -> Result<Self> {
        let entries = outer::scan(&file)?;
        Ok(Self::Tar { file, entries })
    }

    /// The regular file at `path`, if there is one.
    pub(super) fn part(&self, path: &str) -> Result<Option<Part>> {
        match self {
            Self::Dir(dir) => beneath(dir, path),
            Self::Tar { file, entries } => Ok(resolve(entries, path)?.map(|(offset, size)| Part {
                file: Arc::clone(file),
                offset,
                size,
            })),
        }
    }

    /// The regular file at `path`, which must be there.
    pub(super) fn need(&self, path: &str) -> Result<Part> {
        self.part(path)?
            .ok_or_else(|| ImageError::malformed(format!("'{}' is missing", plain(path))))
    }

    /// A JSON document of the source, if it is there.
    pub(super) fn json(&self, path: &str) -> Result<Option<Vec<u8>>> {
        let read = |part: Part| part.json().map_err(|error| error.within(plain(path)));
        self.part(path)?.map(read).transpose()
    }
}

impl Part {
    /// The whole of a file.
    pub(super) fn whole(file: File) -> io::Result<Self> {
        let size = file.metadata()?.len();
        Ok(Self {
            file: Arc::new(file),
            offset: 0,
            size,
        })
    }

    /// Something that is the same for the same bytes of the same file.
    pub(super) fn place(&self) -> (usize, u64) {
        (Arc::as_ptr(&self.file) as usize, self.offset)
    }

    pub(super) fn reader(&self) -> PartReader {
        PartReader {
            part: self.clone(),
            position: 0,
        }
    }

    /// How it is compressed.
    pub(super) fn compression(&self) -> io::Result<Compression> {
        let mut head = Vec::with_capacity(compress::MAGIC);
        self.reader()
            .take(compress::MAGIC as u64)
            .read_to_end(&mut head)?;
        Ok(Compression::of(&head))
    }

    /// All bytes of a JSON document.
    pub(super) fn json(&self) -> Result<Vec<u8>> {
        if self.size > JSON_MAX {
            return Err(ImageError::malformed(format!(
                "a JSON document of {} bytes; at most {JSON_MAX} are read",
                self.size
            )));
        }
        let mut json = Vec::new();
        self.reader()
            .read_to_end(&mut json)
            .context(|| "cannot read the archive")?;
        Ok(json)
    }
}

impl Read for PartReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.part.size - self.position;
        let wanted = buffer
            .len()
            .min(usize::try_from(left).unwrap_or(usize::MAX));
        if wanted == 0 {
            return Ok(0);
        }
        let count = self
            .part
            .file
            .read_at(&mut buffer[..wanted], self.part.offset + self.position)?;
        if count == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "it is truncated",
            ));
        }
        self.position += count as u64;
        Ok(count)
    }
}

/// A file of the directory `dir`, without leaving it.
fn beneath(dir: &OwnedFd, path: &str) -> Result<Option<Part>> {
    let cannot = || format!("cannot read '{}'", plain(path));
    let flags = OFlags::RDONLY | OFlags::NONBLOCK;
    let fd = match open_beneath(dir, path.as_ref(), flags, ResolveFlags::NO_MAGICLINKS) {
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(None),
        Err(rustix::io::Errno::XDEV) => {
            return Err(ImageError::malformed(format!(
                "'{}' leads out of the directory",
                plain(path)
            )));
        }
        other => File::from(other.context(cannot)?),
    };
    if !fd.metadata().context(cannot)?.is_file() {
        return Err(ImageError::malformed(format!(
            "'{}' is not a regular file",
            plain(path)
        )));
    }
    Part::whole(fd).map(Some).context(cannot)
}

/// Where the tar has the content of `path`: offset and size.
fn resolve(entries: &HashMap<Vec<u8>, Entry>, path: &str) -> Result<Option<(u64, u64)>> {
    let Some(mut path) = outer::clean(path.as_bytes()) else {
        return Err(ImageError::malformed(format!(
            "'{}' leads out of the archive",
            plain(path)
        )));
    };
    for _ in 0..LINKS_MAX {
        match entries.get(&path) {
            None => return Ok(None),
            Some(Entry::File { offset, size }) => return Ok(Some((*offset, *size))),
            Some(Entry::Link(target)) => path.clone_from(target),
            Some(Entry::Other) => {
                let path = String::from_utf8_lossy(&path);
                return Err(ImageError::malformed(format!(
                    "'{}' is not a regular file of the archive",
                    plain(&path)
                )));
            }
        }
    }
    Err(ImageError::malformed(format!(
        "'{}' is a link that leads in a circle",
        plain(&String::from_utf8_lossy(&path))
    )))
}

/// Copies `from` to its end, at most `limit` bytes.
pub(super) fn copy(from: &mut dyn Read, to: &mut File, limit: u64) -> Result<()> {
    let mut buffer = vec![0; 1 << 20];
    let mut left = limit;
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(damaged(&error)),
        };
        left = left
            .checked_sub(count as u64)
            .ok_or_else(|| too_large(limit))?;
        to.write_all(&buffer[..count])
            .context(|| "cannot write to the image store")?;
    }
}

/// What is read is not what its compression needs.
pub(super) fn damaged(error: &io::Error) -> ImageError {
    ImageError::malformed(format!("cannot unpack it: {}", why(error)))
}

/// The answer to what unpacks to more than `limit` bytes.
pub(super) fn too_large(limit: u64) -> ImageError {
    ImageError::malformed(format!(
        "it unpacks to more than {limit} bytes; if that is meant, allow more with --max-size"
    ))
}
