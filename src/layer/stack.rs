//! The stack of one mount: an optional upper over read-only lowers, opened and checked once.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;

use super::at::At;
use super::attr::{Attr, Kind};
use super::error::SetupError;
use super::fd::Fds;
use super::lower::{Lower, LowerDir, LowerFile};
use super::mark::Redirect;
use super::name::OwnedName;
use super::open;
use super::upper::Upper;

/// Which xattr namespace our marks are written in. Reading accepts both.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum XattrNamespace {
    /// `trusted.overlay.*` where it works (`CAP_SYS_ADMIN` in the initial namespace), else `user.overlay.*`.
    #[default]
    Auto,
    /// `user.overlay.*`, the kernel's `userxattr`.
    User,
}

/// Where owner, mode and device type are kept when the files on disk cannot carry them.
///
/// Format and names: containers/storage, fuse-overlayfs `xattr_permissions`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum OverrideStat {
    /// In the files themselves. Layers whose root carries an override xattr are still read with it.
    #[default]
    Detect,
    /// `xattr_permissions=1`: written to `security.fuseoverlayfs.override_stat`.
    Security,
    /// `xattr_permissions=2`: written to `user.containers.override_stat`.
    Containers,
}

/// When data reaches the disk.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Durability {
    /// Data of a copy-up is synced before it becomes visible; fsync(2) works.
    #[default]
    Auto,
    /// As `Auto`, and directories and metadata of a copy-up are synced too.
    Strict,
    /// Nothing is synced before the end; a marker in the workdir refuses the next mount after a crash.
    Volatile,
    /// Nothing is synced, not at the end either, and nothing refuses the next mount: for container engines, which know
    /// themselves what to do with a container after a crash.
    Unsynced,
}

impl Durability {
    /// fsync(2) does nothing.
    pub fn is_volatile(self) -> bool {
        matches!(self, Self::Volatile | Self::Unsynced)
    }
}

/// The writable part of a stack.
#[derive(Clone, Debug)]
pub struct UpperConfig {
    /// Receives every change.
    pub upper: PathBuf,
    /// Staging area on the same filesystem, outside the upper.
    pub work: PathBuf,
}

/// What to stack, as asked for; [`Stack::open`] checks it.
#[derive(Clone, Debug, Default)]
pub struct StackConfig {
    /// Lower layers, topmost first; relative paths are relative to the working directory.
    pub lowers: Vec<LayerSource>,
    /// The writable layer; `None` makes the mount read-only.
    pub upper: Option<UpperConfig>,
    /// Namespace of written marks.
    pub xattrs: XattrNamespace,
    /// Owner and mode in xattrs.
    pub override_stat: OverrideStat,
    /// When data reaches the disk.
    pub durability: Durability,
    /// As whose the files of archives are shown.
    pub owner: Owner,
    /// A mount that has the upper and no name any more is ended.
    pub take_over: bool,
}

/// As whose the files of archive layers are shown.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Owner {
    /// `Image` for root, if files can be given to anybody; else `Me`.
    #[default]
    Auto,
    /// Of the user who mounts.
    Me,
    /// As in the archive.
    Image,
}

/// A lower layer to be opened.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum LayerSource {
    /// What a user names: a directory, or an uncompressed tar, which is indexed when it is opened.
    Path(PathBuf),
    /// An uncompressed tar and the file with its index.
    Archive {
        /// The tar.
        tar: PathBuf,
        /// Made by [`Indexer`](super::archive::Indexer) from exactly this tar.
        index: PathBuf,
        /// Where in the layer the tree of the tar is; its root if nothing is said.
        beneath: Option<Beneath>,
    },
}

/// A directory two levels down, with nothing beside it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Beneath {
    /// The directory in the root.
    pub parent: String,
    /// The directory in that one.
    pub name: String,
    /// Layers below have nothing more at `parent`.
    pub hides: bool,
}

impl LayerSource {
    /// What the layer is called: the directory or the tar.
    pub fn path(&self) -> &Path {
        match self {
            Self::Path(path) => path,
            Self::Archive { tar, .. } => tar,
        }
    }
}

impl From<PathBuf> for LayerSource {
    fn from(path: PathBuf) -> Self {
        Self::Path(path)
    }
}

/// Layers opened and pinned: nothing mounted later can change what they are.
///
/// A value of its own: a mount finds every layer through it, so a stack can be replaced by another.
#[derive(Debug)]
pub struct Stack {
    /// The writable layer.
    pub upper: Option<Upper>,
    /// Read-only layers, topmost first; at least one.
    pub lowers: Vec<Arc<Lower>>,
    /// Roots of the lowers, in the same order.
    pub roots: Vec<Arc<LowerDir>>,
    /// The descriptors of all layers that can be closed and opened again.
    pub fds: Arc<Fds>,
    /// Some lower is an archive.
    pub has_archives: bool,
}

impl Stack {
    /// Opens and checks every layer. Nothing is created unless all checks pass.
    pub fn open(config: &StackConfig) -> Result<Self, SetupError> {
        open::open(config)
    }

    /// Refuses a mountpoint that lies in the upper or the workdir, where the mount would contain itself.
    pub fn check_mountpoint(&self, mountpoint: &Path) -> Result<(), SetupError> {
        let Some(upper) = &self.upper else {
            return Ok(());
        };
        open::check_mountpoint(upper, mountpoint)
    }

    /// Whether xattrs can be listed in every layer.
    pub fn list_xattrs(&self) -> bool {
        let trees = self.lowers.iter().filter_map(|lower| lower.tree());
        let upper = self.upper.iter().map(|upper| upper.root.as_fd());
        let mut roots = trees.map(|tree| tree.root.as_fd()).chain(upper);
        roots.all(|root| At::Pinned(root).lists_xattrs())
    }

    /// Hides the topmost layer and `work` in those below, if they lie there: for a stack whose topmost layer is the upper
    /// of a mount.
    pub fn hide_topmost(&self, work: Option<&Path>) {
        let topmost = self.lowers.first().and_then(|lower| lower.tree());
        let Some(upper) = topmost.and_then(|tree| At::Pinned(tree.root.as_fd()).stat().ok()) else {
            return;
        };
        let work = work
            .and_then(|work| open::look_at(work).ok())
            .unwrap_or(upper);
        for lower in self.lowers.iter().skip(1) {
            lower.hide((upper.dev, upper.ino), (work.dev, work.ino));
        }
    }

    /// Notes what the mountpoint is before it is covered, for layers it lies in.
    pub fn look_at_mountpoint(&self, mountpoint: &Path) {
        if let Ok(attr) = open::look_at(mountpoint) {
            self.lowers.iter().for_each(|lower| lower.set_covered(attr));
        }
    }

    /// The directories at `path` in the lowers from position `from` on, merged as one directory: stops at an
    /// opaque directory, a whiteout or a non-directory, and follows redirects found on the way.
    pub fn find_dirs(&self, from: usize, path: &[OwnedName]) -> Result<Vec<Arc<LowerDir>>, Errno> {
        let mut found = Vec::new();
        let mut path = path.to_vec();
        for root in self.roots.iter().skip(from) {
            match walk(root, &path)? {
                Step::Missing { next } => path = next.unwrap_or(path),
                Step::Stop => break,
                Step::Found { dir, last, next } => {
                    found.push(dir);
                    if last {
                        break;
                    }
                    path = next.unwrap_or(path);
                }
            }
        }
        Ok(found)
    }

    /// The topmost regular file with data at `path` in the lowers from position `from` on: where the data of a
    /// metacopy file is.
    pub fn find_data(&self, from: usize, path: &[OwnedName]) -> Result<LowerFile, Errno> {
        let mut path = path.to_vec();
        for root in self.roots.iter().skip(from) {
            let Some((name, parents)) = path.split_last() else {
                break;
            };
            let name = name.clone();
            let with_name = |mut parents: Vec<OwnedName>| {
                parents.push(name.clone());
                parents
            };
            let (dir, below) = match walk(root, parents)? {
                Step::Missing { next } => {
                    path = next.map_or(path, with_name);
                    continue;
                }
                Step::Stop => break,
                Step::Found { dir, next, .. } => (dir, next.map(with_name)),
            };
            path = below.unwrap_or(path);
            let attr = match dir.stat(name.get()) {
                Err(Errno::NOENT) if dir.has_aufs_whiteout(name.get()) => break,
                Err(Errno::NOENT) => continue,
                other => other?,
            };
            if attr.kind != Kind::File {
                break;
            }
            let marks = dir.marks(name.get())?;
            if !marks.metacopy {
                return Ok(LowerFile { dir, name });
            }
            if let Some(redirect) = marks.redirect {
                path = redirected(&path, redirect);
            }
        }
        Err(Errno::IO)
    }

    /// The file that holds the data of `file`, whose attributes are `attr`: itself, unless it is a metacopy of one
    /// further down.
    pub fn data_of(&self, file: &LowerFile, attr: &Attr) -> Result<LowerFile, Errno> {
        let below = file.dir.lower().position + 1;
        if attr.size == 0 || below == self.lowers.len() || file.is_archived() {
            return Ok(file.clone());
        }
        let marks = file.marks()?;
        if !marks.metacopy {
            return Ok(file.clone());
        }
        let mut path = self.path_below(&file.dir)?;
        path.push(file.name.clone());
        if let Some(redirect) = marks.redirect {
            path = redirected(&path, redirect);
        }
        self.find_data(below, &path)
    }

    /// The path of a lower directory in the layers below its own: redirects of its layer lead there.
    fn path_below(&self, dir: &LowerDir) -> Result<Vec<OwnedName>, Errno> {
        let path = dir.path();
        let root = self.roots.get(dir.lower().position).ok_or(Errno::IO)?;
        match walk(root, &path)? {
            Step::Found {
                next: Some(next), ..
            } => Ok(next),
            _ => Ok(path),
        }
    }
}

/// What one layer has at a path.
enum Step {
    /// Nothing; lower layers may, at the path `next` if a redirect was met on the way.
    Missing { next: Option<Vec<OwnedName>> },
    /// A whiteout, non-directory or opaque ancestor: lower layers are hidden.
    Stop,
    /// A directory. `last`: it hides what is below; `next`: its path in the layers below.
    Found {
        dir: Arc<LowerDir>,
        last: bool,
        next: Option<Vec<OwnedName>>,
    },
}

/// `path` with its last component redirected.
fn redirected(path: &[OwnedName], redirect: Redirect) -> Vec<OwnedName> {
    match redirect {
        Redirect::Absolute(path) => path,
        Redirect::Sibling(name) => {
            let mut path = path.to_vec();
            path.pop();
            path.push(name);
            path
        }
    }
}

fn walk(root: &Arc<LowerDir>, path: &[OwnedName]) -> Result<Step, Errno> {
    let mut dir = Arc::clone(root);
    let mut next: Option<Vec<OwnedName>> = None;
    let mut last = dir.has_aufs_opaque();
    for (depth, name) in path.iter().enumerate() {
        let attr = match dir.stat(name.get()) {
            Err(Errno::NOENT) => {
                if last || dir.has_aufs_whiteout(name.get()) {
                    return Ok(Step::Stop);
                }
                let next = next.map(|mut next| {
                    next.extend_from_slice(&path[depth..]);
                    next
                });
                return Ok(Step::Missing { next });
            }
            other => other?,
        };
        if attr.kind != Kind::Directory {
            return Ok(Step::Stop);
        }
        let marks = dir.marks(name.get())?;
        dir = dir.child(name.clone(), &attr);
        let opaque = marks.opaque || dir.has_aufs_opaque();
        last |= opaque;
        if let Some(redirect) = marks.redirect.filter(|_| !opaque) {
            // An absolute redirect leads out of an opaque ancestor.
            last &= matches!(redirect, Redirect::Sibling(_));
            let so_far = next.map_or_else(
                || path[..=depth].to_vec(),
                |mut next| {
                    next.push(name.clone());
                    next
                },
            );
            next = Some(redirected(&so_far, redirect));
        } else if let Some(next) = &mut next {
            next.push(name.clone());
        }
    }
    Ok(Step::Found { dir, last, next })
}
