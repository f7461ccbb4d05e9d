//! Read-ahead of tree walks: while a walker (find, tar, rsync, du) works on what it has been given, the directories
//! it will list next are listed already, with the attributes of their entries.
//!
//! Walkers go depth first in listing order, so the next directory is known: the first subdirectory, else the next
//! sibling, else that of the parent, and so on up to where the walk began. Nothing is read ahead until two such
//! guesses in a row came true; after a wrong one it takes two right ones again.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::io::{Errno, Result};

use super::Overlay;
use super::node::{Node, ROOT};
use crate::layer::attr::Kind;

/// Guesses that must have come true before anything is read.
const SURE: u8 = 2;
/// Entries prepared before the walker has to come closer, if the cache of nodes holds twice as many.
const LEAD: usize = 4096;
/// Entries prepared without a break: the directory and the lock of all names are held meanwhile.
const AT_ONCE: usize = 16;
/// Guesses that may be left out: a walker need not descend everywhere.
const SKIPPED: usize = 8;
/// Directories left behind at once when a walker goes up.
const LEVELS: usize = 64;

/// What there is to do for the thread that reads ahead.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Pace {
    /// More, at once.
    On,
    /// Nothing until the walker comes closer; it was seen last at this directory.
    Wait(u64),
    /// Nothing until [`Overlay::read_ahead`] says so.
    Over,
}

/// What is known of a walk. Not exact under concurrent walks, and need not be. A leaf lock.
#[derive(Debug, Default)]
pub(super) struct Walk(Mutex<Guess>);

#[derive(Debug, Default)]
struct Guess {
    /// Where the walk was first seen: it is not expected to leave this directory.
    top: u64,
    /// Directory listed last.
    at: u64,
    /// Guesses in a row that came true.
    hits: u8,
    /// Directories expected next, in order.
    ahead: VecDeque<Ahead>,
    /// The last that was put there.
    last: u64,
    /// Entries prepared of all of them.
    entries: usize,
    /// Somebody prepares them.
    running: bool,
    /// No directory is expected after the last.
    ends: bool,
}

#[derive(Debug)]
struct Ahead {
    ino: u64,
    entries: usize,
    prepared: bool,
}

impl Guess {
    fn expect(&mut self, ino: u64) {
        self.last = ino;
        self.ahead.push_back(Ahead {
            ino,
            entries: 0,
            prepared: false,
        });
    }

    fn prepared(&mut self, ino: u64, entries: usize) {
        let mut unprepared = self.ahead.iter_mut().filter(|known| !known.prepared);
        if let Some(known) = unprepared.find(|known| known.ino == ino) {
            known.prepared = true;
            known.entries = entries;
            self.entries += entries;
        }
    }
}

impl Walk {
    /// A listing of `ino` begins.
    pub(super) fn begin(&self, ino: u64) {
        let mut guess = self.0.lock();
        let found = guess
            .ahead
            .iter()
            .take(SKIPPED)
            .position(|known| known.ino == ino);
        if let Some(found) = found {
            let passed: usize = guess.ahead.drain(..=found).map(|known| known.entries).sum();
            guess.entries -= passed;
            guess.hits = guess.hits.saturating_add(1);
            guess.at = ino;
        } else {
            *guess = Guess {
                top: ino,
                at: ino,
                last: ino,
                ..Guess::default()
            };
        }
    }
}

impl Overlay {
    /// Whether reading ahead can gain anything: not where all there is to read is in memory.
    pub fn can_read_ahead(&self) -> bool {
        let on_disk = self.stack.upper.is_some()
            || self
                .stack
                .lowers
                .iter()
                .any(|lower| lower.archive().is_none());
        on_disk && self.options.timeout.is_none()
    }

    /// To be called when the beginning of the directory `ino` has been listed and answered. `true`: a walk is going on,
    /// and there is something to prepare.
    pub fn read_ahead(&self, ino: u64) -> bool {
        let (mut top, sure) = {
            let guess = self.walk.0.lock();
            if guess.running || guess.ends || guess.at != ino {
                return false;
            }
            if !guess.ahead.is_empty() {
                return guess.hits >= SURE;
            }
            (guess.top, guess.hits >= SURE)
        };
        let mut next = self.next_below(ino, top);
        if next.is_none() && !sure {
            // It may have been only the last part of a walk that was seen to begin.
            if let Some(above) = self.parent_of(top) {
                top = above;
                next = self.next_below(ino, top);
            }
        }
        let mut guess = self.walk.0.lock();
        if guess.running || guess.at != ino || !guess.ahead.is_empty() {
            return false;
        }
        guess.top = top;
        match next {
            Some(next) => guess.expect(next.ino),
            None => guess.ends = true,
        }
        guess.hits >= SURE && !guess.ends
    }

    /// Somebody prepares the directories of the walk, until it is paused or over.
    pub fn start_walk(&self) {
        self.walk.0.lock().running = true;
    }

    /// Nobody does.
    pub fn pause_walk(&self) {
        self.walk.0.lock().running = false;
    }

    fn is_running(&self) -> bool {
        self.walk.0.lock().running
    }

    /// While the walk is not paused: prepares one directory of those that it will list next, with at most `entries`
    /// entries.
    pub fn walk_on(&self, entries: usize) -> Pace {
        if self.is_running() {
            self.prepare_next(entries, &|| self.is_running())
        } else {
            Pace::Over
        }
    }

    /// Prepares one directory of those that the walk will list next, with at most `entries` entries, as long as `go_on`
    /// says so.
    pub fn prepare_next(&self, entries: usize, go_on: &dyn Fn() -> bool) -> Pace {
        let lead = LEAD.min(self.options.limits.nodes / 2);
        let (last, top, known) = {
            let guess = self.walk.0.lock();
            if lead == 0 {
                return Pace::Over;
            }
            if guess.entries >= lead {
                return Pace::Wait(guess.at);
            }
            let known = guess.ahead.iter().find(|known| !known.prepared);
            (guess.last, guess.top, known.map(|known| known.ino))
        };
        let next = match known {
            Some(known) => self.nodes.get(known),
            None => self.next_below(last, top),
        };
        let Some(next) = next else {
            let mut guess = self.walk.0.lock();
            guess.ends |= known.is_none() && guess.last == last;
            guess.running = false;
            return Pace::Over;
        };
        if known.is_none() {
            let mut guess = self.walk.0.lock();
            if guess.last != last {
                return Pace::On;
            }
            guess.expect(next.ino);
        }
        let entries = self.prepare(&next, entries, go_on).unwrap_or_else(|error| {
            tracing::debug!(ino = next.ino, %error, "cannot read ahead");
            0
        });
        self.counters.count(&self.counters.read_ahead);
        // A directory counts too.
        self.walk.0.lock().prepared(next.ino, entries + 1);
        Pace::On
    }

    fn parent_of(&self, ino: u64) -> Option<u64> {
        let node = self.nodes.get(ino)?;
        let above = node.state().aliases.first()?.parent.ino;
        Some(above)
    }

    fn next_below(&self, ino: u64, top: u64) -> Option<Arc<Node>> {
        let _names = self.names.read();
        self.next_of_walk(self.nodes.get(ino)?, top)
    }

    /// The directory that a depth-first walk of `top` lists after `node`. The caller holds `names`.
    fn next_of_walk(&self, node: Arc<Node>, top: u64) -> Option<Arc<Node>> {
        let first = self.next_directory(&node, 0);
        if first.is_some() {
            return first;
        }
        let mut node = node;
        for _ in 0..LEVELS {
            if node.ino == ROOT || node.ino == top {
                return None;
            }
            let alias = node.state().aliases.first().cloned()?;
            let position = {
                let state = alias.parent.dir.as_ref()?.state.lock();
                state.index.position(alias.name.get())?
            };
            let next = self.next_directory(&alias.parent, position + 1);
            if next.is_some() {
                return next;
            }
            node = alias.parent;
        }
        None
    }

    /// The first directory in the listing of `node` from a position on.
    fn next_directory(&self, node: &Arc<Node>, position: usize) -> Option<Arc<Node>> {
        let mut state = node.dir.as_ref()?.state.lock();
        let mut position = position;
        loop {
            let (found, _, entry) = state.index.next(position)?;
            if entry.kind == Kind::Directory {
                let child = self.child_at(node, &mut state, found).ok().flatten()?;
                return Some(Arc::clone(child.node()));
            }
            position = found + 1;
        }
    }

    /// Lists a directory and reads attributes of `most` entries; says of how many it was.
    fn prepare(&self, node: &Arc<Node>, most: usize, go_on: &dyn Fn() -> bool) -> Result<usize> {
        let dir = node.dir.as_ref().ok_or(Errno::NOTDIR)?;
        let (mut after, mut entries) = (0, 0);
        while entries < most && go_on() {
            let _names = self.names.read();
            let mut state = dir.state.lock();
            self.complete_index(node, &mut state)?;
            let mut position = state.index.seek(after);
            let before = entries;
            while entries < most.min(before + AT_ONCE) {
                let Some((found, cookie, _)) = state.index.next(position) else {
                    return Ok(entries);
                };
                self.child_at(node, &mut state, found)?;
                entries += 1;
                (position, after) = (found + 1, cookie);
            }
        }
        Ok(entries)
    }
}

#[cfg(test)]
mod tests;
