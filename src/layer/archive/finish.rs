//! Writing the index of what was collected: links resolved, what cannot be reached left out, directories sorted.

use sha2::{Digest, Sha256};

use super::build::{Builder, Named, Node, ROOT, linked};
use super::error::{IndexError, Problem};
use super::index::{EXTENT, HEADER, INODE, KINDS, MAGIC, NAME, VERSION, WHITEOUT, flag};
use crate::layer::attr::Kind;
use crate::layer::mark;

/// A number of an inode that is not in the index.
const GONE: u32 = u32::MAX;

impl Builder {
    /// The bytes of the index.
    pub(super) fn finish(mut self, tar_length: u64) -> Result<Vec<u8>, IndexError> {
        self.resolve_links()?;
        let (mut order, starts) = self.by_parent();
        for parent in 0..self.nodes.len() {
            let children = &mut order[starts[parent] as usize..starts[parent + 1] as usize];
            children.sort_unstable_by(|&a, &b| {
                let name = |position: u32| self.name(&self.names[position as usize]);
                name(a).cmp(name(b))
            });
        }
        let links = self.count_links(&order, &starts);
        Ok(self.write(&order, &starts, &links, tar_length))
    }

    /// Lets every name of a link lead to the inode behind it.
    fn resolve_links(&mut self) -> Result<(), IndexError> {
        let mut chain = Vec::new();
        // What a pending inode turned out to be; itself while it is being followed.
        let mut resolved = vec![GONE; self.pending.len()];
        for position in 0..self.names.len() {
            let mut inode = self.names[position].inode;
            chain.clear();
            while let Some(place) = self.pending_place(inode) {
                if resolved[place] == inode {
                    return Err(self.bad_link(place, "it leads back to itself"));
                }
                if resolved[place] != GONE {
                    inode = resolved[place];
                    continue;
                }
                resolved[place] = inode;
                chain.push(place);
                let target = self.link_target(&self.pending[place].target);
                let next = match target {
                    Ok(Some(found)) => self.names[found as usize].inode,
                    _ => WHITEOUT,
                };
                if next == WHITEOUT {
                    return Err(self.bad_link(place, "that is not in this layer"));
                }
                if self.nodes[next as usize].kind == Some(Kind::Directory) {
                    return Err(self.bad_link(place, "that is a directory"));
                }
                inode = next;
            }
            for &place in &chain {
                resolved[place] = inode;
            }
            self.names[position].inode = inode;
        }
        Ok(())
    }

    /// Position in `pending` of a link that is not resolved.
    fn pending_place(&self, inode: u32) -> Option<usize> {
        let node = self.nodes.get(inode as usize)?;
        let place = usize::try_from(node.place).ok()?;
        node.kind.is_none().then_some(place)
    }

    fn bad_link(&self, place: usize, reason: &'static str) -> IndexError {
        let pending = &self.pending[place];
        IndexError {
            problem: linked(&pending.target, reason),
            entry: pending.entry.to_vec(),
            offset: pending.offset,
        }
    }

    /// Names that can be shown.
    fn is_shown(&self, named: &Named) -> bool {
        (named.whiteout || named.inode != WHITEOUT)
            && !self.name(named).starts_with(mark::AUFS_PREFIX)
    }

    /// Positions of names, those of one parent together, and where each parent's begin.
    fn by_parent(&self) -> (Vec<u32>, Vec<u32>) {
        let mut starts = vec![0; self.nodes.len() + 1];
        let shown = || {
            self.names
                .iter()
                .enumerate()
                .filter(|(_, named)| self.is_shown(named))
        };
        for (_, named) in shown() {
            starts[named.parent as usize + 1] += 1;
        }
        for parent in 1..starts.len() {
            starts[parent] += starts[parent - 1];
        }
        let mut next = starts.clone();
        let mut order = vec![0; starts[self.nodes.len()] as usize];
        for (position, named) in shown() {
            let place = &mut next[named.parent as usize];
            // There are fewer than `u32::MAX`: the limit of entries.
            order[*place as usize] = u32::try_from(position).unwrap_or(GONE);
            *place += 1;
        }
        (order, starts)
    }

    /// Links of every inode; 0 for those that cannot be reached from the root.
    fn count_links(&self, order: &[u32], starts: &[u32]) -> Vec<u32> {
        let mut links = vec![0; self.nodes.len()];
        links[ROOT as usize] = 2;
        let mut left = vec![ROOT];
        while let Some(dir) = left.pop() {
            let (start, end) = (starts[dir as usize], starts[dir as usize + 1]);
            for &position in &order[start as usize..end as usize] {
                let inode = self.names[position as usize].inode;
                let Some(node) = self.nodes.get(inode as usize) else {
                    continue;
                };
                if node.kind == Some(Kind::Directory) {
                    links[dir as usize] += 1;
                    links[inode as usize] = 2;
                    left.push(inode);
                } else {
                    links[inode as usize] += 1;
                }
            }
        }
        links
    }

    fn write(&self, order: &[u32], starts: &[u32], links: &[u32], tar_length: u64) -> Vec<u8> {
        let mut numbers = vec![GONE; self.nodes.len()];
        let mut inodes = 0_u32;
        for (number, _) in numbers
            .iter_mut()
            .zip(links)
            .filter(|(_, links)| **links > 0)
        {
            *number = inodes;
            inodes += 1;
        }
        let reached = || (0..self.nodes.len()).filter(|&inode| links[inode] > 0);
        let names_of = |inode: usize| &order[starts[inode] as usize..starts[inode + 1] as usize];
        let mut opaque = vec![false; self.nodes.len()];
        for named in self.names.iter().filter(|named| named.whiteout) {
            // A directory and a whiteout of its name: what is below it is hidden.
            if let Some(opaque) = opaque.get_mut(named.inode as usize) {
                *opaque = true;
            }
        }
        let names: usize = reached().map(|inode| names_of(inode).len()).sum();
        let sections = inodes as usize * INODE + names * NAME + self.extents.len() * EXTENT;
        let mut out = Vec::with_capacity(HEADER + sections + self.strings.len());
        out.resize(HEADER, 0);
        let mut first_name = 0;
        for inode in reached() {
            let mut node = self.nodes[inode];
            if node.kind == Some(Kind::Directory) {
                let count = names_of(inode).len();
                (node.place, node.count) = (first_name, u32::try_from(count).unwrap_or(0));
                first_name += count as u64;
                if opaque[inode] {
                    node.flags |= flag::OPAQUE;
                }
            }
            write_inode(&node, links[inode], &mut out);
        }
        for inode in reached() {
            for &position in names_of(inode) {
                let named = &self.names[position as usize];
                let (at, length) = Self::string_place(named);
                let number = numbers.get(named.inode as usize).copied();
                out.extend_from_slice(&at.to_le_bytes());
                out.extend_from_slice(&number.unwrap_or(WHITEOUT).to_le_bytes());
                out.extend_from_slice(&length.to_le_bytes());
            }
        }
        for extent in &self.extents {
            for value in [extent.offset, extent.length, extent.tar] {
                out.extend_from_slice(&value.to_le_bytes());
            }
        }
        out.extend_from_slice(&self.strings);
        let names = u32::try_from(names).unwrap_or(0);
        let extents = u32::try_from(self.extents.len()).unwrap_or(0);
        let strings = self.strings.len() as u64;
        write_header(&mut out, [inodes, names, extents], [strings, tar_length]);
        out
    }
}

fn write_inode(node: &Node, links: u32, out: &mut Vec<u8>) {
    let kind = KINDS.iter().position(|&kind| Some(kind) == node.kind);
    let kind = kind.and_then(|kind| u8::try_from(kind).ok()).unwrap_or(0);
    out.extend_from_slice(&node.mode.to_le_bytes());
    out.extend_from_slice(&[kind, node.flags]);
    for value in [node.uid, node.gid, node.mtime.nsec] {
        out.extend_from_slice(&value.to_le_bytes());
    }
    out.extend_from_slice(&node.mtime.sec.to_le_bytes());
    for value in [node.size, node.place] {
        out.extend_from_slice(&value.to_le_bytes());
    }
    for value in [node.count, links, node.xattrs] {
        out.extend_from_slice(&value.to_le_bytes());
    }
}

pub(super) fn write_header(out: &mut [u8], counts: [u32; 3], lengths: [u64; 2]) {
    let body = Sha256::digest(&out[HEADER..]);
    let mut header = Vec::with_capacity(HEADER);
    header.extend_from_slice(MAGIC);
    header.extend_from_slice(&VERSION.to_le_bytes());
    for count in counts {
        header.extend_from_slice(&count.to_le_bytes());
    }
    for length in lengths {
        header.extend_from_slice(&length.to_le_bytes());
    }
    header.resize(64, 0);
    header.extend_from_slice(&body);
    let checksum = Sha256::digest(&header);
    header.extend_from_slice(&checksum);
    out[..HEADER].copy_from_slice(&header);
}

impl From<Problem> for IndexError {
    fn from(problem: Problem) -> Self {
        Self::general(problem)
    }
}
