//! Paths that must not lead out of a directory.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::{Errno, Result};

/// Attempts after which the kernel is believed that it cannot say.
const ATTEMPTS: u32 = 10_000;

/// Opens `path` below `dir` by openat2(2), with `RESOLVE_BENEATH` and what `resolve` asks for besides: EXDEV if the path
/// leads out.
///
/// At a `..` the kernel answers EAGAIN if anything on the system was renamed or mounted in the meantime, because it
/// could not tell then; it is asked again.
pub fn open_beneath(
    dir: impl AsFd,
    path: &Path,
    flags: OFlags,
    resolve: ResolveFlags,
) -> Result<OwnedFd> {
    let resolve = resolve | ResolveFlags::BENEATH;
    for _ in 0..ATTEMPTS {
        match openat2(&dir, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(Errno::AGAIN) => std::thread::yield_now(),
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn renames_elsewhere_disturb_no_path_with_dots() {
        let base = tempfile::tempdir().unwrap();
        let path = |name: &str| base.path().join(name);
        fs::create_dir(path("a")).unwrap();
        fs::create_dir(path("b")).unwrap();
        let dir = fs::File::open(base.path()).unwrap();
        let done = AtomicBool::new(false);
        let open =
            |path: &str| open_beneath(&dir, Path::new(path), OFlags::RDONLY, ResolveFlags::empty());
        let failed = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    fs::rename(path("b"), path("c")).unwrap();
                    fs::rename(path("c"), path("b")).unwrap();
                }
            });
            let failed = (0..20_000).find_map(|_| open("a/../a").err());
            done.store(true, Ordering::Relaxed);
            failed
        });
        assert_eq!(failed, None);
        assert_eq!(open("a/../../x").unwrap_err(), Errno::XDEV);
    }
}
