//! mmap(2), driven through `xfs_io`, which maps files on command.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::support::tree::pattern;
use crate::support::{Fixture, deviates};

/// One `xfs_io` process with one file open and mapped.
struct Mapper {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Mapper {
    fn new(file: &Path, read_only: bool) -> Self {
        // Line by line, because on a pipe the output would wait for a full buffer.
        let script = "exec stdbuf -oL xfs_io $2 \"$1\" 2>&1";
        let mut command = Command::new("sh");
        command
            .args(["-c", script, "sh"])
            .arg(file)
            .args(read_only.then_some("-r"));
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self {
            child,
            input,
            output: BufReader::new(output),
        }
    }

    /// Runs a command and waits until it is done; what it printed.
    fn run(&mut self, command: &str) -> String {
        // The complaint about a command that does not exist marks the end.
        writeln!(self.input, "{command}\nend").unwrap();
        let mut text = String::new();
        while !text.contains("\"end\" not found") {
            assert_ne!(
                self.output.read_line(&mut text).unwrap(),
                0,
                "xfs_io ended: {text}"
            );
        }
        text
    }

    /// The byte at an offset; `xfs_io` dumps whole lines of 16.
    fn byte(&mut self, offset: u64) -> u8 {
        let text = self.run(&format!("mread -v {offset} 16"));
        let line = text
            .lines()
            .find(|line| line.contains(':'))
            .expect("a dump");
        let byte = line
            .split(':')
            .nth(1)
            .unwrap()
            .split_whitespace()
            .next()
            .unwrap();
        u8::from_str_radix(byte, 16).unwrap_or_else(|_| panic!("{text}"))
    }
}

impl Drop for Mapper {
    fn drop(&mut self) {
        writeln!(self.input, "quit").ok();
        self.child.kill().ok();
        self.child.wait().unwrap();
    }
}

#[test]
fn a_mapped_lower_file_reads_its_content() {
    let fs = Fixture::new().lower("f pattern=100000").mount();
    let mut map = Mapper::new(&fs.path("f"), true);
    map.run("mmap -r 0 100000");
    for offset in [0, 4095, 4096, 70_001, 99_984] {
        assert_eq!(map.byte(offset), pattern(offset, 1)[0], "at {offset}");
    }
    fs.assert_upper("");
}

#[test]
fn stores_to_a_shared_mapping_of_a_lower_file_reach_the_upper() {
    let mut fs = Fixture::new().lower("f pattern=10000 0640").mount();
    let mut map = Mapper::new(&fs.path("f"), false);
    map.run("mmap -rw 0 10000");
    map.run("mwrite -S 0x58 5000 3");
    map.run("msync -s 0 10000");
    drop(map);
    let mut expected = pattern(0, 10_000);
    expected[5000..5003].fill(b'X');
    assert!(fs.read("f") == expected);
    fs.remount();
    assert!(fs.read("f") == expected);
    assert!(std::fs::read(fs.upper("f")).unwrap() == expected);
}

#[test]
fn stores_without_msync_are_seen_by_read_and_kept() {
    let mut fs = Fixture::new().lower("").upper("f pattern=10000").mount();
    let mut map = Mapper::new(&fs.path("f"), false);
    map.run("mmap -rw 0 10000");
    map.run("mwrite -S 0x58 0 1");
    assert_eq!(fs.read("f")[0], b'X');
    drop(map);
    fs.remount();
    assert_eq!(fs.read("f")[0], b'X');
}

#[test]
fn writes_are_seen_through_a_shared_mapping() {
    let fs = Fixture::new().lower("").upper("f pattern=10000").mount();
    let mut map = Mapper::new(&fs.path("f"), true);
    map.run("mmap -r 0 10000");
    assert_eq!(map.byte(100), pattern(100, 1)[0]);
    fs.write_at("f", 100, b"W");
    assert_eq!(map.byte(100), b'W');
}

#[test]
fn a_mapping_made_before_copy_up_sees_later_writes() {
    let fs = Fixture::new().lower("f pattern=10000").mount();
    let mut map = Mapper::new(&fs.path("f"), true);
    map.run("mmap -r 0 10000");
    assert_eq!(map.byte(100), pattern(100, 1)[0]);
    fs.write_at("f", 100, b"W");
    if deviates("one page cache before and after copy-up; the kernel maps the lower file itself") {
        assert_eq!(map.byte(100), b'W');
    } else {
        assert_eq!(map.byte(100), pattern(100, 1)[0]);
    }
}

#[test]
fn a_mapping_keeps_a_deleted_file_alive() {
    let mut fs = Fixture::new().lower("f pattern=10000").mount();
    let mut map = Mapper::new(&fs.path("f"), true);
    map.run("mmap -r 0 10000");
    fs.unlink("f");
    assert_eq!(map.byte(9000), pattern(9000, 1)[0]);
    drop(map);
    fs.assert_state("", "f whiteout");
}
