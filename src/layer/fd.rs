//! A bounded number of open descriptors.
//!
//! Directories and files are reopened on demand, so a descriptor is a cache entry: [`Fds`] counts them, closes
//! the least recently used ones (second chance) above its budget, and all of them when the process runs out.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use rustix::io::{Errno, Result};

/// A place for one descriptor that may be closed at any time nobody uses it.
#[derive(Debug)]
pub struct FdSlot {
    fd: Mutex<Option<Arc<OwnedFd>>>,
    /// Asked for since the last look of the evictor.
    used: AtomicBool,
    /// In the ring of its budget.
    listed: AtomicBool,
    open: Arc<AtomicUsize>,
}

impl Drop for FdSlot {
    fn drop(&mut self) {
        if self.fd.get_mut().is_some() {
            self.open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// A budget shared by many [`FdSlot`]s.
#[derive(Debug)]
pub struct Fds {
    budget: AtomicUsize,
    ring: Mutex<VecDeque<Weak<FdSlot>>>,
    open: Arc<AtomicUsize>,
}

impl Fds {
    /// At most about `budget` descriptors (at least 8) stay open.
    pub fn new(budget: usize) -> Self {
        Self {
            budget: budget.max(8).into(),
            ring: Mutex::default(),
            open: Arc::default(),
        }
    }

    /// An empty place in this budget.
    pub fn slot(&self) -> Arc<FdSlot> {
        Arc::new(FdSlot {
            fd: Mutex::new(None),
            used: AtomicBool::new(false),
            listed: AtomicBool::new(false),
            open: Arc::clone(&self.open),
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
        self.register(slot);
        Ok(fd)
    }

    /// Whether `slot` holds a descriptor now.
    pub fn is_open(&self, slot: &FdSlot) -> bool {
        slot.fd.lock().is_some()
    }

    /// Puts an already open descriptor into `slot`, in place of what it held.
    pub fn put(&self, slot: &Arc<FdSlot>, fd: OwnedFd) {
        let old = slot.fd.lock().replace(Arc::new(fd));
        if old.is_none() {
            self.register(slot);
        }
    }

    /// Closes what `slot` holds.
    pub fn clear(&self, slot: &FdSlot) {
        if slot.fd.lock().take().is_some() {
            self.open.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Runs `open`; if the process or system is out of descriptors, closes all cached ones and tries again.
    pub fn retry<T>(&self, open: impl Fn() -> Result<T>) -> Result<T> {
        match open() {
            Err(Errno::MFILE | Errno::NFILE) => {
                self.evict(usize::MAX);
                open()
            }
            other => other,
        }
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

    /// Closes up to `count` descriptors, oldest first, sparing once those used since the last look.
    fn evict(&self, count: usize) {
        let mut ring = self.ring.lock();
        let mut closed = 0;
        let mut looks = ring.len().saturating_mul(2);
        while closed < count && looks > 0 {
            looks -= 1;
            let Some(weak) = ring.pop_front() else { return };
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
        let fds = Fds::new(16);
        let slots: Vec<_> = (0..100).map(|_| fds.slot()).collect();
        for slot in &slots {
            fds.get(slot, open_null).unwrap();
            assert!(fds.open() <= 16, "{}", fds.open());
        }
        drop(slots);
        assert_eq!(fds.open(), 0);
    }

    #[test]
    fn running_out_of_descriptors_closes_the_cached_ones_and_tries_again() {
        let fds = Fds::new(16);
        let slot = fds.slot();
        fds.get(&slot, open_null).unwrap();
        let answer = fds.retry(|| {
            if fds.open() > 0 {
                Err(Errno::MFILE)
            } else {
                Ok(())
            }
        });
        assert_eq!(answer, Ok(()));
        assert_eq!(fds.open(), 0);
    }
}
