//! A bounded number of open descriptors.
//!
//! Directories and files are reopened on demand, so a descriptor is a cache entry: a [`Pool`] counts those of one
//! sort and closes the least recently used ones (second chance) above its budget. [`Fds`] are the pools of a mount;
//! when the process runs out of descriptors, both are emptied.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use rustix::io::{Errno, Result};

/// Descriptors that [`Fds::keep`] leaves to all other work, however many it is asked to keep.
const RESERVE: usize = 16;

/// A place for one descriptor that may be closed at any time nobody uses it.
#[derive(Debug)]
pub struct FdSlot {
    fd: Mutex<Option<Arc<OwnedFd>>>,
    /// Asked for since the last look of the evictor.
    used: AtomicBool,
    /// In the ring of its pool.
    listed: AtomicBool,
    pool: Arc<Pool>,
}

impl Drop for FdSlot {
    fn drop(&mut self) {
        self.clear();
    }
}

impl FdSlot {
    /// Whether it holds a descriptor now.
    pub fn is_open(&self) -> bool {
        self.fd.lock().is_some()
    }

    /// Closes what it holds.
    pub fn clear(&self) {
        if self.fd.lock().take().is_some() {
            self.pool.open.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Puts an open descriptor into it, in place of what it held.
    pub fn put(self: &Arc<Self>, fd: OwnedFd) {
        let old = self.fd.lock().replace(Arc::new(fd));
        if old.is_none() {
            self.pool.register(self);
        }
    }
}

/// All descriptors of a mount that can be closed.
#[derive(Debug)]
pub struct Fds {
    /// Of directories.
    pub dirs: Arc<Pool>,
    /// Of files, for their content.
    pub files: Arc<Pool>,
    /// How many descriptors the process may have (`RLIMIT_NOFILE`).
    limit: usize,
}

impl Fds {
    /// Pools that take about half of the `limit` of the process.
    pub fn new(limit: usize) -> Self {
        Self {
            dirs: Arc::new(Pool::new(limit / 4)),
            files: Arc::new(Pool::new(limit / 4)),
            limit,
        }
    }

    /// The descriptor in `slot`, opened by `open` if it is not there.
    pub fn get(
        &self,
        slot: &Arc<FdSlot>,
        open: impl Fn() -> Result<OwnedFd>,
    ) -> Result<Arc<OwnedFd>> {
        let mut held = slot.fd.lock();
        if let Some(fd) = &*held {
            slot.used.store(true, Ordering::Relaxed);
            return Ok(Arc::clone(fd));
        }
        let fd = Arc::new(self.retry(open)?);
        *held = Some(Arc::clone(&fd));
        drop(held);
        slot.pool.register(slot);
        Ok(fd)
    }

    /// Runs `open`; if the process or system is out of descriptors, closes all that can be and tries again, until
    /// there is nothing left to close.
    pub fn retry<T>(&self, open: impl Fn() -> Result<T>) -> Result<T> {
        loop {
            match open() {
                Err(Errno::MFILE | Errno::NFILE) if self.drop_all() > 0 => {}
                other => return other,
            }
        }
    }

    /// As [`Fds::retry`], for a descriptor that cannot be closed before somebody else says so. EMFILE if only the
    /// last few would be left: without those, nothing could be looked up until then.
    pub fn keep(&self, open: impl Fn() -> Result<OwnedFd>) -> Result<OwnedFd> {
        // A new descriptor has the lowest free number, which so tells how many are in use.
        let scarce = |fd: &OwnedFd| {
            usize::try_from(fd.as_raw_fd()).is_ok_and(|number| number + RESERVE >= self.limit)
        };
        let fd = self.retry(&open)?;
        if !scarce(&fd) {
            return Ok(fd);
        }
        drop(fd);
        self.drop_all();
        let fd = open()?;
        if scarce(&fd) {
            return Err(Errno::MFILE);
        }
        Ok(fd)
    }

    /// Closes all descriptors that nobody uses; how many.
    fn drop_all(&self) -> usize {
        self.dirs.evict(usize::MAX) + self.files.evict(usize::MAX)
    }
}

/// A budget shared by many [`FdSlot`]s.
#[derive(Debug)]
pub struct Pool {
    budget: AtomicUsize,
    ring: Mutex<VecDeque<Weak<FdSlot>>>,
    open: AtomicUsize,
}

impl Pool {
    /// At most about `budget` descriptors (at least 8) stay open.
    fn new(budget: usize) -> Self {
        Self {
            budget: budget.max(8).into(),
            ring: Mutex::default(),
            open: AtomicUsize::new(0),
        }
    }

    /// An empty place in this pool.
    pub fn slot(self: &Arc<Self>) -> Arc<FdSlot> {
        Arc::new(FdSlot {
            fd: Mutex::new(None),
            used: AtomicBool::new(false),
            listed: AtomicBool::new(false),
            pool: Arc::clone(self),
        })
    }

    /// Number of descriptors held.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// The budget.
    pub fn budget(&self) -> usize {
        self.budget.load(Ordering::Relaxed)
    }

    /// Changes the budget (at least 8); what is over it closes as new ones open.
    pub fn set_budget(&self, budget: usize) {
        self.budget.store(budget.max(8), Ordering::Relaxed);
    }

    fn register(&self, slot: &Arc<FdSlot>) {
        let open = self.open.fetch_add(1, Ordering::Relaxed) + 1;
        let budget = self.budget();
        if !slot.listed.swap(true, Ordering::Relaxed) {
            let mut ring = self.ring.lock();
            if ring.len() > budget * 2 + 64 {
                ring.retain(|slot| slot.strong_count() > 0);
            }
            ring.push_back(Arc::downgrade(slot));
        }
        if open > budget {
            self.evict(open - budget + budget / 16);
        }
    }

    /// Closes up to `count` descriptors, oldest first, sparing once those used since the last look; how many. One
    /// that a request uses is closed when the request is done.
    fn evict(&self, count: usize) -> usize {
        let mut ring = self.ring.lock();
        let mut closed = 0;
        let mut looks = ring.len().saturating_mul(2);
        while closed < count && looks > 0 {
            looks -= 1;
            let Some(weak) = ring.pop_front() else { break };
            let Some(slot) = weak.upgrade() else {
                continue;
            };
            if slot.used.swap(false, Ordering::Relaxed) {
                ring.push_back(weak);
                continue;
            }
            let Some(mut held) = slot.fd.try_lock() else {
                ring.push_back(weak);
                continue;
            };
            slot.listed.store(false, Ordering::Relaxed);
            if held.take().is_some() {
                self.open.fetch_sub(1, Ordering::Relaxed);
                closed += 1;
            }
        }
        closed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open_null() -> Result<OwnedFd> {
        rustix::fs::open(
            "/dev/null",
            rustix::fs::OFlags::RDONLY,
            rustix::fs::Mode::empty(),
        )
    }

    #[test]
    fn the_budget_bounds_the_open_descriptors() {
        let fds = Fds::new(64);
        let slots: Vec<_> = (0..100).map(|_| fds.files.slot()).collect();
        for slot in &slots {
            fds.get(slot, open_null).unwrap();
            assert!(fds.files.open() <= 16, "{}", fds.files.open());
        }
        drop(slots);
        assert_eq!(fds.files.open(), 0);
    }

    #[test]
    fn running_out_of_descriptors_closes_the_cached_ones_of_both_pools_and_tries_again() {
        let fds = Fds::new(1024);
        let slots = [fds.dirs.slot(), fds.files.slot()];
        for slot in &slots {
            fds.get(slot, open_null).unwrap();
        }
        let answer = fds.retry(|| {
            if fds.dirs.open() + fds.files.open() > 0 {
                Err(Errno::MFILE)
            } else {
                Ok(())
            }
        });
        assert_eq!(answer, Ok(()));
        assert!(slots.iter().all(|slot| !slot.is_open()));
    }

    #[test]
    fn with_nothing_left_to_close_the_error_is_returned() {
        let fds = Fds::new(1024);
        let slot = fds.files.slot();
        fds.get(&slot, open_null).unwrap();
        let out: Result<()> = fds.retry(|| Err(Errno::NFILE));
        assert_eq!(out, Err(Errno::NFILE));
    }

    #[test]
    fn the_last_descriptors_are_not_kept_by_anyone() {
        let number = usize::try_from(open_null().unwrap().as_raw_fd()).unwrap();
        // The other tests of this process open some as well.
        let fds = Fds::new(number + 200);
        assert!(fds.keep(open_null).is_ok());
        let fds = Fds::new(number.min(RESERVE));
        assert_eq!(fds.keep(open_null).unwrap_err(), Errno::MFILE);
    }
}
