//! truncate(2) and ftruncate(2).

use rustix::io::Errno;

use crate::support::Fixture;
use crate::support::tree::pattern;

#[test]
fn truncate_of_a_lower_file_keeps_its_beginning() {
    let mut fs = Fixture::new().lower("f '1234567' 0640 user.k='v'").mount();
    fs.truncate("f", 3);
    fs.assert_state("f '123' 0640 user.k='v'", "f '123' 0640 user.k='v'");
}

#[test]
fn truncate_by_path_needs_no_open_descriptor() {
    let mut fs = Fixture::new().lower("d/f '1234567'").mount();
    fs.sh("truncate -s 2 d/f");
    fs.assert_state("d/f '12'", "d/f '12'");
}

#[test]
fn truncate_to_a_longer_size_adds_zeros() {
    let mut fs = Fixture::new().lower("f 'ab'").mount();
    fs.truncate("f", 4);
    fs.assert_state("f 'ab\\x00\\x00'", "f 'ab\\x00\\x00'");
}

#[test]
fn truncate_to_nothing_and_grow_again_shows_no_old_bytes() {
    let mut fs = Fixture::new()
        .lower("f pattern=10000")
        .upper("u pattern=10000")
        .mount();
    for name in ["f", "u"] {
        fs.truncate(name, 0);
        fs.truncate(name, 10_000);
    }
    fs.assert_state("f hole=10000; u hole=10000", "f hole=10000; u hole=10000");
}

#[test]
fn truncate_inside_a_page_zeroes_the_rest_of_the_page() {
    let mut fs = Fixture::new().lower("f pattern=9000").mount();
    fs.truncate("f", 5000);
    fs.truncate("f", 9000);
    let mut expected = pattern(0, 9000);
    expected[5000..].fill(0);
    assert!(fs.read("f") == expected);
    fs.remount();
    assert!(fs.read("f") == expected);
}

#[test]
fn truncate_to_the_same_size_keeps_the_content_and_renews_the_time() {
    let fs = Fixture::new().lower("f 'same' mtime=1000").mount();
    fs.truncate("f", 4);
    assert_eq!(fs.text("f"), "same");
    assert!(fs.mtime("f").0 > 1000);
}

#[test]
fn truncate_is_seen_by_all_descriptors() {
    let fs = Fixture::new().lower("f 'text'").mount();
    let (reader, writer) = (fs.open("f"), fs.open_rw("f"));
    writer.set_len(1).unwrap();
    assert_eq!(rustix::fs::fstat(&reader).unwrap().st_size, 1);
    assert_eq!(rustix::fs::ftruncate(&reader, 0), Err(Errno::INVAL));
    assert_eq!(fs.text("f"), "t");
}

#[test]
fn truncate_of_a_directory_or_nothing_fails() {
    let fs = Fixture::new().lower("d/f").mount();
    let truncate = |path: &str| {
        let script = "$! = 0; truncate($ARGV[0], 0); print $! + 0";
        fs.sh(&format!("perl -e '{script}' {path}"))
    };
    assert_eq!(truncate("d"), Errno::ISDIR.raw_os_error().to_string());
    assert_eq!(truncate("missing"), Errno::NOENT.raw_os_error().to_string());
    fs.assert_upper("");
}

#[test]
fn a_huge_size_is_reported_and_takes_no_space() {
    let mut fs = Fixture::new().lower("f 'x'").mount();
    fs.truncate("f", 1 << 40);
    fs.remount();
    let stat = fs.stat("f");
    assert_eq!(stat.st_size, 1 << 40);
    assert!(stat.st_blocks < 100, "{} blocks", stat.st_blocks);
}
