//! Every form an image comes in.

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::json;

use super::{
    Dir, File, Layout, MALFORMED, NOT_FOUND, Place, Symlink, assert_contains, config, digest,
    docker_archive, gzip, hex, layer, sentence, tar, text, zstd,
};

#[test]
fn a_docker_archive_is_loaded_under_its_name_and_shows_its_layers_merged() {
    let place = Place::new();
    let base = tar(&[
        Dir("etc"),
        File("etc/a", b"below"),
        File("etc/b", b"only below"),
    ]);
    let top = tar(&[File("etc/a", b"above"), File("etc/.wh.b", b"")]);
    place.write("app.tar", docker_archive("app:v1", &[&base, &top]));
    assert_eq!(place.done(&["load", "app.tar"]), "Loaded image: app:v1\n");
    place.done(&["mount", "app:v1", "m"]);
    assert_eq!(fs::read_to_string(place.path("m/etc/a")).unwrap(), "above");
    assert!(!place.path("m/etc/b").exists());
    place.done(&["umount", "m"]);
    place.is_sound();
}

#[test]
fn names_are_shown_in_their_familiar_form() {
    let place = Place::new();
    place.write(
        "app.tar",
        docker_archive("docker.io/library/app", &[&layer("f", "x")]),
    );
    assert_eq!(
        place.done(&["load", "-i", "app.tar"]),
        "Loaded image: app:latest\n"
    );
    assert_eq!(place.read_in_mount(&["app"], "f"), "x");
}

#[test]
fn an_image_without_a_name_is_loaded_under_its_id() {
    let place = Place::new();
    let tar = layer("f", "x");
    place.write("app.tar", docker_archive("", &[&tar]));
    let id = digest(config(&[&tar]).to_string().as_bytes());
    assert_eq!(
        place.done(&["load", "app.tar"]),
        format!("Loaded image ID: {id}\n")
    );
    assert_eq!(place.read_in_mount(&[&id[7..19]], "f"), "x");
}

#[test]
fn layers_that_are_links_to_each_other_or_repeated_are_one() {
    let place = Place::new();
    let tar_ = layer("f", "x");
    let config = config(&[&tar_, &tar_, &tar_]).to_string();
    let manifest = json!([{"Config": "c.json", "RepoTags": ["app:1"], "Layers": ["a/layer.tar", "b/layer.tar", "a/layer.tar"]}]);
    let archive = tar(&[
        File("c.json", config.as_bytes()),
        Dir("a/"),
        Symlink("a/layer.tar", "../real/layer.tar"),
        Symlink("b/layer.tar", "../a/layer.tar"),
        File("real/layer.tar", &tar_),
        File("manifest.json", manifest.to_string().as_bytes()),
    ]);
    place.write("app.tar", archive);
    place.done(&["load", "app.tar"]);
    assert_eq!(place.stored("layers/sha256"), [hex(&tar_)]);
    assert_eq!(place.read_in_mount(&["app:1"], "f"), "x");
}

#[test]
fn an_archive_of_docker_before_1_10_is_loaded_by_the_parents_of_its_layers() {
    let place = Place::new();
    let (base, top) = (layer("f", "base"), layer("f", "top"));
    let about = json!({"id": "bb", "parent": "aa", "architecture": "amd64", "os": "linux", "config": {"User": "me"},
        "created": "2014-05-01T12:00:00Z", "container_config": {"Cmd": ["/bin/sh", "-c", "second"]}});
    let archive = tar(&[
        File(
            "aa/json",
            br#"{"id": "aa", "container_config": {"Cmd": ["first"]}}"#,
        ),
        File("aa/layer.tar", &base),
        File("bb/json", about.to_string().as_bytes()),
        File("bb/layer.tar", &top),
        File("repositories", br#"{"old/app": {"1": "bb"}}"#),
    ]);
    place.write("old.tar", archive);
    assert_eq!(
        place.done(&["load", "old.tar"]),
        "Loaded image: old/app:1\n"
    );
    assert_eq!(place.read_in_mount(&["old/app:1"], "f"), "top");
    assert_eq!(
        place.done(&["inspect", "-f", "{{.Config.User}}", "old/app:1"]),
        "me\n"
    );
    let history = place.done(&["history", "--format", "{{.CreatedBy}}", "old/app:1"]);
    assert_eq!(history, "/bin/sh -c second\nfirst\n");
}

#[test]
fn a_layout_in_the_archive_counts_unless_it_is_incomplete() {
    let place = Place::new();
    let tar_ = layer("f", "x");
    let config = config(&[&tar_]);
    // As docker 25.0 wrote them: a manifest without layers.
    let mut layout = Layout::default();
    let broken = layout.image(&config, &[]);
    layout.list(broken, "1");
    let mut files = layout.all();
    let layer_path = format!("blobs/sha256/{}", hex(&tar_));
    let config_path = format!("blobs/sha256/{}", hex(config.to_string().as_bytes()));
    let manifest = json!([{"Config": config_path, "RepoTags": ["app:1"], "Layers": [layer_path]}]);
    files.push((layer_path, tar_));
    files.push(("manifest.json".into(), manifest.to_string().into_bytes()));
    let entries: Vec<_> = files
        .iter()
        .map(|(path, bytes)| File(path, bytes))
        .collect();
    place.write("app.tar", tar(&entries));
    assert_eq!(place.done(&["load", "app.tar"]), "Loaded image: app:1\n");
    assert_eq!(place.read_in_mount(&["app:1"], "f"), "x");
}

/// An image of four layers, each compressed in another way.
fn mixed() -> (Layout, Vec<u8>) {
    let plain = layer("plain", "1");
    let (gz, zst, bz) = (layer("gzip", "2"), layer("zstd", "3"), layer("bzip2", "4"));
    let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    std::io::Write::write_all(&mut bzip2, &bz).unwrap();
    let mut layout = Layout::default();
    let config = config(&[&plain, &gz, &zst, &bz]);
    let image = layout.image(
        &config,
        &[
            ("", &plain),
            ("+gzip", &gzip(&gz)),
            ("+zstd", &zstd(&zst)),
            ("", &bzip2.finish().unwrap()),
        ],
    );
    layout.list(image, "me/mixed:1");
    let id = config.to_string().into_bytes();
    (layout, id)
}

#[test]
fn layouts_are_loaded_from_directories_and_archives_with_layers_compressed_in_any_way() {
    let (layout, config) = mixed();
    for from in ["dir", "archive"] {
        let place = Place::new();
        match from {
            "dir" => layout.write(&place.path("app")),
            _ => place.write("app", layout.tar()),
        }
        assert_eq!(
            place.done(&["load", "app"]),
            "Loaded image: me/mixed:1\n",
            "{from}"
        );
        place.done(&["mount", "me/mixed:1", "m"]);
        for (file, content) in [("plain", "1"), ("gzip", "2"), ("zstd", "3"), ("bzip2", "4")] {
            assert_eq!(
                fs::read_to_string(place.path("m").join(file)).unwrap(),
                content
            );
        }
        place.done(&["umount", "m"]);
        assert_eq!(
            place
                .done(&["inspect", "--config", "me/mixed:1"])
                .as_bytes(),
            config
        );
        // What is compressed is kept as it came: three layers, config, manifest.
        assert_eq!(place.stored("blobs/sha256").len(), 5);
        place.is_sound();
    }
}

#[test]
fn a_tag_alone_gets_the_name_of_the_file() {
    let place = Place::new();
    let tar = layer("f", "x");
    let mut layout = Layout::default();
    let image = layout.image(&config(&[&tar]), &[("", &tar)]);
    layout.list(image, "v2");
    layout.write(&place.path("My.App.d"));
    assert_eq!(place.done(&["load", "My.App.d"]), "Loaded image: my:v2\n");
}

#[test]
fn of_an_image_for_several_platforms_the_one_asked_for_is_loaded() {
    let place = Place::new();
    let mut layout = Layout::default();
    let mut platforms = Vec::new();
    for architecture in ["amd64", "arm64", "s390x"] {
        let tar = layer("arch", architecture);
        let mut config = config(&[&tar]);
        config["architecture"] = architecture.into();
        let mut image = layout.image(&config, &[("", &tar)]);
        image["platform"] = json!({"os": "linux", "architecture": architecture});
        platforms.push(image);
    }
    // What buildkit adds is no image.
    let mut attestation = layout.image(&json!({"rootfs": {"diff_ids": []}}), &[]);
    attestation["platform"] = json!({"os": "unknown", "architecture": "unknown"});
    attestation["annotations"] = json!({"vnd.docker.reference.type": "attestation-manifest"});
    platforms.push(attestation);
    let inner = layout.nested(&platforms);
    let outer = layout.nested(&[inner]);
    layout.list(outer, "app:1");
    place.write("app.tar", layout.tar());
    place.done(&["load", "--platform", "linux/arm64", "app.tar"]);
    assert_eq!(place.read_in_mount(&["app:1"], "arch"), "arm64");
    let own = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    assert_eq!(place.read_in_mount(&["./app.tar"], "arch"), own);
    assert_eq!(
        place.read_in_mount(&["--platform=linux/s390x", "./app.tar"], "arch"),
        "s390x"
    );
    let error = place.fails(
        NOT_FOUND,
        &["load", "--platform", "linux/riscv64", "app.tar"],
    );
    assert_contains(
        &error,
        "linux/riscv64; there are some for linux/amd64, linux/arm64, linux/s390x",
    );
}

#[test]
fn compressed_archives_and_stdin_are_loaded() {
    let archive = docker_archive("app:1", &[&layer("f", "x")]);
    for (kind, compressed) in [
        ("plain", archive.clone()),
        ("gzip", gzip(&archive)),
        ("zstd", zstd(&archive)),
    ] {
        let place = Place::new();
        place.write("app", &compressed);
        assert_eq!(
            place.done(&["load", "app"]),
            "Loaded image: app:1\n",
            "{kind}"
        );
        place.done(&["rmi", "app:1"]);
        let output = place.piped(&["load"], &compressed);
        assert_eq!(
            text(&output.stdout),
            "Loaded image: app:1\n",
            "{kind}: {}",
            text(&output.stderr)
        );
        assert_eq!(place.read_in_mount(&["app:1"], "f"), "x");
        place.is_sound();
    }
}

#[test]
fn several_images_of_one_archive_are_loaded_and_one_can_be_mounted_by_its_name() {
    let place = Place::new();
    let (a, b) = (layer("f", "a"), layer("f", "b"));
    let (config_a, config_b) = (config(&[&a]).to_string(), config(&[&b]).to_string());
    let manifest = json!([
        {"Config": "a.json", "RepoTags": ["a:1", "a:2"], "Layers": ["a.tar"]},
        {"Config": "b.json", "RepoTags": null, "Layers": ["b.tar"]},
    ]);
    place.write(
        "two.tar",
        tar(&[
            File("a.json", config_a.as_bytes()),
            File("b.json", config_b.as_bytes()),
            File("a.tar", &a),
            File("b.tar", &gzip(&b)),
            File("manifest.json", manifest.to_string().as_bytes()),
        ]),
    );
    let error = place.fails(NOT_FOUND, &["mount", "./two.tar", "m"]);
    assert_contains(&error, "@0 (a:1), @1");
    assert_eq!(place.read_in_mount(&["./two.tar:a:2"], "f"), "a");
    assert_eq!(place.read_in_mount(&["./two.tar:@1"], "f"), "b");
    let loaded = place.done(&["load", "two.tar"]);
    let id = digest(config_b.as_bytes());
    assert_eq!(
        loaded,
        format!("Loaded image: a:1\nLoaded image: a:2\nLoaded image ID: {id}\n")
    );
}

#[test]
fn a_layer_that_is_there_is_not_read_again() {
    let place = Place::new();
    let shared = layer("shared", "x");
    let archive = docker_archive("one:1", &[&shared]);
    place.write("one.tar", &archive);
    place.done(&["load", "one.tar"]);
    // Its bytes in the second archive are other ones, which nobody looks at.
    let two = docker_archive("two:1", &[&shared, &layer("more", "y")]);
    let at = two
        .windows(6)
        .position(|window| window == b"shared")
        .unwrap();
    let mut damaged = two.clone();
    damaged[at] = b'S';
    place.write("two.tar", damaged);
    place.done(&["load", "two.tar"]);
    assert_eq!(place.stored("layers/sha256").len(), 2);
    assert_eq!(place.read_in_mount(&["two:1"], "shared"), "x");
}

#[test]
fn a_blob_that_is_missing_from_the_archive_may_be_in_the_store() {
    let place = Place::new();
    let tar_ = layer("f", "x");
    let blob = gzip(&tar_);
    let mut layout = Layout::default();
    let image = layout.image(&config(&[&tar_]), &[("+gzip", &blob)]);
    layout.list(image, "app:1");
    place.write("whole.tar", layout.tar());
    let path = format!("blobs/sha256/{}", hex(&blob));
    layout.files.retain(|(name, _)| *name != path);
    place.write("part.tar", layout.tar());
    let error = place.fails(MALFORMED, &["load", "part.tar"]);
    assert_contains(&error, &format!("layer '{path}': it is missing"));
    place.done(&["load", "whole.tar"]);
    assert_eq!(place.done(&["load", "part.tar"]), "Loaded image: app:1\n");
}

#[test]
fn a_name_that_moves_to_another_image_is_told() {
    let place = Place::new();
    place.write("1.tar", docker_archive("app:1", &[&layer("f", "1")]));
    place.write("2.tar", docker_archive("app:1", &[&layer("f", "2")]));
    place.done(&["load", "1.tar"]);
    let output = place.command(["load", "2.tar"]).output().unwrap();
    assert_contains(&text(&output.stderr), "the name app:1 was that of image ");
    assert_eq!(text(&output.stdout), "Loaded image: app:1\n");
    assert_eq!(place.read_in_mount(&["app:1"], "f"), "2");
    let images = place.done(&["images", "--format", "{{.Repository}}:{{.Tag}}"]);
    assert_eq!(images, "app:1\n<none>:<none>\n");
}

#[test]
fn what_unpacks_to_more_than_allowed_is_refused_by_name_and_leaves_nothing() {
    let zeros = vec![0; 8 << 20];
    let big = tar(&[File("zeros", &zeros)]);
    let mut layout = Layout::default();
    let image = layout.image(&config(&[&big]), &[("+gzip", &gzip(&big))]);
    layout.list(image, "bomb:1");
    let place = Place::new();
    place.write("bomb.tar", layout.tar());
    place.write("outer.tar.gz", gzip(&docker_archive("bomb:1", &[&big])));
    for archive in ["bomb.tar", "outer.tar.gz"] {
        let error = place.fails(MALFORMED, &["load", "--max-size=4M", archive]);
        assert_contains(&error, archive);
        assert_contains(
            &error,
            "more than 4194304 bytes; if that is meant, allow more with --max-size",
        );
        assert_eq!(place.done(&["images", "-q"]), "");
        assert_eq!(place.stored("layers/sha256"), [""; 0]);
        place.is_sound();
    }
    place.done(&["load", "--max-size=16M", "bomb.tar"]);
}

#[test]
fn a_layout_directory_may_have_links_in_it_but_none_that_leads_out() {
    let place = Place::new();
    let tar = layer("f", "x");
    let mut layout = Layout::default();
    let image = layout.image(&config(&[&tar]), &[("", &tar)]);
    layout.list(image, "app:1");
    layout.write(&place.path("app"));
    let blob = place.path("app/blobs/sha256").join(hex(&tar));
    fs::rename(&blob, place.path("app/elsewhere")).unwrap();
    symlink("../../elsewhere", &blob).unwrap();
    place.done(&["load", "app"]);
    place.done(&["rmi", "app:1"]);
    fs::rename(place.path("app/elsewhere"), place.path("outside")).unwrap();
    fs::remove_file(&blob).unwrap();
    symlink("../../../outside", &blob).unwrap();
    let error = place.fails(MALFORMED, &["load", "app"]);
    assert_contains(&error, "leads out of the directory");
}

#[test]
fn layers_and_a_root_filesystem_can_be_imported_without_an_image_around_them() {
    let place = Place::new();
    place.write("base.tar", layer("f", "base"));
    place.write("top.tar.gz", gzip(&layer("f", "top")));
    let args = [
        "import",
        "--source-date-epoch=0",
        "--layer=base.tar",
        "--layer=top.tar.gz",
        "-m",
        "why",
        "my/app:1",
    ];
    let id = place.done(&args);
    assert_eq!(place.done(&args), id, "the same every time");
    assert_eq!(place.read_in_mount(&["my/app:1"], "f"), "top");
    assert_eq!(place.read_in_mount(&["my/app:1~1"], "f"), "base");
    let history = place.done(&[
        "history",
        "--format={{.CreatedBy}}|{{.Comment}}|{{.CreatedAt}}",
        "my/app:1",
    ]);
    assert_eq!(
        history,
        "plyfs import top.tar.gz|why|1970-01-01T00:00:00Z\nplyfs import base.tar|why|1970-01-01T00:00:00Z\n"
    );
    let output = place.piped(&["import", "-", "rootfs"], &gzip(&layer("f", "root")));
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(place.read_in_mount(&["rootfs"], "f"), "root");
    place.write("no.tar", "no tar");
    let error = sentence(
        &place.command(["import", "no.tar", "a"]).output().unwrap(),
        MALFORMED,
    );
    assert_contains(&error, "no.tar");
}
