//! `passthrough=on` and `all`: the kernel reads and writes the real files itself. That every other test of this suite
//! holds with it is shown by the part `passthrough` of `scripts/test`.

use std::io::Read;

use rustix::fs::fstat;
use serde_json::Value;

use crate::support::run::requires;
use crate::support::{Fixture, Mounted, is_kernel, is_root};

const REASON: &str = "the kernel passes files through for root only, and it is an option of plyfs";

fn requests(fs: &Mounted, kind: &str) -> u64 {
    let mut buffer = vec![0; 64 * 1024];
    let length = rustix::fs::getxattr(fs.path(""), "user.plyfs.stats", &mut buffer[..]).unwrap();
    let stats: Value = serde_json::from_slice(&buffer[..length]).unwrap();
    stats["requests"][kind]["count"].as_u64().unwrap_or(0)
}

#[test]
fn files_of_the_upper_are_read_and_written_without_the_daemon() {
    requires!(is_root() && !is_kernel(), REASON);
    let mut fs = Fixture::new()
        .option("passthrough=on")
        .lower("l 'lower'")
        .upper("u 'upper'")
        .mount();
    assert_eq!(fs.text("u"), "upper");
    fs.write("new", "made");
    fs.append("u", "+");
    fs.append("l", "+");
    assert_eq!(fs.text("new"), "made");
    assert_eq!((requests(&fs, "read"), requests(&fs, "write")), (0, 0));
    assert_eq!(fs.stat("u").st_size, 6);
    let all = "l 'lower+'; new 'made'; u 'upper+'";
    fs.assert_state(all, all);
}

#[test]
fn opening_a_lower_file_for_writing_copies_it_up_and_truncating_it_copies_no_data() {
    requires!(is_root() && !is_kernel(), REASON);
    let fs = Fixture::new()
        .option("passthrough=on")
        .lower("a 'lower'; b pattern=5000000")
        .mount();
    drop(fs.open_rw("a"));
    fs.assert_upper("a 'lower'");
    fs.write("b", "short");
    assert_eq!(requests(&fs, "write"), 0);
    fs.assert_upper("a 'lower'; b 'short'");
}

#[test]
fn suid_goes_when_an_ordinary_user_writes() {
    requires!(is_root() && !is_kernel(), REASON);
    let fs = Fixture::new()
        .option("passthrough=on")
        .lower("")
        .upper("s 'x' 4777")
        .mount();
    crate::support::as_user(4242, || fs.append("s", "y"));
    assert_eq!(fs.mode("s") & 0o7777, 0o777);
}

#[test]
fn a_read_only_mount_is_read_without_the_daemon() {
    requires!(is_root() && !is_kernel(), REASON);
    let fs = Fixture::new()
        .option("passthrough=on")
        .read_only()
        .lower("a 'lower'")
        .mount();
    assert_eq!(fs.text("a"), "lower");
    assert_eq!(requests(&fs, "read"), 0);
}

#[test]
fn with_all_a_reader_of_a_lower_file_keeps_it_and_whoever_opens_later_sees_the_copy() {
    requires!(is_root() && !is_kernel(), REASON);
    let mut fs = Fixture::new()
        .option("passthrough=all")
        .lower("f 'lower'; g 'lower'")
        .mount();
    let (mut before, truncated) = (fs.open("f"), fs.open("g"));
    let number = fs.stat("f").st_ino;
    fs.append("f", "+");
    assert_eq!(fs.text("f"), "lower+");
    let mut text = String::new();
    before.read_to_string(&mut text).unwrap();
    assert_eq!(text, "lower");
    assert_eq!(fstat(&before).unwrap().st_ino, number);
    fs.truncate("g", 2);
    assert_eq!(fs.text("g"), "lo");
    assert_eq!(fstat(&truncated).unwrap().st_size, 5);
    assert_eq!((requests(&fs, "read"), requests(&fs, "write")), (0, 0));
    drop((before, truncated));
    fs.assert_state("f 'lower+'; g 'lo'", "f 'lower+'; g 'lo'");
}

#[test]
fn a_lower_file_that_is_open_is_written_through_the_daemon_and_its_reader_sees_that() {
    requires!(is_root() && !is_kernel(), REASON);
    let fs = Fixture::new()
        .option("passthrough=on")
        .lower("f 'lower'")
        .mount();
    let mut before = fs.open("f");
    fs.append("f", "+");
    let mut text = String::new();
    before.read_to_string(&mut text).unwrap();
    assert_eq!(text, "lower+");
    assert_eq!(requests(&fs, "write"), 1);
}
