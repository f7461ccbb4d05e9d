//! Killed, out of space, several at once: the store stays valid.

use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use super::{
    File, Layout, Place, assert_contains, config, docker_archive, gzip, hex, layer, tar, text,
};
use crate::support::{is_root, requires};

/// An archive whose layers take a while.
fn large(name: &str) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(4711);
    let mut content = vec![0; 4 << 20];
    random.fill(&mut content);
    let layers: Vec<_> = (0..4)
        .map(|n| tar(&[File(&format!("file{n}"), &content[n..])]))
        .collect();
    let mut layout = Layout::default();
    let refs: Vec<&[u8]> = layers.iter().map(Vec::as_slice).collect();
    let blobs: Vec<_> = layers.iter().map(|layer| gzip(layer)).collect();
    let blobs: Vec<(&str, &[u8])> = blobs
        .iter()
        .map(|blob| ("+gzip", blob.as_slice()))
        .collect();
    let image = layout.image(&config(&refs), &blobs);
    layout.list(image, name);
    layout.tar()
}

#[test]
fn a_load_that_is_killed_leaves_a_valid_store_and_the_next_one_completes_it() {
    let place = Place::new();
    place.write("app.tar", large("app:1"));
    let begin = Instant::now();
    place.done(&["load", "--store", "measure", "app.tar"]);
    let whole = begin.elapsed();
    for step in 1..=8u32 {
        let mut child = place
            .command(["load", "app.tar"])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let until = Instant::now() + whole * step / 9;
        while Instant::now() < until && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        place.done(&["fsck"]);
        let named = place.done(&["images", "-q", "app"]);
        if !named.is_empty() {
            place.done(&["rmi", "app:1"]);
        }
    }
    place.done(&["load", "app.tar"]);
    place.is_sound();
    assert_eq!(place.stored("layers/sha256").len(), 4);
    place.done(&["mount", "app:1", "m"]);
    assert_eq!(
        fs::metadata(place.path("m/file3")).unwrap().len(),
        (4 << 20) - 3
    );
    place.done(&["umount", "m"]);
}

#[test]
fn a_commit_that_is_killed_leaves_a_valid_store_and_the_next_one_completes_it() {
    let place = Place::new();
    place.write("app.tar", docker_archive("app:1", &[&layer("f", "x")]));
    place.done(&["load", "-q", "app.tar"]);
    place.done(&["mount", "--rw", "app:1", "m"]);
    let mut content = vec![0; 8 << 20];
    fastrand::Rng::with_seed(4711).fill(&mut content);
    fs::write(place.path("m/new"), &content).unwrap();
    let commit = |name: &str| place.command(["commit", "--compression", "gzip", "m", name]);
    let begin = Instant::now();
    assert!(commit("whole:1").output().unwrap().status.success());
    let whole = begin.elapsed();
    place.done(&["rmi", "whole:1"]);
    for step in 1..=8u32 {
        let mut child = commit("killed:1").stdout(Stdio::null()).spawn().unwrap();
        std::thread::sleep(whole * step / 9);
        child.kill().unwrap();
        child.wait().unwrap();
        place.done(&["fsck"]);
        if !place.done(&["images", "-q", "killed"]).is_empty() {
            place.done(&["rmi", "killed:1"]);
        }
    }
    assert!(commit("new:1").output().unwrap().status.success());
    place.done(&["umount", "m"]);
    place.done(&["gc"]);
    place.is_sound();
    place.done(&["mount", "new:1", "m"]);
    assert!(fs::read(place.path("m/new")).unwrap() == content);
    place.done(&["umount", "m"]);
}

#[test]
fn what_a_crash_of_the_system_kept_from_the_disk_is_found_and_loaded_again() {
    let place = Place::new();
    let layers = ["damaged", "short", "whole"].map(|name| layer(name, &"x".repeat(9000)));
    let layers: Vec<_> = layers.iter().map(Vec::as_slice).collect();
    place.write("app.tar", docker_archive("app:1", &layers));
    place.done(&["load", "-q", "app.tar"]);
    let notes = fs::read_dir(place.store().join("pending")).unwrap();
    let notes: Vec<_> = notes.map(|note| note.unwrap().path()).collect();
    requires!(
        !notes.is_empty(),
        "the filesystem of the store is synced at once"
    );
    // As after another boot, when two of three layers were not yet on the disk.
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let note = fs::read_to_string(&notes[0]).unwrap();
    assert!(note.starts_with(boot.trim()), "{note}");
    fs::write(&notes[0], note.replacen(boot.trim(), "another", 1)).unwrap();
    let tar = |layer: &[u8]| {
        place
            .store()
            .join("layers/sha256")
            .join(hex(layer))
            .join("tar")
    };
    let damaged = fs::File::options()
        .write(true)
        .open(tar(layers[0]))
        .unwrap();
    damaged.write_all_at(&[0; 512], 1024).unwrap();
    let short = fs::File::options()
        .write(true)
        .open(tar(layers[1]))
        .unwrap();
    short.set_len(4096).unwrap();

    assert_contains(&place.done(&["images"]), "app");
    assert_eq!(place.stored("layers/sha256"), [hex(layers[2])]);
    assert_eq!(place.stored("pending").len(), 0);
    let error = place.fails(super::MALFORMED, &["mount", "app:1", "m"]);
    assert_contains(&error, "is missing from the store; load its image again");
    place.done(&["load", "-q", "app.tar"]);
    place.is_sound();
    assert_eq!(place.read_in_mount(&["app:1"], "damaged").len(), 9000);
}

#[test]
fn what_was_left_to_the_kernel_is_settled_by_a_later_load() {
    let place = Place::new();
    for name in ["one", "two"] {
        let archive = docker_archive(&format!("{name}:1"), &[&layer(name, name)]);
        place.write(&format!("{name}.tar"), archive);
    }
    place.done(&["load", "-q", "one.tar"]);
    let before = place.stored("pending");
    requires!(
        !before.is_empty(),
        "the filesystem of the store is synced at once"
    );
    let note = fs::File::open(place.store().join("pending").join(&before[0])).unwrap();
    note.set_modified(SystemTime::now() - Duration::from_secs(120))
        .unwrap();
    place.done(&["load", "-q", "two.tar"]);
    let after = place.stored("pending");
    assert!(after.len() == 1 && after != before, "{before:?} {after:?}");
    assert_eq!(place.read_in_mount(&["one:1"], "one"), "one");
}

#[test]
fn a_load_from_a_pipe_that_ends_early_leaves_nothing() {
    let place = Place::new();
    let archive = docker_archive("app:1", &[&layer("f", "x")]);
    let mut child = place
        .command(["load"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(&archive[..2000])
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert_contains(&super::sentence(&output, super::MALFORMED), "stdin: ");
    assert_eq!(place.done(&["images", "-q"]), "");
    place.is_sound();
}

#[test]
fn a_full_disk_is_told_and_leaves_a_valid_store() {
    requires!(is_root(), "mounts a small file system");
    let place = Place::new();
    place.write("big.tar", large("big:1"));
    place.write("small.tar", docker_archive("small:1", &[&layer("f", "x")]));
    let small = place.path("small");
    fs::create_dir(&small).unwrap();
    let status = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=8M", "tmpfs"])
        .arg(&small)
        .status();
    assert!(status.unwrap().success());
    let load = |archive: &str| {
        place
            .command(["load", "--store", "small/store", archive])
            .output()
            .unwrap()
    };
    let (big, little) = (load("big.tar"), load("small.tar"));
    let fsck = place
        .command(["fsck", "--store", "small/store"])
        .output()
        .unwrap();
    let tmp = fs::read_dir(small.join("store/tmp")).unwrap().count();
    assert!(
        Command::new("umount")
            .arg(&small)
            .status()
            .unwrap()
            .success()
    );
    assert_contains(&super::sentence(&big, 1), "no space left on device");
    assert_eq!(text(&little.stdout), "Loaded image: small:1\n");
    assert!(fsck.status.success(), "{}", text(&fsck.stdout));
    assert_eq!(tmp, 0);
}

#[test]
fn loads_commits_and_collections_at_once_do_not_disturb_each_other() {
    let place = Place::new();
    place.write("base.tar", docker_archive("base:1", &[&layer("f", "x")]));
    place.done(&["load", "-q", "base.tar"]);
    place.done(&["mount", "--rw", "base:1", "m"]);
    fs::write(place.path("m/new"), "new").unwrap();
    let shared = layer("shared", &"s".repeat(100_000));
    for n in 0..6 {
        let own = layer("own", &n.to_string());
        place.write(
            &format!("{n}.tar"),
            docker_archive(&format!("app:{n}"), &[&shared, &own]),
        );
    }
    let commands = (0..6).map(|n| vec!["load".to_owned(), format!("{n}.tar")]);
    let commands = commands.chain((0..6).map(|_| vec!["gc".to_owned()]));
    let commit = |n| ["commit", "m", &format!("new:{n}")].map(str::to_owned);
    let commands = commands.chain((0..4).map(|n| commit(n).to_vec()));
    let children: Vec<_> = commands
        .map(|args| {
            let mut command = place.command(&args);
            command
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
    }
    place.done(&["umount", "m"]);
    // The base, what is new, and of the six what they share and what each has for itself.
    assert_eq!(place.stored("layers/sha256").len(), 9);
    for n in 0..4 {
        assert_eq!(place.read_in_mount(&[&format!("new:{n}")], "new"), "new");
    }
    assert!(place.stored("layers/sha256").contains(&hex(&shared)));
    for n in 0..6 {
        assert_eq!(
            place.read_in_mount(&[&format!("app:{n}")], "own"),
            n.to_string()
        );
    }
    place.is_sound();
}
