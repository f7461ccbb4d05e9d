//! `plyfs commit`: an image of changes.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use super::{PLYFS, tar_names};
use crate::support::disk::{View, build, read};
use crate::support::fixture::run;
use crate::support::run::{base_dir, own_ids};
use crate::support::tree::{Entry, Kind, compare, parse};

/// A directory with a store of its own and the image `base:1` of two layers; what is mounted on `m` goes with it.
struct Place(tempfile::TempDir);

const BASE: &str = "etc/conf 0640 'old'; etc/gone 'x'; bin/tool 0755 'tool'; bin/link = bin/tool; deep/er/file 'x'";
const ABOVE: &str = "etc/above 'x'";

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir_in(base_dir()).unwrap());
        for (name, text) in [("base", BASE), ("above", ABOVE)] {
            let dir = place.path(name);
            fs::create_dir(&dir).unwrap();
            build(&dir, &parse(text));
            let tar = place.path(format!("{name}.tar"));
            let owner = ["--owner=33", "--group=34", "--numeric-owner"];
            let files = ["-C", text_of(&dir), "-cf", text_of(&tar), "."];
            run("tar", &[&owner[..], &files[..]].concat());
        }
        fs::create_dir(place.path("m")).unwrap();
        place.done(&[
            "import",
            "--source-date-epoch",
            "1500000000",
            "--layer",
            "base.tar",
            "--layer",
            "above.tar",
            "base:1",
        ]);
        place
    }

    fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, args: &[&str]) -> Output {
        Command::new(PLYFS)
            .args(args)
            .current_dir(self.0.path())
            .env("XDG_DATA_HOME", self.path("data"))
            .env("TMPDIR", self.0.path())
            .env_remove("SOURCE_DATE_EPOCH")
            .output()
            .unwrap()
    }

    /// Runs plyfs and expects success and silence on stderr; its stdout.
    #[track_caller]
    fn done(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && stderr.is_empty(),
            "{args:?}: {stderr}"
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs plyfs and expects this exit code and one line on stderr, which is returned.
    #[track_caller]
    fn fails(&self, args: &[&str], code: i32) -> String {
        let output = self.run(args);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        stderr
    }

    #[track_caller]
    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.done(args)).unwrap()
    }

    fn sh(&self, script: &str) {
        let mut shell = Command::new("sh");
        shell.args(["-ec", script]).current_dir(self.path("m"));
        let output = shell.output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        if mounts.contains(&format!(" {} ", self.path("m").display())) {
            let output = self.run(&["umount", "-l", "m"]);
            assert!(output.status.success(), "{output:?}");
        }
    }
}

fn text_of(path: &Path) -> &str {
    path.to_str().unwrap()
}

const CHANGE: &str = "echo new > etc/new; echo more >> etc/conf; rm etc/gone; mv deep moved; chmod 700 bin/tool; \
                      mkdir -m 1777 tmp; ln etc/new tmp/same; ln -s ../etc tmp/link; setfattr -n user.a -v b etc/new; \
                      truncate -s 100000 tmp/sparse";

/// What is mounted, without what a layer does not record: the root itself, link counts of directories.
fn tree(place: &Place) -> Vec<Entry> {
    let mut entries = read(&place.path("m"), View::Merged);
    entries.retain(|entry| entry.path != b".");
    for entry in &mut entries {
        if matches!(entry.kind, Kind::Dir) {
            entry.nlink = None;
        }
    }
    entries
}

#[test]
fn the_image_committed_shows_what_the_mount_showed() {
    let place = Place::new();
    place.done(&["mount", "--ephemeral", "base:1", "m"]);
    place.sh(CHANGE);
    let expected = tree(&place);
    let id = place.done(&["commit", "-m", "why", "-a", "me", "m", "new:2"]);
    assert!(id.starts_with("sha256:") && id.len() == 72, "{id}");
    assert_eq!(place.done(&["diff", "m", "new:2"]), "");
    place.done(&["umount", "m"]);
    place.done(&["mount", "new:2", "m"]);
    if let Err(difference) = compare(&expected, &tree(&place)) {
        panic!("{difference}");
    }
    let links = |path: &str| fs::metadata(place.path("m").join(path)).unwrap().ino();
    assert_eq!(links("etc/new"), links("tmp/same"));
    assert_eq!(links("bin/tool"), links("bin/link"));
}

#[test]
fn owners_of_an_image_survive_a_commit_by_anybody() {
    let place = Place::new();
    place.done(&["mount", "--ephemeral", "base:1", "m"]);
    place.sh(CHANGE);
    place.done(&["commit", "m", "new:2"]);
    let listed = place.done(&["ls", "-R", "--json", "new:2"]);
    let owner = |path: &str| {
        let mut lines = listed
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap());
        let line = lines.find(|line| line["path"] == path);
        let line = line.unwrap_or_else(|| panic!("no {path} in {listed}"));
        (line["uid"].as_u64().unwrap(), line["gid"].as_u64().unwrap())
    };
    for changed in [
        "etc/conf",
        "bin/tool",
        "bin/link",
        "moved",
        "moved/er/file",
        "etc",
    ] {
        assert_eq!(owner(changed), (33, 34), "{changed}");
    }
    for new in ["etc/new", "tmp", "tmp/link"] {
        assert_eq!(owner(new), (0, 0), "{new}");
    }
    if own_ids().0 != 0 {
        place.done(&["commit", "--owner", "7:8", "m", "new:3"]);
        assert!(
            place
                .done(&["ls", "--json", "new:3:/etc"])
                .contains("\"uid\":7,\"gid\":8")
        );
    }
}

#[test]
fn the_same_changes_give_the_same_image() {
    let place = Place::new();
    let mut ids = Vec::new();
    for name in ["one:1", "two:1"] {
        place.done(&["mount", "--ephemeral", "base:1", "m"]);
        place.sh(CHANGE);
        let epoch = ["--source-date-epoch", "1600000000"];
        for compression in ["none", "gzip", "zstd"] {
            let args = ["commit", "--compression", compression, "m", name];
            ids.push(place.done(&[&args[..], &epoch[..]].concat()));
        }
        place.done(&["umount", "m"]);
    }
    assert_eq!(ids[..3], ids[3..]);
    // The config names layers by what they unpack to.
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    let image = place.json(&["inspect", "one:1"]);
    assert_eq!(image[0]["Created"], "2020-09-13T12:26:40Z");
}

#[test]
fn the_layer_is_in_order_and_names_deletions() {
    let place = Place::new();
    place.done(&["mount", "--ephemeral", "base:1", "m"]);
    place.sh(CHANGE);
    place.done(&["commit", "m", "new:2"]);
    let layers = place.json(&["inspect", "new:2"])[0]["RootFS"]["Layers"].clone();
    let top = layers[2]
        .as_str()
        .unwrap()
        .trim_start_matches("sha256:")
        .to_owned();
    let tar = place.path("data/plyfs/layers/sha256").join(top).join("tar");
    assert_eq!(
        tar_names(&tar),
        [
            ".wh.deep",
            "bin/",
            "bin/link",
            "bin/tool",
            "etc/",
            "etc/.wh.gone",
            "etc/conf",
            "etc/new",
            "moved/",
            "moved/er/",
            "moved/er/file",
            "tmp/",
            "tmp/link",
            "tmp/same",
            "tmp/sparse",
        ]
    );
}

#[test]
fn history_and_configuration_say_what_was_done() {
    let place = Place::new();
    place.done(&["mount", "--ephemeral", "base:1", "m"]);
    let change = [
        "-c",
        "CMD [\"sh\"]",
        "-c",
        "ENV A=1 B=2",
        "-c",
        "WORKDIR /srv",
        "-c",
        "LABEL x=y",
    ];
    let args = [
        "commit",
        "-m",
        "only words",
        "-a",
        "me",
        "--created-by",
        "by hand",
        "m",
        "new:2",
    ];
    place.done(&[&args[..], &change[..]].concat());
    let image = place.json(&["inspect", "new:2"])[0].clone();
    // Nothing changed, so there is no layer.
    assert_eq!(image["RootFS"]["Layers"].as_array().unwrap().len(), 2);
    assert_eq!(image["Author"], "me");
    assert_eq!(image["Config"]["Cmd"], serde_json::json!(["sh"]));
    assert_eq!(image["Config"]["Env"], serde_json::json!(["A=1", "B=2"]));
    assert_eq!(image["Config"]["WorkingDir"], "/srv");
    let history = place.done(&[
        "history",
        "--no-trunc",
        "--format",
        "{{.CreatedBy}}|{{.Comment}}|{{.Size}}",
        "new:2",
    ]);
    assert_eq!(
        history.lines().next(),
        Some("by hand|only words|0B"),
        "{history}"
    );
    let wrong = place.fails(&["commit", "-c", "FROM x", "m", "new:3"], 2);
    assert!(wrong.contains("unknown directive"), "{wrong}");
}

#[test]
fn a_directive_that_is_none_is_told_in_one_sentence() {
    let place = Place::new();
    let error = place.fails(&["commit", "-c", "FROM x", "m", "new:2"], 2);
    assert!(error.contains("change 'FROM x': unknown directive; known are CMD"));
    assert!(
        error.ends_with("VOLUME and WORKDIR; see 'plyfs --help'\n"),
        "{error}"
    );
}

#[test]
fn squashed_images_have_one_layer_and_show_the_same() {
    let place = Place::new();
    place.done(&["mount", "--ephemeral", "base:1", "m"]);
    place.sh(CHANGE);
    place.done(&["commit", "--squash", "m", "flat:1"]);
    place.done(&["commit", "m", "new:2"]);
    assert_eq!(place.done(&["diff", "new:2", "flat:1"]), "");
    let image = place.json(&["inspect", "flat:1"])[0].clone();
    assert_eq!(image["RootFS"]["Layers"].as_array().unwrap().len(), 1);
}

#[test]
fn a_kept_upper_is_committed_without_a_mount_and_a_stack_of_directories_as_one_layer() {
    let place = Place::new();
    place.done(&["mount", "--rw=work", "base:1", "m"]);
    place.sh("echo x > etc/kept");
    place.done(&["umount", "m"]);
    place.done(&["commit", "data/plyfs/uppers/work/upper", "new:2"]);
    assert_eq!(
        place.done(&["diff", "base:1", "new:2"]),
        "C /etc\nA /etc/kept\n"
    );
    for dir in ["u", "w"] {
        fs::create_dir(place.path(dir)).unwrap();
    }
    place.done(&[
        "mount", "--lower", "base", "--upper", "u", "--work", "w", "m",
    ]);
    place.sh("rm -r etc; echo x > file");
    place.done(&["commit", "m", "dirs:1"]);
    assert_eq!(place.done(&["ls", "dirs:1"]), "bin\ndeep\nfile\n");
    place.done(&["umount", "m"]);
    let wrong = place.fails(&["commit", "u", "new:3"], 2);
    assert!(wrong.contains("--base IMAGE"), "{wrong}");
    place.done(&["commit", "--base", "base:1", "u", "new:3"]);
    assert_eq!(
        place.done(&["diff", "base:1", "new:3"]),
        "D /etc\nA /file\n"
    );
}

#[test]
fn what_a_layer_cannot_hold_is_told() {
    let place = Place::new();
    place.done(&["mount", "--ephemeral", "base:1", "m"]);
    std::os::unix::net::UnixListener::bind(place.path("m/socket")).unwrap();
    let output = place.run(&["commit", "m", "new:2"]);
    assert!(output.status.success());
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        stderr,
        "plyfs: 1 sockets are not recorded: a layer cannot hold them\n"
    );
    assert_eq!(place.done(&["diff", "base:1", "new:2"]), "");
}

#[test]
fn which_tells_every_version_of_a_path() {
    let place = Place::new();
    place.done(&["mount", "--ephemeral", "base:1", "m"]);
    place.sh("echo new > etc/conf; rm etc/gone");
    let versions = |path: &str| {
        let all = place.json(&["which", "--json", path]);
        let all = all.as_array().unwrap().iter();
        all.map(|one| {
            (
                one["layer"].as_u64(),
                one["change"].as_str().unwrap().to_owned(),
            )
        })
        .collect::<Vec<_>>()
    };
    let of = |layer, change: &str| (layer, change.to_owned());
    assert_eq!(
        versions("m/etc/conf"),
        [of(None, "changed"), of(Some(1), "added")]
    );
    assert_eq!(
        versions("m/etc/gone"),
        [of(None, "deleted"), of(Some(1), "added")]
    );
    assert_eq!(versions("m/etc/above"), [of(Some(2), "added")]);
    assert_eq!(versions("base:1:/etc/above"), [of(Some(2), "added")]);
    let none = place.fails(&["which", "m/etc/never"], 9);
    assert!(none.contains("m/etc/never"), "{none}");
    place.fails(&["which", "base.tar"], 8);
}

#[test]
fn files_of_an_image_are_seen_without_a_mount() {
    let place = Place::new();
    assert_eq!(place.done(&["cat", "base:1:/etc/conf"]), "old");
    assert_eq!(place.done(&["ls", "base:1:/etc"]), "above\nconf\ngone\n");
    let long = place.done(&["ls", "-l", "base:1:/etc/conf"]);
    assert!(
        long.starts_with("-rw-r-----    33    34          3 ") && long.ends_with("  1 conf\n"),
        "{long}"
    );
    place.done(&["cp", "base:1:/etc", "out"]);
    assert_eq!(fs::read_to_string(place.path("out/conf")).unwrap(), "old");
    assert_eq!(
        fs::metadata(place.path("out/conf")).unwrap().mode() & 0o7777,
        0o640
    );
    let again = place.fails(&["cp", "base:1:/etc", "out/conf/x"], 1);
    assert!(again.contains("cannot write out/conf/x"), "{again}");
    let none = place.fails(&["cat", "base:1:/no"], 9);
    assert!(none.contains("no /no in base:1"), "{none}");
    place.fails(&["cat", "base:1:/etc"], 1);
}

#[test]
fn a_hostile_symlink_stays_inside_the_image() {
    let place = Place::new();
    let dir = place.path("hostile");
    fs::create_dir(&dir).unwrap();
    build(
        &dir,
        &parse(
            "link -> /etc/passwd; up -> ../../../../etc/passwd; loop -> loop; etc/passwd 'inner'",
        ),
    );
    run(
        "tar",
        &[
            "-C",
            text_of(&dir),
            "-cf",
            text_of(&place.path("h.tar")),
            ".",
        ],
    );
    place.done(&["import", "h.tar", "hostile:1"]);
    assert_eq!(place.done(&["cat", "hostile:1:/link"]), "inner");
    assert_eq!(place.done(&["cat", "hostile:1:/up"]), "inner");
    let error = place.fails(&["cat", "hostile:1:/loop"], 1);
    assert!(
        error.contains("too many levels of symbolic links"),
        "{error}"
    );
}

#[test]
fn every_object_of_a_mount_tells_its_layer_and_lists_that_nowhere() {
    let place = Place::new();
    place.done(&["mount", "--ephemeral", "base:1", "m"]);
    place.sh("echo new > etc/conf");
    let value = |path: &str, name: &str| {
        let value = crate::support::disk::xattr(&place.path("m").join(path), name);
        String::from_utf8(value.unwrap_or_else(|| panic!("no {name} of {path}"))).unwrap()
    };
    assert!(value("etc/conf", "user.plyfs.layer").ends_with("/upper"));
    assert_eq!(value("etc/conf", "user.plyfs.path"), "/etc/conf");
    assert_eq!(value("etc/conf", "user.plyfs.below").lines().count(), 1);
    assert!(value("etc/above", "user.plyfs.layer").ends_with("/tar"));
    assert_eq!(value("etc/above", "user.plyfs.below"), "");
    assert_eq!(value("etc", "user.plyfs.below").lines().count(), 2);
    for path in ["etc/conf", "etc/above", "etc", "."] {
        assert_eq!(
            crate::support::disk::xattr_names(&place.path("m").join(path)),
            [""; 0]
        );
    }
    let set = rustix::fs::lsetxattr(
        place.path("m/etc/conf"),
        "user.plyfs.layer",
        b"x",
        rustix::fs::XattrFlags::empty(),
    );
    assert_eq!(set, Err(rustix::io::Errno::PERM));
}

#[test]
fn a_hard_link_that_moved_with_its_directory_stays_one() {
    let place = Place::new();
    let dir = place.path("linked");
    fs::create_dir(&dir).unwrap();
    build(&dir, &parse("a/one 'x'; b/two = a/one; c/three = a/one"));
    let tar = place.path("linked.tar");
    run("tar", &["-C", text_of(&dir), "-cf", text_of(&tar), "."]);
    place.done(&["import", "linked.tar", "linked:1"]);
    place.done(&["mount", "--ephemeral", "linked:1", "m"]);
    place.sh("mv b moved");
    assert_eq!(place.done(&["diff", "m"]), "D /b\nA /moved\nA /moved/two\n");
    place.done(&["commit", "m", "linked:2"]);
    place.done(&["umount", "m"]);
    place.done(&["mount", "linked:2", "m"]);
    let about = |path: &str| {
        let metadata = fs::metadata(place.path("m").join(path)).unwrap();
        (metadata.ino(), metadata.nlink())
    };
    assert_eq!(about("a/one").1, 3);
    assert_eq!(about("a/one"), about("moved/two"));
    assert_eq!(about("a/one"), about("c/three"));
}

#[test]
fn names_that_lead_to_a_changed_file_and_were_not_changed_themselves_stay_one_file() {
    let place = Place::new();
    let dir = place.path("links");
    fs::create_dir(&dir).unwrap();
    build(&dir, &parse("a 'old'; b = a; c = a"));
    let tar = place.path("links.tar");
    run(
        "tar",
        &["-C", text_of(&dir), "-cf", text_of(&tar), "a", "b", "c"],
    );
    place.done(&["import", "--layer", "links.tar", "links:1"]);
    place.done(&["mount", "--ephemeral", "links:1", "m"]);
    // Only the index of hard links has the changed file now.
    place.sh("printf new >> a; rm a");
    place.done(&["commit", "m", "links:2"]);
    place.done(&["umount", "m"]);
    place.done(&["mount", "links:2", "m"]);
    let path = |name: &str| place.path("m").join(name);
    assert_eq!(fs::read_to_string(path("b")).unwrap(), "oldnew");
    let (b, c) = (fs::metadata(path("b")), fs::metadata(path("c")));
    assert_eq!(b.unwrap().ino(), c.unwrap().ino());
    assert!(!path("a").exists());
}
