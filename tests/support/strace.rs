//! strace: counts a daemon's mutating system calls, or kills it or makes it fail at one of them.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::model::mounts::end_of;

/// The system calls that change a filesystem; `?` lets strace skip those it does not know. Opening is one of
/// them where it creates, and stands in for calls too new for strace: what those did is there at the next call.
pub const MUTATING: &str = "?openat,?openat2,?mkdir,?mkdirat,?mknod,?mknodat,?link,?linkat,?symlink,?symlinkat,?unlink,?unlinkat,\
    ?rmdir,?rename,?renameat,?renameat2,?chmod,?fchmod,?fchmodat,?fchmodat2,?chown,?lchown,?fchown,?fchownat,\
    ?truncate,?ftruncate,?fallocate,?setxattr,?lsetxattr,?fsetxattr,?setxattrat,?removexattr,?lremovexattr,\
    ?fremovexattr,?removexattrat,?utimensat,?futimesat,?fsync,?fdatasync,?syncfs,?pwrite64,?pwritev,?pwritev2,\
    ?copy_file_range,?sendfile,?ioctl";

/// strace at work on a daemon.
#[derive(Debug)]
pub struct Tracer {
    strace: Child,
    /// Kept open: strace writes to it when it lets go.
    _messages: BufReader<ChildStderr>,
}

impl Tracer {
    /// Follows the process `daemon`, from now on, writing its calls to `record`. `inject` is what `strace -e inject=`
    /// takes, several of them separated by spaces; `when=` counts per thread.
    pub fn attach(daemon: u32, record: &Path, inject: Option<&str>) -> Result<Self, String> {
        let mut command = Command::new("strace");
        command.args([
            "-f",
            "-p",
            &daemon.to_string(),
            "-e",
            &format!("trace={MUTATING}"),
            "-o",
        ]);
        command
            .arg(record)
            .stdin(Stdio::null())
            .stderr(Stdio::piped());
        for inject in inject.into_iter().flat_map(str::split_whitespace) {
            command.args(["-e", &format!("inject={inject}")]);
        }
        let mut strace = command
            .spawn()
            .map_err(|error| format!("strace: {error}"))?;
        let stderr = strace.stderr.take().ok_or("strace has no stderr")?;
        let mut messages = BufReader::new(stderr);
        let mut line = String::new();
        while !line.contains("attached") {
            line.clear();
            if messages
                .read_line(&mut line)
                .map_err(|error| error.to_string())?
                == 0
            {
                let status = strace.wait().map_err(|error| error.to_string())?;
                return Err(format!("strace did not attach: {status}"));
            }
        }
        Ok(Self {
            strace,
            _messages: messages,
        })
    }

    /// Lets the daemon go on alone.
    pub fn detach(mut self) -> Result<(), String> {
        let strace = Pid::from_child(&self.strace);
        kill_process(strace, Signal::INT).map_err(|error| error.to_string())?;
        end_of(&mut self.strace, Duration::from_secs(20)).map(drop)
    }

    /// Waits until the daemon, and with it strace, has ended.
    pub fn finish(mut self) -> Result<(), String> {
        end_of(&mut self.strace, Duration::from_secs(20)).map(drop)
    }
}

/// How often one thread made each call, at most, in a record of [`Tracer`].
pub fn calls(record: &Path) -> BTreeMap<String, usize> {
    let text = std::fs::read_to_string(record).unwrap_or_default();
    let mut by_thread: BTreeMap<(String, String), usize> = BTreeMap::new();
    for line in text.lines() {
        let Some((thread, rest)) = line.split_once(char::is_whitespace) else {
            continue;
        };
        let Some((call, _)) = rest.trim_start().split_once('(') else {
            continue;
        };
        let known = !call.starts_with("syscall_0x");
        if known
            && call
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        {
            *by_thread
                .entry((thread.to_string(), call.to_string()))
                .or_default() += 1;
        }
    }
    let mut most = BTreeMap::new();
    for ((_, call), count) in by_thread {
        let entry = most.entry(call).or_insert(0);
        *entry = count.max(*entry);
    }
    most
}
