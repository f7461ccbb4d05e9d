//! chmod(2).

use crate::support::{Fixture, requires};

#[test]
fn chmod_of_a_lower_file_keeps_content_owner_and_times() {
    let mut fs = Fixture::new()
        .lower("d/f 'text' 0644 mtime=1000.5 user.k='v'")
        .mount();
    fs.chmod("d/f", 0o600);
    let state = "d/f 'text' 0600 mtime=1000.5 user.k='v'";
    fs.assert_state(state, state);
}

#[test]
fn chmod_of_a_lower_directory_copies_none_of_its_entries() {
    let mut fs = Fixture::new()
        .lower("d/ 0755 mtime=1000; d/f 'f'; d/e/g")
        .mount();
    fs.chmod("d", 0o700);
    fs.assert_state("d/ 0700 mtime=1000; d/f 'f'; d/e/g", "d/ 0700 mtime=1000");
}

#[test]
fn chmod_of_the_root_of_the_mount_works() {
    let mut fs = Fixture::new().lower(". 0755; f").mount();
    fs.chmod(".", 0o711);
    fs.assert_state(". 0711; f", ". 0711");
}

#[test]
fn chmod_of_an_upper_file_changes_it_in_place() {
    let mut fs = Fixture::new().lower("").upper("f 'u' 0644").mount();
    fs.chmod("f", 0o4711);
    fs.assert_state("f 'u' 4711", "f 'u' 4711");
}

#[test]
fn chmod_through_a_symlink_changes_the_target() {
    let mut fs = Fixture::new().lower("l -> f; f 'f' 0644").mount();
    fs.chmod("l", 0o600);
    fs.assert_state("l -> f; f 'f' 0600", "f 'f' 0600");
}

#[test]
fn fchmod_on_a_read_only_descriptor_of_a_lower_file_works() {
    let mut fs = Fixture::new().lower("f 'f' 0644").mount();
    let file = fs.open("f");
    rustix::fs::fchmod(&file, 0o640.into()).unwrap();
    assert_eq!(rustix::fs::fstat(&file).unwrap().st_mode & 0o7777, 0o640);
    drop(file);
    fs.assert_state("f 'f' 0640", "f 'f' 0640");
}

#[test]
fn chmod_to_no_permission_at_all_and_back_works() {
    let mut fs = Fixture::new().lower("f 'f'; d/g 'g'").mount();
    fs.chmod("f", 0);
    fs.chmod("d", 0);
    assert_eq!((fs.mode("f"), fs.mode("d")), (0, 0));
    fs.remount();
    assert_eq!((fs.mode("f"), fs.mode("d")), (0, 0));
    fs.chmod("f", 0o644);
    fs.chmod("d", 0o755);
    fs.assert_state("f 'f'; d/g 'g'", "f 'f'; d/");
}

#[test]
fn all_twelve_mode_bits_are_kept() {
    let mut fs = Fixture::new()
        .lower("s 04755; g 02755; t/ 01777; a 07777")
        .mount();
    fs.assert_merged("a 7777; g 2755; s 4755; t/ 1777");
    fs.set_mtime("s", 1000, 0);
    fs.set_mtime("g", 1000, 0);
    fs.set_mtime("a", 1000, 0);
    fs.set_mtime("t", 1000, 0);
    fs.assert_state(
        "a 7777; g 2755; s 4755; t/ 1777",
        "a 7777; g 2755; s 4755; t/ 1777",
    );
}

#[test]
fn chmod_renews_the_change_time_only() {
    let fs = Fixture::new().lower("f 'f' mtime=1000").mount();
    let before = fs.stat("f");
    fs.chmod("f", 0o600);
    let after = fs.stat("f");
    assert_eq!(after.st_mtime, before.st_mtime);
    assert!((after.st_ctime, after.st_ctime_nsec) > (before.st_ctime, before.st_ctime_nsec));
}

#[test]
fn chmod_of_a_file_without_read_permission_works() {
    requires!(
        rustix::process::getuid().is_root(),
        "the daemon of a user cannot read the file"
    );
    let mut fs = Fixture::new().lower("f 'secret' 0200").mount();
    fs.chmod("f", 0o600);
    fs.assert_state("f 'secret' 0600", "f 'secret' 0600");
}

#[test]
fn chmod_of_fifo_and_socket_of_a_lower_works() {
    let mut fs = Fixture::new().lower("p fifo 0600; s socket 0600").mount();
    fs.chmod("p", 0o622);
    fs.chmod("s", 0o666);
    fs.assert_state("p fifo 0622; s socket 0666", "p fifo 0622; s socket 0666");
}
