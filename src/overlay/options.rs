//! What a mount may be asked to do differently from the default.

use std::time::Duration;

/// A contiguous range of ids: `len` ids from `host` (on disk) appear from `inside` (in the mount).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct IdRange {
    /// First id as stored in the layers.
    pub host: u32,
    /// First id as seen through the mount.
    pub inside: u32,
    /// Number of ids.
    pub len: u32,
}

/// How a directory is renamed that lower layers have a part in (`redirect_dir=`).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum RedirectDir {
    /// In one step, by a mark that leads to where its lower parts stay; where the upper takes no marks, as `Copy`.
    #[default]
    On,
    /// By copying up all that is in it first: any union can read the upper. EXDEV if something cannot be copied.
    Copy,
    /// Not at all: EXDEV, on which `mv` copies.
    Off,
}

/// Whether files with POSIX ACLs are checked by them.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Acl {
    /// On where several users may use the mount (`allow_other`), off otherwise.
    #[default]
    Auto,
    /// Enforced.
    On,
    /// Not enforced, and ACL xattrs are refused (`noacl`).
    Off,
}

/// Bounds of the caches. Reaching one costs speed, never correctness.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// Nodes kept although the kernel has forgotten them.
    pub nodes: usize,
    /// Open directory descriptors; 0 = derived from `RLIMIT_NOFILE`.
    pub dir_fds: usize,
    /// Open file descriptors for I/O; 0 = derived from `RLIMIT_NOFILE`.
    pub file_fds: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            nodes: 16384,
            dir_fds: 0,
            file_fds: 0,
        }
    }
}

/// Options of the union itself.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent switches of the command line"
)]
pub struct Options {
    /// How a directory is renamed that lower layers have a part in.
    pub redirect_dir: RedirectDir,
    /// Copy metadata alone until data is written (`metacopy=on`).
    pub metacopy: bool,
    /// Keep hard links across copy-up (`index=on`).
    pub index: bool,
    /// Ids on disk to ids in the mount; empty = unchanged.
    pub uid_map: Vec<IdRange>,
    /// As `uid_map` for groups.
    pub gid_map: Vec<IdRange>,
    /// Every file shows this owner.
    pub squash_uid: Option<u32>,
    /// Every file shows this group.
    pub squash_gid: Option<u32>,
    /// Serve extended attributes (`noxattr` turns them off).
    pub xattrs: bool,
    /// POSIX ACLs.
    pub acl: Acl,
    /// Directories report one link (`static_nlink`).
    pub static_nlink: bool,
    /// Inode numbers fit 32 bits (`ino32_t`).
    pub ino32: bool,
    /// How long the kernel and we may trust what was read of the layers; `None` = for ever.
    pub timeout: Option<Duration>,
    /// Bounds of the caches.
    pub limits: Limits,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            redirect_dir: RedirectDir::On,
            metacopy: false,
            index: true,
            uid_map: Vec::new(),
            gid_map: Vec::new(),
            squash_uid: None,
            squash_gid: None,
            xattrs: true,
            acl: Acl::Auto,
            static_nlink: false,
            ino32: false,
            timeout: None,
            limits: Limits::default(),
        }
    }
}
