//! fsync(2), fdatasync(2), syncfs(2) and the option `volatile`.

use rustix::fs::{fdatasync, fsync, syncfs};

use crate::support::{Fixture, deviates, is_kernel, requires};

#[test]
fn fsync_of_files_and_directories_of_every_layer_works() {
    let fs = Fixture::new()
        .lower("low 'l'; d/x; both/a")
        .upper("up 'u'; both/b")
        .mount();
    for name in ["low", "d", "up", "both", "."] {
        fsync(fs.open(name)).unwrap_or_else(|error| panic!("fsync {name}: {error}"));
        fdatasync(fs.open(name)).unwrap_or_else(|error| panic!("fdatasync {name}: {error}"));
    }
    syncfs(fs.open(".")).unwrap();
    fs.assert_upper("up 'u'; both/b");
}

#[test]
fn fsync_after_a_write_to_a_lower_file_works() {
    let mut fs = Fixture::new().lower("f 'lower'").mount();
    let file = fs.open_rw("f");
    rustix::io::write(&file, b"UP").unwrap();
    fsync(&file).unwrap();
    fdatasync(&file).unwrap();
    assert_eq!(std::fs::read_to_string(fs.upper("f")).unwrap(), "UPwer");
    drop(file);
    fs.assert_state("f 'UPwer'", "f 'UPwer'");
}

#[test]
fn fsync_of_a_deleted_file_works() {
    let fs = Fixture::new().lower("f 'x'").mount();
    let file = fs.open_rw("f");
    rustix::io::write(&file, b"y").unwrap();
    fs.unlink("f");
    fsync(&file).unwrap();
}

#[test]
fn a_volatile_mount_that_did_not_end_cleanly_refuses_to_be_mounted_again() {
    let mut fs = Fixture::new().lower("f 'x'").option("volatile").mount();
    fs.append("f", "+");
    let mark = fs.work("work/incompat/volatile");
    assert!(mark.is_dir(), "the mark of the kernel");
    fsync(fs.open("f")).unwrap();
    if deviates(
        "after a clean unmount everything is synced, so the mark goes; the kernel leaves it",
    ) {
        fs.remount();
        assert!(mark.is_dir(), "the next mount marks again");
        fs.kill();
    } else {
        fs.umount();
    }
    fs.options().clear();
    assert!(fs.mount().is_err(), "the mark is not heeded");
    std::fs::remove_dir_all(fs.work("work/incompat")).unwrap();
    fs.mount().unwrap();
    fs.assert_merged("f 'x+'");
}

#[test]
fn every_durability_mode_gives_the_same_files() {
    requires!(!is_kernel(), "the option fsync= came after this kernel");
    for mode in ["auto", "strict", "volatile"] {
        let mut fs = Fixture::new()
            .lower("d/f 'x'; d/g 'y'")
            .option(&format!("fsync={mode}"))
            .mount();
        fs.append("d/f", "+");
        fs.chmod("d/g", 0o600);
        fs.rename("d", "e");
        fs.assert_merged("e/f 'x+'; e/g 'y' 0600");
        fs.umount();
        fs.assert_upper("d whiteout; e/ redirect=d; e/f 'x+'; e/g 'y' 0600");
    }
}

#[test]
fn a_killed_daemon_loses_nothing_that_it_has_answered() {
    requires!(!is_kernel(), "the kernel cannot be killed");
    let mut fs = Fixture::new().lower("d/f 'x'; e/g; h 'h'").mount();
    fs.append("d/f", "+");
    fs.rename("d", "moved");
    fs.remove_tree("e");
    fs.write("new", "n");
    fs.link("h", "i");
    fs.kill();
    fs.mount().unwrap();
    fs.assert_state(
        "h 'h'; i = h; moved/f 'x+'; new 'n'",
        "d whiteout; e whiteout; h 'h'; i = h; moved/ redirect=d; moved/f 'x+'; new 'n'",
    );
}
