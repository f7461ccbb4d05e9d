//! Between the vocabulary of the protocol and that of the overlay. The only place that knows both.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo, Request, TimeOrNow};

use crate::layer::attr::{Attr, Kind, Time};
use crate::overlay::Caller;
use crate::overlay::attr::SetTime;

/// Every errno leaves through here, unchanged.
pub(super) fn errno(error: rustix::io::Errno) -> fuser::Errno {
    fuser::Errno::from_i32(error.raw_os_error())
}

pub(super) fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::CharDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
    }
}

pub(super) fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size,
        blocks: attr.blocks,
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: UNIX_EPOCH,
        kind: file_type(attr.kind),
        perm: attr.mode,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: attr.blksize,
        flags: 0,
    }
}

/// The attributes of "no such name": number 0 is an ENOENT the kernel remembers.
pub(super) fn negative() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

fn system_time(time: Time) -> SystemTime {
    let seconds = Duration::from_secs(time.sec.unsigned_abs());
    let whole = if time.sec < 0 {
        UNIX_EPOCH.checked_sub(seconds)
    } else {
        UNIX_EPOCH.checked_add(seconds)
    };
    whole
        .and_then(|whole| whole.checked_add(Duration::from_nanos(time.nsec.into())))
        .unwrap_or(UNIX_EPOCH)
}

/// Undoes how fuser 0.18 reads times from a request: before 1970 it subtracts the nanoseconds it should add.
fn time(time: SystemTime) -> Time {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Time {
            sec: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
            nsec: after.subsec_nanos(),
        },
        Err(before) => {
            let before = before.duration();
            Time {
                sec: i64::try_from(before.as_secs()).map_or(i64::MIN, |sec| -sec),
                nsec: before.subsec_nanos(),
            }
        }
    }
}

pub(super) fn set_time(given: TimeOrNow) -> SetTime {
    match given {
        TimeOrNow::SpecificTime(at) => SetTime::At(time(at)),
        TimeOrNow::Now => SetTime::Now,
    }
}

pub(super) fn caller(req: &Request, umask: u32) -> Caller {
    let umask = u16::try_from(umask & 0o777).unwrap_or(0);
    Caller {
        uid: req.uid(),
        gid: req.gid(),
        umask,
    }
}

/// Permission bits out of a request's mode.
pub(super) fn permissions(mode: u32) -> u16 {
    u16::try_from(mode & 0o7777).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_reach_the_kernel_as_they_are() {
        let half_before = system_time(Time {
            sec: -1,
            nsec: 500_000_000,
        });
        assert_eq!(
            UNIX_EPOCH.duration_since(half_before).unwrap(),
            Duration::from_millis(500)
        );
        let later = system_time(Time {
            sec: 1 << 33,
            nsec: 1,
        });
        assert_eq!(
            later.duration_since(UNIX_EPOCH).unwrap(),
            Duration::new(1 << 33, 1)
        );
    }

    #[test]
    fn times_of_a_request_are_read_as_they_were_sent() {
        // fuser turns (-1 s, 500 ms), half a second before 1970, into one and a half seconds before.
        let as_fuser_reads = UNIX_EPOCH - Duration::new(1, 500_000_000);
        assert_eq!(
            time(as_fuser_reads),
            Time {
                sec: -1,
                nsec: 500_000_000
            }
        );
        assert_eq!(
            time(UNIX_EPOCH + Duration::new(5, 7)),
            Time { sec: 5, nsec: 7 }
        );
    }
}
