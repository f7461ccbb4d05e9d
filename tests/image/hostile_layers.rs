//! Layers that are made to do harm: nothing in them acts on the host, and a mount of them is no danger.
//!
//! What a tar may say and mean is tested where tars are read, in `src/layer/archive/tests.rs`; archives, manifests and
//! blobs around them in `hostile.rs`.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use tar::{EntryType, Header};

use super::{
    Dir, File, Layout, MALFORMED, Place, Symlink, USAGE, assert_contains, config, docker_archive,
    gzip, layer, sentence, tar,
};

/// A place with the image `app:1` of these layers, mounted on `m`.
fn mounted(layers: &[&[u8]]) -> Place {
    let place = Place::new();
    place.write("app.tar", docker_archive("app:1", layers));
    place.done(&["load", "-q", "app.tar"]);
    place.done(&["mount", "app:1", "m"]);
    place
}

/// An image whose one layer came compressed as `blob`; `unpacked` is what its config says of it.
fn compressed(unpacked: &[u8], blob: &[u8]) -> Vec<u8> {
    let mut layout = Layout::default();
    let image = layout.image(&config(&[unpacked]), &[("+gzip", blob)]);
    layout.list(image, "app:1");
    layout.tar()
}

/// A tar of entries with names that the crate tar does not write.
fn raw(entries: &[(&[u8], EntryType, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, kind, target) in entries {
        let mut header = Header::new_ustar();
        header.set_entry_type(*kind);
        header.set_size(0);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        let ustar = header.as_ustar_mut().unwrap();
        ustar.name[..name.len()].copy_from_slice(name);
        ustar.linkname[..target.len()].copy_from_slice(target);
        header.set_cksum();
        bytes.extend_from_slice(header.as_bytes());
    }
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

#[test]
fn whiteouts_and_entries_do_not_act_through_symlinks_of_layers_below() {
    let below = tar(&[
        Dir("real"),
        File("real/kept", b"kept"),
        Symlink("link", "real"),
        Symlink("abroad", "/etc"),
    ]);
    let above = tar(&[
        File("link/.wh.kept", b""),
        File("abroad/.wh..wh..opq", b""),
        File("abroad/passwd", b"mine"),
    ]);
    let place = mounted(&[&below, &above]);
    let path = |name: &str| place.path("m").join(name);
    assert_eq!(fs::read(path("real/kept")).unwrap(), b"kept");
    assert!(fs::symlink_metadata(path("link")).unwrap().is_dir());
    assert_eq!(fs::read_dir(path("link")).unwrap().count(), 0);
    assert!(fs::symlink_metadata(path("abroad")).unwrap().is_dir());
    assert_eq!(fs::read(path("abroad/passwd")).unwrap(), b"mine");
    assert_eq!(fs::read_dir(path("abroad")).unwrap().count(), 1);
    assert_ne!(fs::read("/etc/passwd").unwrap(), b"mine");
}

#[test]
fn symlinks_say_what_the_tar_says_and_loops_end() {
    let long = "x/".repeat(2000);
    let links = tar(&[
        Symlink("up", "../../../../../etc/passwd"),
        Symlink("a", "b"),
        Symlink("b", "a"),
        Symlink("long", &long),
    ]);
    let place = mounted(&[&links]);
    let target = |name: &str| fs::read_link(place.path("m").join(name)).unwrap();
    assert_eq!(target("up").as_os_str(), "../../../../../etc/passwd");
    assert_eq!(target("long").as_os_str(), &long[..]);
    let error = fs::read(place.path("m/a")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::LOOP.raw_os_error()));
    for image in ["app:1:/a", "app:1:/up"] {
        let output = place.command(["cat", image]).output().unwrap();
        assert!(
            !output.status.success() && output.stdout.is_empty(),
            "{image}"
        );
    }

    let place = Place::new();
    let longer = "x/".repeat(2048);
    let links = tar(&[Symlink("l", &longer)]);
    place.write("app.tar", docker_archive("app:1", &[&links]));
    let error = place.fails(MALFORMED, &["load", "app.tar"]);
    assert_contains(&error, "entry 'l'");
}

#[test]
fn names_of_any_bytes_are_kept_apart_and_not_sent_to_a_terminal() {
    let names: [&[u8]; 7] = [
        b"line\nfeed",
        b"\x1b[31mred",
        b"\xff\xfe",
        b"Case",
        b"case",
        "\u{e9}".as_bytes(),
        "e\u{301}".as_bytes(),
    ];
    let entries = names.map(|name| (name, EntryType::Regular, &b""[..]));
    let place = mounted(&[&raw(&entries)]);
    let listed = fs::read_dir(place.path("m")).unwrap();
    let mut found: Vec<_> = listed
        .map(|entry| entry.unwrap().file_name().as_bytes().to_vec())
        .collect();
    found.sort();
    let mut expected = names.map(<[u8]>::to_vec).to_vec();
    expected.sort();
    assert_eq!(found, expected);
    // `script` gives the command a terminal.
    let shown = place
        .command_of(
            "script",
            ["-qec", &format!("{} ls app:1", super::PLYFS), "/dev/null"],
        )
        .output()
        .unwrap();
    assert!(shown.status.success());
    assert!(
        !shown.stdout.contains(&0x1b),
        "{:?}",
        shown.stdout.escape_ascii()
    );
}

#[test]
fn errors_repeat_nothing_that_steers_a_terminal() {
    let place = Place::new();
    let output = place
        .command(["mount", "-o", "lowerd\n\u{1b}[2J", "m"])
        .output();
    assert_contains(
        &sentence(&output.unwrap(), USAGE),
        "unknown option 'lowerd  [2J'",
    );
}

#[test]
fn suid_bits_and_devices_of_an_image_are_shown_and_count_for_nothing() {
    let mut entries = Vec::new();
    for (name, kind, mode) in [
        ("suid", EntryType::Regular, 0o4755),
        ("pipe", EntryType::Fifo, 0o666),
        ("zero", EntryType::Char, 0o666),
        ("whiteout", EntryType::Char, 0o666),
    ] {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_path(name).unwrap();
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(0);
        header.set_mtime(0);
        if name == "zero" {
            header.set_device_major(1).unwrap();
            header.set_device_minor(5).unwrap();
        } else {
            header.set_device_major(0).unwrap();
            header.set_device_minor(0).unwrap();
        }
        header.set_cksum();
        entries.extend_from_slice(header.as_bytes());
    }
    entries.resize(entries.len() + 1024, 0);
    let place = mounted(&[&layer("whiteout", "below"), &entries]);
    let path = |name: &str| place.path("m").join(name);
    let seen = |name: &str| fs::symlink_metadata(path(name)).unwrap();
    assert_eq!(seen("suid").permissions().mode() & 0o7777, 0o4755);
    assert!(seen("pipe").file_type().is_fifo());
    assert_eq!(seen("zero").rdev(), rustix::fs::makedev(1, 5));
    assert!(seen("whiteout").file_type().is_char_device());

    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let here = format!(" {} ", place.path("m").display());
    let line = mounts.lines().find(|line| line.contains(&here)).unwrap();
    assert!(line.contains("nosuid") && line.contains("nodev"), "{line}");
    let open = |name: &str, flags| rustix::fs::open(path(name), flags, Mode::empty());
    assert_eq!(open("zero", OFlags::RDONLY).unwrap_err(), Errno::ACCESS);
    // The kernel's, not the daemon's to open: nobody reads it.
    let error = open("pipe", OFlags::WRONLY | OFlags::NONBLOCK).unwrap_err();
    assert_eq!(error, Errno::NXIO);
    place.done(&["ls", "-R", "app:1"]);
    place.done(&["diff", "m", "app:1"]);
}

#[test]
fn compressed_layers_are_read_whole_once_and_within_bounds() {
    let plain = layer("f", &"x".repeat(10_000));
    let (first, second) = plain.split_at(3000);
    let members = [gzip(first), gzip(second)].concat();
    // Nothing but empty members between.
    let padded = [gzip(first), gzip(b""), gzip(second)].concat();
    for blob in [members, padded, plain.clone()] {
        let place = Place::new();
        place.write("app.tar", compressed(&plain, &blob));
        place.done(&["load", "-q", "app.tar"]);
        assert_eq!(place.read_in_mount(&["app:1"], "f").len(), 10_000);
    }

    let twice = gzip(&gzip(&plain));
    let mut wrong_sum = gzip(&plain);
    let end = wrong_sum.len() - 8;
    wrong_sum[end] ^= 1;
    // A frame with a window of 2 GiB (RFC 8878: descriptor, window, one empty last block).
    let window = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xa8, 0x01, 0x00, 0x00].to_vec();
    for (blob, expected) in [
        (twice, "compressed"),
        (wrong_sum, "cannot unpack it"),
        (window, "cannot unpack it"),
    ] {
        let place = Place::new();
        place.write("app.tar", compressed(&plain, &blob));
        let error = place.fails(MALFORMED, &["load", "app.tar"]);
        assert_contains(&error, expected);
        place.is_sound();
    }

    // A bomb: a thousand times as large as it comes, and then only zeros.
    let bomb = gzip(&vec![0; 50 << 20]);
    let place = Place::new();
    place.write("app.tar", compressed(&plain, &bomb));
    let error = place.fails(MALFORMED, &["load", "--max-size", "1M", "app.tar"]);
    assert_contains(&error, "it unpacks to more than 1048576 bytes");
    place.is_sound();
}

#[test]
fn what_never_ends_and_is_no_tar_is_refused_at_once() {
    for source in ["/dev/zero", "/dev/urandom"] {
        let place = Place::new();
        let endless = fs::File::open(source).unwrap();
        let output = place.command(["load"]).stdin(endless).output().unwrap();
        assert_contains(&sentence(&output, MALFORMED), "it is not a tar archive");
        let error = place.fails(MALFORMED, &["load", source]);
        assert_contains(&error, "it is not a tar archive");
        place.is_sound();
    }
}

#[test]
fn configs_with_nothing_in_them_are_read_and_absurd_ones_refused() {
    let layer = layer("f", "x");
    let with_config = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut config = config(&[&layer]);
        change(&mut config);
        let mut layout = Layout::default();
        let image = layout.image(&config, &[("", &layer)]);
        layout.list(image, "app:1");
        layout.tar()
    };
    let place = Place::new();
    place.write(
        "null.tar",
        with_config(&|config| {
            for field in ["created", "author", "history", "config", "variant"] {
                config[field] = serde_json::Value::Null;
            }
            config["unknown"] = serde_json::json!({"kept": [1, 1.5e300]});
        }),
    );
    place.done(&["load", "-q", "null.tar"]);
    assert_contains(&place.done(&["images"]), "N/A");
    assert_contains(&place.done(&["history", "app:1"]), "<unknown>");
    place.done(&["inspect", "app:1"]);
    assert_contains(
        &place.done(&["inspect", "--config", "app:1"]),
        "\"kept\":[1,1.5e+300]",
    );

    let mut deep = serde_json::json!(1);
    for _ in 0..100 {
        deep = serde_json::json!([deep]);
    }
    let refused = |change: &dyn Fn(&mut serde_json::Value), expected: &str| {
        let place = Place::new();
        place.write("bad.tar", with_config(change));
        let output = place.command(["load", "bad.tar"]).output().unwrap();
        assert_contains(&sentence(&output, MALFORMED), expected);
        place.is_sound();
    };
    let wrong = "not a valid image config";
    refused(&|config| config["rootfs"] = 7.into(), wrong);
    refused(
        &|config| config["rootfs"] = [0; 0].into(),
        "it has 1 layers, but its config 0",
    );
    refused(
        &|config| config["rootfs"]["diff_ids"] = "sha256:0".into(),
        wrong,
    );
    refused(
        &|config| config["history"] = serde_json::json!({"created": 1}),
        wrong,
    );
    refused(&|config| config["config"] = deep.clone(), wrong);
}

#[test]
fn a_limit_of_file_sizes_is_told_and_leaves_a_valid_store() {
    let place = Place::new();
    let large = layer("f", &"x".repeat(300_000));
    place.write("app.tar", docker_archive("app:1", &[&large]));
    let limited = ["--fsize=100000", super::PLYFS, "load", "app.tar"];
    let output = place.command_of("prlimit", limited).output().unwrap();
    assert_eq!(output.status.signal(), None);
    assert_contains(&sentence(&output, 1), "file too large");
    place.is_sound();
    assert_eq!(place.done(&["images", "-q"]), "");
}
