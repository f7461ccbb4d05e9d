//! The mode and group of what is created: umask, setgid directories.

use crate::support::{Fixture, as_member, is_root, requires};

#[test]
fn create_applies_the_umask_of_the_caller() {
    let mut fs = Fixture::new().lower("d/x").mount();
    fs.sh("umask 077; : > a; mkdir b; umask 0; : > d/c; mkdir d/e; mkfifo d/p; umask 027; : > d/f");
    let made =
        "a 0600; b/ 0700 opaque=either; d/c 0666; d/e/ 0777 opaque=either; d/p fifo 0666; d/f 0640";
    fs.assert_state(
        &format!("{}; d/x", made.replace(" opaque=either", "")),
        made,
    );
}

#[test]
fn the_umask_is_that_of_each_caller_and_not_of_the_one_who_mounted() {
    let mut fs = Fixture::new().lower("").mount();
    fs.sh("umask 0; mkdir open; (umask 077; : > open/private) & (umask 0; : > open/public) & wait");
    let state = "open/ 0777; open/private 0600; open/public 0666";
    fs.assert_state(state, &state.replace("0777", "0777 opaque=either"));
}

#[test]
fn the_umask_does_not_touch_symlinks_and_explicit_chmod() {
    let mut fs = Fixture::new().lower("").mount();
    fs.sh("umask 077; ln -s t l; : > f; chmod 0666 f; install -m 0751 /dev/null g");
    fs.assert_state("l -> t 0777; f 0666; g 0751", "l -> t; f 0666; g 0751");
}

#[test]
fn a_setgid_directory_of_a_lower_gives_its_group_to_new_objects() {
    requires!(is_root(), "needs a second group");
    let mut fs = Fixture::new().lower("d/ 02777 owner=0:500; d/x").mount();
    as_member(1000, 1000, &[], || {
        fs.write("d/f", "");
        fs.mkdir("d/sub");
        fs.write("d/sub/g", "");
        fs.symlink("t", "d/l");
    });
    assert_eq!(fs.mode("d/sub") & 0o2000, 0o2000);
    let made = "d/f owner=1000:500; d/l -> t owner=1000:500; d/sub/ owner=1000:500; d/sub/g owner=1000:500";
    fs.assert_state(
        &format!("d/ 2777 owner=0:500; d/x; {made}"),
        &format!(
            "d/ 2777; {}",
            made.replace("d/sub/ owner", "d/sub/ opaque=either owner")
        ),
    );
}

#[test]
fn a_setgid_directory_made_through_the_mount_works_the_same() {
    requires!(is_root(), "needs a second group");
    let mut fs = Fixture::new().lower("").mount();
    fs.mkdir("d");
    fs.chown("d", 1000, 500);
    fs.chmod("d", 0o2775);
    as_member(1000, 1000, &[], || fs.write("d/f", ""));
    fs.assert_state(
        "d/ 2775; d/f owner=1000:500",
        "d/ 2775 opaque=either; d/f owner=1000:500",
    );
}

#[test]
fn a_setgid_file_created_by_a_non_member_loses_the_bit() {
    requires!(is_root(), "needs a second group");
    let mut fs = Fixture::new().lower("d/ 02777 owner=0:500").mount();
    as_member(1000, 1000, &[], || {
        let flags = rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY;
        drop(rustix::fs::open(fs.path("d/f"), flags, 0o2755.into()).unwrap());
    });
    assert_eq!(fs.mode("d/f") & 0o2000, 0);
    fs.remount();
    assert_eq!((fs.mode("d/f") & 0o2000, fs.stat("d/f").st_gid), (0, 500));
}

#[test]
fn rename_into_a_setgid_directory_keeps_the_group() {
    requires!(is_root(), "needs a second group");
    let mut fs = Fixture::new()
        .lower("d/ 02777 owner=0:500; f 'f' owner=1000:1000 0600")
        .mount();
    fs.rename("f", "d/f");
    fs.assert_state(
        "d/; d/f 'f' owner=1000:1000 0600",
        "d/; d/f 'f' owner=1000:1000 0600; f whiteout",
    );
}
