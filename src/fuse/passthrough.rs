//! Passthrough: the kernel reads and writes the real file itself, and the daemon sees only open and release.
//!
//! Needs `CAP_SYS_ADMIN` in the initial user namespace, and takes the place of the no-open mode, since each open has to
//! be answered. Rules of the kernel: all opens of one node at a time are of one mode, and those passed through have one
//! backing file; anything else is EIO for the program. So:
//!
//! - An open for writing copies the file up first, as with kernel overlayfs; its backing is the upper file.
//! - A lower file of a writable mount is read through the daemon: a reader would not see what is written to the copy
//!   later. Opens that come while it is open go through the daemon too.
//! - With [`Files::All`] it is passed through to readers all the same. When a writer comes while they have it open, the
//!   node lets go of its name and the writer is answered ESTALE: the kernel looks the name up again, gets a new node
//!   for the upper file, and opens that. Those readers go on reading the lower file, and locks of the two are apart.
//! - What cannot be passed through (a layer in an archive, a lower file of several names, a filesystem the kernel
//!   refuses to stack on) is read and written through the daemon.

use std::collections::hash_map::Entry;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use fuser::{
    BackingId, Errno, FileHandle, FopenFlags, Generation, INodeNo, OpenAccMode, OpenFlags,
    ReplyCreate, ReplyOpen,
};
use parking_lot::Mutex;
use rustc_hash::FxHashMap;

use super::adapter::{Adapter, guarded};
use super::convert;
use super::stats::Timer;
use crate::overlay::attr::Changes;
use crate::overlay::open::Backing;
use crate::overlay::{Caller, Found, Overlay};

/// Handles tell at release what kind of open ends.
const THROUGH_DAEMON: FileHandle = FileHandle(0);
const BACKED_READER: FileHandle = FileHandle(1);
const BACKED_WRITER: FileHandle = FileHandle(2);
/// Flags of an open through the daemon.
const CACHED: FopenFlags = FopenFlags::FOPEN_KEEP_CACHE.union(FopenFlags::FOPEN_NOFLUSH);

/// How a node is open now.
#[derive(Debug)]
enum Mode {
    ThroughDaemon,
    Backed {
        id: BackingId,
        /// The backing is a lower file: for readers only.
        lower: bool,
        writers: u32,
    },
}

#[derive(Debug)]
struct Open {
    mode: Mode,
    count: u32,
}

/// Which files the kernel reads and writes itself.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Files {
    /// None (`passthrough=off`).
    #[default]
    None,
    /// Those of the upper, and all of a read-only mount: no difference can be seen (`passthrough=on`).
    Safe,
    /// Lower files of a writable mount too (`passthrough=all`).
    All,
}

/// Open files by node. Locked from the decision about an open to its answer, so that answers agree.
#[derive(Debug)]
pub(super) struct Passthrough {
    /// Lower files too, although they may be copied up.
    lowers: bool,
    nodes: Mutex<FxHashMap<u64, Open>>,
}

/// The answer to an OPEN, or to a CREATE, which opens too.
trait OpenReply {
    fn register(&self, file: &OwnedFd) -> std::io::Result<BackingId>;
    fn backed(self, handle: FileHandle, id: &BackingId);
    fn through_daemon(self);
    fn refused(self, error: Errno);
}

impl OpenReply for ReplyOpen {
    fn register(&self, file: &OwnedFd) -> std::io::Result<BackingId> {
        self.open_backing(file)
    }

    fn backed(self, handle: FileHandle, id: &BackingId) {
        self.opened_passthrough(handle, FopenFlags::FOPEN_NOFLUSH, id);
    }

    fn through_daemon(self) {
        self.opened(THROUGH_DAEMON, CACHED);
    }

    fn refused(self, error: Errno) {
        self.error(error);
    }
}

/// A file that was created, and the answer that opens it.
struct Created {
    ttl: Duration,
    found: Found,
    reply: ReplyCreate,
}

impl OpenReply for Created {
    fn register(&self, file: &OwnedFd) -> std::io::Result<BackingId> {
        self.reply.open_backing(file)
    }

    fn backed(self, handle: FileHandle, id: &BackingId) {
        let attr = convert::file_attr(&self.found.attr);
        let generation = Generation(self.found.generation);
        let flags = FopenFlags::FOPEN_NOFLUSH;
        self.reply
            .created_passthrough(&self.ttl, &attr, generation, handle, flags, id);
    }

    fn through_daemon(self) {
        let attr = convert::file_attr(&self.found.attr);
        let generation = Generation(self.found.generation);
        self.reply
            .created(&self.ttl, &attr, generation, THROUGH_DAEMON, CACHED);
    }

    fn refused(self, error: Errno) {
        self.reply.error(error);
    }
}

/// Whether the kernel lets this process pass files through.
pub(super) fn is_allowed() -> bool {
    /// `CAP_SYS_ADMIN` of linux/capability.h.
    const SYS_ADMIN: u64 = 1 << 21;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let capable = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|set| u64::from_str_radix(set.trim(), 16).ok())
        .is_some_and(|set| set & SYS_ADMIN != 0);
    capable && crate::layer::ids::is_initial_namespace()
}

impl Passthrough {
    /// For the given files; `None` where there are none.
    pub(super) fn of(files: Files) -> Option<Arc<Self>> {
        (files != Files::None).then(|| {
            Arc::new(Self {
                lowers: files == Files::All,
                nodes: Mutex::default(),
            })
        })
    }

    /// Answers an open of `ino`; one for writing has been prepared.
    fn open(&self, overlay: &Overlay, ino: u64, write: bool, reply: impl OpenReply) {
        let mut nodes = self.nodes.lock();
        if nodes.get(&ino).is_some_and(|open| open.must_let_go(write)) {
            let answer = guarded(|| overlay.detach(ino));
            return reply.refused(answer.err().unwrap_or(Errno::ESTALE));
        }
        let open = match nodes.entry(ino) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(free) => match guarded(|| overlay.backing(ino, write, self.lowers)) {
                Ok(backing) => free.insert(Open {
                    mode: mode_for(backing, &reply),
                    count: 0,
                }),
                Err(error) => return reply.refused(error),
            },
        };
        open.count += 1;
        match &mut open.mode {
            Mode::ThroughDaemon => reply.through_daemon(),
            Mode::Backed { id, writers, .. } => {
                if write {
                    *writers += 1;
                    overlay.set_written_behind(ino, true);
                }
                reply.backed(if write { BACKED_WRITER } else { BACKED_READER }, id);
            }
        }
    }

    /// Whether a writer of `ino` needs another node.
    fn must_let_go(&self, ino: u64) -> bool {
        let nodes = self.nodes.lock();
        nodes.get(&ino).is_some_and(|open| open.must_let_go(true))
    }

    /// An open ended.
    fn release(&self, overlay: &Overlay, ino: u64, handle: FileHandle) {
        let mut nodes = self.nodes.lock();
        let Some(open) = nodes.get_mut(&ino) else {
            return;
        };
        open.count = open.count.saturating_sub(1);
        if let Mode::Backed { writers, .. } = &mut open.mode
            && handle == BACKED_WRITER
        {
            *writers = writers.saturating_sub(1);
            if *writers == 0 {
                overlay.set_written_behind(ino, false);
            }
        }
        if open.count == 0 {
            nodes.remove(&ino);
        }
    }
}

impl Open {
    fn must_let_go(&self, write: bool) -> bool {
        write && matches!(self.mode, Mode::Backed { lower: true, .. })
    }
}

fn mode_for(backing: Option<Backing>, reply: &impl OpenReply) -> Mode {
    let Some(Backing { file, lower }) = backing else {
        return Mode::ThroughDaemon;
    };
    match reply.register(&file) {
        Ok(id) => Mode::Backed {
            id,
            lower,
            writers: 0,
        },
        Err(error) => {
            tracing::info!(%error, "the kernel does not pass this file through");
            Mode::ThroughDaemon
        }
    }
}

impl Adapter {
    /// Answers OPEN: ENOSYS, once and for all, unless files are passed through.
    pub(super) fn open_file(
        &self,
        timer: Timer,
        at: INodeNo,
        open: (OpenFlags, Caller),
        reply: ReplyOpen,
    ) {
        let Some(passthrough) = self.passthrough.clone() else {
            return reply.error(Errno::ENOSYS);
        };
        let (INodeNo(ino), (flags, caller)) = (at, open);
        let truncate = flags.0 & libc::O_TRUNC != 0;
        let write = truncate || flags.acc_mode() != OpenAccMode::O_RDONLY;
        if write && passthrough.must_let_go(ino) {
            return passthrough.open(&self.overlay, ino, write, reply);
        }
        let may_block = write && self.overlay.copies_data(ino, !truncate);
        let prepare = move |overlay: &Overlay| {
            if truncate {
                let empty = Changes {
                    size: Some(0),
                    ..Changes::default()
                };
                overlay.set_attr(ino, &empty, &caller).map(drop)
            } else if write {
                overlay.copy_up_data(ino)
            } else {
                Ok(())
            }
        };
        let overlay = Arc::clone(&self.overlay);
        self.answer(timer, may_block, prepare, move |prepared| match prepared {
            Ok(()) => passthrough.open(&overlay, ino, write, reply),
            Err(error) => reply.error(error),
        });
    }

    /// Answers CREATE, which opens the new file for writing.
    pub(super) fn created(&self, found: Found, reply: ReplyCreate) {
        let created = Created {
            ttl: self.ttl,
            found,
            reply,
        };
        match &self.passthrough {
            Some(passthrough) => passthrough.open(&self.overlay, found.ino, true, created),
            None => created.through_daemon(),
        }
    }

    /// An open ended.
    pub(super) fn close_file(&self, ino: INodeNo, handle: FileHandle) {
        if let Some(passthrough) = &self.passthrough {
            passthrough.release(&self.overlay, ino.0, handle);
        }
    }

    /// Whether whoever wants to truncate the file has to look it up again first; see [`Passthrough`].
    pub(super) fn must_look_again(&self, ino: INodeNo) -> Option<Errno> {
        let passthrough = self.passthrough.as_ref()?;
        passthrough.must_let_go(ino.0).then(|| {
            let answer = guarded(|| self.overlay.detach(ino.0));
            answer.err().unwrap_or(Errno::ESTALE)
        })
    }
}
