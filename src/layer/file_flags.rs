//! File flags, as chattr(1) and lsattr(1) know them.
//!
//! The system has them in two forms: a word of bits, and `struct fsxattr` with more beside them. Programs use either,
//! and the kernel asks for the second before it sets the first.

use std::os::fd::BorrowedFd;

use rustix::fs::{IFlags, OFlags};
use rustix::io::{Errno, Result};

use super::at::{At, UpperAt};
use super::sys;

/// Size of `struct fsxattr` of linux/fs.h. Its first word are flags, other bits than those of the plain form.
pub const EXTENDED: usize = 28;
/// `FS_XFLAG_IMMUTABLE` and `FS_XFLAG_APPEND`.
const EXTENDED_LOCKS: u32 = 0x18;

/// The flags of an object.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FileFlags {
    /// As `FS_IOC_GETFLAGS` gives them.
    Plain(u32),
    /// As `FS_IOC_FSGETXATTR` gives them.
    Extended([u8; EXTENDED]),
}

impl FileFlags {
    /// None at all.
    pub fn none(extended: bool) -> Self {
        if extended {
            Self::Extended([0; EXTENDED])
        } else {
            Self::Plain(0)
        }
    }

    /// In the form that carries more.
    pub fn is_extended(&self) -> bool {
        matches!(self, Self::Extended(_))
    }

    /// Those of the flags that keep everybody from changing the object.
    pub fn locks(&self) -> u32 {
        match self {
            Self::Plain(bits) => bits & (IFlags::IMMUTABLE | IFlags::APPEND).bits(),
            Self::Extended([a, b, c, d, ..]) => {
                u32::from_ne_bytes([*a, *b, *c, *d]) & EXTENDED_LOCKS
            }
        }
    }

    /// Without [`FileFlags::locks`].
    #[must_use]
    pub fn unlocked(mut self) -> Self {
        let locks = self.locks();
        match &mut self {
            Self::Plain(bits) => *bits &= !locks,
            Self::Extended(all) => {
                let (word, _) = all.split_at_mut(4);
                for (byte, lock) in word.iter_mut().zip(locks.to_ne_bytes()) {
                    *byte &= !lock;
                }
            }
        }
        self
    }

    fn read(fd: BorrowedFd<'_>, extended: bool) -> Result<Self> {
        if extended {
            sys::extended_flags(fd).map(Self::Extended)
        } else {
            rustix::fs::ioctl_getflags(fd).map(|flags| Self::Plain(flags.bits()))
        }
    }

    fn write(self, fd: BorrowedFd<'_>) -> Result<()> {
        match self {
            Self::Plain(bits) => rustix::fs::ioctl_setflags(fd, IFlags::from_bits_retain(bits)),
            Self::Extended(all) => sys::set_extended_flags(fd, &all),
        }
    }
}

impl At<'_> {
    /// The flags of a file or directory.
    pub fn file_flags(self, extended: bool) -> Result<FileFlags> {
        self.with_open(|fd| FileFlags::read(fd, extended))
    }

    /// Runs `act` on a descriptor that takes ioctls.
    fn with_open<T>(self, act: impl Fn(BorrowedFd<'_>) -> Result<T>) -> Result<T> {
        use std::os::fd::AsFd;
        if let Self::Pinned(fd) = self {
            match act(fd) {
                Err(Errno::BADF) => {}
                other => return other,
            }
        }
        act(self.open(OFlags::RDONLY)?.as_fd())
    }
}

impl UpperAt<'_> {
    /// Sets the flags of a file or directory.
    pub fn set_file_flags(self, flags: FileFlags) -> Result<()> {
        self.read().with_open(|fd| flags.write(fd))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locks_are_found_and_taken_away_in_both_forms() {
        let plain = FileFlags::Plain(0x10 | 0x20 | 0x40);
        assert_eq!(
            (plain.locks(), plain.unlocked()),
            (0x30, FileFlags::Plain(0x40))
        );
        let mut all = [7; EXTENDED];
        all[..4].copy_from_slice(&(0x18_u32 | 0x80).to_ne_bytes());
        let extended = FileFlags::Extended(all);
        assert_eq!(extended.locks(), 0x18);
        all[..4].copy_from_slice(&0x80_u32.to_ne_bytes());
        assert_eq!(extended.unlocked(), FileFlags::Extended(all));
        assert_eq!(FileFlags::none(true).locks(), 0);
    }
}
