//! Lowers that are tars: read where they are, copied up from, and like the same layers in directories.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::process::Command;

use crate::support::disk::{View, read};
use crate::support::run::base_dir;
use crate::support::tree::{Kind, compare};
use crate::support::{Fixture, is_kernel, is_root, requires};

const ONLY_PLYFS: &str = "only plyfs reads tars";

const TREE: &str = "d/f 'text' 0640 mtime=1000.5 user.k='v'; d/l -> f mtime=7; d/p fifo 0600; big pattern=300000; \
    h1 'linked' nlink=3; sub/h2 = h1; sub/h3 = h1; empty ''; keep/x 'x'; \u{fc}n\u{ef} 'c'; gone/y; replaced 'old'";

/// The layers of these tests, topmost first.
fn layers() -> Fixture {
    Fixture::new()
        .lower("d/g 'top'; gone whiteout; replaced 'new'; opq/ opaque; opq/n 'n'")
        .lower(TREE)
        .lower("d/f 'hidden'; gone/z; opq/o 'o'; base 'b'")
        .archived()
}

const MERGED: &str = "d/f 'text' 0640 mtime=1000.5 user.k='v'; d/l -> f mtime=7; d/p fifo 0600; d/g 'top'; big pattern=300000; \
    h1 'linked' nlink=3; sub/h2 = h1; sub/h3 = h1; empty ''; keep/x 'x'; \u{fc}n\u{ef} 'c'; replaced 'new'; opq/n 'n'; base 'b'";

#[test]
fn tars_show_what_the_same_layers_in_directories_show() {
    requires!(!is_kernel(), ONLY_PLYFS);
    let fs = layers().mount();
    fs.assert_merged(MERGED);
    assert_eq!(fs.names("opq"), ["n"]);
    let dirs = Fixture::new().lower(TREE).mount();
    let tars = Fixture::new().lower(TREE).archived().mount();
    // Some filesystems, btrfs for one, do not count subdirectories.
    let counts = fs::metadata(dirs.lower(0, "d")).unwrap().nlink() > 1;
    let tree = |fs: &crate::support::Mounted| {
        let mut tree = read(&fs.path("."), View::Merged);
        for entry in &mut tree {
            if matches!(entry.kind, Kind::Dir) && !counts {
                entry.nlink = None;
            }
        }
        tree
    };
    compare(&tree(&dirs), &tree(&tars)).unwrap_or_else(|diff| panic!("{diff}"));
}

#[test]
fn everything_in_a_tar_can_be_changed_and_the_changes_are_in_the_upper() {
    requires!(!is_kernel(), ONLY_PLYFS);
    let mut fs = layers().mount();
    fs.append("d/f", "+");
    fs.chmod("d/p", 0o644);
    fs.set_mtime("d/l", 2000, 0);
    fs.write_at("big", 299_999, b"!");
    fs.remove_tree("keep");
    fs.rename("sub", "moved");
    fs.write("gone", "back");
    fs.unlink("base");
    fs.remount();
    let mut big = fs.read("big");
    assert_eq!((big.len(), big.pop()), (300_000, Some(b'!')));
    fs.unlink("big");
    fs.assert_merged(
        "d/f 'text+' 0640 user.k='v'; d/l -> f mtime=2000; d/p fifo 0644; d/g 'top'; h1 'linked' nlink=3; moved/h2 = h1; \
         moved/h3 = h1; empty ''; \u{fc}n\u{ef} 'c'; replaced 'new'; opq/n 'n'; gone 'back'",
    );
}

#[test]
fn names_of_one_inode_in_a_tar_stay_one_inode_when_one_is_written() {
    requires!(!is_kernel(), ONLY_PLYFS);
    let mut fs = layers().mount();
    let before = fs.inode("h1");
    fs.append("sub/h2", "!");
    for remounted in [false, true] {
        for name in ["h1", "sub/h2", "sub/h3"] {
            assert_eq!(fs.text(name), "linked!", "{name}, remounted: {remounted}");
            assert_eq!(
                (fs.inode(name), fs.stat(name).st_nlink),
                (before, 3),
                "{name}"
            );
        }
        fs.remount();
    }
}

#[test]
fn inode_numbers_of_tars_survive_copy_up_and_remount() {
    requires!(!is_kernel(), ONLY_PLYFS);
    let mut fs = layers().mount();
    let names = ["d", "d/f", "d/l", "d/p", "big", "opq/n", "base", "sub"];
    let numbers = |fs: &crate::support::Mounted| names.map(|name| fs.inode(name));
    let before = numbers(&fs);
    fs.remount();
    assert_eq!(names.map(|name| fs.inode(name)), before);
    fs.append("d/f", "+");
    fs.chmod("base", 0o600);
    fs.chmod("sub", 0o700);
    assert_eq!(numbers(&fs), before);
    fs.remount();
    assert_eq!(numbers(&fs), before);
}

#[test]
fn holes_of_a_sparse_file_in_a_tar_are_seen_and_stay_holes_in_its_copy() {
    requires!(!is_kernel(), ONLY_PLYFS);
    let mut fs = Fixture::new()
        .lower("s hole=8388608")
        .lowers_change()
        .archived()
        .mount();
    let tar = fs.lower(0, "s");
    let file = File::options().write(true).open(&tar).unwrap();
    file.write_all_at(b"data", 4 << 20).unwrap();
    drop(file);
    fs.remount();
    let file = File::open(fs.path("s")).unwrap();
    let seek = |from| rustix::fs::seek(&file, from).unwrap();
    let data = seek(rustix::fs::SeekFrom::Data(0));
    assert!((3 << 20..=4 << 20).contains(&data), "{data}");
    assert_eq!(seek(rustix::fs::SeekFrom::Hole(0)), 0);
    assert!(seek(rustix::fs::SeekFrom::Hole(data)) < 5 << 20);
    let before = fs.read("s");
    fs.append("s", "");
    fs.chmod("s", 0o600);
    assert_eq!(fs.read("s"), before);
    let copy = fs::metadata(fs.upper("s")).unwrap();
    assert!(copy.blocks() * 512 < 1 << 20, "{} blocks", copy.blocks());
}

#[test]
fn owners_devices_and_capabilities_of_a_tar_are_exact_for_root() {
    requires!(!is_kernel(), ONLY_PLYFS);
    requires!(is_root(), "only root makes devices");
    let text = "f 'x' owner=1234:5678 0755; null char=1:3 0666; disk block=8:1 owner=0:6; \
        suid 's' 04755 owner=7:8; cap 'c'";
    let mut fs = Fixture::new()
        .lower(text)
        .lowers_change()
        .archived()
        .mount();
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let name = "security.capability";
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(fs.lower(0, "cap"), name, &capability, flags).unwrap();
    fs.remount();
    let exact = |fs: &crate::support::Mounted| {
        fs.assert_merged(&format!("{text} {name}='{}'", capability.escape_ascii()));
    };
    exact(&fs);
    for name in ["f", "null", "disk", "suid", "cap"] {
        fs.set_mtime(name, 5, 0);
    }
    exact(&fs);
    fs.remount();
    exact(&fs);
}

#[test]
fn files_of_a_tar_belong_to_who_mounts_if_asked() {
    requires!(!is_kernel(), ONLY_PLYFS);
    requires!(is_root(), "only root makes files of others");
    let text = "f 'x' owner=1234:5678; d/ owner=9:9";
    let fs = Fixture::new()
        .lower(text)
        .archived()
        .option("owner=me")
        .mount();
    fs.assert_merged("f 'x' owner=0:0; d/ owner=0:0");
    let fs = Fixture::new()
        .lower(text)
        .archived()
        .option("owner=image")
        .mount();
    fs.assert_merged(text);
}

#[test]
fn marks_of_overlayfs_in_a_tar_are_xattrs_and_no_marks() {
    requires!(!is_kernel(), ONLY_PLYFS);
    let fs = Fixture::new()
        .lower("d/ user.overlay.redirect='/other'; d/a 'a'")
        .lower("d/b 'b'; other/c 'c'")
        .archived()
        .mount();
    assert_eq!(fs.names("d"), ["a", "b"]);
}

/// A tar made by a shell script that runs in an empty directory.
fn tar_of(script: &str) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir_in(base_dir()).unwrap();
    let output = Command::new("sh")
        .args(["-ec", script])
        .current_dir(&dir)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let tar = dir.path().join("layer.tar").to_str().unwrap().to_owned();
    (dir, tar)
}

#[test]
fn a_directory_that_a_tar_only_implies_shows_the_attributes_of_the_layer_below() {
    requires!(!is_kernel(), ONLY_PLYFS);
    let (_dir, tar) = tar_of("mkdir d; echo new >d/new; tar -cf layer.tar d/new");
    let mut fs = Fixture::new()
        .lower_dir(&tar)
        .lower("d/ 0700 mtime=1000 user.k='v'; d/old")
        .lowers_change()
        .mount();
    fs.assert_merged("d/ 0700 mtime=1000 user.k='v'; d/old; d/new 'new\\n'");
    fs.write("d/more", "m");
    fs.remount();
    fs.assert_merged("d/ 0700 user.k='v'; d/old; d/new 'new\\n'; d/more 'm'");
}

#[test]
fn a_tar_of_ten_thousand_directories_below_each_other_is_mounted_and_unmounted() {
    requires!(!is_kernel(), ONLY_PLYFS);
    let script = ">f; tar -cf layer.tar --transform=\"s,^,$(printf 'd/%.0s' $(seq 10000)),\" f";
    let (_dir, tar) = tar_of(script);
    let fs = Fixture::new().lower_dir(&tar).lowers_change().mount();
    let mut dir = File::open(fs.path("d")).unwrap();
    for _ in 1..10_000 {
        let flags = rustix::fs::OFlags::DIRECTORY;
        let next = rustix::fs::openat(&dir, "d", flags, rustix::fs::Mode::empty()).unwrap();
        dir = next.into();
    }
    assert!(rustix::fs::statat(&dir, "f", rustix::fs::AtFlags::empty()).is_ok());
}

#[test]
fn a_compressed_tar_and_what_is_no_tar_are_refused_with_advice() {
    requires!(!is_kernel(), ONLY_PLYFS);
    let refusal = |script: &str| {
        let (_dir, tar) = tar_of(script);
        Fixture::new()
            .lower_dir(&tar)
            .lowers_change()
            .try_mount()
            .unwrap_err()
    };
    let gzip = refusal("echo x >f; tar -czf layer.tar f");
    assert!(
        gzip.contains("gzip") && gzip.contains("plyfs load"),
        "{gzip}"
    );
    let text = refusal("echo hello >layer.tar");
    assert!(text.contains("no tar"), "{text}");
    let cut = refusal("seq 9999 >f; tar -cf layer.tar f; truncate -s 4096 layer.tar");
    assert!(
        cut.contains("entry 'f'") && cut.contains("layer.tar"),
        "{cut}"
    );
}

#[test]
fn a_tar_that_is_cut_while_mounted_answers_eio_and_nothing_else_breaks() {
    requires!(!is_kernel(), ONLY_PLYFS);
    let (_dir, tar) = tar_of("echo first >a; seq 99999 >z; tar -cf layer.tar a z");
    let fs = Fixture::new().lower_dir(&tar).lowers_change().mount();
    File::options()
        .write(true)
        .open(&tar)
        .unwrap()
        .set_len(4096)
        .unwrap();
    let error = fs::read(fs.path("z")).unwrap_err();
    assert_eq!(
        error.raw_os_error(),
        Some(rustix::io::Errno::IO.raw_os_error())
    );
    assert_eq!(fs.text("a"), "first\n");
    let mut appended = File::options().append(true).open(&tar).unwrap();
    appended.write_all(b"x").unwrap();
}

#[test]
fn a_device_0_0_of_a_tar_is_shown_hides_nothing_and_cannot_be_copied_up() {
    requires!(!is_kernel(), ONLY_PLYFS);
    requires!(is_root(), "only root makes devices");
    let (_dir, tar) = tar_of("mkdir d; mknod d/c c 0 0; tar -cf layer.tar d");
    let fs = Fixture::new()
        .lower_dir(&tar)
        .lower("d/c 'below'; d/other")
        .lowers_change()
        .mount();
    assert_eq!(fs.names("d"), ["c", "other"]);
    fs.assert_merged("d/c char=0:0; d/other");
    let error = fs::set_permissions(fs.path("d/c"), fs::Permissions::from_mode(0o600));
    assert_eq!(
        error.unwrap_err().raw_os_error(),
        Some(rustix::io::Errno::PERM.raw_os_error())
    );
}
