//! Ids on disk to ids in the mount and back: owners, and those named in ACLs and file capabilities.
//!
//! What has no id in the mount is shown as the overflow id's. Nothing can be given to an id of the mount that has none
//! on disk: chown answers EOVERFLOW and setfacl EINVAL, as on a mount that the kernel maps. Only new objects are the
//! overflow id's then: container engines make mountpoints inside a view as root of the host, who need not be mapped.

use rustix::io::{Errno, Result};

use super::options::{IdRange, Options};
use crate::layer::attr::Attr;
use crate::layer::{acl, capability};

/// Shown for an id without a mapping (the kernel's overflow id).
const OVERFLOW_ID: u32 = 65534;

/// The id mapping of a mount.
#[derive(Debug)]
pub struct Ids {
    uid_map: Vec<IdRange>,
    gid_map: Vec<IdRange>,
    squash_uid: Option<u32>,
    squash_gid: Option<u32>,
}

impl Ids {
    /// The mapping `options` ask for.
    pub fn new(options: &Options) -> Self {
        Self {
            uid_map: options.uid_map.clone(),
            gid_map: options.gid_map.clone(),
            squash_uid: options.squash_uid,
            squash_gid: options.squash_gid,
        }
    }

    /// Changes owner and group from what is on disk to what the mount shows.
    pub fn show(&self, attr: &mut Attr) {
        let shown = |map: &[IdRange], id| to_inside(map, id).unwrap_or(OVERFLOW_ID);
        attr.uid = self
            .squash_uid
            .unwrap_or_else(|| shown(&self.uid_map, attr.uid));
        attr.gid = self
            .squash_gid
            .unwrap_or_else(|| shown(&self.gid_map, attr.gid));
    }

    /// `wanted` with those ids of `now` that are squashed; `None` if none is.
    pub fn keep_squashed(&self, mut wanted: Attr, now: &Attr) -> Option<Attr> {
        if self.squash_uid.is_some() {
            wanted.uid = now.uid;
        }
        if self.squash_gid.is_some() {
            wanted.gid = now.gid;
        }
        (self.squash_uid.is_some() || self.squash_gid.is_some()).then_some(wanted)
    }

    /// The owner to store for one given through the mount; `None` if owners are squashed and never stored.
    pub fn store_uid(&self, uid: u32) -> Result<Option<u32>> {
        store(self.squash_uid, &self.uid_map, uid)
    }

    /// As [`Ids::store_uid`], for groups.
    pub fn store_gid(&self, gid: u32) -> Result<Option<u32>> {
        store(self.squash_gid, &self.gid_map, gid)
    }

    /// The owner to store for what the user `uid` makes.
    pub fn uid_of_new(&self, uid: u32) -> Option<u32> {
        self.store_uid(uid).unwrap_or(Some(OVERFLOW_ID))
    }

    /// As [`Ids::uid_of_new`], for groups.
    pub fn gid_of_new(&self, gid: u32) -> Option<u32> {
        self.store_gid(gid).unwrap_or(Some(OVERFLOW_ID))
    }

    /// The value of an xattr as the mount shows it; `None` if it has no meaning there.
    pub fn show_xattr(&self, name: &[u8], value: Vec<u8>) -> Option<Vec<u8>> {
        if self.are_unmapped() {
            return Some(value);
        }
        if name.starts_with(acl::PREFIX) {
            let shown = |map, id| Some(to_inside(map, id).unwrap_or(OVERFLOW_ID));
            let (user, group) = (
                |id| shown(&self.uid_map[..], id),
                |id| shown(&self.gid_map[..], id),
            );
            return acl::map_ids(&value, user, group).ok();
        }
        if name == capability::NAME.to_bytes() {
            return capability::map_root(&value, |root| to_inside(&self.uid_map, root));
        }
        Some(value)
    }

    /// The value to store for one set through the mount.
    pub fn store_xattr(&self, name: &[u8], value: &[u8]) -> Result<Vec<u8>> {
        if self.are_unmapped() {
            return Ok(value.to_vec());
        }
        if name.starts_with(acl::PREFIX) {
            return acl::map_ids(
                value,
                |id| to_host(&self.uid_map, id),
                |id| to_host(&self.gid_map, id),
            );
        }
        if name == capability::NAME.to_bytes() {
            let stored = capability::map_root(value, |root| to_host(&self.uid_map, root));
            return stored.ok_or(Errno::INVAL);
        }
        Ok(value.to_vec())
    }

    /// Whether the xattr may be of no meaning in the mount.
    pub fn may_hide(&self, name: &[u8]) -> bool {
        !self.are_unmapped()
            && (name.starts_with(acl::PREFIX) || name == capability::NAME.to_bytes())
    }

    fn are_unmapped(&self) -> bool {
        self.uid_map.is_empty() && self.gid_map.is_empty()
    }
}

fn store(squash: Option<u32>, map: &[IdRange], id: u32) -> Result<Option<u32>> {
    match squash {
        Some(_) => Ok(None),
        None => to_host(map, id).map(Some).ok_or(Errno::OVERFLOW),
    }
}

fn to_inside(map: &[IdRange], id: u32) -> Option<u32> {
    translate(map, id, |range| (range.host, range.inside))
}

fn to_host(map: &[IdRange], id: u32) -> Option<u32> {
    translate(map, id, |range| (range.inside, range.host))
}

/// Maps `id` by the first range that has it; `ends` tells where a range begins on the side of `id` and on the other.
fn translate(map: &[IdRange], id: u32, ends: impl Fn(&IdRange) -> (u32, u32)) -> Option<u32> {
    if map.is_empty() {
        return Some(id);
    }
    map.iter().find_map(|range| {
        let (from, to) = ends(range);
        let offset = id.checked_sub(from).filter(|&offset| offset < range.len)?;
        Some(to.wrapping_add(offset))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_map_both_ways_by_the_range_that_has_them() {
        let map = [
            IdRange {
                host: 1000,
                inside: 0,
                len: 1,
            },
            IdRange {
                host: 100_000,
                inside: 1,
                len: 65536,
            },
        ];
        assert_eq!(to_inside(&map, 1000), Some(0));
        assert_eq!(to_inside(&map, 100_004), Some(5));
        assert_eq!(to_inside(&map, 7), None);
        assert_eq!(to_host(&map, 0), Some(1000));
        assert_eq!(to_host(&map, 5), Some(100_004));
        assert_eq!(to_host(&map, 70_000), None);
        assert_eq!(to_inside(&[], 7), Some(7));
    }
}
