//! What answers the kernel's requests: the overlay, how long answers hold, statistics, polling, worker threads.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fuser::{Errno, Generation, INodeNo, ReplyEmpty, ReplyEntry, ReplyWrite, ReplyXattr, Request};
use rustix::io::Errno as SysErrno;

use super::convert;
use super::first_open::FirstOpen;
use super::passthrough::Passthrough;
use super::poll::Poller;
use super::pool::Pool;
use super::stats::{Op, Stats, Timer};
use super::walker::Walker;
use crate::layer::name::Name;
use crate::overlay::create::New;
use crate::overlay::{Found, Overlay};

/// "For ever": layers do not change under us.
const FOREVER: Duration = Duration::from_secs(1 << 30);
/// Begins the names of xattrs that are on no disk.
const OWN_XATTRS: &[u8] = b"user.plyfs.";

/// Answers the kernel's requests out of an overlay.
#[derive(Debug)]
pub(super) struct Adapter {
    pub(super) overlay: Arc<Overlay>,
    pub(super) ttl: Duration,
    pub(super) acl: bool,
    pub(super) description: Vec<u8>,
    pub(super) stats: Arc<Stats>,
    pub(super) poller: Option<Arc<Poller>>,
    /// Open files, if the kernel reads and writes them itself.
    pub(super) passthrough: Option<Arc<Passthrough>>,
    /// For what may wait for a disk: copy-up of data, fsync, reads that miss the page cache.
    pub(super) pool: Pool,
    /// Reads ahead of tree walks, where there is a second CPU.
    walker: Option<Walker>,
    pub(super) first_open: FirstOpen,
}

thread_local! {
    /// What a READ is answered from.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Runs `act` on this thread's buffer of `size` bytes, whose content is undefined.
pub(super) fn with_buffer<T>(size: usize, act: impl FnOnce(&mut [u8]) -> T) -> T {
    BUFFER.with_borrow_mut(|buffer| {
        if buffer.len() < size {
            buffer.resize(size, 0);
        }
        act(&mut buffer[..size])
    })
}

/// What a handler replies with.
pub(super) type Answer<T> = Result<T, Errno>;

/// Runs a request. A panic in it is logged and answered EIO; the mount lives on.
pub(super) fn guarded<T>(act: impl FnOnce() -> Result<T, SysErrno>) -> Answer<T> {
    match catch_unwind(AssertUnwindSafe(act)) {
        Ok(done) => done.map_err(convert::errno),
        // The panic hook has logged where.
        Err(_) => Err(Errno::EIO),
    }
}

impl Adapter {
    pub(super) fn new(
        overlay: Arc<Overlay>,
        acl: bool,
        description: String,
        poller: Option<Arc<Poller>>,
        walker: Option<Walker>,
        passthrough: Option<Arc<Passthrough>>,
    ) -> Self {
        let ttl = overlay.options().timeout.unwrap_or(FOREVER);
        let description = description.into_bytes();
        let first_open = FirstOpen::new(passthrough.is_none());
        let (stats, pool) = (Arc::new(Stats::new()), Pool::default());
        Self {
            overlay,
            ttl,
            acl,
            description,
            stats,
            poller,
            passthrough,
            pool,
            walker,
            first_open,
        }
    }

    /// A request begins.
    pub(super) fn begin(&self, req: &Request, op: Op) -> Timer {
        if let Some(poller) = &self.poller {
            poller.note(req.pid(), op);
        }
        if let Some(walker) = &self.walker {
            walker.note(op);
        }
        self.stats.time(op)
    }

    /// Runs `act` here, or on another thread if it `may_block`, and hands its answer to `reply`.
    pub(super) fn answer<T: 'static>(
        &self,
        timer: Timer,
        may_block: bool,
        act: impl FnOnce(&Overlay) -> Result<T, SysErrno> + Send + 'static,
        reply: impl FnOnce(Answer<T>) + Send + 'static,
    ) {
        if !may_block {
            let answer = guarded(|| act(&self.overlay));
            drop(timer);
            reply(answer);
            return;
        }
        let overlay = Arc::clone(&self.overlay);
        self.pool.run(move || {
            let answer = guarded(|| act(&overlay));
            drop(timer);
            reply(answer);
        });
    }

    /// After the beginning of a listing has been answered: prepares what a tree walk will ask for next.
    pub(super) fn read_ahead(&self, req: &Request, ino: INodeNo) {
        if let Some(walker) = &self.walker {
            walker.listed(&self.overlay, ino.0, req.pid());
        }
    }

    /// Ends the threads of its own.
    pub(super) fn stop(&self) {
        if let Some(walker) = &self.walker {
            walker.stop(&self.overlay);
        }
        if let Some(poller) = &self.poller {
            poller.stop();
        }
        self.pool.drain();
    }

    pub(super) fn create_entry(
        &self,
        req: &Request,
        at: (INodeNo, &OsStr),
        (mode, umask): (u32, u32),
        new: New<'_>,
    ) -> Answer<Found> {
        guarded(|| {
            let caller = convert::caller(req, umask);
            let mode = convert::permissions(mode);
            self.overlay
                .create(at.0.0, Name::new(at.1)?, new, mode, &caller)
        })
    }

    pub(super) fn sync(&self, timer: Timer, ino: INodeNo, data_only: bool, reply: ReplyEmpty) {
        if self.overlay.is_volatile() {
            return reply.error(Errno::ENOSYS);
        }
        let reply = move |answer| reply_empty(reply, answer);
        self.answer(
            timer,
            true,
            move |overlay| overlay.sync(ino.0, data_only),
            reply,
        );
    }

    /// Xattrs that are on no disk: of the mount itself on its root, and of every object where it comes from. They are
    /// in no list of xattrs, so that nobody copies them.
    pub(super) fn own_xattr(
        &self,
        ino: INodeNo,
        name: &OsStr,
    ) -> Option<Result<Vec<u8>, SysErrno>> {
        let own = name.as_bytes().strip_prefix(OWN_XATTRS)?;
        match own {
            b"mount" if ino == INodeNo::ROOT => Some(Ok(self.description.clone())),
            b"stats" if ino == INodeNo::ROOT => {
                Some(Ok(self.describe_stats().to_string().into_bytes()))
            }
            b"layer" | b"path" | b"below" => Some(self.provenance(ino, own)),
            // Asking for this one panics: no honest request does, and what happens then has to be seen on a live mount.
            #[cfg(debug_assertions)]
            #[expect(clippy::panic, reason = "what the name says")]
            b"panic" if ino == INodeNo::ROOT => panic!("asked for by {}", name.display()),
            _ => None,
        }
    }

    fn provenance(&self, ino: INodeNo, asked: &[u8]) -> Result<Vec<u8>, SysErrno> {
        let from = self.overlay.provenance(ino.0)?;
        let bytes = |path: &Path| path.as_os_str().as_bytes().to_vec();
        Ok(match asked {
            b"layer" => bytes(&from.layer),
            b"path" => from.path,
            _ => {
                let lines: Vec<_> = from.below.iter().map(|path| bytes(path)).collect();
                lines.join(&b'\n')
            }
        })
    }

    /// Whether the xattr is one of ours, which nobody else sets.
    pub(super) fn is_own_xattr(name: &OsStr) -> bool {
        let own = name.as_bytes().strip_prefix(OWN_XATTRS);
        own.is_some_and(|own| matches!(own, b"mount" | b"stats" | b"layer" | b"path" | b"below"))
    }

    fn describe_stats(&self) -> serde_json::Value {
        let (seconds, requests) = self.stats.describe();
        let mut all = self.overlay.statistics();
        let polling = self.poller.as_ref().map(|poller| poller.describe());
        all["seconds_mounted"] = seconds.into();
        all["requests"] = requests;
        all["polling"] = match polling {
            None => "off".into(),
            Some(now) => serde_json::json!({
                "wake_up_ns": now.wake_up_nanos,
                "bursts": now.bursts,
                "cpu_latency_held": now.latency_held,
                "cpu_kept_busy": now.cpu_kept_busy,
            }),
        };
        all
    }
}

pub(super) fn reply_entry(ttl: &Duration, reply: ReplyEntry, answer: Answer<Found>) {
    match answer {
        Ok(found) => {
            let attr = convert::file_attr(&found.attr);
            reply.entry(ttl, &attr, Generation(found.generation));
        }
        Err(error) => reply.error(error),
    }
}

pub(super) fn reply_written(reply: ReplyWrite, answer: Answer<usize>) {
    match answer {
        Ok(count) => reply.written(u32::try_from(count).unwrap_or(u32::MAX)),
        Err(error) => reply.error(error),
    }
}

pub(super) fn reply_empty(reply: ReplyEmpty, answer: Answer<()>) {
    match answer {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

pub(super) fn reply_xattr(reply: ReplyXattr, size: u32, answer: Answer<Vec<u8>>) {
    match answer {
        Err(error) => reply.error(error),
        Ok(value) => {
            let length = u32::try_from(value.len()).unwrap_or(u32::MAX);
            if size == 0 {
                reply.size(length);
            } else if length > size {
                reply.error(Errno::ERANGE);
            } else {
                reply.data(&value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_in_a_request_is_answered_eio() {
        let answer: Answer<()> = guarded(|| panic!("a bug"));
        assert_eq!(answer.map_err(|error| error.code()), Err(libc::EIO));
        assert!(guarded(|| Ok(())).is_ok());
    }
}
