//! Merged listings: building the index of a directory, and reading from it.

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use rustc_hash::FxHashSet;
use rustix::io::{Errno, Result};

use super::index::{Entry, Index, NO_PART, Source};
use super::node::{DirState, Node, ROOT};
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
        if after == 0 {
            self.walk.begin(ino);
        }
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
        let mut position = state.index.seek(after);
        while let Some((found, cookie, entry)) = state.index.next(position) {
            position = found + 1;
            let name = entry.name.clone();
            let mut listing = Listing {
                name: name.get().bytes(),
                cookie,
                ino: entry.node,
                kind: entry.kind,
                found: None,
            };
            let full = if plus {
                self.list_plus(&node, &mut state, found, &mut listing, &mut add)
            } else {
                // A file may stand for a device, which only its node knows.
                let unsure = self.overrides && listing.kind == Kind::File;
                if (listing.ino == 0 || unsure)
                    && let Some(child) = self.child_at(&node, &mut state, found)?
                {
                    (listing.ino, listing.kind) = (child.node().ino, child.node().kind);
                }
                add(&listing)
            };
            if full {
                break;
            }
        }
        Ok(())
    }

    /// Adds the entry at `position` with its attributes; `true`: there was no more room.
    fn list_plus(
        &self,
        node: &Arc<Node>,
        state: &mut DirState,
        position: usize,
        listing: &mut Listing<'_>,
        add: &mut impl FnMut(&Listing<'_>) -> bool,
    ) -> bool {
        let child = match self.child_at(node, state, position) {
            // It went away underneath us, which a lower layer must not do: leave it out.
            Ok(None) => return false,
            Ok(Some(child)) => child,
            Err(error) => {
                tracing::debug!(name = ?OsStr::from_bytes(listing.name), %error, "listed without attributes");
                return add(listing);
            }
        };
        listing.ino = child.node().ino;
        listing.kind = child.node().kind;
        listing.found = self.describe(&child).ok();
        let full = add(listing);
        if !full && listing.found.is_some() {
            child.keep();
        }
        full
    }

    /// Makes sure that the index knows every name.
    pub(super) fn complete_index(&self, node: &Arc<Node>, state: &mut DirState) -> Result<()> {
        if state.index.complete {
            Ok(())
        } else {
            self.build_index(node, state)
        }
    }

    /// Makes sure that the index knows what there is to know about `name`. A directory of which a layer may be searched
    /// but not listed never has a complete index.
    pub(super) fn know(
        &self,
        node: &Arc<Node>,
        state: &mut DirState,
        name: Name<'_>,
    ) -> Result<()> {
        if !state.index.unlistable {
            match self.complete_index(node, state) {
                Err(Errno::ACCESS) => state.index.set_unlistable(),
                other => return other,
            }
        }
        if state.index.find(name).is_some() && !self.is_outdated(&state.index) {
            return Ok(());
        }
        match self.merge(node, state, Some(name))?.find(name) {
            Some(new) => state.index.refresh(new),
            None => self.drop_entry(node, &mut state.index, name),
        }
        Ok(())
    }

    /// Lists all layers of a directory, top-down, into its index.
    pub(super) fn build_index(&self, node: &Arc<Node>, state: &mut DirState) -> Result<()> {
        self.counters.count(&self.counters.indexes_built);
        let mut index = self.merge(node, state, None)?;
        if state.index.complete {
            self.update_index(node, &mut state.index, &index);
        } else {
            for entry in state.index.iter().filter(|entry| entry.node != 0) {
                index.update(entry.name.get(), |new| new.node = entry.node);
            }
            state.index = index;
        }
        if self.options.timeout.is_some() {
            state.index.set_listed();
        }
        Ok(())
    }

    /// What the layers of a directory have, top-down: everything, or `only` one name.
    fn merge(
        &self,
        node: &Arc<Node>,
        state: &mut DirState,
        only: Option<Name<'_>>,
    ) -> Result<Index> {
        let mut merge = Merge {
            index: Index::empty(),
            ..Merge::default()
        };
        if state.in_upper {
            let fd = self.upper_dir(node)?;
            let upper = self.upper()?;
            let look = |name: Name<'_>| {
                let attr = At::Entry(fd.as_fd(), name).stat()?;
                Ok((attr.kind, mark::is_whiteout(&attr)))
            };
            let mut raw = match only {
                None => RawListing::read(&mut |each| upper.list(fd.as_fd(), each), look)?,
                Some(name) => RawListing::search(name, look)?,
            };
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
            let mut raw = list_lower(&dir, only)?;
            let opaque = raw.opaque;
            if !dir.is_sealed() && dir.marks_self()?.xattr_whiteouts {
                raw.find_xattr_whiteouts(|name| {
                    Ok(dir.stat(name)?.size == 0 && dir.marks(name)?.whiteout)
                })?;
            }
            let position = u16::try_from(position).unwrap_or(NO_PART);
            if position == NO_PART {
                return Err(Errno::OVERFLOW);
            }
            merge.add_lower(raw, position);
            if opaque {
                state.lowers.truncate(usize::from(position) + 1);
                break;
            }
        }
        Ok(merge.index)
    }
}

fn list_lower(dir: &Arc<LowerDir>, only: Option<Name<'_>>) -> Result<RawListing> {
    let look = |name: Name<'_>| {
        let attr = dir.stat(name)?;
        Ok((attr.kind, dir.lower().is_whiteout(&attr)))
    };
    match only {
        None => RawListing::read(&mut |each| dir.list(each), look),
        Some(name) => RawListing::search(name, look),
    }
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
                            // We may list the directory and not search it, so are not root; then nothing in it can be
                            // reached, and the devices that we can have made are whiteouts.
                            Err(Errno::ACCESS) if listed.kind.is_some() => (Kind::CharDevice, true),
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

    /// What a listing would say of `name`, by asking for it and for the files that would hide it.
    fn search(name: Name<'_>, look: impl Fn(Name<'_>) -> Result<(Kind, bool)>) -> Result<Self> {
        let hiding = mark::aufs_whiteout(name).ok();
        let names = [
            Some(mark::AUFS_OPAQUE),
            hiding.as_ref().map(|name| name.get().bytes()),
            Some(name.bytes()),
        ];
        let mut list = |each: &mut dyn FnMut(Listed<'_>) -> Result<()>| {
            for name in names.into_iter().flatten() {
                match look(Name::from_bytes(name)?) {
                    Err(Errno::NOENT) => {}
                    Err(error) => return Err(error),
                    // Whether it is a whiteout is asked again.
                    Ok((kind, _)) => each(Listed {
                        name,
                        kind: Some(kind),
                    })?,
                }
            }
            Ok(())
        };
        Self::read(&mut list, &look)
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
    /// Names that take nothing more from below although the index has a directory, or nothing, by that name.
    closed: FxHashSet<OwnedName>,
    /// Names of the upper for which a lower has told whether it shows something.
    settled: FxHashSet<OwnedName>,
    /// The directory exists in the upper.
    has_upper: bool,
}

impl Merge {
    fn add_upper(&mut self, raw: RawListing) {
        self.has_upper = true;
        self.index.reserve(raw.names.len());
        for (name, kind, whiteout) in raw.names {
            let (kind, source) = if whiteout {
                (Kind::CharDevice, Source::Whiteout)
            } else {
                (kind, Source::Upper)
            };
            self.index.add(Entry::new(name, kind, source, false));
        }
        for name in raw.hidden {
            if self.index.find(name.get()).is_none() {
                let hidden = Entry::new(name, Kind::CharDevice, Source::Whiteout, false);
                self.index.add(hidden);
            } else {
                self.closed.insert(name);
            }
        }
    }

    fn add_lower(&mut self, raw: RawListing, position: u16) {
        if self.index.is_empty() {
            self.index.reserve(raw.names.len());
        }
        for (name, kind, whiteout) in raw.names {
            self.settle(&name, !whiteout);
            let directory = kind == Kind::Directory;
            let known = self.index.find(name.get()).map(|entry| entry.kind);
            match known {
                // A file takes nothing from below.
                Some(known) if known != Kind::Directory => {}
                _ if whiteout => {
                    self.closed.insert(name);
                }
                _ if !self.closed.is_empty() && self.closed.contains(&name) => {}
                None => {
                    let mut entry = Entry::new(name, kind, Source::Lower(position), true);
                    if directory {
                        entry.add_part(position);
                    }
                    self.index.add(entry);
                }
                Some(_) if directory => {
                    self.index
                        .update(name.get(), |entry| entry.add_part(position));
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
        if !self.has_upper {
            return;
        }
        let of_upper = self
            .index
            .find(name.get())
            .is_some_and(|entry| !matches!(entry.source, Source::Lower(_)));
        if of_upper && self.settled.insert(name.clone()) && shown {
            self.index.update(name.get(), |entry| entry.below = true);
        }
    }
}
