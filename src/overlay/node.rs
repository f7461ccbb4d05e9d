//! Nodes: what the kernel knows by number, and where each one is in the layers.
//!
//! Invariants:
//! - A number in the table names one object for as long as it is there; the number does not change when the
//!   object is copied up.
//! - A file moves only from lower to upper, a directory only gains an upper part; `copy_up.rs` alone does it.
//! - Lookup counts change only through [`LookupRef`] and [`NodeTable::forget`].
//! - An entry of a directory index may name a node that is gone; [`Node::is_at`] tells.

use std::collections::VecDeque;
use std::hash::BuildHasher;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use parking_lot::{Mutex, MutexGuard};
use rustc_hash::FxBuildHasher;
use smallvec::SmallVec;

use super::index::Index;
use crate::layer::attr::{Attr, Kind};
use crate::layer::fd::FdSlot;
use crate::layer::lower::{LowerDir, LowerFile};
use crate::layer::mark::Redirect;
use crate::layer::name::{Name, OwnedName};

/// Number of the root node, fixed by the FUSE protocol.
pub const ROOT: u64 = 1;

/// One object of the merged tree.
#[derive(Debug)]
pub struct Node {
    /// Its number towards the kernel and its `st_ino`.
    pub ino: u64,
    /// Distinguishes it from an earlier node of the same number.
    pub generation: u32,
    /// What it is.
    pub kind: Kind,
    /// It is in the list of unreferenced nodes; changed under the lock of the table.
    cold: AtomicBool,
    /// References the kernel (or a request in flight) holds; changed under the lock of the table. Who reaches the
    /// maximum stays for ever.
    lookups: AtomicU32,
    /// Held while its data is copied up: a second writer waits, nobody else. Taken before any other lock.
    pub copying: Mutex<()>,
    /// Directory part. Lock order: parent before child, then `state`.
    pub dir: Option<Box<Dir>>,
    /// A leaf lock: nothing else is locked, and nothing slow done, while it is held.
    state: Mutex<State>,
}

/// A name of a node.
#[derive(Clone, Debug)]
pub struct Alias {
    /// The merged directory.
    pub parent: Arc<Node>,
    /// The name in it.
    pub name: OwnedName,
}

/// Where an object is.
#[derive(Clone, Debug)]
pub enum Real {
    /// A directory: see [`DirState`].
    Directory,
    /// In a lower layer only.
    Lower(LowerFile),
    /// In the upper, at its first alias.
    Upper,
    /// In the upper, at this entry of the hard-link index.
    Indexed(OwnedName),
    /// In the upper without a name that we know.
    Pinned(Arc<OwnedFd>),
}

/// No filesystem has so many links.
const NO_COUNT: u32 = u32::MAX;

/// The part of a node that changes.
#[derive(Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent facts about one object"
)]
pub struct State {
    /// Attributes as last read; `attr.dev` and `attr.ino` identify the real object.
    pub attr: Attr,
    /// `attr` is what is on disk.
    pub fresh: bool,
    /// Counts the times `attr` became stale, so that an old answer is not taken for a new one.
    pub changes: u32,
    /// Where the object is.
    pub real: Real,
    /// Counts the times the place of its data changed, so that a file opened before is not kept.
    pub moves: u16,
    /// For a metadata-only copy: where the data still is.
    pub data: Option<Box<LowerFile>>,
    /// Names it is known by. Empty for the root and for unlinked nodes.
    pub aliases: SmallVec<[Alias; 1]>,
    /// Its open file, see [`State::open_file`].
    io: Option<Arc<FdSlot>>,
    /// The open file takes writes.
    writable: bool,
    /// See [`State::union_nlink`]; `NO_COUNT` for none.
    union: u32,
    /// The kernel writes the file itself, so `attr` is never fresh for long.
    pub behind: bool,
    /// Another node has taken over its name, see `Overlay::detach`.
    pub replaced: bool,
    /// What is known not to be there, so that asking the disk is a waste.
    pub xattrs: Xattrs,
}

/// How much is known of the xattrs that a node does not have.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub enum Xattrs {
    /// Nothing.
    #[default]
    Unknown,
    /// There is no `security.capability`.
    NoCapabilities,
    /// The mount shows none to anybody.
    None,
}

/// The directory part of a node.
#[derive(Debug)]
pub struct Dir {
    /// Entries and layers.
    pub state: Mutex<DirState>,
    /// Descriptor of the directory in the upper.
    pub upper: Arc<FdSlot>,
    /// Its redirect, as written in the upper. A leaf lock.
    redirect: Mutex<Option<Box<Redirect>>>,
    /// Descriptor of a directory that has no name any more, for those who still have it open.
    pinned: OnceLock<Arc<OwnedFd>>,
}

impl Dir {
    /// A directory made of `state`.
    pub fn new(state: DirState, redirect: Option<Redirect>, upper: Arc<FdSlot>) -> Self {
        Self {
            state: Mutex::new(state),
            upper,
            redirect: Mutex::new(redirect.map(Box::new)),
            pinned: OnceLock::new(),
        }
    }

    /// Keeps `fd` for the rest of the directory's life: it is about to lose its name.
    pub fn pin(&self, fd: Arc<OwnedFd>) {
        // A second rmdir of the same directory cannot be.
        self.pinned.get_or_init(|| fd);
    }

    /// What [`Dir::pin`] kept.
    pub fn pinned(&self) -> Option<&Arc<OwnedFd>> {
        self.pinned.get()
    }

    /// Its redirect.
    pub fn redirect(&self) -> Option<Redirect> {
        self.redirect.lock().as_deref().cloned()
    }

    /// Notes the redirect that was written or removed.
    pub fn set_redirect(&self, redirect: Option<Redirect>) {
        *self.redirect.lock() = redirect.map(Box::new);
    }
}

/// What a merged directory is made of.
#[derive(Debug, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent facts about one directory"
)]
pub struct DirState {
    /// It exists in the upper.
    pub in_upper: bool,
    /// Its directories in the lowers, topmost first.
    pub lowers: SmallVec<[Arc<LowerDir>; 1]>,
    /// The upper part hides all lowers.
    pub opaque: bool,
    /// The upper part carries the impure mark.
    pub impure: bool,
    /// New entries inherit an ACL, so the caller's umask does not apply.
    pub default_acl: bool,
    /// It was removed: nothing can be created in it.
    pub dead: bool,
    /// Names.
    pub index: Index,
}

impl DirState {
    /// Number of directories it is merged from.
    pub fn sources(&self) -> usize {
        usize::from(self.in_upper) + self.lowers.len()
    }

    /// The lower directory whose attributes are shown where there is no upper one: the topmost that is in its layer
    /// itself, not only something below it.
    pub fn shown_lower(&self) -> Option<&Arc<LowerDir>> {
        let own = self.lowers.iter().find(|dir| !dir.is_implied());
        own.or(self.lowers.first())
    }
}

impl Node {
    /// A node that is not in a table yet.
    pub fn new(ino: u64, generation: u32, kind: Kind, state: State, dir: Option<Dir>) -> Self {
        Self {
            ino,
            generation,
            kind,
            cold: AtomicBool::new(false),
            lookups: AtomicU32::new(0),
            copying: Mutex::new(()),
            dir: dir.map(Box::new),
            state: Mutex::new(state),
        }
    }

    fn count(&self) {
        let lookups = self.lookups.load(Ordering::Relaxed);
        self.lookups
            .store(lookups.saturating_add(1), Ordering::Relaxed);
    }

    fn discount(&self, less: u64) {
        let lookups = self.lookups.load(Ordering::Relaxed);
        if lookups < u32::MAX {
            let less = u32::try_from(less).unwrap_or(u32::MAX);
            self.lookups
                .store(lookups.saturating_sub(less), Ordering::Relaxed);
        }
    }

    fn is_referenced(&self) -> bool {
        self.lookups.load(Ordering::Relaxed) > 0
    }

    /// Locks the changing part.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Whether `parent/name` is one of its names.
    pub fn is_at(&self, parent: &Arc<Node>, name: Name<'_>) -> bool {
        self.state()
            .aliases
            .iter()
            .any(|alias| alias.is(parent, name))
    }

    /// Forgets what the attributes were.
    pub fn stale(&self) {
        self.state().stale();
    }

    /// Takes a name away.
    pub fn remove_alias(&self, parent: &Arc<Node>, name: Name<'_>) {
        self.state().remove_alias(parent, name);
    }

    /// Adds a name.
    pub fn add_alias(&self, alias: Alias) {
        let mut state = self.state();
        if !state
            .aliases
            .iter()
            .any(|known| known.is(&alias.parent, alias.name.get()))
        {
            state.aliases.push(alias);
        }
    }

    /// Whether it lives in the upper; for a directory, whether it has an upper part.
    pub fn in_upper(&self) -> bool {
        match &self.dir {
            Some(dir) => dir.state.lock().in_upper,
            None => !matches!(self.state().real, Real::Lower(_)),
        }
    }
}

impl Drop for Node {
    /// Lets go of the directories above one after the other: a chain may be longer than the stack is deep.
    fn drop(&mut self) {
        let mut above = std::mem::take(&mut self.state.get_mut().aliases);
        while let Some(alias) = above.pop() {
            if let Some(mut parent) = Arc::into_inner(alias.parent) {
                above.append(&mut parent.state.get_mut().aliases);
            }
        }
    }
}

impl State {
    /// A state with the given place and attributes.
    pub fn new(attr: Attr, real: Real) -> Self {
        Self {
            attr,
            fresh: true,
            changes: 0,
            real,
            moves: 0,
            data: None,
            aliases: SmallVec::new(),
            io: None,
            writable: false,
            union: NO_COUNT,
            behind: false,
            replaced: false,
            xattrs: Xattrs::Unknown,
        }
    }
}

impl State {
    /// Takes a name away.
    pub fn remove_alias(&mut self, parent: &Arc<Node>, name: Name<'_>) {
        self.aliases.retain(|alias| !alias.is(parent, name));
    }

    /// Names in the whole union, for an indexed inode.
    pub fn union_nlink(&self) -> Option<u32> {
        (self.union != NO_COUNT).then_some(self.union)
    }

    /// Notes how many they are.
    pub fn set_union_nlink(&mut self, count: u32) {
        self.union = count;
    }

    /// Its open file, and whether that takes writes.
    pub fn open_file(&self) -> Option<(Arc<FdSlot>, bool)> {
        let slot = self.io.as_ref()?;
        Some((Arc::clone(slot), self.writable))
    }

    /// Notes the open file, and whether that takes writes.
    pub fn set_open_file(&mut self, file: Option<(Arc<FdSlot>, bool)>) {
        self.writable = file.as_ref().is_some_and(|(_, writable)| *writable);
        self.io = file.map(|(slot, _)| slot);
    }

    /// The object has a name again.
    pub fn unpin(&mut self) {
        if let Real::Pinned(_) = self.real {
            self.real = Real::Upper;
        }
    }

    /// Notes xattrs that are not there.
    pub fn lacks(&mut self, xattrs: Xattrs) {
        self.xattrs = self.xattrs.max(xattrs);
    }

    /// Any xattr may be there from now on.
    pub fn given_xattrs(&mut self) {
        self.xattrs = Xattrs::Unknown;
        self.stale();
    }

    /// It is in the upper now, whose filesystem may give new files xattrs (a label, properties of their directory).
    pub fn copied_up(&mut self) {
        self.xattrs = self.xattrs.min(Xattrs::NoCapabilities);
        self.stale();
    }

    /// Forgets what the attributes were.
    pub fn stale(&mut self) {
        self.fresh = false;
        self.changes = self.changes.wrapping_add(1);
    }
}

impl Alias {
    /// Whether it is `parent/name`.
    pub fn is(&self, parent: &Arc<Node>, name: Name<'_>) -> bool {
        Arc::ptr_eq(&self.parent, parent) && self.name.get() == name
    }
}

/// The table itself keeps no numbers, only nodes, which have theirs.
#[derive(Debug, Default)]
struct Nodes {
    known: HashTable<Arc<Node>>,
    /// Nodes without references, oldest first; may name nodes referenced again since, and nodes that are gone.
    cold: VecDeque<u64>,
}

fn hash(ino: u64) -> u64 {
    // The place in the table comes from the middle of a product, where the filesystem in the top bits has no part.
    FxBuildHasher.hash_one(ino ^ ino >> 28)
}

impl Nodes {
    fn get(&self, ino: u64) -> Option<&Arc<Node>> {
        self.known.find(hash(ino), |known| known.ino == ino)
    }

    fn remove(&mut self, ino: u64) -> Option<Arc<Node>> {
        let found = self.known.find_entry(hash(ino), |known| known.ino == ino);
        found.ok().map(|found| found.remove().0)
    }

    /// Takes the oldest unreferenced node out of the table. A directory stays while nodes below it are known: they
    /// name it as their parent.
    fn evict_oldest(&mut self) -> Option<Arc<Node>> {
        let oldest = self.cold.pop_front()?;
        let known = self.get(oldest)?;
        known.cold.store(false, Ordering::Relaxed);
        if known.is_referenced() {
            return None;
        }
        if Arc::strong_count(known) > 1 {
            known.cold.store(true, Ordering::Relaxed);
            self.cold.push_back(oldest);
            return None;
        }
        self.remove(oldest)
    }
}

/// All nodes by number. A leaf lock, held for memory operations only.
#[derive(Debug)]
pub struct NodeTable {
    nodes: Mutex<Nodes>,
    cold_limit: usize,
}

/// What [`NodeTable::insert`] did.
#[derive(Debug)]
pub enum Inserted<'t> {
    /// The node is in the table now.
    New(LookupRef<'t>),
    /// Another node has the number.
    Taken(LookupRef<'t>),
}

/// One lookup count. Dropping it gives the count back.
#[derive(Debug)]
pub struct LookupRef<'t> {
    table: &'t NodeTable,
    node: Arc<Node>,
    kept: bool,
}

impl LookupRef<'_> {
    /// The node.
    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// Hands the count to the kernel, which will FORGET it.
    pub fn keep(mut self) -> Arc<Node> {
        self.kept = true;
        Arc::clone(&self.node)
    }
}

impl Drop for LookupRef<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.table.forget(self.node.ino, 1);
        }
    }
}

impl NodeTable {
    /// An empty table that keeps at most `cold_limit` unreferenced nodes.
    pub fn new(cold_limit: usize) -> Self {
        Self {
            nodes: Mutex::default(),
            cold_limit,
        }
    }

    /// The node of a request.
    pub fn get(&self, ino: u64) -> Option<Arc<Node>> {
        self.nodes.lock().get(ino).map(Arc::clone)
    }

    /// A counted reference to a node.
    pub fn reference(&self, ino: u64) -> Option<LookupRef<'_>> {
        let nodes = self.nodes.lock();
        let node = nodes.get(ino)?;
        node.count();
        Some(LookupRef {
            table: self,
            node: Arc::clone(node),
            kept: false,
        })
    }

    /// Adds a node made by `make` under `number`, or refers to the one that has the number.
    pub fn insert(&self, number: u64, make: impl FnOnce() -> Node) -> Inserted<'_> {
        let mut nodes = self.nodes.lock();
        let reference = |node| LookupRef {
            table: self,
            node,
            kept: false,
        };
        let rehash = |known: &Arc<Node>| hash(known.ino);
        let same = |known: &Arc<Node>| known.ino == number;
        match nodes.known.entry(hash(number), same, rehash) {
            Entry::Occupied(taken) => {
                taken.get().count();
                Inserted::Taken(reference(Arc::clone(taken.get())))
            }
            Entry::Vacant(free) => {
                let node = Arc::new(make());
                node.count();
                free.insert(Arc::clone(&node));
                Inserted::New(reference(node))
            }
        }
    }

    /// Takes `count` references away; a node without any is kept for a while unless it has no name left.
    pub fn forget(&self, ino: u64, count: u64) {
        let mut freed = SmallVec::<[Arc<Node>; 4]>::new();
        let mut nodes = self.nodes.lock();
        let Some(known) = nodes.get(ino) else {
            return;
        };
        known.discount(count);
        if known.is_referenced() || ino == ROOT {
            return;
        }
        if known.state().aliases.is_empty() {
            freed.extend(nodes.remove(ino));
        } else if !known.cold.swap(true, Ordering::Relaxed) {
            nodes.cold.push_back(ino);
        }
        let mut looks = nodes.cold.len();
        while nodes.cold.len() > self.cold_limit && looks > 0 {
            looks -= 1;
            freed.extend(nodes.evict_oldest());
        }
        drop(nodes);
        // Dropping a node may drop its parents and close descriptors: not under the lock.
        drop(freed);
    }

    /// Drops an unnamed node that nobody references.
    pub fn drop_if_unused(&self, ino: u64) {
        self.forget(ino, 0);
    }

    /// Whether the kernel may still use the node.
    pub fn is_referenced(&self, ino: u64) -> bool {
        self.nodes
            .lock()
            .get(ino)
            .is_some_and(|known| known.is_referenced())
    }

    /// Number of nodes, and how many of them nobody references.
    pub fn sizes(&self) -> (usize, usize) {
        let nodes = self.nodes.lock();
        (nodes.known.len(), nodes.cold.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_below_each_other_are_dropped_however_many_they_are() {
        let attr = crate::layer::at::At::Pinned(std::os::fd::AsFd::as_fd(&std::io::stdin()))
            .stat()
            .unwrap();
        let name = Name::from_bytes(b"d").unwrap();
        let mut last: Option<Arc<Node>> = None;
        for number in 0..300_000 {
            let mut state = State::new(attr, Real::Directory);
            state.aliases.extend(last.take().map(|parent| Alias {
                parent,
                name: name.to_owned(),
            }));
            last = Some(Arc::new(Node::new(number, 0, Kind::Directory, state, None)));
        }
        let highest = {
            let mut node = Arc::clone(last.as_ref().unwrap());
            while let Some(alias) = { node.state().aliases.first().cloned() } {
                node = alias.parent;
            }
            Arc::downgrade(&node)
        };
        drop(last);
        assert_eq!(highest.strong_count(), 0);
    }
}
