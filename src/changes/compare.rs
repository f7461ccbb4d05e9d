//! Whether two objects are equal, and if not, why.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fmt;

use rustix::io::{Errno, Result};

use crate::layer::at::split_names;
use crate::layer::attr::{Kind, Time};
use crate::layer::lower::LowerFile;
use crate::layer::mark;
use crate::layer::view::{Object, Place, View, same_file};

/// What counts as equal.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Exactness {
    /// Times to the nanosecond, and contents by their bytes: for an upper over its lowers.
    Exact,
    /// For trees that went different ways, as `docker diff` compares: where one time has whole seconds only, the
    /// seconds decide. Files of equal size and time, to the nanosecond, are taken as equal; where a time has whole
    /// seconds, as archives give it, contents are compared.
    Tolerant,
}

/// In what two objects of one path differ.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Reasons(u8);

const WORDS: [(Reasons, &str); 7] = [
    (Reasons::TYPE, "type"),
    (Reasons::CONTENT, "content"),
    (Reasons::MODE, "mode"),
    (Reasons::OWNER, "owner"),
    (Reasons::TIME, "time"),
    (Reasons::XATTR, "xattr"),
    (Reasons::LINKS, "links"),
];

impl Reasons {
    /// Another type of object, or another device.
    pub const TYPE: Self = Self(1);
    /// The bytes of a file, the target of a symlink.
    pub const CONTENT: Self = Self(2);
    /// Permission bits.
    pub const MODE: Self = Self(4);
    /// User or group.
    pub const OWNER: Self = Self(8);
    /// Time of the last modification.
    pub const TIME: Self = Self(16);
    /// Extended attributes: ACLs and capabilities are some.
    pub const XATTR: Self = Self(32);
    /// A copy of a file that has other names now; only if nothing else differs.
    pub const LINKS: Self = Self(64);

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// These but for `other`.
    pub(super) fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether `other` is one of these.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The words for these reasons.
    pub fn words(self) -> impl Iterator<Item = &'static str> {
        WORDS
            .into_iter()
            .filter(move |(reason, _)| self.contains(*reason))
            .map(|(_, word)| word)
    }

    fn add_if(&mut self, reason: Self, differs: bool) {
        if differs {
            self.0 |= reason.0;
        }
    }
}

impl fmt::Display for Reasons {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words().collect::<Vec<_>>().join(","))
    }
}

/// In what `then` and `now` differ, each in its view.
pub(super) fn reasons(
    (old, then): (&View, &Object),
    (new, now): (&View, &Object),
    exactness: Exactness,
) -> Result<Reasons> {
    let mut reasons = Reasons::default();
    let (a, b) = (&then.attr, &now.attr);
    reasons.add_if(Reasons::TYPE, a.kind != b.kind || a.rdev != b.rdev);
    // The mode of a symlink means nothing and cannot be set.
    let has_mode = a.kind != Kind::Symlink || b.kind != Kind::Symlink;
    reasons.add_if(Reasons::MODE, has_mode && a.mode != b.mode);
    reasons.add_if(Reasons::OWNER, (a.uid, a.gid) != (b.uid, b.gid));
    reasons.add_if(Reasons::TIME, !same_time(a.mtime, b.mtime, exactness));
    reasons.add_if(Reasons::XATTR, xattrs(then)? != xattrs(now)?);
    if a.kind == b.kind
        && let (Place::File(file), Place::File(new_file)) = (&then.place, &now.place)
    {
        let differs = match a.kind {
            Kind::Symlink => file.link_target()? != new_file.link_target()?,
            Kind::File => !same_content((old, then), (new, now), exactness)?,
            _ => false,
        };
        reasons.add_if(Reasons::CONTENT, differs);
        let copy = exactness == Exactness::Exact && b.nlink > 1;
        reasons.add_if(Reasons::LINKS, copy && reasons.is_empty());
    }
    Ok(reasons)
}

fn same_time(a: Time, b: Time, exactness: Exactness) -> bool {
    let whole = a.nsec == 0 || b.nsec == 0;
    a == b || (exactness == Exactness::Tolerant && whole && a.sec == b.sec)
}

fn same_content(
    (old, then): (&View, &Object),
    (new, now): (&View, &Object),
    exactness: Exactness,
) -> Result<bool> {
    let (a, b) = (&then.attr, &now.attr);
    if a.size != b.size {
        return Ok(false);
    }
    if a.size == 0 {
        return Ok(true);
    }
    if exactness == Exactness::Tolerant && a.mtime == b.mtime && a.mtime.nsec != 0 {
        return Ok(true);
    }
    let (then, now) = (old.data(then)?, new.data(now)?);
    if same_file(&then, &now)? {
        return Ok(true);
    }
    match same_bytes(&then, &now, a.size) {
        // What cannot be read cannot be called equal.
        Err(Errno::ACCESS | Errno::PERM) => Ok(false),
        other => other,
    }
}

/// Bytes compared at once.
const PIECE: usize = 256 * 1024;

fn same_bytes(a: &LowerFile, b: &LowerFile, size: u64) -> Result<bool> {
    let (a, b) = (a.content()?, b.content()?);
    let piece = usize::try_from(size).unwrap_or(PIECE).min(PIECE);
    let (mut left, mut right) = (vec![0; piece], vec![0; piece]);
    let mut offset = 0;
    while offset < size {
        let got = a.read_at(&mut left, offset)?;
        if got != b.read_at(&mut right, offset)? || left[..got] != right[..got] {
            return Ok(false);
        }
        if got == 0 {
            break;
        }
        offset += got as u64;
    }
    Ok(true)
}

/// The xattrs of an object that belong to it and not to a union or to the system, by their names in the layer.
pub fn xattrs(object: &Object) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut xattrs = BTreeMap::new();
    for name in split_names(&object.xattr_names()?) {
        // Labels of a security module are the system's.
        if mark::is_private(name) || name == b"security.selinux" {
            continue;
        }
        let c_name = CString::new(name).map_err(|_| Errno::INVAL)?;
        let value = match object.xattr(&c_name) {
            Ok(Some(value)) => value,
            // Gone since, or not for us to read.
            Ok(None) | Err(Errno::ACCESS | Errno::PERM) => continue,
            Err(error) => return Err(error),
        };
        xattrs.insert(name.to_vec(), value);
    }
    Ok(xattrs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_told_in_a_fixed_order() {
        let mut reasons = Reasons::default();
        assert_eq!(reasons.to_string(), "");
        reasons.add_if(Reasons::XATTR, true);
        reasons.add_if(Reasons::CONTENT, true);
        reasons.add_if(Reasons::MODE, false);
        assert_eq!(reasons.to_string(), "content,xattr");
    }

    #[test]
    fn a_time_of_whole_seconds_is_equal_to_one_of_the_same_second_only_if_that_is_asked_for() {
        let time = |nsec| Time { sec: 7, nsec };
        assert!(same_time(time(0), time(5), Exactness::Tolerant));
        assert!(!same_time(time(0), time(5), Exactness::Exact));
        assert!(!same_time(time(4), time(5), Exactness::Tolerant));
    }
}
