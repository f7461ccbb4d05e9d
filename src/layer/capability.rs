//! The value of `security.capability` (`linux/capability.h`, `struct vfs_ns_cap_data`): in revision 3 the last word is
//! the user id that is root of the namespace the capabilities count in.

use std::ffi::CStr;

/// The xattr of file capabilities.
pub const NAME: &CStr = c"security.capability";

const REVISION_3: u8 = 3;
const LENGTH_3: usize = 24;
const ROOT_ID: std::ops::Range<usize> = 20..24;

/// The value with its root mapped by `map`; the same value if it names no root. `None` if the root has no other id.
pub fn map_root(value: &[u8], map: impl Fn(u32) -> Option<u32>) -> Option<Vec<u8>> {
    let mut mapped = value.to_vec();
    if value.len() == LENGTH_3 && value[3] == REVISION_3 {
        let mut root = [0; 4];
        root.copy_from_slice(&value[ROOT_ID]);
        let root = map(u32::from_le_bytes(root))?;
        mapped[ROOT_ID].copy_from_slice(&root.to_le_bytes());
    }
    Some(mapped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_revision_3_names_a_root() {
        let mut value = vec![1, 0, 0, 3];
        value.resize(20, 7);
        value.extend_from_slice(&1000u32.to_le_bytes());
        let mapped = map_root(&value, |id| Some(id + 5)).unwrap();
        assert_eq!(mapped[..20], value[..20]);
        assert_eq!(mapped[20..], 1005u32.to_le_bytes());
        assert_eq!(map_root(&value, |_| None), None);
        let second = [&[1, 0, 0, 2][..], &[7; 16]].concat();
        assert_eq!(map_root(&second, |_| None), Some(second));
    }
}
