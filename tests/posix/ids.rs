//! Owners that are not those of the disk: id mapping, squashing, `override_stat`. Options of
//! fuse-overlayfs; the kernel has none of them.

use crate::support::disk::xattr;
use crate::support::run::{Privilege, own_ids, privilege};
use crate::support::{Fixture, as_user, is_kernel, is_root, requires};

const OURS: &str = "the kernel has no such option";
const ROOTS: &str = "the view shows files of root, which the kernel keeps an ordinary user from";
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

const OVERRIDE: &str = "user.containers.override_stat";

#[test]
fn override_stat_of_a_layer_gives_owner_mode_and_type() {
    requires!(!is_kernel(), OURS);
    requires!(privilege() != Privilege::Namespace, UNMAPPED);
    requires!(privilege() != Privilege::User, ROOTS);
    let fs = Fixture::new()
        .lower(&format!(
            ". {OVERRIDE}='0:0:0755:dir'; f 'x' 0644 {OVERRIDE}='1000:1001:0600:file';
d/ {OVERRIDE}='5:6:02750:dir'; null {OVERRIDE}='0:6:0666:char-1-3'; disk {OVERRIDE}='0:6:0660:block-8-1';
pipe {OVERRIDE}='0:0:0600:pipe'; old 'y' {OVERRIDE}='7:8:4755'; plain 'p' 0640"
        ))
        .option("xattr_permissions=2")
        .read_only()
        .mount();
    fs.assert_merged(
        ". 0755 owner=0:0; f 'x' 0600 owner=1000:1001; d/ 2750 owner=5:6; null char=1:3 0666 owner=0:6;
disk block=8:1 0660 owner=0:6; pipe fifo 0600; old 'y' 4755 owner=7:8; plain 'p' 0640",
    );
}

#[test]
fn override_stat_is_written_by_every_operation_and_hidden_in_the_view() {
    requires!(!is_kernel(), OURS);
    requires!(privilege() != Privilege::User, ROOTS);
    let (uid, gid) = own_ids();
    let mut fs = Fixture::new()
        .lower(&format!(
            ". {OVERRIDE}='0:0:0755:dir'; f 'x' {OVERRIDE}='{uid}:{gid}:0600:file';
null {OVERRIDE}='{uid}:{gid}:0666:char-1-3'"
        ))
        .option("xattr_permissions=2")
        .not_for_the_kernel()
        .mount();
    fs.chmod("f", 0o4711);
    fs.chmod("null", 0o600);
    fs.sh("umask 022; mkdir d; echo > g; chmod 0700 d");
    let value = |path| xattr(&fs.upper(path), OVERRIDE).map(|v| String::from_utf8(v).unwrap());
    assert_eq!(value("f"), Some(format!("{uid}:{gid}:4711:file")));
    assert_eq!(value("null"), Some(format!("{uid}:{gid}:0600:char-1-3")));
    assert_eq!(value("d"), Some(format!("{uid}:{gid}:0700:dir")));
    assert_eq!(value("g"), Some(format!("{uid}:{gid}:0644:file")));
    let owner = format!("owner={uid}:{gid}");
    let merged =
        format!("f 'x' 4711 {owner}; null char=1:3 0600; d/ 0700 {owner}; g '\\n' 0644 {owner}");
    fs.assert_merged(&merged);
    fs.remount();
    fs.assert_merged(&merged);
}

#[test]
fn a_user_of_the_mount_cannot_forge_override_stat() {
    requires!(!is_kernel(), OURS);
    let (uid, gid) = own_ids();
    let fs = Fixture::new()
        .lower(&format!(
            ". {OVERRIDE}='0:0:0755:dir'; f 'x' {OVERRIDE}='{uid}:{gid}:0600:file'"
        ))
        .option("xattr_permissions=2")
        .not_for_the_kernel()
        .mount();
    let flags = rustix::fs::XattrFlags::empty();
    let result = rustix::fs::lsetxattr(fs.path("f"), OVERRIDE, b"0:0:4777:file", flags);
    assert!(result.is_err());
    fs.assert_merged(&format!("f 'x' 0600 owner={uid}:{gid}"));
    assert_eq!(fs.xattr("f", OVERRIDE), None);
}
