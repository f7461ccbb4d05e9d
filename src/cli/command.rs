//! `mount ... -- CMD ARGS`: runs CMD while the view is mounted.
//!
//! CMD has the terminal, the working directory and the environment of the caller. Signals sent to us go on
//! to CMD; we end when CMD does, with its code.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::thread;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;

use super::exit::{Failure, why};
use super::output;

/// Runs `command`, in `dir` if one is given, and returns the code to exit with.
pub(super) fn run(command: &[OsString], dir: Option<&Path>) -> Result<u8, Failure> {
    let Some((program, args)) = command.split_first() else {
        return Err(Failure::usage("no command is given after '--'"));
    };
    let signals = Signals::new([SIGINT, SIGQUIT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2])
        .map_err(|error| Failure::other(format!("cannot handle signals: {}", why(&error))))?;
    let mut command = Command::new(program);
    command.args(args);
    if let Some(dir) = dir {
        command.current_dir(dir);
    }
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return Ok(not_started(program, &error)),
    };
    let handle = pidfd(&child).map_err(|error| {
        Failure::other(format!(
            "cannot watch {}: {}",
            program.display(),
            why(&error)
        ))
    });
    match handle {
        Ok(handle) => _ = thread::spawn(move || forward(signals, &handle)),
        // Without it CMD runs all the same, but signals do not reach it.
        Err(failure) => output::complain(&failure.sentence),
    }
    let status = child.wait();
    status
        .map(code)
        .map_err(|error| Failure::other(format!("cannot wait for CMD: {}", why(&error))))
}

/// A handle that can never mean another process, as a number could after CMD has ended.
fn pidfd(child: &Child) -> io::Result<OwnedFd> {
    Ok(pidfd_open(Pid::from_child(child), PidfdFlags::empty())?)
}

/// As shells have it: 127 if there is no such program, 126 if it cannot be executed.
fn not_started(program: &OsStr, error: &io::Error) -> u8 {
    output::complain(&format!("cannot run {}: {}", program.display(), why(error)));
    if error.kind() == io::ErrorKind::NotFound {
        127
    } else {
        126
    }
}

/// CMD's code, or 128+N if signal N ended it.
fn code(status: ExitStatus) -> u8 {
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok())
        .unwrap_or(u8::MAX)
}

fn forward(mut signals: Signals, child: &OwnedFd) {
    for number in signals.forever() {
        let typed = matches!(number, SIGINT | SIGQUIT) && in_front_of_terminal();
        if let (false, Some(signal)) = (typed, Signal::from_named_raw(number)) {
            // CMD may have just ended.
            if let Err(error) = pidfd_send_signal(child, signal) {
                tracing::debug!("cannot pass on {signal:?}: {error}");
            }
        }
    }
}

/// Whether keys typed at the terminal send their signals to our process group, hence to CMD as well.
fn in_front_of_terminal() -> bool {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // After the command's name, which may hold anything: state ppid pgrp session tty tpgid.
    let fields = stat
        .rsplit_once(')')
        .map(|(_, fields)| fields)
        .unwrap_or_default();
    let mut fields = fields.split_whitespace();
    let group = fields.nth(2);
    group.is_some() && fields.nth(2) == group
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_words(words: &[&str]) -> u8 {
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        run(&words, None).unwrap()
    }

    #[test]
    fn the_code_is_the_commands_code() {
        assert_eq!(run_words(&["true"]), 0);
        assert_eq!(run_words(&["sh", "-c", "exit 42"]), 42);
        assert_eq!(run_words(&["sh", "-c", "exit 255"]), 255);
    }

    #[test]
    fn a_signal_is_told_as_128_and_its_number() {
        assert_eq!(run_words(&["sh", "-c", "kill -KILL $$"]), 137);
    }

    #[test]
    fn a_command_that_is_missing_or_no_program_has_the_codes_of_shells() {
        assert_eq!(run_words(&["/nonexistent/program"]), 127);
        assert_eq!(run_words(&["/dev/null"]), 126);
    }
}
