//! `copy_file_range(2)`, sendfile(2), and cloning.

use rustix::fs::{copy_file_range, ioctl_ficlone};
use rustix::io::Errno;

use crate::support::tree::pattern;
use crate::support::{Fixture, deviates};

#[test]
fn a_range_is_copied_from_a_lower_to_a_new_file() {
    let mut fs = Fixture::new().lower("f pattern=300000").mount();
    fs.write("g", "");
    let (from, to) = (fs.open("f"), fs.open_rw("g"));
    let (mut offset, mut done) = (1000, 0);
    while done < 200_000 {
        let mut at = done;
        let left = usize::try_from(200_000 - done).unwrap();
        let copied = copy_file_range(&from, Some(&mut offset), &to, Some(&mut at), left).unwrap();
        assert!(copied > 0);
        done += copied as u64;
    }
    drop((from, to));
    assert!(fs.read("g") == pattern(1000, 200_000));
    fs.remount();
    assert!(fs.read("g") == pattern(1000, 200_000));
}

#[test]
fn a_range_is_copied_into_the_middle_of_a_lower_file() {
    let mut fs = Fixture::new()
        .lower("from 'abcdef'; to '0123456789'")
        .mount();
    let (mut source, mut target) = (2, 4);
    let copied = copy_file_range(
        fs.open("from"),
        Some(&mut source),
        fs.open_rw("to"),
        Some(&mut target),
        3,
    );
    assert_eq!(copied, Ok(3));
    fs.assert_state("from 'abcdef'; to '0123cde789'", "to '0123cde789'");
}

#[test]
fn a_range_after_the_end_copies_nothing() {
    let fs = Fixture::new().lower("from 'abc'").upper("to 'x'").mount();
    let mut source = 10;
    let copied = copy_file_range(
        fs.open("from"),
        Some(&mut source),
        fs.open_rw("to"),
        None,
        3,
    );
    assert_eq!(copied, Ok(0));
    fs.assert_merged("from 'abc'; to 'x'");
}

#[test]
fn cloning_is_refused_or_gives_an_equal_file() {
    let fs = Fixture::new().lower("f pattern=100000").mount();
    fs.write("g", "");
    std::fs::write(fs.aside("a"), "x").unwrap();
    let beside = ioctl_ficlone(
        std::fs::File::create(fs.aside("b")).unwrap(),
        std::fs::File::open(fs.aside("a")).unwrap(),
    );
    let result = ioctl_ficlone(fs.open_rw("g"), fs.open("f"));
    if deviates("the kernel passes no clone request to a FUSE filesystem") {
        assert_eq!(result, Err(Errno::OPNOTSUPP));
    } else {
        assert_eq!(result.is_ok(), beside.is_ok(), "{result:?} {beside:?}");
    }
}

#[test]
fn cp_copies_lower_files_and_trees_within_the_mount() {
    let mut fs = Fixture::new()
        .lower("f pattern=1000000 0640; d/a 'a' 0600; d/e/b -> ../a")
        .mount();
    fs.sh("cp -a f g; cp -a d copy; cp --sparse=always f h");
    fs.remount();
    assert!(fs.read("g") == fs.read("f") && fs.read("h") == fs.read("f"));
    fs.unlink("h");
    fs.assert_merged(
        "f pattern=1000000 0640; g pattern=1000000 0640; d/a 'a' 0600; d/e/b -> ../a;
        copy/a 'a' 0600; copy/e/b -> ../a"
            .replace("        ", "")
            .as_str(),
    );
}
