//! `plyfs umount`: unmounts and waits until the daemon is gone, so that its upper can be used again.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::background::DAEMON;
use super::description::{self, Description};
use super::exit::{Exit, Failure, why};
use super::{mountinfo, virtual_xattr};
use crate::layer;

/// The daemon syncs and closes the upper after the mount is gone.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a busy mount may stay busy before that is said.
const BUSY_PATIENCE: Duration = Duration::from_millis(300);
/// A detached mount that is in use may stay for days.
const LAZY_PATIENCE: Duration = Duration::from_secs(1);

/// Unmounts the plyfs mount at `path`.
pub(super) fn run(path: &Path, lazy: bool) -> Result<u8, Failure> {
    let mountpoint = find(path)?;
    // Opened before unmounting: afterwards the number could mean another process.
    let daemon = daemon(&mountpoint);
    detach(&mountpoint, lazy)?;
    if let Some(daemon) = daemon {
        let patience = if lazy { LAZY_PATIENCE } else { PATIENCE };
        if !wait(&daemon, patience) && !lazy {
            return Err(Failure::other(format!(
                "{} is unmounted, but its daemon has not ended after {} s",
                mountpoint.display(),
                patience.as_secs()
            )));
        }
    }
    Ok(Exit::Ok as u8)
}

/// The place of the plyfs mount at `path`, as the kernel spells it.
pub(super) fn find(path: &Path) -> Result<PathBuf, Failure> {
    let not_plyfs = |why: String| {
        Failure::new(
            Exit::NotPlyfs,
            format!("{} is not a plyfs mount: {why}", path.display()),
        )
    };
    match mountinfo::at(path) {
        Err(error) => Err(not_plyfs(why(&error))),
        Ok((_, None)) => Err(not_plyfs("nothing is mounted there".into())),
        Ok((place, Some(mount))) if mount.is_plyfs() => Ok(place),
        Ok((_, Some(mount))) if mount.kind == mountinfo::TYPE => {
            Err(not_plyfs("it is a bind mount of a part of one".into()))
        }
        Ok((_, Some(mount))) => Err(not_plyfs(format!("it is of type {}", mount.kind))),
    }
}

/// The process that serves, if it can be known.
fn daemon(mountpoint: &Path) -> Option<OwnedFd> {
    let text = virtual_xattr::ask(mountpoint, description::XATTR)
        .answer()
        .ok()?;
    let description: Description = serde_json::from_slice(&text).ok()?;
    let pid = Pid::from_raw(description.pid.try_into().ok()?)?;
    let handle = pidfd_open(pid, PidfdFlags::empty()).ok()?;
    // A daemon in another pid namespace gave a number that means something else here.
    let name = fs::read(format!("/proc/{}/comm", description.pid)).ok()?;
    (name.trim_ascii_end() == DAEMON.to_bytes()).then_some(handle)
}

/// Whether the process ended in time.
fn wait(daemon: &OwnedFd, patience: Duration) -> bool {
    let Ok(patience) = patience.try_into() else {
        return false;
    };
    poll(&mut [PollFd::new(daemon, PollFlags::IN)], Some(&patience)).is_ok_and(|ready| ready > 0)
}

fn detach(mountpoint: &Path, lazy: bool) -> Result<(), Failure> {
    let flags = if lazy {
        UnmountFlags::DETACH
    } else {
        UnmountFlags::empty()
    };
    let mut answer = unmount(mountpoint, flags | UnmountFlags::NOFOLLOW);
    let end = Instant::now() + BUSY_PATIENCE;
    while answer == Err(Errno::BUSY) && Instant::now() < end {
        // A program that is just ending, or was just started by one that had a file open, lets go by itself.
        thread::sleep(Duration::from_millis(10));
        answer = unmount(mountpoint, flags | UnmountFlags::NOFOLLOW);
    }
    match answer {
        Ok(()) => Ok(()),
        Err(Errno::PERM) => by_fusermount(mountpoint, lazy),
        Err(error) => Err(failed(
            mountpoint,
            &layer::describe(error),
            error == Errno::BUSY,
        )),
    }
}

fn failed(mountpoint: &Path, why: &str, busy: bool) -> Failure {
    let place = mountpoint.display();
    if busy {
        return Failure::new(
            Exit::InUse,
            format!(
                "{place} is in use: close its files and leave its directories, or detach it with \
                 'plyfs umount -l {place}'"
            ),
        );
    }
    Failure::other(format!("cannot unmount {place}: {why}"))
}

/// An ordinary user's way: the setuid helper unmounts what the same user mounted.
fn by_fusermount(mountpoint: &Path, lazy: bool) -> Result<(), Failure> {
    for helper in ["fusermount3", "fusermount"] {
        let output = Command::new(helper)
            .arg(if lazy { "-uz" } else { "-u" })
            .arg("--")
            .arg(mountpoint)
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .output();
        let output = match output {
            Ok(output) => output,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => {
                return Err(failed(
                    mountpoint,
                    &format!("{helper}: {}", why(&error)),
                    false,
                ));
            }
        };
        if output.status.success() {
            return Ok(());
        }
        let message = String::from_utf8_lossy(&output.stderr);
        return Err(failed(
            mountpoint,
            message.trim_end(),
            message.contains("busy"),
        ));
    }
    Err(Failure::new(
        Exit::Fuse,
        format!(
            "cannot unmount {}: fusermount3 is not installed",
            mountpoint.display()
        ),
    ))
}

/// Removes what a daemon that died left at `mountpoint`, if it did.
pub(super) fn clear_away(mountpoint: &Path) {
    if let Ok(place) = find(mountpoint)
        && let Err(failure) = detach(&place, true)
    {
        tracing::warn!("{failure}");
    }
}
