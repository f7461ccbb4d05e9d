//! `mount ... MNT -- CMD`.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::{Place, assert_contains, sentence, text};

/// `mount` with a shell script as the command.
fn script(place: &Place, more: &[&str], script: &str) -> Command {
    let mut command = place.plyfs(["mount", "--lower", "lower"]);
    command
        .args(more)
        .args(["merged", "--", "sh", "-c", script]);
    command
}

#[test]
fn the_command_sees_the_view_and_its_code_is_ours() {
    let place = Place::new();
    let output = script(&place, &[], "cat merged/file; exit 42")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(42));
    assert_eq!(text(&output.stdout), "from the lower");
    assert_eq!(text(&output.stderr), "");
    assert!(!place.is_mounted());
}

#[test]
fn the_command_has_our_stdin_directory_and_environment() {
    let place = Place::new();
    let mut child = script(&place, &[], "cat; pwd; echo $GIVEN")
        .env("GIVEN", "value")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"typed\n").unwrap();
    let output = child.wait_with_output().unwrap();
    let here = place.base.path().to_str().unwrap();
    assert_eq!(text(&output.stdout), format!("typed\n{here}\nvalue\n"));
}

#[test]
fn what_the_command_writes_is_in_the_upper_when_it_has_ended() {
    let place = Place::new();
    let more = ["--upper", "upper", "--work", "work"];
    let output = script(&place, &more, "echo more >> merged/file")
        .output()
        .unwrap();
    assert!(output.status.success());
    let upper = fs::read_to_string(place.path("upper/file")).unwrap();
    assert_eq!(upper, "from the lowermore\n");
}

#[test]
fn a_command_ended_by_a_signal_gives_128_and_its_number() {
    let place = Place::new();
    let output = script(&place, &[], "kill -KILL $$").output().unwrap();
    assert_eq!(output.status.code(), Some(128 + 9));
    assert!(!place.is_mounted());
}

#[test]
fn a_command_that_cannot_run_has_the_codes_of_shells_and_leaves_no_mount() {
    let place = Place::new();
    for (program, code) in [("./absent", 127), ("./lower/file", 126)] {
        let mut command = place.plyfs(["mount", "--lower", "lower", "merged", "--", program]);
        let sentence = sentence(&command.output().unwrap(), code);
        assert_contains(&sentence, program);
        assert!(!place.is_mounted());
    }
}

#[test]
fn a_mount_that_fails_runs_no_command() {
    let place = Place::new();
    let mut command = place.plyfs(["mount", "--lower", "absent", "merged", "--"]);
    let output = command.args(["touch", "ran"]).output().unwrap();
    sentence(&output, 3);
    assert!(!place.path("ran").exists());
}

#[test]
fn an_ephemeral_upper_is_gone_when_the_command_has_ended() {
    let place = Place::new();
    let output = script(
        &place,
        &["--ephemeral"],
        "echo new > merged/new && cat merged/new",
    );
    let output = { output }.output().unwrap();
    assert_eq!(text(&output.stdout), "new\n");
    assert!(place.temporaries().is_empty());
    assert!(!place.path("lower/new").exists());
}

#[test]
fn signals_go_on_to_the_command() {
    let place = Place::new();
    for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::USR1] {
        let trap = "trap 'echo caught; exit 9' TERM INT HUP USR1; echo ready; \
                    while :; do sleep 0.02; done";
        // A process group of its own, so that nothing reaches the command but through us.
        let mut command = Command::new("setsid");
        let plyfs = script(&place, &[], trap);
        command.arg(plyfs.get_program()).args(plyfs.get_args());
        command
            .current_dir(place.base.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        kill_process(Pid::from_child(&child), signal).unwrap();
        line.clear();
        stdout.read_line(&mut line).unwrap();
        assert_eq!(line, "caught\n", "{signal:?}");
        assert_eq!(child.wait().unwrap().code(), Some(9), "{signal:?}");
        assert!(!place.is_mounted());
    }
}

#[test]
fn a_mount_still_in_use_is_detached_and_told_and_serves_to_the_end() {
    let place = Place::new();
    let holder = "exec 3< merged/file 4<&0; echo ready; read go\n\
                  (read end <&4; cat <&3 > kept) > /dev/null 2>&1 &\nexit 5";
    let mut command = script(&place, &[], holder);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut String::new()).unwrap();
    let daemon = place.daemon();
    stdin.write_all(b"go\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_contains(&sentence(&output, 5), "still in use");
    assert!(!place.is_mounted());
    drop(stdin);
    daemon.ended();
    assert_eq!(
        fs::read_to_string(place.path("kept")).unwrap(),
        "from the lower"
    );
}

#[test]
fn when_we_are_killed_the_mount_goes_too() {
    let place = Place::new();
    let mut command = script(&place, &["--ephemeral"], "echo ready; exec sleep 1000");
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut ready = [0; 6];
    stdout.read_exact(&mut ready).unwrap();
    let daemon = place.daemon();
    let sleeper = children(child.id())
        .into_iter()
        .find(|pid| *pid != daemon.pid)
        .unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    daemon.ended();
    assert!(!place.is_mounted());
    assert!(place.temporaries().is_empty());
    kill_process(sleeper, Signal::KILL).unwrap();
}

fn children(pid: u32) -> Vec<Pid> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let numbers = text
        .split_whitespace()
        .map(|number| number.parse().unwrap());
    numbers
        .map(|number| Pid::from_raw(number).unwrap())
        .collect()
}
