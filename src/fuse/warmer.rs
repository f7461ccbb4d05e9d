//! A thread that keeps one of two CPUs busy while requests follow one another.
//!
//! A reader that spins saves one of the two wake-ups of a request; the client is still woken on a CPU that has halted.
//! With the other CPU busy the scheduler wakes the client where the reader is, and the reader sleeps: the two take turns
//! on one CPU that never halts. That takes the same CPU time and measures a third faster. With more than two CPUs there
//! is always an idle one to be woken on, so there it gains nothing.

use std::hint;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::thread::{self, Thread};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::process::{getpriority_process, setpriority_process};
use rustix::thread::{Pid, sched_getaffinity};

use super::seats::{Room, Seats, own_thread};
use super::stats::Op;
use crate::layer::best_effort;

/// How many CPUs it takes.
const CPUS: u32 = 2;
/// Others get nine tenths of the CPU until it is left to them. Much nicer, and the scheduler takes the CPU for idle.
const NICE: i32 = 10;
/// How far apart requests may be on average for it to begin, and to go on.
const APART: Duration = Duration::from_micros(125);
const APART_STILL: Duration = Duration::from_micros(250);
/// Requests for each that is of another client than the one before.
const ONE_CLIENT: u64 = 8;
/// Turns between two looks whether to go on.
const TURNS: u32 = 64;
/// How often it looks whether a walker has gone.
const RETRY: Duration = Duration::from_millis(2);

#[derive(Debug)]
pub(super) struct Warmer {
    on: AtomicBool,
    stop: AtomicBool,
    /// The reader, or 0.
    reader: AtomicI32,
    /// Whose requests it answers, or 0.
    client: AtomicI32,
    /// Requests since last asked, and how often they were of another client than the one before.
    turns: AtomicU64,
    changes: AtomicU64,
    room: Arc<Room>,
    /// Number of the thread for the scheduler, 0 before it runs.
    id: AtomicI32,
    thread: Mutex<Option<Thread>>,
}

impl Warmer {
    /// Whether this process may run on as many CPUs as it takes (that a quota allows no more is not the same), and whether
    /// it can be seen when others want them.
    pub(super) fn gains() -> bool {
        let sees = std::fs::read("/proc/thread-self/schedstat").is_ok();
        sees && sched_getaffinity(None).is_ok_and(|allowed| allowed.count() == CPUS)
    }

    /// Starts the thread, which sleeps at first.
    pub(super) fn start(room: Arc<Room>) -> io::Result<Arc<Self>> {
        let warmer = Arc::new(Self {
            on: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            reader: AtomicI32::new(0),
            client: AtomicI32::new(0),
            turns: AtomicU64::new(0),
            changes: AtomicU64::new(0),
            room,
            id: AtomicI32::new(0),
            thread: Mutex::new(None),
        });
        let own = Arc::clone(&warmer);
        let spawned = thread::Builder::new()
            .name("plyfs-warmer".into())
            .spawn(move || own.run())?;
        *warmer.thread.lock() = Some(spawned.thread().clone());
        Ok(warmer)
    }

    /// A request of this thread came, 0 if it is not known whose. Called by the reader.
    pub(super) fn note(&self, client: u32, op: Op) {
        // Nobody waits for either: reads of a stream are sent ahead, and both are better done beside the client.
        if matches!(op, Op::Read | Op::Forget) {
            return;
        }
        self.turns.fetch_add(1, Ordering::Relaxed);
        let client = i32::try_from(client).unwrap_or(0);
        if client != 0 && client != self.client.load(Ordering::Relaxed) {
            self.client.store(client, Ordering::Relaxed);
            self.changes.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether the requests in the last `time` are those of one client that waits for each answer, and come so fast that
    /// it is worth it. To be asked at intervals.
    pub(super) fn takes_turns(&self, time: Duration) -> bool {
        let turns = self.turns.swap(0, Ordering::Relaxed);
        let changes = self.changes.swap(0, Ordering::Relaxed);
        let (apart, least) = if self.on.load(Ordering::Relaxed) {
            (APART_STILL, 0)
        } else {
            (APART, ONE_CLIENT)
        };
        let expected = u64::try_from(time.as_micros() / apart.as_micros()).unwrap_or(u64::MAX);
        let known = self.client.load(Ordering::Relaxed) != 0;
        known && turns > expected.max(least) && changes * ONE_CLIENT <= turns
    }

    /// Begins; `reader` is the number of that thread.
    pub(super) fn begin(&self, reader: i32) {
        self.reader.store(reader, Ordering::Relaxed);
        self.on.store(true, Ordering::Release);
        if let Some(thread) = &*self.thread.lock() {
            thread.unpark();
        }
    }

    /// Ends; the thread sleeps again.
    pub(super) fn end(&self) {
        self.on.store(false, Ordering::Release);
    }

    pub(super) fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// Number of the thread for the scheduler.
    pub(super) fn id(&self) -> i32 {
        self.id.load(Ordering::Relaxed)
    }

    /// Ends the thread.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.lock().take() {
            thread.unpark();
        }
    }

    fn run(&self) {
        best_effort("be nice", be_nice());
        self.id.store(own_thread(), Ordering::Relaxed);
        while !self.stop.load(Ordering::Acquire) {
            if !self.on.load(Ordering::Acquire) {
                thread::park();
            } else if let Some(_room) = self.room.take_while_unwanted() {
                self.burn();
            } else {
                thread::sleep(RETRY);
            }
        }
    }

    fn goes_on(&self) -> bool {
        self.on.load(Ordering::Acquire)
            && !self.stop.load(Ordering::Acquire)
            && !self.room.is_wanted()
    }

    fn burn(&self) {
        let mut seats = Seats::new(Pid::from_raw(self.reader.load(Ordering::Relaxed)));
        while self.goes_on() {
            for _ in 0..TURNS {
                hint::spin_loop();
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

fn be_nice() -> rustix::io::Result<()> {
    // Of this thread, not of the process.
    if getpriority_process(None)? < NICE {
        setpriority_process(None, NICE)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    /// CPU time of a thread of this process in nanoseconds.
    fn used(id: i32) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/self/task/{id}/schedstat")).unwrap();
        stat.split_whitespace().next().unwrap().parse().unwrap()
    }

    fn until(condition: impl Fn() -> bool) {
        let end = Instant::now() + Duration::from_secs(20);
        while !condition() {
            assert!(Instant::now() < end);
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn it_is_for_one_client_whose_requests_come_fast() {
        let warmer = Warmer::start(Arc::default()).unwrap();
        let takes_turns = |clients: &[(u32, usize)]| {
            for &(client, requests) in clients {
                for _ in 0..requests {
                    warmer.note(client, Op::Lookup);
                    warmer.note(client, Op::Read);
                }
            }
            warmer.takes_turns(Duration::from_millis(1))
        };
        assert!(!takes_turns(&[(0, 100)]), "a client that cannot be seen");
        assert!(takes_turns(&[(7, 9)]));
        assert!(!takes_turns(&[(7, 8)]));
        warmer.on.store(true, Ordering::Relaxed);
        assert!(takes_turns(&[(7, 5)]));
        assert!(!takes_turns(&[(7, 4)]));
        assert!(!takes_turns(&[(8, 8), (7, 7)]));
        assert!(takes_turns(&[(8, 8), (7, 8)]));
        assert!(!warmer.takes_turns(Duration::ZERO));
        warmer.stop();
    }

    #[test]
    fn it_runs_beside_the_reader_while_it_is_on_and_sleeps_otherwise() {
        let room: Arc<Room> = Arc::default();
        let warmer = Warmer::start(Arc::clone(&room)).unwrap();
        until(|| warmer.id() != 0);
        let id = warmer.id();
        let before = used(id);
        let nice = |id: i32| -> i32 {
            let stat = std::fs::read_to_string(format!("/proc/self/task/{id}/stat")).unwrap();
            let (_, fields) = stat.rsplit_once(')').unwrap();
            fields.split_whitespace().nth(16).unwrap().parse().unwrap()
        };
        assert_eq!(nice(id), nice(own_thread()).max(NICE));
        warmer.begin(own_thread());
        until(|| used(id) > before + 10_000_000);
        warmer.end();
        let sleeps = || {
            let stat = std::fs::read_to_string(format!("/proc/self/task/{id}/stat")).unwrap();
            stat.contains(") S ")
        };
        until(sleeps);
        let after = used(id);
        thread::sleep(Duration::from_millis(20));
        // It may have been interrupted just before it slept.
        assert!(used(id) < after + 2_000_000);
        let walking = room.take();
        warmer.begin(own_thread());
        thread::sleep(Duration::from_millis(20));
        assert!(used(id) < after + 5_000_000);
        drop(walking);
        until(|| used(id) > after + 20_000_000);
        warmer.stop();
        until(|| !std::path::Path::new(&format!("/proc/self/task/{id}")).exists());
    }
}
