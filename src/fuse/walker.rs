//! The thread that reads ahead of tree walks.
//!
//! It must not run where the walk does: client and reader take turns on one CPU (a wake-up between CPUs is dear), so
//! work that is to overlap with theirs has to be on another. Schedulers that pack light loads on few CPUs would not put
//! it there, so the reader does, before it wakes it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::thread::{self, JoinHandle};

use parking_lot::Mutex;
use rustix::process::Pid;
use rustix::thread::CpuSet;

use crate::overlay::Overlay;

/// Starts its thread when first woken.
#[derive(Debug)]
pub(super) struct Walker {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// CPUs of the process; with one there is nothing to gain.
    cpus: Option<CpuSet>,
}

#[derive(Debug)]
struct Shared {
    overlay: Arc<Overlay>,
    wanted: AtomicBool,
    stop: AtomicBool,
    /// Of the thread, once it runs.
    id: AtomicI32,
}

impl Walker {
    pub(super) fn new(overlay: Arc<Overlay>) -> Self {
        let cpus = rustix::thread::sched_getaffinity(None).ok();
        Self {
            shared: Arc::new(Shared {
                overlay,
                wanted: AtomicBool::new(false),
                stop: AtomicBool::new(false),
                id: AtomicI32::new(0),
            }),
            thread: Mutex::new(None),
            cpus: cpus.filter(|cpus| cpus.count() > 1),
        }
    }

    /// A part of the directory `ino` has been answered, up to the cookie `behind`, or all of it.
    pub(super) fn note(&self, ino: u64, behind: Option<u64>) {
        if let Some(cpus) = &self.cpus
            && self.shared.overlay.wants_read_ahead(ino, behind)
        {
            self.wake(cpus);
        }
    }

    fn wake(&self, cpus: &CpuSet) {
        self.shared.wanted.store(true, Ordering::Release);
        let mut thread = self.thread.lock();
        let Some(running) = &*thread else {
            let shared = Arc::clone(&self.shared);
            let spawned = thread::Builder::new()
                .name("plyfs-walker".into())
                .spawn(move || shared.work());
            match spawned {
                Ok(started) => *thread = Some(started),
                Err(error) => tracing::debug!(%error, "no thread to read ahead"),
            }
            return;
        };
        let mut others = *cpus;
        others.unset(rustix::thread::sched_getcpu());
        if let Some(id) = Pid::from_raw(self.shared.id.load(Ordering::Relaxed)) {
            let moved = rustix::thread::sched_setaffinity(Some(id), &others);
            crate::layer::best_effort("choose a CPU for reading ahead", moved);
        }
        running.thread().unpark();
    }

    /// Ends the thread.
    pub(super) fn stop(&self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(running) = self.thread.lock().take() {
            running.thread().unpark();
            if running.join().is_err() {
                tracing::warn!("the thread that reads ahead panicked");
            }
        }
    }
}

impl Shared {
    fn work(&self) {
        let id = rustix::thread::gettid();
        self.id.store(id.as_raw_nonzero().get(), Ordering::Relaxed);
        while !self.stop.load(Ordering::Acquire) {
            if self.wanted.swap(false, Ordering::AcqRel) {
                self.overlay.read_ahead();
            } else {
                thread::park();
            }
        }
    }
}
