//! Archives, manifests, configs and blobs that are wrong, on purpose or not: one clear line, and nothing of them stays.
//!
//! Where each kind of attack on whoever reads images is tested, besides here:
//!
//! | attack | tests |
//! |---|---|
//! | names: `..`, absolute, empty, `a//b`, NUL, 256 bytes, 64 KiB, 10,000 deep, the root as a file | `names_*`, `ten_thousand_directories_*`, `an_entry_for_the_root_*` of `src/layer/archive/tests.rs` |
//! | names: control characters, not UTF-8, case and accents; names of our own | `names_of_any_bytes_*` of `hostile_layers.rs`; `single_layers_are_shown_beside_*` of `mount.rs` |
//! | symlinks: out of the image, below one, replaced by a directory, loops, too long | `symlinks_*`, `whiteouts_and_entries_do_not_act_through_*` of `hostile_layers.rs`; `an_entry_below_something_*`, `of_two_entries_*` of `archive/tests.rs`; `a_hostile_symlink_*` of `tests/changes/commit.rs` |
//! | hard links: out, to itself, in circles, to directories, whiteouts and devices, chains of 100,000 | `hard_links_*`, `a_chain_of_*` of `archive/tests.rs` |
//! | whiteouts of nothing, of `.` and `..`, of whiteouts, as links and directories, a hundred thousand, of aufs, through symlinks | `whiteouts_*`, `a_whiteout_*`, `the_opaque_marker_*`, `leftovers_*`, `a_hundred_thousand_*` of `archive/tests.rs`; `hostile_layers.rs` |
//! | sizes in two places, newlines in values, keys and headers twice, bodies of links, huge headers, lying lengths, checksums, global headers | `a_size_in_pax_*`, `a_newline_*`, `a_gnu_long_name_*`, `links_devices_*`, `more_than_the_limits_*`, `malformed_headers_*`, `a_global_header_*` of `archive/tests.rs` |
//! | truncated anywhere, without an end, with something behind it, a tar in a tar | `a_tar_that_is_cut_off_*`, `after_the_end_*`, `an_archive_in_a_file_*` of `archive/tests.rs` |
//! | sparse maps that overlap, are endless or huge | `contradicting_sparse_maps_*`, `a_hole_of_eight_exbibytes_*`, `more_than_the_limits_*` of `archive/tests.rs` |
//! | unknown types, 0:0 devices, suid bits, devices, FIFOs | `malformed_headers_*`, `a_device_0_0_*` of `archive/tests.rs`; `suid_bits_and_devices_*` of `hostile_layers.rs` |
//! | compression: bombs, windows, members, twice, wrong sums, cut off, endless | `compressed_layers_*`, `what_never_ends_*` of `hostile_layers.rs`; `what_unpacks_to_more_*` of `load.rs` |
//! | names of images that exist already; an archive that changes while it is mounted | `a_name_that_moves_*` of `load.rs`; `a_tar_that_became_shorter_*` of `archive/tests.rs` |
//! | killed, full disk, limits, crash of the system, several at once | `crash.rs`, `a_limit_of_file_sizes_*` of `hostile_layers.rs` |
//! | saving over a link; an upper under a lower, of another, with links in it | `nothing_is_written_through_a_link_*` of `save.rs`; `tests/hostile.rs`, `tests/cli/refusals.rs` |

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tar::EntryType;

use super::{
    Dir, File, Layout, MALFORMED, NOT_FOUND, OCI_INDEX, OCI_MANIFEST, Other, Place, Symlink, USAGE,
    assert_contains, config, digest, docker_archive, gzip, hex, layer, tar,
};

/// Loads what is wrong: refused with `expected` in the sentence, and the store is as empty as before.
#[track_caller]
fn refused_as(code: i32, bytes: &[u8], expected: &str) {
    let place = Place::new();
    place.write("bad.tar", bytes);
    let error = place.fails(code, &["load", "bad.tar"]);
    assert_contains(&error, "bad.tar: ");
    assert_contains(&error, expected);
    assert!(error.len() < 1000, "too long: {error}");
    assert_eq!(place.done(&["images", "-q"]), "");
    place.is_sound();
    let here: Vec<_> = fs::read_dir(place.base.path()).unwrap().collect();
    assert_eq!(
        here.len(),
        4,
        "something is beside bad.tar, data, m and run: {here:?}"
    );
}

#[track_caller]
fn refused(bytes: &[u8], expected: &str) {
    refused_as(MALFORMED, bytes, expected);
}

/// A docker-archive with this `manifest.json`, a config `c.json` of one layer, and that as `l.tar`.
fn with_manifest(manifest: &str) -> Vec<u8> {
    let layer = layer("f", "x");
    let config = config(&[&layer]).to_string();
    tar(&[
        File("c.json", config.as_bytes()),
        File("l.tar", &layer),
        Symlink("link", "/etc/passwd"),
        Symlink("circle", "circle"),
        Other("fifo", EntryType::Fifo),
        Dir("dir"),
        File("manifest.json", manifest.as_bytes()),
    ])
}

/// A layout with one image, and then changed.
fn layout(change: impl FnOnce(&mut Layout, &mut Value)) -> Vec<u8> {
    let tar = layer("f", "x");
    let mut layout = Layout::default();
    let mut image = layout.image(&config(&[&tar]), &[("", &tar)]);
    change(&mut layout, &mut image);
    layout.list(image, "app:1");
    layout.tar()
}

#[test]
fn what_is_no_archive_is_refused() {
    for (bytes, expected) in [
        (&b""[..], "it is not a tar archive"),
        (b"hello", "it is not a tar archive"),
        (&[0; 10240], "it is not a tar archive"),
        (&[b'x'; 10240], "it is not a tar archive"),
        (
            &tar(&[File("a", b"x")]),
            "it is no image: it has neither manifest.json nor oci-layout",
        ),
        (&gzip(b"hello"), "it is not a tar archive"),
        (b"\x1f\x8b garbage", "cannot unpack it"),
        (b"\x28\xb5\x2f\xfd garbage", "cannot unpack it"),
    ] {
        refused(bytes, expected);
    }
}

#[test]
fn a_missing_file_is_told_and_makes_nothing() {
    let place = Place::new();
    let error = place.fails(1, &["load", "missing.tar"]);
    assert_contains(&error, "missing.tar: cannot read");
    let error = place.fails(NOT_FOUND, &["mount", "./missing.tar", "m"]);
    assert_contains(&error, "missing.tar");
    let error = place.fails(NOT_FOUND, &["history", "missing"]);
    assert_contains(&error, "no image 'missing' in the store");
}

#[test]
fn truncated_archives_are_refused_wherever_they_end() {
    let whole = docker_archive("app:1", &[&layer("f", &"x".repeat(3000))]);
    for length in [100, 512, 700, 1100, 1600, 5000, 6700] {
        refused(&whole[..length], "");
    }
    let compressed = gzip(&whole);
    refused(&compressed[..compressed.len() / 2], "cannot unpack it");
}

#[test]
fn lengths_and_checksums_in_headers_of_the_archive_are_checked() {
    let good = docker_archive("app:1", &[&layer("f", "x")]);
    let with_size = |size: &[u8; 12]| {
        let mut header = tar::Header::new_gnu();
        header.as_mut_bytes().copy_from_slice(&good[..512]);
        header.as_mut_bytes()[124..136].copy_from_slice(size);
        header.set_cksum();
        [header.as_bytes(), &good[512..]].concat()
    };
    refused(&with_size(b"77777777777\0"), "it is truncated");
    refused(
        &with_size(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
        "",
    );
    refused(
        &with_size(b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff"),
        "it is truncated",
    );
    refused(&with_size(b"garbage     "), "its size is malformed");
    let mut flipped = good.clone();
    flipped[1024] ^= 1;
    refused(&flipped, "");
}

#[test]
fn extended_headers_are_bounded_and_well_formed() {
    let extended = |kind: u8, body: &[u8], size: u64| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(EntryType::new(kind));
        header.set_path("pax").unwrap();
        header.set_size(size);
        header.set_cksum();
        let mut block = body.to_vec();
        block.resize(body.len().div_ceil(512) * 512, 0);
        [header.as_bytes().to_vec(), block, layer("f", "x")].concat()
    };
    let long = vec![b'a'; 2 << 20];
    for kind in *b"xLK" {
        refused(
            &extended(kind, &long, long.len() as u64),
            "an extended header is longer than 1 MiB",
        );
    }
    for body in [
        "99 path=a\n",
        "x path=a\n",
        "8 path=a",
        "0 \n",
        "18446744073709551617 a=b\n",
        "9 pathaa\n",
    ] {
        refused(
            &extended(b'x', body.as_bytes(), body.len() as u64),
            "its pax header is malformed",
        );
    }
    refused(
        &extended(b'x', b"11 size=-1\n", 11),
        "its size is malformed",
    );
}

#[test]
fn paths_in_the_manifest_lead_nowhere_but_to_files_of_the_archive() {
    for (config, layer, expected) in [
        ("../../etc/passwd", "l.tar", "leads out of the archive"),
        ("/etc/passwd", "l.tar", "'/etc/passwd' is missing"),
        ("link", "l.tar", "'link' is missing"),
        ("c.json", "link", "layer 'link': it is missing"),
        ("c.json", "../l.tar", "leads out of the archive"),
        ("c.json", "circle", "leads in a circle"),
        ("c.json", "fifo", "is not a regular file"),
        ("c.json", "dir", "is not a regular file"),
        ("c.json", "", "is missing"),
        ("c.json", "manifest.json", "layer 'manifest.json'"),
        ("l.tar", "l.tar", "not a valid image config"),
    ] {
        let manifest = json!([{"Config": config, "Layers": [layer]}]);
        refused(&with_manifest(&manifest.to_string()), expected);
    }
}

#[test]
fn manifests_that_are_no_manifests_are_refused() {
    for manifest in [
        "",
        "{}",
        "null",
        "[1]",
        "[{}]",
        r#"[{"Config": 1}]"#,
        r#"[{"Config":"a","Config":"b"}]"#,
        "[[[[[[",
    ] {
        refused(&with_manifest(manifest), "not a valid manifest.json");
    }
    refused(
        &with_manifest(&format!("[{}", "[".repeat(1 << 20))),
        "not a valid manifest.json",
    );
    refused_as(NOT_FOUND, &with_manifest("[]"), "there is no image in it");
    let huge = format!("[{}]", " ".repeat(21 << 20));
    refused(&with_manifest(&huge), "at most 20971520 are read");
    let two = json!([{"Config": "c.json", "Layers": ["l.tar", "l.tar"]}]);
    refused(
        &with_manifest(&two.to_string()),
        "lists 2 layers, but the config c.json has 1",
    );
}

#[test]
fn names_that_could_hurt_are_refused_and_not_shown_raw() {
    let long = format!("{}:1", "a".repeat(10 << 10));
    for name in [
        "../../x:1",
        "\u{1b}[31mred:1",
        "a\nb:1",
        "A:1",
        "a:b c",
        "",
        &long,
    ] {
        let manifest = json!([{"Config": "c.json", "RepoTags": [name], "Layers": ["l.tar"]}]);
        refused(
            &with_manifest(&manifest.to_string()),
            "is not a name for an image",
        );
    }
}

#[test]
fn a_layer_that_is_not_what_the_config_says_is_refused_by_both_digests() {
    let other = layer("f", "y");
    let config = config(&[&layer("f", "x")]).to_string();
    let manifest =
        json!([{"Config": "c.json", "RepoTags": ["app:1"], "Layers": ["l.tar"]}]).to_string();
    for content in [other.clone(), gzip(&other)] {
        let archive = tar(&[
            File("c.json", config.as_bytes()),
            File("l.tar", &content),
            File("manifest.json", manifest.as_bytes()),
        ]);
        refused(
            &archive,
            &format!("layer 'l.tar': the layer unpacks to {}", digest(&other)),
        );
    }
}

#[test]
fn blobs_are_checked_by_length_and_then_by_digest() {
    refused(
        &layout(|layout, _| layout.files[0].1.push(b' ')),
        " bytes, its descriptor says ",
    );
    refused(
        &layout(|layout, _| layout.files[0].1[0] = b'['),
        "has other content: its digest is",
    );
    refused(
        &layout(|layout, _| layout.files[1].1[600] ^= 1),
        "its digest is",
    );
    refused(
        &layout(|layout, _| layout.files[1].1.truncate(512)),
        " has 512 bytes, its descriptor says ",
    );
    refused(
        &layout(|layout, _| drop(layout.files.remove(0))),
        " is missing",
    );
    refused(
        &layout(|layout, _| drop(layout.files.remove(1))),
        "it is missing, and not in the store either",
    );
    refused(
        &layout(|_, image| image["size"] = 1.into()),
        " bytes, its descriptor says 1",
    );
    for size in [json!(-1), json!(1e300), json!("7"), Value::Null] {
        refused(
            &layout(|_, image| image["size"] = size),
            "not a valid index",
        );
    }
}

#[test]
fn digests_are_digests_before_they_are_paths() {
    let upper = format!("sha256:{}", "A".repeat(64));
    for text in [
        "sha256:../../../../etc/passwd",
        "sha256:00",
        &upper,
        "md5:0",
        "",
        "sha512:0",
        "x".repeat(5000).as_str(),
    ] {
        refused(&layout(|_, image| image["digest"] = text.into()), "digest");
    }
}

#[test]
fn a_document_cannot_be_manifest_and_index_at_once() {
    let both = |layout: &mut Layout, image: &mut Value, media_type: &str| {
        let manifest: Value = serde_json::from_slice(&layout.files.last().unwrap().1).unwrap();
        let mut both = manifest;
        both["manifests"] = json!([image.clone()]);
        if media_type.is_empty() {
            both.as_object_mut().unwrap().remove("mediaType");
        }
        *image = layout.blob(
            if media_type.is_empty() {
                OCI_MANIFEST
            } else {
                media_type
            },
            both.to_string().as_bytes(),
        );
    };
    for media_type in [OCI_MANIFEST, OCI_INDEX, ""] {
        refused(
            &layout(|layout, image| both(layout, image, media_type)),
            "a manifest and an index at once",
        );
    }
    refused(
        &layout(|_, image| image["mediaType"] = OCI_INDEX.into()),
        "the document says that it is",
    );
    let mut index = Layout::default();
    let nested = index.nested(&[]);
    let mut nested = nested;
    nested["mediaType"] = OCI_MANIFEST.into();
    index.list(nested, "");
    refused(&index.tar(), "the document says that it is");
}

#[test]
fn indexes_lie_in_each_other_only_so_deep() {
    let deep = layout(|layout, image| {
        for _ in 0..1000 {
            *image = layout.nested(std::slice::from_ref(image));
        }
    });
    refused(&deep, "indexes lie in each other more than 8 deep");
    let wide = layout(|layout, image| {
        for _ in 0..5 {
            *image = layout.nested(&vec![image.clone(); 20]);
        }
    });
    refused(&wide, "the index leads to more than 10000 documents");
}

#[test]
fn layers_of_manifest_and_config_must_be_as_many() {
    let tar = layer("f", "x");
    for layers in [0, 2, 1000] {
        let mut layout = Layout::default();
        let image = layout.image(&config(&[&tar]), &vec![("", &tar[..]); layers]);
        layout.list(image, "app:1");
        refused(
            &layout.tar(),
            &format!("it has {layers} layers, but its config 1"),
        );
    }
}

#[test]
fn the_same_layer_may_come_five_hundred_times_and_an_image_may_have_none() {
    let place = Place::new();
    let tar = layer("f", "x");
    place.write("many.tar", docker_archive("many:1", &vec![&tar[..]; 500]));
    place.write("none.tar", docker_archive("none:1", &[]));
    place.done(&["load", "many.tar", "none.tar"]);
    assert_eq!(place.read_in_mount(&["many:1"], "f"), "x");
    let error = place.fails(3, &["mount", "none:1", "m"]);
    assert_contains(&error, "has no layers to mount");
    place.is_sound();
}

#[test]
fn a_layer_that_is_no_tar_or_damaged_is_refused_by_its_name() {
    let garbage = b"no tar at all".to_vec();
    refused(
        &docker_archive("app:1", &[&garbage]),
        "layer 'layer0/layer.tar': ",
    );
    let tar_ = layer("f", "x");
    let blob = gzip(&tar_);
    for damaged in [&blob[..blob.len() - 4], &[&blob[..], b"garbage"].concat()] {
        let mut layout = Layout::default();
        let image = layout.image(&config(&[&tar_]), &[("+gzip", damaged)]);
        layout.list(image, "app:1");
        let path = format!("layer 'blobs/sha256/{}': cannot unpack it", hex(damaged));
        refused(&layout.tar(), &path);
    }
}

#[test]
fn what_a_config_says_is_shown_without_what_a_terminal_would_interpret() {
    let place = Place::new();
    let tar_ = layer("f", "x");
    let mut config = config(&[&tar_]);
    config["history"][0]["created_by"] = "\u{1b}[2Jwiped\r\nsecond\u{202e}line\tend".into();
    config["history"][0]["comment"] = "a\u{7}b".into();
    let mut layout = Layout::default();
    let image = layout.image(&config, &[("", &tar_)]);
    layout.list(image, "app:1");
    place.write("app.tar", layout.tar());
    place.done(&["load", "app.tar"]);
    for args in [
        &["history", "app:1"][..],
        &["inspect", "app:1"],
        &["tree", "app:1"],
    ] {
        let shown = place.done(args);
        assert!(
            !shown.contains(|c: char| c.is_control() && c != '\n'),
            "{shown:?}"
        );
    }
    assert_contains(
        &place.done(&["history", "app:1"]),
        " [2Jwiped  second line end ",
    );
}

#[test]
fn a_layout_directory_with_other_things_than_files_in_it_is_refused() {
    let place = Place::new();
    let tar = layer("f", "x");
    let mut layout = Layout::default();
    let image = layout.image(&config(&[&tar]), &[("", &tar)]);
    layout.list(image, "app:1");
    layout.write(&place.path("app"));
    let blob = place.path("app/blobs/sha256").join(hex(&tar));
    fs::remove_file(&blob).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, &blob, rustix::fs::Mode::RWXU).unwrap();
    assert_contains(
        &place.fails(MALFORMED, &["load", "app"]),
        "is not a regular file",
    );
    fs::remove_file(place.path("app/index.json")).unwrap();
    fs::create_dir(place.path("app/index.json")).unwrap();
    assert_contains(
        &place.fails(MALFORMED, &["load", "app"]),
        "is not a regular file",
    );
}

#[test]
fn a_directory_of_something_else_does_not_become_a_store() {
    let place = Place::new();
    place.write("m/letter", "dear");
    let error = place.fails(1, &["images", "--store", "m"]);
    assert_contains(&error, "it is not a store: it holds 'letter'");
    assert_eq!(fs::read_dir(place.path("m")).unwrap().count(), 1);
    place.done(&["images"]);
    fs::write(place.store().join("version"), "2\n").unwrap();
    assert_contains(
        &place.fails(MALFORMED, &["images"]),
        "has format '2', this plyfs knows 1",
    );
    let mut command = place.command(["images"]);
    let output = command
        .env_remove("XDG_DATA_HOME")
        .env_remove("HOME")
        .output()
        .unwrap();
    assert_contains(&super::sentence(&output, USAGE), "--store DIR");
    assert!(!Path::new("/nonexistent").exists());
}
