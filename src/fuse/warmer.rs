//! A thread that keeps one of two CPUs busy while requests follow one another.
//!
//! A reader that spins saves one of the two wake-ups of a request; the client is still woken on a CPU that has halted.
//! With the other CPU busy the scheduler wakes the client where the reader is, and the reader sleeps: the two take turns
//! on one CPU that never halts. That takes the same CPU time and measures a third faster. With more than two CPUs there
//! is always an idle one to be woken on, so there it gains nothing.
//!
//! One such thread is enough for all mounts of the machine, and two would take each other for somebody who wants the
//! CPU: a client that goes back and forth between two mounts (podman compares a container with its image that way) keeps
//! the one of either on. So only the one that has [`Turn`] spins.

use std::fs::File;
use std::hint;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::thread::{self, Thread};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
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
/// How often it looks whether a walker has gone, or the turn has come.
const RETRY: Duration = Duration::from_millis(2);

#[derive(Debug)]
pub(super) struct Warmer {
    on: AtomicBool,
    /// It is on, and nobody else keeps the CPU busy.
    spins: AtomicBool,
    stop: AtomicBool,
    /// The reader, or 0.
    reader: AtomicI32,
    /// Whose requests it answers, or 0.
    client: AtomicI32,
    /// Requests since last asked, and how often they were of another client than the one before.
    turns: AtomicU64,
    changes: AtomicU64,
    room: Arc<Room>,
    /// While it is at work.
    seats: Mutex<Option<Seats>>,
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
            spins: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            reader: AtomicI32::new(0),
            client: AtomicI32::new(0),
            turns: AtomicU64::new(0),
            changes: AtomicU64::new(0),
            room,
            seats: Mutex::new(None),
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

    /// Keeps the CPU of the client free. To be called at intervals by another thread: where the client has come to the
    /// CPU of this one, it is too nice to do anything about it.
    pub(super) fn follow(&self) {
        if let Some(seats) = &mut *self.seats.lock() {
            seats.follow(self.client.load(Ordering::Relaxed));
        }
    }

    /// Ends; the thread sleeps again.
    pub(super) fn end(&self) {
        self.on.store(false, Ordering::Release);
    }

    pub(super) fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// It takes a CPU: not where the one of another mount does.
    pub(super) fn spins(&self) -> bool {
        self.spins.load(Ordering::Relaxed)
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
        *self.seats.lock() = Seats::new(Pid::from_raw(self.reader.load(Ordering::Relaxed)));
        let mut turn = Turn::new();
        while self.goes_on() {
            let ours = turn.is_ours();
            self.spins.store(ours, Ordering::Relaxed);
            if ours {
                for _ in 0..TURNS {
                    hint::spin_loop();
                }
            } else {
                thread::sleep(RETRY);
            }
        }
        self.spins.store(false, Ordering::Relaxed);
        if let Some(seats) = self.seats.lock().take()
            && self.stop.load(Ordering::Acquire)
        {
            // The reader has ended.
            seats.leave_reader();
        }
    }
}

/// Whose turn it is, of all processes that run this program: a lock on its file, so nobody has to agree on a place. Given
/// back when dropped.
#[derive(Debug)]
struct Turn {
    /// `None` where there can be no lock: everybody for himself then.
    program: Option<File>,
    ours: bool,
}

impl Turn {
    fn new() -> Self {
        Self {
            program: File::open("/proc/self/exe").ok(),
            ours: false,
        }
    }

    /// Takes the turn if nobody has it.
    fn is_ours(&mut self) -> bool {
        self.ours = self.ours
            || self.program.as_ref().is_none_or(|program| {
                flock(program, FlockOperation::NonBlockingLockExclusive) != Err(Errno::WOULDBLOCK)
            });
        self.ours
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

    fn until(mut condition: impl FnMut() -> bool) {
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
    fn only_one_at_a_time_has_the_turn() {
        let (mut first, mut second) = (Turn::new(), Turn::new());
        // Another process may have it for a while.
        until(|| first.is_ours());
        assert!(first.is_ours() && !second.is_ours());
        drop(first);
        until(|| second.is_ours());
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
