//! Attributes of one object as they are on disk.

use rustix::fs::{FileType, Statx, StatxAttributes};

/// Seconds and nanoseconds since 1970; negative before it. `nsec` is below 1,000,000,000.
///
/// Packed, because there are three in each cached node.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
#[repr(C, packed(4))]
pub struct Time {
    /// Whole seconds, rounded down.
    pub sec: i64,
    /// The rest in nanoseconds.
    pub nsec: u32,
}

/// What a file is.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

impl Kind {
    /// From the system's file type; an unknown type reads as a regular file.
    pub fn from_type(kind: FileType) -> Self {
        match kind {
            FileType::Directory => Self::Directory,
            FileType::Symlink => Self::Symlink,
            FileType::CharacterDevice => Self::CharDevice,
            FileType::BlockDevice => Self::BlockDevice,
            FileType::Fifo => Self::Fifo,
            FileType::Socket => Self::Socket,
            _ => Self::File,
        }
    }

    /// To the system's file type.
    pub fn file_type(self) -> FileType {
        match self {
            Self::File => FileType::RegularFile,
            Self::Directory => FileType::Directory,
            Self::Symlink => FileType::Symlink,
            Self::CharDevice => FileType::CharacterDevice,
            Self::BlockDevice => FileType::BlockDevice,
            Self::Fifo => FileType::Fifo,
            Self::Socket => FileType::Socket,
        }
    }
}

/// The part of statx(2) a filesystem answers with.
#[derive(Clone, Copy, Debug)]
pub struct Attr {
    /// Inode number on its own filesystem.
    pub ino: u64,
    /// Device number of that filesystem.
    pub dev: u64,
    /// Length in bytes.
    pub size: u64,
    /// Allocated 512-byte blocks.
    pub blocks: u64,
    /// Last access.
    pub atime: Time,
    /// Last change of the data.
    pub mtime: Time,
    /// Last change of the inode.
    pub ctime: Time,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Hard links.
    pub nlink: u32,
    /// Device number of a device node, in the kernel's 32-bit encoding.
    pub rdev: u32,
    /// Preferred I/O size in bytes.
    pub blksize: u32,
    /// Permission bits with suid, sgid and sticky (07777).
    pub mode: u16,
    /// What it is.
    pub kind: Kind,
    /// Another filesystem is mounted here: the layer ends.
    pub mount_root: bool,
}

impl Attr {
    /// Converts the system's answer.
    pub fn from_statx(stat: &Statx) -> Self {
        let time = |t: &rustix::fs::StatxTimestamp| Time {
            sec: t.tv_sec,
            nsec: t.tv_nsec,
        };
        let raw_mode = u32::from(stat.stx_mode);
        Self {
            ino: stat.stx_ino,
            dev: (u64::from(stat.stx_dev_major) << 32) | u64::from(stat.stx_dev_minor),
            size: stat.stx_size,
            blocks: stat.stx_blocks,
            atime: time(&stat.stx_atime),
            mtime: time(&stat.stx_mtime),
            ctime: time(&stat.stx_ctime),
            uid: stat.stx_uid,
            gid: stat.stx_gid,
            nlink: stat.stx_nlink,
            rdev: encode_dev(stat.stx_rdev_major, stat.stx_rdev_minor),
            blksize: stat.stx_blksize,
            mode: stat.stx_mode & 0o7777,
            kind: Kind::from_type(FileType::from_raw_mode(raw_mode)),
            mount_root: stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT),
        }
    }
}

/// Major and minor in the kernel's 32-bit `new_encode_dev` form, which FUSE speaks.
pub fn encode_dev(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & !0xff) << 12)
}

/// The inverse of [`encode_dev`]: major and minor.
pub fn decode_dev(dev: u32) -> (u32, u32) {
    ((dev >> 8) & 0xfff, (dev & 0xff) | ((dev >> 12) & 0xf_ff00))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_survive_the_encoding() {
        for (major, minor) in [(0, 0), (1, 3), (8, 255), (259, 65536), (4095, 1_048_575)] {
            assert_eq!(decode_dev(encode_dev(major, minor)), (major, minor));
        }
    }
}
