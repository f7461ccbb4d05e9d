//! Reading what a daemon says of itself through xattrs on the root of its mount.

use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::fs::getxattr;
use rustix::io::Errno;

/// A daemon that is stopped or stuck must not take us along.
const PATIENCE: Duration = Duration::from_secs(3);

/// The largest value an xattr can have.
const SIZE_MAX: usize = 64 * 1024;

/// Reads `name` of `mountpoint`; [`Errno::TIMEDOUT`] if there is no answer.
pub(super) fn read(mountpoint: &Path, name: &'static str) -> Result<Vec<u8>, Errno> {
    let (sender, receiver) = mpsc::channel();
    let mountpoint = mountpoint.to_owned();
    thread::spawn(move || {
        let mut value = Vec::with_capacity(SIZE_MAX);
        let result = getxattr(&mountpoint, name, spare_capacity(&mut value)).map(|_| value);
        // Nobody listens after the time is up.
        _ = sender.send(result);
    });
    receiver
        .recv_timeout(PATIENCE)
        .unwrap_or(Err(Errno::TIMEDOUT))
}
