//! One path component, validated once.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;

use rustix::io::{Errno, Result};
use triomphe::ThinArc;

/// Longest name Linux filesystems take, in bytes.
pub const NAME_MAX: usize = 255;

/// One component of a path: 1 to 255 bytes, not `.` or `..`, without `/` and NUL; not necessarily UTF-8.
///
/// Everything below the FUSE adapter speaks in names relative to a directory that is held open, so no string
/// of a client or of a layer is ever resolved as a path.
#[derive(Clone, Copy, Eq, Hash, PartialEq)]
pub struct Name<'a>(&'a [u8]);

impl<'a> Name<'a> {
    /// Checks `name`. ENAMETOOLONG if it is longer than 255 bytes, EINVAL for anything else that is no name.
    pub fn new(name: &'a OsStr) -> Result<Self> {
        Self::from_bytes(name.as_bytes())
    }

    /// As [`Name::new`], from bytes.
    pub fn from_bytes(name: &'a [u8]) -> Result<Self> {
        if name.len() > NAME_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        let special = matches!(name, b"" | b"." | b"..");
        if special || name.iter().any(|&byte| byte == b'/' || byte == 0) {
            return Err(Errno::INVAL);
        }
        Ok(Self(name))
    }

    /// The bytes.
    pub fn bytes(self) -> &'a [u8] {
        self.0
    }

    /// A copy that can be kept.
    pub fn to_owned(self) -> OwnedName {
        OwnedName(ThinArc::from_header_and_slice((), self.0))
    }
}

impl fmt::Debug for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

/// A [`Name`] that is kept; clones share the bytes. One pointer wide, because every cached node has three.
#[derive(Clone, Eq, Hash, PartialEq)]
pub struct OwnedName(ThinArc<(), u8>);

impl OwnedName {
    /// The name.
    pub fn get(&self) -> Name<'_> {
        Name(&self.0.slice)
    }
}

impl fmt::Debug for OwnedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_component() {
        assert!(Name::from_bytes(b"a").is_ok());
        assert!(Name::from_bytes(b"\xff\xfe").is_ok());
        assert!(Name::from_bytes(&[b'x'; 255]).is_ok());
        assert_eq!(
            Name::from_bytes(&[b'x'; 256]).err(),
            Some(Errno::NAMETOOLONG)
        );
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0b", b"/"] {
            assert_eq!(Name::from_bytes(bad).err(), Some(Errno::INVAL), "{bad:?}");
        }
    }
}
