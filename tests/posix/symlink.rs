//! symlink(2).

use rustix::io::Errno;

use crate::support::Fixture;

#[test]
fn a_new_symlink_lies_in_the_upper_with_its_target_unchanged() {
    let mut fs = Fixture::new().lower("d/x").mount();
    fs.symlink("../any where/é", "d/l");
    fs.symlink("/absolute", "m");
    let links = "d/l -> ../any\\x20where/\\xc3\\xa9; m -> /absolute";
    fs.assert_state(&format!("d/x; {links}"), links);
}

#[test]
fn a_symlink_over_a_deleted_file_or_directory_replaces_the_whiteout() {
    let mut fs = Fixture::new().lower("f 'f'; d/x").mount();
    fs.unlink("f");
    fs.remove_tree("d");
    fs.symlink("a", "f");
    fs.symlink("b", "d");
    fs.assert_state("f -> a; d -> b", "f -> a; d -> b");
}

#[test]
fn a_symlink_onto_a_name_of_any_layer_is_eexist() {
    let fs = Fixture::new().lower("low; l -> x").upper("up").mount();
    for name in ["low", "up", "l"] {
        assert_eq!(
            rustix::fs::symlink("t", fs.path(name)),
            Err(Errno::EXIST),
            "{name}"
        );
    }
}

#[test]
fn a_symlink_of_a_lower_is_followed_within_the_merged_view() {
    let mut fs = Fixture::new()
        .lower("l -> d/f; up -> ../d/f; dir -> d")
        .lower("d/f 'bottom'")
        .mount();
    assert_eq!(fs.text("l"), "bottom");
    fs.append("l", "+");
    fs.append("dir/f", "+");
    fs.assert_state(
        "l -> d/f; up -> ../d/f; dir -> d; d/f 'bottom++'",
        "d/f 'bottom++'",
    );
}

#[test]
fn the_size_of_a_symlink_is_the_length_of_its_target() {
    let fs = Fixture::new().lower("l -> 12345").mount();
    fs.symlink("123", "m");
    assert_eq!((fs.stat("l").st_size, fs.stat("m").st_size), (5, 3));
}

#[test]
fn a_target_of_a_thousand_bytes_works() {
    let mut fs = Fixture::new().lower("").mount();
    let target = "t".repeat(1000);
    fs.symlink(&target, "l");
    fs.assert_state(&format!("l -> {target}"), &format!("l -> {target}"));
}
