//! Two names of one lower inode, one looked up while the other is copied up.

use std::fs;
use std::path::Path;

use super::*;
use crate::layer::stack::{Stack, StackConfig, UpperConfig};
use crate::overlay::Options;
use crate::overlay::copy_up::Data;
use crate::overlay::node::ROOT;

/// `one` and `two` are one inode of the lower.
fn overlay(base: &Path) -> Overlay {
    for dir in ["lower", "upper", "work"] {
        fs::create_dir(base.join(dir)).unwrap();
    }
    fs::write(base.join("lower/one"), "data").unwrap();
    fs::hard_link(base.join("lower/one"), base.join("lower/two")).unwrap();
    let config = StackConfig {
        lowers: vec![base.join("lower").into()],
        upper: Some(UpperConfig {
            upper: base.join("upper"),
            work: base.join("work"),
        }),
        ..StackConfig::default()
    };
    let overlay = Overlay::new(Stack::open(&config).unwrap(), Options::default()).unwrap();
    assert!(
        overlay.index_fd.is_some(),
        "this file system cannot hold the index"
    );
    overlay
}

fn name(name: &str) -> OwnedName {
    Name::from_bytes(name.as_bytes()).unwrap().to_owned()
}

/// The node of `name`, as the kernel would look it up.
fn look_up(overlay: &Overlay, file: &str) -> Arc<Node> {
    let found = overlay.lookup(ROOT, name(file).get()).unwrap().unwrap();
    overlay.node(found.ino).unwrap()
}

/// What the layers show at `file` now, not yet a node.
fn resolve(overlay: &Overlay, file: &str) -> Resolved {
    let root = overlay.node(ROOT).unwrap();
    let mut state = root.dir.as_ref().unwrap().state.lock();
    overlay.build_index(&root, &mut state).unwrap();
    let entry = state.index.find(name(file).get()).unwrap().clone();
    assert_eq!(entry.source, Source::Lower(0));
    overlay.resolve_lower(&state, &entry, 0).unwrap().unwrap()
}

fn admit(overlay: &Overlay, file: &str, resolved: Resolved) -> Arc<Node> {
    let root = overlay.node(ROOT).unwrap();
    overlay.admit(&root, &name(file), resolved).keep()
}

#[test]
fn a_name_resolved_before_the_copy_up_of_its_inode_and_admitted_after_it_is_no_second_node() {
    let base = tempfile::tempdir().unwrap();
    let overlay = overlay(base.path());
    let one = look_up(&overlay, "one");
    let two = resolve(&overlay, "two");
    overlay.copy_up(&one, Data::All).unwrap();
    assert!(matches!(two.state.real, Real::Lower(_)) && one.in_upper());
    let two = admit(&overlay, "two", two);
    assert!(
        Arc::ptr_eq(&one, &two),
        "two nodes: {} and {}",
        one.ino,
        two.ino
    );
    assert_eq!(one.state().aliases.len(), 2);
}

#[test]
fn a_name_resolved_to_a_copy_that_its_node_does_not_know_of_yet_is_no_second_node() {
    let base = tempfile::tempdir().unwrap();
    let overlay = overlay(base.path());
    let one = look_up(&overlay, "one");
    let (before, lower) = {
        let state = one.state();
        (state.real.clone(), state.attr)
    };
    overlay.copy_up(&one, Data::All).unwrap();
    let two = resolve(&overlay, "two");
    assert!(matches!(two.state.real, Real::Indexed(_)));
    // Published, but the last step of the copy-up is still to come.
    {
        let mut state = one.state();
        (state.real, state.attr) = (before, lower);
    }
    let two = admit(&overlay, "two", two);
    assert!(
        Arc::ptr_eq(&one, &two),
        "two nodes: {} and {}",
        one.ino,
        two.ino
    );
}

#[test]
fn files_of_one_name_only_are_never_taken_for_each_other() {
    let base = tempfile::tempdir().unwrap();
    let overlay = overlay(base.path());
    fs::write(base.path().join("lower/other"), "other").unwrap();
    let one = look_up(&overlay, "one");
    let other = look_up(&overlay, "other");
    overlay.copy_up(&one, Data::All).unwrap();
    assert_ne!(one.ino, other.ino);
    assert!(!Overlay::is_one_inode(
        &one,
        &resolve(&overlay, "other").state
    ));
}
