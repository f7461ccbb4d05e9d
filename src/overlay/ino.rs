//! Inode numbers of the mount.
//!
//! A number is the real one where that is unique: objects of the first filesystem (the upper's, or the topmost
//! lower's) keep theirs, others get their filesystem's position in the bits 56 to 62. What does not fit, or is
//! taken, gets a number counted up from bit 63, never used twice in the life of a mount. So numbers are the same
//! after a remount, and, counting a copied-up object by its origin, before and after a copy-up.

use parking_lot::Mutex;
use rustc_hash::FxHashMap;

use super::node::ROOT;

const FS_SHIFT: u32 = 56;
const FS_MAX: usize = 126;
const DYNAMIC: u64 = 1 << 63;
/// Dynamic numbers where all must fit 32 bits.
const DYNAMIC_32: u64 = 1 << 31;

#[derive(Debug)]
struct Numbers {
    /// Device numbers: of the layers, then in order of appearance.
    filesystems: Vec<u64>,
    /// Numbers given to objects whose own do not fit.
    assigned: FxHashMap<(u64, u64), u64>,
    next: u64,
}

impl Numbers {
    fn assign(&mut self, dev: u64, ino: u64) -> u64 {
        let next = &mut self.next;
        *self.assigned.entry((dev, ino)).or_insert_with(|| {
            *next += 1;
            *next - 1
        })
    }
}

/// Maps a real object to its number.
#[derive(Debug)]
pub struct InoMap {
    numbers: Mutex<Numbers>,
    /// The only filesystem so far, to answer without the lock.
    first: u64,
    narrow: bool,
}

impl InoMap {
    /// `devices` are those of the layers, in an order that is the same each time; the numbers of the first are kept.
    /// `narrow` keeps all numbers below 2^32.
    pub fn new(devices: impl IntoIterator<Item = u64>, narrow: bool) -> Self {
        let next = if narrow { DYNAMIC_32 } else { DYNAMIC };
        let mut filesystems = Vec::new();
        for device in devices {
            if !filesystems.contains(&device) {
                filesystems.push(device);
            }
        }
        let first = filesystems.first().copied().unwrap_or(0);
        let numbers = Numbers {
            filesystems,
            assigned: FxHashMap::default(),
            next,
        };
        Self {
            numbers: Mutex::new(numbers),
            first,
            narrow,
        }
    }

    /// The number of the object `ino` on the filesystem `dev`.
    pub fn number(&self, dev: u64, ino: u64) -> u64 {
        let limit = if self.narrow {
            DYNAMIC_32
        } else {
            1 << FS_SHIFT
        };
        if dev == self.first && ino > ROOT && ino < limit {
            return ino;
        }
        let mut numbers = self.numbers.lock();
        let known = numbers.filesystems.iter().position(|&other| other == dev);
        let position = known.unwrap_or_else(|| {
            numbers.filesystems.push(dev);
            numbers.filesystems.len() - 1
        });
        if !self.narrow && ino > ROOT && ino < limit && position <= FS_MAX {
            return ino | ((position as u64) << FS_SHIFT);
        }
        numbers.assign(dev, ino)
    }

    /// A number of its own for an object whose number another object has; the same one each time.
    pub fn assigned(&self, dev: u64, ino: u64) -> u64 {
        self.numbers.lock().assign(dev, ino)
    }

    /// A number nothing else has or will have.
    pub fn fresh(&self) -> u64 {
        let mut numbers = self.numbers.lock();
        numbers.next += 1;
        numbers.next - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_real_where_they_can_be_and_unique_always() {
        let map = InoMap::new([10], false);
        assert_eq!(map.number(10, 42), 42);
        let other = map.number(11, 42);
        assert_ne!(other, 42);
        assert_eq!(map.number(11, 42), other);
        let huge = map.number(10, u64::MAX);
        assert_eq!(map.number(10, u64::MAX), huge);
        assert_ne!(map.number(10, ROOT), ROOT);
        assert_ne!(map.fresh(), map.fresh());
    }

    #[test]
    fn numbers_do_not_depend_on_the_order_in_which_layers_are_looked_at() {
        let number = |first: u64| {
            let map = InoMap::new([10, 11, 12, 11], false);
            map.number(first, 42);
            map.number(12, 42)
        };
        assert_eq!(number(11), number(12));
    }

    #[test]
    fn narrow_numbers_fit_32_bits() {
        let map = InoMap::new([10], true);
        for (dev, ino) in [(10, 5), (10, 1 << 40), (11, 5)] {
            assert!(u32::try_from(map.number(dev, ino)).is_ok());
        }
    }
}
