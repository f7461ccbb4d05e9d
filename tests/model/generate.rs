//! Random scripts: a pure function of the seed, so a seed and a list of kept lines replay any script.

use std::collections::BTreeMap;

use fastrand::Rng;

use super::script::{Access, Alloc, Build, Caller, Flag, How, Item, Node, Op, Step};

/// Lower layers below the upper.
pub(crate) const LOWERS: usize = 3;
/// Descriptors kept open.
pub(crate) const SLOTS: usize = 6;

const NAMES: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];
const MODES: [u32; 8] = [0o644, 0o600, 0o755, 0o700, 0o444, 0o666, 0o4755, 0o2750];
const DIR_MODES: [u32; 5] = [0o755, 0o700, 0o777, 0o1777, 0o2775];
const XATTRS: [&str; 3] = ["user.a", "user.b", "trusted.t"];
const MAX_DEPTH: usize = 4;

#[derive(Clone, Copy, Eq, PartialEq)]
enum Kind {
    Dir,
    File,
    Other,
}

/// Makes the script of `seed`: the layers, then `ops` operations.
pub(crate) fn script(seed: u64, ops: usize) -> Vec<Step> {
    let mut generator = Generator {
        rng: Rng::with_seed(seed),
        tree: BTreeMap::new(),
        slots: [None; SLOTS],
        // Every other seed is about permissions.
        users: seed % 2 == 1,
    };
    let mut steps = Vec::new();
    for layer in (0..=LOWERS).rev() {
        let objects = generator.rng.usize(6..22);
        for _ in 0..objects {
            let build = generator.build(layer);
            steps.push(Step::Build(build));
        }
    }
    for _ in 0..ops {
        let op = generator.op();
        generator.believe(&op);
        let user = generator.users && generator.rng.u8(..3) > 0;
        steps.push(Step::Op(op, if user { Caller::User } else { Caller::Root }));
    }
    steps
}

/// Keeps a belief of what exists, good enough to make most operations succeed.
struct Generator {
    rng: Rng,
    tree: BTreeMap<String, Kind>,
    /// Slots believed to be open, with what kind of object.
    slots: [Option<Kind>; SLOTS],
    /// An ordinary user acts, too, and owns most of what there is.
    users: bool,
}

impl Generator {
    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.rng.usize(..of.len())]
    }

    fn known(&mut self, kind: Option<Kind>) -> Option<String> {
        let matching: Vec<&String> = self
            .tree
            .iter()
            .filter(|(_, k)| kind.is_none_or(|want| want == **k))
            .map(|e| e.0)
            .collect();
        if matching.is_empty() {
            return None;
        }
        Some(matching[self.rng.usize(..matching.len())].clone())
    }

    /// A path in an existing directory, mostly new.
    fn fresh(&mut self) -> String {
        let parent = if self.rng.u8(..4) == 0 {
            None
        } else {
            self.known(Some(Kind::Dir))
        };
        let name = self.one(&NAMES);
        match parent {
            Some(parent) if parent.matches('/').count() + 2 <= MAX_DEPTH => {
                format!("{parent}/{name}")
            }
            _ => name.to_string(),
        }
    }

    fn path(&mut self, kind: Option<Kind>) -> String {
        if self.rng.u8(..12) == 0 {
            return self.fresh();
        }
        let kind = if self.rng.u8(..8) == 0 { None } else { kind };
        self.known(kind).unwrap_or_else(|| self.fresh())
    }

    fn file(&mut self) -> String {
        self.path(Some(Kind::File))
    }

    fn any(&mut self) -> String {
        self.path(None)
    }

    fn length(&mut self) -> usize {
        match self.rng.u8(..8) {
            0 => 0,
            1 => 4096,
            2 => self.rng.usize(4000..9000),
            3 => self.rng.usize(..70_000),
            _ => self.rng.usize(1..300),
        }
    }

    fn offset(&mut self) -> u64 {
        match self.rng.u8(..8) {
            0 => 4096,
            1 => self.rng.u64(..300_000),
            2 => self.rng.u64(..10_000),
            3 | 4 => self.rng.u64(..300),
            _ => 0,
        }
    }

    fn target(&mut self) -> String {
        // Never `..` nor `/`: a link must not lead out of the mount wherever it is moved.
        match self.rng.u8(..3) {
            0 => format!("{}/{}", self.one(&NAMES), self.one(&NAMES)),
            _ => self.one(&NAMES).to_string(),
        }
    }

    fn build(&mut self, layer: usize) -> Build {
        let owner = if self.users {
            self.one(&[1000, 1000, 1000, 0])
        } else {
            self.one(&[0, 0, 0, 1000])
        };
        let mut mode = self.one(&MODES);
        let mut path = self.fresh();
        let item = match self.rng.u8(..20) {
            0..=5 => {
                mode = self.one(&DIR_MODES);
                if self.rng.bool() {
                    path = self.path(Some(Kind::Dir));
                }
                Item::Dir {
                    opaque: self.rng.u8(..6) == 0,
                }
            }
            6..=10 => {
                let hole = if self.rng.u8(..4) == 0 { 200_000 } else { 0 };
                Item::File {
                    hole,
                    len: self.length(),
                    fill: self.rng.u64(..100),
                }
            }
            11 | 12 => Item::Link { to: self.file() },
            13 | 14 => Item::Symlink {
                target: self.target(),
            },
            15 => Item::Fifo,
            16 => Item::Device,
            17 => {
                path = self.any();
                Item::Whiteout
            }
            _ => {
                path = self.any();
                Item::Xattr {
                    name: self.one(&XATTRS),
                    len: self.rng.usize(..40),
                }
            }
        };
        let kind = match item {
            Item::Dir { .. } => Some(Kind::Dir),
            Item::File { .. } | Item::Link { .. } => Some(Kind::File),
            Item::Symlink { .. } | Item::Fifo | Item::Device => Some(Kind::Other),
            Item::Whiteout | Item::Xattr { .. } => None,
        };
        if let Some(kind) = kind {
            self.add(&path, kind);
        }
        Build {
            layer,
            path,
            item,
            mode,
            owner,
        }
    }

    fn op(&mut self) -> Op {
        match self.rng.u8(..100) {
            0..=5 => Op::Create {
                path: self.fresh(),
                mode: self.one(&MODES),
                excl: self.rng.bool(),
            },
            6..=13 => {
                let how = self.one(&[How::At, How::At, How::Append, How::Trunc]);
                let (off, len) = (self.offset(), self.length());
                Op::Write {
                    path: self.file(),
                    how,
                    off,
                    len,
                    fill: self.rng.u64(..100),
                }
            }
            14..=16 => Op::Truncate {
                path: self.file(),
                len: self.offset(),
            },
            17..=21 => Op::Mkdir {
                path: self.fresh(),
                mode: self.one(&DIR_MODES),
            },
            22..=25 => Op::Rmdir {
                path: self.path(Some(Kind::Dir)),
            },
            26..=32 => Op::Unlink { path: self.file() },
            33..=46 => self.rename(),
            47..=50 => Op::Link {
                from: self.file(),
                to: self.fresh(),
            },
            51 | 52 => Op::Symlink {
                target: self.target(),
                path: self.fresh(),
            },
            53 | 54 => {
                let node = self.one(&[
                    Node::Fifo,
                    Node::Fifo,
                    Node::Socket,
                    Node::Device,
                    Node::Whiteout,
                ]);
                Op::Mknod {
                    path: self.fresh(),
                    node,
                    mode: self.one(&MODES),
                }
            }
            55..=72 => self.metadata(),
            73..=80 => self.look(),
            81..=84 => self.space(),
            85..=98 => self.slot(),
            _ if self.rng.u8(..3) == 0 => Op::Remount,
            _ if self.rng.u8(..4) == 0 => Op::Restack {
                left: self.rng.bool(),
            },
            _ => self.slot(),
        }
    }

    fn space(&mut self) -> Op {
        if self.rng.bool() {
            let alloc = self.one(&[Alloc::Extend, Alloc::KeepSize, Alloc::Punch, Alloc::Zero]);
            let len = self.length() as u64;
            return Op::Fallocate {
                path: self.file(),
                alloc,
                off: self.offset(),
                len,
            };
        }
        Op::CopyRange {
            from: self.file(),
            to: self.file(),
            from_off: self.offset(),
            to_off: self.offset(),
            len: self.length(),
        }
    }

    fn rename(&mut self) -> Op {
        use Flag::{Exchange, NoReplace, None, Whiteout};
        let flag = match self.rng.u8(..20) {
            0 => Whiteout,
            1..=4 => NoReplace,
            5..=9 => Exchange,
            _ => None,
        };
        let kind = self.one(&[Kind::Dir, Kind::Dir, Kind::File, Kind::Other]);
        let from = self.path(Some(kind));
        let to = if flag == Exchange || self.rng.u8(..4) == 0 {
            self.any()
        } else {
            self.fresh()
        };
        Op::Rename { from, to, flag }
    }

    fn metadata(&mut self) -> Op {
        let path = self.any();
        match self.rng.u8(..18) {
            0..=3 => Op::Chmod {
                path,
                mode: self.one(&MODES),
            },
            4..=6 => {
                let ids = [Some(0), Some(1000), None];
                let gid = self.one(&ids);
                // chown(-1, -1) reaches a FUSE daemon as the same request as the clearing of suid before a
                // write, so it cannot refuse it to those who do not own the file.
                let uid = self.one(if gid.is_none() { &ids[..2] } else { &ids });
                Op::Chown { path, uid, gid }
            }
            7..=9 => {
                let mtime = self.one(&[-86_400 * 400, 0, 1, 1_000_000_000, 4_294_967_296 + 5]);
                Op::Utimes {
                    path,
                    mtime,
                    nanos: self.rng.i64(0..1_000_000_000),
                }
            }
            10..=14 => Op::SetXattr {
                path,
                name: self.one(&XATTRS),
                len: self.rng.usize(..60),
                fill: self.rng.u64(..100),
                flag: self.one(&[Flag::None, Flag::None, Flag::NoReplace, Flag::Exchange]),
            },
            15 => Op::SetAcl {
                path,
                default: self.rng.bool(),
                perm: self.rng.u16(..8),
            },
            _ => Op::RemoveXattr {
                path,
                name: self.one(&XATTRS),
            },
        }
    }

    fn look(&mut self) -> Op {
        match self.rng.u8(..6) {
            0 | 1 => Op::Readdir {
                path: self.path(Some(Kind::Dir)),
            },
            2 => Op::Stat { path: self.any() },
            3 => Op::Readlink {
                path: self.path(Some(Kind::Other)),
            },
            4 => Op::ListXattr { path: self.any() },
            _ => Op::Read { path: self.file() },
        }
    }

    fn slot(&mut self) -> Op {
        let open: Vec<usize> = (0..SLOTS)
            .filter(|slot| self.slots[*slot].is_some())
            .collect();
        let slot = self.rng.usize(..SLOTS);
        if open.is_empty() || self.rng.usize(..SLOTS) >= open.len() {
            let access = self.one(&[
                Access::Read,
                Access::Read,
                Access::Write,
                Access::Append,
                Access::Dir,
            ]);
            let kind = if access == Access::Dir {
                Kind::Dir
            } else {
                Kind::File
            };
            return Op::Open {
                slot,
                path: self.path(Some(kind)),
                access,
            };
        }
        let slot = self.one(&open);
        if self.slots[slot] == Some(Kind::Dir) && self.rng.bool() {
            return Op::SlotReaddir { slot };
        }
        match self.rng.u8(..15) {
            0..=3 => Op::SlotRead { slot },
            4..=6 => {
                let (off, len) = (self.offset(), self.length());
                Op::SlotWrite {
                    slot,
                    off,
                    len,
                    fill: self.rng.u64(..100),
                }
            }
            7 | 8 => Op::SlotTruncate {
                slot,
                len: self.offset(),
            },
            9 | 10 => Op::SlotStat { slot },
            11 => Op::SlotChmod {
                slot,
                mode: self.one(&MODES),
            },
            12 => Op::SlotSync { slot },
            13 => Op::SlotLink {
                slot,
                path: self.fresh(),
            },
            _ => Op::SlotClose { slot },
        }
    }

    fn add(&mut self, path: &str, kind: Kind) {
        for (index, _) in path.match_indices('/') {
            self.tree
                .entry(path[..index].to_string())
                .or_insert(Kind::Dir);
        }
        self.tree.entry(path.to_string()).or_insert(kind);
    }

    fn believe(&mut self, op: &Op) {
        match op {
            Op::Create { path, .. } => self.add(path, Kind::File),
            Op::Mkdir { path, .. } => self.add(path, Kind::Dir),
            Op::Symlink { path, .. } | Op::Mknod { path, .. } => self.add(path, Kind::Other),
            Op::Link { from, to } => {
                if let Some(kind) = self
                    .tree
                    .get(from)
                    .copied()
                    .filter(|kind| *kind != Kind::Dir)
                {
                    self.add(to, kind);
                }
            }
            Op::Unlink { path } if self.tree.get(path).is_some_and(|kind| *kind != Kind::Dir) => {
                self.tree.remove(path);
            }
            Op::Rmdir { path } if self.below(path).is_empty() => {
                self.tree.remove(path);
            }
            Op::Rename { from, to, flag } => self.believe_rename(from, to, *flag),
            Op::Open { slot, path, .. } => self.slots[*slot] = self.tree.get(path).copied(),
            Op::SlotClose { slot } => self.slots[*slot] = None,
            Op::Remount | Op::Restack { .. } => self.slots = [None; SLOTS],
            _ => {}
        }
    }

    fn below(&self, path: &str) -> Vec<(String, Kind)> {
        let prefix = format!("{path}/");
        let inside = self
            .tree
            .iter()
            .filter(|(other, _)| other.starts_with(&prefix));
        inside
            .map(|(other, kind)| (other[path.len()..].to_string(), *kind))
            .collect()
    }

    fn take(&mut self, path: &str) -> Option<(Kind, Vec<(String, Kind)>)> {
        let kind = self.tree.remove(path)?;
        let inside = self.below(path);
        for (rest, _) in &inside {
            self.tree.remove(&format!("{path}{rest}"));
        }
        Some((kind, inside))
    }

    fn put(&mut self, path: &str, (kind, inside): (Kind, Vec<(String, Kind)>)) {
        self.tree.insert(path.to_string(), kind);
        for (rest, kind) in inside {
            self.tree.insert(format!("{path}{rest}"), kind);
        }
    }

    fn believe_rename(&mut self, from: &str, to: &str, flag: Flag) {
        let nested = |a: &str, b: &str| {
            a.strip_prefix(b)
                .is_some_and(|rest| rest.starts_with('/') || rest.is_empty())
        };
        let (source, target) = (self.tree.get(from).copied(), self.tree.get(to).copied());
        let legal = match flag {
            Flag::Whiteout => false,
            Flag::Exchange => target.is_some(),
            Flag::NoReplace => target.is_none(),
            Flag::None => target.is_none_or(|kind| {
                (kind == Kind::Dir) == (source == Some(Kind::Dir)) && self.below(to).is_empty()
            }),
        };
        if source.is_none() || !legal || nested(to, from) || nested(from, to) {
            return;
        }
        let moved = self.take(from);
        let replaced = self.take(to);
        if let Some(moved) = moved {
            self.put(to, moved);
        }
        if let (Flag::Exchange, Some(replaced)) = (flag, replaced) {
            self.put(from, replaced);
        }
    }
}
