//! Layers on different filesystems, and a thousand of them.

use crate::support::fixture::SideMount;
use crate::support::{Fixture, Mounted, is_kernel, is_root, requires};

const ONLY_ROOT: &str = "only root mounts images";

/// What must work over a lower of any filesystem.
fn use_it(mut fs: Mounted) {
    fs.assert_merged("d/f 'text' 0640 mtime=1000.5 user.k='v'; d/l -> f; d/p fifo; big pattern=100000; gone/x; base 'b'");
    fs.append("d/f", "+");
    fs.chmod("d/p", 0o600);
    fs.set_mtime("d/l", 2000, 0);
    fs.write_at("big", 0, b"");
    fs.remove_tree("gone");
    fs.rename("d", "moved");
    fs.write("moved/new", "n");
    fs.assert_state(
        "moved/f 'text+' 0640 user.k='v'; moved/l -> f mtime=2000; moved/p fifo 0600; moved/new 'n'; big pattern=100000; base 'b'",
        &format!(
            "d whiteout; gone whiteout; moved/ redirect=d; moved/f 'text+' 0640 user.k='v'; moved/l -> f mtime=2000; moved/p fifo 0600; moved/new 'n'{}",
            if fs.upper_lacks("big") { "" } else { "; big pattern=100000" }
        ),
    );
}

const TREE: &str =
    "d/f 'text' 0640 mtime=1000.5 user.k='v'; d/l -> f; d/p fifo; big pattern=100000; gone/x";

fn over(kind: &str) {
    use_it(
        Fixture::new()
            .lower_on(kind, TREE)
            .lower("base 'b'")
            .mount(),
    );
}

#[test]
fn a_lower_on_ext4_works() {
    requires!(is_root(), ONLY_ROOT);
    over("ext4");
}

#[test]
fn a_lower_on_xfs_works() {
    requires!(is_root(), ONLY_ROOT);
    over("xfs");
}

#[test]
fn a_lower_on_btrfs_works() {
    requires!(is_root(), ONLY_ROOT);
    over("btrfs");
}

#[test]
fn a_lower_on_tmpfs_works() {
    requires!(is_root(), ONLY_ROOT);
    over("tmpfs");
}

#[test]
fn a_lower_on_squashfs_works() {
    requires!(is_root(), ONLY_ROOT);
    // squashfs keeps no fractions of a second.
    let tree = TREE.replace("mtime=1000.5", "mtime=1000");
    let mut fs = Fixture::new()
        .lower_on("squashfs", &tree)
        .lower("base 'b'")
        .mount();
    fs.assert_merged(&format!("{tree}; base 'b'"));
    fs.append("d/f", "+");
    fs.unlink("big");
    fs.remove_tree("gone");
    fs.assert_state(
        "d/f 'text+' 0640 user.k='v'; d/l -> f; d/p fifo; base 'b'",
        "d/f 'text+' 0640 user.k='v'; big whiteout; gone whiteout",
    );
}

#[test]
fn an_overlay_as_a_lower_works() {
    requires!(is_root(), ONLY_ROOT);
    let outer = tempfile::tempdir().unwrap();
    for (dir, text) in [
        (
            "a",
            "d/f 'text' 0640 mtime=1000.5 user.k='v'; gone/x; hidden whiteout",
        ),
        ("b", "d/l -> f; d/p fifo; big pattern=100000; hidden"),
    ] {
        let dir = outer.path().join(dir);
        std::fs::create_dir(&dir).unwrap();
        crate::support::disk::build(&dir, &crate::support::tree::parse(text));
    }
    let view = outer.path().join("view");
    std::fs::create_dir(&view).unwrap();
    let at = |name: &str| outer.path().join(name).display().to_string();
    let options = format!("lowerdir={}:{}", at("a"), at("b"));
    let mount = SideMount::new(&["-t", "overlay", "-o", &options, "overlay"], &view);
    use_it(Fixture::new().lower_dir(&view).lower("base 'b'").mount());
    drop(mount);
}

#[test]
fn lowers_of_all_filesystems_are_merged_into_one_view() {
    requires!(is_root(), ONLY_ROOT);
    let mut fs = Fixture::new()
        .lower_on("tmpfs", "d/tmpfs 't'; same 'tmpfs'")
        .lower_on("ext4", "d/ext4 'e'; same 'ext4'; e 'ext4'; d/sub/1")
        .lower_on("squashfs", "d/squashfs 's'; same 'squashfs'; d/sub/2")
        .lower_on("btrfs", "d/btrfs 'b'; same 'btrfs'; d/sub/3")
        .mount();
    let rest = "d/tmpfs 't'; d/squashfs 's'; d/btrfs 'b'; d/sub/1; d/sub/2; d/sub/3";
    fs.assert_merged(&format!("{rest}; d/ext4 'e'; same 'tmpfs'; e 'ext4'"));
    fs.append("d/ext4", "+");
    fs.unlink("same");
    fs.rename("e", "d/e");
    fs.assert_state(
        &format!("{rest}; d/ext4 'e+'; d/e 'ext4'"),
        "d/ext4 'e+'; d/e 'ext4'; e whiteout; same whiteout",
    );
}

#[test]
fn equal_inode_numbers_of_different_filesystems_do_not_make_one_file() {
    requires!(is_root(), ONLY_ROOT);
    let mut fs = Fixture::new()
        .lower_on("ext4", "a 'first'; b = a")
        .lower_on("ext4", "c 'second'; d = c")
        .mount();
    assert_eq!(
        rustix::fs::stat(fs.lower(0, "a")).unwrap().st_ino,
        rustix::fs::stat(fs.lower(1, "c")).unwrap().st_ino,
        "the two filesystems were made alike"
    );
    fs.assert_merged("a 'first'; b = a; c 'second'; d = c");
    fs.append("a", "+");
    fs.assert_merged("a 'first+'; b = a; c 'second'; d = c");
    fs.remount();
    fs.assert_merged("a 'first+'; b = a; c 'second'; d = c");
}

fn with_upper_on(upper: &str) {
    let mut fs = Fixture::new()
        .lower(TREE)
        .lower("base 'b'")
        .upper_on(upper)
        .mount();
    fs.link("base", "other");
    fs.unlink("other");
    assert!(!fs.upper_lacks("base"));
    fs.unlink("base");
    fs.write("base", "b");
    fs.assert_merged(&format!("{TREE}; base 'b'"));
    fs.rename("d", "moved");
    fs.append("moved/f", "+");
    fs.remove_tree("gone");
    fs.assert_state(
        "moved/f 'text+' 0640 user.k='v'; moved/l -> f; moved/p fifo; big pattern=100000; base 'b'",
        "d whiteout; moved/ redirect=d; moved/f 'text+' 0640 user.k='v'; gone whiteout; base 'b'",
    );
}

#[test]
fn an_upper_on_ext4_works() {
    requires!(is_root(), ONLY_ROOT);
    with_upper_on("ext4:32m");
}

#[test]
fn an_upper_on_xfs_works() {
    requires!(is_root(), ONLY_ROOT);
    with_upper_on("xfs:300m");
}

#[test]
fn an_upper_on_btrfs_works() {
    requires!(is_root(), ONLY_ROOT);
    with_upper_on("btrfs:114m");
}

#[test]
fn an_upper_on_tmpfs_works() {
    requires!(is_root(), ONLY_ROOT);
    with_upper_on("tmpfs:size=8m");
}

/// It knows no flags of renameat2(2), and caches each name of a file by itself: as the upper of an apptainer overlay image.
#[test]
fn an_upper_on_fuse2fs_works_and_keeps_no_links_across_copy_up() {
    requires!(is_root(), ONLY_ROOT);
    requires!(!is_kernel(), "the kernel refuses it as an upper");
    let mut fs = Fixture::new()
        .lower("d/f 'f'; d/e/g 'g'; file 'x'; one 'x'; two = one; tree/in 'i'; gone/x")
        .upper_on("fuse2fs:32m")
        .not_for_the_kernel()
        .mount();
    fs.remove_tree("d");
    fs.mkdir("d");
    fs.unlink("file");
    fs.mkdir("file");
    fs.rename("tree", "moved");
    fs.mkdir("tree");
    fs.rename("moved", "gone2");
    fs.remove_tree("gone");
    fs.rename("gone2", "gone");
    fs.append("one", "+");
    assert_eq!(fs.text("one"), "x+");
    assert_eq!(fs.text("two"), "x");
    let merged = "d/; file/; one 'x+'; two 'x'; gone/in 'i'; tree/";
    fs.assert_merged(merged);
    fs.umount();
    // It keeps files in the workdir for a while that were deleted while they were open.
    fs.assert_upper("d/ opaque; file/ opaque; one 'x+'; gone/ redirect=tree; tree/ opaque");
    fs.mount().unwrap();
    fs.assert_merged(merged);
}

#[test]
fn a_thousand_layers_are_merged() {
    requires!(!is_kernel(), "the kernel stops at 500 layers");
    let mut fixture = Fixture::new().lower("top 't'; d/first");
    for number in 0..998 {
        fixture = fixture.lower(&format!(
            "d/f{number} '{number}'; e{}/g{number}",
            number % 7
        ));
    }
    let mut fs = fixture
        .lower("d/last 'l'; bottom/deep/f 'b'")
        .not_for_the_kernel()
        .mount();
    assert_eq!(fs.names("d").len(), 1000);
    assert_eq!(fs.text("d/f997"), "997");
    assert_eq!(fs.names("e0").len(), 143);
    fs.append("d/last", "+");
    fs.append("bottom/deep/f", "+");
    fs.unlink("d/f500");
    fs.rename("e1", "moved");
    fs.umount();
    fs.assert_upper(
        "bottom/deep/f 'b+'; d/last 'l+'; d/f500 whiteout; e1 whiteout; moved/ redirect=e1",
    );
    fs.mount().unwrap();
    assert_eq!(fs.names("d").len(), 999);
    assert_eq!(fs.names("moved").len(), 143);
    assert_eq!(fs.text("bottom/deep/f"), "b+");
}
