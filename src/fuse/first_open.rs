//! The first OPEN of a mount, asked for by the program that starts it.
//!
//! The kernel learns at the first OPEN of a file that none is needed; until then it also sends a RELEASE after each
//! CREATE. A program that only creates files (tar, git clone) would never open one, so the process in front opens a file
//! that is not there for anybody else.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fuser::{FileAttr, INodeNo};

use super::convert;

/// Number of the file; no layer's number comes near.
const NUMBER: INodeNo = INodeNo(u64::MAX);
/// How long the kernel may believe in the file.
pub(super) const LIFE: Duration = Duration::from_secs(1);

fn name(daemon: u32) -> String {
    format!(".plyfs-{daemon}-first-open")
}

/// Opens the file in the root of the mount that the process `daemon` serves. Nothing depends on whether that works. Not
/// for the daemon itself: killed in between, it would wait for its own answer.
pub fn ask(mountpoint: &Path, daemon: u32) {
    // Should a layer have something by that name, nobody waits for it or follows it.
    let opened = fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(mountpoint.join(name(daemon)));
    if let Err(error) = opened {
        tracing::debug!(%error, "no first open");
    }
}

/// The daemon's side: whether the file has been looked up, which it can be once.
#[derive(Debug)]
pub(super) struct FirstOpen {
    done: AtomicBool,
}

impl FirstOpen {
    /// `wanted`: OPEN will be answered that it is not needed.
    pub(super) fn new(wanted: bool) -> Self {
        Self {
            done: AtomicBool::new(!wanted),
        }
    }

    /// What a LOOKUP by `caller`, user and group, is answered with if it is for the file.
    pub(super) fn look_up(
        &self,
        parent: INodeNo,
        asked: &OsStr,
        caller: (u32, u32),
    ) -> Option<FileAttr> {
        if parent != INodeNo::ROOT || self.done.load(Ordering::Relaxed) {
            return None;
        }
        if asked != name(process::id()).as_str() || self.done.swap(true, Ordering::Relaxed) {
            return None;
        }
        let mut attr = convert::negative();
        // For its owner alone, so that the kernel asks for no ACL.
        (attr.ino, attr.perm, attr.nlink) = (NUMBER, 0o400, 1);
        (attr.uid, attr.gid) = caller;
        Some(attr)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_there_once_for_who_knows_its_name() {
        let first = FirstOpen::new(true);
        let name = name(process::id());
        let (asked, caller) = (OsStr::new(&name), (7, 8));
        assert!(
            first
                .look_up(INodeNo::ROOT, OsStr::new("other"), caller)
                .is_none()
        );
        assert!(first.look_up(INodeNo(2), asked, caller).is_none());
        assert_eq!(
            first.look_up(INodeNo::ROOT, asked, caller).unwrap().ino,
            NUMBER
        );
        assert!(first.look_up(INodeNo::ROOT, asked, caller).is_none());
        let none = FirstOpen::new(false);
        assert!(none.look_up(INodeNo::ROOT, asked, caller).is_none());
    }
}
