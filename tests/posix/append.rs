//! `O_APPEND`.

use std::fs::OpenOptions;
use std::io::{Seek, SeekFrom, Write};

use crate::support::Fixture;

#[test]
fn append_to_a_lower_file_copies_it_up_and_adds_to_its_end() {
    let mut fs = Fixture::new().lower("d/f 'lower' 0600").mount();
    fs.append("d/f", "+upper");
    fs.assert_state("d/f 'lower+upper' 0600", "d/f 'lower+upper' 0600");
}

#[test]
fn append_to_an_upper_file_adds_to_its_end() {
    let mut fs = Fixture::new().lower("").upper("f 'one'").mount();
    fs.append("f", ",two");
    fs.append("f", ",three");
    fs.assert_state("f 'one,two,three'", "f 'one,two,three'");
}

#[test]
fn an_appending_descriptor_ignores_its_position() {
    let mut fs = Fixture::new().lower("f 'abc'").mount();
    let mut file = OpenOptions::new().append(true).open(fs.path("f")).unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.write_all(b"d").unwrap();
    file.seek(SeekFrom::Start(1)).unwrap();
    file.write_all(b"e").unwrap();
    drop(file);
    fs.assert_state("f 'abcde'", "f 'abcde'");
}

#[test]
fn two_appenders_never_overwrite_each_other() {
    let mut fs = Fixture::new().lower("f 'start'").mount();
    let open = || OpenOptions::new().append(true).open(fs.path("f")).unwrap();
    let (mut a, mut b) = (open(), open());
    for _ in 0..100 {
        a.write_all(b"a").unwrap();
        b.write_all(b"b").unwrap();
    }
    drop((a, b));
    let expected = format!("f 'start{}'", "ab".repeat(100));
    let expected = expected.replace("f '", "");
    assert_eq!(fs.text("f"), expected.trim_end_matches('\''));
    fs.remount();
    assert_eq!(fs.text("f").len(), 205);
}

#[test]
fn appending_threads_lose_nothing() {
    let fs = Fixture::new().lower("f ''").mount();
    std::thread::scope(|scope| {
        for letter in ["a", "b", "c", "d"] {
            let mut file = OpenOptions::new().append(true).open(fs.path("f")).unwrap();
            scope.spawn(move || {
                for _ in 0..200 {
                    file.write_all(letter.repeat(8).as_bytes()).unwrap();
                }
            });
        }
    });
    let text = fs.text("f");
    assert_eq!(text.len(), 6400);
    for letter in ["a", "b", "c", "d"] {
        assert_eq!(text.matches(&letter.repeat(8)).count(), 200, "{letter}");
    }
}

#[test]
fn append_after_another_descriptor_has_truncated_goes_to_the_new_end() {
    let mut fs = Fixture::new().lower("f 'a long text'").mount();
    let mut file = OpenOptions::new().append(true).open(fs.path("f")).unwrap();
    file.write_all(b"!").unwrap();
    fs.truncate("f", 1);
    file.write_all(b"b").unwrap();
    drop(file);
    fs.assert_state("f 'ab'", "f 'ab'");
}

#[test]
fn appending_processes_lose_nothing() {
    let mut fs = Fixture::new().lower("f ''").mount();
    let writer = "i=0; while [ $i -lt 100 ]; do echo $0; i=$((i+1)); done >> f";
    fs.sh(&format!(
        "for name in one two six; do sh -c '{writer}' $name & done; wait"
    ));
    for _ in 0..2 {
        let text = fs.text("f");
        assert_eq!(text.len(), 1200);
        for name in ["one", "two", "six"] {
            assert_eq!(text.lines().filter(|line| *line == name).count(), 100);
        }
        fs.remount();
    }
}
