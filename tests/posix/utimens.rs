//! utimensat(2), and the times of a file over its life: before 1970, after 2038, nanoseconds.

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, utimensat};

use crate::support::{Fixture, Mounted};

fn set(fs: &Mounted, path: &str, access: (i64, i64), modification: (i64, i64)) {
    let time = |(tv_sec, tv_nsec)| Timespec { tv_sec, tv_nsec };
    let times = Timestamps {
        last_access: time(access),
        last_modification: time(modification),
    };
    utimensat(CWD, fs.path(path), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

#[test]
fn utimens_of_a_lower_file_keeps_everything_else() {
    let mut fs = Fixture::new().lower("d/f 'text' 0640 user.k='v'").mount();
    fs.set_mtime("d/f", 1_234_567_890, 123_456_789);
    let state = "d/f 'text' 0640 user.k='v' mtime=1234567890.123456789";
    fs.assert_state(state, state);
}

#[test]
fn utimens_of_directories_symlinks_and_fifos_works() {
    let mut fs = Fixture::new().lower("d/f 'f'; l -> f; p fifo").mount();
    for name in ["d", "l", "p"] {
        fs.set_mtime(name, 1000, 1);
    }
    fs.assert_state(
        "d/ mtime=1000.000000001; d/f 'f'; l -> f mtime=1000.000000001; p fifo mtime=1000.000000001",
        "d/ mtime=1000.000000001; l -> f mtime=1000.000000001; p fifo mtime=1000.000000001",
    );
}

#[test]
fn times_before_1970_and_after_2038_are_shown_and_copied_up() {
    let text = "old 'x' mtime=-1; older/ mtime=-86400.5; oldest 'y' mtime=-2000000000.999999999;
        new 'z' mtime=4000000000.25";
    let text = text.replace("        ", "");
    let mut fs = Fixture::new().lower(&text).mount();
    fs.assert_merged(&text);
    for name in ["old", "older", "oldest", "new"] {
        fs.chmod(name, 0o700);
    }
    fs.assert_state(&text, &text);
}

#[test]
fn times_before_1970_and_after_2038_can_be_set() {
    let mut fs = Fixture::new().lower("a; b; c").mount();
    fs.set_mtime("a", -1, 999_999_999);
    fs.set_mtime("b", -1_000_000_000, 0);
    fs.set_mtime("c", 5_000_000_000, 5);
    let state = "a mtime=-1.999999999; b mtime=-1000000000; c mtime=5000000000.000000005";
    fs.assert_state(state, state);
}

#[test]
fn each_of_the_two_times_can_be_left_alone() {
    let fs = Fixture::new().lower("f 'x' mtime=1000.5").mount();
    set(&fs, "f", (5, 6), (0, UTIME_OMIT));
    let stat = fs.stat("f");
    assert_eq!((stat.st_atime, stat.st_atime_nsec), (5, 6));
    assert_eq!((stat.st_mtime, stat.st_mtime_nsec), (1000, 500_000_000));
    set(&fs, "f", (0, UTIME_OMIT), (7, 8));
    let stat = fs.stat("f");
    assert_eq!((stat.st_atime, stat.st_atime_nsec), (5, 6));
    assert_eq!((stat.st_mtime, stat.st_mtime_nsec), (7, 8));
}

#[test]
fn now_is_the_time_of_the_system() {
    let fs = Fixture::new().lower("f 'x' mtime=1000").mount();
    let before = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
    set(&fs, "f", (0, UTIME_NOW), (0, UTIME_NOW));
    let after = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    let mtime = fs.mtime("f");
    assert!(
        (before.tv_sec..=after.tv_sec).contains(&mtime.0),
        "{mtime:?}"
    );
}

#[test]
fn futimens_on_a_read_only_descriptor_of_a_lower_file_works() {
    let mut fs = Fixture::new().lower("f 'x'").mount();
    let file = fs.open("f");
    let time = Timespec {
        tv_sec: 77,
        tv_nsec: 7,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    rustix::fs::futimens(&file, &times).unwrap();
    drop(file);
    fs.assert_state("f 'x' mtime=77.000000007", "f 'x' mtime=77.000000007");
}

#[test]
fn times_set_after_a_write_stay_over_close_and_remount() {
    let mut fs = Fixture::new().lower("f 'x'").mount();
    let file = fs.open_rw("f");
    rustix::io::write(&file, b"new").unwrap();
    fs.set_mtime("f", 1000, 5);
    drop(file);
    fs.assert_state(
        "f 'new' mtime=1000.000000005",
        "f 'new' mtime=1000.000000005",
    );
}

#[test]
fn a_create_in_a_directory_renews_its_time_and_stays_after_a_remount() {
    let mut fs = Fixture::new().lower("d/ mtime=1000; d/x").mount();
    fs.write("d/f", "");
    let time = fs.mtime("d");
    assert!(time.0 > 1000);
    fs.remount();
    assert_eq!(fs.mtime("d"), time);
}
