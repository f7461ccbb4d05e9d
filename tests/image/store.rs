//! What stays in the store and what goes.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::{
    IN_USE, MALFORMED, NOT_FOUND, Place, USAGE, assert_contains, config, docker_archive, gzip, hex,
    layer,
};

/// A place with `a:1` and `b:1`, which share a layer.
fn loaded() -> Place {
    let place = Place::new();
    let shared = layer("shared", "s");
    place.write("a.tar", docker_archive("a:1", &[&shared, &layer("a", "a")]));
    place.write("b.tar", docker_archive("b:1", &[&shared, &layer("b", "b")]));
    place.done(&["load", "a.tar", "b.tar"]);
    place
}

#[test]
fn the_store_is_private_and_holds_a_shared_layer_once() {
    let place = loaded();
    assert_eq!(place.stored("layers/sha256").len(), 3);
    assert_eq!(
        fs::metadata(place.store()).unwrap().permissions().mode() & 0o777,
        0o700
    );
    let tar = place
        .store()
        .join("layers/sha256")
        .join(hex(&layer("shared", "s")))
        .join("tar");
    assert_eq!(fs::read(tar).unwrap(), layer("shared", "s"));
}

#[test]
fn an_image_goes_with_its_last_name_and_what_others_need_stays() {
    let place = loaded();
    place.done(&["tag", "a:1", "c", "d:2"]);
    assert_eq!(place.done(&["rmi", "a:1"]), "Untagged: a:1\n");
    assert_eq!(place.done(&["rmi", "c:latest"]), "Untagged: c:latest\n");
    assert_eq!(place.stored("layers/sha256").len(), 3);
    let id = place.done(&["inspect", "-f", "{{.Id}}", "d:2"]);
    let only = super::digest(&layer("a", "a"));
    let expected = format!(
        "Untagged: d:2\nDeleted: {}\nDeleted: {only}\n",
        id.trim_end()
    );
    assert_eq!(place.done(&["rmi", "d:2"]), expected);
    assert_eq!(place.stored("layers/sha256").len(), 2);
    assert_eq!(place.read_in_mount(&["b:1"], "shared"), "s");
    assert_contains(&place.fails(NOT_FOUND, &["rmi", "d:2"]), "no image 'd:2'");
    place.is_sound();
}

#[test]
fn an_id_with_several_names_needs_force() {
    let place = loaded();
    place.done(&["tag", "a:1", "c"]);
    let id = place.done(&["images", "-q", "a"]);
    let error = place.fails(IN_USE, &["rmi", id.trim_end()]);
    assert_contains(&error, "has 2 names");
    place.done(&["rmi", "-f", id.trim_end()]);
    assert_eq!(place.done(&["images", "--format={{.Repository}}"]), "b\n");
}

#[test]
fn a_new_name_must_be_one() {
    let place = loaded();
    assert_contains(
        &place.fails(USAGE, &["tag", "a:1", "Not/A Name"]),
        "is not a name for an image",
    );
    assert_contains(
        &place.fails(USAGE, &["tag", "a:1~1", "lower"]),
        "only whole images",
    );
    assert_contains(
        &place.fails(NOT_FOUND, &["tag", "nix", "a:2"]),
        "no image 'nix'",
    );
}

#[test]
fn gc_removes_what_has_no_name_and_a_dry_run_only_says_so() {
    let place = loaded();
    place.write("new.tar", docker_archive("a:1", &[&layer("new", "n")]));
    place.command(["load", "new.tar"]).output().unwrap();
    let said = place.done(&["gc", "--dry-run"]);
    assert_contains(&said, "Would remove 1 images, 1 layers, 2 blobs: ");
    assert_eq!(place.stored("layers/sha256").len(), 4);
    assert_contains(
        &place.done(&["gc"]),
        "Removed 1 images, 1 layers, 2 blobs: ",
    );
    assert_eq!(place.stored("layers/sha256").len(), 3);
    assert_contains(
        &place.done(&["gc"]),
        "Removed 0 images, 0 layers, 0 blobs: 0B",
    );
    assert_eq!(place.read_in_mount(&["a:1"], "new"), "n");
    assert_eq!(place.read_in_mount(&["b:1"], "b"), "b");
    place.is_sound();
}

#[test]
fn fsck_names_what_is_damaged_and_makes_an_index_anew() {
    let place = loaded();
    let layer_dir = place
        .store()
        .join("layers/sha256")
        .join(hex(&layer("a", "a")));
    let index = layer_dir.join("index");
    let good = fs::read(&index).unwrap();
    fs::write(&index, [&good[..good.len() - 1], b"!"].concat()).unwrap();
    let output = place.command(["fsck"]).output().unwrap();
    assert_eq!(output.status.code(), Some(MALFORMED));
    let said = super::text(&output.stdout);
    assert_contains(
        &said,
        &format!(
            "the index of layer {} is damaged",
            super::digest(&layer("a", "a"))
        ),
    );
    assert_contains(&place.done(&["fsck", "--repair"]), "(repaired");
    assert_eq!(fs::read(&index).unwrap(), good);
    place.is_sound();
}

#[test]
fn fsck_removes_a_damaged_layer_so_that_it_can_be_loaded_again() {
    let place = loaded();
    let tar = place
        .store()
        .join("layers/sha256")
        .join(hex(&layer("a", "a")))
        .join("tar");
    fs::write(&tar, "damaged").unwrap();
    let output = place.command(["fsck", "--repair"]).output().unwrap();
    assert_eq!(output.status.code(), Some(MALFORMED));
    assert_contains(&super::text(&output.stdout), "is damaged: its digest is");
    assert_contains(
        &place.fails(MALFORMED, &["mount", "a:1", "m"]),
        "missing from the store; load its image again",
    );
    place.done(&["load", "a.tar"]);
    place.is_sound();
    assert_eq!(place.read_in_mount(&["a:1"], "a"), "a");
}

#[test]
fn fsck_unpacks_a_damaged_layer_again_from_the_blob_it_came_as() {
    let place = Place::new();
    let tar = layer("f", "x");
    let mut layout = super::Layout::default();
    let image = layout.image(&config(&[&tar]), &[("+gzip", &gzip(&tar))]);
    layout.list(image, "app:1");
    place.write("app.tar", layout.tar());
    place.done(&["load", "app.tar"]);
    fs::write(
        place
            .store()
            .join("layers/sha256")
            .join(hex(&tar))
            .join("tar"),
        "damaged",
    )
    .unwrap();
    place.done(&["fsck", "--repair"]);
    place.is_sound();
    assert_eq!(place.read_in_mount(&["app:1"], "f"), "x");
}

#[test]
fn a_damaged_blob_does_not_leave_the_store() {
    let place = loaded();
    let config = place.done(&["inspect", "--config", "a:1"]);
    let blob = place
        .store()
        .join("blobs/sha256")
        .join(hex(config.as_bytes()));
    let mut bytes = fs::read(&blob).unwrap();
    bytes[0] = b'[';
    fs::write(&blob, bytes).unwrap();
    assert_contains(
        &place.fails(MALFORMED, &["save", "-o", "x.tar", "a:1"]),
        "is damaged",
    );
    let tar = place
        .store()
        .join("layers/sha256")
        .join(hex(&layer("b", "b")))
        .join("tar");
    let mut bytes = fs::read(&tar).unwrap();
    bytes[600] ^= 1;
    fs::write(&tar, bytes).unwrap();
    assert_contains(
        &place.fails(MALFORMED, &["save", "-o", "x.tar", "b:1"]),
        "is damaged",
    );
    assert!(!place.path("x.tar").exists());
}
