//! On which CPUs the threads run while a walk is read ahead.
//!
//! Client and reader take turns, so they lose nothing on one CPU and a wake-up across CPUs is dear. The thread has to
//! run on another one to gain anything, and schedulers that pack a light load together would not let it. So while a walk
//! lasts, the thread stays off the client's CPU and the reader off the thread's.

use std::time::{Duration, Instant};

use rustix::io::Result;
use rustix::process::getpid;
use rustix::thread::{CpuSet, Pid, sched_getaffinity, sched_getcpu, sched_setaffinity};

/// How often the walker looks where the client runs.
const FOLLOW_EVERY: Duration = Duration::from_micros(1500);

/// Lets the calling thread run wherever the process may: a thread starts on the CPUs of the one that made it.
pub(super) fn take_any() {
    let anywhere =
        || -> Result<()> { sched_setaffinity(None, &sched_getaffinity(Some(getpid()))?) };
    crate::layer::best_effort("let a thread run anywhere", anywhere());
}

/// Where reader and walker may run. Given back as they were when dropped.
#[derive(Debug)]
pub(super) struct Seats {
    reader: Pid,
    /// Where they may run otherwise.
    before: (CpuSet, CpuSet),
    /// Where the client was.
    client: Option<usize>,
    /// When it was last looked for.
    looked: Option<Instant>,
}

impl Seats {
    /// To be called by the walker; `None` if it cannot be said where threads run.
    pub(super) fn new(reader: Option<Pid>) -> Option<Self> {
        let reader = reader?;
        let before = (
            sched_getaffinity(Some(reader)).ok()?,
            sched_getaffinity(None).ok()?,
        );
        Some(Self {
            reader,
            before,
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
        if self.client.replace(cpu) == Some(cpu) {
            return;
        }
        let (mut readers, mut own) = self.before;
        own.unset(cpu);
        if own.count() == 0 || sched_setaffinity(None, &own).is_err() {
            return;
        }
        readers.unset(sched_getcpu());
        if readers.count() > 0 {
            let moved = sched_setaffinity(Some(self.reader), &readers);
            crate::layer::best_effort("move the reader to the client", moved);
        }
    }
}

impl Drop for Seats {
    fn drop(&mut self) {
        if self.client.is_some() {
            let reader = sched_setaffinity(Some(self.reader), &self.before.0);
            let own = sched_setaffinity(None, &self.before.1);
            crate::layer::best_effort("let reader and walker run anywhere", reader.and(own));
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
    use rustix::thread::gettid;

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
    fn while_a_walk_lasts_nobody_shares_the_walkers_cpu() {
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
            assert!(!readers.is_set(sched_getcpu()) && readers.count() == before.count() - 1);
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
