//! Whiteouts, opaque directories and the other marks a union leaves in a layer: every format, in one file.
//!
//! | meaning | forms read | form written |
//! |---|---|---|
//! | name is deleted | character device 0:0; file `.wh.NAME`; empty file with xattr `overlay.whiteout` in a directory with `overlay.opaque=x` | device 0:0, else `.wh.NAME` |
//! | directory is opaque | xattr `overlay.opaque=y`, `user.fuseoverlayfs.opaque=y`; file `.wh..wh..opq` | xattr, else the file |
//! | directory moved | xattr `overlay.redirect`: `/absolute/path` in the layers below, or a new name in the same parent | xattr |
//! | data is in a lower file | xattr `overlay.metacopy`, with `overlay.redirect` if the path differs | xattr |
//! | copied up from | xattr `overlay.origin`: a file handle (`super::handle`) | xattr |
//! | names of an indexed inode | xattr `overlay.nlink`: `U+N`, `U-N` relative to the upper inode, `L+N`, `L-N` to the lower | `U` form |
//! | ... counted from | xattr `overlay.lower_nlink`: link count of the lower inode, decimal; not of the kernel's | xattr |
//! | holds copied-up entries | xattr `overlay.impure=y` | xattr |
//!
//! `overlay.` stands for `trusted.overlay.` and `user.overlay.`; both are read, the first wins. Sources of the
//! formats: Linux `Documentation/filesystems/overlayfs.rst` and `fs/overlayfs/util.c`, the OCI image
//! specification (layer.md), fuse-overlayfs.

use std::borrow::Cow;
use std::ffi::{CStr, CString};

use rustix::io::{Errno, Result};

use super::at::{At, split_names};
use super::attr::{Attr, Kind};
use super::name::{Name, OwnedName};
use super::override_stat::KEPT_DEFAULT_ACL;

/// Begins the name of a whiteout file.
pub const AUFS_PREFIX: &[u8] = b".wh.";
/// Begins names that are bookkeeping of aufs and never shown.
pub const AUFS_RESERVED: &[u8] = b".wh..wh.";
/// Marks its directory opaque.
pub const AUFS_OPAQUE: &[u8] = b".wh..wh..opq";

/// The ACL that new entries of a directory inherit.
pub const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";

const TRUSTED: &[u8] = b"trusted.overlay.";
const USER: &[u8] = b"user.overlay.";
const FUSE_OVERLAYFS: &[u8] = b"user.fuseoverlayfs.";
/// Inserted behind a prefix to carry a mark of a union mounted on ours (nesting).
const ESCAPE: &[u8] = b"overlay.";

/// The namespace marks are written in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Prefix {
    /// `trusted.overlay.`, for `CAP_SYS_ADMIN` in the initial user namespace.
    Trusted,
    /// `user.overlay.`, the kernel's `userxattr`.
    User,
}

impl Prefix {
    /// Position in the order in which namespaces are believed.
    fn rank(self) -> u8 {
        match self {
            Self::Trusted => 0,
            Self::User => 1,
        }
    }
}

/// A private xattr without its prefix.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mark {
    /// The directory hides what is below it.
    Opaque,
    /// The directory (or metacopy file) has another path in the layers below.
    Redirect,
    /// The file's data is in a layer below.
    Metacopy,
    /// The lower object this one was copied up from.
    Origin,
    /// The directory holds copied-up entries.
    Impure,
    /// Union link count of an indexed inode.
    Nlink,
    /// Link count of the lower inode an indexed one came from; ours, the kernel ignores it.
    LowerNlink,
}

impl Mark {
    /// The full xattr name.
    pub fn name(self, prefix: Prefix) -> &'static CStr {
        match (prefix, self) {
            (Prefix::Trusted, Self::Opaque) => c"trusted.overlay.opaque",
            (Prefix::Trusted, Self::Redirect) => c"trusted.overlay.redirect",
            (Prefix::Trusted, Self::Metacopy) => c"trusted.overlay.metacopy",
            (Prefix::Trusted, Self::Origin) => c"trusted.overlay.origin",
            (Prefix::Trusted, Self::Impure) => c"trusted.overlay.impure",
            (Prefix::Trusted, Self::Nlink) => c"trusted.overlay.nlink",
            (Prefix::Trusted, Self::LowerNlink) => c"trusted.overlay.lower_nlink",
            (Prefix::User, Self::LowerNlink) => c"user.overlay.lower_nlink",
            (Prefix::User, Self::Opaque) => c"user.overlay.opaque",
            (Prefix::User, Self::Redirect) => c"user.overlay.redirect",
            (Prefix::User, Self::Metacopy) => c"user.overlay.metacopy",
            (Prefix::User, Self::Origin) => c"user.overlay.origin",
            (Prefix::User, Self::Impure) => c"user.overlay.impure",
            (Prefix::User, Self::Nlink) => c"user.overlay.nlink",
        }
    }
}

/// Where a moved directory (or the data of a metacopy file) is in the layers below.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Redirect {
    /// Components from the root of the layers.
    Absolute(Vec<OwnedName>),
    /// Another name in the same parent.
    Sibling(OwnedName),
}

impl Redirect {
    /// Parses the xattr's value; EINVAL as the kernel says if it is malformed.
    pub fn parse(value: &[u8]) -> Result<Self> {
        let value = value.strip_suffix(b"\0").unwrap_or(value);
        let name = |part| {
            Name::from_bytes(part)
                .map(Name::to_owned)
                .map_err(|_| Errno::INVAL)
        };
        match value.strip_prefix(b"/") {
            Some(path) => {
                let parts = path
                    .split(|&byte| byte == b'/')
                    .map(name)
                    .collect::<Result<_>>()?;
                Ok(Self::Absolute(parts))
            }
            None => name(value).map(Self::Sibling),
        }
    }

    /// The xattr's value.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Absolute(parts) => parts.iter().fold(Vec::new(), |mut path, part| {
                path.push(b'/');
                path.extend_from_slice(part.get().bytes());
                path
            }),
            Self::Sibling(name) => name.get().bytes().to_vec(),
        }
    }
}

/// A union link count as it is stored: relative to the inode's own count.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum NlinkMark {
    /// Relative to the upper inode.
    Upper(i32),
    /// Relative to the lower inode.
    Lower(i32),
}

impl NlinkMark {
    /// Parses `U+1`, `L-2` and the like.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let value = std::str::from_utf8(value).ok()?.trim_end_matches('\0');
        let offset = value.get(1..)?.parse().ok()?;
        match value.as_bytes().first()? {
            b'U' => Some(Self::Upper(offset)),
            b'L' => Some(Self::Lower(offset)),
            _ => None,
        }
    }

    /// The stored form.
    pub fn encode(self) -> String {
        match self {
            Self::Upper(offset) => format!("U{offset:+}"),
            Self::Lower(offset) => format!("L{offset:+}"),
        }
    }
}

/// All marks of one object.
#[derive(Clone, Debug, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent xattrs, present or not"
)]
pub struct Marks {
    /// `overlay.opaque=y`.
    pub opaque: bool,
    /// `overlay.opaque=x`: entries may be xattr whiteouts.
    pub xattr_whiteouts: bool,
    /// `overlay.whiteout` is present.
    pub whiteout: bool,
    /// `overlay.impure` is present.
    pub impure: bool,
    /// `overlay.metacopy` is present.
    pub metacopy: bool,
    /// `overlay.redirect`.
    pub redirect: Option<Redirect>,
    /// `overlay.origin`, undecoded; empty means copied up from something unknown.
    pub origin: Option<Vec<u8>>,
    /// `overlay.nlink`.
    pub nlink: Option<NlinkMark>,
    /// `overlay.lower_nlink`.
    pub lower_nlink: Option<u32>,
    /// A default POSIX ACL is present.
    pub default_acl: bool,
    /// There are marks that may not be read: those in `user.` xattrs need read permission on the object.
    pub unread: bool,
}

impl Marks {
    /// Reads the marks of `at`: one call if it has no xattrs. Marks that lead to other objects count only in the
    /// namespace `own` of the mount: in a mount of root, whoever owns a layer must not be able to plant them.
    pub fn read(at: At<'_>, own: Prefix) -> Result<Self> {
        let mut marks = Self::default();
        let names = at.xattr_names()?;
        if names.is_empty() {
            return Ok(marks);
        }
        for full in split_names(&names) {
            marks.default_acl |= full == DEFAULT_ACL || full == KEPT_DEFAULT_ACL;
            let Some((key, rank)) = private_key(full) else {
                continue;
            };
            let leads = !matches!(key, b"opaque" | b"whiteout" | b"impure");
            if leads && own.rank() != rank {
                continue;
            }
            marks.take(at, full, key, rank, &names)?;
        }
        Ok(marks)
    }

    fn take(&mut self, at: At<'_>, full: &[u8], key: &[u8], rank: u8, names: &[u8]) -> Result<()> {
        let shadowed = split_names(names)
            .filter_map(private_key)
            .any(|(other, other_rank)| other == key && other_rank < rank);
        if shadowed {
            return Ok(());
        }
        let full = CString::new(full).map_err(|_| Errno::INVAL)?;
        let value = match at.xattr(&full) {
            Ok(Some(value)) => value,
            // That a name is listed says enough for a metacopy; other marks do not count without their value, as in
            // the kernel.
            Err(Errno::ACCESS | Errno::PERM) if key == b"metacopy" => {
                self.unread = true;
                Vec::new()
            }
            Err(Errno::ACCESS | Errno::PERM) => {
                self.unread = true;
                return Ok(());
            }
            Ok(None) => return Ok(()),
            Err(error) => return Err(error),
        };
        match key {
            b"opaque" => {
                self.opaque = value.first() == Some(&b'y');
                self.xattr_whiteouts = value.first() == Some(&b'x');
            }
            b"whiteout" => self.whiteout = true,
            b"impure" => self.impure = true,
            b"metacopy" => self.metacopy = true,
            b"redirect" => self.redirect = Some(Redirect::parse(&value)?),
            b"origin" => self.origin = Some(value),
            b"nlink" => self.nlink = NlinkMark::parse(&value),
            b"lower_nlink" => {
                self.lower_nlink = std::str::from_utf8(&value)
                    .ok()
                    .and_then(|n| n.parse().ok());
            }
            _ => {}
        }
        Ok(())
    }
}

/// Whose a private xattr is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Space {
    /// `trusted.overlay.` or `user.overlay.`.
    Overlay(Prefix),
    /// `user.fuseoverlayfs.`.
    FuseOverlayfs,
}

/// A private xattr as it is on disk, believed or not.
#[derive(Clone, Debug)]
pub struct Raw {
    /// Its whole name.
    pub name: CString,
    /// Whose it is.
    pub space: Space,
    /// The name without the namespace.
    pub key: Vec<u8>,
    /// The value; `None` if this process may not read it.
    pub value: Option<Vec<u8>>,
}

impl Raw {
    /// The private xattrs of `at` among those with these `names`.
    pub fn all(at: At<'_>, names: &[u8]) -> Result<Vec<Self>> {
        let mut all = Vec::new();
        for full in split_names(names) {
            let Some((key, rank)) = private_key(full) else {
                continue;
            };
            let name = CString::new(full).map_err(|_| Errno::INVAL)?;
            let value = match at.xattr(&name) {
                Err(Errno::ACCESS | Errno::PERM) => None,
                other => other?,
            };
            let space = match rank {
                0 => Space::Overlay(Prefix::Trusted),
                1 => Space::Overlay(Prefix::User),
                _ => Space::FuseOverlayfs,
            };
            all.push(Self {
                name,
                space,
                key: key.to_vec(),
                value,
            });
        }
        Ok(all)
    }

    /// Which mark it is, of those in the namespaces of overlayfs.
    pub fn mark(&self) -> Option<Mark> {
        let known = MARKS.iter().find(|(key, _)| *key == self.key)?;
        (self.space != Space::FuseOverlayfs).then_some(known.1)
    }

    /// Whether it makes its directory opaque.
    pub fn is_opaque(&self) -> bool {
        self.key == b"opaque" && self.starts_with(b'y')
    }

    /// Whether it says that its directory may hold xattr whiteouts.
    pub fn has_xattr_whiteouts(&self) -> bool {
        self.key == b"opaque" && self.starts_with(b'x')
    }

    /// Whether it makes an empty file in such a directory a whiteout.
    pub fn is_whiteout(&self) -> bool {
        self.key == b"whiteout"
    }

    fn starts_with(&self, byte: u8) -> bool {
        let value = self.value.as_deref();
        value.is_some_and(|value| value.first() == Some(&byte))
    }
}

/// Keys of marks.
const MARKS: [(&[u8], Mark); 7] = [
    (b"opaque", Mark::Opaque),
    (b"redirect", Mark::Redirect),
    (b"metacopy", Mark::Metacopy),
    (b"origin", Mark::Origin),
    (b"impure", Mark::Impure),
    (b"nlink", Mark::Nlink),
    (b"lower_nlink", Mark::LowerNlink),
];

/// Whether the value of a metacopy mark is in the kernel's format: empty, or version 0, its own length, flags and
/// algorithm, and a digest of at most 64 bytes.
pub fn is_metacopy(value: &[u8]) -> bool {
    const HEADER: usize = 4;
    const DIGEST: usize = 64;
    value.is_empty()
        || ((HEADER..=HEADER + DIGEST).contains(&value.len())
            && value[0] == 0
            && usize::from(value[1]) == value.len())
}

/// Splits a private xattr into its key and the rank of its namespace (0 wins); escaped names are not private.
fn private_key(full: &[u8]) -> Option<(&[u8], u8)> {
    for (rank, prefix) in [(0, TRUSTED), (1, USER), (2, FUSE_OVERLAYFS)] {
        if let Some(key) = full.strip_prefix(prefix) {
            return (!key.starts_with(ESCAPE)).then_some((key, rank));
        }
    }
    None
}

/// Whether an xattr on disk belongs to this union and must not be copied or shown.
pub fn is_private(on_disk: &[u8]) -> bool {
    xattr_visible(on_disk).is_none()
}

/// Whether `attr` is a whiteout device.
pub fn is_whiteout(attr: &Attr) -> bool {
    attr.kind == Kind::CharDevice && attr.rdev == 0
}

/// What a name beginning `.wh.` says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum AufsName<'a> {
    /// Its directory is opaque.
    Opaque,
    /// The other name is deleted.
    Whiteout(Name<'a>),
    /// Bookkeeping; to be ignored.
    Reserved,
}

/// Reads a name as an aufs mark; `None` for an ordinary name.
pub fn aufs_name(name: &[u8]) -> Option<AufsName<'_>> {
    let hidden = name.strip_prefix(AUFS_PREFIX)?;
    if name == AUFS_OPAQUE {
        Some(AufsName::Opaque)
    } else if name.starts_with(AUFS_RESERVED) {
        Some(AufsName::Reserved)
    } else {
        Some(Name::from_bytes(hidden).map_or(AufsName::Reserved, AufsName::Whiteout))
    }
}

/// The whiteout file for `name`; ENAMETOOLONG if it would not fit a directory entry.
pub fn aufs_whiteout(name: Name<'_>) -> Result<OwnedName> {
    let mut mark = AUFS_PREFIX.to_vec();
    mark.extend_from_slice(name.bytes());
    Name::from_bytes(&mark).map(Name::to_owned)
}

/// The name on disk of an xattr a user of the mount calls `visible`: marks of an inner union are escaped.
/// EPERM for names of ours that have no escaped form.
pub fn xattr_on_disk(visible: &[u8]) -> Result<Cow<'_, [u8]>> {
    if visible.starts_with(FUSE_OVERLAYFS) {
        return Err(Errno::PERM);
    }
    for prefix in [TRUSTED, USER] {
        if let Some(key) = visible.strip_prefix(prefix) {
            let escaped = [prefix, ESCAPE, key].concat();
            return if escaped.len() > 255 {
                Err(Errno::OPNOTSUPP)
            } else {
                Ok(escaped.into())
            };
        }
    }
    Ok(visible.into())
}

/// What a user of the mount sees of an xattr on disk: `None` if it is ours.
pub fn xattr_visible(on_disk: &[u8]) -> Option<Cow<'_, [u8]>> {
    if on_disk.starts_with(FUSE_OVERLAYFS) {
        return None;
    }
    for prefix in [TRUSTED, USER] {
        if let Some(key) = on_disk.strip_prefix(prefix) {
            return key
                .strip_prefix(ESCAPE)
                .map(|inner| [prefix, inner].concat().into());
        }
    }
    Some(on_disk.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_is_an_absolute_path_or_a_sibling() {
        let absolute = Redirect::parse(b"/a/b").unwrap();
        assert_eq!(absolute.encode(), b"/a/b");
        assert!(matches!(&absolute, Redirect::Absolute(parts) if parts.len() == 2));
        assert_eq!(Redirect::parse(b"x\0").unwrap().encode(), b"x");
        for bad in [&b""[..], b"/", b"a/b", b"/a//b", b"/../etc", b".."] {
            assert_eq!(Redirect::parse(bad), Err(Errno::INVAL), "{bad:?}");
        }
    }

    #[test]
    fn a_link_count_mark_keeps_its_sign() {
        for mark in [
            NlinkMark::Upper(0),
            NlinkMark::Upper(-3),
            NlinkMark::Lower(2),
        ] {
            assert_eq!(NlinkMark::parse(mark.encode().as_bytes()), Some(mark));
        }
        assert_eq!(NlinkMark::parse(b"X+1"), None);
        assert_eq!(NlinkMark::parse(b""), None);
    }

    #[test]
    fn aufs_names_hide_other_names() {
        assert_eq!(aufs_name(b"plain"), None);
        assert_eq!(aufs_name(b".wh..wh..opq"), Some(AufsName::Opaque));
        assert_eq!(aufs_name(b".wh..wh.plnk"), Some(AufsName::Reserved));
        assert_eq!(aufs_name(b".wh."), Some(AufsName::Reserved));
        let hidden = Name::from_bytes(b"gone").unwrap();
        assert_eq!(aufs_name(b".wh.gone"), Some(AufsName::Whiteout(hidden)));
    }

    #[test]
    fn marks_of_an_inner_union_are_escaped_and_ours_are_hidden() {
        let disk = xattr_on_disk(b"trusted.overlay.opaque").unwrap();
        assert_eq!(&*disk, b"trusted.overlay.overlay.opaque");
        assert_eq!(
            xattr_visible(&disk).as_deref(),
            Some(&b"trusted.overlay.opaque"[..])
        );
        assert_eq!(xattr_visible(b"user.overlay.origin"), None);
        assert_eq!(
            xattr_visible(b"user.mime").as_deref(),
            Some(&b"user.mime"[..])
        );
        assert_eq!(
            xattr_on_disk(b"user.fuseoverlayfs.opaque"),
            Err(Errno::PERM)
        );
    }
}
