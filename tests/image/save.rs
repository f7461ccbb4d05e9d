//! What is saved: the same bytes every time, with the digests it came with.

use std::fs;
use std::os::unix::fs::symlink;

use super::{
    Layout, Place, USAGE, assert_contains, config, docker_archive, gzip, layer, text, zstd,
};

const FORMATS: [&str; 3] = ["docker-archive", "oci-archive", "oci-dir"];

/// A place with an image of three layers: plain, gzip, zstd.
fn loaded() -> Place {
    let place = Place::new();
    let layers = [layer("a", "1"), layer("b", "2"), layer("c", "3")];
    let mut layout = Layout::default();
    let image = layout.image(
        &config(&layers.each_ref().map(Vec::as_slice)),
        &[
            ("", &layers[0]),
            ("+gzip", &gzip(&layers[1])),
            ("+zstd", &zstd(&layers[2])),
        ],
    );
    layout.list(image, "me/app:v1");
    place.write("app.tar", layout.tar());
    place.done(&["load", "app.tar"]);
    place.done(&["tag", "me/app:v1", "second:1"]);
    place
}

#[test]
fn what_is_saved_is_the_same_every_time_and_loads_with_the_same_digests_and_names() {
    let place = loaded();
    let documents = |image: &str| {
        (
            place.done(&["inspect", "--manifest", image]),
            place.done(&["inspect", "--config", image]),
        )
    };
    let before = documents("me/app:v1");
    for format in FORMATS {
        place.done(&["save", "--format", format, "-o", "one", "me/app:v1"]);
        place.done(&["save", "--format", format, "-o", "two", "me/app:v1"]);
        if format != "oci-dir" {
            assert_eq!(
                fs::read(place.path("one")).unwrap(),
                fs::read(place.path("two")).unwrap()
            );
        }
        let mut other = place.command(["load", "--store", "other", "one"]);
        let output = other.output().unwrap();
        assert_eq!(
            text(&output.stdout),
            "Loaded image: me/app:v1\n",
            "{format}: {}",
            text(&output.stderr)
        );
        assert_eq!(
            place.done(&["inspect", "--store", "other", "--manifest", "me/app:v1"]),
            before.0
        );
        assert_eq!(
            place.done(&["inspect", "--store", "other", "--config", "me/app:v1"]),
            before.1
        );
        for path in ["one", "two", "other"] {
            let path = place.path(path);
            if path.is_dir() {
                fs::remove_dir_all(path)
            } else {
                fs::remove_file(path)
            }
            .unwrap();
        }
    }
}

#[test]
fn several_images_and_all_names_of_one_go_into_one_archive() {
    let place = loaded();
    place.write("b.tar", docker_archive("b:1", &[&layer("b", "2")]));
    place.done(&["load", "b.tar"]);
    let id = place.done(&["inspect", "-f", "{{.Id}}", "me/app:v1"]);
    place.done(&["save", "-o", "all.tar", id.trim_end(), "b:1"]);
    let loaded = place.done(&["load", "--store", "other", "all.tar"]);
    assert_eq!(
        loaded,
        "Loaded image: me/app:v1\nLoaded image: second:1\nLoaded image: b:1\n"
    );
}

#[test]
fn stdout_gets_the_same_bytes_as_a_file() {
    let place = loaded();
    place.done(&["save", "-o", "file.tar", "second:1"]);
    let output = place.command(["save", "second:1"]).output().unwrap();
    assert!(output.status.success());
    assert_eq!(output.stdout, fs::read(place.path("file.tar")).unwrap());
    let error = place.fails(USAGE, &["save", "--format=oci-dir", "second:1"]);
    assert_contains(&error, "-o DIR");
    let error = place.fails(USAGE, &["save", "-o", "x.tar", "second:1~1"]);
    assert_contains(&error, "only whole images");
    assert!(!place.path("x.tar").exists());
}

#[test]
fn nothing_is_written_through_a_link_or_over_a_directory_with_something_in_it() {
    let place = loaded();
    place.write("precious", "precious");
    symlink("precious", place.path("link.tar")).unwrap();
    place.done(&["save", "-o", "link.tar", "second:1"]);
    assert_eq!(
        fs::read_to_string(place.path("precious")).unwrap(),
        "precious"
    );
    assert!(!place.path("link.tar").is_symlink());
    fs::create_dir(place.path("full")).unwrap();
    place.write("full/letter", "dear");
    let error = place.fails(1, &["save", "--format=oci-dir", "-o", "full", "second:1"]);
    assert_contains(&error, "cannot write full");
    let names: Vec<_> = fs::read_dir(place.path("full")).unwrap().collect();
    assert_eq!(names.len(), 1);
    let left = fs::read_dir(place.base.path()).unwrap().filter(|entry| {
        entry
            .as_ref()
            .unwrap()
            .file_name()
            .to_str()
            .unwrap()
            .starts_with(".tmp")
    });
    assert_eq!(left.count(), 0);
}
