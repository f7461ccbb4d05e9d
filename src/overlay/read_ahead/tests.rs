//! A walk, as the adapter hears of it.

use std::fs;
use std::path::Path;

use super::*;
use crate::layer::stack::{Stack, StackConfig};
use crate::overlay::Options;
use crate::overlay::options::Limits;

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
    let name = crate::layer::name::Name::from_bytes(name.as_bytes()).unwrap();
    overlay.lookup(parent, name).unwrap().unwrap().ino
}

fn read_ahead(overlay: &Overlay) -> u64 {
    overlay.statistics()["cache"]["directories_read_ahead"]
        .as_u64()
        .unwrap()
}

/// Does what is to be done until there is nothing more.
fn run(overlay: &Overlay) -> Pace {
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
    ten_directories(base.path());
    let overlay = overlay(base.path(), Options::default());
    let top = child(&overlay, ROOT, "top");
    let mut dirs = list(&overlay, top);
    dirs.reverse();
    for dir in dirs {
        list(&overlay, dir);
        assert!(!overlay.read_ahead(dir));
    }
    assert_eq!(overlay.walk_on(ENTRIES), Pace::Over);
    assert_eq!(read_ahead(&overlay), 0);
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
        overlay.read_ahead(ino);
        if let Pace::Wait(at) = run(&overlay) {
            assert_eq!(at, ino);
            waited.push(ino);
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
