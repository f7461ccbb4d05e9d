//! What is mounted, as the kernel says it in `/proc/self/mountinfo`.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// The filesystem type of our mounts.
pub(super) const TYPE: &str = "fuse.plyfs";

/// One line of mountinfo.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Mount {
    /// The directory of the filesystem that is the root here; not `/` for a bind mount of a part.
    pub(super) root: PathBuf,
    pub(super) mountpoint: PathBuf,
    pub(super) kind: String,
    pub(super) read_only: bool,
}

impl Mount {
    /// Whether this is the whole of a plyfs mount.
    pub(super) fn is_plyfs(&self) -> bool {
        self.kind == TYPE && self.root == Path::new("/")
    }

    fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.split(|&byte| byte == b' ');
        let root = unescape(fields.nth(3)?);
        let mountpoint = unescape(fields.next()?);
        let options = fields.next()?;
        // Optional fields end with a lone dash; the type follows.
        fields.find(|field| *field == b"-")?;
        let kind = String::from_utf8_lossy(fields.next()?).into_owned();
        let super_options = fields.nth(1)?;
        let has_ro = |options: &[u8]| options.split(|&b| b == b',').any(|option| option == b"ro");
        Some(Self {
            root: root.into(),
            mountpoint: mountpoint.into(),
            kind,
            read_only: has_ro(options) || has_ro(super_options),
        })
    }
}

/// All mounts of this namespace, in the order they were made.
pub(super) fn all() -> io::Result<Vec<Mount>> {
    let text = fs::read("/proc/self/mountinfo")?;
    Ok(text
        .split(|&byte| byte == b'\n')
        .filter_map(Mount::parse)
        .collect())
}

/// The topmost mount at `path`, and the path as mountinfo spells it.
pub(super) fn at(path: &Path) -> io::Result<(PathBuf, Option<Mount>)> {
    let path = canonical(path)?;
    let found = all()?.into_iter().rfind(|mount| mount.mountpoint == path);
    Ok((path, found))
}

/// `path` without symlinks, also where a dead mount answers nothing.
fn canonical(path: &Path) -> io::Result<PathBuf> {
    fs::canonicalize(path).or_else(|error| match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) if error.kind() != io::ErrorKind::NotFound => {
            let parent = if parent == Path::new("") {
                Path::new(".")
            } else {
                parent
            };
            fs::canonicalize(parent)
                .map(|parent| parent.join(name))
                .map_err(|_| error)
        }
        _ => Err(error),
    })
}

/// Blanks, tabs, newlines and backslashes are written as three octal digits.
fn unescape(field: &[u8]) -> OsString {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let octal = (byte == b'\\').then(|| after.get(..3)).flatten();
        let decoded = octal
            .and_then(|digits| OsStr::from_bytes(digits).to_str())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        plain.push(decoded.unwrap_or(byte));
        rest = if decoded.is_some() {
            &after[3..]
        } else {
            after
        };
    }
    OsString::from_vec(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_gives_type_place_and_access() {
        let line = b"41 22 0:45 / /mnt/a\\040b rw,nodev shared:5 - fuse.plyfs plyfs ro,user_id=0";
        let mount = Mount::parse(line).unwrap();
        assert_eq!(mount.mountpoint, Path::new("/mnt/a b"));
        assert!(mount.read_only && mount.is_plyfs());
    }

    #[test]
    fn a_bind_mount_of_a_part_is_not_the_mount() {
        let line = b"41 22 0:45 /sub /mnt rw - fuse.plyfs plyfs rw";
        let mount = Mount::parse(line).unwrap();
        assert!(!mount.is_plyfs() && !mount.read_only);
    }

    #[test]
    fn escapes_are_octal() {
        assert_eq!(unescape(br"/a\134b\011c\012d\"), "/a\\b\tc\nd\\");
    }

    #[test]
    fn the_root_is_a_mount() {
        let (path, mount) = at(Path::new("/")).unwrap();
        assert_eq!(path, Path::new("/"));
        assert!(!mount.unwrap().is_plyfs());
    }
}
