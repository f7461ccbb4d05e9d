//! Opening a stack: every check that can fail at mount, before anything is created.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::archive;
use super::at::At;
use super::attr::Attr;
use super::error::{Cause, SetupError};
use super::fd::Fds;
use super::handle::HandleSpace;
use super::holder;
use super::ids;
use super::lower::{Lower, LowerDir, Medium, Tree};
use super::mark::Prefix;
use super::override_stat;
use super::stack::{LayerSource, OverrideStat, Stack, StackConfig, XattrNamespace};
use super::sys;
use super::upper::Upper;

mod private;
mod upper;

use private::Clones;
use upper::open_upper;

type Result<T> = std::result::Result<T, SetupError>;

/// How long to wait for the daemon of a mount that has just ended.
const LOCK_PATIENCE: Duration = Duration::from_millis(700);
/// `FS_CASEFOLD_FL` of linux/fs.h.
const CASEFOLD: u32 = 0x4000_0000;

pub(super) fn open(config: &StackConfig) -> Result<Stack> {
    if config.lowers.is_empty() {
        return Err(SetupError::new(
            Cause::Usage,
            "no lower layer given: name at least one with --lower DIR or -o lowerdir=DIR",
        ));
    }
    let fds = Arc::new(Fds::new(raise_descriptor_limit()));
    let mut lowers = Vec::with_capacity(config.lowers.len());
    let mut opener = Opener {
        config,
        fds: &fds,
        prefix: own_prefix(config.xattrs),
        clones: Clones::default(),
    };
    for (position, source) in config.lowers.iter().enumerate() {
        lowers.push(Arc::new(opener.open(position, source)?));
    }
    let upper = match &config.upper {
        Some(upper) => Some(open_upper(upper, config, &lowers, &fds)?),
        None => None,
    };
    let roots = lowers.iter().map(LowerDir::root).collect();
    Ok(Stack {
        has_archives: lowers.iter().any(|lower| lower.archive().is_some()),
        upper,
        lowers,
        roots,
        fds,
    })
}

/// Raises the soft limit of open files to the hard one; returns it, capped at what is of use.
pub(super) fn raise_descriptor_limit() -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    super::best_effort(
        "raise the limit of open files",
        setrlimit(Resource::Nofile, raised),
    );
    let now = getrlimit(Resource::Nofile).current.unwrap_or(65536);
    usize::try_from(now).unwrap_or(65536).min(65536)
}

/// Opens a directory given by the user, with a sentence for each way that fails.
pub(super) fn open_given(
    what: &str,
    path: &Path,
    cause: Cause,
) -> Result<(PathBuf, OwnedFd, Attr)> {
    let fail = |reason: &str| SetupError::new(cause, format!("{what} {} {reason}", path.display()));
    let explain = |error: Errno| match error {
        Errno::NOENT => fail("does not exist: create it or correct the path"),
        Errno::NOTDIR => fail("is not a directory: name a directory"),
        Errno::ACCESS => fail("cannot be read: grant this user read and search permission"),
        Errno::LOOP => fail("is a loop of symbolic links"),
        Errno::NOTCONN => fail("is a dead mount: unmount it first"),
        other => fail(&format!("cannot be opened: {}", super::describe(other))),
    };
    let absolute = std::fs::canonicalize(path)
        .map_err(|error| explain(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(&absolute, flags, Mode::empty()).map_err(explain)?;
    let attr = At::Pinned(fd.as_fd()).stat().map_err(explain)?;
    // Of a dead mount the kernel still knows what it was asked before, but not this.
    if let Err(Errno::NOTCONN) = At::Pinned(fd.as_fd()).stat_fs() {
        return Err(explain(Errno::NOTCONN));
    }
    if rustix::fs::ioctl_getflags(&fd).is_ok_and(|flags| flags.bits() & CASEFOLD != 0) {
        return Err(fail(
            "folds upper and lower case: a union needs exact names, use another directory",
        ));
    }
    Ok((absolute, fd, attr))
}

/// What all lowers are opened with.
struct Opener<'a> {
    config: &'a StackConfig,
    fds: &'a Arc<Fds>,
    prefix: Prefix,
    clones: Clones,
}

impl Opener<'_> {
    fn open(&mut self, position: usize, source: &LayerSource) -> Result<Lower> {
        let owner = self.config.owner;
        match source {
            LayerSource::Path(path) if path.is_file() => archive::open(position, path, None, owner),
            LayerSource::Path(path) => self.open_tree(position, path),
            LayerSource::Archive {
                tar,
                index,
                beneath,
            } => archive::open(position, tar, Some((index, beneath.as_ref())), owner),
        }
    }

    fn open_tree(&mut self, position: usize, given: &Path) -> Result<Lower> {
        let (path, fd, attr) = open_given("lower layer", given, Cause::Lower)?;
        let handles = handle_space(fd.as_fd());
        let override_name = find_override(fd.as_fd(), self.config.override_stat);
        let clone = self.clones.open(&path, &attr);
        let private = clone.is_some();
        let tree = Tree {
            override_name,
            prefix: self.prefix,
            covered: OnceLock::new(),
            hidden: OnceLock::new(),
            private,
            root: clone.unwrap_or(fd),
            fds: Arc::clone(self.fds),
        };
        Ok(Lower {
            position,
            path,
            dev: attr.dev,
            handles,
            medium: Medium::Directory(tree),
        })
    }
}

fn handle_space(root: BorrowedFd<'_>) -> Option<HandleSpace> {
    At::Pinned(root).file_handle().ok()?;
    let fs_type = u64::try_from(rustix::fs::fstatfs(root).ok()?.f_type).ok()?;
    let uuid = sys::filesystem_uuid(root)
        .or_else(|_| sys::btrfs_uuid(root))
        .unwrap_or_default();
    Some(HandleSpace { uuid, fs_type })
}

/// The xattr by which this layer overrides owner and mode. Root believes xattrs that a user could have set only where
/// it is told to: they would make suid programs out of anybody's files.
fn find_override(root: BorrowedFd<'_>, wanted: OverrideStat) -> Option<&'static CStr> {
    let at = At::Pinned(root);
    if wanted == OverrideStat::Detect && rustix::process::geteuid().is_root() {
        let name = override_stat::SECURITY;
        return matches!(at.xattr(name), Ok(Some(_))).then_some(name);
    }
    override_stat::NAMES
        .into_iter()
        .find(|name| matches!(at.xattr(name), Ok(Some(_))))
}

/// The namespace of marks that are believed: `trusted.` for root of the initial namespace, as in the kernel.
pub(super) fn own_prefix(wanted: XattrNamespace) -> Prefix {
    let root = rustix::process::geteuid().is_root() && ids::is_initial_namespace();
    if wanted == XattrNamespace::Auto && root {
        Prefix::Trusted
    } else {
        Prefix::User
    }
}

/// `(dev, ino)` of a directory and of all directories above it.
fn lineage(dir: BorrowedFd<'_>) -> std::result::Result<Vec<(u64, u64)>, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut line = Vec::new();
    let mut current = rustix::fs::openat(dir, c".", flags, Mode::empty())?;
    loop {
        let attr = At::Pinned(current.as_fd()).stat()?;
        if line.last() == Some(&(attr.dev, attr.ino)) {
            return Ok(line);
        }
        line.push((attr.dev, attr.ino));
        current = rustix::fs::openat(&current, c"..", flags, Mode::empty())?;
    }
}

fn identity(dir: BorrowedFd<'_>) -> std::result::Result<(u64, u64), Errno> {
    At::Pinned(dir).stat().map(|attr| (attr.dev, attr.ino))
}

fn system(what: &str, error: Errno) -> SetupError {
    SetupError::new(Cause::Upper, format!("{what}: {}", super::describe(error)))
}

/// Refuses an upper and workdir that overlap each other, or that a lower lies in; hides those that lie in a lower.
fn check_overlap(
    upper: (&Path, BorrowedFd<'_>),
    work: (&Path, BorrowedFd<'_>),
    lowers: &[Arc<Lower>],
) -> Result<()> {
    let refuse = |sentence: String| Err(SetupError::new(Cause::Upper, sentence));
    let look = |fd| lineage(fd).map_err(|error| system("cannot look above the upper", error));
    let (upper_line, work_line) = (look(upper.1)?, look(work.1)?);
    let (up, down) = (upper.0.display(), work.0.display());
    if work_line.contains(&upper_line[0]) {
        return refuse(format!(
            "workdir {down} is inside the upper {up}: put it beside the upper"
        ));
    }
    if upper_line.contains(&work_line[0]) {
        return refuse(format!(
            "upper {up} is inside the workdir {down}: put it beside the workdir"
        ));
    }
    for lower in lowers {
        let path = lower.path.display();
        let Some(tree) = lower.tree() else {
            if lower.path.starts_with(upper.0) || lower.path.starts_with(work.0) {
                return refuse(format!(
                    "lower layer {path} is inside the upper or workdir: move it elsewhere"
                ));
            }
            continue;
        };
        let root =
            identity(tree.root.as_fd()).map_err(|error| system("cannot stat a lower", error))?;
        if upper_line[0] == root || work_line[0] == root {
            return refuse(format!(
                "the lower layer {path} is the upper or workdir: name another"
            ));
        }
        if upper_line.contains(&root) || work_line.contains(&root) {
            lower.hide(upper_line[0], work_line[0]);
        }
        let line = lineage(tree.root.as_fd());
        // A private clone ends at its own root, so its path tells what is above it.
        let below_upper = line.is_ok_and(|line| line.contains(&upper_line[0]))
            || lower.path.starts_with(upper.0)
            || lower.path.starts_with(work.0);
        if below_upper {
            return refuse(format!(
                "lower layer {path} is inside the upper or workdir: move it elsewhere"
            ));
        }
    }
    Ok(())
}

pub(super) fn check_mountpoint(upper: &Upper, mountpoint: &Path) -> Result<()> {
    for (what, dir) in [("upper", &upper.path), ("workdir", &upper.work_path)] {
        if mountpoint.starts_with(dir) {
            return Err(SetupError::new(
                Cause::Mountpoint,
                format!(
                    "mountpoint {} is inside the {what} {}: mount somewhere else",
                    mountpoint.display(),
                    dir.display()
                ),
            ));
        }
    }
    Ok(())
}

/// Attributes of a directory given by its path.
pub(super) fn look_at(path: &Path) -> std::result::Result<Attr, Errno> {
    let fd = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    At::Pinned(fd.as_fd()).stat()
}

/// Takes the lock that says a mount is alive. `take_over`: from one that was detached while it was busy, too.
pub(super) fn lock(what: &str, path: &Path, fd: &OwnedFd, take_over: bool) -> Result<()> {
    let patiently = || {
        let end = Instant::now() + LOCK_PATIENCE;
        loop {
            let answer = rustix::fs::flock(fd, FlockOperation::NonBlockingLockExclusive);
            if answer != Err(Errno::WOULDBLOCK) || Instant::now() >= end {
                return answer;
            }
            // The daemon of a mount that was just unmounted may still be writing its last data.
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    let mut answer = patiently();
    if take_over && answer == Err(Errno::WOULDBLOCK) {
        holder::ask(fd);
        answer = patiently();
    }
    match answer {
        Err(Errno::WOULDBLOCK) => Err(SetupError::new(
            Cause::InUse,
            format!(
                "{what} {} is in use by another mount: unmount that first",
                path.display()
            ),
        )),
        Err(error) => {
            // A filesystem without locks (some network filesystems) cannot tell; mounting twice is on the user.
            tracing::warn!(%error, path = %path.display(), "cannot lock");
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

/// Refuses an upper that the kernel's overlayfs has mounted, as far as this namespace can see.
pub(super) fn check_kernel_mounts(upper: &Path) -> Result<()> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let same = |given: &str| {
        let path = given
            .replace("\\040", " ")
            .replace("\\011", "\t")
            .replace("\\134", "\\");
        std::fs::canonicalize(path).is_ok_and(|path| path == upper)
    };
    let used = mounts
        .lines()
        .filter(|line| line.contains(" - overlay "))
        .flat_map(|line| line.split([' ', ',']))
        .filter_map(|part| part.strip_prefix("upperdir="))
        .any(same);
    if used {
        let path = upper.display();
        let sentence = format!("upper {path} is in use by a kernel overlayfs: unmount that first");
        return Err(SetupError::new(Cause::InUse, sentence));
    }
    Ok(())
}
