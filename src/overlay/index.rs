//! The index of a merged directory: its names, which layer each comes from, and a stable listing order.
//!
//! Built once by listing the layers top-down, then kept up to date by our own operations. While it is complete, a
//! lookup of a missing name costs nothing and a lookup of a present one asks exactly one layer. A directory that
//! is a single layer deep starts incomplete and remembers only the names asked for.
//!
//! Every entry has a cookie that never changes and only grows, so a listing interrupted anywhere goes on at the
//! right place whatever was created or removed in between.

use std::hash::BuildHasher;
use std::time::{Duration, Instant};

use hashbrown::HashTable;
use rustc_hash::FxBuildHasher;
use smallvec::{SmallVec, smallvec};

use crate::layer::attr::Kind;
use crate::layer::name::{Name, OwnedName};

/// Cookies of `.` and `..` come first.
const FIRST_COOKIE: u64 = 3;

/// One name.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The name.
    pub name: OwnedName,
    /// Number of its node, 0 if there is none yet.
    pub node: u64,
    /// What it is, as the listing told.
    pub kind: Kind,
    /// Where it comes from.
    pub source: Source,
    /// A lower layer shows something by this name (or would, without the upper).
    pub below: bool,
    /// The first of the [`Entry::parts`], or `NO_PART`.
    part: u16,
    /// All of them, if they are more than one.
    parts: Option<Box<SmallVec<[u16; 12]>>>,
}

/// No layer is at this position: there are at most 65,535.
pub(super) const NO_PART: u16 = u16::MAX;

impl Entry {
    /// A name without a node, in no layer to merge with.
    pub fn new(name: OwnedName, kind: Kind, source: Source, below: bool) -> Self {
        Self {
            name,
            node: 0,
            kind,
            source,
            below,
            part: NO_PART,
            parts: None,
        }
    }

    /// Lower layers (positions in the directory's list) in which it is a directory to merge, topmost first. Almost
    /// always none or one.
    pub fn parts(&self) -> &[u16] {
        match &self.parts {
            Some(parts) => parts,
            None if self.part == NO_PART => &[],
            None => std::slice::from_ref(&self.part),
        }
    }

    /// Adds one below the others.
    pub fn add_part(&mut self, position: u16) {
        match &mut self.parts {
            Some(parts) => parts.push(position),
            None if self.part == NO_PART => self.part = position,
            None => self.parts = Some(Box::new(smallvec![self.part, position])),
        }
    }
}

/// Where the topmost object of a name is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Source {
    /// In the upper.
    Upper,
    /// In the lower at this position of the directory's list.
    Lower(u16),
    /// The upper holds a whiteout: the name does not exist.
    Whiteout,
}

/// A place in the listing order. A removed entry leaves an empty one until the next compaction.
#[derive(Debug)]
struct Slot {
    cookie: u64,
    entry: Option<Entry>,
}

/// The names of one directory.
#[derive(Debug, Default)]
pub struct Index {
    /// In cookie order.
    slots: Vec<Slot>,
    table: HashTable<u32>,
    next_cookie: u64,
    visible: usize,
    whiteouts: usize,
    /// All names of the directory are here.
    pub complete: bool,
    /// They never will be: some layer can be searched, not listed.
    pub unlistable: bool,
    /// When the layers were listed; a new directory has nothing to list.
    listed: Option<Instant>,
    /// Lookups that found nothing while the index was incomplete.
    pub misses: u8,
}

fn hash(name: Name<'_>) -> u64 {
    FxBuildHasher.hash_one(name.bytes())
}

fn slot_hash(slots: &[Slot], slot: u32) -> u64 {
    slots[slot as usize]
        .entry
        .as_ref()
        .map_or(0, |entry| hash(entry.name.get()))
}

impl Index {
    /// How long ago the layers were listed, if they were.
    pub fn age(&self) -> Option<Duration> {
        self.listed.map(|listed| listed.elapsed())
    }

    /// Notes that the layers were listed just now.
    pub fn set_listed(&mut self) {
        self.listed = Some(Instant::now());
    }

    /// The complete index of a new, empty directory.
    pub fn empty() -> Self {
        Self {
            complete: true,
            ..Self::default()
        }
    }

    /// Notes that the directory can be searched and not listed: names are added as they are asked for.
    pub fn set_unlistable(&mut self) {
        self.unlistable = true;
        self.complete = false;
        self.set_listed();
    }

    /// Makes room for `more` names.
    pub fn reserve(&mut self, more: usize) {
        self.slots.reserve_exact(more);
        let slots = &self.slots;
        self.table.reserve(more, |&slot| slot_hash(slots, slot));
    }

    /// Where the entry of `name` is, whiteouts included. Holds until an entry is added or removed.
    pub fn position(&self, name: Name<'_>) -> Option<usize> {
        let same = |&slot: &u32| {
            self.slots[slot as usize]
                .entry
                .as_ref()
                .is_some_and(|entry| entry.name.get() == name)
        };
        self.table.find(hash(name), same).map(|&slot| slot as usize)
    }

    /// The entry of `name`, whiteouts included.
    pub fn find(&self, name: Name<'_>) -> Option<&Entry> {
        self.position(name)
            .and_then(|slot| self.slots[slot].entry.as_ref())
    }

    /// The entry at a position.
    pub fn at(&self, position: usize) -> Option<&Entry> {
        self.slots.get(position)?.entry.as_ref()
    }

    /// Notes the node of the entry at a position.
    pub fn set_node(&mut self, position: usize, node: u64, kind: Kind) {
        if let Some(entry) = self
            .slots
            .get_mut(position)
            .and_then(|slot| slot.entry.as_mut())
        {
            (entry.node, entry.kind) = (node, kind);
        }
    }

    /// The position a listing goes on at that has come to the cookie `after`.
    pub fn seek(&self, after: u64) -> usize {
        self.slots.partition_point(|slot| slot.cookie <= after)
    }

    /// The first name that exists from a position on: its position, its cookie, itself.
    pub fn next(&self, position: usize) -> Option<(usize, u64, &Entry)> {
        self.slots
            .iter()
            .enumerate()
            .skip(position)
            .find_map(|(position, slot)| {
                let entry = slot.entry.as_ref()?;
                (entry.source != Source::Whiteout).then_some((position, slot.cookie, entry))
            })
    }

    /// No names, no whiteouts.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Number of names that exist.
    pub fn visible(&self) -> usize {
        self.visible
    }

    /// Number of whiteouts in the upper.
    pub fn whiteouts(&self) -> usize {
        self.whiteouts
    }

    fn count(&mut self, source: Source, by: isize) {
        let counter = if source == Source::Whiteout {
            &mut self.whiteouts
        } else {
            &mut self.visible
        };
        *counter = counter.saturating_add_signed(by);
    }

    /// Changes the entry of `name` in place.
    pub fn update(&mut self, name: Name<'_>, change: impl FnOnce(&mut Entry)) {
        let Some(slot) = self.position(name) else {
            return;
        };
        let Some(entry) = self.slots[slot].entry.as_mut() else {
            return;
        };
        let before = entry.source;
        change(entry);
        let after = entry.source;
        self.count(before, -1);
        self.count(after, 1);
    }

    /// Adds an entry as it is in the layers now, or brings the one by that name up to date, which keeps its place and its
    /// node.
    pub fn refresh(&mut self, new: &Entry) {
        let mut new = new.clone();
        if let Some(known) = self.find(new.name.get()) {
            new.node = known.node;
            let name = new.name.clone();
            self.update(name.get(), |entry| *entry = new);
        } else {
            self.add(new);
        }
    }

    /// Adds `name`, or changes what it is. A name that comes back keeps no cookie: it is a new entry.
    pub fn set(&mut self, name: OwnedName, kind: Kind, source: Source, below: bool, node: u64) {
        self.remove(name.get());
        self.add(Entry {
            node,
            ..Entry::new(name, kind, source, below)
        });
    }

    /// Adds an entry whose name is not there yet; its cookie is assigned.
    pub fn add(&mut self, entry: Entry) {
        let cookie = self.next_cookie.max(FIRST_COOKIE);
        self.next_cookie = cookie + 1;
        self.count(entry.source, 1);
        let hash_value = hash(entry.name.get());
        let slot = u32::try_from(self.slots.len()).unwrap_or(u32::MAX);
        self.slots.push(Slot {
            cookie,
            entry: Some(entry),
        });
        let slots = &self.slots;
        self.table
            .insert_unique(hash_value, slot, |&slot| slot_hash(slots, slot));
    }

    /// Notes that `name` is gone; `whiteout`: the upper holds one in its place, because a lower layer has the name.
    pub fn take_away(&mut self, name: Name<'_>, whiteout: bool) {
        if whiteout {
            self.set(name.to_owned(), Kind::CharDevice, Source::Whiteout, true, 0);
        } else {
            self.remove(name);
        }
    }

    /// Removes `name` altogether.
    pub fn remove(&mut self, name: Name<'_>) -> Option<Entry> {
        let slot = self.position(name)?;
        let slot_number = u32::try_from(slot).ok()?;
        if let Ok(found) = self
            .table
            .find_entry(hash(name), |&other| other == slot_number)
        {
            found.remove();
        }
        let entry = self.slots[slot].entry.take()?;
        self.count(entry.source, -1);
        if self.slots.len() > 64 && self.slots.len() / 4 > self.table.len() {
            self.compact();
        }
        Some(entry)
    }

    fn compact(&mut self) {
        self.slots.retain(|slot| slot.entry.is_some());
        self.table.clear();
        let slots = &self.slots;
        for slot in 0..u32::try_from(slots.len()).unwrap_or(u32::MAX) {
            let hash_value = slot_hash(slots, slot);
            self.table
                .insert_unique(hash_value, slot, |&slot| slot_hash(slots, slot));
        }
    }

    /// All entries, whiteouts included.
    pub fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.slots.iter().filter_map(|slot| slot.entry.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> OwnedName {
        Name::from_bytes(text.as_bytes()).unwrap().to_owned()
    }

    fn listing(index: &Index, after: u64) -> Vec<String> {
        let text = |entry: &Entry| String::from_utf8(entry.name.get().bytes().to_vec()).unwrap();
        let mut names = Vec::new();
        let mut position = index.seek(after);
        while let Some((found, _, entry)) = index.next(position) {
            names.push(text(entry));
            position = found + 1;
        }
        names
    }

    fn cookie(index: &Index, wanted: &str) -> u64 {
        let position = index.position(name(wanted).get()).unwrap();
        index.next(position).unwrap().1
    }

    #[test]
    fn a_listing_goes_on_where_it_stopped_whatever_was_removed() {
        let mut index = Index::empty();
        for number in 0..200 {
            index.set(
                name(&format!("f{number}")),
                Kind::File,
                Source::Upper,
                false,
                0,
            );
        }
        let middle = cookie(&index, "f99");
        for number in 0..100 {
            index.remove(name(&format!("f{number}")).get());
        }
        index.set(name("new"), Kind::File, Source::Upper, false, 0);
        let rest = listing(&index, middle);
        assert_eq!(rest.len(), 101);
        assert_eq!(rest.first().map(String::as_str), Some("f100"));
        assert_eq!(rest.last().map(String::as_str), Some("new"));
        assert_eq!(index.visible(), 101);
    }

    #[test]
    fn compaction_keeps_names_and_cookies() {
        let mut index = Index::empty();
        for number in 0..1000 {
            index.set(
                name(&format!("f{number}")),
                Kind::File,
                Source::Upper,
                false,
                0,
            );
        }
        let before = cookie(&index, "f900");
        for number in 0..900 {
            index.remove(name(&format!("f{number}")).get());
        }
        assert!(index.slots.len() < 1000);
        assert_eq!(cookie(&index, "f900"), before);
        assert_eq!(listing(&index, 0).len(), 100);
        assert!(index.find(name("f5").get()).is_none());
    }

    #[test]
    fn whiteouts_are_kept_but_not_listed() {
        let mut index = Index::empty();
        index.set(name("gone"), Kind::CharDevice, Source::Whiteout, true, 0);
        assert_eq!((index.visible(), index.whiteouts()), (0, 1));
        assert!(listing(&index, 0).is_empty());
        index.set(name("gone"), Kind::File, Source::Upper, true, 7);
        assert_eq!((index.visible(), index.whiteouts()), (1, 0));
    }
}
