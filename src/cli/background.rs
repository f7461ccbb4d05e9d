//! Going to the background without fork: the program starts itself again as a child that serves.
//!
//! ```text
//! parent (in front)                      child (serves)
//! parse the command line
//! start /proc/self/exe with the same     parse the same command line, own session
//! arguments and a last one that names    open layers, mount
//! the role; stdout = a pipe        <---  "ready", or one sentence that says what is wrong
//! ask the mount for an answer, exit 0    working directory /, stdio /dev/null, serve
//! ```
//!
//! The same command line means that relative paths, the name the program was called by and the inherited
//! environment need no translation. A child of `mount ... -- CMD` keeps two pipes: when its stdin ends,
//! because CMD has ended or the parent was killed, it unmounts.

use std::ffi::{CStr, OsString};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};

use rustix::stdio;

use super::exit::{Exit, Failure, why};
use super::output;

/// What this process is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Role {
    /// Talks to whoever called; also serves, when asked to stay in the foreground.
    Front,
    /// Serves until unmounted.
    Background,
    /// Serves until unmounted or until the process in front closes our stdin.
    Companion,
}

const BACKGROUND: &str = "--plyfs-role=background";
const COMPANION: &str = "--plyfs-role=companion";
/// What a process that serves is called.
pub(super) const DAEMON: &CStr = c"plyfs";
const READY: &str = "ready";
const DETACHED: &str = "detached";

impl Role {
    /// Takes the role off the end of the arguments.
    pub(super) fn take(args: &mut Vec<OsString>) -> Self {
        let role = match args.last() {
            Some(last) if last == BACKGROUND => Self::Background,
            Some(last) if last == COMPANION => Self::Companion,
            _ => return Self::Front,
        };
        args.pop();
        role
    }

    /// Says why it failed: to the user, or to the process in front, which passes it on.
    pub(super) fn complain(self, failure: &Failure) {
        match self {
            Self::Front => output::complain(&failure.sentence),
            // If the parent is gone nobody is left to tell.
            _ => drop(say(&failure.sentence)),
        }
    }

    /// Leaves the terminal and the process group of the parent, and takes a name that `ps` shows: after
    /// its start as /proc/self/exe it would be "exe".
    pub(super) fn leave_session(self) -> io::Result<()> {
        rustix::thread::set_name(DAEMON)?;
        if self != Self::Front {
            rustix::process::setsid()?;
        }
        Ok(())
    }

    /// Tells the parent that the mount is there; fails if the parent was killed meanwhile.
    pub(super) fn ready(self) -> io::Result<()> {
        if self == Self::Front {
            Ok(())
        } else {
            say(READY)
        }
    }

    /// Lets go of all that the caller may wait for or want to unmount: stdio and working directory.
    pub(super) fn let_go(self, keep_stderr: bool) -> io::Result<()> {
        if self == Self::Front {
            return Ok(());
        }
        rustix::process::chdir("/")?;
        let null = File::options().read(true).write(true).open("/dev/null")?;
        if self == Self::Background {
            stdio::dup2_stdin(&null)?;
            stdio::dup2_stdout(&null)?;
        }
        if !keep_stderr {
            stdio::dup2_stderr(&null)?;
        }
        Ok(())
    }

    /// Tells that the mount was still in use and goes on without a name.
    pub(super) fn detached(self) -> io::Result<()> {
        if self == Self::Companion {
            say(DETACHED)
        } else {
            Ok(())
        }
    }
}

/// Blocks until the process in front has closed its end of our stdin.
pub(super) fn front_is_gone() {
    let mut byte = [0];
    while let Ok(1) = io::stdin().lock().read(&mut byte) {}
}

fn say(line: &str) -> io::Result<()> {
    let line = format!("{}\n", line.replace('\n', " "));
    let mut stdout = io::stdout().lock();
    stdout.write_all(line.as_bytes())?;
    stdout.flush()
}

/// A child that serves a mount, seen from the process in front.
#[derive(Debug)]
pub(super) struct Daemon {
    child: Child,
    reports: BufReader<ChildStdout>,
    /// The daemon unmounts when this is closed.
    lifeline: Option<ChildStdin>,
}

/// How the daemon of a command ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Ended {
    /// Unmounted and gone.
    Gone(ExitStatus),
    /// The mount was in use: it has no name any more, the daemon stays until the last file is closed.
    Detached,
}

impl Daemon {
    /// Its process id.
    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Starts the program again with `args` in `role` and waits until its mount is there.
    pub(super) fn start(args: &[OsString], role: Role) -> Result<Self, Failure> {
        let (role, stdin) = match role {
            Role::Companion => (COMPANION, Stdio::piped()),
            _ => (BACKGROUND, Stdio::null()),
        };
        let (name, args) = args
            .split_first()
            .ok_or_else(|| Failure::usage("no arguments"))?;
        let mut child = Command::new("/proc/self/exe")
            .arg0(name)
            .args(args)
            .arg(role)
            .stdin(stdin)
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| {
                Failure::other(format!("cannot start /proc/self/exe: {}", why(&error)))
            })?;
        let stdout = child
            .stdout
            .take()
            .ok_or_else(|| Failure::other("the pipe is missing"))?;
        let lifeline = child.stdin.take();
        let mut daemon = Self {
            child,
            reports: BufReader::new(stdout),
            lifeline,
        };
        match daemon.report() {
            line if line == READY => Ok(daemon),
            sentence => Err(daemon.failed(sentence)),
        }
    }

    /// The next line, empty at the end.
    fn report(&mut self) -> String {
        let mut line = String::new();
        // An unreadable pipe tells no more than a closed one: the daemon is gone.
        match self.reports.read_line(&mut line) {
            Ok(_) => line.trim_end().to_owned(),
            Err(_) => String::new(),
        }
    }

    fn failed(&mut self, sentence: String) -> Failure {
        let status = match self.child.wait() {
            Ok(status) => status,
            Err(error) => {
                return Failure::other(format!("cannot wait for the daemon: {}", why(&error)));
            }
        };
        let exit = match status.code() {
            Some(code) => Exit::from_code(code),
            None => Exit::Failure,
        };
        if !sentence.is_empty() {
            return Failure::new(exit, sentence);
        }
        let how = match status.signal() {
            Some(signal) => format!("was killed by signal {signal}"),
            None => format!("ended with code {}", status.code().unwrap_or_default()),
        };
        Failure::other(format!(
            "the background process {how} without a word; run with --foreground --debug to see why"
        ))
    }

    /// Has the daemon unmount, and waits until it has.
    pub(super) fn end(mut self) -> io::Result<Ended> {
        drop(self.lifeline.take());
        if self.report() == DETACHED {
            return Ok(Ended::Detached);
        }
        self.child.wait().map(Ended::Gone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_argument_gives_a_role() {
        let mut args: Vec<OsString> = ["plyfs", "mount", COMPANION, "x"].map(Into::into).into();
        assert_eq!(Role::take(&mut args), Role::Front);
        assert_eq!(args.len(), 4);
        args.pop();
        assert_eq!(Role::take(&mut args), Role::Companion);
        assert_eq!(args, ["plyfs", "mount"]);
    }
}
