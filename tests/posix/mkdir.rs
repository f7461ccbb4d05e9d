//! mkdir(2).

use rustix::io::Errno;

use crate::support::Fixture;

#[test]
fn mkdir_in_a_lower_directory_copies_up_the_parents_only() {
    let mut fs = Fixture::new()
        .lower("a/ 0750; a/b/ 0711 user.k='v'; a/b/f 'f'; a/g 'g'")
        .mount();
    fs.mkdir("a/b/new");
    fs.assert_state(
        "a/ 0750; a/b/ 0711 user.k='v'; a/b/f 'f'; a/b/new/; a/g 'g'",
        "a/ 0750; a/b/ 0711 user.k='v'; a/b/new/ opaque=either",
    );
}

#[test]
fn mkdir_over_a_deleted_directory_is_opaque() {
    let mut fs = Fixture::new().lower("p/d/old 'old'; p/f").mount();
    fs.remove_tree("p/d");
    fs.mkdir("p/d");
    assert!(fs.is_absent("p/d/old"));
    fs.assert_state("p/d/; p/f", "p/d/ opaque");
}

#[test]
fn mkdir_over_a_deleted_directory_at_the_root_is_opaque() {
    let mut fs = Fixture::new().lower("d/old 'old'; d/e/deep 'old'").mount();
    fs.remove_tree("d");
    fs.mkdir("d");
    fs.mkdir("d/e");
    fs.assert_state("d/e/", "d/ opaque; d/e/ opaque=either");
}

#[test]
fn mkdir_over_a_whiteout_from_before_the_mount_is_opaque() {
    let mut fs = Fixture::new()
        .lower("d/old 'old'")
        .upper("d whiteout")
        .mount();
    assert!(fs.is_absent("d"));
    fs.mkdir("d");
    fs.write("d/new", "new");
    fs.assert_state("d/new 'new'", "d/ opaque; d/new 'new'");
}

#[test]
fn a_directory_made_again_does_not_show_the_deleted_entries_at_any_depth() {
    let mut fs = Fixture::new()
        .lower("v/A/x 'old'; v/A/B/y 'old'")
        .lower("v/A/B/z 'old'")
        .mount();
    for _ in 0..3 {
        fs.remove_tree("v");
        fs.mkdir("v");
        assert!(fs.is_absent("v/A"));
        fs.mkdir("v/A");
        assert!(fs.is_absent("v/A/B"));
        fs.mkdir("v/A/B");
        assert!(fs.is_absent("v/A/B/y"));
        assert!(fs.names("v/A/B").is_empty());
    }
    fs.assert_state(
        "v/A/B/",
        "v/ opaque; v/A/ opaque=either; v/A/B/ opaque=either",
    );
}

#[test]
fn mkdir_over_a_deleted_file_works() {
    let mut fs = Fixture::new().lower("x 'file'").mount();
    fs.unlink("x");
    fs.mkdir("x");
    fs.assert_state("x/", "x/ opaque=either");
}

#[test]
fn mkdir_of_a_name_that_any_layer_has_is_eexist() {
    let fs = Fixture::new()
        .lower("d/; f")
        .lower("low/")
        .upper("u/")
        .mount();
    for name in ["d", "f", "low", "u"] {
        assert_eq!(
            rustix::fs::mkdir(fs.path(name), 0o755.into()),
            Err(Errno::EXIST),
            "{name}"
        );
    }
    assert_eq!(
        rustix::fs::mkdir(fs.path("missing/d"), 0o755.into()),
        Err(Errno::NOENT)
    );
    assert_eq!(
        rustix::fs::mkdir(fs.path("f/d"), 0o755.into()),
        Err(Errno::NOTDIR)
    );
    fs.assert_upper("u/");
}

#[test]
fn mkdir_without_write_permission_in_its_mode_works() {
    let mut fs = Fixture::new().lower("p/f").mount();
    fs.sh("mkdir -m 0555 p/ro; mkdir -m 0111 p/x; mkdir -m 0500 ro");
    fs.assert_state(
        "p/f; p/ro/ 0555; p/x/ 0111; ro/ 0500",
        "p/ro/ 0555 opaque=either; p/x/ 0111 opaque=either; ro/ 0500 opaque=either",
    );
    fs.sh("chmod 755 p/ro p/x ro");
}

#[test]
fn mkdir_sets_the_times_of_the_parent_and_the_new_directory() {
    let fs = Fixture::new().lower("p/f").mount();
    let before = fs.mtime("p");
    fs.mkdir("p/d");
    assert!(fs.mtime("p") > before);
    assert!(fs.mtime("p/d") > before);
}

#[test]
fn a_deep_chain_of_new_directories_survives() {
    let mut fs = Fixture::new().lower("a/f").mount();
    let path = "a/b/c/d/e/f/g/h";
    std::fs::create_dir_all(fs.path(path)).unwrap();
    fs.write("a/b/c/d/e/f/g/h/x", "deep");
    fs.remount();
    assert_eq!(fs.text("a/b/c/d/e/f/g/h/x"), "deep");
    assert!(fs.upper(path).is_dir());
}

#[test]
fn mkdir_with_a_mode_that_keeps_its_owner_out_works_over_a_whiteout() {
    let mut fs = Fixture::new().lower("a/; b/; c/").mount();
    for (name, mode) in [("a", 0o500), ("b", 0o000), ("new", 0o500)] {
        if name != "new" {
            fs.rmdir(name);
        }
        rustix::fs::mkdir(fs.path(name), rustix::fs::Mode::from_raw_mode(mode)).unwrap();
    }
    fs.chmod("b", 0o700);
    fs.assert_state(
        "a/ 0500; b/ 0700; c/; new/ 0500",
        "a/ 0500 opaque; b/ 0700 opaque; new/ 0500 opaque=either",
    );
}
