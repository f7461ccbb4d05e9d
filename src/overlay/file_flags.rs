//! File flags (chattr, lsattr).
//!
//! `immutable` and `append only` are not set: the kernel would not know them of our objects, and an object of the
//! upper that has them could not be moved or removed by us either.

use rustix::io::{Errno, Result};

use super::Overlay;
use super::copy_up::Data;
use super::node::Node;
use super::place::Place;
use crate::layer::attr::Kind;
use crate::layer::file_flags::FileFlags;

impl Overlay {
    /// The flags of a file or directory, in either form.
    pub fn file_flags(&self, ino: u64, extended: bool) -> Result<FileFlags> {
        let node = self.node(ino)?;
        may_have_flags(&node)?;
        let _names = self.names.read();
        let place = self.place(&node)?;
        let flags = self.stack.fds.retry(|| match &place {
            Place::Upper(held) => {
                let upper = self.upper()?;
                let read = || held.read().file_flags(extended);
                upper.with_mode(held.change(upper), 0o400, read)
            }
            Place::Lower(file) => file.file_flags(extended),
            Place::LowerDir(dir) => dir.file_flags(extended),
        })?;
        // Nothing protects what is copied up before it is changed.
        let lower = !matches!(place, Place::Upper(_));
        Ok(if lower { flags.unlocked() } else { flags })
    }

    /// Sets the flags of a file or directory.
    pub fn set_file_flags(&self, ino: u64, flags: FileFlags) -> Result<()> {
        let now = self.file_flags(ino, flags.is_extended())?;
        if flags.locks() != now.locks() {
            return Err(Errno::OPNOTSUPP);
        }
        let node = self.node(ino)?;
        self.copy_up(&node, Data::Later)?;
        let upper = self.upper()?;
        let _names = self.names.read();
        let held = self.held(&node)?;
        let at = held.change(upper);
        let set = || upper.with_mode(at, 0o400, || at.set_file_flags(flags));
        let done = self.stack.fds.retry(set);
        node.stale();
        done
    }
}

fn may_have_flags(node: &Node) -> Result<()> {
    match node.kind {
        Kind::File | Kind::Directory => Ok(()),
        _ => Err(Errno::NOTTY),
    }
}
