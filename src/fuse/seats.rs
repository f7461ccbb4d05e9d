//! On which CPUs the threads run while a walk is read ahead.
//!
//! Client and reader take turns, so they lose nothing on one CPU and a wake-up across CPUs is dear. The thread has to
//! run on another one to gain anything, and schedulers that pack a light load together would not let it. So while a walk
//! lasts, the thread stays off the client's CPU, and the reader off the one that the thread has found for itself. With
//! two CPUs that is a CPU for the thread, and one for client and reader; with more the scheduler has a choice.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use rustix::io::Result;
use rustix::process::getpid;
use rustix::thread::{CpuSet, Pid, gettid, sched_getaffinity, sched_setaffinity};

/// How often it is looked where the client runs.
const FOLLOW_EVERY: Duration = Duration::from_micros(1500);

/// Whoever gives the threads their seats, one at a time: a walker before a warmer.
#[derive(Debug, Default)]
pub(super) struct Room {
    taken: Mutex<()>,
    wanted: AtomicBool,
}

/// The walker has the room.
#[derive(Debug)]
pub(super) struct Walking<'a> {
    room: &'a Room,
    _taken: MutexGuard<'a, ()>,
}

impl Room {
    /// For the walker, of which a mount has one: waits for the warmer to leave, which it does at once.
    pub(super) fn take(&self) -> Walking<'_> {
        self.wanted.store(true, Ordering::SeqCst);
        Walking {
            room: self,
            _taken: self.taken.lock(),
        }
    }

    /// For the warmer: to be left as soon as a walker wants it.
    pub(super) fn take_while_unwanted(&self) -> Option<MutexGuard<'_, ()>> {
        self.taken.try_lock().filter(|_| !self.is_wanted())
    }

    pub(super) fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::SeqCst)
    }
}

impl Drop for Walking<'_> {
    fn drop(&mut self) {
        self.room.wanted.store(false, Ordering::SeqCst);
    }
}

/// Number of the calling thread.
pub(super) fn own_thread() -> i32 {
    gettid().as_raw_nonzero().get()
}

/// Lets the calling thread run wherever the process may: a thread starts on the CPUs of the one that made it.
pub(super) fn take_any() {
    let anywhere = || -> Result<()> {
        let process = sched_getaffinity(Some(getpid()))?;
        sched_setaffinity(None, &every())?;
        if sched_getaffinity(None)? != process {
            sched_setaffinity(None, &process)?;
        }
        Ok(())
    };
    crate::layer::best_effort("let a thread run anywhere", anywhere());
}

fn every() -> CpuSet {
    let mut every = CpuSet::new();
    (0..CpuSet::MAX_CPU).for_each(|cpu| every.set(cpu));
    every
}

/// What to give the thread later so that it may run where it may now; `None` is the caller. A thread that nobody has
/// confined is to follow what its cgroup allows, also when that changes.
fn given(thread: Option<Pid>) -> Result<CpuSet> {
    let now = sched_getaffinity(thread)?;
    // The kernel takes away what is not allowed.
    sched_setaffinity(thread, &every())?;
    if sched_getaffinity(thread)? == now {
        return Ok(every());
    }
    sched_setaffinity(thread, &now)?;
    Ok(now)
}

/// Where the reader may run, and the thread beside it (walker or warmer). Given back as they were when dropped.
#[derive(Debug)]
pub(super) struct Seats {
    reader: Option<Pid>,
    beside: Pid,
    /// Where they may run otherwise.
    before: (CpuSet, CpuSet),
    /// Where the client was.
    client: Option<usize>,
    /// When it was last looked for.
    looked: Option<Instant>,
}

impl Seats {
    /// To be called by the thread beside the reader; `None` if it cannot be said where threads run.
    pub(super) fn new(reader: Option<Pid>) -> Option<Self> {
        Some(Self {
            reader,
            beside: gettid(),
            before: (given(reader).ok()?, given(None).ok()?),
            client: None,
            looked: None,
        })
    }

    /// Makes room where the client runs now.
    pub(super) fn follow(&mut self, client: i32) {
        if self
            .looked
            .is_some_and(|looked| looked.elapsed() < FOLLOW_EVERY)
        {
            return;
        }
        self.looked = Some(Instant::now());
        // A process of another pid namespace cannot be seen; everything stays as it is then.
        let Some(cpu) = cpu_of(client) else { return };
        if self.client != Some(cpu) {
            let moved = self.make_room(cpu);
            crate::layer::best_effort("make room for the client of a walk", moved);
        }
    }

    fn make_room(&mut self, cpu: usize) -> Result<()> {
        let Some(reader) = self.reader else {
            return Ok(());
        };
        let mut own = self.before.1;
        own.unset(cpu);
        self.client = Some(cpu);
        sched_setaffinity(Some(self.beside), &own)?;
        let mut readers = self.before.0;
        if let Some(taken) = self.taken()? {
            readers.unset(taken);
        }
        sched_setaffinity(Some(reader), &readers)
    }

    /// The CPU of the thread beside the reader. It need not have run there yet where it has no choice.
    fn taken(&self) -> Result<Option<usize>> {
        let allowed = sched_getaffinity(Some(self.beside))?;
        let mut cpus = (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu));
        match (cpus.next(), cpus.next()) {
            (Some(only), None) => Ok(Some(only)),
            _ => Ok(cpu_of(self.beside.as_raw_nonzero().get())),
        }
    }

    /// Ends without touching the reader any more.
    pub(super) fn leave_reader(mut self) {
        self.reader = None;
    }
}

impl Drop for Seats {
    fn drop(&mut self) {
        if self.client.is_some() {
            let reader = self
                .reader
                .map(|reader| sched_setaffinity(Some(reader), &self.before.0));
            let own = sched_setaffinity(Some(self.beside), &self.before.1);
            let both = reader.unwrap_or(Ok(())).and(own);
            crate::layer::best_effort("let reader and walker run anywhere", both);
        }
    }
}

/// The CPU a thread ran on last; `None` if it cannot be seen.
fn cpu_of(thread: i32) -> Option<usize> {
    let stat = std::fs::read_to_string(format!("/proc/{thread}/stat")).ok()?;
    // Field 39 of proc_pid_stat(5). The name, which may contain anything, ends with the last bracket; field 3 follows.
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_ascii_whitespace().nth(36)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use rustix::thread::sched_getcpu;

    use super::*;

    #[test]
    fn the_cpu_of_a_thread_is_where_it_may_run() {
        let own = gettid();
        let before = sched_getaffinity(None).unwrap();
        let allowed = (0..CpuSet::MAX_CPU).filter(|&cpu| before.is_set(cpu));
        for cpu in allowed {
            let mut only = CpuSet::new();
            only.set(cpu);
            sched_setaffinity(None, &only).unwrap();
            assert_eq!(cpu_of(own.as_raw_nonzero().get()), Some(cpu));
        }
        assert_eq!(cpu_of(0), None);
    }

    #[test]
    fn while_a_walk_lasts_the_walker_leaves_client_and_reader_a_cpu() {
        let before = sched_getaffinity(None).unwrap();
        if before.count() < 2 {
            return;
        }
        let reader = gettid();
        let walker = std::thread::spawn(move || {
            let mut seats = Seats::new(Some(reader)).unwrap();
            seats.follow(reader.as_raw_nonzero().get());
            let client = seats.client.unwrap();
            let own = sched_getaffinity(None).unwrap();
            assert!(!own.is_set(client) && own.count() == before.count() - 1);
            let readers = sched_getaffinity(Some(reader)).unwrap();
            assert!(readers.is_set(client) && readers.count() == before.count() - 1);
            drop(seats);
            assert_eq!(sched_getaffinity(None).unwrap(), before);
        });
        walker.join().unwrap();
        assert_eq!(sched_getaffinity(None).unwrap(), before);
    }

    #[test]
    fn a_thread_made_by_the_reader_during_a_walk_runs_anywhere() {
        let before = sched_getaffinity(Some(getpid())).unwrap();
        let made = std::thread::spawn(|| {
            let mut only = CpuSet::new();
            only.set(sched_getcpu());
            sched_setaffinity(None, &only).unwrap();
            let made = std::thread::spawn(|| {
                let first = sched_getaffinity(None).unwrap();
                take_any();
                (first, sched_getaffinity(None).unwrap())
            });
            (only, made.join().unwrap())
        });
        let (only, (first, then)) = made.join().unwrap();
        assert_eq!((first, then), (only, before));
    }
}
