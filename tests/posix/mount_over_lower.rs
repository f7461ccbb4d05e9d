//! The mount point and the layers in one place.

use crate::support::{Fixture, is_kernel, requires};

#[test]
fn a_mount_over_one_of_its_lowers_shows_the_union_and_not_itself() {
    let mut fs = Fixture::new()
        .lower("top 't'; d/a")
        .lower("bottom 'b'; d/b")
        .mount_at("l0")
        .mount();
    fs.assert_merged("top 't'; d/a; bottom 'b'; d/b");
    fs.append("top", "+");
    fs.unlink("d/a");
    fs.write("new", "n");
    fs.assert_state(
        "top 't+'; d/b; bottom 'b'; new 'n'",
        "top 't+'; d/a whiteout; new 'n'",
    );
}

#[test]
fn a_mount_over_the_only_lower_works() {
    let mut fs = Fixture::new().lower("f 'x'; d/e/g").mount_at("l0").mount();
    fs.append("f", "+");
    fs.remove_tree("d");
    fs.assert_state("f 'x+'", "f 'x+'; d whiteout");
}

#[test]
fn a_mount_point_inside_a_lower_shows_as_an_empty_directory() {
    let mut fs = Fixture::new()
        .lower("mnt/; f 'x'")
        .lower("g 'y'")
        .mount_at("l0/mnt")
        .mount();
    fs.assert_merged("mnt/; f 'x'; g 'y'");
    fs.write("mnt/inner", "i");
    fs.append("f", "+");
    fs.assert_state("mnt/inner 'i'; f 'x+'; g 'y'", "mnt/inner 'i'; f 'x+'");
}

#[test]
fn a_mount_point_inside_its_own_upper_is_refused() {
    requires!(
        !is_kernel(),
        "the kernel reaches its upper without walking into the mount"
    );
    let error = Fixture::new()
        .lower("f 'x'")
        .upper("mnt/")
        .mount_at("rw/upper/mnt")
        .not_for_the_kernel()
        .try_mount()
        .unwrap_err();
    assert!(error.clone().contains("is inside the upper"), "{error}");
}

#[test]
fn the_same_lower_may_be_used_by_two_mounts_at_once() {
    let first = Fixture::new().lower("f 'x'; d/g 'y'").mount();
    let second = Fixture::new().lower_dir(first.lower(0, "")).mount();
    first.append("f", "+1");
    second.append("f", "+2");
    second.unlink("d/g");
    first.assert_merged("f 'x+1'; d/g 'y'");
    second.assert_merged("f 'x+2'; d/");
}
