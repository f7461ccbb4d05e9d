//! Who holds the lock of an upper, and whether they must.
//!
//! A mount that was detached while it was busy (`umount -l`, which is how an engine unmounts a container somebody still
//! looks into) goes on for those who use it, and keeps its upper. An engine that starts the container again has nothing
//! left to unmount. So it asks the daemon by a signal, and that ends if an engine mounted it, too, and it has no name any
//! more in the mount namespace where that was: whoever still used it, a copy in another namespace too, gets ENOTCONN.
//!
//! Apptainer runs the program with `-f`, in a mount namespace of the container. Should it be killed, nobody is left who
//! could unmount: a daemon whose caller is gone unmounts if a process of another namespace asks and nobody uses the mount.

use std::os::fd::{AsFd, AsRawFd};

use rustix::process::{Pid, Signal, kill_process};

/// Asks the process that holds the lock of `fd` to end if its mount is detached or abandoned. Does nothing where it cannot be found.
pub(super) fn ask(fd: &impl AsFd) {
    let found = rustix::fs::fstat(fd).ok().and_then(|stat| {
        let locks = std::fs::read_to_string("/proc/locks").ok()?;
        holder(&locks, &format!("{}:{}", filesystem_of(fd)?, stat.st_ino))
    });
    if let Some(pid) = found {
        crate::layer::best_effort("ask the daemon of a mount", kill_process(pid, Signal::URG));
    }
}

/// `MAJOR:MINOR` of the filesystem as /proc/locks has it, in hexadecimal: with btrfs another than that of its files.
fn filesystem_of(fd: &impl AsFd) -> Option<String> {
    let info = format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd());
    let info = std::fs::read_to_string(info).ok()?;
    let mount = info
        .lines()
        .find_map(|line| line.strip_prefix("mnt_id:"))?
        .trim();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    let line = mounts
        .lines()
        .find(|line| line.split(' ').next() == Some(mount))?;
    let (major, minor) = line.split(' ').nth(2)?.split_once(':')?;
    let (major, minor): (u32, u32) = (major.parse().ok()?, minor.parse().ok()?);
    Some(format!("{major:02x}:{minor:02x}"))
}

/// The process that has the flock(2) of `inode`, of the lines of /proc/locks (see `proc_locks(5)`).
fn holder(locks: &str, inode: &str) -> Option<Pid> {
    locks.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace().skip(1);
        let kind = words.next()?;
        let pid = words.nth(2)?;
        (kind == "FLOCK" && words.next()? == inode)
            .then(|| Pid::from_raw(pid.parse().ok()?))
            .flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_of_a_lock_is_the_one_who_has_it_and_not_who_waits() {
        let locks = "1: POSIX  ADVISORY  WRITE 9 fe:00:77 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 11 fe:00:76 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 12 fe:00:77 0 EOF\n\
                     3: -> FLOCK  ADVISORY  WRITE 13 fe:00:77 0 EOF\n\
                     4: FLOCK  ADVISORY  WRITE 0 fe:00:78 0 EOF\n";
        let holder = |inode| holder(locks, inode).map(|pid| pid.as_raw_nonzero().get());
        assert_eq!(holder("fe:00:77"), Some(12));
        assert_eq!(holder("fe:00:76"), Some(11));
        // Of another pid namespace.
        assert_eq!(holder("fe:00:78"), None);
        assert_eq!(holder("fe:00:79"), None);
    }
}
