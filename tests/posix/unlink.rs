//! unlink(2).

use std::fs;
use std::os::unix::fs::FileTypeExt;

use rustix::io::Errno;

use crate::support::{Fixture, has_index, requires};

#[test]
fn unlink_of_a_lower_file_leaves_a_whiteout_and_copies_nothing() {
    let mut fs = Fixture::new().lower("d/f 'lower'; d/g 'kept'").mount();
    fs.unlink("d/f");
    assert!(fs.is_absent("d/f"));
    fs.assert_state("d/g 'kept'", "d/f whiteout");
}

#[test]
fn the_whiteout_written_is_a_character_device_0_0() {
    let fs = Fixture::new().lower("f 'lower'").mount();
    fs.unlink("f");
    let meta = fs::symlink_metadata(fs.upper("f")).unwrap();
    assert!(meta.file_type().is_char_device());
    assert_eq!(std::os::unix::fs::MetadataExt::rdev(&meta), 0);
}

#[test]
fn unlink_of_an_upper_file_leaves_nothing() {
    let mut fs = Fixture::new()
        .lower("d/g 'kept'")
        .upper("d/f 'upper'; f 'upper'")
        .mount();
    fs.unlink("f");
    fs.unlink("d/f");
    fs.assert_state("d/g 'kept'", "d/");
}

#[test]
fn unlink_of_a_file_created_in_a_merged_directory_leaves_no_whiteout() {
    let mut fs = Fixture::new()
        .lower("d/g 'kept'")
        .upper("d/h 'upper'")
        .mount();
    fs.write("d/new", "x");
    fs.unlink("d/new");
    fs.assert_state("d/g 'kept'; d/h 'upper'", "d/h 'upper'");
}

#[test]
fn unlink_of_a_copied_up_file_leaves_a_whiteout() {
    let mut fs = Fixture::new().lower("f 'lower'").mount();
    fs.append("f", "+");
    fs.unlink("f");
    fs.assert_state("", "f whiteout");
}

#[test]
fn unlink_of_an_upper_file_over_a_lower_one_hides_both() {
    let mut fs = Fixture::new()
        .lower("f 'top'")
        .lower("f 'bottom'")
        .upper("f 'upper'")
        .mount();
    fs.unlink("f");
    assert!(fs.is_absent("f"));
    fs.assert_state("", "f whiteout");
}

#[test]
fn unlink_in_an_opaque_directory_leaves_no_whiteout() {
    let mut fs = Fixture::new()
        .lower("d/f 'lower'")
        .upper("d/ opaque; d/f 'upper'")
        .mount();
    fs.unlink("d/f");
    fs.assert_state("d/", "d/ opaque");
}

#[test]
fn unlink_twice_is_enoent_and_unlink_of_a_directory_eisdir() {
    let fs = Fixture::new().lower("f 'lower'; d/").mount();
    fs.unlink("f");
    assert_eq!(rustix::fs::unlink(fs.path("f")), Err(Errno::NOENT));
    assert_eq!(rustix::fs::unlink(fs.path("d")), Err(Errno::ISDIR));
    assert_eq!(rustix::fs::unlink(fs.path("missing")), Err(Errno::NOENT));
}

#[test]
fn unlink_and_create_again_any_number_of_times() {
    let mut fs = Fixture::new().lower("f 'lower'").mount();
    for round in ["1", "2", "3"] {
        fs.unlink("f");
        assert!(fs.is_absent("f"));
        fs.write("f", round);
        assert_eq!(fs.text("f"), round);
    }
    fs.assert_state("f '3'", "f '3'");
}

#[test]
fn unlink_of_a_symlink_removes_the_link_and_not_its_target() {
    let mut fs = Fixture::new().lower("l -> f; f 'kept'").mount();
    fs.unlink("l");
    fs.assert_state("f 'kept'", "l whiteout");
}

#[test]
fn unlink_of_fifo_and_socket_of_a_lower_leaves_whiteouts() {
    let mut fs = Fixture::new().lower("p fifo; s socket").mount();
    fs.unlink("p");
    fs.unlink("s");
    fs.assert_state("", "p whiteout; s whiteout");
}

#[test]
fn unlink_changes_the_time_of_the_parent_and_of_the_file() {
    let fs = Fixture::new().lower("d/f 'f'; d/g").mount();
    let (parent, open) = (fs.stat("d"), fs.open("d/f"));
    let before = rustix::fs::fstat(&open).unwrap();
    fs.unlink("d/f");
    let after = fs.stat("d");
    assert!(after.st_mtime > parent.st_mtime, "the mtime of the parent");
    assert_eq!(after.st_mtime, after.st_ctime);
    assert_eq!(rustix::fs::fstat(&open).unwrap().st_mtime, before.st_mtime);
}

#[test]
fn unlink_of_one_of_two_lower_names_keeps_the_other() {
    requires!(has_index(), "needs the index");
    let mut fs = Fixture::new().lower("a 'x'; b = a").mount();
    fs.unlink("a");
    fs.assert_state("b 'x' nlink=1", "a whiteout");
}

#[test]
fn removing_a_whole_merged_tree_leaves_one_whiteout() {
    let mut fs = Fixture::new()
        .lower("d/a; d/b; d/e/f; d/e/g")
        .lower("d/c; d/e/h")
        .upper("d/u; d/e/v")
        .mount();
    fs.remove_tree("d");
    assert!(fs.is_absent("d/e/f"));
    fs.assert_state("", "d whiteout");
}
