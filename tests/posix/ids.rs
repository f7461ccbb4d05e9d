//! Owners that are not those of the disk: id mapping, squashing, and the other options of fuse-overlayfs about
//! ownership and attributes; the kernel has none of them.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use rustix::fs::{CWD, Gid, Uid, XattrFlags, lgetxattr, llistxattr, lsetxattr};
use rustix::io::Errno;

use crate::support::disk::{set_acl, xattr};
use crate::support::run::{Privilege, privilege};
use crate::support::{Fixture, Mounted, as_user, is_kernel, is_root, requires, runs_with};

const OURS: &str = "the kernel has no such option";
const ONLY_ROOT: &str = "needs files of several owners";
const UNMAPPED: &str = "such ids have no place in this user namespace";

#[test]
fn id_mapping_shows_mapped_owners_and_writes_the_real_ones() {
    requires!(!is_kernel(), OURS);
    requires!(is_root(), ONLY_ROOT);
    // 0 and up in the view are 100000 and up on disk.
    let mut fs = Fixture::new()
        .lower("root 'r' owner=100000:200000; user 'u' owner=101000:201000; out 'o' owner=5:5")
        .option("uidmapping=100000:0:65536")
        .option("gidmapping=200000:0:65536")
        .not_for_the_kernel()
        .mount();
    fs.assert_merged("root 'r' owner=0:0; user 'u' owner=1000:1000; out 'o' owner=65534:65534");
    fs.write("new", "n");
    fs.chown("user", 7, 8);
    fs.assert_merged("root 'r' owner=0:0; user 'u' owner=7:8; out 'o'; new 'n' owner=0:0");
    fs.umount();
    fs.assert_upper("user 'u' owner=100007:200008; new 'n' owner=100000:200000");
    fs.mount().unwrap();
    fs.assert_merged("root 'r' owner=0:0; user 'u' owner=7:8; out 'o'; new 'n' owner=0:0");
}

#[test]
fn id_mapping_decides_who_may_write() {
    requires!(!is_kernel(), OURS);
    requires!(is_root(), ONLY_ROOT);
    let mut fs = Fixture::new()
        .lower("home/ 0700 owner=101000:101000; home/f 'x' owner=101000:101000")
        .option("uidmapping=100000:0:65536")
        .option("gidmapping=100000:0:65536")
        .not_for_the_kernel()
        .mount();
    as_user(1000, || {
        fs.append("home/f", "+");
        fs.write("home/new", "n");
    });
    fs.umount();
    fs.assert_upper("home/ owner=101000:101000; home/f 'x+' owner=101000:101000; home/new 'n' owner=101000:101000");
}

#[test]
fn squash_to_root_shows_root_everywhere_and_ignores_chown() {
    requires!(!is_kernel(), OURS);
    requires!(is_root(), ONLY_ROOT);
    let mut fs = Fixture::new()
        .lower("f 'x' owner=1000:1000; d/ owner=5:6; l -> f owner=7:8")
        .option("squash_to_root")
        .not_for_the_kernel()
        .mount();
    fs.assert_merged("f 'x' owner=0:0; d/ owner=0:0; l -> f owner=0:0");
    fs.chown("f", 1234, 1234);
    fs.assert_merged("f 'x' owner=0:0; d/ owner=0:0; l -> f owner=0:0");
    fs.remount();
    fs.assert_merged("f 'x' owner=0:0; d/ owner=0:0; l -> f owner=0:0");
}

#[test]
fn squash_to_uid_and_gid_show_these_ids_everywhere() {
    requires!(!is_kernel(), OURS);
    requires!(privilege() != Privilege::Namespace, UNMAPPED);
    let mut fs = Fixture::new()
        .lower("f 'x'; d/g")
        .option("squash_to_uid=1234,squash_to_gid=4321")
        .not_for_the_kernel()
        .mount();
    fs.assert_merged("f 'x' owner=1234:4321; d/ owner=1234:4321; d/g owner=1234:4321");
    if is_root() {
        fs.write("d/new", "n");
        fs.remount();
        fs.assert_merged("f 'x'; d/g; d/new 'n' owner=1234:4321");
    }
}

/// A view in which 1000 on disk is root, and 100000 and up are 1 and up.
fn rootless(lower: &str) -> Mounted {
    Fixture::new()
        .lower(lower)
        .option("uidmapping=1000:0:1:100000:1:65535")
        .option("gidmapping=1000:0:1:200000:1:65535")
        .not_for_the_kernel()
        .mount()
}

#[test]
fn several_ranges_map_both_ways() {
    requires!(!is_kernel(), OURS);
    requires!(is_root(), ONLY_ROOT);
    let mut fs = rootless(
        "r 'r' owner=1000:1000; first 'f' owner=100000:200000; last 'l' owner=165534:265534;
past 'p' owner=165535:999; d/ owner=1000:200004; l -> r owner=100004:200004",
    );
    fs.assert_merged(
        "r 'r' owner=0:0; first 'f' owner=1:1; last 'l' owner=65535:65535; past 'p' owner=65534:65534;
d/ owner=0:5; l -> r owner=5:5",
    );
    fs.chown("first", 0, 65535);
    fs.chown("l", 7, 8);
    fs.chown("past", 0, 0);
    fs.umount();
    fs.assert_upper(
        "first 'f' owner=1000:265534; l -> r owner=100006:200007; past 'p' owner=1000:1000",
    );
}

#[test]
fn chown_to_an_unmapped_id_is_refused_and_copies_nothing() {
    requires!(!is_kernel(), OURS);
    requires!(is_root(), ONLY_ROOT);
    let mut fs = rootless("f 'x' owner=1000:1000");
    let chown = |uid: Option<u32>, gid: Option<u32>| {
        let ids = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
        rustix::fs::chownat(
            CWD,
            fs.path("f"),
            ids.0,
            ids.1,
            rustix::fs::AtFlags::empty(),
        )
    };
    // What a mount answers whose ids the kernel maps.
    assert_eq!(chown(Some(70_000), None), Err(Errno::OVERFLOW));
    assert_eq!(chown(None, Some(70_000)), Err(Errno::OVERFLOW));
    assert_eq!(chown(Some(5), Some(70_000)), Err(Errno::OVERFLOW));
    fs.assert_merged("f 'x' owner=0:0");
    fs.umount();
    fs.assert_upper("");
}

#[test]
fn what_an_unmapped_user_makes_belongs_to_the_overflow_id() {
    requires!(!is_kernel(), OURS);
    requires!(is_root(), ONLY_ROOT);
    let mut fs = rootless("open/ 0777 owner=1000:1000");
    as_user(70_000, || {
        fs.write("open/f", "x");
        fs.mkdir("open/d");
    });
    fs.umount();
    fs.assert_upper(
        "open/ 0777 owner=1000:1000; open/f 'x' owner=65534:65534; open/d/ owner=65534:65534",
    );
}

#[test]
fn ids_in_acls_are_mapped_both_ways() {
    requires!(!is_kernel(), OURS);
    requires!(is_root(), ONLY_ROOT);
    let acl = |user, group| format!("u::rw-,u:{user}:r--,g::r--,g:{group}:r--,m::r--,o::---");
    let mut fs = rootless(&format!(
        "f 'x' 0640 owner=1000:1000 acl={}; out 'o' 0640 owner=1000:1000 acl={}; new 'n' 0600 owner=1000:1000;
d/ 0755 owner=1000:1000 default={}",
        acl(100_004, 200_005),
        acl(5, 6),
        acl(100_006, 200_006),
    ));
    fs.assert_merged(&format!(
        "f 'x' 0640 acl={}; out 'o' 0640 acl={}; new 'n' 0600; d/ 0755 default={}",
        acl(5, 6),
        acl(65534, 65534),
        acl(7, 7),
    ));
    set_acl(&fs.path("new"), "acl", &acl(9, 10));
    fs.write("d/born", "b");
    let refused = lsetxattr(
        fs.path("f"),
        "system.posix_acl_access",
        &crate::support::acl::encode(&acl(70_000, 6)),
        XattrFlags::empty(),
    );
    assert_eq!(refused, Err(Errno::INVAL));
    // The ACL names the user that the view shows.
    as_user(5, || assert_eq!(fs.text("f"), "x"));
    as_user(8, || assert!(std::fs::read(fs.path("f")).is_err()));
    fs.umount();
    fs.assert_upper(&format!(
        "new 'n' 0640 owner=1000:1000 acl={}; d/ 0755 owner=1000:1000 default={};
d/born 'b' 0640 owner=1000:1000 acl={}",
        acl(100_008, 200_009),
        acl(100_006, 200_006),
        acl(100_006, 200_006),
    ));
}

const CAPS: &str = "security.capability";

/// `cap_net_raw` for the namespace whose root is this user.
fn caps(root: u32) -> Vec<u8> {
    let mut value = 0x0300_0001_u32.to_le_bytes().to_vec();
    value.extend_from_slice(&0x2000_u32.to_le_bytes());
    value.resize(20, 0);
    value.extend_from_slice(&root.to_le_bytes());
    value
}

#[test]
fn the_root_of_file_capabilities_is_mapped_both_ways() {
    requires!(!is_kernel(), OURS);
    requires!(is_root(), ONLY_ROOT);
    let lower = tempfile::tempdir().unwrap();
    for (name, root) in [("mine", 100_004), ("foreign", 7), ("new", 0)] {
        let path = lower.path().join(name);
        std::fs::write(&path, "x").unwrap();
        rustix::fs::chown(&path, Some(Uid::from_raw(1000)), None).unwrap();
        if root != 0 {
            lsetxattr(&path, CAPS, &caps(root), XattrFlags::empty()).unwrap();
        }
    }
    let mut fs = Fixture::new()
        .lower_dir(lower.path())
        .option("uidmapping=1000:0:1:100000:1:65535")
        .not_for_the_kernel()
        .mount();
    assert_eq!(xattr(&fs.path("mine"), CAPS), Some(caps(5)));
    // Whose root has no id here has no meaning here.
    assert_eq!(xattr(&fs.path("foreign"), CAPS), None);
    assert_eq!(llistxattr(fs.path("foreign"), &mut [0_u8; 64][..]), Ok(0));
    let set = |root| lsetxattr(fs.path("new"), CAPS, &caps(root), XattrFlags::empty());
    set(9).unwrap();
    assert_eq!(set(70_000), Err(Errno::INVAL));
    assert_eq!(xattr(&fs.path("new"), CAPS), Some(caps(9)));
    // Where the upper keeps them.
    let stored = if runs_with("xattr_permissions=2") {
        "user.containers.override_security.capability"
    } else {
        CAPS
    };
    assert_eq!(xattr(&fs.upper("new"), stored), Some(caps(100_008)));
    // A copy-up keeps what it cannot show.
    fs.set_mtime("foreign", 1000, 0);
    fs.umount();
    assert_eq!(xattr(&fs.upper("foreign"), stored), Some(caps(7)));
}

/// A counter of the mount.
fn counter(fs: &Mounted, name: &str) -> u64 {
    let output = Command::new(env!("CARGO_BIN_EXE_plyfs"))
        .args(["stats", "--json"])
        .arg(fs.path(""))
        .output()
        .unwrap();
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let found = json
        .pointer(&format!("/{name}"))
        .and_then(serde_json::Value::as_u64);
    found.unwrap_or_else(|| panic!("no {name} in {json}"))
}

fn links(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().nlink()
}

#[test]
fn static_nlink_gives_directories_one_link_and_stat_lists_none() {
    requires!(!is_kernel(), OURS);
    let mut fs = Fixture::new()
        .lower("d/a/; d/b/; d/c/; m/x/; f 'x'")
        .lower("m/y/; m/z/")
        .mount();
    // With and without the option no directory is listed to count its links.
    let before = counter(&fs, "cache/listings_read");
    links(&fs.path("d"));
    links(&fs.path("m"));
    let listed = counter(&fs, "cache/listings_read") - before;
    // That of the merged root, to find the names.
    assert!(listed <= 1, "{listed} listings");
    assert_eq!(links(&fs.path("m")), 1);
    fs.options().push("static_nlink".to_owned());
    fs.remount();
    assert_eq!([links(&fs.path("d")), links(&fs.path("m"))], [1, 1]);
    fs.link("f", "g");
    assert_eq!(links(&fs.path("g")), 2);
}

#[test]
fn noxattr_refuses_every_extended_attribute() {
    requires!(!is_kernel(), OURS);
    for option in ["noxattr", "noxattrs=1"] {
        let fs = Fixture::new()
            .lower("f 'x' user.a='1'")
            .option(option)
            .mount();
        let get = lgetxattr(fs.path("f"), "user.a", &mut [0_u8; 8][..]);
        let list = llistxattr(fs.path("f"), &mut [0_u8; 8][..]);
        let set = lsetxattr(fs.path("f"), "user.b", b"1", XattrFlags::empty());
        assert_eq!(get, Err(Errno::OPNOTSUPP));
        assert_eq!(list, Err(Errno::OPNOTSUPP));
        assert_eq!(set, Err(Errno::OPNOTSUPP));
        // What the union itself keeps in them stays.
        fs.append("f", "+");
        assert_eq!(xattr(&fs.upper("f"), "user.a"), Some(b"1".to_vec()));
    }
}

#[test]
fn noacl_refuses_acls_and_decides_by_the_mode() {
    requires!(!is_kernel(), OURS);
    let uid = crate::support::run::own_ids().0;
    let acl = format!("u::rw-,u:{uid}:rw-,g::r--,m::rw-,o::---");
    let fs = Fixture::new()
        .lower(&format!("f 'x' 0660 acl={acl}; g 'y' 0600"))
        .option("noacl")
        .mount();
    let value = crate::support::acl::encode(&acl);
    let set = lsetxattr(
        fs.path("g"),
        "system.posix_acl_access",
        &value,
        XattrFlags::empty(),
    );
    assert_eq!(set, Err(Errno::OPNOTSUPP));
    assert_eq!(xattr(&fs.path("f"), "system.posix_acl_access"), None);
    if is_root() {
        as_user(1000, || assert!(std::fs::read(fs.path("f")).is_err()));
    }
}

#[test]
fn ino32_t_gives_inode_numbers_of_32_bits() {
    requires!(!is_kernel(), OURS);
    let fs = Fixture::new()
        .lower("a/b/c 'x'; l -> a")
        .lower("d 'y'")
        .option("ino32_t")
        .mount();
    fs.write("new", "n");
    for path in ["", "a", "a/b", "a/b/c", "l", "d", "new"] {
        let number = std::fs::symlink_metadata(fs.path(path)).unwrap().ino();
        assert!(u32::try_from(number).is_ok(), "{path}: {number}");
    }
}
