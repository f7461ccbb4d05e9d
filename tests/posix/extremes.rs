//! What is very deep, very long or very large.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, SeekFrom, mkdirat, openat, renameat, seek, unlinkat};

use crate::support::Fixture;

/// Below each other; with these names the path is ten times as long as one system call takes.
const DEPTH: usize = 500;

fn name() -> String {
    "d".repeat(80)
}

fn open_dir(dir: &impl std::os::fd::AsFd, name: &str) -> OwnedFd {
    openat(
        dir,
        name,
        OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .unwrap()
}

/// Makes the directories below `root`, with a file in the last.
fn make_deep(root: &Path) {
    let mut dir = openat(CWD, root, OFlags::DIRECTORY, Mode::empty()).unwrap();
    for _ in 0..DEPTH {
        mkdirat(&dir, name(), Mode::from_raw_mode(0o755)).unwrap();
        dir = open_dir(&dir, &name());
    }
    let flags = OFlags::CREATE | OFlags::WRONLY;
    let file = openat(&dir, "file", flags, Mode::from_raw_mode(0o644)).unwrap();
    rustix::io::write(&file, b"deep").unwrap();
}

/// The last directory.
fn descend(root: &Path, first: &str) -> OwnedFd {
    let root = openat(CWD, root, OFlags::DIRECTORY, Mode::empty()).unwrap();
    let first = open_dir(&root, first);
    (1..DEPTH).fold(first, |dir, _| open_dir(&dir, &name()))
}

fn content(dir: &OwnedFd) -> String {
    let file = openat(dir, "file", OFlags::RDONLY, Mode::empty()).unwrap();
    std::io::read_to_string(File::from(file)).unwrap()
}

#[test]
fn a_tree_of_five_hundred_levels_is_made_moved_and_removed() {
    let mut fs = Fixture::new().lower("other").mount();
    make_deep(&fs.path(""));
    assert_eq!(content(&descend(&fs.path(""), &name())), "deep");
    fs.rename(name(), "moved");
    fs.remount();
    assert_eq!(content(&descend(&fs.path(""), "moved")), "deep");
    fs.sh("rm -rf moved");
    fs.assert_state("other", "");
}

#[test]
fn a_file_below_five_hundred_lower_directories_is_changed() {
    let base = tempfile::tempdir_in(crate::support::run::base_dir()).unwrap();
    make_deep(base.path());
    let mut fs = Fixture::new()
        .lower_dir(base.path())
        .lowers_change()
        .mount();
    let dir = descend(&fs.path(""), &name());
    let file = openat(&dir, "file", OFlags::WRONLY | OFlags::APPEND, Mode::empty()).unwrap();
    rustix::io::write(&file, b"er").unwrap();
    renameat(&dir, "file", &dir, "new").unwrap();
    renameat(&dir, "new", &dir, "file").unwrap();
    drop((dir, file));
    fs.remount();
    let dir = descend(&fs.path(""), &name());
    assert_eq!(content(&dir), "deeper");
    assert_eq!(content(&descend(base.path(), &name())), "deep");
    unlinkat(&dir, "file", AtFlags::empty()).unwrap();
    drop(dir);
    fs.sh("rm -rf d*");
    assert!(fs.names("").is_empty());
    fs.remount();
    assert!(fs.names("").is_empty());
}

#[test]
fn offsets_beyond_four_gibibytes_are_read_written_and_copied_up() {
    const FAR: u64 = (5 << 30) + 123;
    let mut fs = Fixture::new()
        .lower("f 'begin' 0644")
        .lowers_change()
        .mount();
    let below = File::options().write(true).open(fs.lower(0, "f")).unwrap();
    below.write_all_at(b"end", FAR).unwrap();
    drop(below);
    fs.remount();
    let at = |fs: &crate::support::Mounted, offset| {
        let mut three = [0; 3];
        fs.open("f").read_exact_at(&mut three, offset).unwrap();
        three
    };
    assert_eq!(at(&fs, FAR), *b"end");
    fs.append("f", "+");
    fs.write_at("f", FAR - (1 << 30), b"mid");
    for _ in 0..2 {
        assert_eq!(fs.stat("f").st_size, i64::try_from(FAR).unwrap() + 4);
        assert_eq!(
            [at(&fs, FAR), at(&fs, FAR + 1), at(&fs, FAR - (1 << 30))],
            [*b"end", *b"nd+", *b"mid"]
        );
        assert_eq!(
            seek(fs.open("f"), SeekFrom::Data(1 << 30)).unwrap() / 4096,
            (FAR - (1 << 30)) / 4096
        );
        assert!(
            rustix::fs::stat(fs.upper("f")).unwrap().st_blocks < 4096,
            "holes were filled"
        );
        fs.remount();
    }
    fs.truncate("f", 5);
    fs.assert_state("f 'begin'", "f 'begin'");
}
