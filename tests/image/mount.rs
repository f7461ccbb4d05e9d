//! `plyfs mount IMAGE`.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use serde_json::Value;

use super::{
    File, IN_USE, Place, USAGE, assert_contains, docker_archive, layer, sentence, tar, text,
};
use crate::support::run::{Privilege, privilege};

/// A place with the image `app:1` of three layers, each with a file of its own and `f`.
fn loaded() -> Place {
    let place = Place::new();
    let layers: Vec<_> = ["1", "2", "3"]
        .map(|n| tar(&[File("f", n.as_bytes()), File(n, b"")]))
        .into();
    let layers: Vec<&[u8]> = layers.iter().map(Vec::as_slice).collect();
    place.write("app.tar", docker_archive("app:1", &layers));
    place.done(&["load", "app.tar"]);
    place
}

fn names(place: &Place) -> Vec<String> {
    let entries = fs::read_dir(place.path("m")).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn an_archive_is_mounted_by_its_path_in_one_command_and_read_only_once() {
    let place = loaded();
    place.done(&["rmi", "app:1"]);
    assert_eq!(place.stored("layers/sha256").len(), 0);
    assert_eq!(place.read_in_mount(&["./app.tar"], "f"), "3");
    assert_eq!(
        place.done(&["images", "--format={{.Repository}}"]),
        "<none>\n"
    );
    // The second time the archive is not read: only its identity is looked at.
    let tars = fs::metadata(place.store().join("layers/sha256"))
        .unwrap()
        .mtime_nsec();
    assert_eq!(place.read_in_mount(&["./app.tar"], "f"), "3");
    assert_eq!(
        fs::metadata(place.store().join("layers/sha256"))
            .unwrap()
            .mtime_nsec(),
        tars
    );
    // Another archive under the same path is another image.
    place.write("new.tar", docker_archive("app:1", &[&layer("f", "new")]));
    fs::rename(place.path("new.tar"), place.path("app.tar")).unwrap();
    assert_eq!(place.read_in_mount(&["./app.tar"], "f"), "new");
}

#[test]
fn a_mount_of_an_image_is_read_only_unless_asked_otherwise() {
    let place = loaded();
    place.done(&["mount", "app:1", "m"]);
    let error = fs::write(place.path("m/new"), "x").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EROFS));
    place.done(&["umount", "m"]);
}

#[test]
fn changes_under_rw_are_kept_and_found_again_by_the_images_name_or_ones_own() {
    let place = loaded();
    place.done(&["mount", "--rw", "app:1", "m"]);
    fs::write(place.path("m/f"), "mine").unwrap();
    fs::remove_file(place.path("m/1")).unwrap();
    place.done(&["umount", "m"]);
    place.done(&["mount", "--rw", "app:1", "m"]);
    assert_eq!(fs::read_to_string(place.path("m/f")).unwrap(), "mine");
    assert_eq!(names(&place), ["2", "3", "f"]);
    place.done(&["umount", "m"]);
    place.done(&["mount", "--rw=other", "app:1", "m"]);
    assert_eq!(names(&place), ["1", "2", "3", "f"]);
    place.done(&["umount", "m"]);
    assert_eq!(place.stored("uppers"), ["app-1", "other"]);
    // An upper belongs to its image.
    place.write("b.tar", docker_archive("b:1", &[&layer("f", "b")]));
    place.done(&["load", "b.tar"]);
    let error = place.fails(IN_USE, &["mount", "--rw=other", "b:1", "m"]);
    assert_contains(&error, "the upper 'other' was made for image");
    let error = place.fails(USAGE, &["mount", "--rw=../x", "b:1", "m"]);
    assert_contains(&error, "cannot be the name of an upper");
    // And keeps it.
    let error = place.fails(IN_USE, &["rmi", "app:1"]);
    assert_contains(&error, "an upper was made for it");
    let listed = place.done(&["uppers"]);
    let names: Vec<_> = listed
        .lines()
        .map(|line| line.split(' ').next().unwrap())
        .collect();
    assert_eq!(names, ["NAME", "app-1", "other"]);
    place.done(&["mount", "--rw", "app:1", "m"]);
    let error = place.fails(IN_USE, &["uppers", "--remove=app-1"]);
    assert_contains(&error, "the upper 'app-1' is mounted");
    place.done(&["umount", "m"]);
    place.done(&["uppers", "--remove=app-1", "--remove=other"]);
    assert_eq!(place.stored("uppers"), [""; 0]);
    place.done(&["rmi", "app:1"]);
    place.is_sound();
}

#[test]
fn changes_under_ephemeral_are_gone_afterwards() {
    let place = loaded();
    place.done(&["mount", "--ephemeral", "app:1", "m"]);
    fs::write(place.path("m/f"), "mine").unwrap();
    assert_eq!(fs::read_to_string(place.path("m/f")).unwrap(), "mine");
    place.done(&["umount", "m"]);
    assert_eq!(place.read_in_mount(&["app:1"], "f"), "3");
}

#[test]
fn lower_states_and_single_layers_can_be_mounted() {
    let place = loaded();
    for (args, content, files) in [
        (&["app:1"][..], "3", &["1", "2", "3", "f"][..]),
        (&["--upto=2", "app:1"], "2", &["1", "2", "f"]),
        (&["app:1~1"], "2", &["1", "2", "f"]),
        (&["--layer=2", "app:1"], "2", &["2", "f"]),
        (&["--layer=1", "./app.tar"], "1", &["1", "f"]),
    ] {
        place.done(&[&["mount"], args, &["m"]].concat());
        assert_eq!(
            fs::read_to_string(place.path("m/f")).unwrap(),
            content,
            "{args:?}"
        );
        assert_eq!(names(&place), files, "{args:?}");
        place.done(&["umount", "m"]);
    }
    for args in [
        &["--upto=0"][..],
        &["--upto=4"],
        &["--layer=0"],
        &["--layer=4"],
    ] {
        let error = place.fails(USAGE, &[&["mount"], args, &["app:1", "m"]].concat());
        assert_contains(&error, "must be from 1 to 3");
    }
}

#[test]
fn single_layers_are_shown_beside_the_merged_tree_and_what_the_image_has_there_is_hidden() {
    let place = Place::new();
    let base = tar(&[
        File("f", b"1"),
        File("gone", b"x"),
        File(".layers/own", b"x"),
    ]);
    let top = tar(&[File("f", b"2"), File(".wh.gone", b""), File("d/deep", b"y")]);
    place.write("app.tar", docker_archive("app:1", &[&base, &top]));
    place.done(&["mount", "--layers", "./app.tar", "m"]);
    let list = |dir: &str| {
        let entries = fs::read_dir(place.path("m").join(dir)).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    let read = |file: &str| fs::read_to_string(place.path("m").join(file)).unwrap();
    assert_eq!(list(""), [".layers", "d", "f"]);
    assert_eq!(list(".layers"), ["1", "2"]);
    assert_eq!(list(".layers/1"), [".layers", "f", "gone"]);
    assert_eq!(list(".layers/2"), ["d", "f"]);
    assert_eq!(
        (read("f"), read(".layers/1/f"), read(".layers/2/f")),
        ("2".into(), "1".into(), "2".into())
    );
    assert_eq!(read(".layers/2/d/deep"), "y");
    assert_eq!(read(".layers/1/.layers/own"), "x");
    place.done(&["umount", "m"]);
    place.fails(USAGE, &["mount", "--layers", "--rw", "./app.tar", "m"]);
}

#[test]
fn a_directory_by_the_name_of_an_image_is_not_in_its_way() {
    let place = loaded();
    place.done(&["tag", "app:1", "app"]);
    fs::create_dir(place.path("app")).unwrap();
    let printed = place.done(&["mount", "--ephemeral", "app", "--", "cat", "f"]);
    assert_eq!(printed, "3");
}

#[test]
fn without_a_mountpoint_one_is_chosen_printed_and_removed_afterwards() {
    let place = loaded();
    let printed = place.done(&["mount", "app:1"]);
    let chosen = PathBuf::from(printed.trim_end());
    assert!(chosen.starts_with(place.path("run")), "{printed}");
    assert_eq!(fs::read_to_string(chosen.join("f")).unwrap(), "3");
    place.done(&["umount", printed.trim_end()]);
    assert!(!chosen.exists());
    let error = place.fails(3, &["mount", "-o", "lowerdir=/nonexistent", "m"]);
    assert_contains(&error, "/nonexistent");
}

#[test]
fn a_command_runs_in_an_image() {
    let place = loaded();
    let output = place
        .command(["mount", "app:1", "m", "--", "sh", "-c", "cat m/f; exit 7"])
        .output()
        .unwrap();
    assert_eq!(
        (output.status.code(), text(&output.stdout)),
        (Some(7), "3".into())
    );
    // Nobody knows a mountpoint that was chosen: the command begins there.
    let output = place
        .command(["mount", "./app.tar", "--", "cat", "f"])
        .output()
        .unwrap();
    assert_eq!(
        (output.status.code(), text(&output.stdout)),
        (Some(0), "3".into())
    );
    assert_eq!(fs::read_dir(place.path("run")).unwrap().count(), 0);
}

#[test]
fn a_mount_says_which_image_it_is() {
    let place = loaded();
    place.done(&["mount", "--upto=2", "app:1", "m"]);
    let mounts: Vec<Value> = serde_json::from_str(&place.done(&["mounts", "--json"])).unwrap();
    let here = place.path("m");
    let mount = mounts
        .iter()
        .find(|mount| mount["mountpoint"] == here.to_str().unwrap())
        .unwrap();
    assert_eq!(mount["image"]["name"], "app:1");
    assert_eq!(mount["image"]["layers"], 2);
    assert_eq!(mount["image"]["store"], place.store().to_str().unwrap());
    place.done(&["umount", "m"]);
}

#[test]
fn files_are_the_callers_or_the_images_as_asked() {
    let place = Place::new();
    let mut header = tar::Header::new_gnu();
    header.set_size(0);
    header.set_mode(0o600);
    header.set_uid(4321);
    header.set_gid(8765);
    let mut layer = tar::Builder::new(Vec::new());
    layer.append_data(&mut header, "f", &[][..]).unwrap();
    place.write(
        "app.tar",
        docker_archive("app:1", &[&layer.into_inner().unwrap()]),
    );
    let own = (
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    );
    // A user namespace without the ids of the image shows them as nobody's.
    let unknown = |id: &str| fs::read_to_string(format!("/proc/sys/kernel/overflow{id}")).unwrap();
    let unknown = |id: &str| unknown(id).trim().parse::<u32>().unwrap();
    let image = match privilege() {
        Privilege::Namespace => (unknown("uid"), unknown("gid")),
        _ => (4321, 8765),
    };
    for (owner, ids) in [("me", own), ("image", image)] {
        place.done(&["mount", "--owner", owner, "./app.tar", "m"]);
        let file = fs::metadata(place.path("m/f")).unwrap();
        assert_eq!((file.uid(), file.gid()), ids, "{owner}");
        place.done(&["umount", "m"]);
    }
    let output = place
        .command(["mount", "--owner", "you", "./app.tar", "m"])
        .output()
        .unwrap();
    assert_contains(&sentence(&output, USAGE), "owner");
}

#[test]
fn gc_keeps_what_is_mounted_also_after_its_name_is_gone_and_lets_go_of_a_killed_daemons() {
    let place = loaded();
    place.done(&["rmi", "app:1"]);
    place.done(&["mount", "./app.tar", "m"]);
    place.done(&["gc"]);
    assert_eq!(place.stored("layers/sha256").len(), 3);
    assert_eq!(fs::read_to_string(place.path("m/f")).unwrap(), "3");
    let mounts: Vec<Value> = serde_json::from_str(&place.done(&["mounts", "--json"])).unwrap();
    let here = place.path("m");
    let mount = mounts
        .iter()
        .find(|mount| mount["mountpoint"] == here.to_str().unwrap())
        .unwrap();
    let pid = i32::try_from(mount["pid"].as_u64().unwrap()).unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    let handle = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    rustix::event::poll(
        &mut [rustix::event::PollFd::new(
            &handle,
            rustix::event::PollFlags::IN,
        )],
        None,
    )
    .unwrap();
    let removed = place.done(&["gc"]);
    assert_contains(&removed, "Removed 1 images, 3 layers");
    assert_eq!(place.stored("layers/sha256").len(), 0);
    assert_eq!(place.stored("mounts").len(), 0);
}

#[test]
fn a_plain_tar_is_told_to_be_no_image() {
    let place = Place::new();
    place.write("layer.tar", tar(&[File("f", b"x")]));
    let error = place.fails(super::MALFORMED, &["mount", "./layer.tar", "m"]);
    assert_contains(&error, "plyfs import");
}
