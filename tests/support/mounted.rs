//! A mounted stack: paths into it, comparisons, and an unmount that always happens.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, panicking, sleep};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tempfile::TempDir;

use super::archive::archive;
use super::disk::{View, fingerprint, read};
use super::fixture::SideMount;
use super::run::{Backend, Privilege, backend, extra_options, is_root, privilege};
use super::tree::{Entry, compare, parse};

/// The directories of a mount and its options.
#[derive(Debug)]
pub struct Stack {
    pub base: TempDir,
    pub lowers: Vec<PathBuf>,
    /// The lowers are given as tars.
    pub archived: bool,
    pub upper: Option<PathBuf>,
    pub work: PathBuf,
    pub merged: PathBuf,
    pub options: Vec<String>,
    /// What strace is told to do to the next mount.
    pub tracing: Option<String>,
}

/// A mounted [`Stack`]. Dropping it unmounts, waits for the daemon's end, and checks that the
/// lowers are what they were.
#[derive(Debug)]
pub struct Mounted {
    /// The daemons of the current mount; none for the kernel.
    daemons: Vec<OwnedFd>,
    /// Dropped to end the watch over the daemons.
    watch: Option<Sender<()>>,
    live: bool,
    /// Dropped after the unmount and before the directories.
    _side_mounts: Vec<SideMount>,
    stack: Stack,
    fingerprints: Option<Vec<String>>,
    check_by_kernel: bool,
}

impl Mounted {
    pub(super) fn new(
        stack: Stack,
        side_mounts: Vec<SideMount>,
        fingerprints: Option<Vec<String>>,
        check_by_kernel: bool,
    ) -> Result<Self, String> {
        let mut mounted = Self {
            stack,
            daemons: Vec::new(),
            watch: None,
            live: false,
            _side_mounts: side_mounts,
            fingerprints,
            check_by_kernel,
        };
        mounted.mount()?;
        Ok(mounted)
    }

    /// Mounts the stack again after [`Self::umount`].
    pub fn mount(&mut self) -> Result<(), String> {
        assert!(!self.live, "already mounted");
        match backend() {
            Backend::Kernel => self.mount_kernel()?,
            Backend::Plyfs => self.mount_plyfs()?,
        }
        self.live = true;
        Ok(())
    }

    /// The options that name the layers: `lowerdir=...`, `upperdir=...`, `workdir=...`.
    fn layer_options(&self) -> Vec<String> {
        let base = self.stack.base.path();
        let lowers = self.stack.lowers.iter().enumerate().map(|(number, dir)| {
            if self.stack.archived {
                archive(dir, &base.join(format!("l{number}.tar")))
            } else {
                dir.clone()
            }
        });
        let lowers: Vec<_> = lowers.map(|l| l.to_str().unwrap().to_owned()).collect();
        let mut options = vec![format!("lowerdir={}", lowers.join(":"))];
        if let Some(upper) = &self.stack.upper {
            options.push(format!("upperdir={}", upper.display()));
            options.push(format!("workdir={}", self.stack.work.display()));
        }
        options
    }

    fn mount_kernel(&self) -> Result<(), String> {
        let mut options = self.layer_options();
        if self.stack.upper.is_none() && self.stack.lowers.len() == 1 {
            // Without an upper the kernel wants two lowers at least.
            let empty = self.stack.base.path().join("empty");
            fs::create_dir_all(&empty).unwrap();
            options[0] = format!("{}:{}", options[0], empty.display());
        }
        let kind = if is_root() {
            "redirect_dir=on,index=on"
        } else {
            "userxattr"
        };
        options.push(kind.to_owned());
        options.extend_from_slice(&self.stack.options);
        let options = options.join(",");
        let options = std::ffi::CString::new(options).unwrap();
        let flags = MountFlags::empty();
        mount(
            "overlay",
            &self.stack.merged,
            "overlay",
            flags,
            options.as_c_str(),
        )
        .map_err(|error| error.to_string())
    }

    fn mount_plyfs(&mut self) -> Result<(), String> {
        let mut options = self.layer_options();
        options.extend(extra_options());
        options.extend_from_slice(&self.stack.options);
        let options = options.join(",");
        // A file, not a pipe: a daemon that keeps its stderr must not keep us waiting.
        let log = self.stack.base.path().join("mount.log");
        let log_file = File::create(&log).unwrap();
        let program = env!("CARGO_BIN_EXE_plyfs");
        let mut command = match self.stack.tracing.take() {
            None => Command::new(program),
            Some(option) => {
                // As a grandchild, strace does not hold up the mount command.
                let mut strace = Command::new("strace");
                strace.args(["-D", "-f", "-qq", "-o", "/dev/null", "-e", &option, program]);
                strace
            }
        };
        command
            .args(["mount", "-o", &options])
            .arg(&self.stack.merged);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log_file);
        let status = command.status().unwrap();
        let said = fs::read_to_string(&log).unwrap();
        if !status.success() {
            return Err(format!("{status}: {}", said.trim()));
        }
        self.daemons = daemons_of(&self.stack.merged);
        self.watch = Some(watch(&self.daemons));
        assert!(
            !self.daemons.is_empty(),
            "plyfs exited 0 but no daemon runs: {}",
            said.trim()
        );
        Ok(())
    }

    /// Unmounts; an error when something keeps the mount busy.
    pub fn try_umount(&mut self) -> io::Result<()> {
        // The child of another test has copies of our descriptors between its fork and its exec.
        let mut attempts = 0;
        while let Err(error) = self.umount_once() {
            attempts += 1;
            if attempts == 1000 {
                return Err(error);
            }
            sleep(Duration::from_millis(10));
        }
        self.live = false;
        self.wait_for_daemons();
        Ok(())
    }

    fn umount_once(&self) -> io::Result<()> {
        if privilege() != Privilege::User {
            return Ok(unmount(&self.stack.merged, UnmountFlags::empty())?);
        }
        let output = Command::new("fusermount3")
            .arg("-u")
            .arg(&self.stack.merged)
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        if output.status.success() {
            Ok(())
        } else {
            Err(io::Error::other(said))
        }
    }

    /// Unmounts and waits until the daemon has ended.
    pub fn umount(&mut self) {
        self.try_umount()
            .unwrap_or_else(|error| panic!("umount: {error}"));
    }

    /// Unmounts and mounts the same stack again.
    pub fn remount(&mut self) {
        self.umount();
        self.mount()
            .unwrap_or_else(|error| panic!("the second mount failed: {error}"));
    }

    /// Kills the daemon with SIGKILL and removes the dead mount.
    pub fn kill(&mut self) {
        for daemon in &self.daemons {
            match pidfd_send_signal(daemon, Signal::KILL) {
                // It has been killed by other means.
                Ok(()) | Err(Errno::SRCH) => {}
                Err(error) => panic!("kill: {error}"),
            }
        }
        self.wait_for_daemons();
        self.detach();
    }

    fn detach(&mut self) {
        if privilege() == Privilege::User {
            let status = Command::new("fusermount3")
                .arg("-uz")
                .arg(&self.stack.merged)
                .status();
            assert!(status.unwrap().success(), "fusermount3 -uz");
        } else {
            unmount(&self.stack.merged, UnmountFlags::DETACH).unwrap();
        }
        self.live = false;
    }

    fn wait_for_daemons(&mut self) {
        self.watch = None;
        for daemon in std::mem::take(&mut self.daemons) {
            let timeout = Timespec {
                tv_sec: 20,
                tv_nsec: 0,
            };
            let ended = poll(&mut [PollFd::new(&daemon, PollFlags::IN)], Some(&timeout)).unwrap();
            if ended == 0 {
                pidfd_send_signal(&daemon, Signal::KILL).ok();
                panic!(
                    "the daemon of {} outlives its mount",
                    self.stack.merged.display()
                );
            }
        }
    }

    /// The process that serves the mount. Not for the kernel.
    pub fn daemon(&self) -> u32 {
        let fd = self.daemons.first().expect("a daemon").as_raw_fd();
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap();
        let pid = info.lines().find_map(|line| line.strip_prefix("Pid:"));
        pid.expect("a pidfd").trim().parse().unwrap()
    }

    /// A path in the merged view.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.stack.merged.join(path)
    }

    /// A path in the upper.
    pub fn upper(&self, path: impl AsRef<Path>) -> PathBuf {
        self.stack.upper.as_ref().expect("an upper").join(path)
    }

    /// A path in a lower; 0 is the topmost.
    pub fn lower(&self, number: usize, path: impl AsRef<Path>) -> PathBuf {
        self.stack.lowers[number].join(path)
    }

    /// A path in the workdir.
    pub fn work(&self, path: impl AsRef<Path>) -> PathBuf {
        self.stack.work.join(path)
    }

    /// A directory for whatever else the test needs, outside of all layers.
    pub fn aside(&self, path: impl AsRef<Path>) -> PathBuf {
        self.stack.base.path().join(path)
    }

    /// The mount options beyond the layers; a change takes effect at the next mount.
    pub fn options(&mut self) -> &mut Vec<String> {
        &mut self.stack.options
    }

    /// Compares the merged view with its text.
    #[track_caller]
    pub fn assert_merged(&self, text: &str) {
        assert_tree("merged view", &self.stack.merged, View::Merged, text);
    }

    /// Compares the upper with its text; marks are part of it, private xattrs are not.
    #[track_caller]
    pub fn assert_upper(&self, text: &str) {
        assert_tree("upper", &self.upper(""), View::Layer, text);
    }

    /// Compares the merged view, then the upper at rest, then the view of a new mount, and, when
    /// we are plyfs and may mount overlayfs, the view the kernel gives of our upper.
    #[track_caller]
    pub fn assert_state(&mut self, merged: &str, upper: &str) {
        self.assert_merged(merged);
        self.umount();
        self.assert_upper(upper);
        let temporaries = self.temporaries();
        assert!(
            temporaries.is_empty(),
            "left over in the workdir: {temporaries:?}"
        );
        if self.check_by_kernel && is_root() {
            self.assert_kernel_sees(merged);
        }
        self.mount()
            .unwrap_or_else(|error| panic!("the second mount failed: {error}"));
        assert_tree(
            "merged view after a remount",
            &self.stack.merged,
            View::Merged,
            merged,
        );
    }

    /// What lies in the workdir beside the whiteout that the kernel keeps for its next use.
    pub fn temporaries(&self) -> Vec<PathBuf> {
        let Ok(list) = fs::read_dir(self.stack.work.join("work")) else {
            return Vec::new();
        };
        let is_whiteout = |path: &PathBuf| {
            let meta = fs::symlink_metadata(path).unwrap();
            meta.file_type().is_char_device() && meta.rdev() == 0
        };
        let paths = list.map(|item| item.unwrap().path());
        paths.filter(|path| !is_whiteout(path)).collect()
    }

    #[track_caller]
    fn assert_kernel_sees(&self, merged: &str) {
        let view = tempfile::tempdir_in(self.stack.base.path()).unwrap();
        let layers = self.stack.upper.iter().chain(&self.stack.lowers);
        let layers: Vec<_> = layers.map(|layer| layer.to_str().unwrap()).collect();
        let options = format!("lowerdir={},redirect_dir=on,metacopy=on", layers.join(":"));
        let options = std::ffi::CString::new(options).unwrap();
        let flags = MountFlags::empty();
        mount("overlay", view.path(), "overlay", flags, options.as_c_str()).unwrap();
        let mut expected = parse(merged);
        // The kernel knows the union's link counts only with an upper and its index.
        for entry in &mut expected {
            entry.nlink = None;
        }
        let result = compare(
            &expected,
            &without_root(&read(view.path(), View::Merged), merged),
        );
        // A process another test is just starting may still hold a descriptor of ours for a moment.
        unmount(view.path(), UnmountFlags::DETACH).unwrap();
        if let Err(diff) = result {
            panic!("what the kernel sees with this upper:\n{diff}");
        }
    }

    /// Runs a shell script in the merged view; its standard output, trimmed.
    #[track_caller]
    pub fn sh(&self, script: &str) -> String {
        let mut command = Command::new("sh");
        command
            .args(["-euc", script])
            .current_dir(&self.stack.merged);
        let output = command.output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{script}: {} {stderr}",
            output.status
        );
        String::from_utf8(output.stdout)
            .unwrap()
            .trim_end()
            .to_owned()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.live && self.try_umount().is_err() {
            self.detach();
            self.wait_for_daemons();
            assert!(panicking(), "something kept the mount busy");
        }
        if let (false, Some(before)) = (panicking(), &self.fingerprints) {
            for (lower, before) in self.stack.lowers.iter().zip(before) {
                assert_eq!(
                    &fingerprint(lower),
                    before,
                    "the lower {} changed",
                    lower.display()
                );
            }
        }
    }
}

fn without_root(found: &[Entry], text: &str) -> Vec<Entry> {
    let states_root = parse(text).iter().any(|entry| entry.path == b".");
    found
        .iter()
        .filter(|entry| states_root || entry.path != b".")
        .cloned()
        .collect()
}

#[track_caller]
fn assert_tree(what: &str, root: &Path, view: View, text: &str) {
    let found = without_root(&read(root, view), text);
    if let Err(diff) = compare(&parse(text), &found) {
        panic!("the {what} is not as expected (- expected, + found):\n{diff}");
    }
}

/// How long a test may take with one mount.
const PATIENCE: Duration = Duration::from_secs(100);

/// Kills daemons that are still mounted after [`PATIENCE`]: the requests that hang then fail, and
/// the other tests go on.
fn watch(daemons: &[OwnedFd]) -> Sender<()> {
    let daemons: Vec<_> = daemons
        .iter()
        .map(|daemon| daemon.try_clone().unwrap())
        .collect();
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        if receiver.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
            println!("a mount of more than {PATIENCE:?} is taken for a hang: its daemon is killed");
            for daemon in daemons {
                pidfd_send_signal(daemon, Signal::KILL).ok();
            }
        }
    });
    sender
}

/// The processes whose command line names the mount point.
fn daemons_of(merged: &Path) -> Vec<OwnedFd> {
    let mut daemons = Vec::new();
    for item in fs::read_dir("/proc").unwrap() {
        let item = item.unwrap();
        let number = item
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<i32>().ok());
        let Some(pid) = number.and_then(Pid::from_raw) else {
            continue;
        };
        let Ok(arguments) = fs::read(item.path().join("cmdline")) else {
            continue;
        };
        if arguments
            .split(|byte| *byte == 0)
            .any(|argument| argument == merged.as_os_str().as_bytes())
        {
            daemons.extend(pidfd_open(pid, PidfdFlags::empty()));
        }
    }
    daemons
}
