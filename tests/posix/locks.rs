//! flock(2) and POSIX record locks.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::support::{Fixture, Mounted};

#[test]
fn flock_excludes_other_descriptors_also_after_copy_up() {
    let fs = Fixture::new().lower("f 'x'").upper("u 'u'").mount();
    for name in ["f", "u"] {
        let (first, second) = (fs.open(name), fs.open(name));
        flock(&first, FlockOperation::LockExclusive).unwrap();
        assert_eq!(
            flock(&second, FlockOperation::NonBlockingLockExclusive),
            Err(Errno::AGAIN)
        );
        fs.append(name, "+");
        let third = fs.open_rw(name);
        assert_eq!(
            flock(&third, FlockOperation::NonBlockingLockShared),
            Err(Errno::AGAIN)
        );
        drop(first);
        // Waits: a process that another test is just starting may still hold a copy of the descriptor.
        flock(&second, FlockOperation::LockExclusive).unwrap();
    }
}

#[test]
fn shared_flocks_go_together_and_are_of_one_file_by_all_its_names() {
    let fs = Fixture::new().lower("").upper("a 'x'; b = a").mount();
    let (first, second) = (fs.open("a"), fs.open("b"));
    flock(&first, FlockOperation::NonBlockingLockShared).unwrap();
    flock(&second, FlockOperation::NonBlockingLockShared).unwrap();
    assert_eq!(
        flock(&second, FlockOperation::NonBlockingLockExclusive),
        Err(Errno::AGAIN)
    );
    drop(first);
    // Waits: a process that another test is just starting may still hold a copy of the descriptor.
    flock(&second, FlockOperation::LockExclusive).unwrap();
}

#[test]
fn a_waiting_flock_does_not_stop_the_filesystem() {
    let fs = Fixture::new().lower("f 'x'; g 'g'").mount();
    let (first, second) = (fs.open("f"), fs.open("f"));
    flock(&first, FlockOperation::LockExclusive).unwrap();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(move || flock(&second, FlockOperation::LockExclusive));
        for round in 0..20 {
            fs.write(format!("new{round}"), "x");
            assert_eq!(fs.text("g"), "g");
        }
        assert!(!waiter.is_finished());
        flock(&first, FlockOperation::Unlock).unwrap();
        waiter.join().unwrap().unwrap();
    });
}

/// A process that holds a POSIX write lock on a range of the file.
fn hold(fs: &Mounted, path: &str, start: u32, length: u32) -> Child {
    let script = "use Fcntl qw(:DEFAULT :seek); $| = 1; my ($p, $s, $l) = @ARGV;
        open(F, '+<', $p) or die $!;
        fcntl(F, F_SETLK, pack('s s x4 q q i x4', F_WRLCK, SEEK_SET, $s, $l, 0)) or die $!;
        print \"held\\n\"; <STDIN>";
    let mut command = Command::new("perl");
    command
        .args(["-e", script])
        .arg(fs.path(path))
        .args([start.to_string(), length.to_string()]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "held\n");
    child
}

fn can_lock(fs: &Mounted, path: &str, start: u32, length: u32) -> bool {
    let script =
        "use Fcntl qw(:DEFAULT :seek); my ($p, $s, $l) = @ARGV; open(F, '+<', $p) or die $!;
        print fcntl(F, F_SETLK, pack('s s x4 q q i x4', F_WRLCK, SEEK_SET, $s, $l, 0)) ? 1 : 0";
    let mut command = Command::new("perl");
    command
        .args(["-e", script])
        .arg(fs.path(path))
        .args([start.to_string(), length.to_string()]);
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout == b"1"
}

#[test]
fn posix_locks_exclude_other_processes_by_range() {
    let fs = Fixture::new().lower("f '0123456789'").mount();
    let mut holder = hold(&fs, "f", 0, 5);
    assert!(!can_lock(&fs, "f", 0, 1));
    assert!(!can_lock(&fs, "f", 4, 10));
    assert!(can_lock(&fs, "f", 5, 5));
    drop(holder.stdin.take());
    holder.wait().unwrap();
    assert!(can_lock(&fs, "f", 0, 5));
}

#[test]
fn posix_locks_outlive_a_copy_up() {
    let fs = Fixture::new().lower("f '0123456789'").mount();
    let mut holder = hold(&fs, "f", 0, 5);
    fs.append("f", "+");
    fs.chmod("f", 0o600);
    assert!(!can_lock(&fs, "f", 0, 5));
    drop(holder.stdin.take());
    holder.wait().unwrap();
    assert!(can_lock(&fs, "f", 0, 5));
}
