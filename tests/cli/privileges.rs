//! The three ways to mount: root, an ordinary user by fusermount3, a user namespace without a helper.

use std::fs;

use super::{PLYFS, Place, assert_contains, succeeds};
use crate::support::requires;
use crate::support::run::is_root;

/// Mount flags and the options of the filesystem, from mountinfo.
#[track_caller]
fn flags(place: &Place) -> (String, String) {
    let fields = place.mountinfo().expect("a mount");
    (fields[5].clone(), fields.last().unwrap().clone())
}

#[test]
fn roots_mounts_let_others_in_and_honour_suid_bits_and_devices() {
    requires!(is_root(), "what root gets");
    let place = Place::new();
    place.mount(&[]);
    let (flags, options) = flags(&place);
    assert_contains(&options, "allow_other");
    assert_contains(&options, "default_permissions");
    assert!(
        !flags.contains("nosuid") && !flags.contains("nodev"),
        "{flags}"
    );
}

#[test]
fn mount_flags_are_honoured() {
    requires!(is_root(), "only root may honour devices");
    let place = Place::new();
    place.mount(&["-o", "dev,nosuid,noexec"]);
    let (flags, _) = flags(&place);
    assert!(
        flags.contains("nosuid") && flags.contains("noexec"),
        "{flags}"
    );
    assert!(!flags.contains("nodev"), "{flags}");
}

/// Runs `script` as root of a new user and mount namespace. `$0` is plyfs.
fn in_namespace(place: &Place, script: &str) -> String {
    let mut command = place.program("unshare", ["-Urm", "sh", "-euc", script, PLYFS]);
    succeeds(command.env("FUSERMOUNT_PATH", "/absent"))
}

#[test]
fn a_user_namespace_needs_no_helper() {
    let place = Place::new();
    let script = r#"
        "$0" mount --lower lower --upper upper --work work merged
        cat merged/file; echo changed > merged/file
        grep -q " $PWD/merged .* fuse.plyfs .*allow_other" /proc/self/mountinfo
        "$0" umount merged
        cat merged/file 2> /dev/null || echo ' and gone'
    "#;
    assert_eq!(in_namespace(&place, script), "from the lower and gone\n");
    assert_eq!(
        fs::read_to_string(place.path("upper/file")).unwrap(),
        "changed\n"
    );
}

#[test]
fn a_command_runs_in_a_user_namespace_and_leaves_nothing() {
    let place = Place::new();
    let script = r#"
        "$0" mount --lower lower --ephemeral merged -- sh -c 'echo x > merged/new; cat merged/file'
        ! grep " $PWD/merged " /proc/self/mountinfo
    "#;
    assert_eq!(in_namespace(&place, script), "from the lower");
    assert!(place.temporaries().is_empty());
}

#[test]
fn an_ordinary_user_mounts_and_unmounts_by_fusermount3() {
    requires!(is_root(), "only root can become another user");
    let place = Place::new();
    fs::copy(PLYFS, place.path("plyfs")).unwrap();
    for dir in ["", "lower", "lower/file", "upper", "work", "merged"] {
        std::os::unix::fs::chown(place.path(dir), Some(65534), Some(65534)).unwrap();
    }
    // A /dev that lets everybody use FUSE, whatever it is outside.
    let dev =
        "mount -t tmpfs none /dev; mknod -m 666 /dev/null c 1 3; mknod -m 666 /dev/fuse c 10 229";
    let as_user = r#"
        ./plyfs mount --lower lower --upper upper --work work -o dev,suid merged
        cat merged/file; echo ' changed' >> merged/file
        grep " $PWD/merged .* fuse.plyfs " /proc/self/mountinfo > line
        grep nosuid line | grep nodev | grep -qv allow_other
        ./plyfs mounts | grep -q "^$PWD/merged *mounted"
        ( cd merged; ! ../plyfs umount . 2> ../line )
        grep -q 'in use' line
        ./plyfs umount merged
        ./plyfs mount --lower lower --upper upper --work work merged -- cat merged/file
        ! grep " $PWD/merged " /proc/self/mountinfo
    "#;
    let become_user = "exec setpriv --reuid=65534 --regid=65534 --clear-groups sh -euc \"$0\"";
    let script = format!("{dev}; {become_user}");
    let output = succeeds(&mut place.program("unshare", ["-m", "sh", "-euc", &script, as_user]));
    assert_eq!(output, "from the lowerfrom the lower changed\n");
}
