//! The union: what names and contents a stack of layers shows, and what a change does to the upper.
//!
//! One file per operation, named as in the kernel's overlayfs: [`lookup`], [`readdir`], [`copy_up`], [`copy_up_tree`], [`create`],
//! [`remove`], [`rename`], [`attr`], [`xattr`], [`open`]. [`node`] and [`index`] hold what is known in memory,
//! [`place`] finds a node's object on disk, [`link`] keeps hard links, [`ino`] numbers, [`ids`] owners,
//! [`complete`] makes the upper independent of what lies below, [`provenance`] says which layer an object comes from, [`read_ahead`] prepares what a walk will list. Nothing here makes
//! a system call; `layer` does.
//!
//! Lock order: `Node::copying`, `Overlay::names`, `DirState` of a parent before that of its child, then the leaf
//! locks (`Node::state`, the table, descriptor slots). `names` is held shared by whatever goes from a node to its
//! object on disk, exclusively while names move or vanish. No lock but `copying` is held while file data is copied,
//! and none while replying.

pub mod attr;
pub mod complete;
pub mod copy_up;
pub mod copy_up_tree;
pub mod counters;
pub mod create;
pub mod file_flags;
pub mod ids;
pub mod index;
pub mod ino;
pub mod link;
pub mod lookup;
pub mod node;
pub mod open;
pub mod options;
pub mod place;
pub mod provenance;
pub mod read_ahead;
pub mod readdir;
pub mod remove;
pub mod rename;
mod timeout;
pub mod xattr;

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use parking_lot::RwLock;
use rustix::io::{Errno, Result};
use smallvec::SmallVec;

pub use options::Options;

use crate::layer::at::At;
use crate::layer::attr::{Attr, Kind};
use crate::layer::error::{Cause, SetupError};
use crate::layer::handle::HandleSpace;
use crate::layer::lower::LowerDir;
use crate::layer::mark::Marks;
use crate::layer::stack::Stack;
use counters::Counters;
use ids::Ids;
use ino::{Filesystem, InoMap};
use node::{Dir, DirState, Inserted, Node, NodeTable, ROOT, Real, State};
use options::Acl;

/// Who makes a request.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// User, as in the mount.
    pub uid: u32,
    /// Group, as in the mount.
    pub gid: u32,
    /// Permission bits a new file does not get.
    pub umask: u16,
}

/// An entry as the kernel is told about it; one lookup count has been handed over.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// Number of the node.
    pub ino: u64,
    /// Distinguishes it from earlier nodes of the same number.
    pub generation: u64,
    /// Its attributes, `ino` being the number above.
    pub attr: Attr,
}

/// A mounted union.
#[derive(Debug)]
pub struct Overlay {
    stack: Stack,
    options: Options,
    ids: Ids,
    inos: InoMap,
    nodes: NodeTable,
    /// See the module documentation.
    names: RwLock<()>,
    /// Filesystems whose file handles we can read, with their device numbers.
    origins: Vec<(HandleSpace, u64)>,
    /// The hard-link index, if one is kept, and whether it has entries.
    index_fd: Option<Arc<OwnedFd>>,
    index_used: AtomicBool,
    bare_origins: link::BareOrigins,
    /// Every layer can list xattrs, so what is not listed is not there.
    lists_xattrs: bool,
    /// Some layer keeps owner and mode in xattrs.
    overrides: bool,
    /// User and group files get that we create.
    own: (u32, u32),
    generation: AtomicU32,
    walk: read_ahead::Walk,
    counters: Counters,
    finished: AtomicBool,
}

impl Drop for Overlay {
    fn drop(&mut self) {
        self.finish();
    }
}

impl Overlay {
    /// A union over `stack`.
    pub fn new(stack: Stack, options: Options) -> std::result::Result<Self, SetupError> {
        Self::assemble(stack, options).map_err(|error| {
            let reason = crate::layer::describe(error);
            SetupError::new(
                Cause::System,
                format!("cannot read the root of the layers: {reason}"),
            )
        })
    }

    fn assemble(stack: Stack, options: Options) -> Result<Self> {
        let limits = &options.limits;
        let fds = &stack.fds;
        for (pool, budget) in [(&fds.dirs, limits.dir_fds), (&fds.files, limits.file_fds)] {
            if budget > 0 {
                pool.set_budget(budget);
            }
        }
        let upper = stack.upper.iter().map(|upper| Filesystem {
            dev: upper.dev,
            end: None,
        });
        let lowers = stack.lowers.iter().map(|lower| Filesystem {
            dev: lower.dev,
            end: lower.archive().map(|archive| archive.end()),
        });
        let inos = InoMap::new(upper.chain(lowers), options.ino32);
        let (index_fd, index_used) = open_index(&stack, &options)?;
        let overrides = stack
            .upper
            .as_ref()
            .is_some_and(|upper| upper.override_name.is_some())
            || stack
                .lowers
                .iter()
                .any(|lower| lower.override_name().is_some());
        let root = root_node(&stack)?;
        let nodes = NodeTable::new(options.limits.nodes);
        if let Inserted::New(reference) = nodes.insert(ROOT, || root) {
            reference.keep();
        }
        Ok(Self {
            ids: Ids::new(&options),
            inos,
            nodes,
            names: RwLock::new(()),
            origins: origin_spaces(&stack),
            index_fd,
            index_used: AtomicBool::new(index_used),
            bare_origins: link::BareOrigins::default(),
            overrides,
            lists_xattrs: stack.list_xattrs(),
            own: crate::layer::own_ids(),
            generation: AtomicU32::new(1),
            walk: read_ahead::Walk::default(),
            counters: Counters::default(),
            finished: AtomicBool::new(false),
            stack,
            options,
        })
    }

    /// The options of the mount.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Nothing can be changed.
    pub fn is_read_only(&self) -> bool {
        self.stack.upper.is_none()
    }

    /// fsync does nothing.
    pub fn is_volatile(&self) -> bool {
        let upper = self.stack.upper.as_ref();
        upper.is_some_and(|upper| upper.durability.is_volatile())
    }

    /// Refuses a mountpoint inside the upper or workdir.
    pub fn check_mountpoint(&self, mountpoint: &Path) -> std::result::Result<(), SetupError> {
        self.stack.check_mountpoint(mountpoint)
    }

    /// Looks at the mountpoint before it is covered: this is what a layer shows there that contains it.
    pub fn set_mountpoint(&self, mountpoint: &Path) {
        self.stack.look_at_mountpoint(mountpoint);
    }

    /// Whether ACLs are refused altogether.
    fn acl_refused(&self) -> bool {
        self.options.acl == Acl::Off
    }

    /// The kernel gave back `count` lookups of a node.
    pub fn forget(&self, ino: u64, count: u64) {
        self.nodes.forget(ino, count);
    }

    /// Ends the mount: what has to be on disk is, and markers of a live mount are gone.
    pub fn finish(&self) {
        if self.finished.swap(true, Ordering::Relaxed) {
            return;
        }
        if let Some(upper) = &self.stack.upper {
            crate::layer::best_effort("finish the upper", upper.finish());
        }
    }

    fn next_generation(&self) -> u32 {
        self.generation.fetch_add(1, Ordering::Relaxed)
    }
}

fn root_node(stack: &Stack) -> Result<Node> {
    let marks = match &stack.upper {
        Some(upper) => upper.marks(At::Pinned(upper.root()))?,
        None => Marks::default(),
    };
    let state = DirState {
        in_upper: stack.upper.is_some(),
        lowers: merged_roots(stack)?,
        impure: marks.impure,
        default_acl: marks.default_acl,
        ..DirState::default()
    };
    let mut attr = match (&stack.upper, state.shown_lower()) {
        (Some(upper), _) => upper.stat(At::Pinned(upper.root()))?,
        (None, Some(lower)) => lower.stat_self()?,
        (None, None) => return Err(Errno::NOENT),
    };
    if state.sources() > 1 {
        attr.nlink = 1;
    }
    let dir = Dir::new(state, None, stack.fds.dirs.slot());
    Ok(Node::new(
        ROOT,
        0,
        Kind::Directory,
        State::new(attr, Real::Directory),
        Some(dir),
    ))
}

/// Roots of the lowers down to the first that is opaque.
fn merged_roots(stack: &Stack) -> Result<SmallVec<[Arc<LowerDir>; 1]>> {
    let mut roots = SmallVec::new();
    for root in &stack.roots {
        roots.push(Arc::clone(root));
        if root.marks_self()?.opaque {
            break;
        }
    }
    Ok(roots)
}

/// Each filesystem of the lowers whose handles tell their device: not those shared by several devices.
fn origin_spaces(stack: &Stack) -> Vec<(HandleSpace, u64)> {
    let mut spaces: Vec<(HandleSpace, u64)> = Vec::new();
    let mut ambiguous = Vec::new();
    for lower in &stack.lowers {
        let Some(space) = lower.handles else { continue };
        match spaces.iter().find(|(known, _)| *known == space) {
            Some((_, dev)) if *dev == lower.dev => {}
            Some(_) => ambiguous.push(space),
            None => spaces.push((space, lower.dev)),
        }
    }
    spaces.retain(|(space, _)| !ambiguous.contains(space));
    spaces
}

/// Opens the hard-link index and looks whether it has entries.
fn open_index(stack: &Stack, options: &Options) -> Result<(Option<Arc<OwnedFd>>, bool)> {
    let Some(upper) = &stack.upper else {
        return Ok((None, false));
    };
    let Some(index) = upper.index().filter(|_| options.index) else {
        return Ok((None, false));
    };
    let mut used = false;
    upper.list(index, |_| {
        used = true;
        Ok(())
    })?;
    let fd = upper.pin(At::Pinned(index.as_fd()))?;
    Ok((Some(Arc::new(fd)), used))
}
