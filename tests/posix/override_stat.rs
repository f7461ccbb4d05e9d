//! Owner, mode and device type in an xattr: what `force_mask` of containers/storage and `xattr_permissions` of
//! fuse-overlayfs write.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use rustix::fs::{CWD, FileType, Mode, XattrFlags, lsetxattr, mknodat};
use rustix::io::Errno;

use crate::support::disk::{set_acl, xattr};
use crate::support::run::{Privilege, own_ids, privilege};
use crate::support::{Fixture, Mounted, as_user, is_kernel, is_root, requires};

const OURS: &str = "the kernel has no such option";
const ROOTS: &str = "the view shows files of root, which the kernel keeps an ordinary user from";
const ONLY_ROOT: &str = "needs files of several owners";
const UNMAPPED: &str = "such ids have no place in this user namespace";

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
    let flags = XattrFlags::empty();
    let result = lsetxattr(fs.path("f"), OVERRIDE, b"0:0:4777:file", flags);
    assert!(result.is_err());
    fs.assert_merged(&format!("f 'x' 0600 owner={uid}:{gid}"));
    assert_eq!(fs.xattr("f", OVERRIDE), None);
}

/// What fuse-overlayfs before 1.11 writes.
const OLD: &str = "user.fuseoverlayfs.override_stat";
const CAPS: &str = "security.capability";
const KEPT: &str = "user.containers.override_security.capability";

/// The override that lies in the upper.
fn stored(fs: &Mounted, path: &str) -> Option<String> {
    xattr(&fs.upper(path), OVERRIDE).map(|value| String::from_utf8(value).unwrap())
}

/// A store of containers/storage with `force_mask`: whoever runs this owns all, files say what they stand for.
fn forced(lower: &str) -> Mounted {
    let (uid, gid) = own_ids();
    Fixture::new()
        .lower(&format!(
            ". 0700 {OVERRIDE}='{uid}:{gid}:0755:dir'; {}",
            lower.replace("OWN", &format!("{uid}:{gid}"))
        ))
        .option("xattr_permissions=2")
        .not_for_the_kernel()
        .mount()
}

#[test]
fn listings_give_the_types_that_files_stand_for() {
    requires!(!is_kernel(), OURS);
    let fs = forced(&format!(
        "dev/ 0700 {OVERRIDE}='OWN:0755:dir'; dev/null 0700 {OVERRIDE}='OWN:0666:char-1-3';
dev/sda 0700 {OVERRIDE}='OWN:0660:block-8-0'; dev/pipe 0700 {OVERRIDE}='OWN:0600:pipe';
dev/log 0700 {OVERRIDE}='OWN:0600:socket'; dev/file 0700 {OVERRIDE}='OWN:0644:file'"
    ));
    for _ in 0..2 {
        let mut types = Vec::new();
        for entry in fs::read_dir(fs.path("dev")).unwrap() {
            let entry = entry.unwrap();
            let (listed, stat) = (entry.file_type().unwrap(), entry.metadata().unwrap());
            assert_eq!(listed, stat.file_type(), "{:?}", entry.file_name());
            let kind = match listed {
                kind if kind.is_char_device() => "char",
                kind if kind.is_block_device() => "block",
                kind if kind.is_fifo() => "fifo",
                kind if kind.is_socket() => "socket",
                _ => "file",
            };
            types.push(format!("{} {kind}", entry.file_name().display()));
        }
        types.sort();
        let wanted = [
            "file file",
            "log socket",
            "null char",
            "pipe fifo",
            "sda block",
        ];
        assert_eq!(types, wanted);
    }
}

#[test]
fn every_way_to_make_something_writes_four_fields() {
    requires!(!is_kernel(), OURS);
    let (uid, gid) = own_ids();
    let mut fs = forced(&format!("d/ 0700 {OVERRIDE}='OWN:0755:dir'"));
    fs.sh("umask 022; echo x > d/file; mkdir d/dir; mkfifo d/pipe; ln -s file d/link; ln d/file d/hard; mv d/pipe d/p2");
    let node = |name, kind| mknodat(CWD, fs.path(name), kind, Mode::from(0o600), 0).unwrap();
    node("d/socket", FileType::Socket);
    for (name, wanted) in [
        ("d/file", "0644:file"),
        ("d/hard", "0644:file"),
        ("d/dir", "0755:dir"),
        ("d/p2", "0644:pipe"),
        ("d/socket", "0600:socket"),
    ] {
        assert_eq!(
            stored(&fs, name),
            Some(format!("{uid}:{gid}:{wanted}")),
            "{name}"
        );
    }
    // A symlink takes no user xattr.
    assert_eq!(stored(&fs, "d/link"), None);
    let merged =
        "d/ 0755; d/dir/ 0755; d/file 'x\\n' 0644; d/hard = d/file; d/link -> file; d/p2 fifo 0644;
d/socket socket 0600";
    fs.assert_merged(merged);
    fs.remount();
    fs.assert_merged(merged);
}

#[test]
fn devices_made_changed_and_copied_up_stay_devices() {
    requires!(!is_kernel(), OURS);
    requires!(is_root(), "only root makes devices");
    let mut fs = forced(&format!(
        "null 0700 {OVERRIDE}='OWN:0666:char-1-3'; disk 0700 {OVERRIDE}='OWN:0660:block-8-1'"
    ));
    let zero = rustix::fs::makedev(1, 5);
    mknodat(
        CWD,
        fs.path("zero"),
        FileType::CharacterDevice,
        Mode::from(0o600),
        zero,
    )
    .unwrap();
    fs.chmod("null", 0o640);
    fs.chown("null", 3, 4);
    fs.chown("zero", 5, 6);
    fs.link("zero", "zero2");
    fs.rename("disk", "sda1");
    fs.set_mtime("sda1", 1000, 0);
    assert_eq!(stored(&fs, "null").as_deref(), Some("3:4:0640:char-1-3"));
    assert_eq!(stored(&fs, "zero").as_deref(), Some("5:6:0600:char-1-5"));
    assert_eq!(stored(&fs, "sda1").as_deref(), Some("0:0:0660:block-8-1"));
    let merged = "null char=1:3 0640 owner=3:4; zero char=1:5 0600 owner=5:6; zero2 = zero;
sda1 block=8:1 0660 owner=0:0 mtime=1000";
    fs.assert_merged(merged);
    fs.remount();
    fs.assert_merged(merged);
    // On disk they are files of whoever mounts.
    assert!(fs::metadata(fs.upper("null")).unwrap().is_file());
}

#[test]
fn a_copy_up_from_a_layer_without_overrides_keeps_the_true_owner() {
    requires!(!is_kernel(), OURS);
    requires!(is_root(), ONLY_ROOT);
    let mut fs = Fixture::new()
        .lower(&format!(". {OVERRIDE}='0:0:0755:dir'; a 'a' {OVERRIDE}='7:8:0640:file'"))
        .lower("b 'b' 4755 owner=9:10; d/ 2775 owner=11:12; d/c 'c'; p fifo 0600 owner=13:14; l -> b owner=15:16")
        .option("xattr_permissions=2,metacopy=on")
        .not_for_the_kernel()
        .mount();
    let merged =
        "a 'a' 0640 owner=7:8; b 'b' 4755 owner=9:10; d/ 2775 owner=11:12; d/c 'c' owner=0:0;
p fifo 0600 owner=13:14; l -> b owner=15:16";
    fs.assert_merged(merged);
    for path in ["a", "b", "d/c", "p", "l"] {
        fs.set_mtime(path, 1000, 0);
    }
    fs.assert_merged(merged);
    fs.remount();
    fs.assert_merged(merged);
    assert_eq!(stored(&fs, "b").as_deref(), Some("9:10:4755:file"));
    assert_eq!(stored(&fs, "p").as_deref(), Some("13:14:0600:pipe"));
    fs.append("b", "+");
    fs.assert_merged(&merged.replace("'b' 4755", "'b+' 4755"));
}

#[test]
fn the_root_of_each_layer_says_which_xattr_is_read_in_it() {
    requires!(!is_kernel(), OURS);
    requires!(privilege() == Privilege::Namespace || is_root(), ROOTS);
    let (uid, gid) = own_ids();
    let fs = Fixture::new()
        .lower(&format!(
            "plain 'p' 0600 {OVERRIDE}='{uid}:{gid}:0755:file'"
        ))
        .lower(&format!(
            ". {OVERRIDE}='{uid}:{gid}:0755:dir'; c 'c' 0600 {OVERRIDE}='{uid}:{gid}:0711:file'"
        ))
        .lower(&format!(
            ". user.fuseoverlayfs.override_stat='{uid}:{gid}:0755:dir';
u 'u' 0600 user.fuseoverlayfs.override_stat='{uid}:{gid}:0751'"
        ))
        .option("xattr_permissions=2")
        .read_only()
        .mount();
    fs.assert_merged("plain 'p' 0600; c 'c' 0711; u 'u' 0751");
}

#[test]
fn where_a_root_has_both_names_the_one_of_old_fuse_overlayfs_counts() {
    requires!(!is_kernel(), OURS);
    let (uid, gid) = own_ids();
    let mut fs = forced("l 'l'");
    fs.umount();
    let own = |mode: &str| format!("{uid}:{gid}:{mode}");
    for (name, over, value) in [
        ("", OLD, own("40755")),
        ("both", OVERRIDE, own("0600:file")),
        ("both", OLD, own("100640")),
        ("new", OLD, own("100711")),
        ("kept", OVERRIDE, own("0604:file")),
    ] {
        let path = fs.upper(name);
        fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(&path)
            .ok();
        lsetxattr(path, over, value.as_bytes(), XattrFlags::empty()).unwrap();
    }
    fs.mount().unwrap();
    fs.assert_merged("both '' 0640; new '' 0711; kept '' 0604; l 'l'");
    fs.chmod("both", 0o444);
    fs.chmod("kept", 0o440);
    fs.remount();
    fs.assert_merged("both '' 0444; new '' 0711; kept '' 0440; l 'l'");
}

#[test]
fn values_in_no_known_form_count_for_nothing() {
    requires!(!is_kernel(), OURS);
    let (uid, gid) = own_ids();
    let fs = forced(&format!(
        "a 'a' 0640 {OVERRIDE}='nonsense'; b 'b' 0640 {OVERRIDE}='0:0'; c 'c' 0640 {OVERRIDE}='0:0:0777:teapot';
d 'd' 0640 {OVERRIDE}='0:0:8:file'; e 'e' 0640 {OVERRIDE}='-1:0:0777:file'; link 'l' {OVERRIDE}='OWN:0777:symlink';
white 'w' {OVERRIDE}='OWN:0600:char-0-0'; dir/ 0750 {OVERRIDE}='OWN:0711:file'; long 'x' {OVERRIDE}='OWN:0611:file:more:fields'"
    ));
    let own = format!("owner={uid}:{gid}");
    fs.assert_merged(&format!(
        "a 'a' 0640 {own}; b 'b' 0640 {own}; c 'c' 0640 {own}; d 'd' 0640 {own}; e 'e' 0640 {own};
link 'l' 0777; white 'w' 0600; dir/ 0711; long 'x' 0611"
    ));
    // A change makes the value whole.
    fs.chmod("a", 0o600);
    assert_eq!(stored(&fs, "a"), Some(format!("{uid}:{gid}:0600:file")));
}

#[test]
fn file_capabilities_are_kept_beside_the_override_and_cleared_by_a_write() {
    requires!(!is_kernel(), OURS);
    requires!(
        is_root(),
        "only root sets file capabilities of the whole system"
    );
    let value = [&0x0200_0001_u32.to_le_bytes()[..], &[0, 32, 0, 0], &[0; 12]].concat();
    let fs = forced(&format!(
        "f 'x' {OVERRIDE}='OWN:0755:file'; g 'y' {OVERRIDE}='OWN:0755:file'; h 'z' {OVERRIDE}='OWN:0755:file'"
    ));
    for name in ["f", "g", "h"] {
        lsetxattr(fs.path(name), CAPS, &value, XattrFlags::empty()).unwrap();
        assert_eq!(xattr(&fs.path(name), CAPS), Some(value.clone()));
        assert_eq!(xattr(&fs.upper(name), KEPT), Some(value.clone()));
        assert_eq!(xattr(&fs.upper(name), CAPS), None);
    }
    assert_eq!(crate::support::disk::xattr_names(&fs.path("f")), [CAPS]);
    fs.append("f", "+");
    fs.truncate("g", 0);
    fs.chown("h", 1, 1);
    for name in ["f", "g", "h"] {
        assert_eq!(xattr(&fs.path(name), CAPS), None, "{name}");
        assert_eq!(xattr(&fs.upper(name), KEPT), None, "{name}");
    }
}

#[test]
fn acls_are_kept_beside_the_override_and_go_with_the_mode() {
    requires!(!is_kernel(), OURS);
    requires!(
        is_root(),
        "ACLs are enforced where others may use the mount"
    );
    let fs = forced(&format!(
        "f 'x' 0700 {OVERRIDE}='OWN:0600:file'; d/ 0700 {OVERRIDE}='OWN:0755:dir'"
    ));
    let acl = |user, mask| format!("u::{user},u:1000:rw-,g::r--,m::{mask},o::---");
    set_acl(&fs.path("f"), "acl", &acl("rw-", "rw-"));
    fs.assert_merged(&format!("f 'x' 0660 acl={}; d/ 0755", acl("rw-", "rw-")));
    assert_eq!(stored(&fs, "f").as_deref(), Some("0:0:0660:file"));
    // The mode of the file on disk is none of its business.
    assert_eq!(fs::metadata(fs.upper("f")).unwrap().mode() & 0o7777, 0o600);
    as_user(1000, || fs.append("f", "+"));
    fs.chmod("f", 0o440);
    fs.assert_merged(&format!("f 'x+' 0440 acl={}; d/ 0755", acl("r--", "r--")));
    as_user(1000, || {
        assert!(
            fs::OpenOptions::new()
                .append(true)
                .open(fs.path("f"))
                .is_err()
        );
    });
    set_acl(&fs.path("f"), "acl", "u::rw-,g::r--,o::r--");
    fs.assert_merged("f 'x+' 0644; d/ 0755");
    set_acl(
        &fs.path("d"),
        "default",
        "u::rwx,u:1000:rwx,g::r-x,m::rwx,o::---",
    );
    fs.sh("umask 077; echo n > d/new");
    let inherited = "u::rw-,u:1000:rwx,g::r-x,m::rw-,o::---";
    fs.assert_merged(&format!(
        "f 'x+' 0644; d/ 0755 default=u::rwx,u:1000:rwx,g::r-x,m::rwx,o::---; d/new 'n\\n' 0660 acl={inherited}"
    ));
}

#[test]
fn an_upper_without_user_xattrs_is_refused_with_a_sentence() {
    requires!(!is_kernel(), OURS);
    requires!(is_root(), "mounts a filesystem");
    let failed = Fixture::new()
        .lower("f 'x'")
        .upper_on("ramfs:mode=755")
        .option("xattr_permissions=2")
        .try_mount();
    let said = failed.unwrap_err();
    assert!(
        said.contains("takes no user xattrs") && said.contains("upper"),
        "{said}"
    );
    assert_eq!(said.lines().count(), 1, "{said}");
}

#[test]
fn an_override_in_user_xattrs_cannot_be_set_or_removed_by_any_of_its_names() {
    requires!(!is_kernel(), OURS);
    let fs = forced(&format!("f 'x' {OVERRIDE}='OWN:0600:file'"));
    for name in [
        OVERRIDE,
        "user.fuseoverlayfs.override_stat",
        "user.containers.override_security.capability",
        "user.containers.override_system.posix_acl_access",
    ] {
        let set = lsetxattr(fs.path("f"), name, b"0:0:4777:file", XattrFlags::empty());
        assert_eq!(set, Err(Errno::PERM), "{name}");
        assert_eq!(xattr(&fs.path("f"), name), None);
    }
    fs.assert_merged("f 'x' 0600");
}
