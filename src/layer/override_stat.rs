//! Owner, mode and device type kept in an xattr, for uppers whose files cannot carry them.
//!
//! ```text
//! UID ":" GID ":" MODE [ ":" TYPE ]     UID, GID decimal, MODE octal
//! TYPE = file | dir | symlink | pipe | socket | block-MAJOR-MINOR | char-MAJOR-MINOR
//! ```
//!
//! Written by containers/storage (`force_mask`) and fuse-overlayfs (`xattr_permissions`); both read it back,
//! so what is written always has four fields. Further fields, and parts behind MINOR, are ignored, as containers/storage
//! does. A value in no such form counts for nothing: the file shows what it is on disk.
//!
//! A regular file stands for a file, FIFO, socket or device; not for a symlink, whose target it does not have, nor for
//! a device 0:0, which would be a whiteout. Symlinks take no `user.` xattr and keep their own owner.
//!
//! Where the xattr is `user.containers.override_stat`, so are others that the filesystem may not take or that would
//! change the mode of the file itself: NAME is kept as `user.containers.override_NAME`. Those of `security.` are
//! kept so by fuse-overlayfs, too.

use std::ffi::{CStr, CString};

use rustix::io::Result;

use super::at::{At, split_names};
use super::attr::{Attr, Kind, decode_dev, encode_dev};

/// Names of the xattr in the order they are looked for on a layer's root.
pub const NAMES: [&CStr; 3] = [SECURITY, USER, CONTAINERS];
/// What fuse-overlayfs before 1.11 writes in place of [`CONTAINERS`], also to layers that have that already: it counts
/// where both are.
const USER: &CStr = c"user.fuseoverlayfs.override_stat";
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
        let mut fields = text.split(':');
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

    /// Whether an object that is a `kind` on disk can be what this says.
    pub fn fits(&self, kind: Kind) -> bool {
        let Some((stands_for, rdev)) = self.kind else {
            return true;
        };
        let whiteout = stands_for == Kind::CharDevice && rdev == encode_dev(0, 0);
        match kind {
            Kind::File => !matches!(stands_for, Kind::Directory | Kind::Symlink) && !whiteout,
            other => other == stands_for,
        }
    }

    /// Puts the override over what is on disk. Only regular files and directories stand for something else.
    pub fn apply(&self, attr: &mut Attr) {
        if !matches!(attr.kind, Kind::File | Kind::Directory) {
            return;
        }
        (attr.uid, attr.gid, attr.mode) = (self.uid, self.gid, self.mode);
        let Some((kind, rdev)) = self.kind else {
            return;
        };
        if attr.kind == Kind::File && self.fits(Kind::File) {
            (attr.kind, attr.rdev) = (kind, rdev);
        }
    }
}

/// What a layer with this override xattr says of `at`.
pub fn of(at: At<'_>, override_name: &CStr) -> Result<Option<Override>> {
    let value = match at.xattr(override_name)? {
        None if override_name == USER => at.xattr(CONTAINERS)?,
        value => value,
    };
    Ok(value.as_deref().and_then(Override::parse))
}

/// Whether the xattr `name` is read in a layer whose root has `of_root`.
pub fn is_read(name: &CStr, of_root: Option<&CStr>) -> bool {
    of_root == Some(name) || (of_root == Some(USER) && name == CONTAINERS)
}

/// Begins the names of what is kept beside the owner and mode.
const KEPT: &[u8] = b"user.containers.override_";
/// Beginnings of the names that are kept so.
const FOREIGN: [&[u8]; 2] = [b"security.", b"system.posix_acl_"];
/// The kept form of the ACL that new entries of a directory inherit.
pub const KEPT_DEFAULT_ACL: &[u8] = b"user.containers.override_system.posix_acl_default";

/// Whether a layer with this override xattr keeps file capabilities and ACLs under other names.
pub fn keeps_foreign(override_name: Option<&CStr>) -> bool {
    override_name == Some(CONTAINERS)
}

/// The name under which a layer with this override xattr keeps `name`, if not under its own.
pub fn kept_as(override_name: Option<&CStr>, name: &[u8]) -> Option<CString> {
    let foreign = FOREIGN.iter().any(|begin| name.starts_with(begin));
    if !keeps_foreign(override_name) || !foreign {
        return None;
    }
    CString::new([KEPT, name].concat()).ok()
}

/// Whether an xattr by this name carries an override, or what is kept beside it.
pub fn is_reserved(name: &[u8]) -> bool {
    NAMES.iter().any(|known| known.to_bytes() == name) || name.starts_with(KEPT)
}

/// The value of `name`, wherever a layer with this override xattr keeps it.
pub fn xattr(at: At<'_>, override_name: Option<&CStr>, name: &CStr) -> Result<Option<Vec<u8>>> {
    if let Some(kept) = kept_as(override_name, name.to_bytes())
        && let Some(value) = at.xattr(&kept)?
    {
        return Ok(Some(value));
    }
    at.xattr(name)
}

/// The names of all xattrs, each ended by NUL, by the names they stand for; without overrides.
pub fn xattr_names(at: At<'_>, override_name: Option<&CStr>) -> Result<Vec<u8>> {
    let listed = at.xattr_names()?;
    if override_name.is_none() {
        return Ok(listed);
    }
    let is_override = |name: &[u8]| NAMES.iter().any(|known| known.to_bytes() == name);
    let mut names: Vec<&[u8]> = Vec::new();
    for name in split_names(&listed).filter(|name| !is_override(name)) {
        let stands_for = name
            .strip_prefix(KEPT)
            .filter(|inner| kept_as(override_name, inner).is_some())
            .unwrap_or(name);
        if !names.contains(&stands_for) {
            names.push(stands_for);
        }
    }
    Ok(names
        .iter()
        .flat_map(|name| [name, &b"\0"[..]].concat())
        .collect())
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
        let longer = Override::parse(b"0:0:0666:char-1-3-later:more").unwrap();
        assert_eq!(longer.encode(), "0:0:0666:char-1-3");
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
