//! The built binary: what it prints, its exit codes, what it leaves behind.

mod command;
mod descriptors;
mod lifecycle;
mod listing;
mod names;
mod panics;
mod privileges;
mod refusals;

use std::ffi::OsStr;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::run::{base_dir, comes_true};

const PLYFS: &str = env!("CARGO_BIN_EXE_plyfs");

/// Directories `lower` (with a file `file`), `below`, `upper`, `work` and `merged`, and a working
/// directory that holds them. Dropping it unmounts what is mounted on `merged`.
struct Place {
    base: TempDir,
}

impl Place {
    fn new() -> Self {
        let base = tempfile::Builder::new()
            .prefix("plyfs-cli-")
            .tempdir_in(base_dir())
            .unwrap();
        fs::set_permissions(base.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for dir in ["lower", "below", "upper", "work", "merged", "tmp"] {
            fs::create_dir(base.path().join(dir)).unwrap();
        }
        fs::write(base.path().join("lower/file"), "from the lower").unwrap();
        fs::write(base.path().join("below/deep"), "from below").unwrap();
        // The kernel names mounts without symlinks.
        assert_eq!(fs::canonicalize(base.path()).unwrap(), base.path());
        Self { base }
    }

    fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.base.path().join(name)
    }

    /// The program under its own name.
    fn plyfs<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        self.program(PLYFS, args)
    }

    /// A program run in the place; temporary files go to `tmp`.
    fn program<S: AsRef<OsStr>>(
        &self,
        program: impl AsRef<OsStr>,
        args: impl IntoIterator<Item = S>,
    ) -> Command {
        let mut command = Command::new(program);
        command
            .args(args)
            .current_dir(self.base.path())
            .env("TMPDIR", self.path("tmp"));
        command.stdin(Stdio::null());
        command
    }

    /// The program under another name.
    fn named(&self, name: &str, args: &[&str]) -> Command {
        let link = self.path(name);
        if !link.exists() {
            std::os::unix::fs::symlink(PLYFS, &link).unwrap();
        }
        self.program(link, args)
    }

    /// Runs plyfs and expects success; what it printed on stdout.
    #[track_caller]
    fn done(&self, args: &[&str]) -> String {
        succeeds(&mut self.plyfs(args))
    }

    /// Unmounts, as [`Self::done`].
    #[track_caller]
    fn umount(&self, mountpoint: &str) -> String {
        let mut umount = self.plyfs(["umount", mountpoint]);
        let mut output = None;
        comes_true(|| {
            let done = output.insert(umount.output().unwrap());
            done.status.code() != Some(5)
        });
        silent(&umount, &output.unwrap())
    }

    /// Mounts `lower` writable on `merged`, with more arguments.
    #[track_caller]
    fn mount(&self, more: &[&str]) {
        let args = [
            "mount", "--lower", "lower", "--upper", "upper", "--work", "work", "merged",
        ];
        self.done(&[&args[..], more].concat());
    }

    /// The last mount on `merged` in /proc/self/mountinfo, as its fields.
    fn mountinfo(&self) -> Option<Vec<String>> {
        let merged = self.path("merged").to_str().unwrap().to_owned();
        let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let lines = text
            .lines()
            .map(|line| line.split(' ').map(str::to_owned).collect());
        lines.rev().find(|fields: &Vec<String>| fields[4] == merged)
    }

    fn is_mounted(&self) -> bool {
        self.mountinfo().is_some()
    }

    /// What `mounts --json` says of `merged`.
    #[track_caller]
    fn entry(&self) -> Value {
        let all: Value = serde_json::from_str(&self.done(&["mounts", "--json"])).unwrap();
        let merged = self.path("merged").to_str().unwrap().to_owned();
        let mut entries = all.as_array().unwrap().iter();
        let entry = entries.find(|entry| entry["mountpoint"] == merged.as_str());
        entry
            .unwrap_or_else(|| panic!("{merged} is not listed in {all}"))
            .clone()
    }

    /// The process that serves `merged`.
    #[track_caller]
    fn daemon(&self) -> Daemon {
        let pid = self.entry()["pid"].as_i64().expect("a pid");
        Daemon::of(pid.try_into().unwrap())
    }

    /// Names in `tmp`: what an ephemeral mount left.
    fn temporaries(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.path("tmp")).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        while self.is_mounted() {
            let merged = self.path("merged");
            let status = self.plyfs(["umount", "-l"]).arg(&merged).status().unwrap();
            assert!(status.success(), "cannot clear away {}", merged.display());
        }
    }
}

struct Daemon {
    pid: Pid,
    handle: OwnedFd,
}

impl Daemon {
    fn of(pid: i32) -> Self {
        let pid = Pid::from_raw(pid).unwrap();
        Self {
            pid,
            handle: pidfd_open(pid, PidfdFlags::empty()).unwrap(),
        }
    }

    #[track_caller]
    fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::pidfd_send_signal(&self.handle, signal).unwrap();
    }

    /// Waits for the end of the process.
    #[track_caller]
    fn ended(&self) {
        let timeout = Timespec {
            tv_sec: 20,
            tv_nsec: 0,
        };
        let ready = poll(
            &mut [PollFd::new(&self.handle, PollFlags::IN)],
            Some(&timeout),
        )
        .unwrap();
        assert_eq!(ready, 1, "the daemon goes on");
    }

    fn proc(&self, file: &str) -> PathBuf {
        format!("/proc/{}/{file}", self.pid.as_raw_nonzero()).into()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Runs `command`, expects success and silence on stderr; its stdout.
#[track_caller]
fn succeeds(command: &mut Command) -> String {
    let output = command.output().unwrap();
    silent(command, &output)
}

/// What a command printed that succeeded and said nothing on stderr.
#[track_caller]
fn silent(command: &Command, output: &Output) -> String {
    let stderr = text(&output.stderr);
    assert!(
        output.status.success(),
        "{command:?}: {}: {stderr}",
        output.status
    );
    assert_eq!(stderr, "", "{command:?}");
    text(&output.stdout)
}

/// Runs `command`, expects `code` and exactly one line on stderr that starts with `plyfs: `; the
/// rest of that line.
#[track_caller]
fn fails(command: &mut Command, code: i32) -> String {
    sentence(&command.output().unwrap(), code)
}

#[track_caller]
fn sentence(output: &Output, code: i32) -> String {
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "not one line: {stderr:?}");
    let sentence = stderr.trim_end().strip_prefix("plyfs: ");
    sentence
        .unwrap_or_else(|| panic!("not ours: {stderr:?}"))
        .to_owned()
}

#[track_caller]
fn assert_contains(text: &str, part: &str) {
    assert!(text.contains(part), "{part:?} is not in {text:?}");
}
