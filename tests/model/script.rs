//! The steps of a run: what the layers hold, then what is done to the merged tree.

use std::fmt;

/// One line of a script.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Puts an object into a layer before anything is mounted.
    Build(Build),
    /// Is executed on both merged trees.
    Op(Op, Caller),
}

/// Who executes an operation.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Caller {
    Root,
    /// User and group 1000, without capabilities.
    User,
}

/// An object of a layer.
#[derive(Clone, Debug)]
pub(crate) struct Build {
    /// 0 is the upper, 1 the topmost lower.
    pub(crate) layer: usize,
    pub(crate) path: String,
    pub(crate) item: Item,
    pub(crate) mode: u32,
    pub(crate) owner: u32,
}

/// What the object is.
#[derive(Clone, Debug)]
pub(crate) enum Item {
    Dir { opaque: bool },
    File { hole: u64, len: usize, fill: u64 },
    Link { to: String },
    Symlink { target: String },
    Fifo,
    Device,
    Whiteout,
    Xattr { name: &'static str, len: usize },
}

/// How [`Op::Write`] opens.
#[derive(Clone, Copy, Debug)]
pub(crate) enum How {
    At,
    Append,
    Trunc,
}

/// The flag of a rename.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Flag {
    None,
    NoReplace,
    Exchange,
    Whiteout,
}

/// What mknod makes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Node {
    Fifo,
    Socket,
    Device,
    Whiteout,
}

/// How a kept descriptor is opened.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Access {
    Read,
    Write,
    Append,
    Dir,
}

/// What fallocate does.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Alloc {
    Extend,
    KeepSize,
    Punch,
    Zero,
}

/// One operation. `slot` names a descriptor that stays open over other operations.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Create {
        path: String,
        mode: u32,
        excl: bool,
    },
    Write {
        path: String,
        how: How,
        off: u64,
        len: usize,
        fill: u64,
    },
    Truncate {
        path: String,
        len: u64,
    },
    Mkdir {
        path: String,
        mode: u32,
    },
    Rmdir {
        path: String,
    },
    Unlink {
        path: String,
    },
    Rename {
        from: String,
        to: String,
        flag: Flag,
    },
    Link {
        from: String,
        to: String,
    },
    Symlink {
        target: String,
        path: String,
    },
    Mknod {
        path: String,
        node: Node,
        mode: u32,
    },
    Chmod {
        path: String,
        mode: u32,
    },
    Chown {
        path: String,
        uid: Option<u32>,
        gid: Option<u32>,
    },
    Utimes {
        path: String,
        mtime: i64,
        nanos: i64,
    },
    SetXattr {
        path: String,
        name: &'static str,
        len: usize,
        fill: u64,
        flag: Flag,
    },
    RemoveXattr {
        path: String,
        name: &'static str,
    },
    SetAcl {
        path: String,
        default: bool,
        perm: u16,
    },
    ListXattr {
        path: String,
    },
    Readdir {
        path: String,
    },
    Stat {
        path: String,
    },
    Readlink {
        path: String,
    },
    Read {
        path: String,
    },
    Fallocate {
        path: String,
        alloc: Alloc,
        off: u64,
        len: u64,
    },
    CopyRange {
        from: String,
        to: String,
        from_off: u64,
        to_off: u64,
        len: usize,
    },
    Open {
        slot: usize,
        path: String,
        access: Access,
    },
    SlotRead {
        slot: usize,
    },
    SlotWrite {
        slot: usize,
        off: u64,
        len: usize,
        fill: u64,
    },
    SlotTruncate {
        slot: usize,
        len: u64,
    },
    SlotStat {
        slot: usize,
    },
    SlotChmod {
        slot: usize,
        mode: u32,
    },
    SlotSync {
        slot: usize,
    },
    SlotReaddir {
        slot: usize,
    },
    SlotLink {
        slot: usize,
        path: String,
    },
    SlotClose {
        slot: usize,
    },
    Remount,
    /// The upper of one side becomes the topmost lower of both, under empty uppers.
    Restack {
        left: bool,
    },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Build(build) => build.fmt(f),
            Self::Op(op, Caller::Root) => op.fmt(f),
            Self::Op(op, Caller::User) => write!(f, "as 1000: {op}"),
        }
    }
}

impl fmt::Display for Build {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            layer,
            path,
            item,
            mode,
            owner,
        } = self;
        match layer {
            0 => write!(f, "upper   ")?,
            n => write!(f, "lower{n}  ")?,
        }
        match item {
            Item::Dir { opaque } => {
                let opaque = if *opaque { " opaque" } else { "" };
                write!(f, "dir {path}/ {mode:04o} owner={owner}{opaque}")
            }
            Item::File { hole, len, fill } => {
                write!(
                    f,
                    "file {path} {mode:04o} owner={owner} hole={hole} len={len} fill={fill}"
                )
            }
            Item::Link { to } => write!(f, "link {path} = {to}"),
            Item::Symlink { target } => write!(f, "symlink {path} -> {target}"),
            Item::Fifo => write!(f, "fifo {path} {mode:04o}"),
            Item::Device => write!(f, "device {path} {mode:04o}"),
            Item::Whiteout => write!(f, "whiteout {path}"),
            Item::Xattr { name, len } => write!(f, "xattr {path} {name} len={len}"),
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create { path, mode, excl } => {
                write!(
                    f,
                    "create {path} {mode:04o}{}",
                    if *excl { " O_EXCL" } else { "" }
                )
            }
            Self::Write {
                path,
                how,
                off,
                len,
                fill,
            } => {
                write!(f, "write {path} {how:?} off={off} len={len} fill={fill}")
            }
            Self::Truncate { path, len } => write!(f, "truncate {path} {len}"),
            Self::Mkdir { path, mode } => write!(f, "mkdir {path} {mode:04o}"),
            Self::Rmdir { path } => write!(f, "rmdir {path}"),
            Self::Unlink { path } => write!(f, "unlink {path}"),
            Self::Rename { from, to, flag } => write!(f, "rename {from} {to} {flag:?}"),
            Self::Link { from, to } => write!(f, "link {from} {to}"),
            Self::Symlink { target, path } => write!(f, "symlink {target} {path}"),
            Self::Mknod { path, node, mode } => write!(f, "mknod {path} {node:?} {mode:04o}"),
            Self::Chmod { path, mode } => write!(f, "chmod {path} {mode:04o}"),
            Self::Chown { path, uid, gid } => write!(f, "chown {path} uid={uid:?} gid={gid:?}"),
            Self::Utimes { path, mtime, nanos } => write!(f, "utimes {path} {mtime}.{nanos:09}"),
            Self::SetXattr {
                path,
                name,
                len,
                flag,
                ..
            } => {
                write!(f, "setxattr {path} {name} len={len} {flag:?}")
            }
            Self::SetAcl {
                path,
                default,
                perm,
            } => {
                write!(f, "setfacl {path} default={default} user:1000:{perm}")
            }
            Self::RemoveXattr { path, name } => write!(f, "removexattr {path} {name}"),
            Self::ListXattr { path } => write!(f, "listxattr {path}"),
            Self::Readdir { path } => write!(f, "readdir {path}"),
            Self::Stat { path } => write!(f, "stat {path}"),
            Self::Readlink { path } => write!(f, "readlink {path}"),
            Self::Read { path } => write!(f, "read {path}"),
            Self::Open { slot, path, access } => write!(f, "fd{slot} = open {path} {access:?}"),
            Self::Remount => write!(f, "remount both"),
            Self::Restack { left } => {
                let whose = if *left { "left" } else { "right" };
                write!(f, "stack both on the {whose} upper")
            }
            _ => self.fmt_rest(f),
        }
    }
}

impl Op {
    /// The rest of [`fmt::Display`].
    fn fmt_rest(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fallocate {
                path,
                alloc,
                off,
                len,
            } => {
                write!(f, "fallocate {path} {alloc:?} off={off} len={len}")
            }
            Self::CopyRange {
                from,
                to,
                from_off,
                to_off,
                len,
            } => {
                write!(
                    f,
                    "copy_file_range {from}@{from_off} {to}@{to_off} len={len}"
                )
            }
            Self::SlotRead { slot } => write!(f, "fd{slot} read"),
            Self::SlotWrite { slot, off, len, .. } => {
                write!(f, "fd{slot} write off={off} len={len}")
            }
            Self::SlotTruncate { slot, len } => write!(f, "fd{slot} ftruncate {len}"),
            Self::SlotStat { slot } => write!(f, "fd{slot} fstat"),
            Self::SlotChmod { slot, mode } => write!(f, "fd{slot} fchmod {mode:04o}"),
            Self::SlotSync { slot } => write!(f, "fd{slot} fsync"),
            Self::SlotReaddir { slot } => write!(f, "fd{slot} getdents"),
            Self::SlotLink { slot, path } => write!(f, "fd{slot} linkat {path}"),
            Self::SlotClose { slot } => write!(f, "fd{slot} close"),
            _ => write!(f, "{self:?}"),
        }
    }
}
