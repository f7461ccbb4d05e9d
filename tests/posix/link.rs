//! link(2).

use std::os::fd::AsRawFd;

use rustix::fs::{AtFlags, CWD, linkat};
use rustix::io::Errno;

use crate::support::{Fixture, has_index, requires};

const NO_INDEX: &str = "without an index the kernel gives the names different inode numbers";

#[test]
fn link_of_a_lower_file_copies_it_up_and_both_names_are_one_file() {
    requires!(has_index(), NO_INDEX);
    let mut fs = Fixture::new()
        .lower("d/f 'text' 0640 mtime=1000; e/")
        .mount();
    fs.link("d/f", "e/g");
    assert_eq!(fs.stat("d/f").st_nlink, 2);
    fs.assert_state(
        "d/f 'text' 0640 mtime=1000; e/g = d/f",
        "d/f 'text' 0640 mtime=1000; e/g = d/f",
    );
}

#[test]
fn link_of_an_upper_file_makes_a_second_name() {
    let mut fs = Fixture::new().lower("d/x").upper("f 'u'").mount();
    fs.link("f", "d/g");
    fs.append("d/g", "+");
    assert_eq!(fs.text("f"), "u+");
    fs.assert_state("d/g 'u+' nlink=2; d/x; f = d/g", "d/g 'u+'; f = d/g");
}

#[test]
fn link_onto_a_deleted_name_replaces_the_whiteout() {
    requires!(has_index(), NO_INDEX);
    let mut fs = Fixture::new()
        .lower("a 'a'; b 'b'; c 'c'")
        .upper("c whiteout")
        .mount();
    fs.unlink("b");
    fs.link("a", "b");
    fs.link("a", "c");
    fs.assert_state("a 'a' nlink=3; b = a; c = a", "a 'a'; b = a; c = a");
}

#[test]
fn link_onto_a_name_of_any_layer_is_eexist() {
    let fs = Fixture::new().lower("a 'a'; low; d/").upper("up").mount();
    for name in ["low", "up", "d", "a"] {
        let result = linkat(CWD, fs.path("a"), CWD, fs.path(name), AtFlags::empty());
        assert_eq!(result, Err(Errno::EXIST), "{name}");
    }
}

#[test]
fn link_of_a_directory_is_eperm_and_of_nothing_enoent() {
    let fs = Fixture::new().lower("d/; f").mount();
    let link = |from, to| linkat(CWD, fs.path(from), CWD, fs.path(to), AtFlags::empty());
    assert_eq!(link("d", "x"), Err(Errno::PERM));
    assert_eq!(link("missing", "x"), Err(Errno::NOENT));
    assert_eq!(link("f", "missing/x"), Err(Errno::NOENT));
    assert_eq!(link("f", "f/x"), Err(Errno::NOTDIR));
    fs.assert_merged("d/; f");
}

#[test]
fn link_of_a_symlink_links_the_symlink_itself() {
    requires!(has_index(), NO_INDEX);
    let mut fs = Fixture::new().lower("l -> f; f 'f'").mount();
    fs.link("l", "m");
    fs.assert_state("f 'f'; l -> f; m = l", "l -> f; m = l");
}

#[test]
fn link_of_an_open_descriptor_works() {
    requires!(has_index(), NO_INDEX);
    let mut fs = Fixture::new().lower("f 'text'").mount();
    let file = fs.open("f");
    let number = format!("/proc/self/fd/{}", file.as_raw_fd());
    linkat(CWD, number, CWD, fs.path("g"), AtFlags::SYMLINK_FOLLOW).unwrap();
    drop(file);
    fs.assert_state("f 'text'; g = f", "f 'text'; g = f");
}

#[test]
fn link_counts_follow_link_and_unlink() {
    let fs = Fixture::new().lower("f 'x'").mount();
    assert_eq!(fs.stat("f").st_nlink, 1);
    fs.link("f", "g");
    fs.link("g", "h");
    assert_eq!(fs.stat("f").st_nlink, 3);
    fs.unlink("f");
    assert_eq!((fs.stat("g").st_nlink, fs.stat("h").st_nlink), (2, 2));
    fs.unlink("h");
    assert_eq!(fs.stat("g").st_nlink, 1);
}

#[test]
fn a_new_link_to_a_lower_file_that_has_links_counts_all_of_them() {
    requires!(has_index(), "needs the index");
    let mut fs = Fixture::new().lower("a 'x'; b = a").mount();
    fs.link("a", "c");
    fs.assert_merged("a 'x' nlink=3; b = a; c = a");
    fs.append("b", "+");
    fs.remount();
    fs.assert_merged("a 'x+' nlink=3; b = a; c = a");
}

#[test]
fn link_to_the_new_name_keeps_the_inode_number() {
    requires!(has_index(), NO_INDEX);
    let fs = Fixture::new().lower("f 'x'").mount();
    let inode = fs.inode("f");
    fs.link("f", "g");
    assert_eq!((fs.inode("f"), fs.inode("g")), (inode, inode));
}
