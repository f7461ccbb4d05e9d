//! Adaptive polling: how the reader waits for the next request.
//!
//! A FUSE round trip is two wake-ups. On a virtual machine, waking a thread on a halted CPU costs ten times what the
//! request itself does. Two ways around it, for as long as a burst of requests lasts:
//!
//! - Where `/dev/cpu_dma_latency` can be opened (normally by root only), the PM `QoS` latency is held at 0: idle CPUs
//!   wait for work instead of halting, for client and reader alike. The reader sleeps as ever, and nobody's CPU time is
//!   taken. This measures best.
//! - Elsewhere, with two CPUs and one client that waits for each answer, one CPU is kept busy (`fuse/warmer.rs`), so that
//!   client and reader take turns on the other, which never halts.
//! - Elsewhere the reader does not sleep: the connection is in `O_NONBLOCK`, and fuser's loop reads again at once. That
//!   saves one of the two wake-ups.
//!
//! A governor thread ends either when no request came for a while, and the spinning also when other threads want the
//! CPU (the scheduler tells how long who spins waited for one). An idle mount sleeps.
//!
//! A ping-pong between two threads measures what a wake-up costs here and now, at mount and from time to time when a
//! burst begins; while it is cheap (bare metal, or all CPUs busy) there is nothing to gain and the reader sleeps.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::fs::OFlags;
use rustix::thread::CpuSet;

use super::crowd::Crowd;
use super::seats::{Room, own_thread};
use super::session::Poll;
use super::stats::Op;
use super::warmer::Warmer;

/// Without a request for this long, the reader sleeps again.
const PATIENCE: Duration = Duration::from_micros(200);
/// Without a request for this long, the PM `QoS` request is given back.
const QOS_PATIENCE: Duration = Duration::from_millis(20);
/// A wake-up cheaper than this is not worth avoiding.
const CHEAP_WAKE: Duration = Duration::from_micros(8);
/// How long a measurement of the wake-up is believed: a dear one stays true, a cheap one may only mean that the CPUs
/// were busy just then.
const BELIEVE_DEAR: Duration = Duration::from_secs(10);
const BELIEVE_CHEAP: Duration = Duration::from_secs(1);
/// How often the governor looks after a spinning reader.
const WATCH_EVERY: Duration = Duration::from_micros(500);
/// How often the governor looks whether others want the CPU, and which share of its time who spins may wait for it, in
/// percent, before it makes way: the reader, which has requests to answer, and the warmer, which waits while the client
/// is still on its CPU.
const CROWDED: (Duration, u64) = (Duration::from_millis(4), 8);
const CROWDED_WARMER: (Duration, u64) = (Duration::from_millis(16), 50);
/// How often the governor looks whether one client takes turns with the reader.
const TURNS_EVERY: Duration = Duration::from_millis(2);

/// Shared between the reader, which only says that a request came, and the governor.
#[derive(Debug)]
pub(super) struct Poller {
    device: OwnedFd,
    patience: Duration,
    requests: AtomicU64,
    /// The connection is in `O_NONBLOCK`.
    spinning: AtomicBool,
    /// Held while that changes.
    switching: Mutex<()>,
    /// The governor sleeps until it is unparked.
    parked: AtomicBool,
    /// Others want the CPU.
    crowded: AtomicBool,
    stop: AtomicBool,
    reader: AtomicI32,
    governor: Mutex<Option<Thread>>,
    bursts: AtomicU64,
    /// Cost of a wake-up as last measured.
    wake_nanos: AtomicU64,
    /// Wake-ups are dear enough to avoid.
    pays: AtomicBool,
    /// Whatever they cost: the user wants polling.
    forced: bool,
    /// The reader spins, because the latency cannot be held or the user wants it.
    spins: bool,
    /// Spins instead while one client takes turns with the reader.
    warmer: Option<Arc<Warmer>>,
    qos: AtomicBool,
}

/// What a [`Poller`] found and does.
#[derive(Clone, Copy, Debug)]
pub(super) struct Description {
    /// Measured cost of a wake-up.
    pub(super) wake_up_nanos: u64,
    pub(super) bursts: u64,
    /// PM `QoS` is held now.
    pub(super) latency_held: bool,
    /// The warmer is on.
    pub(super) cpu_kept_busy: bool,
}

impl Poller {
    /// A poller for the connection `device` (a duplicate of its descriptor), or `None` where polling is off or
    /// would not pay.
    pub(super) fn start(
        device: OwnedFd,
        mode: Poll,
        threads: usize,
        room: &Arc<Room>,
    ) -> Option<Arc<Self>> {
        let cpus = thread::available_parallelism().map_or(1, usize::from);
        if cpus < 2 || threads > 1 || mode == Poll::Off {
            return None;
        }
        let (patience, forced) = match mode {
            Poll::Micros(0) | Poll::Off => return None,
            Poll::Micros(micros) => (Duration::from_micros(micros.into()), true),
            Poll::Auto => (PATIENCE, false),
        };
        let spins = forced || hold_latency().is_none();
        let warmer = if spins && !forced && Warmer::gains() {
            Warmer::start(Arc::clone(room)).ok()
        } else {
            None
        };
        let poller = Arc::new(Self {
            device,
            patience,
            requests: AtomicU64::new(0),
            spinning: AtomicBool::new(false),
            switching: Mutex::new(()),
            parked: AtomicBool::new(false),
            crowded: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            reader: AtomicI32::new(0),
            governor: Mutex::new(None),
            bursts: AtomicU64::new(0),
            wake_nanos: AtomicU64::new(0),
            pays: AtomicBool::new(forced),
            forced,
            spins,
            warmer,
            qos: AtomicBool::new(false),
        });
        let own = Arc::clone(&poller);
        let spawned = thread::Builder::new()
            .name("plyfs-governor".into())
            .spawn(move || own.govern());
        match spawned {
            Ok(handle) => {
                *poller.governor.lock() = Some(handle.thread().clone());
                Some(poller)
            }
            Err(error) => {
                tracing::warn!(%error, "no thread for the governor: the reader always sleeps");
                poller.stop();
                None
            }
        }
    }

    /// A request of the process `client`, 0 for none, came. Called by the reader, for every request.
    pub(super) fn note(&self, client: u32, op: Op) {
        // With the stores and loads of `park` in one order, either this sees that the governor sleeps, or that sees
        // the request.
        let first = self.requests.fetch_add(1, Ordering::SeqCst) == 0;
        if first {
            self.reader.store(own_thread(), Ordering::Relaxed);
        }
        if self.parked.load(Ordering::SeqCst) && self.parked.swap(false, Ordering::AcqRel) {
            self.reader.store(own_thread(), Ordering::Relaxed);
            if let Some(governor) = &*self.governor.lock() {
                governor.unpark();
            }
        }
        if let Some(warmer) = &self.warmer {
            warmer.note(client, op);
        }
        if self.spins && self.is_calm() && !self.is_warm() && !self.spinning.load(Ordering::Relaxed)
        {
            self.set_spinning(true);
        }
    }

    fn calibrate(&self) {
        let wake = measure_wake_up().unwrap_or_default();
        let nanos = u64::try_from(wake.as_nanos()).unwrap_or(u64::MAX);
        self.wake_nanos.store(nanos, Ordering::Relaxed);
        self.pays
            .store(self.forced || wake >= CHEAP_WAKE, Ordering::Relaxed);
    }

    fn calibrate_if_old(&self, calibrated: &mut Instant) {
        let believe = if self.pays.load(Ordering::Relaxed) {
            BELIEVE_DEAR
        } else {
            BELIEVE_CHEAP
        };
        if calibrated.elapsed() > believe {
            self.calibrate();
            *calibrated = Instant::now();
        }
    }

    /// Holds the PM `QoS` latency if that pays and is allowed.
    fn hold(&self, qos: &mut Option<File>) {
        if qos.is_none() && self.pays.load(Ordering::Relaxed) {
            *qos = hold_latency();
            self.qos.store(qos.is_some(), Ordering::Relaxed);
        }
    }

    /// Ends the governor.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        if let Some(governor) = self.governor.lock().take() {
            governor.unpark();
        }
        if let Some(warmer) = &self.warmer {
            warmer.stop();
        }
    }

    /// What `plyfs stats` shows of it.
    pub(super) fn describe(&self) -> Description {
        Description {
            wake_up_nanos: self.wake_nanos.load(Ordering::Relaxed),
            bursts: self.bursts.load(Ordering::Relaxed),
            latency_held: self.qos.load(Ordering::Relaxed),
            cpu_kept_busy: self.is_warm(),
        }
    }

    fn set_spinning(&self, on: bool) {
        let flags = if on {
            OFlags::RDWR | OFlags::NONBLOCK
        } else {
            OFlags::RDWR
        };
        // Reader and governor must not mix their two steps.
        let _alone = self.switching.lock();
        self.spinning.store(on, Ordering::Relaxed);
        let changed = rustix::fs::fcntl_setfl(&self.device, flags);
        crate::layer::best_effort("change how the reader waits", changed);
    }

    fn govern(&self) {
        // Takes milliseconds, which whoever mounts need not wait for.
        self.calibrate();
        let mut crowds = Crowds::default();
        let mut qos = None;
        let (mut seen, mut last_request) = (0, Instant::now());
        let mut looked = last_request;
        let mut calibrated = Instant::now();
        // Mounted to be used: the first burst begins now.
        self.hold(&mut qos);
        while !self.stop.load(Ordering::Acquire) {
            let requests = self.requests.load(Ordering::Relaxed);
            let now = Instant::now();
            if let Some(warmer) = &self.warmer {
                if now - looked >= TURNS_EVERY {
                    let calm = !crowds.warmer.is_avoided(now);
                    self.warm_while(warmer, warmer.takes_turns(now - looked) && calm);
                    looked = now;
                } else if warmer.is_on() {
                    warmer.follow();
                }
            }
            if requests == seen {
                let idle = now - last_request;
                if idle > self.patience && self.spinning.load(Ordering::Relaxed) {
                    self.set_spinning(false);
                }
                if idle > QOS_PATIENCE {
                    drop(qos.take());
                    self.qos.store(false, Ordering::Relaxed);
                    self.crowded.store(false, Ordering::Relaxed);
                    self.park(requests);
                    crowds = Crowds::default();
                    last_request = Instant::now();
                    looked = last_request;
                    self.bursts.fetch_add(1, Ordering::Relaxed);
                    self.calibrate_if_old(&mut calibrated);
                    self.hold(&mut qos);
                    continue;
                }
            } else {
                (seen, last_request) = (requests, now);
                self.make_way(&mut crowds, now);
                if !self.pays.load(Ordering::Relaxed) {
                    self.calibrate_if_old(&mut calibrated);
                    self.hold(&mut qos);
                }
            }
            let spinning = self.spinning.load(Ordering::Relaxed) || self.is_warm();
            thread::sleep(if spinning {
                self.patience.max(WATCH_EVERY)
            } else {
                Duration::from_millis(2)
            });
        }
    }

    /// Spinning pays, and nobody else wants the CPU.
    fn is_calm(&self) -> bool {
        !self.crowded.load(Ordering::Relaxed) && self.pays.load(Ordering::Relaxed)
    }

    fn is_warm(&self) -> bool {
        self.warmer.as_ref().is_some_and(|warmer| warmer.is_on())
    }

    /// Has the warmer spin instead of the reader while one client takes turns with it.
    fn warm_while(&self, warmer: &Warmer, turns: bool) {
        let on = turns && self.pays.load(Ordering::Relaxed);
        if on != warmer.is_on() {
            if on {
                warmer.begin(self.reader.load(Ordering::Relaxed));
            } else {
                warmer.end();
            }
        }
        if on {
            warmer.follow();
            if self.spinning.load(Ordering::Relaxed) {
                self.set_spinning(false);
            }
        }
    }

    /// Sleeps until the next request.
    fn park(&self, seen: u64) {
        self.parked.store(true, Ordering::SeqCst);
        if self.requests.load(Ordering::SeqCst) != seen {
            self.parked.store(false, Ordering::Release);
            return;
        }
        while self.parked.load(Ordering::Acquire) && !self.stop.load(Ordering::Acquire) {
            thread::park();
        }
    }

    /// Lets reader and warmer sleep while others want the CPU.
    fn make_way(&self, crowds: &mut Crowds, now: Instant) {
        if !self.spins {
            return;
        }
        let crowded = if self.is_warm() {
            crowds.reader.look_away();
            crowds.reader.is_avoided(now)
        } else {
            let reader = self.reader.load(Ordering::Relaxed);
            crowds.reader.is_around(reader, now)
        };
        self.crowded.store(crowded, Ordering::Relaxed);
        if crowded && self.spinning.load(Ordering::Relaxed) {
            self.set_spinning(false);
        }
        if let Some(warmer) = &self.warmer {
            if !warmer.is_on() || !warmer.spins() {
                crowds.warmer.look_away();
            } else if crowds.warmer.is_around(warmer.id(), now) {
                warmer.end();
            }
        }
    }
}

/// Who wants the CPU of the reader, and who that of the warmer.
#[derive(Debug)]
struct Crowds {
    reader: Crowd,
    warmer: Crowd,
}

impl Default for Crowds {
    fn default() -> Self {
        Self {
            reader: Crowd::new(CROWDED.0, CROWDED.1),
            warmer: Crowd::new(CROWDED_WARMER.0, CROWDED_WARMER.1),
        }
    }
}

/// Asks the system not to let CPUs sleep deeply, until the file is closed. `None` where we may not.
fn hold_latency() -> Option<File> {
    let mut file = File::options()
        .write(true)
        .open("/dev/cpu_dma_latency")
        .ok()?;
    file.write_all(&0i32.to_ne_bytes()).ok()?;
    Some(file)
}

/// Median time of waking a thread on another CPU, from a round trip between two.
fn measure_wake_up() -> std::io::Result<Duration> {
    const ROUNDS: usize = 9;
    let allowed = rustix::thread::sched_getaffinity(None)?;
    let mut cpus = (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu));
    let (Some(here), Some(there)) = (cpus.next(), cpus.next()) else {
        return Ok(Duration::ZERO);
    };
    let (mut ping_out, mut ping_in) = std::io::pipe()?;
    let (mut pong_out, mut pong_in) = std::io::pipe()?;
    let echo = on_cpu("plyfs-echo", there, move || {
        let mut byte = [0];
        while ping_out.read_exact(&mut byte).is_ok() && pong_in.write_all(&byte).is_ok() {}
        Ok(())
    })?;
    let ping = on_cpu("plyfs-ping", here, move || {
        let mut times = Vec::with_capacity(ROUNDS);
        for _ in 0..ROUNDS {
            // Long enough for the other CPU to go idle.
            thread::sleep(Duration::from_micros(300));
            let start = Instant::now();
            ping_in.write_all(&[1])?;
            pong_out.read_exact(&mut [0])?;
            times.push(start.elapsed() / 2);
        }
        times.sort();
        Ok(times[ROUNDS / 2])
    })?;
    let panicked = |_| std::io::Error::other("a measuring thread panicked");
    let median = ping.join().map_err(panicked)?;
    echo.join().map_err(panicked)??;
    median
}

type Measured<T> = thread::JoinHandle<std::io::Result<T>>;

/// Starts a thread that stays on one CPU.
fn on_cpu<T: Send + 'static>(
    name: &str,
    cpu: usize,
    run: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> std::io::Result<Measured<T>> {
    thread::Builder::new().name(name.into()).spawn(move || {
        let mut only = CpuSet::new();
        only.set(cpu);
        rustix::thread::sched_setaffinity(None, &only)?;
        run()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_request_of_a_mount_tells_who_the_reader_is() {
        let device = File::open("/dev/null").unwrap().into();
        let Some(poller) = Poller::start(device, Poll::Micros(1), 1, &Arc::default()) else {
            assert!(
                thread::available_parallelism().map_or(1, usize::from) < 2,
                "no poller although there are CPUs for it"
            );
            return;
        };
        poller.note(0, Op::Lookup);
        assert_eq!(poller.reader.load(Ordering::Relaxed), own_thread());
        poller.stop();
    }
}
