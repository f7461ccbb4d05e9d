//! Trees on disk: building one from its text, reading one back.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags, lgetxattr,
    llistxattr, lsetxattr, makedev, mknodat,
};
use rustix::io::Errno;

use super::acl;
use super::run::{Privilege, privilege, runs_with};
use super::tree::{Content, Entry, Kind, lines};

/// What is being read: the merged view, or a directory that carries overlay marks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum View {
    Merged,
    Layer,
}

/// The namespace of overlay's private xattrs in this run: `trusted` or `user`.
pub fn namespace() -> &'static str {
    if privilege() == Privilege::Root {
        "trusted"
    } else {
        "user"
    }
}

/// The time every object of a fixture gets unless its line says otherwise.
const DEFAULT_MTIME: i64 = 1_500_000_000;

/// Creates `entries` under `root`.
pub fn build(root: &Path, entries: &[Entry]) {
    let at = |path: &[u8]| root.join(OsStr::from_bytes(path));
    for entry in entries {
        make(root, &at(&entry.path), entry);
    }
    for entry in entries {
        mark(&at(&entry.path), entry);
    }
    for entry in entries.iter().rev() {
        let path = at(&entry.path);
        if fs::symlink_metadata(&path).is_err() || matches!(entry.kind, Kind::Link(_)) {
            continue;
        }
        if let Some((uid, gid)) = entry.owner {
            chown(&path, uid, gid);
        }
        if !matches!(entry.kind, Kind::Symlink(_) | Kind::Whiteout(_)) {
            let default = if matches!(entry.kind, Kind::Dir) {
                0o755
            } else {
                0o644
            };
            let mode = fs::Permissions::from_mode(entry.mode.unwrap_or(default));
            fs::set_permissions(&path, mode).unwrap();
        }
        let (seconds, nanos) = entry.mtime.unwrap_or((DEFAULT_MTIME, 0));
        set_mtime(&path, seconds, nanos);
    }
    if !entries.iter().any(|entry| entry.path == b".") {
        set_mtime(root, DEFAULT_MTIME, 0);
    }
}

/// Sets the modification and access time without following a symbolic link.
pub fn set_mtime(path: &Path, seconds: i64, nanos: u32) {
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: i64::from(nanos),
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// Changes the owner without following a symbolic link.
pub fn chown(path: &Path, uid: u32, gid: u32) {
    let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    rustix::fs::chownat(CWD, path, uid, gid, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn make(root: &Path, path: &Path, entry: &Entry) {
    let node = |kind, device| mknodat(CWD, path, kind, Mode::from(0o644), device).unwrap();
    match &entry.kind {
        Kind::Dir if entry.path == b"." => {}
        Kind::Dir => fs::create_dir(path).unwrap(),
        Kind::File(Content::Hole(length)) => fs::File::create_new(path)
            .unwrap()
            .set_len(*length)
            .unwrap(),
        Kind::File(content) => {
            fs::File::create_new(path)
                .unwrap()
                .write_all_at(&content.bytes(), 0)
                .unwrap();
        }
        Kind::Symlink(target) => {
            std::os::unix::fs::symlink(OsStr::from_bytes(target), path).unwrap();
        }
        Kind::Fifo => node(FileType::Fifo, 0),
        Kind::Socket => node(FileType::Socket, 0),
        Kind::Char(major, minor) => node(FileType::CharacterDevice, makedev(*major, *minor)),
        Kind::Block(major, minor) => node(FileType::BlockDevice, makedev(*major, *minor)),
        Kind::Link(other) => fs::hard_link(root.join(OsStr::from_bytes(other)), path).unwrap(),
        Kind::Whiteout(form) => make_whiteout(path, form),
    }
}

fn make_whiteout(path: &Path, form: &str) {
    match form {
        "" | "device" => {
            mknodat(CWD, path, FileType::CharacterDevice, Mode::empty(), 0).unwrap();
        }
        "aufs" => {
            let mut name = OsString::from(".wh.");
            name.push(path.file_name().unwrap());
            fs::File::create_new(path.with_file_name(name)).unwrap();
        }
        "xattr" => {
            fs::File::create_new(path).unwrap();
            let overlay = format!("{}.overlay.", namespace());
            lsetxattr(
                path,
                format!("{overlay}whiteout"),
                b"y",
                XattrFlags::empty(),
            )
            .unwrap();
            let parent = path.parent().unwrap();
            lsetxattr(
                parent,
                format!("{overlay}opaque"),
                b"x",
                XattrFlags::empty(),
            )
            .unwrap();
        }
        form => panic!("{form}: not a form of whiteout"),
    }
}

fn mark(path: &Path, entry: &Entry) {
    let set = |name: &str, value: &[u8]| {
        lsetxattr(path, name, value, XattrFlags::empty())
            .unwrap_or_else(|error| panic!("setxattr {name} on {}: {error}", path.display()));
    };
    let overlay = format!("{}.overlay.", namespace());
    match entry.opaque.as_deref() {
        None => {}
        Some("") => set(&format!("{overlay}opaque"), b"y"),
        Some("file") => drop(fs::File::create_new(path.join(".wh..wh..opq")).unwrap()),
        Some("fuse") => set("user.fuseoverlayfs.opaque", b"y"),
        Some(namespace) => set(&format!("{namespace}.overlay.opaque"), b"y"),
    }
    if let Some(redirect) = &entry.redirect {
        set(&format!("{overlay}redirect"), redirect);
    }
    if entry.metacopy {
        set(&format!("{overlay}metacopy"), b"");
    }
    for (name, value) in &entry.xattrs {
        match name.as_str() {
            "acl" | "default" => set_acl(path, name, std::str::from_utf8(value).unwrap()),
            name => set(name, value),
        }
    }
}

/// Sets the access (`acl`) or the default (`default`) ACL.
pub fn set_acl(path: &Path, which: &str, text: &str) {
    let name = if which == "acl" { "access" } else { "default" };
    let name = format!("system.posix_acl_{name}");
    lsetxattr(path, name, &acl::encode(text), XattrFlags::empty()).unwrap();
}

/// Everything under `root`, sorted by path.
pub fn read(root: &Path, view: View) -> Vec<Entry> {
    let mut entries = vec![read_entry(root, PathBuf::from("."), view)];
    read_dir(root, Path::new(""), view, &mut entries);
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    let mut first: HashMap<(u64, u64), Vec<u8>> = HashMap::new();
    for entry in &mut entries {
        let meta = fs::symlink_metadata(root.join(OsStr::from_bytes(&entry.path)));
        let Some(meta) = meta.ok().filter(|meta| meta.nlink() > 1 && !meta.is_dir()) else {
            continue;
        };
        if matches!(entry.kind, Kind::Whiteout(_)) {
            continue;
        }
        match first.get(&(meta.dev(), meta.ino())) {
            None => drop(first.insert((meta.dev(), meta.ino()), entry.path.clone())),
            Some(other) => {
                let path = std::mem::take(&mut entry.path);
                *entry = Entry {
                    path,
                    kind: Kind::Link(other.clone()),
                    ..Entry::default()
                };
            }
        }
    }
    entries
}

fn read_dir(root: &Path, dir: &Path, view: View, entries: &mut Vec<Entry>) {
    let list = match fs::read_dir(root.join(dir)) {
        Ok(list) => list,
        Err(error) if error.kind() == ErrorKind::PermissionDenied => return,
        Err(error) => panic!("{}: {error}", root.join(dir).display()),
    };
    for item in list {
        let item = item.unwrap_or_else(|error| panic!("readdir {}: {error}", dir.display()));
        let path = dir.join(item.file_name());
        let name = item.file_name();
        let aufs = name
            .as_bytes()
            .strip_prefix(b".wh.")
            .filter(|_| view == View::Layer);
        match aufs {
            Some(b".wh..opq") => {}
            Some(hidden) => entries.push(Entry {
                path: dir
                    .join(OsStr::from_bytes(hidden))
                    .into_os_string()
                    .into_vec(),
                kind: Kind::Whiteout("aufs".to_owned()),
                ..Entry::default()
            }),
            None => {
                let entry = read_entry(&root.join(&path), path.clone(), view);
                let is_dir = matches!(entry.kind, Kind::Dir);
                entries.push(entry);
                if is_dir {
                    read_dir(root, &path, view, entries);
                }
            }
        }
    }
}

fn read_entry(full: &Path, path: PathBuf, view: View) -> Entry {
    let meta = fs::symlink_metadata(full)
        .unwrap_or_else(|error| panic!("{} is listed but: {error}", full.display()));
    let mut entry = Entry {
        path: path.into_os_string().into_vec(),
        mode: Some(meta.mode() & 0o7777),
        owner: Some((meta.uid(), meta.gid())),
        nlink: Some(meta.nlink()),
        mtime: Some((meta.mtime(), u32::try_from(meta.mtime_nsec()).unwrap())),
        ..Entry::default()
    };
    let device = |make: fn(u32, u32) -> Kind| {
        make(
            rustix::fs::major(meta.rdev()),
            rustix::fs::minor(meta.rdev()),
        )
    };
    let kind = meta.file_type();
    let is_whiteout = read_xattrs(full, view, &mut entry);
    let stands_for = has_overrides(view) && apply_override(&mut entry);
    entry.kind = if stands_for {
        entry.kind
    } else if is_whiteout {
        Kind::Whiteout("xattr".to_owned())
    } else if kind.is_dir() {
        Kind::Dir
    } else if kind.is_symlink() {
        Kind::Symlink(fs::read_link(full).unwrap().into_os_string().into_vec())
    } else if kind.is_fifo() {
        Kind::Fifo
    } else if kind.is_socket() {
        Kind::Socket
    } else if kind.is_block_device() {
        device(Kind::Block)
    } else if kind.is_char_device() && meta.rdev() == 0 && view == View::Layer {
        Kind::Whiteout("device".to_owned())
    } else if kind.is_char_device() {
        device(Kind::Char)
    } else {
        read_content(full, &meta)
    };
    if view == View::Layer && kind.is_dir() && full.join(".wh..wh..opq").exists() {
        entry.opaque = Some("file".to_owned());
    }
    entry
}

fn read_content(full: &Path, meta: &fs::Metadata) -> Kind {
    let content = match fs::read(full) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            return Kind::File(Content::Unreadable);
        }
        Err(error) => panic!("read {}: {error}", full.display()),
    };
    assert_eq!(
        content.len() as u64,
        meta.size(),
        "{}: size and content",
        full.display()
    );
    Kind::File(Content::Bytes(content))
}

/// Fills in xattrs and marks; true when they make the object a whiteout.
fn read_xattrs(full: &Path, view: View, entry: &mut Entry) -> bool {
    let mut is_whiteout = false;
    for name in xattr_names(full) {
        let Some(value) = xattr(full, &name) else {
            continue;
        };
        let private = name
            .split_once(".overlay.")
            .filter(|(ns, _)| ["trusted", "user"].contains(ns));
        let bookkeeping = ["origin", "impure", "nlink", "lower_nlink", "upper", "uuid"];
        match (view, private, name.as_str()) {
            (View::Layer, Some((_, key)), _)
                if bookkeeping.contains(&key) || (key == "opaque" && value != b"y") => {}
            (View::Layer, Some((namespace, "opaque")), _) => {
                entry.opaque = Some(namespace.to_owned());
            }
            (View::Layer, Some((_, "redirect")), _) => entry.redirect = Some(value),
            (View::Layer, Some((_, "metacopy")), _) => entry.metacopy = true,
            (View::Layer, Some((_, "whiteout")), _) => is_whiteout = true,
            (View::Layer, None, "user.fuseoverlayfs.opaque") => entry.opaque = Some("fuse".into()),
            (_, _, "system.posix_acl_access") => {
                entry
                    .xattrs
                    .insert("acl".to_owned(), acl::decode(&value).into_bytes());
            }
            (_, _, "system.posix_acl_default") => {
                entry
                    .xattrs
                    .insert("default".to_owned(), acl::decode(&value).into_bytes());
            }
            // How xfs shows its ACLs to root.
            (_, _, "trusted.SGI_ACL_FILE" | "trusted.SGI_ACL_DEFAULT") => {}
            _ => drop(entry.xattrs.insert(name, value)),
        }
    }
    is_whiteout
}

const OVERRIDE: &str = "user.containers.override_";

/// Whether files of the upper say in an xattr what they stand for (`xattr_permissions=2` on all mounts).
fn has_overrides(view: View) -> bool {
    view == View::Layer && runs_with("xattr_permissions=2")
}

/// Makes an entry of the upper what its override says; true for a type that a file stands for.
fn apply_override(entry: &mut Entry) -> bool {
    let kept: Vec<_> = entry
        .xattrs
        .keys()
        .filter_map(|name| name.strip_prefix(OVERRIDE))
        .map(str::to_owned)
        .collect();
    let mut stands = false;
    for name in kept {
        let value = entry.xattrs.remove(&format!("{OVERRIDE}{name}")).unwrap();
        match &*name {
            "stat" => stands = entry_is(entry, std::str::from_utf8(&value).unwrap()),
            "system.posix_acl_access" => {
                entry
                    .xattrs
                    .insert("acl".to_owned(), acl::decode(&value).into_bytes());
            }
            "system.posix_acl_default" => {
                entry
                    .xattrs
                    .insert("default".to_owned(), acl::decode(&value).into_bytes());
            }
            _ => drop(entry.xattrs.insert(name, value)),
        }
    }
    stands
}

fn entry_is(entry: &mut Entry, text: &str) -> bool {
    let fields: Vec<_> = text.split(':').collect();
    let [uid, gid, mode, kind] = fields[..] else {
        panic!("{text}: not four fields");
    };
    entry.owner = Some((uid.parse().unwrap(), gid.parse().unwrap()));
    entry.mode = Some(u32::from_str_radix(mode, 8).unwrap());
    let parts: Vec<_> = kind.split('-').collect();
    let number = |at: usize| parts[at].parse().unwrap();
    entry.kind = match parts[0] {
        "pipe" => Kind::Fifo,
        "socket" => Kind::Socket,
        "char" => Kind::Char(number(1), number(2)),
        "block" => Kind::Block(number(1), number(2)),
        "file" | "dir" => return false,
        _ => panic!("{text}: no such type"),
    };
    true
}

/// The names of the extended attributes, without following a symbolic link.
pub fn xattr_names(path: &Path) -> Vec<String> {
    let mut buffer = vec![0_u8; 65536];
    let length = match llistxattr(path, &mut buffer[..]) {
        Err(Errno::NOTSUP) => return Vec::new(),
        result => result.unwrap_or_else(|error| panic!("listxattr {}: {error}", path.display())),
    };
    let names = buffer[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty());
    let mut names: Vec<_> = names
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .collect();
    names.sort();
    names
}

/// The value of one extended attribute, without following a symbolic link.
pub fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut buffer = vec![0_u8; 65536];
    let length = lgetxattr(path, name, &mut buffer[..]).ok()?;
    buffer.truncate(length);
    Some(buffer)
}

/// Everything about a tree that must not change when it is used as a lower layer.
pub fn fingerprint(root: &Path) -> String {
    let all = Entry {
        mode: Some(0),
        owner: Some((0, 0)),
        nlink: Some(0),
        mtime: Some((0, 0)),
        ..Entry::default()
    };
    lines(read(root, View::Merged), |entry| {
        let meta = fs::symlink_metadata(root.join(OsStr::from_bytes(&entry.path))).unwrap();
        let changed = format!("{}.{:09}", meta.ctime(), meta.ctime_nsec());
        format!("{} ino={} ctime={changed}\n", entry.line(&all), meta.ino())
    })
}
