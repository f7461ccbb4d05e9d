//! Lower layers seen through mounts of our own: read-only, without access times, and without whatever else is mounted
//! over or inside a layer, now or later. Needs `CAP_SYS_ADMIN` over the mount namespace.
//!
//! Giving such a mount up waits for the kernel for milliseconds, so layers that lie together share one.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{OFlags, ResolveFlags};
use rustix::mount::OpenTreeFlags;

use crate::layer::at::At;
use crate::layer::attr::Attr;
use crate::layer::beneath::open_beneath;
use crate::layer::sys;

/// Detached clones of directories, each with its path.
#[derive(Debug, Default)]
pub(super) struct Clones {
    made: Vec<(PathBuf, OwnedFd)>,
}

impl Clones {
    /// The directory `path` with the attributes `attr`, in a private clone; `None` where clones are not allowed.
    pub(super) fn open(&mut self, path: &Path, attr: &Attr) -> Option<OwnedFd> {
        let shared = |(base, tree): &(PathBuf, OwnedFd)| beneath(tree, base, path, attr);
        if let Some(root) = self.made.iter().rev().find_map(shared) {
            return Some(root);
        }
        // Layers usually lie side by side (LAYER), or each in a directory of its own (ID/diff).
        for levels in [2, 1, 0] {
            let made = path
                .ancestors()
                .nth(levels)
                .and_then(|base| Some((base, private_clone(base)?)));
            if let Some((base, tree)) = made
                && let Some(root) = beneath(&tree, base, path, attr)
            {
                self.made.push((base.to_owned(), tree));
                return Some(root);
            }
        }
        None
    }
}

/// A clone of the mount at `base`, from there down, without what is mounted below.
fn private_clone(base: &Path) -> Option<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(rustix::fs::CWD, base, flags).ok()?;
    sys::make_read_only(&tree).ok()?;
    Some(tree)
}

/// Opens `path` in the clone of `base`, if it is the same directory there.
fn beneath(tree: &OwnedFd, base: &Path, path: &Path, attr: &Attr) -> Option<OwnedFd> {
    let inside = match path.strip_prefix(base).ok()? {
        itself if itself.as_os_str().is_empty() => Path::new("."),
        inside => inside,
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let root = open_beneath(tree, inside, flags, resolve).ok()?;
    let found = At::Pinned(root.as_fd()).stat().ok()?;
    ((found.dev, found.ino) == (attr.dev, attr.ino)).then_some(root)
}
