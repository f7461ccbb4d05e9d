//! Every form of whiteout, read from layers and written over.

use crate::support::{Fixture, Mounted, deviates, is_kernel, is_root, requires};

const AUFS: &str = "the kernel does not read `.wh.` files";

/// The names hidden by one form of whiteout, then everything that can happen over them.
fn all_is_hidden_by(form: &str, fixture: Fixture) -> Mounted {
    let above =
        format!("f whiteout={form}; d whiteout={form}; p/f whiteout={form}; p/d whiteout={form}");
    let below = "f 'f'; d/x; p/f 'pf'; p/d/y; p/kept 'k'";
    let fs = fixture.lower(&above).lower(below).mount();
    fs.assert_merged("p/kept 'k'");
    for name in ["f", "d", "d/x", "p/f", "p/d", "p/d/y"] {
        assert!(fs.is_absent(name), "{name}");
    }
    assert_eq!(fs.names("p"), ["kept"]);
    fs
}

fn names_can_be_used_again(mut fs: Mounted) {
    fs.write("f", "new");
    fs.mkdir("d");
    fs.mkdir("p/d");
    fs.symlink("t", "p/f");
    fs.assert_state(
        "f 'new'; d/; p/d/; p/f -> t; p/kept 'k'",
        "f 'new'; d/ opaque=either; p/d/ opaque=either; p/f -> t",
    );
}

#[test]
fn a_device_whiteout_in_a_lower_hides_the_name() {
    names_can_be_used_again(all_is_hidden_by("device", Fixture::new()));
}

#[test]
fn an_xattr_whiteout_in_a_lower_hides_the_name() {
    names_can_be_used_again(all_is_hidden_by("xattr", Fixture::new()));
}

#[test]
fn an_aufs_whiteout_in_a_lower_hides_the_name() {
    requires!(!is_kernel(), AUFS);
    let fixture = Fixture::new().not_for_the_kernel();
    names_can_be_used_again(all_is_hidden_by("aufs", fixture));
}

#[test]
fn whiteouts_of_all_forms_in_the_upper_hide_the_name_and_can_be_replaced() {
    requires!(!is_kernel(), AUFS);
    let mut fs = Fixture::new()
        .lower("a 'a'; b 'b'; c 'c'; d/x; kept 'k'")
        .upper("a whiteout; b whiteout=aufs; c whiteout=xattr; d whiteout=aufs")
        .not_for_the_kernel()
        .mount();
    fs.assert_merged("kept 'k'");
    fs.write("a", "1");
    fs.write("b", "2");
    fs.write("c", "3");
    fs.mkdir("d");
    fs.assert_merged("a '1'; b '2'; c '3'; d/; kept 'k'");
    fs.remount();
    fs.assert_merged("a '1'; b '2'; c '3'; d/; kept 'k'");
    for name in ["a", "b", "c"] {
        fs.unlink(name);
    }
    fs.rmdir("d");
    fs.assert_merged("kept 'k'");
    fs.remount();
    fs.assert_merged("kept 'k'");
}

#[test]
fn a_directory_with_only_whiteouts_of_any_form_is_empty_and_can_be_removed() {
    requires!(!is_kernel(), AUFS);
    let mut fs = Fixture::new()
        .lower("d/a whiteout=aufs; d/b whiteout; d/c whiteout=aufs")
        .lower("d/a; d/b; d/c")
        .upper("e/f whiteout=aufs; e/g whiteout=aufs")
        .not_for_the_kernel()
        .mount();
    fs.assert_merged("d/; e/");
    fs.rmdir("d");
    fs.rmdir("e");
    fs.assert_merged("");
    fs.remount();
    fs.assert_merged("");
}

#[test]
fn an_aufs_whiteout_does_not_hide_a_file_of_its_own_layer() {
    requires!(!is_kernel(), AUFS);
    let fs = Fixture::new()
        .lower("")
        .lowers_change()
        .not_for_the_kernel()
        .lower("f 'below'; g 'below'")
        .mount();
    let mut fs = fs;
    fs.umount();
    std::fs::write(fs.lower(0, "f"), "same layer").unwrap();
    std::fs::write(fs.lower(0, ".wh.f"), "").unwrap();
    std::fs::write(fs.lower(0, ".wh.g"), "").unwrap();
    fs.mount().unwrap();
    fs.assert_merged("f 'same layer'");
}

#[test]
fn names_of_aufs_bookkeeping_are_not_shown() {
    requires!(!is_kernel(), AUFS);
    let mut fs = Fixture::new()
        .lower("f 'f'")
        .lowers_change()
        .not_for_the_kernel()
        .mount();
    fs.umount();
    for name in [".wh..wh.aufs", ".wh..wh.plnk", ".wh..wh.orph"] {
        std::fs::write(fs.lower(0, name), "").unwrap();
    }
    fs.mount().unwrap();
    fs.assert_merged("f 'f'");
}

#[test]
fn nobody_can_hide_a_file_by_creating_a_wh_name_through_the_mount() {
    let mut fs = Fixture::new().lower("f 'kept'; d/x").mount();
    let create = |name: &str| std::fs::write(fs.path(name), "").is_ok();
    let created = [create(".wh.f"), create("d/.wh.x"), create("d/.wh..wh..opq")];
    if deviates("such names are whiteouts in the layers of others, so they are refused") {
        assert_eq!(created, [false, false, false]);
    } else {
        assert_eq!(created, [true, true, true]);
        fs.sh("rm .wh.f d/.wh.*");
    }
    fs.assert_merged("f 'kept'; d/x");
    fs.remount();
    fs.assert_merged("f 'kept'; d/x");
}

#[test]
fn a_device_whiteout_in_the_upper_alone_is_not_seen_and_not_counted() {
    let mut fs = Fixture::new().lower("").upper("d/ghost whiteout").mount();
    assert!(fs.is_absent("d/ghost"));
    if !deviates("the kernel lists a whiteout in a directory that is merged with no other") {
        assert_eq!(fs.names("d"), ["ghost"]);
        return;
    }
    assert!(fs.names("d").is_empty());
    fs.rmdir("d");
    fs.assert_state("", "");
}

#[test]
fn where_no_device_can_be_made_deletions_are_files_that_plyfs_reads_again() {
    requires!(
        is_root() && !is_kernel(),
        "strace follows the mount as root"
    );
    // The first mknod is the probe of the mount.
    let mut fs = Fixture::new()
        .lower("f 'f'; d/x 'x'; d/y; p/f 'pf'; kept 'k'; moved 'm'")
        .tracing("inject=?mknodat,?mknod:error=EPERM:when=1")
        .not_for_the_kernel()
        .mount();
    fs.unlink("f");
    fs.remove_tree("d");
    fs.unlink("p/f");
    fs.rename("moved", "p/moved");
    fs.write("f", "again");
    fs.unlink("f");
    fs.mkdir("d");
    fs.unlink("kept");
    fs.write("kept", "new");
    let merged = "d/; p/moved 'm'; kept 'new'";
    fs.assert_merged(merged);
    assert!(fs.upper(".wh.f").exists() && fs.upper("p/.wh.f").exists());
    assert!(fs.upper(".wh.moved").exists() && !fs.upper(".wh.kept").exists());
    fs.umount();
    fs.assert_upper(
        "f whiteout=aufs; d/ opaque=either; p/f whiteout=aufs; p/moved 'm'; kept 'new'; moved whiteout=aufs",
    );
    fs.mount().unwrap();
    fs.assert_merged(merged);
}
