//! write(2) and pwrite(2).

use std::fs::OpenOptions;
use std::io::{IoSlice, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use crate::support::Fixture;
use crate::support::tree::pattern;

#[test]
fn a_write_into_a_lower_file_keeps_the_rest_of_it() {
    let mut fs = Fixture::new()
        .lower("d/f 'lower text' 0640 user.k='v'")
        .mount();
    fs.write_at("d/f", 6, b"TEXT");
    fs.assert_state(
        "d/f 'lower TEXT' 0640 user.k='v'",
        "d/f 'lower TEXT' 0640 user.k='v'",
    );
}

#[test]
fn a_write_after_the_end_leaves_zeros_between() {
    let mut fs = Fixture::new().lower("f 'ab'").mount();
    fs.write_at("f", 5, b"c");
    fs.assert_state("f 'ab\\x00\\x00\\x00c'", "f 'ab\\x00\\x00\\x00c'");
}

#[test]
fn a_write_into_the_middle_of_a_large_lower_file_keeps_both_sides() {
    let mut fs = Fixture::new().lower("f pattern=5000000").mount();
    fs.write_at("f", 2_500_001, b"middle");
    fs.remount();
    let mut expected = pattern(0, 5_000_000);
    expected[2_500_001..2_500_007].copy_from_slice(b"middle");
    assert!(fs.read("f") == expected, "merged");
    assert!(std::fs::read(fs.upper("f")).unwrap() == expected, "upper");
}

#[test]
fn a_large_file_is_written_and_read_back() {
    let mut fs = Fixture::new().lower("").mount();
    fs.write("f", pattern(0, 7_000_003));
    fs.assert_state("f pattern=7000003", "f pattern=7000003");
}

#[test]
fn what_one_descriptor_writes_another_reads_at_once() {
    let fs = Fixture::new().lower("f 'lower'").mount();
    let (writer, reader) = (fs.open_rw("f"), fs.open_rw("f"));
    let mut bytes = [0; 5];
    for text in [b"first", b"again"] {
        writer.write_all_at(text, 0).unwrap();
        reader.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, text);
    }
    reader.write_all_at(b"other", 0).unwrap();
    writer.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"other");
}

#[test]
fn a_write_changes_size_and_times_and_nothing_else() {
    let fs = Fixture::new()
        .lower("f 'lower' 0604 mtime=1000 user.k='v'")
        .mount();
    let before = fs.stat("f");
    fs.write_at("f", 0, b"longer than before");
    let after = fs.stat("f");
    assert_eq!(after.st_size, 18);
    assert!(after.st_mtime > before.st_mtime && after.st_ctime >= after.st_mtime);
    assert_eq!(
        (after.st_mode, after.st_uid, after.st_ino),
        (before.st_mode, before.st_uid, before.st_ino)
    );
    assert_eq!(fs.xattr("f", "user.k").as_deref(), Some("v"));
}

#[test]
fn a_descriptor_keeps_writing_to_its_file_over_a_rename() {
    let mut fs = Fixture::new().lower("d/f 'old'; e/").mount();
    let file = fs.open_rw("d/f");
    fs.rename("d/f", "e/g");
    file.write_all_at(b"new", 0).unwrap();
    drop(file);
    fs.assert_state("d/; e/g 'new'", "d/f whiteout; e/g 'new'");
}

#[test]
fn vectored_writes_arrive_in_order() {
    let mut fs = Fixture::new().lower("f 'old'").mount();
    let mut file = fs.open_rw("f");
    let parts = [
        IoSlice::new(b"one "),
        IoSlice::new(b"two "),
        IoSlice::new(b"three"),
    ];
    assert_eq!(file.write_vectored(&parts).unwrap(), 13);
    drop(file);
    fs.assert_state("f 'one two three'", "f 'one two three'");
}

#[test]
fn synchronous_writes_work() {
    let mut fs = Fixture::new().lower("f 'old'").mount();
    let sync = i32::try_from(rustix::fs::OFlags::SYNC.bits()).unwrap();
    let mut file = OpenOptions::new()
        .write(true)
        .custom_flags(sync)
        .open(fs.path("f"))
        .unwrap();
    file.write_all(b"new").unwrap();
    drop(file);
    fs.assert_state("f 'new'", "f 'new'");
}

#[test]
fn a_write_of_no_bytes_changes_nothing_that_can_be_seen() {
    let fs = Fixture::new().lower("f 'lower' mtime=1000").mount();
    assert_eq!(fs.open_rw("f").write_at(b"", 3).unwrap(), 0);
    fs.assert_merged("f 'lower' mtime=1000");
}

#[test]
fn threads_that_write_the_first_bytes_of_a_lower_file_all_succeed() {
    let mut fs = Fixture::new().lower("f pattern=800000").mount();
    std::thread::scope(|scope| {
        for number in 0..8_u8 {
            let fs = &fs;
            let offset = u64::from(number) * 100_000;
            scope.spawn(move || fs.write_at("f", offset, &[b'0' + number; 10]));
        }
    });
    fs.remount();
    let mut expected = pattern(0, 800_000);
    for number in 0..8_u8 {
        let start = usize::from(number) * 100_000;
        expected[start..start + 10].fill(b'0' + number);
    }
    assert!(fs.read("f") == expected);
}

#[test]
fn threads_that_create_in_one_lower_directory_all_succeed() {
    let mut fs = Fixture::new().lower("a/b/c/f").mount();
    std::thread::scope(|scope| {
        for number in 0..8 {
            let fs = &fs;
            scope.spawn(move || {
                for step in 0..20 {
                    fs.write(format!("a/b/c/{number}-{step}"), "x");
                }
            });
        }
    });
    assert_eq!(fs.names("a/b/c").len(), 161);
    fs.remount();
    assert_eq!(fs.names("a/b/c").len(), 161);
}
