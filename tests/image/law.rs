//! The law of images: what a mount shows after any changes, the image made of them shows, committed, saved and loaded
//! elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use plyfs::changes::owner::Owners;

use super::Place;
use crate::changes::{storable, write_layer};
use crate::model::exec::Hands;
use crate::model::script::{Build, Op, Step};
use crate::model::snapshot::{Listing, Tree, snapshot};
use crate::model::{generate, layers};
use crate::support::run::is_root;

/// How an image leaves and comes back.
const FORMATS: [&str; 3] = ["docker-archive", "oci-archive", "oci-dir"];
const COMPRESSIONS: [&str; 3] = ["none", "gzip", "zstd"];

#[test]
fn an_image_of_random_changes_shows_the_tree_that_was_mounted() {
    let given = std::env::var("PLYFS_LAW_SEED").ok();
    let given = given.map(|seed| seed.parse::<u64>().unwrap());
    for round in 0..FORMATS.len() {
        let seed = given.unwrap_or_else(|| fastrand::u64(..1_000_000_000));
        println!("PLYFS_LAW_SEED={seed}");
        holds(seed, FORMATS[round], COMPRESSIONS[round]);
    }
}

fn holds(seed: u64, format: &str, compression: &str) {
    let place = Place::new();
    let steps = generate::script(seed, 150);
    import_layers(&place, &steps);
    place.done(&["mount", "--rw", "base:1", "m"]);
    let mut hands = Hands::new(&place.path("m"));
    for step in &steps {
        match step {
            Step::Op(Op::Remount | Op::Restack { .. }, _) | Step::Build(_) => {}
            Step::Op(op, caller) if is_root() => drop(hands.perform_as(*caller, op)),
            Step::Op(op, _) => drop(hands.perform(op)),
        }
    }
    hands.close_all();
    // What is committed while the mount lives.
    let live = seen(&place);
    let commit = ["commit", "--compression", compression];
    if !committed(&place, &[&commit[..], &["m", "live:1"]].concat()) {
        assert!(!is_root());
        return;
    }
    place.done(&["umount", "m"]);
    place.done(&["mount", "--rw", "base:1", "m"]);
    let kept = seen(&place);
    let squashed = [&commit[..], &["--squash", "m", "squashed:1"]].concat();
    let squashed = committed(&place, &squashed);
    place.done(&["umount", "m"]);
    if !squashed {
        assert!(!is_root());
        return;
    }
    for (name, expected) in [("live:1", &live), ("squashed:1", &kept)] {
        place.done(&["save", "--format", format, "-o", "saved", name]);
        place.done(&["load", "-q", "--store", "elsewhere", "saved"]);
        place.done(&["mount", "--store", "elsewhere", name, "m"]);
        same(expected, &seen(&place), &format!("seed {seed}, {name}"));
        place.done(&["umount", "m"]);
        place.done(&["fsck", "--store", "elsewhere"]);
        remove(&place.path("saved"));
    }
    // The whole tree is what is told to differ from nothing.
    assert_eq!(place.done(&["diff", "live:1", "squashed:1"]), "");
}

/// The image `base:1`, of the layers that the script builds.
fn import_layers(place: &Place, steps: &[Step]) {
    let built = |step: &'_ Step| match step {
        Step::Build(build) => Some(build.clone()),
        Step::Op(..) => None,
    };
    let objects: Vec<Build> = steps.iter().filter_map(built).collect();
    layers::build(&place.path("layers"), &objects.iter().collect::<Vec<_>>()).unwrap();
    let lowers = layers::directories(&place.path("layers")).split_off(1);
    let mut import = vec!["import".to_owned()];
    for number in (0..lowers.len()).rev() {
        let tar = format!("{number}.tar");
        write_layer(&lowers[number..], None, Owners::AsOnDisk, &place.path(&tar));
        import.extend(["--layer".to_owned(), tar]);
    }
    import.push("base:1".to_owned());
    place.done(&import.iter().map(String::as_str).collect::<Vec<_>>());
}

/// A layer cannot hold sockets, which is told. What a mode keeps from an ordinary user himself he reads as the error says;
/// `false` if that namespace in turn cannot tell whom an ACL means.
fn committed(place: &Place, args: &[&str]) -> bool {
    let mut output = place.command(args).output().unwrap();
    if super::text(&output.stderr).contains("is read under 'unshare -r'") {
        let unshared = [&["-r", super::PLYFS], args].concat();
        output = place.command_of("unshare", unshared).output().unwrap();
        if super::text(&output.stderr).contains("whom this user namespace does not know") {
            return false;
        }
    }
    let told = super::text(&output.stderr);
    assert!(output.status.success(), "{args:?}: {told}");
    assert!(
        told.lines()
            .all(|line| line.contains("sockets are not recorded")),
        "{told}"
    );
    true
}

fn seen(place: &Place) -> Tree {
    snapshot(&place.path("m"), Listing::Strict)
}

#[track_caller]
fn same(expected: &Tree, found: &Tree, what: &str) {
    let (expected, found) = (storable(expected), storable(found));
    let paths: BTreeSet<_> = expected.keys().chain(found.keys()).collect();
    for path in paths {
        // Behind a directory that its owner may not search there is no telling what a name is; a socket is in no image.
        let unknown = |tree: &BTreeMap<String, String>| {
            tree.get(path)
                .is_some_and(|text| text.starts_with("lstat ERROR"))
        };
        if !is_root() && (unknown(&expected) || unknown(&found)) {
            continue;
        }
        assert_eq!(found.get(path), expected.get(path), "{what}: /{path}");
    }
}

fn remove(path: &Path) {
    if path.is_dir() {
        std::fs::remove_dir_all(path).unwrap();
    } else {
        std::fs::remove_file(path).unwrap();
    }
}
