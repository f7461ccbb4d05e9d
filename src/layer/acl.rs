//! Inheritance of POSIX ACLs for objects that are staged outside the directory they will appear in.
//!
//! Value of `system.posix_acl_*` (`linux/posix_acl_xattr.h)`: u32 version 2, then entries of u16 tag, u16 permissions,
//! u32 id, little-endian.

use rustix::fs::XattrFlags;
use rustix::io::{Errno, Result};

use super::at::{At, UpperAt};

const HEADER: usize = 4;
const ENTRY: usize = 8;
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// The access ACL and mode a new object gets in a directory with the default ACL `default`, for a requested `mode`:
/// the kernel's `posix_acl_create`. `None` for the ACL if the mode says it all.
pub(super) fn inherit(default: &[u8], mode: u16) -> Result<(Option<Vec<u8>>, u16)> {
    let mut acl = default.to_vec();
    let entries = acl.get_mut(HEADER..).ok_or(Errno::INVAL)?;
    let has_mask = entries.chunks_exact(ENTRY).any(|entry| tag(entry) == MASK);
    let (mut result, mut extended) = (mode & 0o7000, false);
    for entry in entries.chunks_exact_mut(ENTRY) {
        let tag = tag(entry);
        let class = match tag {
            USER_OBJ => Some(6),
            MASK => Some(3),
            GROUP_OBJ if !has_mask => Some(3),
            OTHER => Some(0),
            GROUP_OBJ => None,
            USER | GROUP => {
                extended = true;
                None
            }
            _ => return Err(Errno::INVAL),
        };
        extended |= tag == MASK;
        if let Some(shift) = class {
            let allowed = u16::from_le_bytes([entry[2], entry[3]]) & (mode >> shift) & 7;
            entry[2..4].copy_from_slice(&allowed.to_le_bytes());
            result |= allowed << shift;
        }
    }
    Ok((extended.then_some(acl), result))
}

/// Whether the xattr `name` with this value is an ACL that names a user or group whom this process's user namespace does
/// not know: the kernel shows them as -1.
pub fn names_unknown_ids(name: &[u8], value: &[u8]) -> bool {
    let entries = value.get(HEADER..).unwrap_or_default();
    let unknown = |entry: &[u8]| matches!(tag(entry), USER | GROUP) && entry[4..] == [0xff; 4];
    name.starts_with(b"system.posix_acl_") && entries.chunks_exact(ENTRY).any(unknown)
}

fn tag(entry: &[u8]) -> u16 {
    u16::from_le_bytes([entry[0], entry[1]])
}

/// Gives the staged object `to` what it would inherit in `parent`; answers its mode.
pub fn inherit_from(parent: At<'_>, to: UpperAt<'_>, directory: bool, mode: u16) -> Result<u16> {
    let Some(default) = parent.xattr(c"system.posix_acl_default")? else {
        return Ok(mode);
    };
    let (access, mode) = inherit(&default, mode)?;
    if let Some(access) = access {
        to.set_xattr(c"system.posix_acl_access", &access, XattrFlags::empty())?;
    }
    if directory {
        to.set_xattr(c"system.posix_acl_default", &default, XattrFlags::empty())?;
    }
    Ok(mode)
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
}
