//! read(2), pread(2), readlink(2).

use std::os::unix::fs::FileExt;

use rustix::io::Errno;

use crate::support::Fixture;
use crate::support::tree::pattern;

#[test]
fn a_large_lower_file_reads_the_same_in_pieces_of_any_size() {
    let fs = Fixture::new().lower("f pattern=3000001").mount();
    let file = fs.open("f");
    for (offset, length) in [
        (0, 1),
        (1, 4095),
        (4095, 2),
        (131_071, 131_074),
        (2_999_000, 1001),
    ] {
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, offset).unwrap();
        assert!(
            bytes == pattern(offset, length),
            "{length} bytes at {offset}"
        );
    }
    assert!(fs.read("f") == pattern(0, 3_000_001));
}

#[test]
fn reading_at_and_after_the_end_gives_nothing() {
    let fs = Fixture::new().lower("f '12345'; empty ''").mount();
    let mut bytes = [0; 10];
    let file = fs.open("f");
    assert_eq!(file.read_at(&mut bytes, 3).unwrap(), 2);
    assert_eq!(file.read_at(&mut bytes, 5).unwrap(), 0);
    assert_eq!(file.read_at(&mut bytes, 1 << 40).unwrap(), 0);
    assert_eq!(fs.open("empty").read_at(&mut bytes, 0).unwrap(), 0);
}

#[test]
fn reading_a_directory_is_eisdir_and_a_write_only_descriptor_ebadf() {
    let fs = Fixture::new().lower("d/f; f").mount();
    let mut bytes = [0; 10];
    assert_eq!(
        rustix::io::read(fs.open("d"), &mut bytes),
        Err(Errno::ISDIR)
    );
    let write_only = std::fs::OpenOptions::new()
        .write(true)
        .open(fs.path("f"))
        .unwrap();
    assert_eq!(rustix::io::read(&write_only, &mut bytes), Err(Errno::BADF));
}

#[test]
fn a_reader_opened_before_copy_up_sees_later_writes() {
    let fs = Fixture::new().lower("f 'lower text'").mount();
    let reader = fs.open("f");
    let mut bytes = [0; 10];
    reader.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"lower text");
    fs.write_at("f", 0, b"UPPER");
    reader.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"UPPER text");
    fs.append("f", "!");
    assert_eq!(rustix::fs::fstat(&reader).unwrap().st_size, 11);
}

#[test]
fn a_reader_opened_before_copy_up_of_a_long_file_sees_all_of_the_new_content() {
    let fs = Fixture::new().lower("f pattern=600000").mount();
    let reader = fs.open("f");
    let mut bytes = vec![0; 600_000];
    reader.read_exact_at(&mut bytes[..200_000], 0).unwrap();
    for page in (0..600_000).step_by(50_000) {
        fs.write_at("f", page, b"changed");
    }
    reader.read_exact_at(&mut bytes, 0).unwrap();
    let mut expected = pattern(0, 600_000);
    for page in (0..600_000).step_by(50_000) {
        expected[page..page + 7].copy_from_slice(b"changed");
    }
    assert!(bytes == expected);
}

#[test]
fn readlink_gives_any_target_unchanged() {
    let long = "x/".repeat(500);
    let fs = Fixture::new()
        .lower(&format!(
            "a -> ../../etc; b -> /abs/olute; c -> {long}; d -> \\xff\\x20\\x0a"
        ))
        .mount();
    fs.assert_merged(&format!(
        "a -> ../../etc; b -> /abs/olute; c -> {long}; d -> \\xff\\x20\\x0a"
    ));
    assert_eq!(fs.stat("c").st_size, 1000);
    assert_eq!(
        rustix::fs::readlink(fs.path("."), Vec::new()).err(),
        Some(Errno::INVAL)
    );
}

#[test]
fn reading_does_not_change_the_modification_time() {
    let fs = Fixture::new()
        .lower("d/f 'x' mtime=1000.5")
        .upper("u 'u' mtime=2000.25")
        .mount();
    fs.text("d/f");
    fs.text("u");
    fs.names("d");
    assert_eq!(fs.mtime("d/f"), (1000, 500_000_000));
    assert_eq!(fs.mtime("u"), (2000, 250_000_000));
}

#[test]
fn many_threads_read_one_file_at_once() {
    let fs = Fixture::new().lower("f pattern=2000000").mount();
    std::thread::scope(|scope| {
        for start in 0..8_u64 {
            let fs = &fs;
            scope.spawn(move || {
                let (file, mut bytes) = (fs.open("f"), vec![0; 100_000]);
                for step in 0..18 {
                    let offset = (start * 37_001 + step * 100_003) % 1_900_000;
                    file.read_exact_at(&mut bytes, offset).unwrap();
                    assert!(bytes == pattern(offset, 100_000), "at {offset}");
                }
            });
        }
    });
}
