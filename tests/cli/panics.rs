//! A bug that panics fails one request. Debug builds have one on purpose; release builds are not tested by this.

use std::fs;
use std::process::Stdio;

use rustix::io::Errno;
use rustix::process::Signal;

use super::{Place, assert_contains};

/// Asks for what panics.
#[track_caller]
fn panic(place: &Place) {
    let asked = rustix::fs::getxattr(place.path("merged"), "user.plyfs.panic", &mut [0_u8; 8][..]);
    let expected = if cfg!(debug_assertions) {
        Errno::IO
    } else {
        Errno::NODATA
    };
    assert_eq!(asked, Err(expected));
}

/// The log of a mount in which a request panicked, told in a way that says what to do.
#[track_caller]
fn assert_told(log: &str) {
    if cfg!(debug_assertions) {
        assert_contains(log, "a bug in plyfs, please report it");
        assert_contains(log, "src/fuse/adapter.rs");
        assert_contains(log, "user.plyfs.panic");
        // The backtrace.
        assert_contains(log, "own_xattr");
    }
}

#[test]
fn a_request_that_panics_is_answered_eio_logged_with_a_backtrace_and_the_mount_lives_on() {
    let place = Place::new();
    place.mount(&["--log", "log"]);
    let daemon = place.daemon().pid;
    for _ in 0..3 {
        panic(&place);
        assert_eq!(
            fs::read_to_string(place.path("merged/file")).unwrap(),
            "from the lower"
        );
        fs::write(place.path("merged/file"), "from the lower").unwrap();
    }
    assert_eq!(place.daemon().pid, daemon);
    let log = fs::read_to_string(place.path("log")).unwrap();
    assert_told(&log);
    assert_eq!(
        log.matches("please report").count(),
        if cfg!(debug_assertions) { 3 } else { 0 }
    );
    place.umount("merged");
}

#[test]
fn in_the_foreground_the_terminal_shows_it_as_a_message_of_ours() {
    let place = Place::new();
    let mut mount = place.plyfs(["mount", "-f", "--lower", "lower", "merged"]);
    let child = mount.stderr(Stdio::piped()).spawn().unwrap();
    while !place.is_mounted() {
        std::thread::yield_now();
    }
    panic(&place);
    assert_eq!(
        fs::read_to_string(place.path("merged/file")).unwrap(),
        "from the lower"
    );
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), Signal::TERM).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", output.status);
    let stderr = super::text(&output.stderr);
    assert_told(&stderr);
    assert!(
        stderr.is_empty() || stderr.starts_with("plyfs: "),
        "{stderr}"
    );
}
