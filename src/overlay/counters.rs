//! What the union counts: caches, copy-ups, memory.

use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};

use super::Overlay;
use crate::layer::copy::Method;

/// Counters since the mount.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// Files copied up, with data or metadata alone.
    pub(super) copy_ups: AtomicU64,
    /// Bytes of data copied.
    bytes: AtomicU64,
    reflinks: AtomicU64,
    range_copies: AtomicU64,
    buffered_copies: AtomicU64,
    /// Directory listings read from layers.
    pub(super) indexes_built: AtomicU64,
    /// Directories prepared before a walk came to them.
    pub(super) read_ahead: AtomicU64,
    /// Names whose node was known, and whose node had to be made.
    pub(super) nodes_found: AtomicU64,
    pub(super) nodes_made: AtomicU64,
}

impl Counters {
    /// Adds one.
    #[expect(clippy::unused_self, reason = "reads as counters.count(..)")]
    pub(super) fn count(&self, counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes the data of a copy-up.
    pub(super) fn copied(&self, method: Method, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let counter = match method {
            Method::None => return,
            Method::Reflink => &self.reflinks,
            Method::CopyRange => &self.range_copies,
            Method::ReadWrite => &self.buffered_copies,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

impl Overlay {
    /// Counters and sizes, for `plyfs stats`.
    pub fn statistics(&self) -> Value {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.counters;
        let (nodes, cold) = self.nodes.sizes();
        let (found, made) = (get(&counters.nodes_found), get(&counters.nodes_made));
        let fds = &self.stack.fds;
        json!({
            "copy_up": {
                "files": get(&counters.copy_ups),
                "bytes": get(&counters.bytes),
                "reflinks": get(&counters.reflinks),
                "copy_file_range": get(&counters.range_copies),
                "read_write": get(&counters.buffered_copies),
            },
            "cache": {
                "nodes": nodes,
                "nodes_unreferenced": cold,
                "nodes_found": found,
                "nodes_made": made,
                "node_hit_percent": (found * 100).checked_div(found + made).unwrap_or(0),
                "listings_read": get(&counters.indexes_built),
                "directories_read_ahead": get(&counters.read_ahead),
            },
            "descriptors": {
                "directories": fds.dirs.open(),
                "directories_limit": fds.dirs.budget(),
                "files": fds.files.open(),
                "files_limit": fds.files.budget(),
            },
            "memory_bytes": crate::layer::resident_memory(),
        })
    }
}
