//! A whole tree as text: one line per path, equal on two trees that look alike to a program.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::hash::Hasher;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{self, AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use rustix::path::Arg;

use super::exec::content;

/// What is known of one path.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Entry {
    /// Everything that must agree between two filesystems.
    pub(crate) text: String,
    /// The inode number: may differ between two filesystems, not between two looks at one.
    pub(crate) ino: u64,
    pub(crate) kind: FileType,
    /// The directory listing told another inode number or type than `lstat`.
    pub(crate) misreported: bool,
}

/// A tree by path; the root is the empty path.
pub(crate) type Tree = BTreeMap<String, Entry>;

/// What a listing may contain.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Listing {
    /// What is listed exists.
    Strict,
    /// The kernel lists the whiteouts in a directory that exists in one layer only, then finds nothing.
    WithWhiteouts,
}

/// Reads the whole tree under `root`.
pub(crate) fn snapshot(root: &Path, listing: Listing) -> Tree {
    let mut walk = Walk {
        listing,
        tree: Tree::new(),
        first: HashMap::new(),
        device: None,
    };
    walk.visit(root, "");
    walk.tree
}

/// Who keeps the modification time of a file whose data follows a metadata-only copy-up: the kernel sets it
/// to now, which is no change of the file that a program asked for; plyfs puts it back.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Times {
    /// Both do: there is no metadata-only copy-up.
    Equal,
    /// The right need not.
    RightMayBeNow,
}

/// Whether two texts made of [`attributes`] agree.
pub(crate) fn agree(left: &str, right: &str, times: Times) -> bool {
    let excused = times == Times::RightMayBeNow
        && left.contains("RegularFile")
        && right.contains(" mtime=now")
        && timeless(left) == timeless(right);
    left == right || excused
}

/// `text` without the modification time.
pub(crate) fn timeless(text: &str) -> String {
    let words = text.split(' ').filter(|word| !word.starts_with("mtime="));
    words.collect::<Vec<_>>().join(" ")
}

/// The lines that differ, `-` the left's, `+` the right's; empty if the trees are equal.
pub(crate) fn difference(left: &Tree, right: &Tree, times: Times) -> String {
    let mut lines = String::new();
    let paths: std::collections::BTreeSet<&String> = left.keys().chain(right.keys()).collect();
    for path in paths {
        let show = |tree: &Tree| {
            tree.get(path)
                .map_or("absent", |entry| &entry.text)
                .to_string()
        };
        let (a, b) = (show(left), show(right));
        if !agree(&a, &b, times) {
            write!(lines, "  /{path}\n    - {a}\n    + {b}\n").unwrap();
        }
    }
    lines
}

struct Walk {
    listing: Listing,
    tree: Tree,
    /// The first path of each inode: names the group of hard links.
    first: HashMap<u64, String>,
    device: Option<u64>,
}

impl Walk {
    fn visit(&mut self, full: &Path, path: &str) {
        let stat = match fs::lstat(full) {
            Ok(stat) => stat,
            Err(errno) => return self.broken(path, "lstat", errno),
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        let mut text = attributes(&stat);
        let mut add = |what: &str, result: Result<String, Errno>| {
            let result = result.unwrap_or_else(|errno| format!("ERROR {errno:?}"));
            write!(text, " {what}{result}").unwrap();
        };
        match kind {
            FileType::RegularFile => add("", read(full)),
            FileType::Symlink => add("-> ", link_target(full)),
            _ => {}
        }
        match xattrs(full) {
            Ok(none) if none.is_empty() => {}
            other => add("", other),
        }
        if let Some(other) = self.first.get(&stat.st_ino) {
            write!(text, " same inode as /{other}").unwrap();
        } else {
            self.first.insert(stat.st_ino, path.to_string());
        }
        if *self.device.get_or_insert(stat.st_dev) != stat.st_dev {
            text.push_str(" ON ANOTHER DEVICE");
        }
        self.tree
            .insert(path.to_string(), entry(text, stat.st_ino, kind));
        if kind == FileType::Directory {
            self.children(full, path);
        }
    }

    fn children(&mut self, full: &Path, path: &str) {
        let mut names = match names(full) {
            Ok(names) => names,
            Err(errno) => return self.note(path, &format!("readdir ERROR {errno:?}")),
        };
        names.sort();
        for (name, ino, kind) in names {
            let child = if path.is_empty() {
                name.clone()
            } else {
                format!("{path}/{name}")
            };
            if self.tree.contains_key(&child) {
                self.note(&child, "LISTED TWICE");
                continue;
            }
            let full = full.join(&name);
            let kind = FileType::from_raw_mode(kind);
            if self.listing == Listing::WithWhiteouts && is_whiteout(CWD, &full, kind) {
                continue;
            }
            self.visit(&full, &child);
            if let Some(seen) = self.tree.get_mut(&child) {
                seen.misreported = seen.ino != ino || seen.kind != kind;
            }
        }
    }

    fn broken(&mut self, path: &str, what: &str, errno: Errno) {
        let text = format!("{what} ERROR {errno:?}");
        self.tree
            .insert(path.to_string(), entry(text, 0, FileType::Unknown));
    }

    fn note(&mut self, path: &str, what: &str) {
        if let Some(entry) = self.tree.get_mut(path) {
            write!(entry.text, " {what}").unwrap();
        }
    }
}

/// Whether what was listed as `kind` is one of [`Listing::WithWhiteouts`].
pub(crate) fn is_whiteout(dir: impl AsFd, name: impl Arg, kind: FileType) -> bool {
    let stat = || fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW);
    // Who may list a directory but not look into it cannot tell.
    kind == FileType::CharacterDevice && matches!(stat(), Err(Errno::NOENT | Errno::ACCESS))
}

fn entry(text: String, ino: u64, kind: FileType) -> Entry {
    Entry {
        text,
        ino,
        kind,
        misreported: false,
    }
}

/// Name, inode number and type of each entry.
fn names(dir: &Path) -> Result<Vec<(String, u64, u32)>, Errno> {
    let fd = fs::openat(CWD, dir, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut names = Vec::new();
    for entry in Dir::new(fd)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name != "." && name != ".." {
            names.push((name, entry.ino(), entry.file_type().as_raw_mode()));
        }
    }
    Ok(names)
}

fn read(path: &Path) -> Result<String, Errno> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd: OwnedFd = fs::openat(CWD, path, flags, Mode::empty())?;
    content(&fd)
}

fn link_target(path: &Path) -> Result<String, Errno> {
    Ok(fs::readlinkat(CWD, path, Vec::new())?
        .to_string_lossy()
        .into_owned())
}

/// The attributes in which two filesystems must agree.
///
/// Left out, with the reason: size and link count of directories (a merged directory has none that is
/// meaningful; the kernel shows the topmost layer's), blocks (allocation is the layer's affair), access
/// and change times (they depend on when the kernel looks). A modification time counts when it was set
/// explicitly, which this test does only with times far from now; else it reads `now`.
pub(crate) fn attributes(stat: &Stat) -> String {
    let kind = FileType::from_raw_mode(stat.st_mode);
    let mut text = format!(
        "{kind:?} {:04o} {}:{}",
        stat.st_mode & 0o7777,
        stat.st_uid,
        stat.st_gid
    );
    if kind != FileType::Directory {
        write!(text, " nlink={} size={}", stat.st_nlink, stat.st_size).unwrap();
    }
    if matches!(kind, FileType::CharacterDevice | FileType::BlockDevice) {
        write!(
            text,
            " rdev={}:{}",
            fs::major(stat.st_rdev),
            fs::minor(stat.st_rdev)
        )
        .unwrap();
    }
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs());
    if stat.st_mtime.abs_diff(now.cast_signed()) < 86_400 {
        text.push_str(" mtime=now");
    } else {
        write!(text, " mtime={}.{:09}", stat.st_mtime, stat.st_mtime_nsec).unwrap();
    }
    text
}

/// All extended attributes with their values, sorted.
pub(crate) fn xattrs(path: &Path) -> Result<String, Errno> {
    let mut buffer = vec![0; 65_536];
    let len = fs::llistxattr(path, &mut buffer[..])?;
    let list = buffer[..len].to_vec();
    let mut found = Vec::new();
    for name in list
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        let value = match fs::lgetxattr(path, name, &mut buffer[..]) {
            Ok(len) => format!("{} bytes {:08x}", len, hash(&buffer[..len]) >> 32),
            Err(errno) => format!("ERROR {errno:?}"),
        };
        found.push(format!("[{} {value}]", String::from_utf8_lossy(name)));
    }
    found.sort();
    Ok(found.join(" "))
}

/// A hash to compare contents by.
pub(crate) fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}
