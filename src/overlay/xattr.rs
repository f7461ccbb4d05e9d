//! Extended attributes: ours are hidden, those of a union mounted on this one are escaped.

use std::ffi::CString;
use std::sync::Arc;

use rustix::fs::XattrFlags;
use rustix::io::{Errno, Result};

use super::copy_up::Data;
use super::node::{Node, Xattrs};
use super::place::Place;
use super::{Caller, Overlay};
use crate::layer::acl;
use crate::layer::at::split_names;
use crate::layer::capability;
use crate::layer::mark::{xattr_on_disk, xattr_visible};
use crate::layer::override_stat;

/// File capabilities; asked before every first write to a file.
const CAPABILITY: &[u8] = capability::NAME.to_bytes();

/// Longest value or list the system takes.
const XATTR_MAX: usize = 65536;

impl Overlay {
    /// The value of an xattr; ENODATA if there is none.
    pub fn get_xattr(&self, ino: u64, name: &[u8]) -> Result<Vec<u8>> {
        let node = self.node(ino)?;
        let on_disk = match self.name_on_disk(name) {
            Err(Errno::PERM) => return Err(Errno::NODATA),
            other => other?,
        };
        let _names = self.names.read();
        if self.is_absent(&node, name) {
            return Err(Errno::NODATA);
        }
        let value = self.xattr(&self.place(&node)?, &on_disk)?;
        let shown = value.and_then(|value| self.ids.show_xattr(name, value));
        shown.ok_or(Errno::NODATA)
    }

    /// Whether a node is known not to have an xattr. One list answers for all names that are asked for next, and most
    /// objects have none: who asks for capabilities asks for ACLs, too. The caller holds `names`.
    fn is_absent(&self, node: &Arc<Node>, name: &[u8]) -> bool {
        // Other names may be there without being listed.
        let listed =
            name == CAPABILITY || name.starts_with(b"user.") || name.starts_with(acl::PREFIX);
        if !listed || !self.remembers_xattrs() {
            return false;
        }
        let known = node.state().xattrs;
        if known == Xattrs::Unknown {
            // A list may be longer than the system gives where each of them can be had.
            drop(self.shown_names(node));
        }
        match node.state().xattrs {
            Xattrs::None => true,
            Xattrs::NoCapabilities => name == CAPABILITY,
            Xattrs::Unknown => false,
        }
    }

    /// Not where layers are changed under the mount, nor where there may be xattrs that are not listed.
    fn remembers_xattrs(&self) -> bool {
        self.options.timeout.is_none() && self.lists_xattrs
    }

    /// Names of the xattrs a user of the mount may see, each ended by NUL.
    /// `trusted.` ones are for root only.
    pub fn list_xattr(&self, ino: u64, caller: &Caller) -> Result<Vec<u8>> {
        if !self.options.xattrs {
            return Err(Errno::OPNOTSUPP);
        }
        let _names = self.names.read();
        let node = self.node(ino)?;
        if node.state().xattrs == Xattrs::None {
            return Ok(Vec::new());
        }
        let shown = self.shown_names(&node)?;
        if caller.uid == 0 {
            return Ok(shown);
        }
        let allowed = split_names(&shown).filter(|name| !name.starts_with(b"trusted."));
        Ok(allowed.flat_map(|name| [name, b"\0"].concat()).collect())
    }

    /// Names of the xattrs that the mount shows to root, each ended by NUL; remembers what is not among them. The caller
    /// holds `names`.
    fn shown_names(&self, node: &Arc<Node>) -> Result<Vec<u8>> {
        let before = node.state().changes;
        let place = self.place(node)?;
        if place.is_sealed() {
            return Ok(Vec::new());
        }
        let mut shown = Vec::new();
        for name in split_names(&self.xattr_names(&place)?) {
            if self.is_override(name) || self.is_hidden(&place, name)? {
                continue;
            }
            if let Some(name) = xattr_visible(name) {
                shown.extend_from_slice(&name);
                shown.push(0);
            }
        }
        let mut state = node.state();
        // What was just set is not to be missed.
        if self.remembers_xattrs() && state.changes == before {
            if shown.is_empty() {
                state.lacks(Xattrs::None);
            } else if !split_names(&shown).any(|name| name == CAPABILITY) {
                state.lacks(Xattrs::NoCapabilities);
            }
        }
        Ok(shown)
    }

    /// Sets an xattr; `flags` as of setxattr(2).
    pub fn set_xattr(&self, ino: u64, name: &[u8], value: &[u8], flags: u32) -> Result<()> {
        let node = self.node(ino)?;
        let upper = self.upper()?;
        if value.len() > XATTR_MAX {
            return Err(Errno::TOOBIG);
        }
        let on_disk = self.name_on_disk(name)?;
        let value = &*self.ids.store_xattr(name, value)?;
        self.copy_up(&node, Data::Later)?;
        let _names = self.names.read();
        let held = self.held(&node)?;
        node.state().given_xattrs();
        let flags = XattrFlags::from_bits_retain(flags);
        if on_disk.as_c_str() == acl::ACCESS && upper.override_name.is_some() {
            upper.set_kept_acl(held.change(upper), value, flags)?;
        } else {
            upper.set_xattr(held.change(upper), &on_disk, value, flags)?;
        }
        note_default_acl(&node, name, true);
        node.state().given_xattrs();
        Ok(())
    }

    /// Removes an xattr; ENODATA if there is none.
    pub fn remove_xattr(&self, ino: u64, name: &[u8]) -> Result<()> {
        let node = self.node(ino)?;
        let upper = self.upper()?;
        let on_disk = self.name_on_disk(name).map_err(|_| Errno::NODATA)?;
        {
            // What is not there need not be copied up to be removed.
            let _names = self.names.read();
            let present = self.xattr(&self.place(&node)?, &on_disk)?;
            if present.is_none() {
                return Err(Errno::NODATA);
            }
        }
        self.copy_up(&node, Data::Later)?;
        let _names = self.names.read();
        let held = self.held(&node)?;
        node.stale();
        upper.remove_xattr(held.change(upper), &on_disk)?;
        note_default_acl(&node, name, false);
        node.stale();
        Ok(())
    }

    fn name_on_disk(&self, name: &[u8]) -> Result<CString> {
        if !self.options.xattrs || (self.acl_refused() && name.starts_with(acl::PREFIX)) {
            return Err(Errno::OPNOTSUPP);
        }
        if self.is_override(name) {
            return Err(Errno::PERM);
        }
        CString::new(&*xattr_on_disk(name)?).map_err(|_| Errno::INVAL)
    }

    /// Whether the xattr carries owner, mode or what is kept with them for us in any layer of this mount.
    fn is_override(&self, name: &[u8]) -> bool {
        self.overrides && override_stat::is_reserved(name)
    }

    /// Whether the mount shows no value of the xattr, because of the ids in it.
    fn is_hidden(&self, place: &Place, name: &[u8]) -> Result<bool> {
        if !self.ids.may_hide(name) {
            return Ok(false);
        }
        let c_name = CString::new(name).map_err(|_| Errno::INVAL)?;
        let value = self.xattr(place, &c_name)?;
        Ok(value.is_none_or(|value| self.ids.show_xattr(name, value).is_none()))
    }
}

/// Remembers whether new entries of a directory inherit an ACL.
fn note_default_acl(node: &Node, name: &[u8], present: bool) {
    if name == b"system.posix_acl_default"
        && let Some(dir) = &node.dir
    {
        dir.state.lock().default_acl = present;
    }
}
