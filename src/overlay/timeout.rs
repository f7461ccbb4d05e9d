//! What `timeout=` asks the layers again, for those who change them under the mount.

use std::sync::Arc;

use rustix::io::Errno;

use super::Overlay;
use super::index::{Entry, Index, Source};
use super::node::{Dir, DirState, LookupRef, Node, Real};
use crate::layer::attr::{Attr, Kind};
use crate::layer::name::Name;

impl Overlay {
    /// Whether a listing is older than what was read of the layers may be (`timeout=`).
    pub(super) fn is_outdated(&self, index: &Index) -> bool {
        self.options
            .timeout
            .is_some_and(|timeout| index.age().is_some_and(|age| age > timeout))
    }

    /// Brings what was listed before up to date. Names that stay keep their cookies, so that whoever is in the middle of
    /// them goes on at the right place.
    pub(super) fn update_index(&self, node: &Arc<Node>, index: &mut Index, now: &Index) {
        let gone = index
            .iter()
            .filter(|old| now.find(old.name.get()).is_none());
        let gone: Vec<_> = gone.map(|old| old.name.clone()).collect();
        for name in gone {
            self.drop_entry(node, index, name.get());
        }
        for new in now.iter() {
            index.refresh(new);
        }
    }

    /// Takes a name that is gone out of the index and away from its node: another object may get it.
    pub(super) fn drop_entry(&self, parent: &Arc<Node>, index: &mut Index, name: Name<'_>) {
        let known = index
            .remove(name)
            .and_then(|entry| self.nodes.get(entry.node));
        if let Some(known) = known {
            known.remove_alias(parent, name);
        }
    }

    /// With `timeout=`, whether the name still leads to the object of the node; if not, the node loses the name.
    pub(super) fn is_still_there(
        &self,
        known: &LookupRef<'_>,
        parent: &Arc<Node>,
        state: &DirState,
        entry: &Entry,
    ) -> bool {
        let node = known.node();
        if self.options.timeout.is_none() {
            return true;
        }
        let same = match &node.dir {
            Some(dir) => entry.kind == Kind::Directory && is_same_dir(dir, state, entry),
            None => self.is_same_file(node, state, entry),
        };
        if !same {
            node.remove_alias(parent, entry.name.get());
        }
        same
    }

    fn is_same_file(&self, node: &Arc<Node>, state: &DirState, entry: &Entry) -> bool {
        let before = identity(&node.state().attr);
        // The name may have appeared in a layer above.
        if let (Real::Lower(file), Source::Lower(position)) = (&node.state().real, entry.source) {
            let shown = state.lowers.get(usize::from(position));
            if shown.is_none_or(|dir| dir.lower().position != file.dir.lower().position) {
                return false;
            }
        }
        let place = self.place(node);
        let now = place.and_then(|place| self.stat(&place));
        now.is_ok_and(|attr| identity(&attr) == before)
    }
}

/// The topmost lower part of a directory is still what its name leads to. Its own index is asked again; which other
/// layers it is merged from is not.
fn is_same_dir(dir: &Dir, state: &DirState, entry: &Entry) -> bool {
    let Source::Lower(position) = entry.source else {
        return true;
    };
    let Some(above) = state.lowers.get(usize::from(position)) else {
        return true;
    };
    let known = dir.state.lock().lowers.first().map(|own| own.stat_self());
    match (above.stat(entry.name.get()), known) {
        (Ok(now), Some(Ok(known))) => identity(&now) == identity(&known),
        (Err(Errno::NOENT), _) => false,
        _ => true,
    }
}

fn identity(attr: &Attr) -> (u64, u64) {
    (attr.dev, attr.ino)
}
