//! The thread that reads ahead of tree walks.
//!
//! Only walks that do nothing but list are worth a thread. A client that also reads files has work for both CPUs; for it
//! the reader prepares one directory when it has answered, and that only because it would otherwise wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::thread::Pid;

use super::adapter::guarded;
use super::seats::{Room, Seats, own_thread, take_any};
use super::stats::Op;
use crate::overlay::Overlay;
use crate::overlay::read_ahead::Pace;

/// Requests other than listings that a walk may make for each directory and still counts as listing only.
const BESIDES: u32 = 1;
/// Directories in a row that must have been listed so before the thread is worth waking.
const QUIET: u32 = 8;
/// Entries that the thread prepares of one directory.
const ENTRIES: usize = 1024;
/// Entries that the reader prepares of one directory, between two requests.
const ENTRIES_BETWEEN: usize = 128;
/// How often the thread looks whether a walker has come closer.
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// Looks after which a walker that stands still is no longer waited for.
const PATIENCE: u32 = 50;

/// The thread, once there is one.
#[derive(Debug, Default)]
pub(super) struct Walker {
    thread: Mutex<Option<JoinHandle<()>>>,
    shared: Arc<Shared>,
    /// Requests other than listings since a directory was begun.
    besides: AtomicU32,
    /// Directories in a row for which there were few of those.
    quiet: AtomicU32,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    /// The only thread that answers requests, or 0.
    reader: AtomicI32,
    /// Who walks, or 0.
    client: AtomicI32,
    room: Arc<Room>,
}

impl Walker {
    /// For a mount with this number of readers; `None` where there is nothing to read ahead, or no second CPU for it.
    pub(super) fn new(overlay: &Overlay, readers: usize, room: Arc<Room>) -> Option<Self> {
        let cpus = thread::available_parallelism().map_or(1, usize::from);
        (cpus > 1 && readers == 1 && overlay.can_read_ahead()).then(|| Self {
            shared: Arc::new(Shared {
                room,
                ..Shared::default()
            }),
            ..Self::default()
        })
    }

    /// A request came.
    pub(super) fn note(&self, op: Op) {
        if !matches!(op, Op::Readdirplus | Op::Readdir | Op::Forget) {
            self.besides.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The process `client` has been given the beginning of the directory `ino`.
    pub(super) fn listed(&self, overlay: &Arc<Overlay>, ino: u64, client: u32) {
        let quiet = match self.besides.swap(0, Ordering::Relaxed) {
            0..=BESIDES => self.quiet.load(Ordering::Relaxed).saturating_add(1),
            _ => 0,
        };
        self.quiet.store(quiet, Ordering::Relaxed);
        let only_lists = quiet >= QUIET;
        if !only_lists {
            overlay.pause_walk();
        }
        // There is no reply that could carry an error.
        if guarded(|| Ok(overlay.read_ahead(ino))) != Ok(true) {
            return;
        }
        if only_lists {
            let client = i32::try_from(client).unwrap_or(0);
            self.shared.client.store(client, Ordering::Relaxed);
            overlay.start_walk();
            self.wake(overlay);
        } else {
            guarded(|| Ok(overlay.prepare_next(ENTRIES_BETWEEN, &|| true))).ok();
        }
    }

    fn wake(&self, overlay: &Arc<Overlay>) {
        let mut thread = self.thread.lock();
        if let Some(thread) = &*thread {
            thread.thread().unpark();
            return;
        }
        let reader = own_thread();
        self.shared.reader.store(reader, Ordering::Relaxed);
        let (own, shared) = (Arc::clone(overlay), Arc::clone(&self.shared));
        let spawned = thread::Builder::new()
            .name("plyfs-walker".into())
            .spawn(move || {
                take_any();
                while !shared.stop.load(Ordering::Acquire) {
                    shared.walk(&own);
                    thread::park();
                }
            });
        match spawned {
            Ok(started) => *thread = Some(started),
            Err(error) => {
                tracing::debug!(%error, "no thread to read ahead");
                overlay.pause_walk();
            }
        }
    }

    /// Ends the thread.
    pub(super) fn stop(&self, overlay: &Overlay) {
        self.shared.stop.store(true, Ordering::Release);
        overlay.pause_walk();
        if let Some(thread) = self.thread.lock().take() {
            thread.thread().unpark();
            // What it panicked of, if it did, is logged.
            drop(thread.join());
        }
    }
}

impl Shared {
    fn walk(&self, overlay: &Overlay) {
        let _room = self.room.take();
        let mut seats = Seats::new(Pid::from_raw(self.reader.load(Ordering::Relaxed)));
        let (mut seen, mut looks) = (0, 0);
        while !self.stop.load(Ordering::Acquire) {
            match guarded(|| Ok(overlay.walk_on(ENTRIES))) {
                Ok(Pace::On) => {}
                Ok(Pace::Wait(at)) => {
                    looks = if at == seen { looks + 1 } else { 0 };
                    seen = at;
                    if looks > PATIENCE {
                        overlay.pause_walk();
                    }
                    thread::sleep(LOOK_EVERY);
                }
                Ok(Pace::Over) => break,
                Err(_) => overlay.pause_walk(),
            }
            if let Some(seats) = &mut seats {
                seats.follow(self.client.load(Ordering::Relaxed));
            }
        }
        if let Some(seats) = seats
            && self.stop.load(Ordering::Acquire)
        {
            // The reader has ended.
            seats.leave_reader();
        }
    }
}
