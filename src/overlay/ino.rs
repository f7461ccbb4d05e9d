//! Inode numbers of the mount.
//!
//! A number is the real one where that is unique: objects of the first filesystem (the upper's, or the topmost
//! lower's) keep theirs, others get their filesystem's position in the bits 56 to 62. All archives together count as
//! one filesystem, whose numbers go on from one archive to the next: were the same low ones used again for each, the
//! kernel's table of inodes, which looks at the low bits, would have all of them in the same chains. What does not
//! fit, or is taken, gets a number counted up from bit 63, never used twice in the life of a mount. So numbers are the
//! same after a remount, and, counting a copied-up object by its origin, before and after a copy-up.

use parking_lot::Mutex;
use rustc_hash::FxHashMap;

use super::node::ROOT;

const FS_SHIFT: u32 = 56;
const FS_MAX: usize = 126;
const DYNAMIC: u64 = 1 << 63;
/// Dynamic numbers where all must fit 32 bits.
const DYNAMIC_32: u64 = 1 << 31;

/// A filesystem with a device number.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Filesystem {
    /// The device number.
    pub dev: u64,
    /// All its numbers are below this: of an archive.
    pub end: Option<u64>,
}

/// How the numbers of a filesystem are shown.
#[derive(Debug)]
struct Shown {
    dev: u64,
    /// What the bits from `FS_SHIFT` on are.
    space: usize,
    /// Added to them.
    base: u64,
}

#[derive(Debug)]
struct Numbers {
    /// Those of the layers, then in order of appearance.
    filesystems: Vec<Shown>,
    /// How many spaces they have.
    spaces: usize,
    /// Numbers given to objects whose own do not fit.
    assigned: FxHashMap<(u64, u64), u64>,
    next: u64,
}

impl Shown {
    fn alone(dev: u64, space: usize) -> Self {
        Self {
            dev,
            space,
            base: 0,
        }
    }
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
    /// `filesystems` are those of the layers, in an order that is the same each time; the numbers of the first are
    /// kept. `narrow` keeps all numbers below 2^32.
    pub fn new(filesystems: impl IntoIterator<Item = Filesystem>, narrow: bool) -> Self {
        let mut shown: Vec<Shown> = Vec::new();
        // Of all archives, and where the numbers of the next one begin.
        let (mut archives, mut base) = (None, 0);
        let mut spaces = 0;
        let mut next = || {
            spaces += 1;
            spaces - 1
        };
        for Filesystem { dev, end } in filesystems {
            if shown.iter().any(|known| known.dev == dev) {
                continue;
            }
            shown.push(match end {
                Some(end) => {
                    let space = *archives.get_or_insert_with(&mut next);
                    base += end;
                    let base = base - end;
                    Shown { dev, space, base }
                }
                None => Shown::alone(dev, next()),
            });
        }
        Self {
            first: shown.first().map_or(0, |first| first.dev),
            numbers: Mutex::new(Numbers {
                filesystems: shown,
                spaces,
                assigned: FxHashMap::default(),
                next: if narrow { DYNAMIC_32 } else { DYNAMIC },
            }),
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
        let known = numbers.filesystems.iter().position(|it| it.dev == dev);
        let position = known.unwrap_or_else(|| {
            let space = numbers.spaces;
            numbers.spaces += 1;
            numbers.filesystems.push(Shown::alone(dev, space));
            numbers.filesystems.len() - 1
        });
        let Shown { space, base, .. } = numbers.filesystems[position];
        let highest = if self.narrow { 0 } else { FS_MAX };
        if ino > ROOT && ino.saturating_add(base) < limit && space <= highest {
            return (ino + base) | ((space as u64) << FS_SHIFT);
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

    fn disk(dev: u64) -> Filesystem {
        Filesystem { dev, end: None }
    }

    fn archive(dev: u64, end: u64) -> Filesystem {
        let end = Some(end);
        Filesystem { dev, end }
    }

    #[test]
    fn numbers_are_real_where_they_can_be_and_unique_always() {
        let map = InoMap::new([disk(10)], false);
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
            let map = InoMap::new([10, 11, 12, 11].map(disk), false);
            map.number(first, 42);
            map.number(12, 42)
        };
        assert_eq!(number(11), number(12));
    }

    #[test]
    fn narrow_numbers_fit_32_bits() {
        let map = InoMap::new([disk(10)], true);
        for (dev, ino) in [(10, 5), (10, 1 << 40), (11, 5)] {
            assert!(u32::try_from(map.number(dev, ino)).is_ok());
        }
    }

    #[test]
    fn numbers_of_archives_go_on_from_one_to_the_next() {
        for (below, narrow) in [(0, false), (1, false), (0, true)] {
            let disks = [disk(10)].into_iter().take(below);
            let archives = [archive(1, 100), archive(2, 50), archive(3, 2)];
            let map = InoMap::new(disks.chain(archives), narrow);
            let space = (below as u64) << FS_SHIFT;
            assert_eq!(map.number(1, 99), space + 99);
            assert_eq!(map.number(2, 2), space + 102);
            assert_eq!(map.number(3, 7), space + 157);
            // They have one space together.
            if !narrow {
                assert_eq!(map.number(11, 7), (below as u64 + 1) << FS_SHIFT | 7);
            }
        }
    }
}
