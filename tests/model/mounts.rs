//! Mounts a stack of layers, by the kernel or by a daemon.

use std::ffi::CString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::snapshot::Listing;
use crate::support::run::comes_true;

/// How long to wait for what should happen at once.
const PATIENCE: Duration = Duration::from_secs(20);

/// Who merges.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Engine {
    /// The kernel's overlayfs, the oracle.
    Kernel,
    /// A program with fuse-overlayfs' calling convention.
    Daemon(PathBuf),
}

impl Engine {
    /// The program under test.
    pub(crate) fn plyfs() -> Self {
        Self::Daemon(PathBuf::from(env!("CARGO_BIN_EXE_plyfs")))
    }

    /// What its directory listings may contain.
    pub(crate) fn listing(&self) -> Listing {
        if *self == Self::Kernel {
            Listing::WithWhiteouts
        } else {
            Listing::Strict
        }
    }

    /// What `variable` asks for: unset = plyfs, `kernel`, or the path of another program.
    pub(crate) fn from_env(variable: &str) -> Self {
        match std::env::var_os(variable) {
            None => Self::plyfs(),
            Some(kernel) if kernel == "kernel" => Self::Kernel,
            Some(program) => Self::Daemon(program.into()),
        }
    }
}

/// Layers and options of one mount.
#[derive(Clone, Debug)]
pub(crate) struct Stack {
    /// From the top.
    pub(crate) lowers: Vec<PathBuf>,
    pub(crate) upper: PathBuf,
    pub(crate) work: PathBuf,
    /// Options besides the directories.
    pub(crate) options: String,
}

impl Stack {
    fn data(&self) -> String {
        let lowers: Vec<String> = self
            .lowers
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        format!(
            "lowerdir={},upperdir={},workdir={},{}",
            lowers.join(":"),
            self.upper.display(),
            self.work.display(),
            self.options
        )
    }
}

/// A mounted stack; unmounted on drop.
pub(crate) struct Mounted {
    mountpoint: PathBuf,
    daemon: Option<Child>,
    log: PathBuf,
    live: bool,
}

impl Mounted {
    /// Mounts `stack` on the directory `mountpoint`.
    pub(crate) fn new(engine: &Engine, stack: &Stack, mountpoint: &Path) -> Result<Self, String> {
        for dir in [&stack.upper, &stack.work, &mountpoint.to_path_buf()] {
            std::fs::create_dir_all(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        }
        let log = mountpoint.with_extension("log");
        let mut mounted = Self {
            mountpoint: mountpoint.to_path_buf(),
            daemon: None,
            log,
            live: false,
        };
        match engine {
            Engine::Kernel => {
                let data = CString::new(stack.data()).expect("paths have no NUL");
                let flags = MountFlags::empty();
                while_busy(|| mount("overlay", mountpoint, "overlay", flags, Some(&*data)))
                    .map_err(|errno| {
                        format!("kernel overlayfs refuses {}: {errno:?}", stack.data())
                    })?;
            }
            Engine::Daemon(program) => mounted.start(program, stack)?,
        }
        mounted.live = true;
        Ok(mounted)
    }

    fn start(&mut self, program: &Path, stack: &Stack) -> Result<(), String> {
        let log = File::create(&self.log).map_err(|error| error.to_string())?;
        let before = device(&self.mountpoint);
        // The kernel's overlayfs has devices unless told otherwise.
        let mut options = format!("{},dev", stack.data());
        if let Ok(more) = std::env::var("PLYFS_MODEL_OPTIONS") {
            options = format!("{options},{more}");
        }
        let child = Command::new(program)
            .args(["-f", "-o", &options])
            .arg(&self.mountpoint)
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(|error| error.to_string())?)
            .stderr(log)
            .spawn()
            .map_err(|error| format!("{}: {error}", program.display()))?;
        let child = self.daemon.insert(child);
        let table = File::open("/proc/self/mountinfo").map_err(|error| error.to_string())?;
        let deadline = Instant::now() + PATIENCE;
        while device(&self.mountpoint) == before {
            let ended = child.try_wait().map_err(|error| error.to_string())?;
            if ended.is_some() || Instant::now() > deadline {
                return Err(format!(
                    "{} did not mount: {}",
                    program.display(),
                    self.log()
                ));
            }
            // The kernel reports a change of the mount table as an error condition of this file; the
            // limit is there to notice that the program has ended.
            let mut fds = [PollFd::new(&table, PollFlags::PRI)];
            let limit = Timespec {
                tv_sec: 0,
                tv_nsec: 50_000_000,
            };
            poll(&mut fds, Some(&limit)).map_err(|errno| errno.to_string())?;
        }
        Ok(())
    }

    /// What the daemon has printed.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log)
            .unwrap_or_default()
            .trim()
            .to_string()
    }

    /// The process id of the daemon.
    pub(crate) fn daemon(&self) -> Option<u32> {
        self.daemon.as_ref().map(Child::id)
    }

    /// Unmounts, and waits until the daemon has ended in order.
    pub(crate) fn unmount(mut self) -> Result<(), String> {
        self.live = false;
        let unmounted = while_busy(|| unmount(&self.mountpoint, UnmountFlags::empty()));
        if let Err(errno) = unmounted {
            self.detach();
            return Err(format!(
                "unmounting {}: {errno:?}",
                self.mountpoint.display()
            ));
        }
        let Some(mut daemon) = self.daemon.take() else {
            return Ok(());
        };
        let status = end_of(&mut daemon, PATIENCE)?;
        if status.success() {
            Ok(())
        } else {
            Err(format!("{status}: {}", self.log()))
        }
    }

    /// Takes away the mount of a daemon that was killed, as a user would.
    pub(crate) fn detach(&mut self) {
        self.live = false;
        let _gone = unmount(&self.mountpoint, UnmountFlags::DETACH);
        if let Some(mut daemon) = self.daemon.take() {
            let _gone = daemon.kill();
            let _gone = daemon.wait();
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.live || self.daemon.is_some() {
            self.detach();
        }
    }
}

/// Tries again while the mount is held by others.
fn while_busy(mut work: impl FnMut() -> Result<(), Errno>) -> Result<(), Errno> {
    let mut result = Ok(());
    comes_true(|| {
        result = work();
        result != Err(Errno::BUSY)
    });
    result
}

/// Waits for a process to end, and ends it when it does not.
pub(crate) fn end_of(child: &mut Child, patience: Duration) -> Result<ExitStatus, String> {
    let wait = |child: &mut Child| child.wait().map_err(|error| error.to_string());
    let id = Pid::from_child(child);
    let handle = pidfd_open(id, PidfdFlags::empty()).map_err(|errno| errno.to_string())?;
    let limit = Timespec {
        tv_sec: patience.as_secs().cast_signed(),
        tv_nsec: 0,
    };
    let ended = poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&limit));
    if ended == Ok(0) {
        child.kill().map_err(|error| error.to_string())?;
        wait(child)?;
        return Err(format!("process {id:?} did not end in {patience:?}"));
    }
    wait(child)
}

/// The device under `path`: changes when something is mounted there, and answers only when the mount does.
fn device(path: &Path) -> Option<u64> {
    rustix::fs::stat(path).ok().map(|stat| stat.st_dev)
}
