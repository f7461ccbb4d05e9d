//! Getting a /dev/fuse descriptor mounted: by mount(2) where that is allowed (root, or root of a user namespace),
//! else by the setuid helper fusermount3.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType,
};

use super::session::SessionConfig;
use crate::layer::describe;
use crate::layer::error::{Cause, SetupError};
use crate::layer::ids::is_initial_namespace;

/// Type of our mounts in /proc/mounts.
pub const FS_TYPE: &str = "fuse.plyfs";
const HELPER: &str = "fusermount3";
/// Tells the helper on which descriptor to hand over /dev/fuse.
const HELPER_SOCKET: &str = "_FUSE_COMMFD";

/// A mount made by us.
#[derive(Debug)]
pub(super) struct Mounted {
    /// The connection.
    pub(super) device: OwnedFd,
    /// Waits to unmount when we are gone (`auto_unmount`).
    pub(super) watcher: Option<Watcher>,
}

/// What is wrong with the mountpoint of a daemon that was killed.
const DEAD: &str = "is a dead mount: run `plyfs umount` on it first";

fn fuse_error(sentence: impl Into<String>) -> SetupError {
    SetupError::new(Cause::Fuse, sentence)
}

/// The mountpoint, absolute; it must be a directory that answers.
pub(super) fn resolve_mountpoint(given: &Path) -> Result<PathBuf, SetupError> {
    let fail = |reason: &str| {
        SetupError::new(
            Cause::Mountpoint,
            format!("mountpoint {} {reason}", given.display()),
        )
    };
    if given.starts_with("/dev/fd") {
        return Err(fail(
            "is how mount(8) hands over a mount of its own with drop_privileges: unmount what it left, and leave that out",
        ));
    }
    let path =
        std::fs::canonicalize(given).map_err(|error| match Errno::from_io_error(&error) {
            Some(Errno::NOENT) => fail("does not exist: create it or correct the path"),
            Some(Errno::NOTCONN) => fail(DEAD),
            Some(Errno::ACCESS) => fail("cannot be reached by this user"),
            Some(other) => fail(&format!("cannot be used: {}", describe(other))),
            None => fail("cannot be used"),
        })?;
    match rustix::fs::stat(&path) {
        Ok(stat) if !rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir() => {
            Err(fail("is not a directory: name a directory"))
        }
        // Of what a dead mount was, the kernel still knows the attributes.
        Ok(_) if rustix::fs::statvfs(&path).err() == Some(Errno::NOTCONN) => Err(fail(DEAD)),
        Ok(_) => Ok(path),
        Err(Errno::NOTCONN) => Err(fail(DEAD)),
        Err(error) => Err(fail(&format!("cannot be used: {}", describe(error)))),
    }
}

/// Mounts at `mountpoint` (absolute).
pub(super) fn mount(mountpoint: &Path, config: &SessionConfig) -> Result<Mounted, SetupError> {
    if labels(config).len() < config.security.len() {
        let left_out = config.security.join(",");
        tracing::info!("left out in a user namespace: {left_out}");
    }
    let device = match mount_directly(mountpoint, config)? {
        Some(device) => device,
        None => mount_with_helper(mountpoint, config)?,
    };
    if let Some(propagation) = config.propagation
        && let Err(error) = rustix::mount::mount_change(mountpoint, propagation)
    {
        tracing::warn!(%error, "cannot say how mounts below spread: only root can");
    }
    let watcher = if config.auto_unmount {
        Some(watch(mountpoint)?)
    } else {
        None
    };
    Ok(Mounted { device, watcher })
}

/// `MAJOR:MINOR` of what is mounted there, without asking it: nobody answers yet.
pub(super) fn device_number(mountpoint: &Path) -> Option<String> {
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let stat = rustix::fs::statx(rustix::fs::CWD, mountpoint, flags, StatxFlags::TYPE).ok()?;
    Some(format!("{}:{}", stat.stx_dev_major, stat.stx_dev_minor))
}

/// Whether the filesystem of this number is mounted anywhere in the mount namespace of a process; so it is if that cannot
/// be told.
pub(super) fn is_attached(device: &str, process: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{process}/mountinfo")).map_or(true, |mounts| {
        let device_of = |line: &str| line.split(' ').nth(2) == Some(device);
        mounts.lines().any(device_of)
    })
}

/// A process that unmounts when our end of its standard input closes, unless it is told in time that there is nothing
/// left to unmount: when this is dropped.
#[derive(Debug)]
pub(super) struct Watcher(Child);

impl Drop for Watcher {
    fn drop(&mut self) {
        if let Err(error) = self.0.kill().and_then(|()| self.0.wait()) {
            tracing::debug!(%error, "ending the watcher");
        }
    }
}

/// Starts a process that outlives us, however we end, and then unmounts what is left. (The helper's own `auto_unmount`
/// cannot look into the mount of an ordinary user.)
fn watch(mountpoint: &Path) -> Result<Watcher, SetupError> {
    const SCRIPT: &str = "trap '' HUP INT TERM; read -r line; \
        umount -l -- \"$0\" 2>/dev/null || exec fusermount3 -u -z -q -- \"$0\"";
    Command::new("sh")
        .args(["-c", SCRIPT])
        .arg(mountpoint)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map(Watcher)
        .map_err(|error| {
            fuse_error(format!(
                "cannot start the watcher for auto_unmount: {error}"
            ))
        })
}

/// Whether /dev/fuse can be opened.
pub(super) fn check_device() -> Result<(), SetupError> {
    open_device().map(drop)
}

fn open_device() -> Result<OwnedFd, SetupError> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    rustix::fs::open("/dev/fuse", flags, Mode::empty()).map_err(|error| match error {
        Errno::NOENT | Errno::NODEV | Errno::NXIO => fuse_error(
            "there is no /dev/fuse: load the kernel module with `modprobe fuse`, or give the container the device \
             (--device /dev/fuse)",
        ),
        Errno::ACCESS | Errno::PERM => fuse_error(
            "/dev/fuse cannot be opened by this user: its mode should be 0666 (`chmod 0666 /dev/fuse` as root)",
        ),
        error => fuse_error(format!("cannot open /dev/fuse: {}", describe(error))),
    })
}

fn mount_directly(
    mountpoint: &Path,
    config: &SessionConfig,
) -> Result<Option<OwnedFd>, SetupError> {
    let device = open_device()?;
    let (uid, gid) = crate::layer::own_ids();
    let mut data = format!(
        "fd={},rootmode=40000,user_id={uid},group_id={gid}",
        device.as_raw_fd()
    );
    for option in kernel_options(config) {
        data.push(',');
        data.push_str(&option);
    }
    let mut flags = MountFlags::NOATIME;
    flags.set(MountFlags::NOSUID, !config.suid);
    flags.set(MountFlags::NODEV, !config.dev);
    flags.set(MountFlags::NOEXEC, !config.exec);
    flags.set(MountFlags::RDONLY, config.read_only);
    let data = std::ffi::CString::new(data).map_err(|_| fuse_error("an option contains a NUL"))?;
    match rustix::mount::mount(&*config.source, mountpoint, FS_TYPE, flags, &*data) {
        Ok(()) => Ok(Some(device)),
        Err(Errno::PERM) => Ok(None),
        Err(Errno::NODEV) => Err(fuse_error("the kernel has no FUSE: `modprobe fuse`")),
        Err(Errno::INVAL) if !labels(config).is_empty() => Err(fuse_error(format!(
            "cannot mount on {} with {}: SELinux is off in this kernel, or knows no such label; leave the option out",
            mountpoint.display(),
            config.security.join(",")
        ))),
        Err(error) => Err(fuse_error(format!(
            "cannot mount on {}: {}",
            mountpoint.display(),
            describe(error)
        ))),
    }
}

fn kernel_options(config: &SessionConfig) -> Vec<String> {
    let mut options = vec!["default_permissions".to_owned()];
    if config.allow_other {
        options.push("allow_other".into());
    }
    options.extend(labels(config).iter().cloned());
    options
}

/// The labels that the kernel takes.
fn labels(config: &SessionConfig) -> &[String] {
    let own_namespace = rustix::process::geteuid().is_root() && !is_initial_namespace();
    if own_namespace { &[] } else { &config.security }
}

fn helper_options(config: &SessionConfig) -> String {
    let mut options = kernel_options(config);
    // The helper splits at commas and knows a backslash.
    let source = config.source.replace('\\', "\\\\").replace(',', "\\,");
    options.push(format!("fsname={source}"));
    options.push("subtype=plyfs".into());
    options.push("noatime".into());
    let flags = [
        (config.read_only, "ro"),
        (config.suid, "suid"),
        (config.dev, "dev"),
        (!config.exec, "noexec"),
    ];
    options.extend(
        flags
            .iter()
            .filter(|(on, _)| *on)
            .map(|(_, name)| (*name).to_owned()),
    );
    options.join(",")
}

fn mount_with_helper(mountpoint: &Path, config: &SessionConfig) -> Result<OwnedFd, SetupError> {
    if !labels(config).is_empty() {
        return Err(fuse_error(format!(
            "{HELPER} passes no SELinux labels on: leave out {}, or mount as root or in a user namespace (unshare -Urm)",
            config.security.join(",")
        )));
    }
    let socket_error = |error| fuse_error(format!("cannot talk to {HELPER}: {}", describe(error)));
    // The helper inherits its end, so that one is not close-on-exec.
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::empty(),
        None,
    )
    .map_err(socket_error)?;
    rustix::io::fcntl_setfd(&ours, rustix::io::FdFlags::CLOEXEC).map_err(socket_error)?;
    let spawned = Command::new(HELPER)
        .arg("-o")
        .arg(helper_options(config))
        .arg("--")
        .arg(mountpoint)
        .env(HELPER_SOCKET, theirs.as_raw_fd().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    drop(theirs);
    let mut helper = spawned.map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => fuse_error(
            "fusermount3 is not installed: install the package fuse3, or run as root or in a user namespace \
             (unshare -Urm)",
        ),
        _ => fuse_error(format!("cannot run {HELPER}: {error}")),
    })?;
    if let Ok(Some(device)) = receive_device(&ours) {
        drop(ours);
        // It has nothing left to do; its exit code no longer matters.
        if let Err(error) = helper.wait() {
            tracing::debug!(%error, "waiting for {HELPER}");
        }
        Ok(device)
    } else {
        drop(ours);
        let output = helper
            .wait_with_output()
            .map_err(|error| fuse_error(format!("{HELPER} failed: {error}")))?;
        Err(explain_helper(&String::from_utf8_lossy(&output.stderr)))
    }
}

fn receive_device(socket: &OwnedFd) -> rustix::io::Result<Option<OwnedFd>> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    loop {
        let flags = RecvFlags::CMSG_CLOEXEC;
        let mut slices = [IoSliceMut::new(&mut byte)];
        match rustix::net::recvmsg(socket, &mut slices, &mut control, flags) {
            Err(Errno::INTR) => continue,
            other => other?,
        };
        break;
    }
    let device = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    Ok(device)
}

fn explain_helper(stderr: &str) -> SetupError {
    let line = stderr
        .lines()
        .find(|line| !line.trim().is_empty())
        .unwrap_or("no reason given");
    if line.contains("user_allow_other") {
        return fuse_error(
            "allow_other is refused: root must put the line user_allow_other into /etc/fuse.conf",
        );
    }
    let reason = line
        .trim()
        .trim_start_matches(HELPER)
        .trim_start_matches(": ");
    if line.contains("bad mount point") || line.contains("has no write access") {
        let sentence = format!("the mountpoint is refused: {reason}");
        return SetupError::new(Cause::Mountpoint, sentence);
    }
    fuse_error(format!("{HELPER} refused to mount: {reason}"))
}

/// Unmounts; `lazy` detaches a busy mount.
pub fn unmount(mountpoint: &Path, lazy: bool) -> std::io::Result<()> {
    let mut flags = UnmountFlags::NOFOLLOW;
    flags.set(UnmountFlags::DETACH, lazy);
    match rustix::mount::unmount(mountpoint, flags) {
        Err(Errno::PERM) => {}
        other => return other.map_err(Into::into),
    }
    let mut helper = Command::new(HELPER);
    helper.arg("-u");
    if lazy {
        helper.arg("-z");
    }
    let output = helper
        .arg("--")
        .arg(mountpoint)
        .stdin(Stdio::null())
        .output()?;
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let busy = stderr.contains("busy");
    let kind = if busy {
        std::io::ErrorKind::ResourceBusy
    } else {
        std::io::ErrorKind::Other
    };
    Err(std::io::Error::new(kind, stderr.trim().to_owned()))
}
