//! `plyfs diff`: what it prints.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::{PLYFS, plyfs};
use crate::support::fixture::Fixture;
use crate::support::mounted::Mounted;
use crate::support::run::{is_kernel, requires};

/// A mount with one change of each kind.
fn changed() -> Mounted {
    let mounted = Fixture::new()
        .lower("etc/conf 'a'; etc/mode 0644; etc/same 'x'; gone/a/b 'x'; was/dir/f 'x'; tmp/")
        .lower("deep/er/file 'x'; etc/below 'x'; etc/long pattern=2345")
        .mount();
    let at = |path: &str| mounted.path(path);
    fs::write(at("etc/conf"), "b!").unwrap();
    fs::write(at("etc/new"), "12345").unwrap();
    mounted
        .sh("chmod 600 etc/mode; rm etc/below; rm -r gone; echo x > etc/same.tmp; rm etc/same.tmp");
    fs::remove_dir_all(at("was")).unwrap();
    symlink("tmp", at("was")).unwrap();
    fs::create_dir_all(at("dir/sub")).unwrap();
    fs::write(at("deep/er/file"), "yy").unwrap();
    // The time alone of a directory is no change.
    fs::write(at("tmp/x"), "x").unwrap();
    fs::remove_file(at("tmp/x")).unwrap();
    mounted
}

const CHANGED: &str = "C /deep\nC /deep/er\nC /deep/er/file\nA /dir\nA /dir/sub\nC /etc\nD /etc/below\n\
                       C /etc/conf\nC /etc/mode\nA /etc/new\nD /gone\nC /was\n";

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_mount_its_upper_and_the_upper_over_its_lowers_tell_the_same_as_docker_would() {
    requires!(!is_kernel(), "a command of plyfs");
    let mut mounted = changed();
    assert_eq!(plyfs(&["diff", text(&mounted.path(""))]), CHANGED);
    let upper = mounted.upper("");
    assert_eq!(plyfs(&["diff", text(&upper)]), CHANGED);
    mounted.umount();
    let (top, below) = (mounted.lower(0, ""), mounted.lower(1, ""));
    let lowers = ["--lower", text(&top), "--lower", text(&below)];
    assert_eq!(
        plyfs(&[&["diff"], &lowers[..], &[text(&upper)]].concat()),
        CHANGED
    );
    mounted.mount().unwrap();
}

#[test]
fn reasons_sizes_and_a_summary_are_told_when_asked_for() {
    requires!(!is_kernel(), "a command of plyfs");
    let mounted = changed();
    let merged = mounted.path("");
    let lines = plyfs(&["diff", "--reason", "-s", text(&merged)]);
    for line in [
        "C     2B /etc/conf (content,time)",
        "C     0B /etc/mode (mode)",
        "A     5B /etc/new",
        "D     1B /etc/below",
        "C      - /was (type,mode,time)",
    ] {
        let found = lines.lines().any(|found| found == line);
        // Whether the mode of a symlink counts is told by its type already.
        assert!(
            found || lines.contains(&line.replace("type,mode", "type")),
            "{line} in\n{lines}"
        );
    }
    assert_eq!(
        plyfs(&["diff", "--stat", text(&merged)]),
        "3 added, 7 changed, 2 deleted, 9B of new content\n"
    );
}

#[test]
fn json_has_podmans_keys_and_reasons_when_asked_for() {
    requires!(!is_kernel(), "a command of plyfs");
    let mounted = changed();
    let merged = mounted.path("");
    let value: Value = serde_json::from_str(&plyfs(&["diff", "--json", text(&merged)])).unwrap();
    assert_eq!(
        value["added"],
        serde_json::json!(["/dir", "/dir/sub", "/etc/new"])
    );
    assert_eq!(value["deleted"], serde_json::json!(["/etc/below", "/gone"]));
    assert_eq!(value["changed"].as_array().unwrap().len(), 7);
    let told = plyfs(&["diff", "--json", "--reason", "--size", text(&merged)]);
    let value: Value = serde_json::from_str(&told).unwrap();
    let conf = serde_json::json!({"path": "/etc/conf", "reasons": ["content", "time"], "size": 2});
    assert!(
        value["changed"].as_array().unwrap().contains(&conf),
        "{told}"
    );
}

#[test]
fn two_trees_are_compared_whatever_they_are() {
    requires!(!is_kernel(), "a command of plyfs");
    let mounted = changed();
    let copy = mounted.aside("copy");
    // A copy of the merged tree is equal to it, the lower trees differ as the upper says.
    let status = Command::new("cp")
        .arg("-a")
        .arg(mounted.path(""))
        .arg(&copy)
        .status();
    assert!(status.unwrap().success());
    assert_eq!(plyfs(&["diff", text(&mounted.path("")), text(&copy)]), "");
    fs::write(copy.join("etc/same"), "y").unwrap();
    assert_eq!(
        plyfs(&["diff", text(&mounted.path("")), text(&copy)]),
        "C /etc\nC /etc/same\n"
    );
    let top = mounted.lower(0, "");
    let told = plyfs(&["diff", text(&top), text(&mounted.path(""))]);
    assert!(
        told.contains("A /deep\n") && told.contains("D /gone\n"),
        "{told}"
    );
}

#[test]
fn a_renamed_directory_is_told_as_what_is_gone_and_what_is_new() {
    requires!(!is_kernel(), "a command of plyfs");
    let mounted = Fixture::new().lower("d/a 'x'; d/s/b 'x'; e/f 'x'").mount();
    fs::rename(mounted.path("d"), mounted.path("e/moved")).unwrap();
    fs::write(mounted.path("e/moved/s/c"), "x").unwrap();
    assert_eq!(
        plyfs(&["diff", text(&mounted.path(""))]),
        "D /d\nC /e\nA /e/moved\nA /e/moved/a\nA /e/moved/s\nA /e/moved/s/b\nA /e/moved/s/c\n"
    );
}

#[test]
fn every_name_of_a_changed_hard_link_is_told() {
    requires!(!is_kernel(), "a command of plyfs");
    let mounted = Fixture::new()
        .lower("a/one 'x'; b/two = a/one; c/other 'x'")
        .mount();
    fs::write(mounted.path("a/one"), "longer").unwrap();
    assert_eq!(
        plyfs(&["diff", text(&mounted.path(""))]),
        "C /a\nC /a/one\nC /b\nC /b/two\n"
    );
}

#[test]
fn a_directory_that_is_no_upper_cannot_be_compared_with_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(PLYFS)
        .arg("diff")
        .arg(dir.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        stderr.contains("--lower DIR") && stderr.lines().count() == 1,
        "{stderr}"
    );
    let output = Command::new(PLYFS)
        .args(["diff", "/nonexistent"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(9));
}
