//! readdir(3): getdents64(2), telldir(3), seekdir(3), rewinddir(3).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;

use rustix::fs::{AtFlags, Dir, FileType, SeekFrom, seek, unlinkat};

use crate::support::tree::lines;
use crate::support::{Fixture, Mounted, has_redirects};

/// Name, type, inode number and the offset after each entry.
fn list(dir: &File) -> Vec<(String, FileType, u64, i64)> {
    seek(dir, SeekFrom::Start(0)).unwrap();
    let entries = Dir::read_from(dir).unwrap().map(|entry| {
        let entry = entry.unwrap();
        let name = entry.file_name().to_string_lossy().into_owned();
        (name, entry.file_type(), entry.ino(), entry.offset())
    });
    entries.collect()
}

fn many(fs: &Mounted, dir: &str, names: impl Iterator<Item = String>) {
    for name in names {
        File::create(fs.path(dir).join(name)).unwrap();
    }
}

fn numbered(prefix: &str, count: u32) -> String {
    lines(0..count, |number| format!("d/{prefix}{number}\n"))
}

#[test]
fn a_name_in_several_layers_is_listed_once() {
    let fs = Fixture::new()
        .lower("d/a; d/b; d/c/x")
        .lower("d/b; d/c/y; d/e")
        .upper("d/a; d/f")
        .mount();
    assert_eq!(fs.names("d"), ["a", "b", "c", "e", "f"]);
}

#[test]
fn whiteouts_and_what_they_hide_are_not_listed() {
    let fs = Fixture::new()
        .lower("d/a whiteout; d/b")
        .lower("d/a; d/c")
        .upper("d/c whiteout; d/u")
        .mount();
    assert_eq!(fs.names("d"), ["b", "u"]);
}

#[test]
fn the_types_in_the_listing_are_those_of_stat() {
    let fs = Fixture::new()
        .lower("d/f; d/g/; d/l -> f; d/p fifo; d/s socket")
        .upper("d/u; d/v/")
        .mount();
    let types: BTreeMap<_, _> = list(&fs.open("d"))
        .into_iter()
        .map(|entry| (entry.0, entry.1))
        .collect();
    for (name, kind) in types {
        assert_eq!(
            kind,
            FileType::from_raw_mode(fs.stat(format!("d/{name}")).st_mode),
            "{name}"
        );
    }
}

#[test]
fn the_inode_numbers_in_the_listing_are_those_of_stat() {
    let fs = Fixture::new()
        .lower("d/f 'f'; d/g/x; d/l -> f; d/h 'h'; d/same 'top'")
        .lower("d/low; d/g/y; d/same 'bottom'")
        .upper("d/u; d/same 'upper'")
        .mount();
    fs.append("d/f", "+");
    fs.chmod("d/g", 0o700);
    fs.rename("d/h", "d/renamed");
    for (name, _, inode, _) in list(&fs.open("d")) {
        assert_eq!(inode, fs.inode(format!("d/{name}")), "{name}");
    }
}

#[test]
fn dot_and_dot_dot_are_listed_once() {
    let fs = Fixture::new().lower("d/e/a").lower("d/e/b").mount();
    let names: Vec<_> = list(&fs.open("d/e"))
        .into_iter()
        .map(|entry| entry.0)
        .collect();
    for name in [".", "..", "a", "b"] {
        assert_eq!(
            names.iter().filter(|listed| *listed == name).count(),
            1,
            "{name} in {names:?}"
        );
    }
}

#[test]
fn ten_thousand_entries_are_each_listed_once() {
    let mut fs = Fixture::new()
        .lower(&numbered("low", 2000))
        .lower(&numbered("below", 2000))
        .mount();
    many(&fs, "d", (0..6000).map(|number| format!("up{number}")));
    let names = fs.names("d");
    assert_eq!(names.len(), 10_000);
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), 10_000);
    fs.remount();
    assert_eq!(fs.names("d"), names);
}

#[test]
fn deleting_each_entry_as_it_is_read_misses_none_and_repeats_none() {
    let mut fs = Fixture::new()
        .lower(&numbered("low", 700))
        .lower(&numbered("below", 300))
        .mount();
    many(&fs, "d", (0..1000).map(|number| format!("up{number}")));
    let dir = fs.open("d");
    let mut seen = BTreeSet::new();
    for entry in Dir::read_from(&dir).unwrap() {
        let name = entry.unwrap().file_name().to_owned();
        if name.to_bytes().starts_with(b".") {
            continue;
        }
        assert!(seen.insert(name.clone()), "{name:?} twice");
        unlinkat(&dir, &name, AtFlags::empty()).unwrap();
    }
    assert_eq!(seen.len(), 2000);
    drop(dir);
    fs.rmdir("d");
    fs.assert_state("", "d whiteout");
}

#[test]
fn entries_that_stay_are_listed_once_while_others_come_and_go() {
    let fs = Fixture::new().lower(&numbered("stay", 1000)).mount();
    let dir = fs.open("d");
    let mut seen = Vec::new();
    for (number, entry) in Dir::read_from(&dir).unwrap().enumerate() {
        seen.push(entry.unwrap().file_name().to_string_lossy().into_owned());
        let name = fs.path(format!("d/passing{number}"));
        File::create(&name).unwrap();
        if number % 2 == 0 {
            std::fs::remove_file(name).unwrap();
        }
    }
    let mut stayed: Vec<_> = seen
        .iter()
        .filter(|name| name.starts_with("stay"))
        .collect();
    stayed.sort();
    let all = stayed.len();
    stayed.dedup();
    assert_eq!((all, stayed.len()), (1000, 1000));
}

#[test]
fn seekdir_to_a_told_position_goes_on_with_the_same_entries() {
    let fs = Fixture::new()
        .lower(&numbered("low", 300))
        .upper(&numbered("up", 300))
        .mount();
    let dir = fs.open("d");
    let all = list(&dir);
    for at in [0, 1, 7, 300, all.len() - 2] {
        seek(&dir, SeekFrom::Start(u64::try_from(all[at].3).unwrap())).unwrap();
        let mut buffer = Vec::with_capacity(4096);
        let mut raw = rustix::fs::RawDir::new(&dir, buffer.spare_capacity_mut());
        let next = raw
            .next()
            .unwrap()
            .unwrap()
            .file_name()
            .to_string_lossy()
            .into_owned();
        assert_eq!(next, all[at + 1].0, "after {at}");
    }
}

#[test]
fn rewinddir_shows_what_was_created_and_hides_what_was_deleted_meanwhile() {
    let fs = Fixture::new().lower("d/a; d/b").mount();
    let dir = fs.open("d");
    let names = |dir: &File| -> BTreeSet<String> {
        list(dir)
            .into_iter()
            .map(|e| e.0)
            .filter(|name| !name.starts_with('.'))
            .collect()
    };
    assert_eq!(names(&dir), ["a", "b"].map(String::from).into());
    fs.unlink("d/a");
    fs.write("d/c", "");
    assert_eq!(names(&dir), ["b", "c"].map(String::from).into());
    fs.rename("d/b", "d/z");
    assert_eq!(names(&dir), ["c", "z"].map(String::from).into());
}

#[test]
fn a_directory_opened_before_its_copy_up_lists_what_is_created_later() {
    let fs = Fixture::new().lower("d/a").mount();
    let dir = fs.open("d");
    assert_eq!(list(&dir).len(), 3);
    fs.write("d/new", "");
    assert!(list(&dir).iter().any(|entry| entry.0 == "new"));
}

#[test]
fn a_directory_made_again_lists_nothing_of_the_old_one() {
    let mut fs = Fixture::new().lower("d/a; d/e/f").mount();
    assert_eq!(fs.names("d"), ["a", "e"]);
    fs.remove_tree("d");
    fs.mkdir("d");
    assert!(fs.names("d").is_empty());
    fs.assert_state("d/", "d/ opaque");
}

#[test]
fn the_listing_of_a_removed_directory_ends_at_once() {
    let fs = Fixture::new().lower("d/f").mount();
    let dir = fs.open("d");
    fs.remove_tree("d");
    seek(&dir, SeekFrom::Start(0)).unwrap();
    let left: Vec<_> = Dir::read_from(&dir)
        .map(|dir| {
            dir.map_while(Result::ok)
                .map(|entry| entry.file_name().to_owned())
                .collect()
        })
        .unwrap_or_default();
    assert!(
        left.iter().all(|name| name.to_bytes().starts_with(b".")),
        "{left:?}"
    );
}

#[test]
fn two_readers_of_one_directory_do_not_disturb_each_other() {
    let fs = Fixture::new()
        .lower(&numbered("low", 500))
        .upper(&numbered("up", 500))
        .mount();
    let (first, second) = (fs.open("d"), fs.open("d"));
    let pairs = Dir::read_from(&first)
        .unwrap()
        .zip(Dir::read_from(&second).unwrap());
    let equal = pairs.map(|(a, b)| a.unwrap().file_name() == b.unwrap().file_name());
    assert_eq!(equal.filter(|equal| *equal).count(), 1002);
}

#[test]
fn find_and_du_walk_a_merged_tree_without_a_complaint() {
    let fs = Fixture::new()
        .lower("a/b/c/f '12'; a/b/g")
        .lower("a/b/c/h; a/i/")
        .upper("a/u/v 'x'")
        .mount();
    assert_eq!(fs.sh("find . -type f | wc -l"), "4");
    assert_eq!(fs.sh("find . -type d | wc -l"), "6");
    assert_eq!(fs.sh("ls -R . | wc -l"), "20");
    fs.sh("du -a .");
}

/// Lists `dir` and everything below by type alone, as `find` does; answers how many names there were.
fn walk(dir: &std::path::Path) -> usize {
    // What is removed meanwhile is no longer there to be listed.
    let Ok(entries) = std::fs::read_dir(dir) else {
        return 0;
    };
    let entries = entries.filter_map(Result::ok);
    entries
        .map(|entry| {
            let directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
            1 + if directory { walk(&entry.path()) } else { 0 }
        })
        .sum()
}

#[test]
fn walks_beside_changes_disturb_nobody_and_see_every_name_in_the_end() {
    let moves = has_redirects();
    let tree: Vec<_> = (0..40).map(|n| format!("t/d{n}/s/f; t/d{n}/g")).collect();
    let mut fs = Fixture::new().lower(&tree.join("; ")).mount();
    std::thread::scope(|scope| {
        let changes = scope.spawn(|| {
            for n in 0..40 {
                match n % 4 {
                    0 => fs.remove_tree(format!("t/d{n}")),
                    1 if moves => fs.rename(format!("t/d{n}/s"), format!("t/d{n}/r")),
                    1 => fs.rename(format!("t/d{n}/s/f"), format!("t/d{n}/r")),
                    2 => fs.write(format!("t/d{n}/new"), "new"),
                    _ => fs.rename(format!("t/d{n}/g"), format!("t/d{n}/s/g")),
                }
                // Long enough for a walk that meets no other request.
                std::thread::sleep(std::time::Duration::from_millis(3));
            }
        });
        let walk_meanwhile = || {
            while !changes.is_finished() {
                walk(&fs.path("t"));
            }
        };
        std::thread::scope(|walkers| {
            walkers.spawn(walk_meanwhile);
            walk_meanwhile();
        });
    });
    let now: Vec<_> = (0..40)
        .filter_map(|n| match n % 4 {
            0 => None,
            1 if moves => Some(format!("t/d{n}/r/f; t/d{n}/g")),
            1 => Some(format!("t/d{n}/r; t/d{n}/s/; t/d{n}/g")),
            2 => Some(format!("t/d{n}/s/f; t/d{n}/g; t/d{n}/new 'new'")),
            _ => Some(format!("t/d{n}/s/f; t/d{n}/s/g")),
        })
        .collect();
    assert_eq!(walk(&fs.path("t")), 30 * 4 + 10);
    fs.assert_merged(&now.join("; "));
    fs.remount();
    fs.assert_merged(&now.join("; "));
}
