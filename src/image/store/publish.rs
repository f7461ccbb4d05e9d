//! How anything gets its name in the store: written aside, synced, renamed.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use tempfile::NamedTempFile;

/// When what is published reaches the disk.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Sync {
    /// Before it has its name.
    Now,
    /// When the kernel gets to it: a note says so.
    Later,
}

/// Gives a finished file its name. Whatever had the name before is replaced at once.
pub(super) fn publish(file: NamedTempFile, to: &Path, sync: Sync) -> io::Result<()> {
    if sync == Sync::Now {
        file.as_file().sync_all()?;
    }
    file.persist(to).map_err(|error| error.error)?;
    if sync == Sync::Now {
        sync_parent(to)?;
    }
    Ok(())
}

/// Gives a directory whose files are finished its name; if another process was faster, that one's stays.
pub(super) fn publish_dir(from: &Path, to: &Path, sync: Sync) -> io::Result<()> {
    if sync == Sync::Now {
        File::open(from)?.sync_all()?;
    }
    match fs::rename(from, to) {
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists
            ) =>
        {
            fs::remove_dir_all(from)
        }
        Ok(()) if sync == Sync::Later => Ok(()),
        other => other.and_then(|()| sync_parent(to)),
    }
}

/// Writes a small file whole; `tmp` is a directory of the same filesystem.
pub(super) fn replace(tmp: &Path, to: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = NamedTempFile::new_in(tmp)?;
    file.write_all(bytes)?;
    publish(file, to, Sync::Now)
}

/// A name is durable when its directory is.
pub(super) fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    File::open(parent)?.sync_all()
}
