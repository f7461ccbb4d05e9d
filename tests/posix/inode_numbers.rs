//! `st_ino`, `st_dev` and what programs conclude from them.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;

use crate::support::tree::lines;
use crate::support::{Fixture, Mounted, has_origins, is_kernel, is_root, requires};

fn all(fs: &Mounted) -> HashMap<String, u64> {
    let listing = fs.sh("find . -mindepth 1 -printf '%i %p\\n'");
    let pairs = listing.lines().map(|line| line.split_once(' ').unwrap());
    pairs
        .map(|(inode, path)| (path.to_owned(), inode.parse().unwrap()))
        .collect()
}

#[test]
fn copy_up_keeps_the_inode_number_of_every_kind() {
    let fs = Fixture::new()
        .lower("d/f 'f'; d/e/g; d/l -> f; d/p fifo; d/s socket")
        .mount();
    let before = all(&fs);
    fs.append("d/f", "+");
    for name in ["d/e", "d/p", "d/s"] {
        fs.chmod(name, 0o700);
    }
    fs.set_mtime("d/l", 1000, 0);
    assert_eq!(all(&fs), before);
}

#[test]
fn inode_numbers_survive_a_remount_after_copy_up() {
    requires!(has_origins(), "needs file handles");
    let mut fs = Fixture::new()
        .lower("d/f 'f'; d/e/g; d/p fifo")
        .lower("d/e/h; low/k")
        .mount();
    let before = all(&fs);
    fs.append("d/f", "+");
    fs.chmod("d/e", 0o700);
    fs.chmod("d/e/h", 0o700);
    if is_root() {
        // A FIFO cannot carry a user xattr, so only a trusted one remembers its origin.
        fs.chmod("d/p", 0o600);
    }
    fs.remount();
    assert_eq!(all(&fs), before);
}

#[test]
fn inode_numbers_of_symlinks_and_special_files_are_constant_while_mounted_and_settle_after() {
    requires!(has_origins(), "needs file handles");
    let mut fs = Fixture::new()
        .lower("d/l -> f; d/p fifo; d/s socket; d/f")
        .mount();
    let before = all(&fs);
    fs.set_mtime("d/l", 1000, 0);
    fs.chmod("d/p", 0o600);
    fs.chmod("d/s", 0o600);
    fs.chmod("d/f", 0o600);
    assert_eq!(all(&fs), before);
    fs.remount();
    let after = all(&fs);
    if is_root() {
        assert_eq!(after, before);
    } else {
        // These cannot carry a user xattr that remembers where they are from.
        assert_eq!(after["./d/f"], before["./d/f"]);
        assert_eq!(after["./d"], before["./d"]);
    }
    fs.remount();
    assert_eq!(all(&fs), after);
}

#[test]
fn inode_numbers_of_untouched_and_of_new_objects_survive_a_remount() {
    let mut fs = Fixture::new()
        .lower("d/f 'f'; d/l -> f")
        .lower("low/g")
        .mount();
    fs.write("d/new", "n");
    fs.mkdir("made");
    let before = all(&fs);
    fs.remount();
    assert_eq!(all(&fs), before);
}

#[test]
fn all_objects_have_different_inode_numbers() {
    let text = |prefix: &str| -> String {
        lines(0..100, |number| {
            format!("d/{prefix}{number}/f; {prefix}{number}\n")
        })
    };
    let fs = Fixture::new()
        .lower(&text("a"))
        .lower(&text("b"))
        .lower(&text("a"))
        .upper(&text("c"))
        .mount();
    let inodes = all(&fs);
    let mut numbers: Vec<_> = inodes.values().collect();
    numbers.sort();
    numbers.dedup();
    assert_eq!(numbers.len(), inodes.len());
}

#[test]
fn an_upper_file_over_an_unrelated_lower_file_has_a_number_of_its_own() {
    let fs = Fixture::new()
        .lower("f 'lower'; other 'o'")
        .upper("f 'upper'")
        .mount();
    let before = fs.inode("f");
    assert_eq!(fs.names(""), ["f", "other"]);
    assert_eq!(fs.inode("f"), before);
    assert_ne!(fs.inode("other"), before);
}

#[test]
fn one_device_number_for_the_whole_view_when_the_layers_share_a_filesystem() {
    let fs = Fixture::new()
        .lower("d/f; l -> f")
        .lower("e/g")
        .upper("u")
        .mount();
    let device = std::fs::symlink_metadata(fs.path("")).unwrap().dev();
    for name in ["d", "d/f", "l", "e", "e/g", "u"] {
        assert_eq!(
            std::fs::symlink_metadata(fs.path(name)).unwrap().dev(),
            device,
            "{name}"
        );
    }
}

#[test]
fn a_file_created_after_an_unlink_is_another_file_for_open_descriptors() {
    let fs = Fixture::new().lower("f 'old'").mount();
    let old = fs.open("f");
    fs.unlink("f");
    fs.write("f", "new");
    let old = rustix::fs::fstat(&old).unwrap();
    assert_eq!(old.st_size, 3);
    assert_ne!(old.st_ino, fs.inode("f"));
}

#[test]
fn stat_before_and_after_readdir_gives_the_same_number() {
    let text = "d/f 'f'; d/g 'g'; d/e/h";
    let first = Fixture::new().lower(text).lower("d/f 'bottom'").mount();
    let (inode, _) = (first.inode("d/f"), first.names("d"));
    assert_eq!(first.inode("d/f"), inode);
    let listed = first.sh("ls -i d/f | cut -d' ' -f1");
    assert_eq!(listed, inode.to_string());
}

#[test]
fn link_counts_of_directories_do_not_make_find_skip_anything() {
    let mut fs = Fixture::new()
        .lower("d/a/x; d/b/")
        .lower("d/c/y")
        .upper("d/u/")
        .mount();
    assert_eq!(fs.sh("find d -type d | wc -l"), "5");
    fs.rmdir("d/b");
    fs.mkdir("d/v");
    fs.mkdir("d/w");
    assert_eq!(fs.sh("find d -type d | wc -l"), "6");
    fs.remount();
    assert_eq!(fs.sh("find d -type d | wc -l"), "6");
    assert!(is_kernel() || fs.stat("d").st_nlink == 1 || fs.stat("d").st_nlink == 7);
}
