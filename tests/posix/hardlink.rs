//! Hard links of a lower across copy-up: the index.

use crate::support::{Fixture, has_index, has_origins, is_root, requires};

const NO_INDEX: &str = "the kernel has no index with userxattr";

#[test]
fn names_of_one_lower_file_are_one_file_with_its_link_count() {
    let fs = Fixture::new()
        .lower("a 'x' nlink=3; b = a; d/c = a")
        .mount();
    fs.assert_merged("a 'x' nlink=3; b = a; d/c = a");
}

#[test]
fn a_write_through_one_name_is_seen_through_all() {
    requires!(has_index(), NO_INDEX);
    let mut fs = Fixture::new().lower("a 'x'; b = a; d/c = a").mount();
    fs.append("b", "+");
    fs.assert_merged("a 'x+' nlink=3; b = a; d/c = a");
    fs.remount();
    fs.assert_merged("a 'x+' nlink=3; b = a; d/c = a");
    fs.append("d/c", "+");
    fs.remount();
    fs.assert_merged("a 'x++' nlink=3; b = a; d/c = a");
}

#[test]
fn names_copied_up_one_after_the_other_are_linked_in_the_upper() {
    requires!(has_index(), NO_INDEX);
    let mut fs = Fixture::new().lower("a 'x'; b = a").mount();
    fs.append("a", "+");
    fs.chmod("b", 0o600);
    fs.rename("b", "c");
    fs.assert_merged("a 'x+' 0600 nlink=2; c = a");
    fs.umount();
    fs.assert_upper("a 'x+' 0600; b whiteout; c = a");
    fs.mount().unwrap();
    fs.assert_merged("a 'x+' 0600 nlink=2; c = a");
}

#[test]
fn metadata_changed_through_one_name_is_seen_through_all() {
    requires!(has_index(), NO_INDEX);
    let mut fs = Fixture::new().lower("a 'x' 0644; b = a").mount();
    fs.chmod("a", 0o600);
    fs.set_xattr("b", "user.k", "v");
    fs.set_mtime("b", 1000, 0);
    fs.assert_merged("a 'x' 0600 mtime=1000 user.k='v'; b = a");
    fs.remount();
    fs.assert_merged("a 'x' 0600 mtime=1000 user.k='v'; b = a");
}

#[test]
fn removing_names_lowers_the_count_until_the_file_is_gone() {
    requires!(has_index(), NO_INDEX);
    let mut fs = Fixture::new().lower("a 'x'; b = a; c = a").mount();
    fs.unlink("a");
    fs.assert_merged("b 'x' nlink=2; c = b");
    fs.append("b", "+");
    fs.unlink("b");
    fs.assert_merged("c 'x+' nlink=1");
    fs.remount();
    fs.assert_merged("c 'x+' nlink=1");
    fs.unlink("c");
    fs.assert_state("", "a whiteout; b whiteout; c whiteout");
}

#[test]
fn link_counts_of_changed_files_survive_a_remount() {
    requires!(has_index(), NO_INDEX);
    let mut fs = Fixture::new().lower("a 'x'; b = a; c = a").mount();
    fs.append("a", "+");
    fs.unlink("b");
    fs.link("c", "d");
    fs.link("d", "e");
    fs.assert_merged("a 'x+' nlink=4; c = a; d = a; e = a");
    fs.remount();
    fs.assert_merged("a 'x+' nlink=4; c = a; d = a; e = a");
}

#[test]
fn a_name_that_replaces_a_linked_file_leaves_the_others_alone() {
    requires!(has_index(), NO_INDEX);
    let mut fs = Fixture::new().lower("a 'x'; b = a; n 'new'").mount();
    fs.rename("n", "b");
    fs.assert_merged("a 'x' nlink=1; b 'new'");
    fs.remount();
    fs.assert_merged("a 'x' nlink=1; b 'new'");
}

#[test]
fn a_file_deleted_and_created_again_is_not_linked_any_more() {
    requires!(has_index(), NO_INDEX);
    let mut fs = Fixture::new().lower("a 'x'; b = a").mount();
    fs.append("a", "+");
    fs.unlink("a");
    fs.write("a", "fresh");
    fs.append("b", "!");
    fs.assert_merged("a 'fresh' nlink=1; b 'x+!' nlink=1");
    fs.remount();
    fs.assert_merged("a 'fresh' nlink=1; b 'x+!' nlink=1");
}

#[test]
fn links_across_directories_that_are_renamed_stay_links() {
    requires!(has_index(), NO_INDEX);
    let mut fs = Fixture::new().lower("p/a 'x'; q/b = p/a").mount();
    fs.rename("p", "moved");
    fs.append("moved/a", "+");
    fs.assert_merged("moved/a 'x+'; q/b = moved/a");
    fs.remount();
    fs.assert_merged("moved/a 'x+'; q/b = moved/a");
}

#[test]
fn the_inode_number_of_linked_names_is_one_before_and_after_copy_up() {
    requires!(has_index(), NO_INDEX);
    let mut fs = Fixture::new().lower("a 'x'; b = a").mount();
    let inode = fs.inode("a");
    assert_eq!(fs.inode("b"), inode);
    fs.append("b", "+");
    assert_eq!((fs.inode("a"), fs.inode("b")), (inode, inode));
    requires!(has_origins(), "needs file handles");
    fs.remount();
    assert_eq!((fs.inode("a"), fs.inode("b")), (inode, inode));
}

#[test]
fn links_of_different_lower_layers_are_different_files() {
    let fs = Fixture::new()
        .lower("a 'top'; b = a")
        .lower("c 'bottom'; d = c")
        .mount();
    fs.assert_merged("a 'top' nlink=2; b = a; c 'bottom' nlink=2; d = c");
}

#[test]
fn links_of_symlinks_and_fifos_survive_copy_up() {
    requires!(has_index(), NO_INDEX);
    let mut fs = Fixture::new().lower("l -> t; m = l; p fifo; q = p").mount();
    fs.set_mtime("l", 1000, 0);
    fs.chmod("q", 0o600);
    fs.assert_merged("l -> t mtime=1000; m = l; p fifo 0600; q = p");
    fs.remount();
    fs.assert_merged("l -> t mtime=1000; m = l; p fifo 0600; q = p");
}

#[test]
fn names_given_to_linked_symlinks_and_fifos_stay_theirs_after_a_remount() {
    requires!(has_index(), NO_INDEX);
    let mut fs = Fixture::new()
        .lower("l -> t; m = l; p fifo; q = p; d/")
        .mount();
    fs.link("l", "d/new");
    fs.link("p", "made");
    fs.rename("p", "moved");
    fs.assert_merged("d/new -> t; l = d/new; m = d/new; made fifo; moved = made; q = made");
    for _ in 0..2 {
        fs.remount();
        fs.assert_merged("d/new -> t; l = d/new; m = d/new; made fifo; moved = made; q = made");
    }
    // No mark keeps their link count where they can carry none: it may be wrong, but they are still one inode.
    for gone in ["l", "m", "moved"] {
        fs.unlink(gone);
    }
    fs.set_mtime("d/new", 1000, 0);
    fs.chmod("q", 0o600);
    for _ in 0..2 {
        assert_eq!(fs.mtime("d/new").0, 1000);
        assert_eq!(fs.mode("made") & 0o777, 0o600);
        assert_eq!(fs.inode("q"), fs.inode("made"));
        fs.remount();
    }
    fs.unlink("made");
    assert_eq!(fs.mode("q") & 0o777, 0o600);
    fs.link("q", "again");
    assert_eq!(fs.inode("q"), fs.inode("again"));
}

#[test]
fn rsync_and_tar_find_the_links() {
    requires!(has_index(), NO_INDEX);
    let fs = Fixture::new()
        .lower("s/a 'x'; s/b = s/a; s/c 'alone'")
        .mount();
    fs.append("s/b", "+");
    assert_eq!(fs.sh("tar -cf - s | tar -tvf - | grep -c 'link to'"), "1");
    assert_eq!(fs.sh("find s -links 2 | wc -l"), "2");
}

#[test]
fn a_name_found_after_the_known_one_was_unlinked_is_the_same_inode() {
    let mut fs = Fixture::new().lower("").upper("a 'x'; d/e = a").mount();
    let held = fs.open("d/e");
    fs.unlink("d/e");
    let number = fs.inode("a");
    assert_eq!(number, rustix::fs::fstat(&held).unwrap().st_ino);
    fs.append("a", "+");
    assert_eq!(fs.text("a"), "x+");
    drop(held);
    fs.assert_state("a 'x+'; d/", "a 'x+'; d/");
    assert_eq!(fs.inode("a"), number);
}

#[test]
fn names_on_a_layer_without_file_handles_part_when_one_is_written() {
    requires!(is_root(), "only root mounts a ramfs");
    let mut fs = Fixture::new()
        .lower_on("ramfs", "d/one 'x'; d/two = d/one; s -> t; s2 = s")
        .mount();
    fs.append("d/one", "+");
    fs.set_mtime("s", 1000, 0);
    for _ in 0..2 {
        assert_eq!(
            (fs.text("d/one"), fs.text("d/two")),
            ("x+".to_owned(), "x".to_owned())
        );
        assert_eq!((fs.stat("d/one").st_nlink, fs.mtime("s").0), (1, 1000));
        assert!(fs.mtime("s2").0 != 1000);
        fs.remount();
    }
    fs.unlink("d/one");
    fs.append("d/two", "2");
    fs.assert_state(
        "d/two 'x2'; s -> t; s2 -> t",
        "d/one whiteout; d/two 'x2'; s -> t",
    );
}

#[test]
fn without_the_index_a_copied_up_name_is_a_file_of_its_own() {
    let mut fs = Fixture::new()
        .lower("one 'x'; two = one; three = one")
        .option("index=off")
        .mount();
    fs.append("one", "+");
    for _ in 0..2 {
        assert_eq!(
            (fs.text("one"), fs.text("two")),
            ("x+".to_owned(), "x".to_owned())
        );
        assert_eq!(fs.stat("one").st_nlink, 1);
        // As the lower counts them.
        assert_eq!((fs.stat("two").st_nlink, fs.stat("three").st_nlink), (3, 3));
        assert_ne!(fs.inode("one"), fs.inode("two"));
        fs.remount();
    }
    fs.link("one", "four");
    assert_eq!(fs.stat("one").st_nlink, 2);
    fs.unlink("one");
    assert_eq!(
        (fs.stat("four").st_nlink, fs.text("four")),
        (1, "x+".to_owned())
    );
}
