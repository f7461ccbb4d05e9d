//! Modes widened for a moment: an ordinary user may not write to what his own files' modes forbid, and a union has
//! to.
//!
//! A kill in between would leave the wider mode. So the workdir has a note of it as long as it lasts, which the next
//! mount acts upon: a symlink `#HEX.MODE.INODE` (octal, decimal) to the path of the object, and one to where it is
//! about to be moved.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{OFlags, ResolveFlags};
use rustix::io::{Errno, Result};

use super::at::{At, UpperAt};
use super::attr::Kind;
use super::beneath::open_beneath;
use super::lower::list;
use super::name::{Name, OwnedName};
use super::upper::Upper;

impl Upper {
    /// Runs `act`; if it fails for want of permission, again with the bits `needed` added to the mode of `at`, which
    /// is put back afterwards.
    pub fn with_mode<T>(
        &self,
        at: UpperAt<'_>,
        needed: u16,
        act: impl Fn() -> Result<T>,
    ) -> Result<T> {
        self.widened(at, None, needed, act)
    }

    /// As [`Upper::with_mode`], for a directory that `act` moves to the name `to`: it must be writable itself.
    pub fn with_mode_to_move<T>(
        &self,
        at: UpperAt<'_>,
        to: (BorrowedFd<'_>, Name<'_>),
        act: impl Fn() -> Result<T>,
    ) -> Result<T> {
        self.widened(at, Some(to), 0o300, act)
    }

    fn widened<T>(
        &self,
        at: UpperAt<'_>,
        to: Option<(BorrowedFd<'_>, Name<'_>)>,
        needed: u16,
        act: impl Fn() -> Result<T>,
    ) -> Result<T> {
        let denied = match act() {
            Err(Errno::ACCESS) => Errno::ACCESS,
            other => return other,
        };
        let attr = at.read().stat()?;
        let useless = attr.kind == Kind::Symlink || to.is_some() && attr.kind != Kind::Directory;
        if attr.mode & needed == needed || useless {
            return Err(denied);
        }
        // What `act` renames is still found by its descriptor.
        let pinned = self.pin(at.read())?;
        let at = UpperAt::new(At::Pinned(pinned.as_fd()));
        let mut paths = vec![path_of(pinned.as_fd())?];
        if let Some((dir, name)) = to {
            paths.push([&path_of(dir)?, &b"/"[..], name.bytes()].concat());
        }
        let notes = paths
            .iter()
            .map(|path| self.note(attr.mode, attr.ino, path))
            .collect::<Result<Vec<_>>>()?;
        let widened = at.chmod(attr.mode | needed);
        let (done, narrowed) = match widened {
            Ok(()) => (act(), at.chmod(attr.mode)),
            // It is somebody else's.
            Err(_) => (Err(denied), Ok(())),
        };
        // What `act` has done is done. The next mount acts upon a note that stays.
        if narrowed.is_ok() {
            for note in notes {
                super::best_effort("remove a note", self.workdir.remove(note.get()));
            }
        }
        super::best_effort("put back a mode", narrowed);
        done
    }

    fn note(&self, mode: u16, ino: u64, path: &[u8]) -> Result<OwnedName> {
        let fresh = self.workdir.fresh_name()?;
        let mut name = fresh.get().bytes().to_vec();
        name.extend_from_slice(format!(".{mode:o}.{ino}").as_bytes());
        rustix::fs::symlinkat(path, &self.workdir.temp, &name[..])?;
        Name::from_bytes(&name).map(Name::to_owned)
    }
}

/// Where the object behind a descriptor is.
fn path_of(fd: BorrowedFd<'_>) -> Result<Vec<u8>> {
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    rustix::fs::readlink(link, Vec::new()).map(std::ffi::CString::into_bytes)
}

/// Puts back the modes that notes in `temp` tell of, of objects below the directories `roots` (upper and workdir with
/// their paths). Bits are only taken away, so a false note can give nobody anything.
pub(super) fn repair(temp: &OwnedFd, roots: [(&Path, &OwnedFd); 2]) -> Result<()> {
    let mut notes = Vec::new();
    list(temp, |entry| {
        notes.extend(parse(entry.name).map(|(mode, ino)| (entry.name.to_vec(), mode, ino)));
        Ok(())
    })?;
    for (name, mode, ino) in notes {
        let Ok(path) = rustix::fs::readlinkat(temp, &name[..], Vec::new()) else {
            continue;
        };
        let path = Path::new(OsStr::from_bytes(path.as_bytes()));
        for (root_path, root) in roots {
            if let Ok(below) = path.strip_prefix(root_path) {
                super::best_effort("put back a mode", narrow(root, below, mode, ino));
            }
        }
    }
    Ok(())
}

/// Mode and inode number in the name of a note.
fn parse(name: &[u8]) -> Option<(u16, u64)> {
    let mut parts = std::str::from_utf8(name).ok()?.split('.');
    let (_, mode, ino) = (parts.next()?, parts.next()?, parts.next()?);
    Some((u16::from_str_radix(mode, 8).ok()?, ino.parse().ok()?))
}

fn narrow(root: &OwnedFd, path: &Path, mode: u16, ino: u64) -> Result<()> {
    let path = if path == Path::new("") {
        Path::new(".")
    } else {
        path
    };
    let flags = OFlags::PATH | OFlags::NOFOLLOW;
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let fd = match open_beneath(root, path, flags, resolve) {
        // It has not been moved, or has been.
        Err(Errno::NOENT) => return Ok(()),
        other => other?,
    };
    let at = UpperAt::new(At::Pinned(fd.as_fd()));
    let attr = at.read().stat()?;
    if attr.ino != ino || attr.mode & mode == attr.mode {
        return Ok(());
    }
    tracing::info!(path = %path.display(), "a mode that was widened for a moment is put back");
    at.chmod(attr.mode & mode)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    /// An upper with a file of mode 0644 and a workdir with notes of it.
    fn repaired(note: impl Fn(&Path, u64) -> (String, std::path::PathBuf)) -> u32 {
        let base = tempfile::tempdir().unwrap();
        let (upper, work) = (base.path().join("upper"), base.path().join("work"));
        fs::create_dir_all(upper.join("d")).unwrap();
        fs::create_dir(&work).unwrap();
        let file = upper.join("d/f");
        fs::write(&file, "").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        let (name, target) = note(base.path(), fs::metadata(&file).unwrap().ino());
        symlink(target, work.join(name)).unwrap();
        let open = |path: &Path| {
            rustix::fs::open(path, OFlags::DIRECTORY, rustix::fs::Mode::empty()).unwrap()
        };
        let (upper_fd, work_fd) = (open(&upper), open(&work));
        repair(&work_fd, [(&upper, &upper_fd), (&work, &work_fd)]).unwrap();
        fs::metadata(&file).unwrap().mode() & 0o7777
    }

    #[test]
    fn a_note_of_a_killed_mount_puts_the_mode_back() {
        let mode = repaired(|base, ino| (format!("#0.444.{ino}"), base.join("upper/d/f")));
        assert_eq!(mode, 0o444);
    }

    #[test]
    fn a_note_adds_no_permission() {
        let mode = repaired(|base, ino| (format!("#0.4777.{ino}"), base.join("upper/d/f")));
        assert_eq!(mode, 0o644);
    }

    #[test]
    fn a_note_of_another_object_or_in_no_format_does_nothing() {
        let other = repaired(|base, ino| (format!("#0.444.{}", ino + 1), base.join("upper/d/f")));
        let outside = repaired(|base, ino| {
            symlink(base.join("upper"), base.join("work/l")).unwrap();
            (format!("#0.444.{ino}"), base.join("work/l/d/f"))
        });
        let up = repaired(|base, ino| (format!("#0.444.{ino}"), base.join("work/../upper/d/f")));
        let odd = repaired(|base, _| ("#0.rw".to_owned(), base.join("upper/d/f")));
        assert_eq!([other, outside, up, odd], [0o644; 4]);
    }
}
