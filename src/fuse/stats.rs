//! What the daemon counts: requests by kind with latencies, always on. A request costs two clock readings and three
//! additions to counters of its own kind. It is counted when it begins, so that whoever has the answer finds it counted,
//! also by another thread; its latency when it has been answered.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use serde_json::{Map, Value, json};

/// Kinds of requests.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(usize)]
pub(super) enum Op {
    Lookup,
    Forget,
    Getattr,
    Setattr,
    Readlink,
    Mknod,
    Mkdir,
    Symlink,
    Unlink,
    Rmdir,
    Rename,
    Link,
    Open,
    Read,
    Write,
    Flush,
    Release,
    Fsync,
    Opendir,
    Readdir,
    Readdirplus,
    Fsyncdir,
    Statfs,
    Setxattr,
    Getxattr,
    Listxattr,
    Removexattr,
    Access,
    Create,
    Fallocate,
    Lseek,
    CopyFileRange,
    Ioctl,
}

const NAMES: [&str; 33] = [
    "lookup",
    "forget",
    "getattr",
    "setattr",
    "readlink",
    "mknod",
    "mkdir",
    "symlink",
    "unlink",
    "rmdir",
    "rename",
    "link",
    "open",
    "read",
    "write",
    "flush",
    "release",
    "fsync",
    "opendir",
    "readdir",
    "readdirplus",
    "fsyncdir",
    "statfs",
    "setxattr",
    "getxattr",
    "listxattr",
    "removexattr",
    "access",
    "create",
    "fallocate",
    "lseek",
    "copy_file_range",
    "ioctl",
];

/// Latencies are counted in powers of two of a nanosecond.
const BUCKETS: usize = 40;

/// Counters of one kind.
#[derive(Debug)]
struct Counter {
    begun: AtomicU64,
    nanos: AtomicU64,
    buckets: [AtomicU64; BUCKETS],
}

impl Default for Counter {
    fn default() -> Self {
        Self {
            begun: AtomicU64::new(0),
            nanos: AtomicU64::new(0),
            buckets: [const { AtomicU64::new(0) }; BUCKETS],
        }
    }
}

/// All counters of requests.
#[derive(Debug)]
pub(super) struct Stats {
    started: Instant,
    counters: [Counter; NAMES.len()],
}

/// Counts the latency of its request when it is dropped.
#[derive(Debug)]
pub(super) struct Timer {
    stats: std::sync::Arc<Stats>,
    op: Op,
    start: Instant,
}

impl Drop for Timer {
    fn drop(&mut self) {
        let nanos = u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let counter = &self.stats.counters[self.op as usize];
        counter.nanos.fetch_add(nanos, Ordering::Relaxed);
        let bucket = (64 - nanos.leading_zeros() as usize).min(BUCKETS - 1);
        counter.buckets[bucket].fetch_add(1, Ordering::Relaxed);
    }
}

impl Stats {
    pub(super) fn new() -> Self {
        Self {
            started: Instant::now(),
            counters: std::array::from_fn(|_| Counter::default()),
        }
    }

    /// A request of this kind begins.
    pub(super) fn time(self: &std::sync::Arc<Self>, op: Op) -> Timer {
        self.counters[op as usize]
            .begun
            .fetch_add(1, Ordering::Relaxed);
        Timer {
            stats: std::sync::Arc::clone(self),
            op,
            start: Instant::now(),
        }
    }

    /// Seconds since the mount, and the counters of every kind that occurred.
    pub(super) fn describe(&self) -> (f64, Value) {
        let mut kinds = Map::new();
        for (name, counter) in NAMES.iter().zip(&self.counters) {
            let buckets: Vec<u64> = counter
                .buckets
                .iter()
                .map(|bucket| bucket.load(Ordering::Relaxed))
                .collect();
            let count = counter.begun.load(Ordering::Relaxed);
            if count == 0 {
                continue;
            }
            let answered: u64 = buckets.iter().sum();
            let nanos = counter.nanos.load(Ordering::Relaxed);
            kinds.insert(
                (*name).to_owned(),
                json!({
                    "count": count,
                    "mean_us": micros(nanos / answered.max(1)),
                    "p50_us": percentile(&buckets, answered, 50),
                    "p90_us": percentile(&buckets, answered, 90),
                    "p99_us": percentile(&buckets, answered, 99),
                }),
            );
        }
        (self.started.elapsed().as_secs_f64(), Value::Object(kinds))
    }
}

/// Nanoseconds as microseconds with one decimal.
#[expect(clippy::cast_precision_loss, reason = "for people to read")]
fn micros(nanos: u64) -> f64 {
    (nanos as f64 / 100.0).round() / 10.0
}

/// Upper bound of the bucket in which the given percentile lies, in microseconds.
fn percentile(buckets: &[u64], count: u64, percent: u64) -> f64 {
    let wanted = (count * percent).div_ceil(100);
    let mut seen = 0;
    for (bucket, &in_it) in buckets.iter().enumerate() {
        seen += in_it;
        if seen >= wanted {
            return micros(1 << bucket);
        }
    }
    micros(1 << BUCKETS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_upper_bounds_of_their_bucket() {
        let mut buckets = vec![0; BUCKETS];
        (buckets[11], buckets[20]) = (99, 1);
        assert!((percentile(&buckets, 100, 50) - 2.0).abs() < 0.1);
        assert!((percentile(&buckets, 100, 99) - 2.0).abs() < 0.1);
        assert!(percentile(&buckets, 100, 100) > 1000.0);
    }

    #[test]
    fn a_request_counts_when_it_begins_and_its_latency_when_it_ends() {
        let stats = std::sync::Arc::new(Stats::new());
        let timer = stats.time(Op::CopyFileRange);
        let (_, kinds) = stats.describe();
        assert_eq!(kinds["copy_file_range"]["count"], 1);
        assert_eq!(kinds["copy_file_range"]["p99_us"], 0.0);
        std::thread::sleep(std::time::Duration::from_millis(1));
        drop(timer);
        let (_, kinds) = stats.describe();
        assert_eq!(kinds["copy_file_range"]["count"], 1);
        assert!(kinds["copy_file_range"]["mean_us"].as_f64().unwrap() >= 1000.0);
        assert_eq!(kinds.as_object().unwrap().len(), 1);
    }
}
