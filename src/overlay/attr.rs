//! Attributes, symlink targets, filesystem statistics.

use std::sync::Arc;

use rustix::fs::{Timespec, Timestamps};
use rustix::io::{Errno, Result};

use super::copy_up::Data;
use super::node::{LookupRef, Node, Xattrs};
use super::{Caller, Found, Overlay};
use crate::layer::attr::{Attr, Kind, Time};
use crate::layer::upper::Upper;

/// A time to set.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SetTime {
    /// The time at which it is set.
    Now,
    /// This time.
    At(Time),
}

/// What to change; `None` leaves a thing as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Changes {
    /// Permission bits (07777).
    pub mode: Option<u16>,
    /// Owner, as in the mount.
    pub uid: Option<u32>,
    /// Group, as in the mount.
    pub gid: Option<u32>,
    /// Length in bytes.
    pub size: Option<u64>,
    /// Access time.
    pub atime: Option<SetTime>,
    /// Modification time.
    pub mtime: Option<SetTime>,
}

impl Changes {
    /// The request changes nothing: the kernel's way to say "a write is coming, clear suid and sgid".
    fn is_empty(&self) -> bool {
        self.mode.is_none()
            && self.uid.is_none()
            && self.gid.is_none()
            && self.size.is_none()
            && self.atime.is_none()
            && self.mtime.is_none()
    }
}

impl Overlay {
    /// Attributes of a node.
    pub fn get_attr(&self, ino: u64) -> Result<Attr> {
        let _names = self.names.read();
        let node = self.node(ino)?;
        self.attr(&node).map(|attr| self.show(&node, attr))
    }

    /// Number and attributes of a node, as the kernel is told.
    pub(super) fn describe(&self, child: &LookupRef<'_>) -> Result<Found> {
        let node = child.node();
        let attr = self.attr(node)?;
        Ok(Found {
            ino: node.ino,
            generation: node.generation.into(),
            attr: self.show(node, attr),
        })
    }

    /// As [`Overlay::describe`], handing the lookup count to the kernel.
    pub(super) fn found(&self, child: LookupRef<'_>) -> Result<Found> {
        let found = self.describe(&child)?;
        child.keep();
        Ok(found)
    }

    /// Attributes as the mount shows them.
    pub(super) fn show(&self, node: &Node, mut attr: Attr) -> Attr {
        attr.ino = node.ino;
        if self.options.static_nlink && node.kind == Kind::Directory {
            attr.nlink = 1;
        }
        self.ids.show(&mut attr);
        attr
    }

    /// Changes attributes, copying up what has to be; answers the new ones.
    pub fn set_attr(&self, ino: u64, changes: &Changes, caller: &Caller) -> Result<Attr> {
        let node = self.node(ino)?;
        let upper = self.upper()?;
        // What is refused changes nothing.
        self.stored_owner(changes)?;
        self.copy_up(&node, changes.size.map_or(Data::Later, Data::UpTo))?;
        let _names = self.names.read();
        let held = self.held(&node)?;
        node.stale();
        let now = upper.stat(held.read())?;
        let at = held.change(upper);
        self.set_owner_and_mode(upper, &node, &now, changes, at)?;
        if changes.mode.is_some()
            && let Some(dir) = &node.dir
        {
            // What could only be searched so far can perhaps be read now.
            dir.upper.clear();
        }
        if let Some(size) = changes.size {
            if node.kind != Kind::File {
                return Err(Errno::INVAL);
            }
            self.with_file(&node, true, |fd| crate::layer::io::truncate(fd, size))?;
            self.clear_kept_capabilities(&node)?;
            self.clear_suid(&node, caller.uid != 0 && changes.mode.is_none())?;
        } else if changes.is_empty() {
            self.clear_suid(&node, true)?;
        }
        if changes.atime.is_some() || changes.mtime.is_some() {
            at.set_times(&times(changes.atime, changes.mtime))?;
        }
        node.stale();
        self.attr(&node).map(|attr| self.show(&node, attr))
    }

    fn set_owner_and_mode(
        &self,
        upper: &Upper,
        node: &Arc<Node>,
        now: &Attr,
        changes: &Changes,
        at: crate::layer::at::UpperAt<'_>,
    ) -> Result<()> {
        let (uid, gid) = self.stored_owner(changes)?;
        let chown = changes.uid.is_some() || changes.gid.is_some();
        if chown {
            self.clear_kept_capabilities(node)?;
        }
        if upper.override_name.is_some() {
            let mut wanted = *now;
            wanted.uid = uid.unwrap_or(now.uid);
            wanted.gid = gid.unwrap_or(now.gid);
            if chown && node.kind != Kind::Directory {
                wanted.mode = without_suid(now.mode);
            }
            wanted.mode = changes.mode.unwrap_or(wanted.mode);
            if chown || changes.mode.is_some() {
                upper.set_owner_and_mode(at, &wanted, now)?;
            }
            if let Some(mode) = changes.mode {
                upper.chmod_kept_acl(at, mode)?;
            }
            return Ok(());
        }
        if uid.is_some() || gid.is_some() {
            at.chown(uid, gid)?;
        }
        if let Some(mode) = changes.mode {
            at.chmod(mode)?;
        }
        Ok(())
    }

    /// The owner and group to store.
    fn stored_owner(&self, changes: &Changes) -> Result<(Option<u32>, Option<u32>)> {
        let uid = changes.uid.map(|uid| self.ids.store_uid(uid)).transpose()?;
        let gid = changes.gid.map(|gid| self.ids.store_gid(gid)).transpose()?;
        Ok((uid.flatten(), gid.flatten()))
    }

    /// Takes away file capabilities that the system does not, because they are kept in another xattr. The caller holds
    /// `names`.
    pub(super) fn clear_kept_capabilities(&self, node: &Arc<Node>) -> Result<()> {
        let upper = self.upper()?;
        if !upper.keeps_capabilities()
            || node.kind != Kind::File
            || node.state().xattrs >= Xattrs::NoCapabilities
        {
            return Ok(());
        }
        let before = node.state().changes;
        upper.clear_capabilities(self.held(node)?.change(upper))?;
        let mut state = node.state();
        if state.changes == before {
            state.lacks(Xattrs::NoCapabilities);
        }
        Ok(())
    }

    /// Clears suid, and sgid of an executable, as a write by an unprivileged caller must.
    pub(super) fn clear_suid(&self, node: &Arc<Node>, wanted: bool) -> Result<()> {
        if !wanted || matches!(node.kind, Kind::Directory | Kind::Symlink) {
            return Ok(());
        }
        let upper = self.upper()?;
        let held = self.held(node)?;
        let now = upper.stat(held.read())?;
        let mode = without_suid(now.mode);
        if mode == now.mode {
            return Ok(());
        }
        node.stale();
        upper.set_owner_and_mode(held.change(upper), &Attr { mode, ..now }, &now)
    }

    /// Target of a symlink.
    pub fn read_link(&self, ino: u64) -> Result<Vec<u8>> {
        let _names = self.names.read();
        self.place(&self.node(ino)?)?.link_target()
    }

    /// Statistics of the filesystem that takes the writes, or of the topmost layer.
    pub fn stat_fs(&self) -> Result<rustix::fs::StatVfs> {
        match &self.stack.upper {
            Some(upper) => upper.pinned(upper.root()).read().stat_fs(),
            None => self.stack.roots.first().ok_or(Errno::IO)?.stat_fs(),
        }
    }
}

/// The mode after a write by someone without `CAP_FSETID`; sgid without group execute is no privilege.
pub(super) fn without_suid(mode: u16) -> u16 {
    let cleared = mode & !0o4000;
    if mode & 0o2010 == 0o2010 {
        cleared & !0o2000
    } else {
        cleared
    }
}

/// Times for the system; `None` leaves one as it is.
pub(super) fn times(atime: Option<SetTime>, mtime: Option<SetTime>) -> Timestamps {
    Timestamps {
        last_access: timespec(atime),
        last_modification: timespec(mtime),
    }
}

fn timespec(time: Option<SetTime>) -> Timespec {
    match time {
        None => Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_OMIT,
        },
        Some(SetTime::Now) => Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_NOW,
        },
        Some(SetTime::At(time)) => Timespec {
            tv_sec: time.sec,
            tv_nsec: time.nsec.into(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_clears_suid_and_the_sgid_of_executables() {
        assert_eq!(without_suid(0o4755), 0o755);
        assert_eq!(without_suid(0o2755), 0o755);
        assert_eq!(without_suid(0o2644), 0o2644);
        assert_eq!(without_suid(0o1777), 0o1777);
    }
}
