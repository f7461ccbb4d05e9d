//! rmdir(2).

use rustix::io::Errno;

use crate::support::Fixture;

#[test]
fn rmdir_of_an_empty_lower_directory_leaves_a_whiteout() {
    let mut fs = Fixture::new().lower("d/; p/e/").mount();
    fs.rmdir("d");
    fs.rmdir("p/e");
    fs.assert_state("p/", "d whiteout; p/e whiteout");
}

#[test]
fn rmdir_of_an_upper_directory_leaves_nothing() {
    let mut fs = Fixture::new().lower("p/f").upper("d/; p/e/").mount();
    fs.rmdir("d");
    fs.rmdir("p/e");
    fs.assert_state("p/f", "p/");
}

#[test]
fn rmdir_of_a_merged_directory_whose_entries_are_all_deleted_works() {
    let mut fs = Fixture::new().lower("d/a; d/b").lower("d/c").mount();
    for name in ["d/a", "d/b", "d/c"] {
        assert_eq!(rustix::fs::rmdir(fs.path("d")), Err(Errno::NOTEMPTY));
        fs.unlink(name);
    }
    fs.rmdir("d");
    fs.assert_state("", "d whiteout");
}

#[test]
fn rmdir_of_a_directory_holding_only_whiteouts_from_before_the_mount_works() {
    let mut fs = Fixture::new()
        .lower("d/a; d/b")
        .upper("d/a whiteout; d/b whiteout")
        .mount();
    fs.rmdir("d");
    fs.assert_state("", "d whiteout");
}

#[test]
fn rmdir_of_a_directory_whose_mode_keeps_its_owner_out_leaves_nothing_in_the_workdir() {
    let mut fs = Fixture::new()
        .lower("a/x/f; b/x/f; c/x/f; d/x/f; e/x/f")
        .mount();
    let modes = [0o500, 0o400, 0o300, 0o200, 0o000];
    for (dir, mode) in ["a", "b", "c", "d", "e"].into_iter().zip(modes) {
        fs.unlink(format!("{dir}/x/f"));
        fs.rmdir(format!("{dir}/x"));
        fs.chmod(dir, mode);
        fs.rmdir(dir);
    }
    fs.assert_state(
        "",
        "a whiteout; b whiteout; c whiteout; d whiteout; e whiteout",
    );
}

#[test]
fn rmdir_of_an_opaque_directory_over_a_lower_one_leaves_a_whiteout() {
    let mut fs = Fixture::new()
        .lower("d/a 'hidden'")
        .upper("d/ opaque")
        .mount();
    fs.rmdir("d");
    fs.assert_state("", "d whiteout");
}

#[test]
fn rmdir_of_a_directory_with_entries_in_any_layer_is_enotempty() {
    let fs = Fixture::new()
        .lower("low/f; both/; mid/")
        .lower("low/; both/f; mid/f")
        .upper("up/f; both/")
        .mount();
    for name in ["low", "up", "both", "mid"] {
        assert_eq!(
            rustix::fs::rmdir(fs.path(name)),
            Err(Errno::NOTEMPTY),
            "{name}"
        );
    }
    fs.assert_merged("low/f; both/f; mid/f; up/f");
}

#[test]
fn rmdir_of_something_else_is_enotdir_and_of_nothing_enoent() {
    let fs = Fixture::new().lower("f; l -> d; d/").mount();
    assert_eq!(rustix::fs::rmdir(fs.path("f")), Err(Errno::NOTDIR));
    assert_eq!(rustix::fs::rmdir(fs.path("l")), Err(Errno::NOTDIR));
    assert_eq!(rustix::fs::rmdir(fs.path("missing")), Err(Errno::NOENT));
    assert_eq!(rustix::fs::rmdir(fs.path("d/.")), Err(Errno::INVAL));
}

#[test]
fn a_name_freed_by_rmdir_can_become_a_file() {
    let mut fs = Fixture::new().lower("d/").mount();
    fs.rmdir("d");
    fs.write("d", "now a file");
    fs.assert_state("d 'now a file'", "d 'now a file'");
}

#[test]
fn a_removed_directory_that_is_still_open_is_empty_and_takes_no_new_names() {
    let fs = Fixture::new().lower("d/f").mount();
    let dir = fs.open("d");
    fs.unlink("d/f");
    fs.rmdir("d");
    let flags = rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY;
    let create = rustix::fs::openat(&dir, "new", flags, 0o644.into());
    assert_eq!(create.err(), Some(Errno::NOENT));
    let make = rustix::fs::mkdirat(&dir, "new", 0o755.into());
    assert_eq!(make.err(), Some(Errno::NOENT));
    drop(dir);
    assert!(fs.is_absent("d"));
}

#[test]
fn rmdir_changes_the_time_of_the_parent() {
    let fs = Fixture::new().lower("p/d/; p/f").mount();
    let before = fs.mtime("p");
    fs.rmdir("p/d");
    assert!(fs.mtime("p") > before);
}
