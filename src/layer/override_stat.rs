//! Owner, mode and device type kept in an xattr, for uppers whose files cannot carry them.
//!
//! ```text
//! UID ":" GID ":" MODE [ ":" TYPE ]     UID, GID decimal, MODE octal
//! TYPE = file | dir | symlink | pipe | socket | block-MAJOR-MINOR | char-MAJOR-MINOR
//! ```
//!
//! Written by containers/storage (`force_mask`) and fuse-overlayfs (`xattr_permissions`); both read it back,
//! so what is written always has four fields. Parts behind MINOR are ignored, as containers/storage does.

use std::ffi::CStr;

use super::attr::{Attr, Kind, decode_dev, encode_dev};

/// Names of the xattr in the order they are looked for on a layer's root.
pub const NAMES: [&CStr; 3] = [SECURITY, CONTAINERS, c"user.fuseoverlayfs.override_stat"];
/// `xattr_permissions=1`.
pub const SECURITY: &CStr = c"security.fuseoverlayfs.override_stat";
/// `xattr_permissions=2`.
pub const CONTAINERS: &CStr = c"user.containers.override_stat";

/// The parsed value.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Override {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits (07777).
    pub mode: u16,
    /// What the file stands for and its device number, if told.
    pub kind: Option<(Kind, u32)>,
}

impl Override {
    /// The override that makes a file look like `attr`.
    pub fn of(attr: &Attr) -> Self {
        Self {
            uid: attr.uid,
            gid: attr.gid,
            mode: attr.mode,
            kind: Some((attr.kind, attr.rdev)),
        }
    }

    /// Parses the xattr; `None` if it is malformed.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(value).ok()?.trim_end_matches('\0');
        let mut fields = text.splitn(4, ':');
        let uid = fields.next()?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let mode = u32::from_str_radix(fields.next()?, 8).ok()?;
        let kind = match fields.next() {
            Some(kind) => Some(parse_kind(kind)?),
            None => None,
        };
        Some(Self {
            uid,
            gid,
            mode: u16::try_from(mode & 0o7777).ok()?,
            kind,
        })
    }

    /// The xattr's value.
    pub fn encode(&self) -> String {
        let base = format!("{}:{}:{:04o}", self.uid, self.gid, self.mode);
        let Some((kind, rdev)) = self.kind else {
            return base;
        };
        let (major, minor) = decode_dev(rdev);
        match kind {
            Kind::File => format!("{base}:file"),
            Kind::Directory => format!("{base}:dir"),
            Kind::Symlink => format!("{base}:symlink"),
            Kind::Fifo => format!("{base}:pipe"),
            Kind::Socket => format!("{base}:socket"),
            Kind::BlockDevice => format!("{base}:block-{major}-{minor}"),
            Kind::CharDevice => format!("{base}:char-{major}-{minor}"),
        }
    }

    /// Puts the override over what is on disk. Only regular files and directories stand for something else.
    pub fn apply(&self, attr: &mut Attr) {
        if !matches!(attr.kind, Kind::File | Kind::Directory) {
            return;
        }
        (attr.uid, attr.gid, attr.mode) = (self.uid, self.gid, self.mode);
        if let Some((kind, rdev)) = self.kind
            && attr.kind == Kind::File
            && kind != Kind::Directory
        {
            (attr.kind, attr.rdev) = (kind, rdev);
        }
    }
}

fn parse_kind(text: &str) -> Option<(Kind, u32)> {
    let mut parts = text.split('-');
    let kind = match parts.next()? {
        "file" => Kind::File,
        "dir" => Kind::Directory,
        "symlink" => Kind::Symlink,
        "pipe" => Kind::Fifo,
        "socket" => Kind::Socket,
        "block" => Kind::BlockDevice,
        "char" => Kind::CharDevice,
        _ => return None,
    };
    if !matches!(kind, Kind::BlockDevice | Kind::CharDevice) {
        return Some((kind, 0));
    }
    let major = parts.next()?.parse().ok()?;
    let minor = parts.next()?.parse().ok()?;
    Some((kind, encode_dev(major, minor)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grammar_of_containers_storage_round_trips() {
        for text in [
            "0:0:0755:dir",
            "0:6:0666:char-1-3",
            "0:6:0660:block-8-0",
            "7:8:4755:file",
        ] {
            assert_eq!(Override::parse(text.as_bytes()).unwrap().encode(), text);
        }
        let short = Override::parse(b"0:0:100644").unwrap();
        assert_eq!((short.mode, short.kind), (0o644, None));
        assert!(Override::parse(b"0:0:0666:char-1-3-later").is_some());
        for bad in [
            &b""[..],
            b"1:2",
            b"a:0:755",
            b"0:0:999",
            b"0:0:755:teapot",
            b"0:0:755:char-1",
        ] {
            assert_eq!(Override::parse(bad), None, "{bad:?}");
        }
    }
}
