//! Files that are deleted while open.

use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{AtFlags, CWD, XattrFlags, fstat, linkat};
use rustix::io::Errno;

use crate::support::Fixture;

#[test]
fn a_deleted_lower_file_stays_readable() {
    let mut fs = Fixture::new().lower("f pattern=300000").mount();
    let mut file = fs.open("f");
    fs.unlink("f");
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    assert!(bytes == crate::support::tree::pattern(0, 300_000));
    assert_eq!(fstat(&file).unwrap().st_size, 300_000);
    drop(file);
    fs.assert_state("", "f whiteout");
}

#[test]
fn a_deleted_upper_file_stays_readable_and_writable() {
    let mut fs = Fixture::new().lower("").upper("f 'upper'").mount();
    let mut file = fs.open_rw("f");
    fs.unlink("f");
    file.write_all(b"UPPER, longer").unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "UPPER, longer");
    assert_eq!(fstat(&file).unwrap().st_nlink, 0);
    drop(file);
    fs.assert_state("", "");
}

#[test]
fn a_deleted_lower_file_open_for_writing_can_be_written() {
    let mut fs = Fixture::new().lower("f 'lower'").mount();
    let file = fs.open_rw("f");
    fs.unlink("f");
    file.write_all_at(b"LO", 0).unwrap();
    let mut bytes = [0; 5];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"LOwer");
    drop(file);
    fs.assert_state("", "f whiteout");
}

#[test]
fn a_temporary_file_created_and_deleted_at_once_works() {
    let mut fs = Fixture::new().lower("tmp/x").mount();
    fs.write("tmp/t", "");
    let file = fs.open_rw("tmp/t");
    fs.unlink("tmp/t");
    file.write_all_at(&vec![7; 100_000], 50).unwrap();
    file.set_len(60_000).unwrap();
    assert_eq!(fstat(&file).unwrap().st_size, 60_000);
    let mut bytes = vec![0; 60_000];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes[..50].iter().all(|byte| *byte == 0) && bytes[50..].iter().all(|byte| *byte == 7));
    drop(file);
    fs.assert_state("tmp/x", "tmp/");
}

#[test]
fn metadata_of_a_deleted_file_can_be_changed_through_its_descriptor() {
    let mut fs = Fixture::new().lower("l 'lower'").upper("u 'upper'").mount();
    for name in ["l", "u"] {
        let file = fs.open_rw(name);
        file.write_all_at(b"x", 0).unwrap();
        fs.unlink(name);
        rustix::fs::fchmod(&file, 0o640.into()).unwrap();
        rustix::fs::fsetxattr(&file, "user.k", b"v", XattrFlags::empty()).unwrap();
        file.set_len(2).unwrap();
        let stat = fstat(&file).unwrap();
        assert_eq!(
            (stat.st_mode & 0o7777, stat.st_size, stat.st_nlink),
            (0o640, 2, 0),
            "{name}"
        );
        let mut value = [0_u8; 8];
        assert_eq!(
            rustix::fs::fgetxattr(&file, "user.k", &mut value[..]),
            Ok(1)
        );
    }
    fs.assert_state("", "l whiteout");
}

#[test]
fn a_deleted_file_does_not_come_back_by_link() {
    let fs = Fixture::new().lower("").upper("f 'upper'").mount();
    let file = fs.open("f");
    fs.unlink("f");
    let number = format!("/proc/self/fd/{}", file.as_raw_fd());
    let result = linkat(CWD, number, CWD, fs.path("g"), AtFlags::SYMLINK_FOLLOW);
    assert_eq!(result, Err(Errno::NOENT));
}

#[test]
fn one_of_two_names_deleted_while_open_leaves_a_file_that_can_be_linked_again() {
    let mut fs = Fixture::new().lower("").upper("a 'x'; b = a").mount();
    let file = fs.open_rw("a");
    fs.unlink("a");
    assert_eq!(fstat(&file).unwrap().st_nlink, 1);
    let number = format!("/proc/self/fd/{}", file.as_raw_fd());
    linkat(CWD, number, CWD, fs.path("c"), AtFlags::SYMLINK_FOLLOW).unwrap();
    file.write_all_at(b"y", 0).unwrap();
    drop(file);
    fs.assert_state("b 'y' nlink=2; c = b", "b 'y'; c = b");
}

#[test]
fn a_name_created_again_is_another_file_than_the_deleted_one() {
    let fs = Fixture::new().lower("f 'old'").mount();
    let old = fs.open("f");
    for round in 0..5 {
        fs.unlink("f");
        fs.write("f", format!("new {round}"));
    }
    let mut bytes = [0; 3];
    old.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"old");
    assert_eq!(fs.text("f"), "new 4");
}

#[test]
fn deleted_files_keep_their_contents_apart() {
    let fs = Fixture::new()
        .lower("a 'aaa'; b 'bbb'")
        .upper("c 'ccc'")
        .mount();
    let files = ["a", "b", "c"].map(|name| fs.open_rw(name));
    for name in ["a", "b", "c"] {
        fs.unlink(name);
    }
    for (file, expected) in files.iter().zip(["aaa", "bbb", "ccc"]) {
        let mut bytes = [0; 3];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(std::str::from_utf8(&bytes).unwrap(), expected);
    }
}

#[test]
fn a_file_replaced_by_rename_while_open_for_writing_takes_the_writes() {
    let mut fs = Fixture::new().lower("f 'old'").mount();
    let file = fs.open_rw("f");
    fs.write("n", "new");
    fs.rename("n", "f");
    file.write_all_at(b"OLD", 0).unwrap();
    assert_eq!(fs.text("f"), "new");
    drop(file);
    fs.assert_state("f 'new'", "f 'new'");
}

#[test]
fn a_working_directory_that_is_removed_answers_enoent() {
    let fs = Fixture::new().lower("d/f").mount();
    let answer =
        fs.sh("cd d; rm f; rmdir ../d; ls -A | wc -l; touch x 2>/dev/null || echo refused");
    assert_eq!(answer, "0\nrefused");
}
