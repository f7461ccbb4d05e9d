//! Every form of opaque directory, read from layers and written.

use crate::support::disk::{namespace, xattr};
use crate::support::{Fixture, is_kernel, is_root, requires};

/// A lower and an upper directory that are opaque by one mark.
fn hides_what_lies_below(form: &str, fixture: Fixture) {
    let mut fs = fixture
        .lower(&format!("low/ {form}; low/top 't'; n/in/ {form}; n/in/a"))
        .lower("low/bottom 'b'; low/sub/x; up/old 'o'; up/sub/y; n/in/b; n/seen")
        .upper(&format!("up/ {form}; up/new 'n'"))
        .mount();
    let merged = "low/top 't'; up/new 'n'; n/in/a; n/seen";
    fs.assert_merged(merged);
    assert_eq!(fs.names("up"), ["new"]);
    assert!(fs.is_absent("low/bottom") && fs.is_absent("up/sub/y") && fs.is_absent("n/in/b"));
    fs.mkdir("up/sub");
    fs.mkdir("low/sub");
    assert!(fs.names("up/sub").is_empty() && fs.names("low/sub").is_empty());
    fs.remount();
    fs.assert_merged(&format!("{merged}; up/sub/; low/sub/"));
}

#[test]
fn the_xattr_of_this_run_makes_a_directory_opaque() {
    hides_what_lies_below("opaque", Fixture::new());
}

#[test]
fn user_overlay_opaque_makes_a_directory_opaque() {
    requires!(
        !is_kernel() || !is_root(),
        "the kernel reads one namespace only"
    );
    hides_what_lies_below("opaque=user", Fixture::new().not_for_the_kernel());
}

#[test]
fn the_xattr_of_fuse_overlayfs_makes_a_directory_opaque() {
    requires!(!is_kernel(), "the kernel does not know it");
    hides_what_lies_below("opaque=fuse", Fixture::new().not_for_the_kernel());
}

#[test]
fn the_file_of_aufs_and_oci_makes_a_directory_opaque() {
    requires!(!is_kernel(), "the kernel does not know it");
    hides_what_lies_below("opaque=file", Fixture::new().not_for_the_kernel());
}

#[test]
fn an_opaque_root_of_a_layer_hides_all_layers_below() {
    let fs = Fixture::new().lower("a").lower("b").upper("u").mount();
    fs.assert_merged("a; b; u");
    drop(fs);
    requires!(
        !is_kernel(),
        "the kernel does not look for the mark on the roots of layers"
    );
    let fs = Fixture::new()
        .lower("a")
        .lower(". opaque; b")
        .lower("c")
        .not_for_the_kernel()
        .mount();
    fs.assert_merged("a; b");
}

#[test]
fn an_opaque_directory_in_the_middle_is_merged_with_what_lies_above_only() {
    let mut fs = Fixture::new()
        .lower("d/top 't'")
        .lower("d/ opaque; d/middle 'm'")
        .lower("d/bottom 'b'")
        .mount();
    fs.assert_merged("d/top 't'; d/middle 'm'");
    fs.append("d/middle", "+");
    fs.assert_state("d/top 't'; d/middle 'm+'", "d/middle 'm+'");
}

#[test]
fn directories_inside_an_opaque_directory_are_not_merged_with_those_below() {
    let fs = Fixture::new()
        .lower("d/ opaque; d/sub/a 'a'")
        .lower("d/sub/b 'b'; d/sub/deep/c")
        .mount();
    fs.assert_merged("d/sub/a 'a'");
    assert!(fs.is_absent("d/sub/b") && fs.is_absent("d/sub/deep"));
}

#[test]
fn the_mark_that_is_written_is_the_kernels() {
    let fs = Fixture::new().lower("d/x").mount();
    fs.remove_tree("d");
    fs.mkdir("d");
    let name = format!("{}.overlay.opaque", namespace());
    assert_eq!(xattr(&fs.upper("d"), &name).as_deref(), Some(&b"y"[..]));
    assert!(!fs.upper("d/.wh..wh..opq").exists());
}

#[test]
fn deep_trees_deleted_and_made_again_stay_empty_over_remounts() {
    let mut fs = Fixture::new().lower("a/b/c/d/f 'old'; a/b/x 'old'").mount();
    for round in 0..3 {
        fs.remove_tree("a/b");
        std::fs::create_dir_all(fs.path("a/b/c/d")).unwrap();
        fs.write("a/b/c/new", round.to_string());
        fs.remount();
        fs.assert_merged(&format!("a/b/c/d/; a/b/c/new '{round}'"));
        fs.remove_tree("a");
        fs.remount();
        fs.assert_merged("");
        std::fs::create_dir_all(fs.path("a/b")).unwrap();
    }
    fs.assert_state("a/b/", "a/ opaque; a/b/ opaque=either");
}
