//! Read-ahead of tree walks: while a walker (find, tar, rsync, du) works on the directory it has just been given, the
//! one it will list next is listed already.
//!
//! Walkers go depth first in listing order, so the next directory is known: the first subdirectory, else the next
//! sibling, else that of the parent, and so on. Nothing is read ahead until two such guesses in a row came true.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use rustix::io::{Errno, Result};

use super::Overlay;
use super::node::{DirState, Node, ROOT};
use crate::layer::attr::Kind;

/// Guesses that must have come true before anything is read.
const SURE: u8 = 2;
/// Entries prepared; about what fits one reply.
const ENTRIES: usize = 128;
/// Directories left behind at once when a walker goes up.
const LEVELS: usize = 64;

/// What is known of a walk. Not exact under concurrent walks, and need not be.
#[derive(Debug, Default)]
pub(super) struct Walk {
    /// Number of the directory expected to be listed next.
    next: AtomicU64,
    /// Guesses in a row that came true.
    hits: AtomicU8,
}

impl Walk {
    /// A listing of `ino` begins.
    pub(super) fn begin(&self, ino: u64) {
        if self.next.load(Ordering::Relaxed) == ino {
            let hits = self.hits.load(Ordering::Relaxed);
            self.hits.store(hits.saturating_add(1), Ordering::Relaxed);
        } else {
            self.hits.store(0, Ordering::Relaxed);
        }
    }
}

impl Overlay {
    /// To be called when the beginning of the directory `ino` has been listed and answered.
    pub fn read_ahead(&self, ino: u64) {
        if self.options.timeout.is_some() {
            return;
        }
        let _names = self.names.read();
        let Ok(node) = self.node(ino) else { return };
        let Some(next) = self.next_of_walk(node) else {
            return;
        };
        self.walk.next.store(next.ino, Ordering::Relaxed);
        if self.walk.hits.load(Ordering::Relaxed) >= SURE
            && let Err(error) = self.prepare(&next)
        {
            tracing::debug!(ino = next.ino, %error, "cannot read ahead");
        }
    }

    /// The directory a depth-first walk lists after `node`.
    fn next_of_walk(&self, node: Arc<Node>) -> Option<Arc<Node>> {
        let first = {
            let state = node.dir.as_ref()?.state.lock();
            self.next_directory(&state, 0)
        };
        if first.is_some() {
            return first;
        }
        let mut node = node;
        for _ in 0..LEVELS {
            if node.ino == ROOT {
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

    /// Lists a directory and reads attributes of its first entries.
    fn prepare(&self, node: &Arc<Node>) -> Result<()> {
        let dir = node.dir.as_ref().ok_or(Errno::NOTDIR)?;
        let mut state = dir.state.lock();
        if state.index.complete {
            return Ok(());
        }
        self.build_index(node, &mut state)?;
        let mut position = 0;
        for _ in 0..ENTRIES {
            let Some((found, _, _)) = state.index.next(position) else {
                break;
            };
            self.child_at(node, &mut state, found)?;
            position = found + 1;
        }
        Ok(())
    }
}
