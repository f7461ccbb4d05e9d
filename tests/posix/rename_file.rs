//! rename(2) of everything but directories.

use std::io::Read;

use rustix::io::Errno;

use crate::support::{Fixture, has_index, has_origins, requires};

#[test]
fn rename_of_a_lower_file_copies_it_up_and_leaves_a_whiteout() {
    let mut fs = Fixture::new()
        .lower("d/f 'text' 0640 mtime=1000.5 user.k='v'; e/")
        .mount();
    fs.rename("d/f", "e/g");
    fs.assert_state(
        "d/; e/g 'text' 0640 mtime=1000.5 user.k='v'",
        "d/f whiteout; e/g 'text' 0640 mtime=1000.5 user.k='v'",
    );
}

#[test]
fn rename_of_an_upper_file_leaves_nothing_behind() {
    let mut fs = Fixture::new()
        .lower("d/x")
        .upper("d/f 'u'; f 'top'")
        .mount();
    fs.rename("d/f", "d/g");
    fs.rename("f", "g");
    fs.assert_state("d/x; d/g 'u'; g 'top'", "d/g 'u'; g 'top'");
}

#[test]
fn rename_within_one_directory_works() {
    let mut fs = Fixture::new().lower("d/f 'text'").mount();
    fs.rename("d/f", "d/g");
    assert!(fs.is_absent("d/f"));
    fs.assert_state("d/g 'text'", "d/f whiteout; d/g 'text'");
}

#[test]
fn rename_over_a_lower_file_replaces_it() {
    let mut fs = Fixture::new()
        .lower("a 'a'; b 'b'")
        .lower("b 'deeper'")
        .mount();
    fs.rename("a", "b");
    fs.assert_state("b 'a'", "a whiteout; b 'a'");
}

#[test]
fn rename_over_an_upper_file_replaces_it() {
    let mut fs = Fixture::new().lower("a 'a'").upper("b 'b'").mount();
    fs.rename("a", "b");
    fs.assert_state("b 'a'", "a whiteout; b 'a'");
}

#[test]
fn rename_of_an_upper_file_over_a_lower_one_needs_no_whiteout() {
    let mut fs = Fixture::new().lower("d/f 'old'").mount();
    fs.write("d/.f.tmp", "new");
    fs.rename("d/.f.tmp", "d/f");
    fs.assert_state("d/f 'new'", "d/f 'new'");
}

#[test]
fn rename_onto_a_deleted_name_replaces_the_whiteout() {
    let mut fs = Fixture::new()
        .lower("a 'a'; b 'b'")
        .upper("u 'u'; b whiteout")
        .mount();
    fs.rename("u", "b");
    fs.rename("b", "c");
    fs.unlink("a");
    fs.rename("c", "a");
    fs.assert_state("a 'u'", "a 'u'; b whiteout");
}

#[test]
fn rename_there_and_back_gives_the_file_again() {
    let mut fs = Fixture::new().lower("d/f 'text' 0600; e/x").mount();
    let inode = fs.inode("d/f");
    fs.rename("d/f", "e/f");
    fs.rename("e/f", "d/f");
    assert_eq!(fs.inode("d/f"), inode);
    fs.assert_state("d/f 'text' 0600; e/x", "d/f 'text' 0600; e/");
}

#[test]
fn rename_to_itself_and_between_two_names_of_one_file_does_nothing() {
    let mut fs = Fixture::new().lower("").upper("a 'x'; b = a").mount();
    fs.rename("a", "a");
    fs.rename("a", "b");
    fs.assert_state("a 'x'; b = a", "a 'x'; b = a");
}

#[test]
fn rename_between_two_lower_names_of_one_file_does_nothing() {
    requires!(has_index(), "needs the index");
    let mut fs = Fixture::new().lower("a 'x'; b = a").mount();
    fs.rename("a", "b");
    fs.assert_merged("a 'x'; b = a");
    fs.remount();
    fs.assert_merged("a 'x'; b = a");
}

#[test]
fn rename_of_a_symlink_moves_the_link() {
    let mut fs = Fixture::new().lower("l -> f; f 'f'; d/").mount();
    fs.rename("l", "d/m");
    fs.assert_state("f 'f'; d/m -> f", "l whiteout; d/m -> f");
}

#[test]
fn rename_of_fifo_and_socket_works() {
    let mut fs = Fixture::new().lower("p fifo 0600; s socket; d/").mount();
    fs.rename("p", "d/p");
    fs.rename("s", "d/s");
    fs.assert_state(
        "d/p fifo 0600; d/s socket",
        "p whiteout; s whiteout; d/p fifo 0600; d/s socket",
    );
}

#[test]
fn rename_with_wrong_kinds_fails_as_posix_says() {
    let fs = Fixture::new().lower("f 'f'; d/x; empty/").mount();
    let rename = |from, to| rustix::fs::rename(fs.path(from), fs.path(to));
    assert_eq!(rename("f", "d"), Err(Errno::ISDIR));
    assert_eq!(rename("f", "empty"), Err(Errno::ISDIR));
    assert_eq!(rename("empty", "f"), Err(Errno::NOTDIR));
    assert_eq!(rename("missing", "f"), Err(Errno::NOENT));
    assert_eq!(rename("f", "missing/f"), Err(Errno::NOENT));
    assert_eq!(rename("f", "f/x"), Err(Errno::NOTDIR));
    fs.assert_merged("f 'f'; d/x; empty/");
}

#[test]
fn rename_keeps_the_inode_number() {
    let mut fs = Fixture::new().lower("low 'x'; d/").upper("up 'y'").mount();
    let (low, up) = (fs.inode("low"), fs.inode("up"));
    fs.rename("low", "d/low");
    fs.rename("up", "d/up");
    assert_eq!((fs.inode("d/low"), fs.inode("d/up")), (low, up));
    requires!(
        has_origins(),
        "the inode number after a remount needs file handles"
    );
    fs.remount();
    assert_eq!((fs.inode("d/low"), fs.inode("d/up")), (low, up));
}

#[test]
fn rename_changes_the_times_of_both_parents() {
    let fs = Fixture::new().lower("a/f; b/x").mount();
    let before = (fs.mtime("a"), fs.mtime("b"));
    fs.rename("a/f", "b/f");
    assert!(fs.mtime("a") > before.0 && fs.mtime("b") > before.1);
}

#[test]
fn a_file_replaced_by_rename_stays_readable_where_it_is_open() {
    let mut fs = Fixture::new().lower("old 'old content'; new 'new'").mount();
    let mut open = fs.open("old");
    fs.rename("new", "old");
    assert_eq!(fs.text("old"), "new");
    let mut text = String::new();
    open.read_to_string(&mut text).unwrap();
    assert_eq!(text, "old content");
    drop(open);
    fs.assert_state("old 'new'", "old 'new'; new whiteout");
}

#[test]
fn the_editor_pattern_write_aside_then_rename_keeps_every_other_file() {
    let mut fs = Fixture::new().lower("etc/conf 'v0'; etc/other 'o'").mount();
    for version in 1..=5 {
        fs.write("etc/conf.new", format!("v{version}"));
        fs.rename("etc/conf", "etc/conf~");
        fs.rename("etc/conf.new", "etc/conf");
    }
    let state = "etc/conf 'v5'; etc/conf~ 'v4'; etc/other 'o'";
    fs.assert_state(state, "etc/conf 'v5'; etc/conf~ 'v4'");
}

#[test]
fn a_name_moved_away_can_be_created_again() {
    let mut fs = Fixture::new().lower("f 'old'; d/x").mount();
    fs.rename("f", "moved");
    assert!(fs.is_absent("f"));
    fs.write("f", "new");
    fs.assert_state("f 'new'; moved 'old'; d/x", "f 'new'; moved 'old'");
}
