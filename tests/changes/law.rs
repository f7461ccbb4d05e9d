//! Random changes: what is told of them is what a comparison of the whole trees finds, and as a layer over the old
//! tree they give the new one.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use rustix::fs::FileType;

use plyfs::changes::owner::Owners;

use super::{apply_layer, plyfs, tar_names, write_layer};
use crate::model::exec::Hands;
use crate::model::mounts::{Engine, Mounted, Stack};
use crate::model::script::{Build, Op, Step};
use crate::model::snapshot::{Entry, Listing, Tree, snapshot, timeless};
use crate::model::{generate, layers};
use crate::support::fixture::run;
use crate::support::run::{base_dir, is_root, requires};
use crate::support::tree::lines as in_lines;

#[test]
fn random_changes_are_told_and_recorded_exactly() {
    requires!(
        is_root(),
        "the model gives files to others and makes devices"
    );
    explore(&Engine::plyfs(), false);
    explore(&Engine::plyfs(), true);
}

#[test]
fn random_changes_in_an_upper_of_the_kernel_are_told_and_recorded_exactly() {
    requires!(
        is_root(),
        "the kernel needs root for redirect_dir and index"
    );
    explore(&Engine::Kernel, false);
    explore(&Engine::Kernel, true);
}

fn explore(engine: &Engine, metacopy: bool) {
    let given = std::env::var("PLYFS_CHANGES_SEED")
        .ok()
        .map(|seed| seed.parse().unwrap());
    let runs = if given.is_some() { 1 } else { 4 };
    for _ in 0..runs {
        let seed = given.unwrap_or_else(|| fastrand::u64(..1_000_000_000));
        println!("PLYFS_CHANGES_SEED={seed} {engine:?} metacopy={metacopy}");
        Trial::new(engine, metacopy).run(seed);
    }
}

struct Trial {
    base: tempfile::TempDir,
    engine: Engine,
    options: String,
}

impl Trial {
    fn new(engine: &Engine, metacopy: bool) -> Self {
        let onoff = if metacopy { "on" } else { "off" };
        Self {
            base: tempfile::tempdir_in(base_dir()).unwrap(),
            engine: engine.clone(),
            options: format!("redirect_dir=on,index=on,metacopy={onoff}"),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.base.path().join(name)
    }

    fn stack(&self, upper: &str, work: &str) -> Stack {
        Stack {
            lowers: layers::directories(self.base.path()).split_off(1),
            upper: self.path(upper),
            work: self.path(work),
            options: self.options.clone(),
        }
    }

    fn run(&self, seed: u64) {
        let steps = generate::script(seed, 120);
        for step in &steps {
            println!("{step:?}");
        }
        let objects: Vec<&Build> = steps.iter().filter_map(built).collect();
        layers::build(self.base.path(), &objects).unwrap();

        let merged = self.path("merged");
        let empty = self.stack("no-upper", "no-work");
        let mounted = Mounted::new(&Engine::plyfs(), &empty, &merged).unwrap();
        let before = snapshot(&merged, Listing::Strict);
        let copy = self.path("copy");
        run(
            "cp",
            &["-a", merged.to_str().unwrap(), copy.to_str().unwrap()],
        );
        mounted.unmount().unwrap();

        let stack = self.stack("upper", "work");
        let mounted = Mounted::new(&self.engine, &stack, &merged).unwrap();
        let mut hands = Hands::new(&merged);
        for step in &steps {
            if let Step::Op(op, caller) = step
                && !matches!(op, Op::Remount | Op::Restack { .. })
            {
                hands.perform_as(*caller, op);
            }
        }
        hands.close_all();
        mounted.unmount().unwrap();
        // With another look, for an engine that tells of an inode's names only what it knows by heart.
        let mounted = Mounted::new(&Engine::plyfs(), &stack, &merged).unwrap();
        let after = snapshot(&merged, Listing::Strict);
        self.check_diff(&stack, &before, &after);
        mounted.unmount().unwrap();
        self.check_layer(&stack, &copy, &after);
    }

    fn check_diff(&self, stack: &Stack, before: &Tree, after: &Tree) {
        let (upper, work) = (text(&stack.upper), text(&stack.work));
        let mut arguments = vec!["diff", "--work", work, upper];
        for lower in &stack.lowers {
            arguments.extend(["--lower", text(lower)]);
        }
        let told = plyfs(&arguments);
        assert_eq!(told, naive(before, after), "diff of the upper alone");
        assert_eq!(
            plyfs(&["diff", upper]),
            told,
            "diff of the upper of a mount"
        );
        let merged = self.path("merged");
        assert_eq!(plyfs(&["diff", text(&merged)]), told, "diff of the mount");
    }

    fn check_layer(&self, stack: &Stack, copy: &Path, after: &Tree) {
        let all = [std::slice::from_ref(&stack.upper), &stack.lowers[..]].concat();
        let tar = self.path("layer.tar");
        write_layer(&all, Some(&stack.work), Owners::AsOnDisk, &tar);
        let again = self.path("again.tar");
        write_layer(&all, Some(&stack.work), Owners::AsOnDisk, &again);
        assert!(
            std::fs::read(&tar).unwrap() == std::fs::read(&again).unwrap(),
            "not deterministic"
        );
        apply_layer(&tar, copy);
        let found = storable(&snapshot(copy, Listing::Strict));
        let expected = storable(after);
        let paths: BTreeSet<_> = expected.keys().chain(found.keys()).collect();
        for path in paths {
            let names = || tar_names(&tar).join("\n");
            assert_eq!(
                found.get(path),
                expected.get(path),
                "/{path} in\n{}",
                names()
            );
        }
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn built(step: &Step) -> Option<&Build> {
    match step {
        Step::Build(build) => Some(build),
        Step::Op(..) => None,
    }
}

/// Without what a layer does not record: sockets, and the root itself. Link counts are those of the old tree's inodes,
/// some names of which may be hidden.
pub(crate) fn storable(tree: &Tree) -> std::collections::BTreeMap<String, String> {
    tree.iter()
        .filter(|(path, entry)| !path.is_empty() && entry.kind != FileType::Socket)
        .map(|(path, entry)| (path.clone(), without(&entry.text, &["nlink="])))
        .collect()
}

fn without(text: &str, prefixes: &[&str]) -> String {
    let words = text
        .split(' ')
        .filter(|word| !prefixes.iter().any(|prefix| word.starts_with(prefix)));
    words.collect::<Vec<_>>().join(" ")
}

/// What `docker diff` would print, by looking at everything.
fn naive(before: &Tree, after: &Tree) -> String {
    let mut lines: BTreeSet<(String, char)> = BTreeSet::new();
    let parent = |path: &str| {
        path.rsplit_once('/')
            .map_or("", |(parent, _)| parent)
            .to_owned()
    };
    let paths: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    for path in paths.into_iter().filter(|path| !path.is_empty()) {
        let letter = match (before.get(path), after.get(path)) {
            (Some(then), Some(now)) if essence(then) == essence(now) => continue,
            (Some(_), Some(_)) => 'C',
            (None, Some(_)) => 'A',
            // Only the top of what is gone, and only where there is still a directory it is gone from.
            (Some(_), None) => {
                let above = after.get(&parent(path));
                if above.is_none_or(|above| above.kind != FileType::Directory) {
                    continue;
                }
                'D'
            }
            (None, None) => unreachable!(),
        };
        lines.insert((path.clone(), letter));
        let mut above = parent(path);
        while !above.is_empty() {
            if before.contains_key(&above) {
                lines.insert((above.clone(), 'C'));
            }
            above = parent(&above);
        }
    }
    in_lines(&lines, |(path, letter)| format!("{letter} /{path}\n"))
}

/// What makes a change.
fn essence(entry: &Entry) -> String {
    let text = entry.text.split(" same inode as ").next().unwrap();
    let text = without(text, &["nlink="]);
    if entry.kind == FileType::Directory {
        timeless(&text)
    } else {
        text
    }
}
