//! Threads for requests that may wait for a disk, so that the reader never does. A hand-over costs a wake-up, so
//! only work that takes longer than one goes here.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread;

use parking_lot::{Condvar, Mutex};

type Job = Box<dyn FnOnce() + Send>;

/// Waiting threads at most; a request beyond that waits for one of them.
const MOST_THREADS: usize = 8;

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
    closed: bool,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    /// A job is there, or the pool is closed.
    wake: Condvar,
    /// A worker has nothing to do.
    rest: Condvar,
}

/// A pool whose threads start when first needed and end when the pool is dropped.
#[derive(Default)]
pub(super) struct Pool {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").finish_non_exhaustive()
    }
}

impl Pool {
    /// Runs `job` on another thread, or here if there can be none.
    pub(super) fn run(&self, job: impl FnOnce() + Send + 'static) {
        let mut queue = self.shared.queue.lock();
        queue.jobs.push_back(Box::new(job));
        if queue.idle >= queue.jobs.len() || queue.threads >= MOST_THREADS {
            drop(queue);
            self.shared.wake.notify_one();
            return;
        }
        queue.threads += 1;
        drop(queue);
        let shared = Arc::clone(&self.shared);
        let spawned = thread::Builder::new()
            .name("plyfs-worker".into())
            .spawn(move || {
                super::seats::take_any();
                shared.work();
            });
        if let Err(error) = spawned {
            tracing::debug!(%error, "no thread for a blocking request");
            let mut queue = self.shared.queue.lock();
            queue.threads -= 1;
            let job = queue.jobs.pop_back();
            drop(queue);
            if let Some(job) = job {
                job();
            }
        }
    }

    /// Waits until nothing is running or queued.
    pub(super) fn drain(&self) {
        let mut queue = self.shared.queue.lock();
        while !queue.jobs.is_empty() || queue.idle < queue.threads {
            self.shared.rest.wait(&mut queue);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.queue.lock().closed = true;
        self.shared.wake.notify_all();
    }
}

impl Shared {
    fn work(&self) {
        let mut queue = self.queue.lock();
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                drop(queue);
                job();
                queue = self.queue.lock();
                continue;
            }
            if queue.closed {
                queue.threads -= 1;
                return;
            }
            queue.idle += 1;
            self.rest.notify_all();
            self.wake.wait(&mut queue);
            queue.idle -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn every_job_runs_and_drain_waits_for_the_last() {
        let pool = Pool::default();
        let done = Arc::new(AtomicUsize::new(0));
        for _ in 0..200 {
            let done = Arc::clone(&done);
            pool.run(move || {
                done.fetch_add(1, Ordering::Relaxed);
            });
        }
        pool.drain();
        assert_eq!(done.load(Ordering::Relaxed), 200);
    }
}
