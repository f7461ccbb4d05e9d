//! What `timeout=` asks the layers again, for those who change them under the mount.

use std::sync::Arc;

use super::Overlay;
use super::index::{Entry, Index, Source};
use super::node::{DirState, LookupRef, Node, Real};
use crate::layer::attr::{Attr, Kind};

impl Overlay {
    /// Whether a listing is older than what was read of the layers may be (`timeout=`).
    pub(super) fn is_outdated(&self, index: &Index) -> bool {
        self.options
            .timeout
            .is_some_and(|timeout| index.age().is_some_and(|age| age > timeout))
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
        if node.dir.is_some() {
            // Its own index is asked again, which layers it is merged from is not.
            let same = entry.kind == Kind::Directory;
            if !same {
                node.state().aliases.retain(|alias| !alias.is(parent, name));
            }
            return same;
        }
        let identity = |attr: &Attr| (attr.dev, attr.ino);
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
            node.state().aliases.retain(|alias| !alias.is(parent, name));
        }
        same
    }
}
