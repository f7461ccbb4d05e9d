//! chown(2).

use rustix::io::Errno;

use crate::support::{Fixture, is_root, requires};

#[test]
fn chown_of_a_lower_file_keeps_content_mode_and_times() {
    requires!(is_root(), "only root changes owners");
    let mut fs = Fixture::new()
        .lower("d/f 'text' 0640 mtime=1000.5 user.k='v'")
        .mount();
    fs.chown("d/f", 1000, 2000);
    let state = "d/f 'text' 0640 owner=1000:2000 mtime=1000.5 user.k='v'";
    fs.assert_state(state, state);
}

#[test]
fn chown_of_a_lower_directory_copies_none_of_its_entries() {
    requires!(is_root(), "only root changes owners");
    let mut fs = Fixture::new()
        .lower("d/ mtime=1000; d/f 'f' owner=5:6")
        .mount();
    fs.chown("d", 1000, 1000);
    fs.assert_state(
        "d/ owner=1000:1000 mtime=1000; d/f 'f' owner=5:6",
        "d/ owner=1000:1000 mtime=1000",
    );
}

#[test]
fn chown_of_symlinks_and_special_files_works() {
    requires!(is_root(), "only root changes owners");
    let mut fs = Fixture::new()
        .lower("l -> f; p fifo; s socket; c char=1:3")
        .mount();
    for name in ["l", "p", "s", "c"] {
        fs.chown(name, 7, 8);
    }
    let state = "l -> f owner=7:8; p fifo owner=7:8; s socket owner=7:8; c char=1:3 owner=7:8";
    fs.assert_state(state, state);
}

#[test]
fn chown_recursive_changes_every_object_and_no_content() {
    requires!(is_root(), "only root changes owners");
    let mut fs = Fixture::new()
        .lower("d/a 'a'; d/e/b 'b'; d/e/l -> b")
        .mount();
    fs.sh("chown -hR 1000:1000 d");
    let state = "d/ owner=1000:1000; d/a 'a' owner=1000:1000; d/e/ owner=1000:1000;
        d/e/b 'b' owner=1000:1000; d/e/l -> b owner=1000:1000";
    let state = state.replace("        ", "");
    fs.assert_state(&state, &state);
}

#[test]
fn owners_of_a_lower_are_kept_by_every_kind_of_copy_up() {
    requires!(is_root(), "only root changes owners");
    let mut fs = Fixture::new()
        .lower("d/ owner=1:2; d/f 'f' owner=3:4; d/l -> f owner=5:6; d/p fifo owner=7:8")
        .mount();
    fs.append("d/f", "+");
    fs.set_mtime("d/l", 1000, 0);
    fs.chmod("d/p", 0o600);
    let state = "d/ owner=1:2; d/f 'f+' owner=3:4; d/l -> f owner=5:6; d/p fifo owner=7:8";
    fs.assert_state(state, state);
}

#[test]
fn large_ids_are_kept() {
    requires!(is_root(), "only root changes owners");
    let mut fs = Fixture::new()
        .lower("f 'f' owner=4294967294:4000000000")
        .mount();
    fs.chmod("f", 0o600);
    fs.write("g", "g");
    fs.chown("g", 4_000_000_000, 65_536);
    let state = "f 'f' owner=4294967294:4000000000; g 'g' owner=4000000000:65536";
    fs.assert_state(state, state);
}

#[test]
fn chown_to_another_user_without_privilege_fails_and_copies_nothing() {
    requires!(!is_root(), "root may change owners");
    let fs = Fixture::new().lower("f 'f'").mount();
    let other = Some(rustix::fs::Uid::from_raw(12_345));
    let result = rustix::fs::chown(fs.path("f"), other, None);
    assert!(
        matches!(result, Err(Errno::PERM | Errno::INVAL)),
        "{result:?}"
    );
    fs.assert_merged("f 'f'");
}

#[test]
fn chown_to_the_same_owner_is_allowed_to_the_owner() {
    let mut fs = Fixture::new().lower("f 'f' 0600 mtime=1000").mount();
    let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
    rustix::fs::chown(fs.path("f"), Some(uid), Some(gid)).unwrap();
    fs.remount();
    fs.assert_merged("f 'f' 0600 mtime=1000");
}

#[test]
fn the_owner_of_a_new_file_is_its_creator() {
    let (uid, gid) = crate::support::run::own_ids();
    let mut fs = Fixture::new().lower("d/x").mount();
    fs.write("d/f", "");
    fs.mkdir("d/e");
    fs.symlink("t", "d/l");
    let owner = format!("owner={uid}:{gid}");
    let made = format!("d/f '' {owner}; d/e/ {owner}; d/l -> t {owner}");
    fs.assert_state(
        &format!("d/x; {made}"),
        &made.replace("d/e/", "d/e/ opaque=either"),
    );
}
