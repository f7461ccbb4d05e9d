//! Reading what a daemon says of itself through xattrs on the root of its mount.

use std::path::Path;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::fs::getxattr;
use rustix::io::Errno;

/// A daemon that is stopped or stuck must not take us along.
const PATIENCE: Duration = Duration::from_secs(3);

/// The largest value an xattr can have.
const SIZE_MAX: usize = 64 * 1024;

/// A question that is under way.
#[derive(Debug)]
pub(super) struct Question {
    answer: Receiver<Result<Vec<u8>, Errno>>,
    until: Instant,
}

/// Begins to read `name` of `mountpoint`.
pub(super) fn ask(mountpoint: &Path, name: &'static str) -> Question {
    let (sender, answer) = mpsc::channel();
    let mountpoint = mountpoint.to_owned();
    thread::spawn(move || {
        let mut value = Vec::with_capacity(SIZE_MAX);
        let result = getxattr(&mountpoint, name, spare_capacity(&mut value)).map(|_| value);
        // Nobody listens after the time is up.
        _ = sender.send(result);
    });
    Question {
        answer,
        until: Instant::now() + PATIENCE,
    }
}

impl Question {
    /// The value; [`Errno::TIMEDOUT`] if there is no answer in time.
    pub(super) fn answer(self) -> Result<Vec<u8>, Errno> {
        let left = self.until.saturating_duration_since(Instant::now());
        self.answer
            .recv_timeout(left)
            .unwrap_or(Err(Errno::TIMEDOUT))
    }
}
