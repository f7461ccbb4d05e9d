//! An upper that is not mounted, and stays so while it is looked through ([`check`]) or rewritten ([`convert`]).

pub mod check;
pub mod convert;

use std::collections::BTreeSet;
use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;

use super::at::{At, open_directory, split_names};
use super::attr::{Attr, Kind};
use super::error::{Cause, SetupError};
use super::lower::list;
use super::mark::{self, AufsName, Prefix, Raw};
use super::name::{Name, OwnedName};
use super::open;
use super::override_stat;
use super::stack::XattrNamespace;

/// An upper held by its locks.
#[derive(Debug)]
pub struct AtRest {
    /// Where it is, absolute.
    pub path: PathBuf,
    /// The namespace whose marks a mount by this process believes.
    pub own: Prefix,
    root: OwnedFd,
    work: Option<(PathBuf, OwnedFd)>,
}

/// A directory of the upper with all in it.
#[derive(Debug)]
struct Dir {
    /// Components from the root of the upper.
    path: Vec<OwnedName>,
    fd: Arc<OwnedFd>,
    attr: Attr,
    marks: Vec<Raw>,
    overrides: Overrides,
    entries: Vec<Entry>,
}

/// Xattrs by which an object overrides its owner and mode.
type Overrides = Vec<(&'static CStr, Vec<u8>)>;

/// A name in a directory of the upper.
#[derive(Debug)]
struct Entry {
    name: OwnedName,
    attr: Attr,
    marks: Vec<Raw>,
    overrides: Overrides,
}

impl Entry {
    fn is_empty_file(&self) -> bool {
        self.attr.kind == Kind::File && self.attr.size == 0
    }

    /// A device 0:0 with the name of a whiteout. Older fuse-overlayfs makes one, .wh..opq, in every new directory; it deletes
    /// nothing that anybody shows.
    fn is_stray_device(&self) -> bool {
        mark::is_whiteout(&self.attr) && matches!(self.aufs(), Some(AufsName::Whiteout(_)))
    }

    fn aufs(&self) -> Option<AufsName<'_>> {
        mark::aufs_name(self.name.get().bytes())
    }
}

impl Dir {
    /// The entry by this name.
    fn find(&self, name: Name<'_>) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.name.get() == name)
    }

    /// Empty files with the whiteout xattr are whiteouts.
    fn has_xattr_whiteouts(&self) -> bool {
        self.marks.iter().any(Raw::has_xattr_whiteouts)
    }

    fn is_xattr_whiteout(&self, entry: &Entry) -> bool {
        self.has_xattr_whiteouts()
            && entry.is_empty_file()
            && entry.marks.iter().any(Raw::is_whiteout)
    }

    fn is_whiteout(&self, entry: &Entry) -> bool {
        mark::is_whiteout(&entry.attr) || self.is_xattr_whiteout(entry)
    }

    /// The path of an entry, or of the directory itself, as it is shown.
    fn path_of(&self, name: Option<&OwnedName>) -> Vec<u8> {
        let names: Vec<&[u8]> = self
            .path
            .iter()
            .chain(name)
            .map(|name| name.get().bytes())
            .collect();
        if names.is_empty() {
            b".".to_vec()
        } else {
            names.join(&b'/')
        }
    }
}

impl AtRest {
    /// Opens an upper, and its workdir if it is told. Refused while a mount uses it.
    pub fn open(upper: &Path, work: Option<&Path>) -> Result<Self, SetupError> {
        open::raise_descriptor_limit();
        let (path, root, _) = open::open_given("upper", upper, Cause::Upper)?;
        open::check_kernel_mounts(&path)?;
        check_other_mounts(&path)?;
        open::lock("upper", &path, &root, false)?;
        let work = match work {
            None => None,
            Some(work) => {
                let (path, fd, _) = open::open_given("workdir", work, Cause::Upper)?;
                open::lock("workdir", &path, &fd, false)?;
                Some((path, fd))
            }
        };
        Ok(Self {
            path,
            own: open::own_prefix(XattrNamespace::Auto),
            root,
            work,
        })
    }

    fn failure(&self, path: &[u8], error: Errno) -> SetupError {
        let path = self.path.join(as_path(path));
        let reason = match error {
            Errno::ACCESS => "this user may not read or write it: do it as root".to_owned(),
            other => super::describe(other),
        };
        SetupError::new(Cause::Upper, format!("{}: {reason}", path.display()))
    }

    /// Calls `each` for every directory, those above before those in them. What is mounted inside is left out.
    fn walk(&self, mut each: impl FnMut(Dir) -> Result<(), SetupError>) -> Result<(), SetupError> {
        let fail = |error| self.failure(b".", error);
        let root = open_directory(&self.root, b".").map_err(fail)?;
        let attr = At::Pinned(root.as_fd()).stat().map_err(fail)?;
        let mut left = vec![(Vec::new(), Arc::new(root), attr)];
        while let Some((path, fd, attr)) = left.pop() {
            let mut dir = Dir {
                path,
                fd,
                attr,
                marks: Vec::new(),
                overrides: Overrides::new(),
                entries: Vec::new(),
            };
            let read = dir.read();
            read.map_err(|(name, error)| self.failure(&dir.path_of(name.as_ref()), error))?;
            for entry in dir.entries.iter().rev() {
                let whiteout = entry.aufs().is_some();
                if entry.attr.kind != Kind::Directory || entry.attr.mount_root || whiteout {
                    continue;
                }
                let fd = open_directory(&*dir.fd, entry.name.get().bytes())
                    .map_err(|error| self.failure(&dir.path_of(Some(&entry.name)), error))?;
                let mut path = dir.path.clone();
                path.push(entry.name.clone());
                left.push((path, Arc::new(fd), entry.attr));
            }
            each(dir)?;
        }
        Ok(())
    }
}

impl Dir {
    /// Reads what is in it, sorted by name; an error comes with the name it is about.
    fn read(&mut self) -> Result<(), (Option<OwnedName>, Errno)> {
        let own = |error| (None, error);
        (self.marks, self.overrides) = xattrs(At::Pinned(self.fd.as_fd())).map_err(own)?;
        let mut names = Vec::new();
        list(&self.fd, |entry| {
            names.push(Name::from_bytes(entry.name)?.to_owned());
            Ok(())
        })
        .map_err(|error| match error {
            // The descriptor is O_PATH because we may not read the directory.
            Errno::BADF => (None, Errno::ACCESS),
            other => (None, other),
        })?;
        names.sort_by(|a, b| a.get().bytes().cmp(b.get().bytes()));
        for name in names {
            let at = At::Entry(self.fd.as_fd(), name.get());
            let read = at.stat().and_then(|attr| Ok((attr, xattrs(at)?)));
            let (attr, (marks, overrides)) = read.map_err(|error| (Some(name.clone()), error))?;
            self.entries.push(Entry {
                name,
                attr,
                marks,
                overrides,
            });
        }
        Ok(())
    }
}

/// What the xattrs of an object mean to a union.
fn xattrs(at: At<'_>) -> Result<(Vec<Raw>, Overrides), Errno> {
    let names = at.xattr_names()?;
    let mut overrides = Overrides::new();
    for name in override_stat::NAMES {
        if split_names(&names).any(|each| each == name.to_bytes())
            && let Ok(Some(value)) = at.xattr(name)
        {
            overrides.push((name, value));
        }
    }
    Ok((Raw::all(at, &names)?, overrides))
}

/// A path of bytes.
fn as_path(path: &[u8]) -> &Path {
    use std::os::unix::ffi::OsStrExt;
    Path::new(std::ffi::OsStr::from_bytes(path))
}

/// Refuses an upper that is mounted where this process does not see it: by the kernel in another mount namespace, or by
/// fuse-overlayfs, which takes no lock.
fn check_other_mounts(upper: &Path) -> Result<(), SetupError> {
    let is_upper = |path: &str| std::fs::canonicalize(path).is_ok_and(|path| path == upper);
    let mut seen = BTreeSet::new();
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let process = process.path();
        let Ok(namespace) = std::fs::read_link(process.join("ns/mnt")) else {
            continue;
        };
        let command = std::fs::read(process.join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command);
        let by_fuse = command
            .split('\0')
            .next()
            .is_some_and(|program| program.ends_with("fuse-overlayfs"))
            && named(&command).any(is_upper);
        let mut by_kernel = false;
        if seen.insert(namespace) {
            let mounts = std::fs::read_to_string(process.join("mountinfo")).unwrap_or_default();
            let mut overlays = mounts.lines().filter(|line| line.contains(" - overlay "));
            by_kernel = overlays.any(|line| named(line).any(is_upper));
        }
        if by_fuse || by_kernel {
            let who = if by_fuse {
                "fuse-overlayfs"
            } else {
                "a kernel overlayfs of another mount namespace"
            };
            let path = upper.display();
            let sentence = format!("upper {path} is in use by {who}: unmount that first");
            return Err(SetupError::new(Cause::InUse, sentence));
        }
    }
    Ok(())
}

/// The uppers named in mount options.
fn named(text: &str) -> impl Iterator<Item = &str> {
    text.split([' ', ',', '\0', '\n'])
        .filter_map(|part| part.strip_prefix("upperdir="))
}
