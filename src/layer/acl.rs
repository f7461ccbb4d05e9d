//! POSIX ACLs: their inheritance by objects that are staged outside the directory they will appear in, the mode they
//! stand for, and the ids in them.
//!
//! Value of `system.posix_acl_*` (`linux/posix_acl_xattr.h)`: u32 version 2, then entries of u16 tag, u16 permissions,
//! u32 id, little-endian.

use std::ffi::CStr;

use rustix::fs::XattrFlags;
use rustix::io::{Errno, Result};

use super::at::{At, UpperAt};
use super::attr::Attr;
use super::upper::Upper;

/// Begins the names of the xattrs that are ACLs.
pub const PREFIX: &[u8] = b"system.posix_acl_";
/// The xattr of the ACL that decides on access.
pub const ACCESS: &CStr = c"system.posix_acl_access";
/// The xattr of the ACL that new entries of a directory inherit.
pub(super) const DEFAULT: &CStr = c"system.posix_acl_default";

const VERSION: u32 = 2;
const HEADER: usize = 4;
const ENTRY: usize = 8;
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// Lets `change` decide the permissions of each entry that is a class of the mode (`shift` tells which: 6, 3 or 0);
/// answers whether the ACL says more than a mode. The mask, if there is one, is the class of the group.
fn classes(acl: &mut [u8], mut change: impl FnMut(u16, u16) -> u16) -> Result<bool> {
    let entries = entries(acl)?;
    let has_mask = entries.chunks_exact(ENTRY).any(|entry| tag(entry) == MASK);
    let mut extended = has_mask;
    for entry in entries.chunks_exact_mut(ENTRY) {
        let shift = match tag(entry) {
            USER_OBJ => 6,
            MASK => 3,
            GROUP_OBJ if !has_mask => 3,
            OTHER => 0,
            GROUP_OBJ => continue,
            USER | GROUP => {
                extended = true;
                continue;
            }
            _ => return Err(Errno::INVAL),
        };
        let allowed = change(shift, u16::from_le_bytes([entry[2], entry[3]]) & 7);
        entry[2..4].copy_from_slice(&allowed.to_le_bytes());
    }
    Ok(extended)
}

fn entries(acl: &mut [u8]) -> Result<&mut [u8]> {
    let version = acl.get(..HEADER).ok_or(Errno::INVAL)?;
    if *version != VERSION.to_le_bytes() || !(acl.len() - HEADER).is_multiple_of(ENTRY) {
        return Err(Errno::INVAL);
    }
    Ok(&mut acl[HEADER..])
}

/// The access ACL and mode a new object gets in a directory with the default ACL `default`, for a requested `mode`:
/// the kernel's `posix_acl_create`. `None` for the ACL if the mode says it all.
pub(super) fn inherit(default: &[u8], mode: u16) -> Result<(Option<Vec<u8>>, u16)> {
    let mut acl = default.to_vec();
    let mut result = mode & 0o7000;
    let extended = classes(&mut acl, |shift, allowed| {
        let allowed = allowed & (mode >> shift);
        result |= allowed << shift;
        allowed
    })?;
    Ok((extended.then_some(acl), result))
}

/// The permission bits an ACL gives, and whether it says more than they do.
fn mode_of(acl: &[u8]) -> Result<(u16, bool)> {
    let mut mode = 0;
    let extended = classes(&mut acl.to_vec(), |shift, allowed| {
        mode |= allowed << shift;
        allowed
    })?;
    Ok((mode, extended))
}

/// Whether the xattr `name` with this value is an ACL that names a user or group whom this process's user namespace does
/// not know: the kernel shows them as -1.
pub fn names_unknown_ids(name: &[u8], value: &[u8]) -> bool {
    let entries = value.get(HEADER..).unwrap_or_default();
    let unknown = |entry: &[u8]| matches!(tag(entry), USER | GROUP) && entry[4..] == [0xff; 4];
    name.starts_with(PREFIX) && entries.chunks_exact(ENTRY).any(unknown)
}

fn tag(entry: &[u8]) -> u16 {
    u16::from_le_bytes([entry[0], entry[1]])
}

/// Maps the ids of users and groups in an ACL; EINVAL if one has no other id, or the ACL is malformed.
pub fn map_ids(
    acl: &[u8],
    user: impl Fn(u32) -> Option<u32>,
    group: impl Fn(u32) -> Option<u32>,
) -> Result<Vec<u8>> {
    let mut acl = acl.to_vec();
    for entry in entries(&mut acl)?.chunks_exact_mut(ENTRY) {
        let id = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
        let mapped = match tag(entry) {
            USER => user(id),
            GROUP => group(id),
            _ => continue,
        };
        entry[4..].copy_from_slice(&mapped.ok_or(Errno::INVAL)?.to_le_bytes());
    }
    Ok(acl)
}

impl Upper {
    /// Gives the staged object `to` what it would inherit in `parent`; answers its mode.
    pub fn inherit_acl(
        &self,
        parent: At<'_>,
        to: UpperAt<'_>,
        directory: bool,
        mode: u16,
    ) -> Result<u16> {
        let Some(default) = self.xattr(parent, DEFAULT)? else {
            return Ok(mode);
        };
        let (access, mode) = inherit(&default, mode)?;
        if let Some(access) = access {
            self.set_xattr(to, ACCESS, &access, XattrFlags::empty())?;
        }
        if directory {
            self.set_xattr(to, DEFAULT, &default, XattrFlags::empty())?;
        }
        Ok(mode)
    }

    /// Sets the access ACL, and the mode by it, where the system does not see that it is one.
    pub fn set_kept_acl(&self, at: UpperAt<'_>, acl: &[u8], flags: XattrFlags) -> Result<()> {
        let (bits, extended) = mode_of(acl)?;
        if extended {
            self.set_xattr(at, ACCESS, acl, flags)?;
        } else {
            match self.remove_xattr(at, ACCESS) {
                Err(Errno::NODATA | Errno::OPNOTSUPP) | Ok(()) => {}
                Err(error) => return Err(error),
            }
        }
        let now = self.stat(at.read())?;
        let mode = (now.mode & 0o7000) | bits;
        self.set_owner_and_mode(at, &Attr { mode, ..now }, &now)
    }

    /// Brings a kept access ACL into line with a mode that was set.
    pub fn chmod_kept_acl(&self, at: UpperAt<'_>, mode: u16) -> Result<()> {
        let Some(mut acl) = self.xattr(at.read(), ACCESS)? else {
            return Ok(());
        };
        classes(&mut acl, |shift, _| (mode >> shift) & 7)?;
        self.set_xattr(at, ACCESS, &acl, XattrFlags::empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(entries: &[(u16, u16)]) -> Vec<u8> {
        let mut value = 2u32.to_le_bytes().to_vec();
        for (tag, perm) in entries {
            value.extend_from_slice(&tag.to_le_bytes());
            value.extend_from_slice(&perm.to_le_bytes());
            value.extend_from_slice(&u32::MAX.to_le_bytes());
        }
        value
    }

    #[test]
    fn a_minimal_default_acl_only_limits_the_mode() {
        let default = acl(&[(USER_OBJ, 7), (GROUP_OBJ, 5), (OTHER, 0)]);
        assert_eq!(inherit(&default, 0o666).unwrap(), (None, 0o640));
    }

    #[test]
    fn named_entries_stay_and_the_mask_takes_the_group_bits() {
        let default = acl(&[
            (USER_OBJ, 7),
            (USER, 7),
            (GROUP_OBJ, 5),
            (MASK, 7),
            (OTHER, 5),
        ]);
        let (access, mode) = inherit(&default, 0o640).unwrap();
        assert_eq!(mode, 0o640);
        let wanted = acl(&[
            (USER_OBJ, 6),
            (USER, 7),
            (GROUP_OBJ, 5),
            (MASK, 4),
            (OTHER, 0),
        ]);
        assert_eq!(access.unwrap(), wanted);
    }

    #[test]
    fn an_acl_gives_a_mode_and_a_mode_changes_an_acl() {
        let plain = acl(&[(USER_OBJ, 6), (GROUP_OBJ, 4), (OTHER, 1)]);
        assert_eq!(mode_of(&plain), Ok((0o641, false)));
        let mut named = acl(&[
            (USER_OBJ, 6),
            (USER, 7),
            (GROUP_OBJ, 1),
            (MASK, 4),
            (OTHER, 0),
        ]);
        assert_eq!(mode_of(&named), Ok((0o640, true)));
        classes(&mut named, |shift, _| (0o751 >> shift) & 7).unwrap();
        let wanted = acl(&[
            (USER_OBJ, 7),
            (USER, 7),
            (GROUP_OBJ, 1),
            (MASK, 5),
            (OTHER, 1),
        ]);
        assert_eq!(named, wanted);
    }

    #[test]
    fn malformed_acls_are_refused() {
        let good = acl(&[(USER_OBJ, 7), (GROUP_OBJ, 5), (OTHER, 0)]);
        let odd = acl(&[(0x40, 7)]);
        for bad in [
            &b""[..],
            &good[..3],
            &good[..good.len() - 1],
            &[9; 12],
            &odd,
        ] {
            assert_eq!(mode_of(bad), Err(Errno::INVAL), "{bad:?}");
        }
    }

    #[test]
    fn ids_of_named_entries_are_mapped_and_others_left_alone() {
        let mut value = acl(&[(USER_OBJ, 7), (USER, 4), (GROUP, 5), (MASK, 5)]);
        value[16..20].copy_from_slice(&5u32.to_le_bytes());
        value[24..28].copy_from_slice(&6u32.to_le_bytes());
        let mapped = map_ids(&value, |id| Some(id + 100), |id| Some(id + 200)).unwrap();
        assert_eq!(mapped[16..20], 105u32.to_le_bytes());
        assert_eq!(mapped[24..28], 206u32.to_le_bytes());
        assert_eq!(mapped[..16], value[..16]);
        assert_eq!(map_ids(&value, |_| None, Some), Err(Errno::INVAL));
    }
}
