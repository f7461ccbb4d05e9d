//! renameat2(2): NOREPLACE, EXCHANGE, WHITEOUT.

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use crate::support::{Fixture, Mounted, has_redirects, requires};

fn rename(fs: &Mounted, from: &str, to: &str, flags: RenameFlags) -> Result<(), Errno> {
    renameat_with(CWD, fs.path(from), CWD, fs.path(to), flags)
}

#[test]
fn noreplace_onto_a_name_of_any_layer_is_eexist() {
    let fs = Fixture::new()
        .lower("a 'a'; low 'l'; d/")
        .upper("up 'u'")
        .mount();
    for name in ["low", "up", "d"] {
        assert_eq!(
            rename(&fs, "a", name, RenameFlags::NOREPLACE),
            Err(Errno::EXIST),
            "{name}"
        );
    }
    fs.assert_merged("a 'a'; low 'l'; d/; up 'u'");
}

#[test]
fn noreplace_onto_a_free_or_deleted_name_works() {
    let mut fs = Fixture::new()
        .lower("a 'a'; b 'b'; gone 'x'")
        .upper("gone whiteout")
        .mount();
    rename(&fs, "a", "gone", RenameFlags::NOREPLACE).unwrap();
    rename(&fs, "b", "free", RenameFlags::NOREPLACE).unwrap();
    fs.assert_state(
        "gone 'a'; free 'b'",
        "a whiteout; b whiteout; gone 'a'; free 'b'",
    );
}

#[test]
fn noreplace_onto_a_name_deleted_through_the_mount_works() {
    let mut fs = Fixture::new().lower("a 'a'; b 'b'").mount();
    fs.unlink("b");
    rename(&fs, "a", "b", RenameFlags::NOREPLACE).unwrap();
    fs.assert_state("b 'a'", "a whiteout; b 'a'");
}

#[test]
fn exchange_of_two_lower_files_swaps_them() {
    let mut fs = Fixture::new().lower("a 'a' 0600; d/b 'b' 0640").mount();
    rename(&fs, "a", "d/b", RenameFlags::EXCHANGE).unwrap();
    fs.assert_state("a 'b' 0640; d/b 'a' 0600", "a 'b' 0640; d/b 'a' 0600");
}

#[test]
fn exchange_of_upper_and_lower_file_swaps_them_either_way() {
    let mut fs = Fixture::new()
        .lower("l1 'l1'; l2 'l2'")
        .upper("u1 'u1'; u2 'u2'")
        .mount();
    rename(&fs, "u1", "l1", RenameFlags::EXCHANGE).unwrap();
    rename(&fs, "l2", "u2", RenameFlags::EXCHANGE).unwrap();
    let state = "l1 'u1'; l2 'u2'; u1 'l1'; u2 'l2'";
    fs.assert_state(state, state);
}

#[test]
fn exchange_of_a_file_and_a_lower_directory_swaps_them() {
    requires!(
        has_redirects(),
        "the kernel has no redirects with userxattr"
    );
    let mut fs = Fixture::new().lower("f 'f'; d/x 'x'").mount();
    rename(&fs, "f", "d", RenameFlags::EXCHANGE).unwrap();
    fs.assert_state("d 'f'; f/x 'x'", "d 'f'; f/ redirect=d");
}

#[test]
fn exchange_of_two_lower_directories_swaps_their_contents() {
    requires!(
        has_redirects(),
        "the kernel has no redirects with userxattr"
    );
    let mut fs = Fixture::new().lower("a/x 'x'; p/b/y 'y'").mount();
    let inodes = (fs.inode("a"), fs.inode("p/b"));
    rename(&fs, "a", "p/b", RenameFlags::EXCHANGE).unwrap();
    assert_eq!((fs.inode("p/b"), fs.inode("a")), inodes);
    fs.assert_state("a/y 'y'; p/b/x 'x'", "a/ redirect=/p/b; p/b/ redirect=/a");
}

#[test]
fn exchange_of_upper_and_merged_directory_swaps_their_contents() {
    requires!(
        has_redirects(),
        "the kernel has no redirects with userxattr"
    );
    let mut fs = Fixture::new()
        .lower("m/low 'l'")
        .upper("m/up 'u'; n/new 'n'")
        .mount();
    rename(&fs, "m", "n", RenameFlags::EXCHANGE).unwrap();
    fs.assert_state(
        "m/new 'n'; n/low 'l'; n/up 'u'",
        "m/ opaque; m/new 'n'; n/ redirect=m; n/up 'u'",
    );
}

#[test]
fn exchange_of_two_upper_files_swaps_them() {
    let mut fs = Fixture::new().lower("d/z").upper("a 'a'; d/b 'b'").mount();
    rename(&fs, "a", "d/b", RenameFlags::EXCHANGE).unwrap();
    fs.assert_state("a 'b'; d/z; d/b 'a'", "a 'b'; d/b 'a'");
}

#[test]
fn exchange_with_a_missing_name_is_enoent() {
    let fs = Fixture::new()
        .lower("a 'a'; gone 'x'")
        .upper("gone whiteout")
        .mount();
    assert_eq!(
        rename(&fs, "a", "missing", RenameFlags::EXCHANGE),
        Err(Errno::NOENT)
    );
    assert_eq!(
        rename(&fs, "a", "gone", RenameFlags::EXCHANGE),
        Err(Errno::NOENT)
    );
    assert_eq!(
        rename(&fs, "gone", "a", RenameFlags::EXCHANGE),
        Err(Errno::NOENT)
    );
    fs.assert_merged("a 'a'");
}

#[test]
fn exchange_of_a_directory_with_its_own_content_is_einval() {
    let fs = Fixture::new().lower("").upper("a/b/c 'c'").mount();
    assert_eq!(
        rename(&fs, "a", "a/b", RenameFlags::EXCHANGE),
        Err(Errno::INVAL)
    );
    assert_eq!(
        rename(&fs, "a/b/c", "a", RenameFlags::EXCHANGE),
        Err(Errno::NOTEMPTY).or(Err(Errno::INVAL))
    );
}

#[test]
fn the_whiteout_flag_and_contradicting_flags_are_refused() {
    let fs = Fixture::new().lower("a 'a'; b 'b'").mount();
    assert_eq!(
        rename(&fs, "a", "x", RenameFlags::WHITEOUT),
        Err(Errno::INVAL)
    );
    let both = RenameFlags::EXCHANGE | RenameFlags::NOREPLACE;
    assert_eq!(rename(&fs, "a", "b", both), Err(Errno::INVAL));
    fs.assert_merged("a 'a'; b 'b'");
    fs.assert_upper("");
}
