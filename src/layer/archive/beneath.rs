//! An index whose tree is shown further down: for looking at one layer beside the merged tree.

use super::finish::write_header;
use super::index::{EXTENT, HEADER, INODE, Index, NAME, flag};
use crate::layer::stack::Beneath;

/// Number of directories in [`super::index::KINDS`].
const DIRECTORY: u8 = 1;

impl Index {
    /// The same tree as the directory `at.name` of the directory `at.parent` of a root that has nothing else.
    ///
    /// Two inodes and two names more: the old root gets the first number behind the others, `at.parent` the second.
    pub fn beneath(&self, at: &Beneath) -> Vec<u8> {
        let old = self.bytes();
        let sections = [
            self.inodes() as usize * INODE,
            self.names() as usize * NAME,
            self.extents() as usize * EXTENT,
        ];
        let (inodes, rest) = old[HEADER..].split_at(sections[0]);
        let (names, rest) = rest.split_at(sections[1]);
        let (extents, strings) = rest.split_at(sections[2]);
        let (root, parent) = (self.inodes(), self.inodes() + 1);
        let hides = if at.hides { flag::OPAQUE } else { 0 };

        let mut out = vec![0; HEADER];
        out.extend_from_slice(&directory(flag::IMPLIED, self.names()));
        out.extend_from_slice(&inodes[INODE..]);
        out.extend_from_slice(&inodes[..INODE]);
        out.extend_from_slice(&directory(hides, self.names() + 1));
        out.extend_from_slice(names);
        let mut end = strings.len();
        for (name, inode) in [(&at.parent, parent), (&at.name, root)] {
            for value in [end, inode as usize, name.len()] {
                // Strings have at most 2 GiB.
                out.extend_from_slice(&u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes());
            }
            end += name.len();
        }
        out.extend_from_slice(extents);
        out.extend_from_slice(strings);
        out.extend_from_slice(at.parent.as_bytes());
        out.extend_from_slice(at.name.as_bytes());
        let counts = [self.inodes() + 2, self.names() + 2, self.extents()];
        write_header(&mut out, counts, [end as u64, self.tar_length()]);
        out
    }
}

/// The inode of a directory with one name in it, a directory.
fn directory(flags: u8, name: u32) -> [u8; INODE] {
    let mut raw = [0; INODE];
    raw[..2].copy_from_slice(&0o755u16.to_le_bytes());
    raw[2] = DIRECTORY;
    raw[3] = flags;
    raw[32..40].copy_from_slice(&u64::from(name).to_le_bytes());
    raw[40..44].copy_from_slice(&1u32.to_le_bytes());
    raw[44..48].copy_from_slice(&3u32.to_le_bytes());
    raw
}
