//! rename(2) of directories: redirects.

use rustix::io::Errno;

use crate::support::{Fixture, has_redirects, is_kernel, is_root, requires};

#[test]
fn rename_of_a_lower_directory_writes_a_redirect_and_copies_no_file() {
    requires!(
        has_redirects(),
        "the kernel has no redirects with userxattr"
    );
    let mut fs = Fixture::new()
        .lower("d/ 0750 user.k='v'; d/f 'f'; d/e/g 'g'")
        .mount();
    fs.rename("d", "moved");
    assert!(fs.is_absent("d"));
    fs.assert_state(
        "moved/ 0750 user.k='v'; moved/f 'f'; moved/e/g 'g'",
        "d whiteout; moved/ 0750 redirect=d user.k='v'",
    );
}

#[test]
fn rename_into_another_directory_writes_an_absolute_redirect() {
    requires!(
        has_redirects(),
        "the kernel has no redirects with userxattr"
    );
    let mut fs = Fixture::new().lower("a/d/f 'f'; b/x").mount();
    fs.rename("a/d", "b/d");
    fs.assert_state("a/; b/d/f 'f'; b/x", "a/d whiteout; b/d/ redirect=/a/d");
}

#[test]
fn rename_of_a_directory_merged_from_all_layers_keeps_its_content() {
    requires!(
        has_redirects(),
        "the kernel has no redirects with userxattr"
    );
    let mut fs = Fixture::new()
        .lower("d/a 'a'; d/s/1")
        .lower("d/b 'b'; d/s/2")
        .upper("d/u 'u'; d/s/3")
        .mount();
    fs.rename("d", "e");
    fs.assert_state(
        "e/a 'a'; e/b 'b'; e/u 'u'; e/s/1; e/s/2; e/s/3",
        "d whiteout; e/ redirect=d; e/u 'u'; e/s/3",
    );
}

#[test]
fn rename_of_an_upper_directory_needs_no_redirect_and_no_whiteout() {
    let mut fs = Fixture::new().lower("p/x; q/y").upper("p/d/f 'f'").mount();
    fs.rename("p/d", "q/d");
    fs.assert_state("p/x; q/y; q/d/f 'f'", "p/; q/d/ opaque=either; q/d/f 'f'");
}

#[test]
fn an_upper_directory_moved_onto_a_deleted_lower_name_hides_the_lower_content() {
    let mut fs = Fixture::new().lower("d/old 'old'; x").mount();
    fs.remove_tree("d");
    fs.mkdir("new");
    fs.write("new/f", "f");
    fs.rename("new", "d");
    assert!(fs.is_absent("d/old"));
    fs.assert_state("d/f 'f'; x", "d/ opaque; d/f 'f'");
}

#[test]
fn an_upper_directory_from_a_plain_parent_moved_onto_a_deleted_lower_name_is_opaque() {
    let mut fs = Fixture::new()
        .lower("d/old 'old'")
        .upper("plain/sub/f 'f'; d whiteout")
        .mount();
    fs.rename("plain/sub", "d");
    fs.assert_state("d/f 'f'; plain/", "d/ opaque; d/f 'f'; plain/");
}

#[test]
fn a_directory_renamed_twice_still_finds_its_first_place() {
    requires!(
        has_redirects(),
        "the kernel has no redirects with userxattr"
    );
    let mut fs = Fixture::new().lower("a/d/f 'f'; b/x").mount();
    fs.rename("a/d", "a/e");
    fs.rename("a/e", "b/g");
    fs.assert_state("a/; b/g/f 'f'; b/x", "a/d whiteout; b/g/ redirect=/a/d");
}

#[test]
fn a_directory_renamed_there_and_back_is_what_it_was() {
    requires!(
        has_redirects(),
        "the kernel has no redirects with userxattr"
    );
    let mut fs = Fixture::new().lower("d/f 'f'; d/e/g 'g'").mount();
    let inode = fs.inode("d");
    fs.rename("d", "e");
    fs.rename("e", "d");
    assert_eq!(fs.inode("d"), inode);
    fs.assert_merged("d/f 'f'; d/e/g 'g'");
    fs.remount();
    fs.assert_merged("d/f 'f'; d/e/g 'g'");
}

#[test]
fn renamed_parent_and_renamed_child_both_find_their_content() {
    requires!(
        has_redirects(),
        "the kernel has no redirects with userxattr"
    );
    let mut fs = Fixture::new().lower("a/b/c/f 'f'; a/b/g 'g'; x/").mount();
    fs.rename("a/b/c", "x/c");
    fs.rename("a/b", "x/b");
    fs.rename("x/c", "x/b/c2");
    fs.assert_state(
        "a/; x/b/g 'g'; x/b/c2/f 'f'",
        "a/b whiteout; x/b/ redirect=/a/b; x/b/c whiteout; x/b/c2/ redirect=/a/b/c",
    );
}

#[test]
fn a_child_renamed_within_a_renamed_parent_is_found() {
    requires!(
        has_redirects(),
        "the kernel has no redirects with userxattr"
    );
    let mut fs = Fixture::new().lower("a/sub/f 'f'").mount();
    fs.rename("a", "b");
    fs.rename("b/sub", "b/other");
    fs.assert_state(
        "b/other/f 'f'",
        "a whiteout; b/ redirect=a; b/sub whiteout; b/other/ redirect=sub",
    );
}

#[test]
fn files_of_a_renamed_directory_can_be_changed_deleted_and_added() {
    requires!(
        has_redirects(),
        "the kernel has no redirects with userxattr"
    );
    let mut fs = Fixture::new()
        .lower("d/a 'a'; d/b 'b'; d/c 'c'; d/e/f")
        .mount();
    fs.rename("d", "m");
    fs.append("m/a", "+");
    fs.unlink("m/b");
    fs.write("m/new", "n");
    fs.remove_tree("m/e");
    fs.assert_state(
        "m/a 'a+'; m/c 'c'; m/new 'n'",
        "d whiteout; m/ redirect=d; m/a 'a+'; m/b whiteout; m/e whiteout; m/new 'n'",
    );
}

#[test]
fn a_new_directory_under_the_old_name_is_empty() {
    requires!(
        has_redirects(),
        "the kernel has no redirects with userxattr"
    );
    let mut fs = Fixture::new().lower("d/f 'f'").mount();
    fs.rename("d", "moved");
    fs.mkdir("d");
    assert!(fs.names("d").is_empty());
    fs.write("d/g", "g");
    fs.assert_state(
        "moved/f 'f'; d/g 'g'",
        "d/ opaque; d/g 'g'; moved/ redirect=d",
    );
}

#[test]
fn a_moved_directory_does_not_merge_with_what_lies_below_its_new_name() {
    requires!(
        has_redirects(),
        "the kernel has no redirects with userxattr"
    );
    let mut fs = Fixture::new().lower("a/f 'a'; b/g 'b'").mount();
    fs.remove_tree("b");
    fs.rename("a", "b");
    fs.assert_state("b/f 'a'", "a whiteout; b/ redirect=a");
}

#[test]
fn rename_over_an_empty_lower_directory_replaces_it() {
    requires!(
        has_redirects(),
        "the kernel has no redirects with userxattr"
    );
    let mut fs = Fixture::new().lower("a/f 'f'; b/").mount();
    fs.rename("a", "b");
    fs.assert_state("b/f 'f'", "a whiteout; b/ redirect=a");
}

#[test]
fn rename_over_a_merged_directory_whose_entries_are_deleted_works() {
    let mut fs = Fixture::new().lower("b/x; b/y").mount();
    fs.mkdir("a");
    fs.write("a/f", "f");
    fs.unlink("b/x");
    fs.unlink("b/y");
    fs.rename("a", "b");
    fs.assert_state("b/f 'f'", "b/ opaque; b/f 'f'");
}

#[test]
fn rename_over_an_emptied_directory_whose_mode_keeps_its_owner_out_works() {
    let mut fs = Fixture::new().lower("b/x; c/x; d/x").mount();
    for (name, mode) in [("b", 0o500), ("c", 0o300), ("d", 0o000)] {
        fs.unlink(format!("{name}/x"));
        fs.chmod(name, mode);
        fs.mkdir("a");
        fs.write("a/f", "f");
        fs.rename("a", name);
    }
    fs.assert_state(
        "b/f 'f'; c/f 'f'; d/f 'f'",
        "b/ opaque; b/f 'f'; c/ opaque; c/f 'f'; d/ opaque; d/f 'f'",
    );
}

#[test]
fn rename_over_a_directory_with_entries_is_enotempty() {
    requires!(
        has_redirects(),
        "the kernel has no redirects with userxattr"
    );
    let fs = Fixture::new().lower("a/f; low/x").upper("up/x").mount();
    for name in ["low", "up"] {
        let result = rustix::fs::rename(fs.path("a"), fs.path(name));
        assert!(
            matches!(result, Err(Errno::NOTEMPTY | Errno::EXIST)),
            "{name}: {result:?}"
        );
    }
    fs.assert_merged("a/f; low/x; up/x");
}

#[test]
fn rename_of_a_directory_into_itself_is_einval() {
    let fs = Fixture::new().lower("a/b/c/").upper("u/v/").mount();
    let rename = |from, to| rustix::fs::rename(fs.path(from), fs.path(to));
    assert_eq!(rename("a", "a/x"), Err(Errno::INVAL));
    assert_eq!(rename("a", "a/b/c/x"), Err(Errno::INVAL));
    assert_eq!(rename("u", "u/v/x"), Err(Errno::INVAL));
    fs.assert_merged("a/b/c/; u/v/");
}

#[test]
fn rename_of_a_directory_keeps_inode_number_and_dot_dot() {
    requires!(
        has_redirects(),
        "the kernel has no redirects with userxattr"
    );
    let mut fs = Fixture::new().lower("a/d/f; b/").mount();
    let (inode, child) = (fs.inode("a/d"), fs.inode("a/d/f"));
    fs.rename("a/d", "b/d");
    assert_eq!((fs.inode("b/d"), fs.inode("b/d/f")), (inode, child));
    assert_eq!(fs.inode("b/d/.."), fs.inode("b"));
    fs.remount();
    assert_eq!((fs.inode("b/d"), fs.inode("b/d/f")), (inode, child));
}

#[test]
fn an_open_directory_and_a_working_directory_survive_the_rename() {
    requires!(
        has_redirects(),
        "the kernel has no redirects with userxattr"
    );
    let fs = Fixture::new().lower("d/f 'f'; d/e/g").mount();
    let dir = fs.open("d");
    let answer = fs.sh("cd d/e; mv ../../d ../../moved; echo new > h; ls ../../moved/e");
    assert_eq!(answer, "g\nh");
    assert!(rustix::fs::statat(&dir, "f", rustix::fs::AtFlags::empty()).is_ok());
    fs.assert_merged("moved/f 'f'; moved/e/g; moved/e/h 'new\\n'");
}

#[test]
fn a_redirect_written_before_the_mount_is_followed() {
    requires!(
        has_redirects(),
        "the kernel has no redirects with userxattr"
    );
    let fs = Fixture::new()
        .lower("d/f 'f'; x/y/g 'g'")
        .lower("d/low 'low'")
        .upper("d whiteout; moved/ redirect=d; moved/u 'u'; z/ redirect=/x/y; x/y whiteout")
        .mount();
    fs.assert_merged("moved/f 'f'; moved/low 'low'; moved/u 'u'; x/; z/g 'g'");
}

#[test]
fn a_redirect_in_a_lower_layer_is_followed() {
    requires!(
        has_redirects(),
        "the kernel has no redirects with userxattr"
    );
    let mut fs = Fixture::new()
        .lower("d whiteout; moved/ redirect=d; moved/t 't'")
        .lower("d/f 'f'; d/e/g 'g'")
        .mount();
    fs.append("moved/e/g", "+");
    fs.assert_state("moved/t 't'; moved/f 'f'; moved/e/g 'g+'", "moved/e/g 'g+'");
}

#[test]
fn a_redirect_chain_over_three_layers_is_followed() {
    requires!(
        has_redirects(),
        "the kernel has no redirects with userxattr"
    );
    let fs = Fixture::new()
        .lower("b whiteout; c/ redirect=b; c/2 '2'")
        .lower("a whiteout; b/ redirect=a; b/1 '1'")
        .lower("a/0 '0'; c/not 'hidden'")
        .mount();
    fs.assert_merged("c/0 '0'; c/1 '1'; c/2 '2'");
}

#[test]
fn a_redirect_to_nothing_shows_the_directory_alone() {
    requires!(
        has_redirects(),
        "the kernel has no redirects with userxattr"
    );
    let fs = Fixture::new()
        .lower("x/")
        .upper("d/ redirect=gone; d/f 'f'; e/ redirect=/x/gone; e/g")
        .mount();
    fs.assert_merged("x/; d/f 'f'; e/g");
}

#[test]
fn without_redirects_rename_of_a_lower_directory_is_exdev_and_mv_copies() {
    let fixture = Fixture::new().lower("d/f 'f'; d/e/g 'g'").upper("u/x");
    let fixture = if is_root() || !is_kernel() {
        fixture.option("redirect_dir=off")
    } else {
        fixture
    };
    let mut fs = fixture.mount();
    assert_eq!(
        rustix::fs::rename(fs.path("d"), fs.path("m")),
        Err(Errno::XDEV)
    );
    fs.rename("u", "v");
    fs.sh("mv d m");
    fs.assert_state(
        "m/f 'f'; m/e/g 'g'; v/x",
        "d whiteout; m/ opaque=either; m/f 'f'; m/e/ opaque=either; m/e/g 'g'; v/ opaque=either; v/x",
    );
}

#[test]
fn a_redirected_directory_can_be_removed_and_made_again() {
    requires!(
        has_redirects(),
        "the kernel has no redirects with userxattr"
    );
    let mut fs = Fixture::new().lower("d/f 'f'").mount();
    fs.rename("d", "m");
    fs.remove_tree("m");
    fs.assert_state("", "d whiteout");
    fs.mkdir("m");
    fs.mkdir("d");
    fs.assert_state("d/; m/", "d/ opaque; m/ opaque=either");
}

#[test]
fn a_directory_with_a_long_path_is_moved_or_refused_but_never_lost() {
    requires!(
        has_redirects(),
        "the kernel has no redirects with userxattr"
    );
    let deep = format!("{0}/{0}/{0}", "n".repeat(100));
    let mut fs = Fixture::new().lower(&format!("{deep}/d/f 'f'; x/")).mount();
    let result = rustix::fs::rename(fs.path(format!("{deep}/d")), fs.path("x/d"));
    match result {
        // The kernel writes no redirect longer than 256 bytes.
        Err(error) => assert_eq!(error, Errno::XDEV),
        Ok(()) => assert!(!is_kernel()),
    }
    let place = if result.is_ok() {
        "x/d/f".to_owned()
    } else {
        format!("{deep}/d/f")
    };
    fs.remount();
    assert_eq!(fs.text(place), "f");
}
