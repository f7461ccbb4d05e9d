//! Read-ahead of tree walks: while a walker (find, tar, rsync, du) works on what it has been given, the directories
//! it will list next are listed already, with the attributes of their entries, by a thread of its own.
//!
//! Walkers go depth first in listing order, so the next directory is known: the first subdirectory, else the next
//! sibling, else that of the parent, and so on up to where the walk began. Nothing is read ahead until two such
//! guesses in a row came true; one that does not ends it.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::io::{Errno, Result};

use super::Overlay;
use super::node::{DirState, Node, ROOT};
use crate::layer::attr::Kind;

/// Guesses that must have come true before anything is read.
const SURE: u8 = 2;
/// Entries prepared before the walker has to come closer, if the cache of nodes holds twice as many.
const LEAD: usize = 4096;
/// Entries prepared without a break, for others wait for the lock of a directory.
const AT_ONCE: usize = 64;
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
        if let Some(known) = self.ahead.iter_mut().rfind(|known| known.ino == ino) {
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

    /// To be called when the beginning of the directory `ino` has been listed and answered. `true`: somebody has to call
    /// [`Overlay::walk_on`] until it is over.
    pub fn read_ahead(&self, ino: u64) -> bool {
        let top = {
            let guess = self.walk.0.lock();
            if guess.running || guess.ends || guess.at != ino {
                return false;
            }
            guess.ahead.is_empty().then_some(guess.top)
        };
        let next = top.and_then(|top| {
            let _names = self.names.read();
            self.next_of_walk(self.nodes.get(ino)?, top)
        });
        let mut guess = self.walk.0.lock();
        if guess.running || guess.at != ino {
            return false;
        }
        match next {
            Some(next) if guess.ahead.is_empty() => guess.expect(next.ino),
            None if top.is_some() => guess.ends = true,
            _ => {}
        }
        guess.running = guess.hits >= SURE && !guess.ahead.is_empty();
        guess.running
    }

    /// Prepares one directory of those that a walk will list next, with at most `entries` entries.
    pub fn walk_on(&self, entries: usize) -> Pace {
        let lead = LEAD.min(self.options.limits.nodes / 2);
        let (last, top, known) = {
            let guess = self.walk.0.lock();
            if !guess.running {
                return Pace::Over;
            }
            if guess.entries >= lead {
                return Pace::Wait(guess.at);
            }
            let known = guess.ahead.iter().find(|known| !known.prepared);
            (guess.last, guess.top, known.map(|known| known.ino))
        };
        let next = if let Some(known) = known {
            self.nodes.get(known)
        } else {
            let _names = self.names.read();
            let last = self.nodes.get(last);
            last.and_then(|last| self.next_of_walk(last, top))
        };
        let Some(next) = next else {
            let mut guess = self.walk.0.lock();
            guess.ends = guess.last == last;
            guess.running &= !guess.ends;
            return Pace::On;
        };
        if known.is_none() {
            let mut guess = self.walk.0.lock();
            if guess.last != last {
                return Pace::On;
            }
            guess.expect(next.ino);
        }
        let entries = self.prepare(&next, entries).unwrap_or_else(|error| {
            tracing::debug!(ino = next.ino, %error, "cannot read ahead");
            0
        });
        self.counters.count(&self.counters.read_ahead);
        // A directory counts too.
        self.walk.0.lock().prepared(next.ino, entries + 1);
        Pace::On
    }

    /// Nobody prepares anything until [`Overlay::read_ahead`] asks for it again.
    pub fn pause_walk(&self) {
        self.walk.0.lock().running = false;
    }

    /// The directory that a depth-first walk of `top` lists after `node`.
    fn next_of_walk(&self, node: Arc<Node>, top: u64) -> Option<Arc<Node>> {
        let first = {
            let state = node.dir.as_ref()?.state.lock();
            self.next_directory(&state, 0)
        };
        if first.is_some() {
            return first;
        }
        let mut node = node;
        for _ in 0..LEVELS {
            if node.ino == ROOT || node.ino == top {
                return None;
            }
            let alias = node.state().aliases.first().cloned()?;
            let next = {
                let state = alias.parent.dir.as_ref()?.state.lock();
                let position = state.index.position(alias.name.get())?;
                self.next_directory(&state, position + 1)
            };
            if next.is_some() {
                return next;
            }
            node = alias.parent;
        }
        None
    }

    /// The first known directory in the listing from a position on.
    fn next_directory(&self, state: &DirState, position: usize) -> Option<Arc<Node>> {
        let mut position = position;
        while let Some((found, _, entry)) = state.index.next(position) {
            if entry.kind == Kind::Directory {
                return self.nodes.get(entry.node);
            }
            position = found + 1;
        }
        None
    }

    /// Lists a directory and reads attributes of `most` entries; says of how many it was.
    fn prepare(&self, node: &Arc<Node>, most: usize) -> Result<usize> {
        let dir = node.dir.as_ref().ok_or(Errno::NOTDIR)?;
        let (mut after, mut entries) = (0, 0);
        while entries < most {
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
