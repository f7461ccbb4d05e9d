//! One name through the stack, top-down, to a node.

use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::io::{Errno, Result};
use smallvec::SmallVec;

use super::index::{Entry, Source};
use super::node::{Alias, Dir, DirState, Inserted, LookupRef, Node, Real, State};
use super::{Found, Overlay};
use crate::layer::at::At;
use crate::layer::attr::{Attr, Kind};
use crate::layer::lower::{LowerDir, LowerFile};
use crate::layer::mark::{self, Marks, NlinkMark, Redirect};
use crate::layer::name::{Name, OwnedName};

/// Misses in a directory of one layer after which listing it once is cheaper than asking again.
const MISSES_BEFORE_INDEX: u8 = 4;

type Lowers = SmallVec<[Arc<LowerDir>; 1]>;

impl Overlay {
    /// Looks `name` up in `parent`. `None`: no such name, which the kernel may remember.
    pub fn lookup(&self, parent: u64, name: Name<'_>) -> Result<Option<Found>> {
        let _names = self.names.read();
        let parent = self.node(parent)?;
        let dir = parent.dir.as_ref().ok_or(Errno::NOTDIR)?;
        let mut state = dir.state.lock();
        let Some(child) = self.child(&parent, &mut state, name)? else {
            return Ok(None);
        };
        drop(state);
        self.found(child).map(Some)
    }

    /// The node of `parent/name`, if there is such a name.
    pub(super) fn child(
        &self,
        parent: &Arc<Node>,
        state: &mut DirState,
        name: Name<'_>,
    ) -> Result<Option<LookupRef<'_>>> {
        if mark::aufs_name(name.bytes()).is_some() {
            return Ok(None);
        }
        if self.is_outdated(&state.index) && !state.index.unlistable {
            match self.build_index(parent, state) {
                Err(Errno::ACCESS) => state.index.set_unlistable(),
                other => other?,
            }
        }
        let merged = state.sources() > 1;
        if !state.index.complete && merged {
            self.know(parent, state, name)?;
        }
        match state.index.position(name) {
            Some(position) => self.child_at(parent, state, position),
            None if state.index.complete || merged => Ok(None),
            None => self.probe(parent, state, name),
        }
    }

    /// The node of the entry at `position` of the index.
    pub(super) fn child_at(
        &self,
        parent: &Arc<Node>,
        state: &mut DirState,
        position: usize,
    ) -> Result<Option<LookupRef<'_>>> {
        let Some(entry) = state.index.at(position) else {
            return Ok(None);
        };
        if entry.source == Source::Whiteout {
            return Ok(None);
        }
        if entry.node != 0
            && let Some(known) = self.nodes.reference(entry.node)
            && known.node().is_at(parent, entry.name.get())
            && self.is_still_there(&known, parent, state, entry)
        {
            self.counters.count(&self.counters.nodes_found);
            return Ok(Some(known));
        }
        let entry = entry.clone();
        let found = self.resolve(parent, state, &entry)?;
        if let Some(found) = &found {
            state
                .index
                .set_node(position, found.node().ino, found.node().kind);
        }
        Ok(found)
    }

    /// Asks the only layer of a directory for a name that is not in its index.
    fn probe(
        &self,
        parent: &Arc<Node>,
        state: &mut DirState,
        name: Name<'_>,
    ) -> Result<Option<LookupRef<'_>>> {
        let source = if state.in_upper {
            Source::Upper
        } else {
            Source::Lower(0)
        };
        let below = !state.in_upper;
        let mut entry = Entry::new(name.to_owned(), Kind::File, source, below);
        if below {
            entry.add_part(0);
        }
        let found = self.resolve(parent, state, &entry)?;
        if let Some(found) = &found {
            (entry.node, entry.kind) = (found.node().ino, found.node().kind);
            state.index.add(entry);
        } else {
            state.index.misses += 1;
            if state.index.misses >= MISSES_BEFORE_INDEX {
                state.index.misses = 0;
                self.know(parent, state, name)?;
            }
        }
        Ok(found)
    }

    /// Makes the node of `entry`; `None` if the object is not there after all.
    fn resolve(
        &self,
        parent: &Arc<Node>,
        state: &DirState,
        entry: &Entry,
    ) -> Result<Option<LookupRef<'_>>> {
        let made = match entry.source {
            Source::Upper => self.resolve_upper(parent, state, entry),
            Source::Lower(position) => self.resolve_lower(state, entry, position),
            Source::Whiteout => return Ok(None),
        };
        let found = match made {
            Err(Errno::NOENT) => return Ok(None),
            other => other?,
        };
        let Some(resolved) = found else {
            return Ok(None);
        };
        self.counters.count(&self.counters.nodes_made);
        Ok(Some(self.admit(parent, &entry.name, resolved)))
    }

    fn resolve_lower(
        &self,
        state: &DirState,
        entry: &Entry,
        position: u16,
    ) -> Result<Option<Resolved>> {
        let dir = state.lowers.get(usize::from(position)).ok_or(Errno::IO)?;
        let name = entry.name.get();
        let attr = dir.stat(name)?;
        if dir.lower().is_whiteout(&attr) {
            return Ok(None);
        }
        if attr.kind == Kind::Directory {
            let lowers = self.lower_parts(state, entry, &attr)?;
            let dir = DirState {
                lowers,
                ..DirState::default()
            };
            let attr = match dir.shown_lower() {
                Some(shown) if dir.lowers[0].is_implied() => shown.stat_self()?,
                _ => attr,
            };
            let number = self.inos.number(attr.dev, attr.ino);
            return Ok(Some(Resolved::directory(number, attr, dir)));
        }
        if attr.size == 0 && attr.kind == Kind::File && dir.marks_self()?.xattr_whiteouts {
            let marks = dir.marks(name)?;
            if marks.whiteout {
                return Ok(None);
            }
        }
        let file = LowerFile {
            dir: Arc::clone(dir),
            name: entry.name.clone(),
        };
        let number = self.inos.number(attr.dev, attr.ino);
        if let Some(indexed) = self.find_indexed(&file, &attr, number)? {
            return Ok(Some(indexed));
        }
        Ok(Some(Resolved::file(
            number,
            State::new(attr, Real::Lower(file)),
        )))
    }

    fn resolve_upper(
        &self,
        parent: &Arc<Node>,
        state: &DirState,
        entry: &Entry,
    ) -> Result<Option<Resolved>> {
        let upper = self.upper()?;
        let fd = self.upper_dir(parent)?;
        let at = At::Entry(fd.as_fd(), entry.name.get());
        let attr = upper.stat(at)?;
        if mark::is_whiteout(&attr) {
            return Ok(None);
        }
        if attr.kind == Kind::Directory {
            let marks = upper.marks(at)?;
            return self.resolve_upper_dir(state, entry, attr, marks).map(Some);
        }
        // Only a directory that is merged, or marked impure, can hold copied-up entries; and one that could not be marked.
        let bare = attr.nlink > 1 && attr.kind != Kind::File;
        let sparse = attr.blocks * 512 < attr.size;
        let copied_up = state.impure || !state.lowers.is_empty() || sparse || bare;
        let mut marks = if copied_up {
            upper.marks(at)?
        } else {
            Marks::default()
        };
        if marks.origin.is_none() && bare {
            marks.origin = self.origin_from_index(&attr)?;
        }
        let origin = marks
            .origin
            .as_deref()
            .and_then(|origin| self.decode_origin(origin));
        let (dev, ino) = origin.unwrap_or((attr.dev, attr.ino));
        let number = self.inos.number(dev, ino);
        let mut file = State::new(attr, Real::Upper);
        if marks.metacopy {
            let data = self.metacopy_data(state, &entry.name, marks.redirect.clone())?;
            file.attr.blocks = data.stat()?.blocks;
            file.data = Some(Box::new(data));
        }
        if attr.nlink > 1
            && let Some(origin) = &marks.origin
        {
            let lower_nlink = || {
                if marks.lower_nlink.is_some() {
                    return marks.lower_nlink;
                }
                let lower = state
                    .lowers
                    .iter()
                    .find_map(|dir| dir.stat(entry.name.get()).ok())?;
                ((lower.dev, lower.ino) == (dev, ino)).then_some(lower.nlink)
            };
            if let Some(name) = self.index_entry(origin, &attr)? {
                count_names(&mut file, marks.nlink, lower_nlink);
                file.real = Real::Indexed(name);
            }
        }
        Ok(Some(Resolved::file(number, file)))
    }

    fn resolve_upper_dir(
        &self,
        state: &DirState,
        entry: &Entry,
        mut attr: Attr,
        marks: Marks,
    ) -> Result<Resolved> {
        let lowers = match &marks.redirect {
            _ if marks.opaque => Lowers::new(),
            Some(redirect) => self.follow(state, 0, 0, redirect)?,
            None => self.lower_parts(state, entry, &attr)?,
        };
        // A merged directory keeps the number it has without its upper part, also when all in it has been copied up.
        let dir = DirState {
            in_upper: true,
            lowers,
            opaque: marks.opaque,
            impure: marks.impure,
            default_acl: marks.default_acl,
            ..DirState::default()
        };
        let own = match dir.shown_lower() {
            Some(lower) => lower.stat_self()?,
            None => attr,
        };
        let origin = marks.origin.filter(|_| dir.lowers.is_empty());
        let origin = origin.and_then(|origin| self.decode_origin(&origin));
        let (dev, ino) = origin.unwrap_or((own.dev, own.ino));
        let number = self.inos.number(dev, ino);
        if !dir.lowers.is_empty() {
            attr.nlink = 1;
        }
        Ok(Resolved {
            redirect: marks.redirect,
            ..Resolved::directory(number, attr, dir)
        })
    }

    /// The lower directories merged under `entry`. `attr` are those of its topmost object.
    fn lower_parts(&self, state: &DirState, entry: &Entry, attr: &Attr) -> Result<Lowers> {
        let mut lowers = Lowers::new();
        for &position in entry.parts() {
            let position = usize::from(position);
            let Some(dir) = state.lowers.get(position) else {
                continue;
            };
            let top = entry.source == Source::Lower(u16::try_from(position).unwrap_or(u16::MAX));
            let may_seal = dir.lower().may_seal();
            let own = if top || !may_seal {
                *attr
            } else {
                dir.stat(entry.name.get())?
            };
            let sealed = Attr {
                mount_root: own.mount_root && may_seal,
                ..own
            };
            lowers.push(dir.child(entry.name.clone(), &sealed));
            let below = dir.lower().position + 1;
            if below == self.stack.lowers.len() {
                break;
            }
            if sealed.mount_root {
                continue;
            }
            let marks = dir.marks(entry.name.get())?;
            if marks.opaque {
                break;
            }
            if let Some(redirect) = &marks.redirect {
                lowers.extend(self.follow(state, position + 1, below, redirect)?);
                break;
            }
        }
        if lowers.len() > 1 || entry.source == Source::Upper {
            lowers.shrink_to_fit();
        }
        Ok(lowers)
    }

    /// The lower directories a redirect leads to: siblings among the parent's lowers from `position` on, or an
    /// absolute path in the layers from `layer` on.
    fn follow(
        &self,
        state: &DirState,
        position: usize,
        layer: usize,
        redirect: &Redirect,
    ) -> Result<Lowers> {
        let mut name = match redirect {
            Redirect::Absolute(path) => return Ok(self.stack.find_dirs(layer, path)?.into()),
            Redirect::Sibling(name) => name.clone(),
        };
        let mut lowers = Lowers::new();
        for (position, dir) in state.lowers.iter().enumerate().skip(position) {
            let attr = match dir.stat(name.get()) {
                Err(Errno::NOENT) if dir.has_aufs_whiteout(name.get()) => break,
                Err(Errno::NOENT) => continue,
                other => other?,
            };
            if attr.kind != Kind::Directory {
                break;
            }
            lowers.push(dir.child(name.clone(), &attr));
            if attr.mount_root {
                continue;
            }
            let marks = dir.marks(name.get())?;
            match marks.redirect {
                _ if marks.opaque => break,
                Some(Redirect::Sibling(next)) => name = next,
                Some(absolute) => {
                    let below = dir.lower().position + 1;
                    lowers.extend(self.follow(state, position + 1, below, &absolute)?);
                    break;
                }
                None => {}
            }
        }
        Ok(lowers)
    }

    /// Where the data of the upper metacopy file `name` is.
    fn metacopy_data(
        &self,
        state: &DirState,
        name: &OwnedName,
        redirect: Option<Redirect>,
    ) -> Result<LowerFile> {
        let name = match redirect {
            Some(Redirect::Absolute(path)) => return self.stack.find_data(0, &path),
            Some(Redirect::Sibling(name)) => name,
            None => name.clone(),
        };
        for dir in &state.lowers {
            match dir.stat(name.get()) {
                Err(Errno::NOENT) => {}
                Err(error) => return Err(error),
                Ok(attr) if attr.kind != Kind::File => break,
                Ok(attr) => {
                    let file = LowerFile {
                        dir: Arc::clone(dir),
                        name,
                    };
                    return self.stack.data_of(&file, &attr);
                }
            }
        }
        tracing::warn!(?name, "metacopy file without its data in a lower layer");
        Err(Errno::IO)
    }

    /// Device and inode number of the lower object in an origin mark.
    fn decode_origin(&self, origin: &[u8]) -> Option<(u64, u64)> {
        self.origins
            .iter()
            .find_map(|(space, dev)| Some((*dev, space.decode(origin)?)))
    }

    /// Puts a resolved object into the table, or finds the node it already has as another name of it.
    pub(super) fn admit(
        &self,
        parent: &Arc<Node>,
        name: &OwnedName,
        resolved: Resolved,
    ) -> LookupRef<'_> {
        let alias = Alias {
            parent: Arc::clone(parent),
            name: name.clone(),
        };
        let Resolved {
            number,
            mut state,
            dir,
            redirect,
        } = resolved;
        let kind = state.attr.kind;
        let (dev, ino) = (state.attr.dev, state.attr.ino);
        // Whoever has the number of an upper inode is that inode: one without a name is pinned.
        let links = kind != Kind::Directory
            && match &state.real {
                Real::Lower(file) => state.attr.nlink > 1 && self.keeps_links(file),
                _ => true,
            };
        state.aliases.push(alias.clone());
        let dir = dir.map(|dir| Dir::new(dir, redirect, self.stack.fds.dirs.slot()));
        let mut parts = Some((state, dir));
        let mut candidates = [Some(number), None].into_iter().flatten();
        let mut tries = 0;
        loop {
            // A number that is taken: two copies of one origin, or one directory shown twice.
            let number = candidates.next().unwrap_or_else(|| {
                tries += 1;
                if tries == 1 {
                    self.inos.assigned(dev, ino)
                } else {
                    self.inos.fresh()
                }
            });
            let generation = self.next_generation();
            let inserted = self.nodes.insert(number, || {
                let (state, dir) = parts
                    .take()
                    .unwrap_or_else(|| unreachable!("inserted once"));
                Node::new(number, generation, kind, state, dir)
            });
            let existing = match inserted {
                Inserted::New(reference) => return reference,
                Inserted::Taken(existing) => existing,
            };
            let same = |(new, _): &(State, _)| Self::is_one_inode(existing.node(), new);
            if links && existing.node().kind == kind && parts.as_ref().is_some_and(same) {
                existing.node().add_alias(alias);
                existing.node().state().unpin();
                return existing;
            }
        }
    }
}

/// An object about to become a node.
#[derive(Debug)]
pub(super) struct Resolved {
    pub(super) number: u64,
    pub(super) state: State,
    pub(super) dir: Option<DirState>,
    pub(super) redirect: Option<Redirect>,
}

impl Resolved {
    pub(super) fn file(number: u64, state: State) -> Self {
        Self {
            number,
            state,
            dir: None,
            redirect: None,
        }
    }

    pub(super) fn directory(number: u64, mut attr: Attr, dir: DirState) -> Self {
        if dir.sources() > 1 {
            attr.nlink = 1;
        }
        Self {
            number,
            state: State::new(attr, Real::Directory),
            dir: Some(dir),
            redirect: None,
        }
    }
}

/// Gives the upper inode in `state` the union's link count, from its mark. Without one, or with one we cannot resolve, the
/// index entry is the one link that is no name. Nothing is done to an object that can carry none: nobody knows how many
/// names only the lower has.
pub(super) fn count_names(
    state: &mut State,
    mark: Option<NlinkMark>,
    lower: impl FnOnce() -> Option<u32>,
) {
    let upper = state.attr.nlink;
    let counted = match mark {
        Some(NlinkMark::Upper(offset)) => upper.checked_add_signed(offset),
        Some(NlinkMark::Lower(offset)) => {
            lower().and_then(|lower| lower.checked_add_signed(offset))
        }
        None if state.attr.kind != Kind::File => return,
        None => lower(),
    };
    let union = counted
        .filter(|&count| count > 0)
        .unwrap_or_else(|| upper.saturating_sub(1).max(1));
    state.attr.nlink = union;
    state.set_union_nlink(union);
}

#[cfg(test)]
mod tests;
