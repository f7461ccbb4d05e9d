//! The three ways to mount: root, an ordinary user by fusermount3, a user namespace without a helper.

use std::fs;
use std::os::unix::fs::PermissionsExt;

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
    let bin = place.path("bin");
    fs::create_dir(&bin).unwrap();
    // Would be found first.
    fs::write(bin.join("fusermount3"), "#!/bin/sh\ntouch used; exit 1\n").unwrap();
    fs::set_permissions(bin.join("fusermount3"), fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let mut command = place.program("unshare", ["-Urm", "sh", "-euc", script, PLYFS]);
    let output = succeeds(command.env("PATH", path));
    assert!(!place.path("used").exists(), "the helper was called");
    output
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

/// Engines send the label of a container there, too; the kernel takes none of a FUSE mount.
#[test]
fn selinux_labels_are_left_out_in_a_user_namespace() {
    let place = Place::new();
    let script = r#"
        "$0" -o 'lowerdir=lower,upperdir=upper,workdir=work,context="system_u:object_r:container_file_t:s0:c1,c2"' merged
        cat merged/file
        ! grep " $PWD/merged .*context" /proc/self/mountinfo
        "$0" umount merged
    "#;
    assert_eq!(in_namespace(&place, script), "from the lower");
}

/// `private` is what buildah sends for a volume that is an overlay.
#[test]
fn how_mounts_below_spread_is_as_asked_for() {
    let place = Place::new();
    let script = r#"
        mount --make-rshared /
        for word in '' private slave unbindable shared rprivate; do
            "$0" -o "lowerdir=lower,upperdir=upper,workdir=work${word:+,}$word" merged
            awk -v m="$PWD/merged" '$5 == m { f = ""; for (i = 7; $i != "-"; i++) f = f $i; print f }' /proc/self/mountinfo
            "$0" umount merged
        done
    "#;
    // A slave of nobody is private.
    let output = in_namespace(&place, script);
    let kinds = output
        .lines()
        .map(|line| line.trim_end_matches(|c| matches!(c, '0'..='9' | ':')));
    assert_eq!(
        kinds.collect::<Vec<_>>(),
        ["shared", "", "", "unbindable", "shared", ""]
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

/// Runs `script` in the place as an ordinary user who may use FUSE and has `./plyfs`.
fn as_ordinary_user(place: &Place, script: &str) -> String {
    fs::copy(PLYFS, place.path("plyfs")).unwrap();
    // A /dev that lets everybody use FUSE, whatever it is outside.
    let dev =
        "mount -t tmpfs none /dev; mknod -m 666 /dev/null c 1 3; mknod -m 666 /dev/fuse c 10 229";
    let become_user = "exec setpriv --reuid=65534 --regid=65534 --clear-groups sh -euc \"$0\"";
    let commands = format!("{dev}; {become_user}");
    succeeds(&mut place.program("unshare", ["-m", "sh", "-euc", &commands, script]))
}

fn give_to_the_user(place: &Place, paths: &[&str]) {
    for path in paths {
        std::os::unix::fs::chown(place.path(path), Some(65534), Some(65534)).unwrap();
    }
}

#[test]
fn an_ordinary_user_mounts_and_unmounts_by_fusermount3() {
    requires!(is_root(), "only root can become another user");
    let place = Place::new();
    give_to_the_user(
        &place,
        &["", "lower", "lower/file", "upper", "work", "merged"],
    );
    let script = r#"
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
    let output = as_ordinary_user(&place, script);
    assert_eq!(output, "from the lowerfrom the lower changed\n");
}

#[test]
fn an_ordinary_user_changes_files_of_others_where_owners_are_squashed() {
    requires!(is_root(), "only root can become another user");
    let place = Place::new();
    fs::create_dir(place.path("lower/dir")).unwrap();
    fs::write(place.path("lower/dir/deep"), "deep").unwrap();
    give_to_the_user(&place, &["", "upper", "work", "merged"]);
    let script = r"
        me=squash_to_uid=65534,squash_to_gid=65534
        ./plyfs mount --lower lower --upper upper --work work -o $me merged
        stat -c %u:%g merged/dir
        echo more >> merged/dir/deep; mkdir merged/dir/new; mv merged/dir merged/moved
        chmod 600 merged/file
        ./plyfs umount merged
        ./plyfs mount --lower lower --upper upper --work work -o $me merged
        cat merged/moved/deep; ls merged merged/moved
        ./plyfs umount merged
        stat -c '%u:%g %a %n' upper/moved upper/moved/deep upper/file
        # Without it they stay what they are: not his to change.
        ./plyfs mount --lower lower merged -- sh -c '! echo x 2> line >> merged/file'
        grep -q 'Read-only' line
    ";
    let expected = "65534:65534\ndeepmore\nmerged:\nfile\nmoved\n\nmerged/moved:\ndeep\nnew\n\
        65534:65534 755 upper/moved\n65534:65534 644 upper/moved/deep\n65534:65534 600 upper/file\n";
    assert_eq!(as_ordinary_user(&place, script), expected);
}

#[test]
fn an_ordinary_user_finds_by_name_what_he_may_search_and_not_list() {
    requires!(is_root(), "only root can become another user");
    let place = Place::new();
    for layer in ["lower", "below"] {
        for file in ["both", layer, "hidden", "gone"] {
            fs::create_dir_all(place.path(layer).join("dir")).unwrap();
            fs::write(place.path(layer).join("dir").join(file), layer).unwrap();
        }
        let mode = fs::Permissions::from_mode(0o711);
        fs::set_permissions(place.path(layer).join("dir"), mode).unwrap();
    }
    fs::remove_file(place.path("lower/dir/hidden")).unwrap();
    fs::write(place.path("lower/dir/.wh.hidden"), "").unwrap();
    give_to_the_user(&place, &["", "upper", "work", "merged"]);
    let script = r"
        show() {
            for name in both lower below hidden gone new; do
                echo $name $(cat merged/dir/$name 2>&1 | sed 's/.*: //')
            done
        }
        ./plyfs mount --lower lower --lower below merged
        show; show | md5sum > first; show | md5sum | cmp - first
        ./plyfs umount merged
        ./plyfs mount --lower lower --lower below --upper upper --work work \
            -o squash_to_uid=65534,squash_to_gid=65534 merged
        echo + >> merged/dir/below; rm merged/dir/gone; echo n > merged/dir/new; mv merged/dir/both merged/dir/hidden
        show
        ./plyfs umount merged
        ./plyfs mount --lower lower --lower below --upper upper --work work \
            -o squash_to_uid=65534,squash_to_gid=65534 merged
        show; ls merged/dir 2>&1 | sed 's/.*: //'
        ./plyfs umount merged
    ";
    let missing = "No such file or directory";
    let changed =
        format!("both {missing}\nlower lower\nbelow below+\nhidden lower\ngone {missing}\nnew n\n");
    let expected = format!(
        "both lower\nlower lower\nbelow below\nhidden {missing}\ngone lower\nnew {missing}\n\
         {changed}{changed}Permission denied\n"
    );
    assert_eq!(as_ordinary_user(&place, script), expected);
}

#[test]
fn an_ordinary_user_lists_what_he_may_not_search_without_what_is_deleted() {
    requires!(is_root(), "only root can become another user");
    let place = Place::new();
    fs::create_dir_all(place.path("lower/dir")).unwrap();
    for file in ["gone", "kept"] {
        fs::write(place.path("lower/dir").join(file), "").unwrap();
    }
    give_to_the_user(
        &place,
        &["", "lower", "lower/dir", "upper", "work", "merged"],
    );
    let script = r"
        mount() { ./plyfs mount --lower lower --upper upper --work work merged; }
        mount
        rm merged/dir/gone; chmod 644 merged/dir
        ./plyfs umount merged
        mount
        ls merged/dir
        chmod 755 merged/dir; ls merged/dir
        ./plyfs umount merged
        stat -c '%t,%T %F' upper/dir/gone
    ";
    let expected = "kept\nkept\n0,0 character special file\n";
    assert_eq!(as_ordinary_user(&place, script), expected);
}

#[test]
fn without_fusermount3_the_sentence_says_so() {
    requires!(is_root(), "only root can become another user");
    let place = Place::new();
    give_to_the_user(&place, &["", "lower", "merged"]);
    let script = r"
        code=0; PATH=/absent ./plyfs mount --lower lower merged 2> line || code=$?
        cat line; echo $code; ls merged
    ";
    let output = as_ordinary_user(&place, script);
    let (sentence, code) = output.trim_end().rsplit_once('\n').unwrap();
    assert_contains(
        sentence,
        "plyfs: fusermount3 is not installed: install the package fuse3",
    );
    assert_eq!((sentence.lines().count(), code), (1, "7"));
}

#[test]
fn a_daemon_of_root_keeps_to_quotas_and_leaves_reserved_space_alone() {
    requires!(is_root(), "what root gives up");
    let place = Place::new();
    place.mount(&[]);
    let status = fs::read_to_string(place.daemon().proc("status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:\t"));
    let effective = u64::from_str_radix(line.unwrap(), 16).unwrap();
    // CAP_SYS_ADMIN and CAP_SYS_RESOURCE of linux/capability.h.
    assert_eq!((effective >> 21 & 1, effective >> 24 & 1), (1, 0));
}
