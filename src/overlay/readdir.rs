//! Merged listings: building the index of a directory, and reading from it.

use std::os::fd::AsFd;
use std::sync::Arc;

use rustc_hash::FxHashSet;
use rustix::io::{Errno, Result};

use super::index::{Entry, Index, Parts, Source};
use super::node::{DirState, LookupRef, Node, ROOT};
use super::{Found, Overlay};
use crate::layer::at::At;
use crate::layer::attr::Kind;
use crate::layer::lower::{Listed, LowerDir};
use crate::layer::mark::{self, AufsName};
use crate::layer::name::{Name, OwnedName};

/// Cookie of `.`.
const DOT: u64 = 1;
/// Cookie of `..`.
const DOT_DOT: u64 = 2;

/// One name of a listing.
#[derive(Debug)]
pub struct Listing<'a> {
    /// The name; `.` and `..` included.
    pub name: &'a [u8],
    /// Where to go on after it.
    pub cookie: u64,
    /// Its number, 0 if it has none yet.
    pub ino: u64,
    /// What it is.
    pub kind: Kind,
    /// Number and attributes, if they were asked for and could be had. Not for `.` and `..`.
    pub found: Option<Found>,
}

impl Overlay {
    /// Lists the directory `ino` from behind the cookie `after`, calling `add` until it answers `true` (full). With
    /// `plus`, entries come with attributes, each counting as a lookup if it was taken.
    pub fn read_dir(
        &self,
        ino: u64,
        after: u64,
        plus: bool,
        mut add: impl FnMut(&Listing<'_>) -> bool,
    ) -> Result<()> {
        let _names = self.names.read();
        let node = self.node(ino)?;
        let dir = node.dir.as_ref().ok_or(Errno::NOTDIR)?;
        let parent = match node.state().aliases.first() {
            Some(alias) => alias.parent.ino,
            None => ROOT,
        };
        for (name, cookie, ino) in [(&b"."[..], DOT, node.ino), (&b".."[..], DOT_DOT, parent)] {
            let dots = Listing {
                name,
                cookie,
                ino,
                kind: Kind::Directory,
                found: None,
            };
            if after < cookie && add(&dots) {
                return Ok(());
            }
        }
        let mut state = dir.state.lock();
        if after == 0 && self.is_outdated(&state.index) {
            self.build_index(&node, &mut state)?;
        }
        self.complete_index(&node, &mut state)?;
        // A batch at a time, because finding an entry's attributes changes the index.
        let mut after = after;
        loop {
            let batch: Vec<(u64, Entry)> = state
                .index
                .after(after)
                .take(64)
                .map(|(cookie, entry)| (cookie, entry.clone()))
                .collect();
            if batch.is_empty() {
                return Ok(());
            }
            for (cookie, entry) in batch {
                after = cookie;
                if self.list_entry(&node, &mut state, cookie, &entry, plus, &mut add)? {
                    return Ok(());
                }
            }
        }
    }

    fn list_entry(
        &self,
        node: &Arc<Node>,
        state: &mut DirState,
        cookie: u64,
        entry: &Entry,
        plus: bool,
        add: &mut impl FnMut(&Listing<'_>) -> bool,
    ) -> Result<bool> {
        let mut listing = Listing {
            name: entry.name.get().bytes(),
            cookie,
            ino: entry.node,
            kind: entry.kind,
            found: None,
        };
        if !plus {
            if listing.ino == 0 {
                listing.ino = self.number_for_listing(node, state, entry)?;
            }
            return Ok(add(&listing));
        }
        let child = match self.child(node, state, entry.name.get()) {
            // It went away underneath us, which a lower layer must not do: leave it out.
            Ok(None) => return Ok(false),
            Ok(Some(child)) => child,
            Err(error) => {
                tracing::debug!(name = ?entry.name, %error, "listed without attributes");
                return Ok(add(&listing));
            }
        };
        listing.ino = child.node().ino;
        listing.kind = child.node().kind;
        listing.found = self.describe(&child).ok();
        let full = add(&listing);
        if !full && listing.found.is_some() {
            child.keep();
        }
        Ok(full)
    }

    /// The number a plain listing shows: that of the node, which is made for it.
    fn number_for_listing(
        &self,
        node: &Arc<Node>,
        state: &mut DirState,
        entry: &Entry,
    ) -> Result<u64> {
        let child: Option<LookupRef<'_>> = self.child(node, state, entry.name.get())?;
        Ok(child.map_or(0, |child| child.node().ino))
    }

    /// Makes sure that the index knows every name.
    pub(super) fn complete_index(&self, node: &Arc<Node>, state: &mut DirState) -> Result<()> {
        if state.index.complete {
            Ok(())
        } else {
            self.build_index(node, state)
        }
    }

    /// Lists all layers of a directory, top-down, into its index.
    pub(super) fn build_index(&self, node: &Arc<Node>, state: &mut DirState) -> Result<()> {
        self.counters.count(&self.counters.indexes_built);
        let mut merge = Merge {
            index: Index::empty(),
            ..Merge::default()
        };
        if state.in_upper {
            let fd = self.upper_dir(node)?;
            let upper = self.upper()?;
            let mut raw = RawListing::read(&mut |each| upper.list(fd.as_fd(), each), |name| {
                let attr = At::Entry(fd.as_fd(), name).stat()?;
                Ok((attr.kind, mark::is_whiteout(&attr)))
            })?;
            if upper.marks(At::Pinned(fd.as_fd()))?.xattr_whiteouts {
                raw.find_xattr_whiteouts(|name| upper.is_whiteout(fd.as_fd(), name))?;
            }
            state.opaque |= raw.opaque;
            merge.add_upper(raw);
        }
        if state.opaque {
            state.lowers.clear();
        }
        for position in 0..state.lowers.len() {
            let dir = Arc::clone(&state.lowers[position]);
            let mut raw = list_lower(&dir)?;
            let opaque = raw.opaque;
            if !dir.is_sealed() && dir.marks_self()?.xattr_whiteouts {
                raw.find_xattr_whiteouts(|name| {
                    Ok(dir.stat(name)?.size == 0 && dir.marks(name)?.whiteout)
                })?;
            }
            merge.add_lower(raw, u16::try_from(position).map_err(|_| Errno::OVERFLOW)?);
            if opaque {
                state.lowers.truncate(position + 1);
                break;
            }
        }
        for entry in state.index.iter().filter(|entry| entry.node != 0) {
            merge
                .index
                .update(entry.name.get(), |new| new.node = entry.node);
        }
        if self.options.timeout.is_some() {
            merge.index.set_listed();
        }
        state.index = merge.index;
        Ok(())
    }
}

fn list_lower(dir: &Arc<LowerDir>) -> Result<RawListing> {
    RawListing::read(&mut |each| dir.list(each), |name| {
        let attr = dir.stat(name)?;
        Ok((attr.kind, dir.lower().is_whiteout(&attr)))
    })
}

/// What one layer has in a directory, marks told apart from names.
#[derive(Debug, Default)]
struct RawListing {
    /// Names with their kind; `true` for a whiteout.
    names: Vec<(OwnedName, Kind, bool)>,
    /// Names that `.wh.` files delete in the layers below.
    hidden: Vec<OwnedName>,
    opaque: bool,
}

type Lister<'a> = dyn FnMut(&mut dyn FnMut(Listed<'_>) -> Result<()>) -> Result<()> + 'a;

impl RawListing {
    /// Reads a listing; `look` is asked for the kind of names whose type does not tell whether they are whiteouts.
    fn read(
        list: &mut Lister<'_>,
        look: impl Fn(Name<'_>) -> Result<(Kind, bool)>,
    ) -> Result<Self> {
        let mut raw = Self::default();
        list(&mut |listed| {
            match mark::aufs_name(listed.name) {
                Some(AufsName::Opaque) => raw.opaque = true,
                Some(AufsName::Whiteout(name)) => raw.hidden.push(name.to_owned()),
                Some(AufsName::Reserved) => {}
                None => {
                    let name = Name::from_bytes(listed.name)?;
                    let (kind, whiteout) = match listed.kind {
                        Some(kind) if kind != Kind::CharDevice => (kind, false),
                        _ => match look(name) {
                            Ok(found) => found,
                            Err(Errno::NOENT) => return Ok(()),
                            Err(error) => return Err(error),
                        },
                    };
                    raw.names.push((name.to_owned(), kind, whiteout));
                }
            }
            Ok(())
        })?;
        Ok(raw)
    }

    /// Marks empty files that carry the whiteout xattr.
    fn find_xattr_whiteouts(&mut self, is: impl Fn(Name<'_>) -> Result<bool>) -> Result<()> {
        for (name, kind, whiteout) in &mut self.names {
            if *kind == Kind::File {
                *whiteout = is(name.get())?;
            }
        }
        Ok(())
    }
}

/// Merging of listings, topmost first.
#[derive(Debug, Default)]
struct Merge {
    index: Index,
    /// Names that take nothing more from below: files, and what a lower whiteout hides.
    closed: FxHashSet<OwnedName>,
    /// Names of the upper for which a lower has told whether it shows something.
    settled: FxHashSet<OwnedName>,
}

impl Merge {
    fn add_upper(&mut self, raw: RawListing) {
        for (name, kind, whiteout) in raw.names {
            let source = if whiteout {
                Source::Whiteout
            } else {
                Source::Upper
            };
            if whiteout || kind != Kind::Directory {
                self.closed.insert(name.clone());
            }
            self.index.set(name, kind, source, false, 0);
        }
        for name in raw.hidden {
            self.closed.insert(name.clone());
            if self.index.find(name.get()).is_none() {
                self.index
                    .set(name, Kind::CharDevice, Source::Whiteout, false, 0);
            }
        }
    }

    fn add_lower(&mut self, raw: RawListing, position: u16) {
        for (name, kind, whiteout) in raw.names {
            self.settle(&name, !whiteout);
            if whiteout {
                self.closed.insert(name);
                continue;
            }
            let known = self.index.find(name.get()).map(|entry| entry.source);
            let closed = self.closed.contains(&name);
            let directory = kind == Kind::Directory;
            match known {
                _ if closed => {}
                None => {
                    let parts = if directory {
                        Parts::One(position)
                    } else {
                        Parts::None
                    };
                    if !directory {
                        self.closed.insert(name.clone());
                    }
                    let source = Source::Lower(position);
                    self.index.add(Entry {
                        name,
                        node: 0,
                        kind,
                        source,
                        below: true,
                        parts,
                    });
                }
                Some(_) if directory => {
                    self.index
                        .update(name.get(), |entry| entry.parts.push(position));
                }
                Some(_) => {
                    self.closed.insert(name);
                }
            }
        }
        for name in raw.hidden {
            self.settle(&name, false);
            self.closed.insert(name);
        }
    }

    /// Notes whether the first lower that knows a name of the upper shows it.
    fn settle(&mut self, name: &OwnedName, shown: bool) {
        let of_upper = self
            .index
            .find(name.get())
            .is_some_and(|entry| !matches!(entry.source, Source::Lower(_)));
        if of_upper && self.settled.insert(name.clone()) && shown {
            self.index.update(name.get(), |entry| entry.below = true);
        }
    }
}
