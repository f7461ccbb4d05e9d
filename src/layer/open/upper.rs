//! Opening upper and workdir: what is checked, prepared and probed there.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use parking_lot::Mutex;
use rustix::fs::{Mode, XattrFlags};
use rustix::io::Errno;

use super::{
    Result, check_kernel_mounts, check_overlap, find_override, handle_space, lock, open_given,
    system,
};
use crate::layer::at::{At, UpperAt, open_directory};
use crate::layer::attr::{Attr, Kind};
use crate::layer::error::{Cause, SetupError};
use crate::layer::fd::Fds;
use crate::layer::lower::{Lower, list};
use crate::layer::mark::{Mark, Prefix, aufs_whiteout};
use crate::layer::name::Name;
use crate::layer::stack::{Durability, OverrideStat, StackConfig, UpperConfig, XattrNamespace};
use crate::layer::upper::{Upper, WhiteoutForm};
use crate::layer::workdir::{INDEX, VOLATILE, WORK, Workdir, make_node, remove_tree};
use crate::layer::{acl, override_stat, widen};

pub(super) fn open_upper(
    given: &UpperConfig,
    config: &StackConfig,
    lowers: &[Arc<Lower>],
    fds: &Arc<Fds>,
) -> Result<Upper> {
    let (path, root, attr) = open_given("upper", &given.upper, Cause::Upper)?;
    let (work_path, work, work_attr) = open_given("workdir", &given.work, Cause::Upper)?;
    if attr.dev != work_attr.dev {
        return Err(SetupError::new(
            Cause::Upper,
            format!(
                "workdir {} is on another filesystem than the upper {}: put them on the same one",
                work_path.display(),
                path.display()
            ),
        ));
    }
    check_overlap((&path, root.as_fd()), (&work_path, work.as_fd()), lowers)?;
    check_kernel_mounts(&path)?;
    lock("upper", &path, &root, config.take_over)?;
    lock("workdir", &work_path, &work, config.take_over)?;
    check_volatile(&work_path, &work)?;
    check_writable(&path, &root)?;
    check_writable(&work_path, &work)?;
    prepare_upper(path, root, work_path, work, &attr, config, lowers, fds)
}

fn check_writable(path: &Path, dir: &OwnedFd) -> Result<()> {
    use rustix::fs::{Access, AtFlags};
    let access = Access::WRITE_OK | Access::EXEC_OK;
    let reason = match rustix::fs::accessat(dir, c".", access, AtFlags::EACCESS) {
        Ok(()) => return Ok(()),
        Err(Errno::ROFS) => {
            "is on a read-only filesystem: use another, or mount without an upper".into()
        }
        Err(Errno::ACCESS) => "cannot be written by this user: change its owner or mode".to_owned(),
        Err(error) => format!("cannot be written: {}", crate::layer::describe(error)),
    };
    Err(SetupError::new(
        Cause::Upper,
        format!("{} {reason}", path.display()),
    ))
}

fn check_volatile(work_path: &Path, work: &OwnedFd) -> Result<()> {
    let marker = format!("{WORK}/{}/{}", VOLATILE[0], VOLATILE[1]);
    if rustix::fs::accessat(
        work,
        &marker,
        rustix::fs::Access::EXISTS,
        rustix::fs::AtFlags::empty(),
    )
    .is_err()
    {
        return Ok(());
    }
    let path = work_path.join(&marker);
    Err(SetupError::new(
        Cause::InUse,
        format!(
            "the upper was mounted volatile and not unmounted: changes may be lost; start with a new upper, or \
             remove {} to go on at your own risk",
            path.display()
        ),
    ))
}

#[expect(
    clippy::too_many_arguments,
    reason = "the parts of one struct, checked by the caller"
)]
fn prepare_upper(
    path: PathBuf,
    root: OwnedFd,
    work_path: PathBuf,
    work: OwnedFd,
    attr: &Attr,
    config: &StackConfig,
    lowers: &[Arc<Lower>],
    fds: &Arc<Fds>,
) -> Result<Upper> {
    rustix::process::umask(Mode::empty());
    let fail = |error| {
        system(
            &format!("cannot prepare the workdir {}", work_path.display()),
            error,
        )
    };
    let temp = make_dir(&work, WORK).map_err(fail)?;
    widen::repair(&temp, [(&path, &root), (&work_path, &work)]).map_err(fail)?;
    empty(&temp).map_err(fail)?;
    let index = make_dir(&work, INDEX).map_err(fail)?;
    let workdir = Workdir::new(temp, Arc::clone(fds));
    let whiteouts = probe_whiteouts(&workdir).map_err(fail)?.ok_or_else(|| {
        let place = path.display();
        SetupError::new(
            Cause::Upper,
            format!(
                "upper {place} is on a filesystem that takes neither whiteout devices nor names that begin with .wh., \
                 as unions do: put upper and workdir on another filesystem"
            ),
        )
    })?;
    let prefix = probe_xattrs(&workdir, config.xattrs).map_err(fail)?;
    let override_name = choose_override(config.override_stat, &root, lowers)
        .map_err(|error| no_override(&path, config.override_stat, error))?;
    if prefix.is_none() {
        tracing::warn!(
            "the upper takes no xattrs: renamed directories are copied, no hard links across copy-up"
        );
    }
    let links = prefix.is_some() && probe_links(&workdir).map_err(fail)?;
    if config.durability == Durability::Volatile {
        for part in [VOLATILE[0].to_owned(), VOLATILE.join("/")] {
            rustix::fs::mkdirat(&workdir.temp, part, Mode::from_raw_mode(0o700)).map_err(fail)?;
        }
    }
    Ok(Upper {
        handles: handle_space(root.as_fd()),
        dev: attr.dev,
        index: links.then_some(index),
        whiteouts,
        prefix,
        override_name,
        durability: config.durability,
        fds: Arc::clone(fds),
        root,
        workdir,
        _lock: work,
        whiteout: Mutex::new(None),
        rename_whiteout: AtomicBool::new(true),
        path,
        work_path,
    })
}

fn make_dir(work: &OwnedFd, name: &str) -> std::result::Result<OwnedFd, Errno> {
    match rustix::fs::mkdirat(work, name, Mode::from_raw_mode(0o700)) {
        Err(Errno::EXIST) | Ok(()) => {}
        Err(error) => return Err(error),
    }
    let dir = open_directory(work, name.as_bytes())?;
    // What is staged must not inherit what its lower does not have.
    match rustix::fs::fremovexattr(&dir, acl::DEFAULT) {
        Err(Errno::NODATA | Errno::OPNOTSUPP) | Ok(()) => Ok(dir),
        Err(error) => Err(error),
    }
}

/// Deletes what a crash left.
fn empty(temp: &OwnedFd) -> std::result::Result<(), Errno> {
    let mut names = Vec::new();
    list(temp, |entry| {
        names.push(Name::from_bytes(entry.name)?.to_owned());
        Ok(())
    })?;
    names
        .iter()
        .try_for_each(|name| remove_tree(temp.as_fd(), name.get()))
}

/// How deletions are recorded here; `None` if they cannot be.
fn probe_whiteouts(workdir: &Workdir) -> std::result::Result<Option<WhiteoutForm>, Errno> {
    match workdir.stage_node(Kind::CharDevice, 0, 0) {
        Ok(_probe) => Ok(Some(WhiteoutForm::Device)),
        Err(Errno::PERM | Errno::OPNOTSUPP | Errno::INVAL | Errno::ACCESS) => {
            let name = aufs_whiteout(Name::from_bytes(b"probe")?)?;
            let temp = workdir.temp.as_fd();
            match make_node(temp, name.get().bytes(), Kind::File, 0o600, 0) {
                // A union refuses names of this form.
                Err(Errno::INVAL | Errno::PERM | Errno::NOENT | Errno::OPNOTSUPP) => {
                    return Ok(None);
                }
                made => made?,
            }
            workdir.remove(name.get())?;
            tracing::info!(
                "the upper takes no whiteout devices: deletions are recorded as .wh. files"
            );
            Ok(Some(WhiteoutForm::Aufs))
        }
        Err(error) => Err(error),
    }
}

/// Whether what is written by one name of a file shows by another. Where a FUSE filesystem has an inode for each path,
/// the kernel caches each name by itself, and the index could not keep names together.
fn probe_links(workdir: &Workdir) -> std::result::Result<bool, Errno> {
    if !is_fuse(&workdir.temp)? {
        return Ok(true);
    }
    let (one, fd) = workdir.stage_file(0o600)?;
    let Ok(two) = workdir.stage_link(one.at().read()) else {
        return Ok(false);
    };
    // What the kernel knows of the other name from now on.
    let before = two.at().read().stat()?;
    rustix::fs::ftruncate(&fd, 1)?;
    let after = two.at().read().stat()?;
    let one_file = after.size == 1 && before.ino == one.at().read().stat()?.ino;
    if !one_file {
        tracing::warn!("the upper's filesystem does not keep hard links together: no index");
    }
    Ok(one_file)
}

fn is_fuse(dir: &OwnedFd) -> std::result::Result<bool, Errno> {
    // FUSE_SUPER_MAGIC of linux/magic.h.
    Ok(rustix::fs::fstatfs(dir)?.f_type == 0x6573_5546)
}

fn probe_xattrs(
    workdir: &Workdir,
    wanted: XattrNamespace,
) -> std::result::Result<Option<Prefix>, Errno> {
    let (probe, _fd) = workdir.stage_file(0o600)?;
    let takes = |at: UpperAt<'_>, prefix| {
        at.set_xattr(Mark::Origin.name(prefix), b"", XattrFlags::empty())
            .is_ok()
    };
    if wanted == XattrNamespace::Auto && takes(probe.at(), Prefix::Trusted) {
        return Ok(Some(Prefix::Trusted));
    }
    if takes(probe.at(), Prefix::User) {
        return Ok(Some(Prefix::User));
    }
    Ok(None)
}

/// Why the upper cannot keep owners in xattrs.
fn no_override(path: &Path, wanted: OverrideStat, error: Errno) -> SetupError {
    let path = path.display();
    let sentence = match (error, wanted) {
        (Errno::PERM, OverrideStat::Security) => {
            format!(
                "xattr_permissions=1 writes security xattrs to the upper {path}, which only root may: use 2"
            )
        }
        (Errno::OPNOTSUPP, OverrideStat::Security) => format!(
            "the filesystem of the upper {path} takes no security xattrs, which xattr_permissions=1 needs: use \
             another one, or leave the option out"
        ),
        (Errno::OPNOTSUPP | Errno::PERM, _) => format!(
            "the filesystem of the upper {path} takes no user xattrs, which xattr_permissions=2 needs: use another \
             one, or leave the option out"
        ),
        (error, _) => return system(&format!("cannot keep owners in xattrs on {path}"), error),
    };
    SetupError::new(Cause::Upper, sentence)
}

/// The override xattr of the upper; a new upper gets that of the first lower that has one, or says what
/// it is.
fn choose_override(
    wanted: OverrideStat,
    root: &OwnedFd,
    lowers: &[Arc<Lower>],
) -> std::result::Result<Option<&'static CStr>, Errno> {
    let found = find_override(root.as_fd(), wanted);
    let name = match wanted {
        OverrideStat::Detect => return Ok(found),
        OverrideStat::Security => override_stat::SECURITY,
        OverrideStat::Containers => found.unwrap_or(override_stat::CONTAINERS),
    };
    let at = At::Pinned(root.as_fd());
    if at.xattr(name)?.is_none() {
        let inherited = lowers.iter().find_map(|lower| {
            let tree = lower.tree()?;
            At::Pinned(tree.root.as_fd())
                .xattr(tree.override_name?)
                .ok()
                .flatten()
        });
        let value = match inherited {
            Some(value) => value,
            None => override_stat::Override::of(&at.stat()?)
                .encode()
                .into_bytes(),
        };
        UpperAt::new(at).set_xattr(name, &value, XattrFlags::empty())?;
    }
    Ok(Some(name))
}
