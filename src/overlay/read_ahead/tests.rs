//! A walk, as the adapter hears of it.

use std::fs;
use std::path::Path;

use super::*;
use crate::layer::name::{Name, OwnedName};
use crate::layer::stack::{Stack, StackConfig, UpperConfig};
use crate::overlay::Options;
use crate::overlay::options::Limits;
use crate::overlay::rename::Mode;

const ENTRIES: usize = 100;

fn overlay(lower: &Path, options: Options) -> Overlay {
    let config = StackConfig {
        lowers: vec![lower.to_path_buf().into()],
        ..StackConfig::default()
    };
    Overlay::new(Stack::open(&config).unwrap(), options).unwrap()
}

/// `top/d0` to `top/d9`, each with `sub/f` and `g`, and `other`.
fn ten_directories(base: &Path) {
    for number in 0..10 {
        let dir = base.join(format!("top/d{number}"));
        fs::create_dir_all(dir.join("sub")).unwrap();
        fs::write(dir.join("sub/f"), "f").unwrap();
        fs::write(dir.join("g"), "g").unwrap();
    }
    fs::create_dir(base.join("other")).unwrap();
}

/// `d0` and so on, without anything in them.
fn flat(base: &Path, number: usize) {
    for number in 0..number {
        fs::create_dir(base.join(format!("d{number}"))).unwrap();
    }
}

fn name(name: &str) -> OwnedName {
    Name::from_bytes(name.as_bytes()).unwrap().to_owned()
}

/// The directories in `ino`, in the order they are listed; each is looked up, as READDIRPLUS does.
fn list(overlay: &Overlay, ino: u64) -> Vec<u64> {
    let mut dirs = Vec::new();
    overlay
        .read_dir(ino, 0, true, |entry| {
            let found = entry.found.as_ref();
            dirs.extend(
                found
                    .filter(|_| entry.kind == Kind::Directory)
                    .map(|found| found.ino),
            );
            false
        })
        .unwrap();
    dirs
}

/// Lists `ino` and everything below, as `find` does, telling of each directory.
fn walk(overlay: &Overlay, ino: u64, listed: &mut impl FnMut(u64)) {
    let dirs = list(overlay, ino);
    listed(ino);
    for dir in dirs {
        walk(overlay, dir, listed);
    }
}

fn child(overlay: &Overlay, parent: u64, name: &str) -> u64 {
    overlay
        .lookup(parent, self::name(name).get())
        .unwrap()
        .unwrap()
        .ino
}

fn read_ahead(overlay: &Overlay) -> u64 {
    overlay.statistics()["cache"]["directories_read_ahead"]
        .as_u64()
        .unwrap()
}

/// Does what is to be done until there is nothing more.
fn run(overlay: &Overlay) -> Pace {
    overlay.start_walk();
    loop {
        match overlay.walk_on(ENTRIES) {
            Pace::On => {}
            pace => return pace,
        }
    }
}

#[test]
fn a_walk_is_known_after_two_guesses_and_then_never_waits_for_a_listing() {
    let base = tempfile::tempdir().unwrap();
    ten_directories(base.path());
    let overlay = overlay(base.path(), Options::default());
    let (mut before, mut asked) = (Vec::new(), 0);
    walk(&overlay, ROOT, &mut |ino| {
        let listings = overlay.statistics()["cache"]["listings_read"]
            .as_u64()
            .unwrap();
        if overlay.read_ahead(ino) {
            asked += 1;
            assert_eq!(run(&overlay), Pace::Over);
        }
        before.push(listings);
    });
    // The root, top or other, ten directories with one each: 23. The third that is listed tells.
    assert_eq!(before.len(), 23);
    assert_eq!(&before[..3], [1, 2, 3]);
    assert_eq!(
        before[3..],
        [23; 20],
        "everything was listed before it was asked for"
    );
    assert_eq!(asked, 1);
    assert_eq!(read_ahead(&overlay), 20);
}

#[test]
fn nothing_outside_of_where_the_walk_began_is_read() {
    let base = tempfile::tempdir().unwrap();
    ten_directories(base.path());
    let overlay = overlay(base.path(), Options::default());
    list(&overlay, ROOT);
    let top = child(&overlay, ROOT, "top");
    walk(&overlay, top, &mut |ino| {
        if overlay.read_ahead(ino) {
            run(&overlay);
        }
    });
    let other = overlay.node(child(&overlay, ROOT, "other")).unwrap();
    assert!(!other.dir.as_ref().unwrap().state.lock().index.complete);
    assert_eq!(read_ahead(&overlay), 18);
}

#[test]
fn listings_in_no_order_read_nothing_ahead() {
    let base = tempfile::tempdir().unwrap();
    flat(base.path(), 20);
    let overlay = overlay(base.path(), Options::default());
    let mut dirs = list(&overlay, ROOT);
    dirs.reverse();
    for dir in dirs {
        list(&overlay, dir);
        assert!(!overlay.read_ahead(dir));
    }
    assert_eq!(overlay.walk_on(ENTRIES), Pace::Over);
    assert_eq!(read_ahead(&overlay), 0);
}

#[test]
fn a_listing_by_somebody_else_interrupts_a_walk_for_two_directories() {
    let base = tempfile::tempdir().unwrap();
    flat(base.path(), 20);
    fs::create_dir_all(base.path().join("z/z")).unwrap();
    let overlay = overlay(base.path(), Options::default());
    let mut asked = Vec::new();
    let mut number = 0;
    walk(&overlay, ROOT, &mut |ino| {
        if overlay.read_ahead(ino) {
            asked.push(number);
            overlay.prepare_next(ENTRIES, &|| true);
        }
        number += 1;
        if number == 10 {
            let other = child(&overlay, child(&overlay, ROOT, "z"), "z");
            list(&overlay, other);
            overlay.read_ahead(other);
        }
    });
    // All from the third on, but for those that it takes to see a walk again.
    let missing = |asked: &[i32]| (2..22).filter(|number| !asked.contains(number)).count();
    assert!((2..=5).contains(&missing(&asked)), "{asked:?}");
    assert!(asked.iter().any(|&number| number > 12), "{asked:?}");
}

#[test]
fn directories_behind_the_first_reply_are_expected_too() {
    let base = tempfile::tempdir().unwrap();
    for number in 0..300 {
        fs::write(base.path().join(format!("f{number}")), "").unwrap();
        fs::create_dir(base.path().join(format!("d{number}"))).unwrap();
    }
    let overlay = overlay(base.path(), Options::default());
    let mut names = 0;
    // The first reply has room for two.
    overlay
        .read_dir(ROOT, 0, true, |_| {
            names += 1;
            names > 2
        })
        .unwrap();
    overlay.read_ahead(ROOT);
    let mut hits = 0;
    for dir in list(&overlay, ROOT) {
        list(&overlay, dir);
        hits += i32::from(overlay.read_ahead(dir));
    }
    assert!(hits > 290, "{hits}");
}

#[test]
fn a_directory_that_is_gone_when_its_turn_comes_ends_nothing_for_good() {
    let base = tempfile::tempdir().unwrap();
    flat(base.path(), 20);
    let overlay = overlay(base.path(), Options::default());
    let dirs = list(&overlay, ROOT);
    overlay.read_ahead(ROOT);
    for (number, &dir) in dirs.iter().enumerate() {
        if number == 8 {
            overlay.nodes.forget(dir, u64::MAX);
            overlay.node(dir).unwrap().state().aliases.clear();
            overlay.nodes.forget(dir, 1);
            continue;
        }
        list(&overlay, dir);
        if overlay.read_ahead(dir) {
            overlay.prepare_next(ENTRIES, &|| true);
        }
    }
    assert!(read_ahead(&overlay) > 10, "{}", read_ahead(&overlay));
}

/// What is in memory agrees with the layers after all, whoever was faster.
#[test]
fn changes_beside_read_ahead_are_shown_as_they_were_made() {
    let base = tempfile::tempdir().unwrap();
    let (lower, upper, work) = (
        base.path().join("lower"),
        base.path().join("upper"),
        base.path().join("work"),
    );
    for dir in [&lower, &upper, &work] {
        fs::create_dir(dir).unwrap();
    }
    for number in 0..60 {
        fs::create_dir_all(lower.join(format!("d{number}/s"))).unwrap();
        fs::write(lower.join(format!("d{number}/f")), "f").unwrap();
        fs::write(lower.join(format!("d{number}/s/g")), "g").unwrap();
    }
    let config = StackConfig {
        lowers: vec![lower.into()],
        upper: Some(UpperConfig { upper, work }),
        ..StackConfig::default()
    };
    let overlay = Overlay::new(Stack::open(&config).unwrap(), Options::default()).unwrap();
    // As if a walk were always about to come to the next directory.
    let prepare_all = || {
        let mut prepared = 0;
        let mut at = ROOT;
        while let Some(dir) = overlay.next_below(at, ROOT) {
            prepared += overlay.prepare(&dir, ENTRIES, &|| true).unwrap_or(0);
            at = dir.ino;
        }
        prepared
    };
    let prepared = std::thread::scope(|scope| {
        let changes = scope.spawn(|| {
            for number in 0..60 {
                let dir = child(&overlay, ROOT, &format!("d{number}"));
                match number % 3 {
                    0 => overlay.unlink(dir, name("f").get()).unwrap(),
                    1 => {
                        let (from, to) = (name("f"), name("moved"));
                        overlay
                            .rename((dir, from.get()), (dir, to.get()), Mode::Replace)
                            .unwrap();
                    }
                    _ => {
                        let sub = child(&overlay, dir, "s");
                        overlay.unlink(sub, name("g").get()).unwrap();
                        overlay.remove_dir(dir, name("s").get()).unwrap();
                    }
                }
            }
        });
        loop {
            let last = changes.is_finished();
            let prepared = prepare_all();
            if last {
                return prepared;
            }
        }
    });
    assert!(prepared > 0);
    for number in 0..60 {
        let dir = child(&overlay, ROOT, &format!("d{number}"));
        let has = |file: &str| overlay.lookup(dir, name(file).get()).unwrap().is_some();
        let shown = (has("f"), has("moved"), has("s"));
        let made = [
            (false, false, true),
            (false, true, true),
            (true, false, false),
        ];
        assert_eq!(shown, made[number % 3], "d{number}");
    }
}

#[test]
fn with_a_small_cache_the_lead_is_small_and_the_walk_is_waited_for() {
    let base = tempfile::tempdir().unwrap();
    ten_directories(base.path());
    let limits = Limits {
        nodes: 8,
        ..Limits::default()
    };
    let options = Options {
        limits,
        ..Options::default()
    };
    let overlay = overlay(base.path(), options);
    let mut waited = Vec::new();
    walk(&overlay, ROOT, &mut |ino| {
        if overlay.read_ahead(ino)
            && let Pace::Wait(at) = run(&overlay)
        {
            assert_eq!(at, ino);
            waited.push(ino);
            overlay.pause_walk();
        }
    });
    assert!(waited.len() > 10, "{waited:?}");
}

#[test]
fn a_paused_walk_goes_on_when_it_is_asked_for() {
    let base = tempfile::tempdir().unwrap();
    ten_directories(base.path());
    let overlay = overlay(base.path(), Options::default());
    let mut listed = 0;
    walk(&overlay, ROOT, &mut |ino| {
        listed += 1;
        let asked = overlay.read_ahead(ino);
        assert_eq!(asked, listed > 2 && read_ahead(&overlay) < 20, "{listed}");
        if asked {
            assert_eq!(overlay.walk_on(ENTRIES), Pace::Over);
            overlay.start_walk();
            assert_eq!(overlay.walk_on(ENTRIES), Pace::On);
            overlay.pause_walk();
            assert_eq!(overlay.walk_on(ENTRIES), Pace::Over);
        }
    });
}

#[test]
fn what_is_in_memory_and_what_may_change_is_not_read_ahead() {
    let base = tempfile::tempdir().unwrap();
    assert!(overlay(base.path(), Options::default()).can_read_ahead());
    let timeout = Some(std::time::Duration::from_secs(1));
    let options = Options {
        timeout,
        ..Options::default()
    };
    assert!(!overlay(base.path(), options).can_read_ahead());
}
