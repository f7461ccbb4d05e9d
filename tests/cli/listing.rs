//! `mounts` and `stats`.

use std::fs;

use rustix::process::Signal;
use serde_json::Value;

use super::{Place, assert_contains, fails};
use crate::support::requires;

#[test]
fn mounts_lists_layers_upper_and_options() {
    let place = Place::new();
    let args = [
        "mount", "--lower", "lower", "--lower", "below", "--upper", "upper", "--work",
    ];
    place.done(&[&args[..], &["work", "-o", "metacopy=on", "merged"]].concat());
    let path = |name| Value::from(place.path(name).to_str().unwrap());
    let entry = place.entry();
    assert_eq!(entry["state"], "mounted");
    assert_eq!(
        entry["lowers"],
        Value::from(vec![path("lower"), path("below")])
    );
    assert_eq!(entry["lower_count"], 2);
    assert_eq!(
        (&entry["upper"], &entry["work"]),
        (&path("upper"), &path("work"))
    );
    assert_eq!(entry["options"], Value::from(vec!["metacopy=on"]));
    assert_eq!(
        (&entry["read_only"], &entry["ephemeral"]),
        (&false.into(), &false.into())
    );
    let table = place.done(&["mounts"]);
    let line = table
        .lines()
        .find(|line| line.starts_with(path("merged").as_str().unwrap()));
    let line = line.unwrap_or_else(|| panic!("not listed: {table}"));
    for part in [
        "mounted",
        "rw",
        path("upper").as_str().unwrap(),
        "metacopy=on",
    ] {
        assert_contains(line, part);
    }
    assert_contains(table.lines().next().unwrap(), "MOUNTPOINT");
}

#[test]
fn a_mount_without_an_upper_is_listed_and_is_read_only() {
    let place = Place::new();
    place.done(&["mount", "--lower", "lower", "merged"]);
    let entry = place.entry();
    assert_eq!(
        (&entry["read_only"], &entry["upper"]),
        (&true.into(), &Value::Null)
    );
    let error = fs::write(place.path("merged/new"), "").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
}

#[test]
fn ro_protects_an_upper() {
    let place = Place::new();
    place.mount(&["-o", "ro"]);
    assert_eq!(place.entry()["read_only"], true);
    let error = fs::write(place.path("merged/new"), "").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
}

#[test]
fn a_thousand_layers_are_listed_as_far_as_an_xattr_can_tell() {
    let place = Place::new();
    let mut command = place.plyfs(["mount", "merged"]);
    for number in 0..1000 {
        let layer = place.path(format!("layer-{number:0100}"));
        fs::create_dir(&layer).unwrap();
        fs::write(layer.join(format!("file-{number}")), "").unwrap();
        command.arg("--lower").arg(layer);
    }
    super::succeeds(&mut command);
    assert!(place.path("merged/file-0").exists() && place.path("merged/file-999").exists());
    let entry = place.entry();
    assert_eq!(entry["lower_count"], 1000);
    assert!(entry["lowers"].as_array().unwrap().len() > 100);
}

#[test]
fn a_dead_mount_is_listed_as_dead_and_cleared_away_by_umount() {
    let place = Place::new();
    place.mount(&[]);
    let daemon = place.daemon();
    daemon.signal(Signal::KILL);
    daemon.ended();
    assert_eq!(place.entry()["state"], "dead");
    assert_contains(&place.done(&["mounts"]), "dead");
    assert_contains(&fails(&mut place.plyfs(["stats", "merged"]), 8), "umount");
    place.umount("merged");
    assert!(!place.is_mounted());
}

#[test]
fn what_the_daemon_says_of_itself_is_not_listed_as_an_xattr() {
    let place = Place::new();
    place.mount(&[]);
    let mut names = [0; 4096];
    let length = rustix::fs::listxattr(place.path("merged"), &mut names).unwrap();
    let names = String::from_utf8_lossy(&names[..length]);
    assert!(!names.contains("user.plyfs."), "{names}");
}

#[test]
fn stats_counts_requests() {
    let place = Place::new();
    place.mount(&[]);
    assert!(!place.path("merged/absent").exists());
    let stats: Value = serde_json::from_str(&place.done(&["stats", "merged", "--json"])).unwrap();
    assert!(stats["requests"].is_object(), "{stats}");
    let shown = place.done(&["stats", "merged"]);
    assert_contains(&shown, "REQUESTS");
    assert_contains(&shown, "lookup");
}

#[test]
fn the_first_open_of_a_mount_is_made_by_the_command_that_mounts_so_no_close_is_told() {
    let place = Place::new();
    place.mount(&[]);
    for number in 0..10 {
        fs::write(place.path(format!("merged/new{number}")), "new").unwrap();
    }
    let stats: Value = serde_json::from_str(&place.done(&["stats", "merged", "--json"])).unwrap();
    let count = |kind: &str| stats["requests"][kind]["count"].as_u64();
    let requests = ["lookup", "open", "create", "write", "flush", "release"];
    assert_eq!(
        requests.map(count),
        [Some(11), Some(1), Some(10), Some(10), Some(1), None],
        "{stats}"
    );
    let names = fs::read_dir(place.path("merged")).unwrap();
    assert_eq!(names.count(), 11);
    let daemon = &place.entry()["pid"];
    let asked = place.path(format!("merged/.plyfs-{daemon}-first-open"));
    // The kernel may believe in it for a second.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    assert!(!asked.exists());
    fs::write(&asked, "a name like any other").unwrap();
    assert_eq!(fs::read_to_string(&asked).unwrap(), "a name like any other");
}

#[test]
fn a_walk_that_only_lists_is_read_ahead_by_a_thread_and_stats_tell() {
    requires!(
        std::thread::available_parallelism().is_ok_and(|cpus| cpus.get() > 1),
        "needs a second CPU"
    );
    let place = Place::new();
    for number in 0..200 {
        let dir = place.path(format!("lower/many/d{number}/s"));
        fs::create_dir_all(&dir).unwrap();
        for file in 0..3 {
            fs::write(dir.join(format!("f{file}")), "f").unwrap();
        }
    }
    let ahead = || {
        let stats = place.done(&["stats", "merged", "--json"]);
        let stats: Value = serde_json::from_str(&stats).unwrap();
        stats["cache"]["directories_read_ahead"].as_u64().unwrap()
    };
    let has_thread = || {
        let tasks = format!("/proc/{}/task", place.entry()["pid"]);
        let names = fs::read_dir(tasks)
            .unwrap()
            .map(|task| task.unwrap().path().join("comm"));
        let mut names = names.filter_map(|name| fs::read_to_string(name).ok());
        names.any(|name| name == "plyfs-walker\n")
    };
    let run = |command: &str| {
        let mut sh = std::process::Command::new("sh");
        let out = sh
            .args(["-c", command])
            .current_dir(place.path("merged/many"))
            .output()
            .unwrap();
        assert!(out.status.success(), "{out:?}");
        out.stdout.split(|&byte| byte == b'\n').count()
    };
    place.done(&["mount", "--lower", "lower", "merged"]);
    assert_eq!(ahead(), 0);
    // Who reads what he lists has work for both CPUs.
    assert!(run("tar cf - . | tar tf -") > 1000);
    assert!(!has_thread());
    place.done(&["umount", "merged"]);
    place.done(&["mount", "--lower", "lower", "merged"]);
    assert_eq!(run("find ."), 1002);
    assert!(has_thread());
    // The reader by itself reads ahead until it is sure that somebody only lists: eight directories.
    assert!((20..=401).contains(&ahead()), "{}", ahead());
}

#[test]
fn stats_are_only_those_of_plyfs() {
    let place = Place::new();
    let sentence = fails(&mut place.plyfs(["stats", "/proc"]), 8);
    assert_contains(&sentence, "/proc is not a plyfs mount: it is of type proc");
}
