//! Owners: ids on disk to ids in the mount and back.

use super::options::{IdRange, Options};
use crate::layer::attr::Attr;

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
        attr.uid = self
            .squash_uid
            .unwrap_or_else(|| to_inside(&self.uid_map, attr.uid));
        attr.gid = self
            .squash_gid
            .unwrap_or_else(|| to_inside(&self.gid_map, attr.gid));
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
    pub fn store_uid(&self, uid: u32) -> Option<u32> {
        self.squash_uid
            .is_none()
            .then(|| to_host(&self.uid_map, uid))
    }

    /// As [`Ids::store_uid`], for groups.
    pub fn store_gid(&self, gid: u32) -> Option<u32> {
        self.squash_gid
            .is_none()
            .then(|| to_host(&self.gid_map, gid))
    }
}

fn to_inside(map: &[IdRange], id: u32) -> u32 {
    translate(map, id, |range| (range.host, range.inside))
}

fn to_host(map: &[IdRange], id: u32) -> u32 {
    translate(map, id, |range| (range.inside, range.host))
}

/// Maps `id` by the first range that has it; `ends` tells where a range begins on the side of `id` and on the other.
fn translate(map: &[IdRange], id: u32, ends: impl Fn(&IdRange) -> (u32, u32)) -> u32 {
    if map.is_empty() {
        return id;
    }
    map.iter()
        .find_map(|range| {
            let (from, to) = ends(range);
            let offset = id.checked_sub(from).filter(|&offset| offset < range.len)?;
            Some(to.wrapping_add(offset))
        })
        .unwrap_or(OVERFLOW_ID)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_map_both_ways_and_unmapped_ones_overflow() {
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
        assert_eq!(to_inside(&map, 1000), 0);
        assert_eq!(to_inside(&map, 100_004), 5);
        assert_eq!(to_inside(&map, 7), OVERFLOW_ID);
        assert_eq!(to_host(&map, 0), 1000);
        assert_eq!(to_host(&map, 5), 100_004);
        assert_eq!(to_host(&map, 70_000), OVERFLOW_ID);
        assert_eq!(to_inside(&[], 7), 7);
    }
}
