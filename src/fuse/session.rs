//! One mounted session: mount, serve, unmount.

use std::path::PathBuf;
use std::sync::Arc;

use rustix::mount::MountPropagationFlags;

use super::adapter::Adapter;
use super::mount;
use super::passthrough::{self, Passthrough};
use super::poll::Poller;
use super::walker::Walker;
use crate::layer::error::{Cause, SetupError};
use crate::overlay::Overlay;
use crate::overlay::options::Acl;

/// How the reader waits for requests.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Poll {
    /// Spin during a burst where that measures faster, block when idle.
    #[default]
    Auto,
    /// Always block.
    Off,
    /// Spin this many microseconds after the last request.
    Micros(u32),
}

/// Where and how to mount.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "independent mount flags")]
pub struct SessionConfig {
    /// The directory to cover.
    pub mountpoint: PathBuf,
    /// First column of /proc/mounts.
    pub source: String,
    /// Other users may use the mount (needs root or `user_allow_other`).
    pub allow_other: bool,
    /// Mount read-only although there is an upper.
    pub read_only: bool,
    /// Honour suid bits.
    pub suid: bool,
    /// Honour device nodes.
    pub dev: bool,
    /// Allow executing files.
    pub exec: bool,
    /// A process of its own unmounts when the daemon dies (`auto_unmount`).
    pub auto_unmount: bool,
    /// Threads that read requests.
    pub threads: usize,
    /// How the reader waits.
    pub poll: Poll,
    /// Files that the kernel reads and writes itself.
    pub passthrough: passthrough::Files,
    /// `SELinux` mount options handed to the kernel verbatim, e.g. `context="..."`. It takes none of a FUSE mount in a
    /// user namespace, where engines send them all the same: they are left out there.
    pub security: Vec<String>,
    /// How mounts below it spread, where it may be said.
    pub propagation: Option<MountPropagationFlags>,
    /// What `plyfs mounts` shows: JSON text describing stack and options.
    pub description: String,
}

/// A mounted filesystem whose INIT has been answered; requests wait until [`Session::run`].
#[derive(Debug)]
pub struct Session {
    connection: fuser::Session<Adapter>,
    unmounter: Unmounter,
    /// Dropped last: only then is there nothing left to unmount.
    _watcher: Option<mount::Watcher>,
}

/// Ends a [`Session`] from another thread.
#[derive(Clone, Debug)]
pub struct Unmounter {
    mountpoint: Arc<PathBuf>,
    /// `MAJOR:MINOR` of the filesystem, as mountinfo has it.
    device: Option<Arc<str>>,
}

impl Session {
    /// Mounts `overlay`. On error nothing is left mounted.
    pub fn mount(overlay: Overlay, config: &SessionConfig) -> Result<Self, SetupError> {
        let mountpoint = mount::resolve_mountpoint(&config.mountpoint)?;
        overlay.check_mountpoint(&mountpoint)?;
        overlay.set_mountpoint(&mountpoint);
        let config = SessionConfig {
            read_only: config.read_only || overlay.is_read_only(),
            ..config.clone()
        };
        // Without xattrs the kernel's question for an ACL would be an error, and so every access of a file by others.
        let acl = overlay.options().xattrs
            && match overlay.options().acl {
                Acl::On => true,
                Acl::Off => false,
                Acl::Auto => config.allow_other,
            };
        let mounted = mount::mount(&mountpoint, &config)?;
        let unmounter = Unmounter {
            device: mount::device_number(&mountpoint).map(Into::into),
            mountpoint: Arc::new(mountpoint),
        };
        let room = Arc::default();
        let poller = rustix::io::fcntl_dupfd_cloexec(&mounted.device, 0)
            .ok()
            .and_then(|device| Poller::start(device, config.poll, config.threads, &room));
        let description = config.description.clone();
        let walker = Walker::new(&overlay, config.threads, room);
        let adapter = Adapter::new(
            Arc::new(overlay),
            acl,
            description,
            poller,
            walker,
            Passthrough::of(config.passthrough),
        );
        let mut settings = fuser::Config::default();
        settings.n_threads = Some(config.threads.max(1));
        // The kernel admits only who may use the mount; fuser need not check again.
        let acl = fuser::SessionACL::All;
        match fuser::Session::from_fd(adapter, mounted.device, acl, settings) {
            Ok(connection) => Ok(Self {
                connection,
                unmounter,
                _watcher: mounted.watcher,
            }),
            Err(error) => {
                if let Err(error) = unmounter.unmount(true) {
                    tracing::warn!(%error, "cannot unmount after a failed start");
                }
                Err(SetupError::new(
                    Cause::Fuse,
                    format!("the kernel refused to start: {error}"),
                ))
            }
        }
    }

    /// Refuses what can be refused before any layer is opened: a bad mountpoint, no /dev/fuse.
    pub fn check(config: &SessionConfig) -> Result<(), SetupError> {
        mount::resolve_mountpoint(&config.mountpoint)?;
        if config.passthrough != passthrough::Files::None && !passthrough::is_allowed() {
            return Err(SetupError::new(
                Cause::Fuse,
                "option 'passthrough' needs root outside of user namespaces (CAP_SYS_ADMIN): leave it out",
            ));
        }
        mount::check_device()
    }

    /// A handle that unmounts.
    pub fn unmounter(&self) -> Unmounter {
        self.unmounter.clone()
    }

    /// Serves requests until the filesystem is unmounted; flushes and releases the stack.
    pub fn run(self) -> std::io::Result<()> {
        match self.connection.run() {
            // The connection was aborted: as much an end as an unmount.
            Err(error) if error.raw_os_error() == Some(libc::ECONNABORTED) => Ok(()),
            other => other,
        }
    }
}

impl Unmounter {
    /// Whether the mount can still be reached by a name in this mount namespace; not after `umount -l`.
    pub fn is_attached(&self) -> bool {
        self.is_attached_for("self")
    }

    /// The same in the mount namespace of another process, given by its number; it may, too, if that cannot be told.
    pub fn is_attached_for(&self, process: &str) -> bool {
        let device = self.device.as_deref();
        device.is_none_or(|device| mount::is_attached(device, process))
    }

    /// Unmounts; `lazy` detaches a busy mount.
    pub fn unmount(&self, lazy: bool) -> std::io::Result<()> {
        mount::unmount(&self.mountpoint, lazy)
    }
}
