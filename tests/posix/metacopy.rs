//! Metadata-only copy-up, option `metacopy=on`.

use std::os::fd::AsRawFd;

use rustix::fs::{AtFlags, CWD};

use crate::support::disk::xattr_names;
use crate::support::tree::pattern;
use crate::support::{Fixture, Mounted, has_metacopy, has_redirects, is_kernel, requires};

const NO_METACOPY: &str = "the kernel has no metacopy with userxattr";

fn mount(lower: &str) -> Mounted {
    Fixture::new().lower(lower).option("metacopy=on").mount()
}

#[test]
fn changes_of_metadata_copy_no_data() {
    requires!(has_metacopy(), NO_METACOPY);
    let mut fs = mount("a pattern=100000; b pattern=100000; c pattern=100000");
    fs.chmod("a", 0o600);
    fs.set_mtime("b", 1000, 5);
    fs.set_xattr("c", "user.k", "v");
    fs.assert_state(
        "a pattern=100000 0600; b pattern=100000 mtime=1000.000000005; c pattern=100000 user.k='v'",
        "a metacopy 0600; b metacopy mtime=1000.000000005; c metacopy user.k='v'",
    );
    let stat = rustix::fs::stat(fs.upper("a")).unwrap();
    assert_eq!(
        (stat.st_size, stat.st_blocks < 16),
        (100_000, true),
        "size and no data"
    );
}

#[test]
fn the_first_write_brings_the_data() {
    requires!(has_metacopy(), NO_METACOPY);
    let mut fs = mount("f pattern=100000 0644 user.k='v'");
    fs.chmod("f", 0o600);
    fs.write_at("f", 50_000, b"new");
    let mut expected = pattern(0, 100_000);
    expected[50_000..50_003].copy_from_slice(b"new");
    assert!(fs.read("f") == expected);
    fs.remount();
    assert!(fs.read("f") == expected);
    assert!(std::fs::read(fs.upper("f")).unwrap() == expected);
    assert!(!is_metacopy(&fs, "f"));
    assert_eq!(
        (fs.mode("f"), fs.xattr("f", "user.k").as_deref()),
        (0o600, Some("v"))
    );
}

#[test]
fn truncate_after_a_change_of_metadata_keeps_the_beginning() {
    requires!(has_metacopy(), NO_METACOPY);
    let mut fs = mount("f '0123456789'; g '0123456789'");
    fs.chmod("f", 0o600);
    fs.chmod("g", 0o600);
    fs.truncate("f", 4);
    fs.write("g", "");
    fs.assert_state("f '0123' 0600; g '' 0600", "f '0123' 0600; g '' 0600");
}

#[test]
fn a_renamed_file_without_data_finds_its_data() {
    requires!(has_metacopy(), NO_METACOPY);
    let mut fs = mount("d/f pattern=5000; e/; g pattern=6000");
    fs.chmod("d/f", 0o600);
    fs.rename("d/f", "e/h");
    fs.rename("g", "k");
    fs.assert_merged("d/; e/h pattern=5000 0600; k pattern=6000");
    fs.remount();
    fs.assert_merged("d/; e/h pattern=5000 0600; k pattern=6000");
    fs.append("e/h", "+");
    let mut expected = pattern(0, 5000);
    expected.push(b'+');
    assert!(fs.read("e/h") == expected);
}

#[test]
fn a_file_without_data_in_a_renamed_directory_finds_its_data() {
    requires!(has_metacopy() && has_redirects(), NO_METACOPY);
    let mut fs = mount("d/e/f pattern=5000");
    fs.chmod("d/e/f", 0o600);
    fs.rename("d", "m");
    fs.rename("m/e", "e2");
    fs.assert_merged("m/; e2/f pattern=5000 0600");
    fs.remount();
    fs.assert_merged("m/; e2/f pattern=5000 0600");
}

#[test]
fn hard_links_of_a_file_without_data_are_one_file() {
    requires!(has_metacopy(), NO_METACOPY);
    let mut fs = mount("f pattern=5000");
    fs.chmod("f", 0o600);
    fs.link("f", "g");
    fs.assert_merged("f pattern=5000 0600 nlink=2; g = f");
    fs.remount();
    fs.assert_merged("f pattern=5000 0600 nlink=2; g = f");
    fs.append("g", "+");
    fs.remount();
    assert_eq!(fs.read("f").len(), 5001);
    let (f, g) = (
        rustix::fs::stat(fs.upper("f")).unwrap(),
        rustix::fs::stat(fs.upper("g")).unwrap(),
    );
    assert_eq!((f.st_ino, f.st_size), (g.st_ino, 5001));
    assert!(!is_metacopy(&fs, "f"));
}

fn is_metacopy(fs: &Mounted, path: &str) -> bool {
    xattr_names(&fs.upper(path))
        .iter()
        .any(|name| name.ends_with("overlay.metacopy"))
}

#[test]
fn a_file_without_data_written_before_the_mount_is_completed_from_below() {
    requires!(has_metacopy(), NO_METACOPY);
    let mut fs = Fixture::new()
        .lower("f 'lower data' 0644; moved 'other data'")
        .upper("f hole=10 metacopy 0600; n hole=10 metacopy redirect=/moved 0640; moved whiteout")
        .option("metacopy=on")
        .mount();
    fs.assert_merged("f 'lower data' 0600; n 'other data' 0640");
    fs.append("f", "+");
    fs.append("n", "+");
    assert!(!is_metacopy(&fs, "f") && !is_metacopy(&fs, "n"));
    fs.remount();
    fs.assert_merged("f 'lower data+' 0600; n 'other data+' 0640");
}

#[test]
fn a_file_without_data_in_a_lower_layer_is_completed_from_further_below() {
    requires!(has_metacopy(), NO_METACOPY);
    let mut fs = Fixture::new()
        .lower("f hole=4 metacopy 0600")
        .lower("f hole=4 metacopy 0640")
        .lower("f 'data' 0644")
        .option("metacopy=on")
        .mount();
    fs.assert_merged("f 'data' 0600");
    fs.append("f", "+");
    fs.assert_state("f 'data+' 0600", "f 'data+' 0600");
}

#[test]
fn an_executable_without_data_runs() {
    requires!(has_metacopy(), NO_METACOPY);
    let fs = mount("run 0644 '#!/bin/sh\necho ran'");
    fs.chmod("run", 0o755);
    assert_eq!(fs.sh("./run"), "ran");
}

#[test]
fn without_the_option_a_change_of_metadata_copies_the_data() {
    let mut fs = Fixture::new().lower("f 'data' 0644").mount();
    fs.chmod("f", 0o600);
    fs.assert_state("f 'data' 0600", "f 'data' 0600");
}

#[test]
fn truncate_of_a_file_without_data_to_any_size_shows_what_is_left() {
    requires!(has_metacopy(), NO_METACOPY);
    let mut fs =
        mount("none pattern=10000; less pattern=10000; same pattern=10000; more pattern=10000");
    for (name, size) in [
        ("none", 0),
        ("less", 5000),
        ("same", 10_000),
        ("more", 15_000),
    ] {
        fs.chmod(name, 0o600);
        assert!(is_metacopy(&fs, name));
        fs.truncate(name, size);
        assert!(!is_metacopy(&fs, name), "{name} has its data");
    }
    let mut longer = pattern(0, 10_000);
    longer.resize(15_000, 0);
    for _ in 0..2 {
        assert!(fs.read("none").is_empty());
        assert!(fs.read("less") == pattern(0, 5000));
        assert!(fs.read("same") == pattern(0, 10_000));
        assert!(fs.read("more") == longer);
        fs.remount();
    }
}

#[test]
fn a_deleted_file_without_data_that_is_linked_again_finds_its_data() {
    requires!(
        has_metacopy() && !is_kernel(),
        "the kernel links no deleted file"
    );
    let mut fs = Fixture::new()
        .lower("e pattern=5000; g = e; c/x")
        .upper("g whiteout")
        .option("metacopy=on")
        .mount();
    fs.chmod("e", 0o600);
    let file = fs.open("e");
    fs.unlink("e");
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::linkat(CWD, path, CWD, fs.path("c/f"), AtFlags::SYMLINK_FOLLOW).unwrap();
    let stat = fs.stat("c/f");
    assert_eq!((stat.st_size, stat.st_mode & 0o7777), (5000, 0o600));
    assert!(fs.read("c/f") == pattern(0, 5000));
    drop(file);
    fs.remount();
    assert_eq!(fs.stat("c/f").st_size, 5000);
    assert!(fs.read("c/f") == pattern(0, 5000));
    assert!(fs.is_absent("e") && fs.is_absent("g"));
}

#[test]
fn a_moved_file_without_data_that_its_owner_may_not_read_finds_its_data() {
    requires!(has_metacopy(), NO_METACOPY);
    let mut fs = mount("f 'data' 0644; d/g 'more' 0644");
    fs.rename("f", "moved");
    fs.chmod("moved", 0);
    fs.chmod("d/g", 0o200);
    fs.remount();
    assert_eq!(fs.mode("moved") & 0o7777, 0);
    fs.chmod("moved", 0o600);
    fs.chmod("d/g", 0o600);
    fs.assert_merged("moved 'data' 0600; d/g 'more' 0600");
}
