//! From entries in the order of the tar to an index.
//!
//! While a tar is read, inodes and names are only added: a name that is replaced leads to another inode, and what
//! cannot be reached any more is left out when the index is written. No path is walked by recursion.

use std::hash::{BuildHasher, RandomState};

use hashbrown::{HashMap, HashTable};
use smallvec::SmallVec;

use super::error::Problem;
use super::index::{Extent, WHITEOUT, flag};
use super::indexer::Limits;
use crate::layer::attr::{Kind, Time};
use crate::layer::mark::{self, AufsName};

/// A name that is no more than a whiteout so far.
const NONE: u32 = WHITEOUT;
pub(super) const ROOT: u32 = 0;

/// One entry of a tar.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) what: What,
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Time,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What an entry is.
#[derive(Debug)]
pub(super) enum What {
    /// Size and offset in the tar.
    File(u64, u64),
    /// Size and extents.
    Sparse(u64, Vec<Extent>),
    Directory,
    Symlink(Vec<u8>),
    /// The kind, and the number in the kernel's encoding.
    Device(Kind, u32),
    Fifo,
    /// Another name of what is, or will be, at this path.
    HardLink(Vec<u8>),
}

/// An inode as it is collected. `kind` is `None` for a hard link whose target has not been met yet; `place` is then its
/// position in `Builder::pending`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Node {
    pub(super) kind: Option<Kind>,
    pub(super) mode: u16,
    pub(super) flags: u8,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Time,
    pub(super) size: u64,
    pub(super) place: u64,
    pub(super) count: u32,
    pub(super) xattrs: u32,
}

/// A name in a directory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Named {
    pub(super) parent: u32,
    pub(super) inode: u32,
    at: u32,
    length: u8,
    pub(super) whiteout: bool,
}

/// A hard link to something that was not there yet.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) entry: Box<[u8]>,
    pub(super) target: Box<[u8]>,
    pub(super) offset: u64,
}

/// Collects entries.
#[derive(Debug)]
pub(super) struct Builder {
    pub(super) limits: Limits,
    pub(super) nodes: Vec<Node>,
    pub(super) names: Vec<Named>,
    /// Positions in `names` by parent and name. Seeded: the names come from anybody.
    table: HashTable<u32>,
    seed: RandomState,
    pub(super) strings: Vec<u8>,
    pub(super) extents: Vec<Extent>,
    pub(super) pending: Vec<Pending>,
    pending_bytes: usize,
    /// Where a set of xattrs is, by its encoding: many files have the same.
    xattr_sets: HashMap<Vec<u8>, u32, RandomState>,
    /// The directory of the last entry; the next is often in the same.
    last: (Vec<u8>, u32),
}

type Components<'a> = SmallVec<[&'a [u8]; 16]>;

/// The components of a path in a tar: relative to the root of the layer whether it says so or not.
fn components<'a>(path: &'a [u8], limits: &Limits) -> Result<Components<'a>, Problem> {
    if path.len() > limits.path as usize {
        return Err(Problem::Limit {
            what: "bytes of a path",
            limit: limits.path.into(),
        });
    }
    let mut parts = Components::new();
    for part in path.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(Problem::Name("its path leads out of the layer ('..')")),
            part if part.len() > 255 => {
                return Err(Problem::Name("a part of its path is longer than 255 bytes"));
            }
            part if part.contains(&0) => return Err(Problem::Name("NUL in its path")),
            part => parts.push(part),
        }
    }
    Ok(parts)
}

impl Builder {
    pub(super) fn new(limits: Limits) -> Self {
        let root = Node {
            flags: flag::IMPLIED,
            ..Node::new(Some(Kind::Directory), 0o755)
        };
        Self {
            limits,
            nodes: vec![root],
            names: Vec::new(),
            table: HashTable::new(),
            seed: RandomState::new(),
            strings: Vec::new(),
            extents: Vec::new(),
            pending: Vec::new(),
            pending_bytes: 0,
            xattr_sets: HashMap::default(),
            last: (Vec::new(), ROOT),
        }
    }

    pub(super) fn name(&self, named: &Named) -> &[u8] {
        &self.strings[named.at as usize..][..usize::from(named.length)]
    }

    pub(super) fn string_place(named: &Named) -> (u32, u32) {
        (named.at, named.length.into())
    }

    fn hash(&self, parent: u32, name: &[u8]) -> u64 {
        self.seed.hash_one((parent, name))
    }

    pub(super) fn find(&self, parent: u32, name: &[u8]) -> Option<u32> {
        let same = |&position: &u32| {
            let named = &self.names[position as usize];
            named.parent == parent && self.name(named) == name
        };
        self.table.find(self.hash(parent, name), same).copied()
    }

    /// Position of the name, which is made if it is not there.
    fn name_at(&mut self, parent: u32, name: &[u8]) -> Result<u32, Problem> {
        if let Some(position) = self.find(parent, name) {
            return Ok(position);
        }
        let position = self.checked_count(self.names.len())?;
        let at = self.keep(name)?;
        self.names.push(Named {
            parent,
            inode: NONE,
            at,
            length: u8::try_from(name.len()).map_err(|_| Problem::Name("a name is too long"))?,
            whiteout: false,
        });
        let hash = self.hash(parent, name);
        let Self {
            table,
            names,
            strings,
            seed,
            ..
        } = self;
        table.insert_unique(hash, position, |&position| {
            let named = &names[position as usize];
            let name = &strings[named.at as usize..][..usize::from(named.length)];
            seed.hash_one((named.parent, name))
        });
        Ok(position)
    }

    fn checked_count(&self, count: usize) -> Result<u32, Problem> {
        u32::try_from(count)
            .ok()
            .filter(|&count| count < self.limits.entries)
            .ok_or(Problem::Limit {
                what: "entries",
                limit: self.limits.entries.into(),
            })
    }

    /// Puts bytes into the strings; where they are.
    fn keep(&mut self, bytes: &[u8]) -> Result<u32, Problem> {
        let at = self.strings.len();
        if at + bytes.len() > self.limits.strings as usize {
            return Err(Problem::Limit {
                what: "bytes of names, link targets and xattrs",
                limit: self.limits.strings.into(),
            });
        }
        self.strings.extend_from_slice(bytes);
        u32::try_from(at).map_err(|_| Problem::Name("too many names"))
    }

    fn add_node(&mut self, node: Node) -> Result<u32, Problem> {
        let number = self.checked_count(self.nodes.len())?;
        self.nodes.push(node);
        Ok(number)
    }

    fn is_directory(&self, inode: u32) -> bool {
        inode != NONE && self.nodes[inode as usize].kind == Some(Kind::Directory)
    }

    /// Lets a name lead to another inode.
    fn set(&mut self, position: u32, inode: u32) {
        let named = &mut self.names[position as usize];
        let before = std::mem::replace(&mut named.inode, inode);
        if before != inode && self.is_directory(before) {
            self.last = (Vec::new(), ROOT);
        }
    }

    /// The directory at `parts`; what is not there, or no directory, becomes an implied one.
    fn directory(&mut self, parts: &[&[u8]]) -> Result<u32, Problem> {
        let path = parts.join(&b'/');
        if path == self.last.0 {
            return Ok(self.last.1);
        }
        let mut dir = ROOT;
        for part in parts {
            let position = self.name_at(dir, part)?;
            let inode = self.names[position as usize].inode;
            dir = if self.is_directory(inode) {
                inode
            } else {
                let implied = Node {
                    flags: flag::IMPLIED,
                    ..Node::new(Some(Kind::Directory), 0o755)
                };
                let made = self.add_node(implied)?;
                self.set(position, made);
                made
            };
        }
        self.last = (path, dir);
        Ok(dir)
    }

    /// Adds an entry. `offset` is where it begins.
    pub(super) fn insert(&mut self, path: &[u8], item: Item, offset: u64) -> Result<(), Problem> {
        let parts = components(path, &self.limits)?;
        let Some((name, parents)) = parts.split_last() else {
            return self.insert_root(item);
        };
        let marker = |part: &&&[u8]| {
            part.starts_with(mark::AUFS_PREFIX)
                && (!part.starts_with(mark::AUFS_RESERVED) || **part == mark::AUFS_OPAQUE)
        };
        if parents.iter().find(marker).is_some() {
            return Err(Problem::Name("it lies below a whiteout"));
        }
        match mark::aufs_name(name) {
            Some(AufsName::Opaque) => {
                let dir = self.directory(parents)?;
                self.nodes[dir as usize].flags |= flag::OPAQUE;
                Ok(())
            }
            Some(AufsName::Whiteout(hidden)) => {
                let dir = self.directory(parents)?;
                let position = self.name_at(dir, hidden.bytes())?;
                self.names[position as usize].whiteout = true;
                Ok(())
            }
            Some(AufsName::Reserved) if !name.starts_with(mark::AUFS_RESERVED) => {
                Err(Problem::Name("a whiteout of nothing"))
            }
            // Not shown, but hard links may lead there.
            Some(AufsName::Reserved) | None => {
                let dir = self.directory(parents)?;
                self.insert_named(dir, name, item, (path, offset))
            }
        }
    }

    fn insert_root(&mut self, item: Item) -> Result<(), Problem> {
        if !matches!(item.what, What::Directory) {
            return Err(Problem::Name("the root of a layer must be a directory"));
        }
        self.update_directory(ROOT, item)
    }

    fn update_directory(&mut self, inode: u32, item: Item) -> Result<(), Problem> {
        let opaque = self.nodes[inode as usize].flags & flag::OPAQUE;
        let mut node = self.node_of(item)?;
        node.flags |= opaque;
        self.nodes[inode as usize] = node;
        Ok(())
    }

    fn insert_named(
        &mut self,
        dir: u32,
        name: &[u8],
        item: Item,
        (entry, offset): (&[u8], u64),
    ) -> Result<(), Problem> {
        let position = self.name_at(dir, name)?;
        let before = self.names[position as usize].inode;
        let inode = match item.what {
            What::HardLink(target) => self.link(position, &target, entry, offset)?,
            What::Directory if self.is_directory(before) => {
                return self.update_directory(before, item);
            }
            _ => {
                let node = self.node_of(item)?;
                self.add_node(node)?
            }
        };
        self.set(position, inode);
        Ok(())
    }

    /// The inode a hard link at the name `position` leads to.
    fn link(
        &mut self,
        position: u32,
        target: &[u8],
        entry: &[u8],
        offset: u64,
    ) -> Result<u32, Problem> {
        match self.link_target(target)? {
            Some(found) if found == position => Err(linked(target, "that is itself")),
            Some(found) if self.names[found as usize].inode != NONE => {
                let inode = self.names[found as usize].inode;
                if self.is_directory(inode) {
                    return Err(linked(target, "that is a directory"));
                }
                Ok(inode)
            }
            _ => {
                // What is kept for it counts as if it were kept in the index.
                self.pending_bytes += entry.len() + target.len() + size_of::<Pending>();
                if self.pending_bytes > self.limits.strings as usize {
                    return Err(linked(target, "too many links to later entries"));
                }
                let place = self.pending.len() as u64;
                self.pending.push(Pending {
                    entry: entry.into(),
                    target: target.into(),
                    offset,
                });
                self.add_node(Node {
                    place,
                    ..Node::new(None, 0)
                })
            }
        }
    }

    /// Position of the name a link target leads to, if there is one now.
    pub(super) fn link_target(&self, target: &[u8]) -> Result<Option<u32>, Problem> {
        let parts = components(target, &self.limits).map_err(|problem| match problem {
            Problem::Name(reason) => linked(target, reason),
            other => other,
        })?;
        let Some((name, parents)) = parts.split_last() else {
            return Err(linked(target, "that is the root"));
        };
        let mut dir = ROOT;
        for part in parents {
            let inode = self
                .find(dir, part)
                .map(|position| self.names[position as usize].inode);
            match inode.filter(|&inode| self.is_directory(inode)) {
                Some(inode) => dir = inode,
                None => return Ok(None),
            }
        }
        Ok(self.find(dir, name))
    }

    fn node_of(&mut self, item: Item) -> Result<Node, Problem> {
        let xattrs = self.keep_xattrs(&item.xattrs)?;
        let mut node = Node {
            uid: item.uid,
            gid: item.gid,
            mtime: item.mtime,
            xattrs,
            ..Node::new(None, item.mode)
        };
        let kind = match item.what {
            What::File(size, place) => {
                (node.size, node.place) = (size, place);
                Kind::File
            }
            What::Sparse(size, extents) => {
                if self.extents.len() + extents.len() > self.limits.extents as usize {
                    return Err(Problem::Limit {
                        what: "extents of sparse files",
                        limit: self.limits.extents.into(),
                    });
                }
                (node.size, node.place) = (size, self.extents.len() as u64);
                node.count = u32::try_from(extents.len()).unwrap_or(u32::MAX);
                node.flags = flag::SPARSE;
                self.extents.extend(extents);
                Kind::File
            }
            What::Directory => Kind::Directory,
            What::Symlink(target) => {
                (node.size, node.place) = (target.len() as u64, self.keep(&target)?.into());
                Kind::Symlink
            }
            What::Device(kind, number) => {
                node.place = number.into();
                kind
            }
            What::Fifo => Kind::Fifo,
            What::HardLink(target) => return Err(linked(&target, "that is the root")),
        };
        node.kind = Some(kind);
        Ok(node)
    }

    /// Where the xattrs are, in the form of the index.
    fn keep_xattrs(&mut self, xattrs: &[(Vec<u8>, Vec<u8>)]) -> Result<u32, Problem> {
        if xattrs.is_empty() {
            return Ok(0);
        }
        let many = |_| Problem::Pax("more xattrs than a file can have");
        let count = u16::try_from(xattrs.len()).map_err(many)?;
        let mut set = count.to_le_bytes().to_vec();
        for (name, value) in xattrs {
            let lengths = (
                u16::try_from(name.len()).map_err(many)?,
                u32::try_from(value.len()).map_err(many)?,
            );
            set.extend_from_slice(&lengths.0.to_le_bytes());
            set.extend_from_slice(&lengths.1.to_le_bytes());
            set.extend_from_slice(name);
            set.extend_from_slice(value);
        }
        if let Some(&known) = self.xattr_sets.get(&set) {
            return Ok(known);
        }
        let place = self.keep(&set)? + 1;
        self.xattr_sets.insert(set, place);
        Ok(place)
    }
}

impl Node {
    fn new(kind: Option<Kind>, mode: u16) -> Self {
        Self {
            kind,
            mode,
            flags: 0,
            uid: 0,
            gid: 0,
            mtime: Time::default(),
            size: 0,
            place: 0,
            count: 0,
            xattrs: 0,
        }
    }
}

pub(super) fn linked(target: &[u8], reason: &'static str) -> Problem {
    let target = target[..target.len().min(200)].to_vec();
    Problem::Link { target, reason }
}
