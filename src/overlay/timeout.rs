//! What `timeout=` asks the layers again, for those who change them under the mount.

use std::sync::Arc;

use rustix::io::Errno;

use super::Overlay;
use super::index::{Entry, Index, Source};
use super::node::{DirState, LookupRef, Node, Real};
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
            let mut new = new.clone();
            match index.find(new.name.get()) {
                Some(old) => {
                    new.node = old.node;
                    let name = new.name.clone();
                    index.update(name.get(), |entry| *entry = new);
                }
                None => index.add(new),
            }
        }
    }

    /// Takes a name that is gone out of the index and away from its node: another object may get it.
    pub(super) fn drop_entry(&self, parent: &Arc<Node>, index: &mut Index, name: Name<'_>) {
        let known = index
            .remove(name)
            .and_then(|entry| self.nodes.get(entry.node));
        if let Some(known) = known {
            lose_name(&known, parent, name);
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
        let name = entry.name.get();
        let identity = |attr: &Attr| (attr.dev, attr.ino);
        if let Some(dir) = &node.dir {
            // Its own index is asked again. Which other layers it is merged from is not.
            let same = entry.kind == Kind::Directory
                && match entry.source {
                    Source::Lower(position) => {
                        let now = state.lowers.get(usize::from(position));
                        let now = now.map(|above| above.stat(name));
                        let known = dir.state.lock().lowers.first().map(|own| own.stat_self());
                        match (now, known) {
                            (Some(Ok(now)), Some(Ok(known))) => identity(&now) == identity(&known),
                            (Some(Err(Errno::NOENT)), _) => false,
                            _ => true,
                        }
                    }
                    _ => true,
                };
            if !same {
                lose_name(node, parent, name);
            }
            return same;
        }
        let before = identity(&node.state().attr);
        // The name may have appeared in a layer above.
        let layer = match (&node.state().real, entry.source) {
            (Real::Lower(file), Source::Lower(position)) => {
                let shown = state.lowers.get(usize::from(position));
                shown.is_some_and(|dir| dir.lower().position == file.dir.lower().position)
            }
            _ => true,
        };
        let same = layer
            && self
                .place(node)
                .and_then(|place| self.stat(&place))
                .is_ok_and(|attr| identity(&attr) == before);
        if !same {
            lose_name(node, parent, name);
        }
        same
    }
}

fn lose_name(node: &Node, parent: &Arc<Node>, name: Name<'_>) {
    node.state().aliases.retain(|alias| !alias.is(parent, name));
}
