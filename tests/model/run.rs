//! Runs a script on two merged trees and compares them: each step, now and then everything, at the end
//! also what is left on disk.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use rustix::fs::FileType;
use rustix::process::{Pid, Signal, kill_process};

use super::exec::Hands;
use super::layers;
use super::mounts::{Engine, Mounted, Stack};
use super::script::{Build, Caller, Flag, Op, Step};
use super::snapshot::{Listing, Times, Tree, agree, difference, snapshot};

/// A step that takes longer hangs; the daemon is killed then.
const HANG: Duration = Duration::from_secs(10);

/// What to compare and how.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    pub(crate) left: Engine,
    pub(crate) metacopy: bool,
    /// Whole trees are compared after this many steps.
    pub(crate) every: usize,
    /// The directory to work in.
    pub(crate) dir: PathBuf,
}

/// Where two trees first differed.
#[derive(Debug)]
pub(crate) struct Failure {
    /// Number of steps executed before; `None` if it shows only at the end.
    pub(crate) step: Option<usize>,
    pub(crate) what: String,
}

impl From<String> for Failure {
    fn from(what: String) -> Self {
        Self { step: None, what }
    }
}

/// Runs `steps` in a fresh directory.
pub(crate) fn run(steps: &[Step], setting: &Setting) -> Result<(), Failure> {
    let base = tempfile::tempdir_in(&setting.dir).map_err(|error| error.to_string())?;
    let objects: Vec<&Build> = steps
        .iter()
        .filter_map(|step| {
            if let Step::Build(b) = step {
                Some(b)
            } else {
                None
            }
        })
        .collect();
    layers::build(base.path(), &objects).map_err(|error| format!("building layers: {error}"))?;
    let mut world = World::new(base.path(), setting)?;
    world.mount()?;
    for (number, step) in steps.iter().enumerate() {
        let Step::Op(op, caller) = step else { continue };
        world.step(number, op, *caller).map_err(|what| Failure {
            step: Some(number),
            what,
        })?;
    }
    world.finish().map_err(Failure::from)
}

/// One of the two merged trees.
struct Side {
    engine: Engine,
    stack: Stack,
    mountpoint: PathBuf,
    mounted: Option<Mounted>,
    /// Who has mounted it last.
    by: Engine,
    hands: Hands,
}

impl Side {
    fn new(engine: Engine, base: &Path, side: &str, upper: PathBuf, metacopy: bool) -> Self {
        let mountpoint = base.join(format!("{side}-merged"));
        let onoff = if metacopy { "on" } else { "off" };
        let stack = Stack {
            lowers: layers::directories(base).split_off(1),
            upper,
            work: base.join(format!("{side}-work")),
            options: format!("redirect_dir=on,index=on,metacopy={onoff}"),
        };
        let hands = Hands::new(&mountpoint);
        Self {
            by: engine.clone(),
            engine,
            stack,
            mountpoint,
            mounted: None,
            hands,
        }
    }

    fn mount(&mut self, engine: &Engine) -> Result<(), String> {
        self.by = engine.clone();
        self.mounted = Some(Mounted::new(engine, &self.stack, &self.mountpoint)?);
        Ok(())
    }

    fn unmount(&mut self) -> Result<(), String> {
        self.hands.close_all();
        self.mounted.take().map_or(Ok(()), Mounted::unmount)
    }

    fn remount(&mut self) -> Result<(), String> {
        self.unmount()?;
        self.mount(&self.engine.clone())
    }

    fn lowers(&self) -> Vec<Tree> {
        let lowers = self.stack.lowers.iter();
        lowers
            .map(|layer| snapshot(layer, Listing::Strict))
            .collect()
    }

    fn look(&self) -> Tree {
        snapshot(&self.mountpoint, self.by.listing())
    }

    /// Removes the whiteouts in the upper part of the directory that `op` removes or replaces; answers whether
    /// there were any. The kernel does not remove a directory of the upper alone that holds a whiteout, which
    /// hides nothing.
    fn sweep(&self, op: &Op) -> bool {
        let (Op::Rmdir { path } | Op::Rename { to: path, .. }) = op else {
            return false;
        };
        let whiteouts = layers::whiteouts(&self.stack.upper.join(path));
        whiteouts
            .iter()
            .all(|path| std::fs::remove_file(path).is_ok())
            && !whiteouts.is_empty()
    }

    fn inode(&self, path: &str) -> Option<u64> {
        rustix::fs::lstat(self.mountpoint.join(path))
            .ok()
            .map(|stat| stat.st_ino)
    }
}

struct World {
    base: PathBuf,
    left: Side,
    right: Side,
    lowers: Vec<Tree>,
    every: usize,
    times: Times,
    watchdog: Sender<Option<u32>>,
}

impl World {
    fn new(base: &Path, setting: &Setting) -> Result<Self, String> {
        let upper = base.join("upper");
        let copy = base.join("right-upper");
        let status = Command::new("cp").arg("-a").args([&upper, &copy]).status();
        if !status.is_ok_and(|status| status.success()) {
            return Err("cp -a failed".to_string());
        }
        let left = Side::new(setting.left.clone(), base, "left", upper, setting.metacopy);
        Ok(Self {
            base: base.to_path_buf(),
            lowers: left.lowers(),
            left,
            right: Side::new(Engine::Kernel, base, "right", copy, setting.metacopy),
            every: setting.every,
            times: if setting.metacopy {
                Times::RightMayBeNow
            } else {
                Times::Equal
            },
            watchdog: watchdog(),
        })
    }

    fn mount(&mut self) -> Result<(), String> {
        self.left.mount(&self.left.engine.clone())?;
        self.right.mount(&Engine::Kernel)?;
        self.compare("after mounting").map(drop)
    }

    fn beat(&self) {
        let daemon = self.left.mounted.as_ref().and_then(Mounted::daemon);
        // The watchdog ends with this sender only.
        let _alive = self.watchdog.send(daemon);
    }

    fn step(&mut self, number: usize, op: &Op, caller: Caller) -> Result<(), String> {
        self.beat();
        if matches!(op, Op::Remount) {
            self.left.remount()?;
            self.right.remount()?;
            return Ok(());
        }
        if let Op::Restack { left } = op {
            return self.restack(*left, number);
        }
        if let Op::SlotChmod { slot, .. } = op
            && (self.left.hands.is_unlinked(*slot) || self.right.hands.is_unlinked(*slot))
        {
            return self.chmod_unlinked(*slot, op);
        }
        // Looking first warms caches, so only every second step is looked at.
        let kept = if number.is_multiple_of(2) {
            same_objects(op)
        } else {
            Vec::new()
        };
        let before: Vec<_> = kept.iter().map(|(from, _)| self.left.inode(from)).collect();
        let left = self.left.hands.perform_as(caller, op);
        let mut right = self.right.hands.perform_as(caller, op);
        if left == "ok" && right.starts_with("Directory not empty") && self.right.sweep(op) {
            right = self.right.hands.perform_as(caller, op);
        }
        if not_empty(&left, &right) {
            right.clone_from(&left);
            self.touch_parent(op);
        }
        if !agree(&left, &right, self.times) && !unlinked_lower(op, &left, &right) {
            return Err(format!("result of `{op}`:\n    - {left}\n    + {right}"));
        }
        for ((from, to), before) in kept.iter().zip(before) {
            // Where a path led through an exchanged symlink it now names something else or nothing.
            let (Some(before), Some(after)) = (before, self.left.inode(to)) else {
                continue;
            };
            if left.starts_with("ok") && before != after {
                return Err(format!(
                    "`{op}` changed the inode number of {from}: {before} {after}"
                ));
            }
        }
        if (number + 1).is_multiple_of(self.every) {
            self.compare("the trees")?;
        }
        Ok(())
    }

    /// The kernel answers EEXIST to fchmod of an unlinked file that was never copied up, and brings an
    /// unlinked FIFO back under its old name; so only the left does it, and must succeed. Afterwards the file
    /// is not the same on both sides any more.
    fn chmod_unlinked(&mut self, slot: usize, op: &Op) -> Result<(), String> {
        if self.left.engine != Engine::Kernel {
            let left = self.left.hands.perform(op);
            if left != "ok" {
                return Err(format!("result of `{op}` on an unlinked file: {left}"));
            }
        }
        for slot in self.left.hands.same_file(slot) {
            for side in [&mut self.left, &mut self.right] {
                side.hands.perform(&Op::SlotClose { slot });
            }
        }
        Ok(())
    }

    /// A rename that fails because ext4 finds the target not empty has changed the time of the directory of its
    /// source, if the kernel's overlayfs asked for a whiteout there; plyfs has looked before.
    fn touch_parent(&mut self, op: &Op) {
        let Op::Rename { from, .. } = op else { return };
        let touch = Op::Utimes {
            path: from
                .rsplit_once('/')
                .map_or("", |(parent, _)| parent)
                .into(),
            mtime: 1,
            nanos: 0,
        };
        for side in [&mut self.left, &mut self.right] {
            side.hands.perform(&touch);
        }
    }

    fn restack(&mut self, left: bool, number: usize) -> Result<(), String> {
        self.left.unmount()?;
        self.right.unmount()?;
        let frozen = if left { &self.left } else { &self.right }
            .stack
            .upper
            .clone();
        for (side, name) in [(&mut self.left, "left"), (&mut self.right, "right")] {
            side.stack.lowers.insert(0, frozen.clone());
            side.stack.upper = self.base.join(format!("{name}-upper{number}"));
            side.stack.work = self.base.join(format!("{name}-work{number}"));
        }
        self.lowers = self.left.lowers();
        self.left.mount(&self.left.engine.clone())?;
        self.right.mount(&Engine::Kernel)?;
        self.compare("after stacking").map(drop)
    }

    fn compare(&self, when: &str) -> Result<Tree, String> {
        self.beat();
        let (left, right) = (self.left.look(), self.right.look());
        expect_equal(when, &left, &right, self.times)?;
        // The kernel's own listings tell a stale d_ino for some hard links of a lower file.
        if self.left.engine != Engine::Kernel {
            expect_listed_inodes(when, &left)?;
        }
        Ok(left)
    }

    fn finish(&mut self) -> Result<(), String> {
        self.compare("at the end, with files open")?;
        self.left.hands.close_all();
        self.right.hands.close_all();
        let live = self.compare("at the end")?;
        self.left.remount()?;
        let after = self.compare("after remount")?;
        expect_same_inodes(&live, &after)?;
        self.left.unmount()?;
        self.right.unmount()?;
        for side in [&self.left, &self.right] {
            expect_clean_workdir(&side.stack.work)?;
        }
        self.left.mount(&Engine::Kernel)?;
        let seen = self.left.look();
        expect_equal(
            "live and the left upper mounted by the kernel",
            &live,
            &seen,
            Times::Equal,
        )?;
        self.left.unmount()?;
        self.right.mount(&self.left.engine.clone())?;
        let seen = self.right.look();
        expect_equal(
            "live and the kernel's upper mounted by the left",
            &live,
            &seen,
            self.times,
        )?;
        self.right.unmount()?;
        for (before, after) in self.lowers.iter().zip(&self.left.lowers()) {
            expect_equal(
                "a lower layer after and before the run",
                after,
                before,
                Times::Equal,
            )?;
        }
        Ok(())
    }
}

fn expect_equal(what: &str, left: &Tree, right: &Tree, times: Times) -> Result<(), String> {
    let lines = difference(left, right, times);
    if lines.is_empty() {
        Ok(())
    } else {
        Err(format!("{what} differ:\n{lines}"))
    }
}

fn expect_listed_inodes(when: &str, tree: &Tree) -> Result<(), String> {
    let wrong: Vec<&String> = tree
        .iter()
        .filter(|(_, entry)| entry.misreported)
        .map(|(path, _)| path)
        .collect();
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(format!("{when} d_ino or d_type is wrong of {wrong:?}"))
    }
}

fn expect_same_inodes(before: &Tree, after: &Tree) -> Result<(), String> {
    let kept = |kind| matches!(kind, FileType::RegularFile | FileType::Directory);
    let changed: Vec<String> = before
        .iter()
        .filter(|(path, entry)| {
            kept(entry.kind) && after.get(*path).is_some_and(|e| e.ino != entry.ino)
        })
        .map(|(path, entry)| format!("  /{path}: {} became {}", entry.ino, after[path].ino))
        .collect();
    if changed.is_empty() {
        return Ok(());
    }
    Err(format!(
        "inode numbers changed over a remount:\n{}",
        changed.join("\n")
    ))
}

/// Nothing but the index survives in a workdir that is not in use.
pub(crate) fn expect_clean_workdir(work: &Path) -> Result<(), String> {
    let belongs = |path: &str| ["", "work", "index"].contains(&path) || path.starts_with("index/");
    let left: Vec<String> = snapshot(work, Listing::Strict)
        .into_keys()
        .filter(|path| !belongs(path))
        .collect();
    if left.is_empty() {
        Ok(())
    } else {
        Err(format!("left over in the workdir: {left:?}"))
    }
}

/// Pairs of paths that name the same object before and after a successful `op`.
fn same_objects(op: &Op) -> Vec<(&str, &str)> {
    match op {
        Op::Write { path, .. }
        | Op::Truncate { path, .. }
        | Op::Chmod { path, .. }
        | Op::Chown { path, .. }
        | Op::Utimes { path, .. }
        | Op::SetXattr { path, .. }
        | Op::RemoveXattr { path, .. }
        | Op::SetAcl { path, .. }
        | Op::Fallocate { path, .. }
        | Op::CopyRange { to: path, .. }
        | Op::Open { path, .. } => vec![(path, path)],
        // Through an exchanged symlink a path leads somewhere else.
        Op::Rename {
            from,
            to,
            flag: Flag::Exchange,
        } if Path::new(from).starts_with(to) || Path::new(to).starts_with(from) => Vec::new(),
        Op::Rename {
            from,
            to,
            flag: Flag::Exchange,
        } => vec![(from, to), (to, from)],
        Op::Rename { from, to, .. } => vec![(from, to)],
        Op::Link { from, to } => vec![(from, to), (from, from)],
        _ => Vec::new(),
    }
}

/// Kills the daemon last heard of when nothing is heard for [`HANG`]; what waits for it fails then.
pub(crate) fn watchdog() -> Sender<Option<u32>> {
    let (sender, beats) = channel::<Option<u32>>();
    std::thread::spawn(move || {
        let mut daemon = None;
        loop {
            match beats.recv_timeout(HANG) {
                Ok(next) => daemon = next,
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    let pid = daemon
                        .take()
                        .and_then(|id: u32| Pid::from_raw(id.cast_signed()));
                    if let Some(pid) = pid {
                        println!("no progress for {HANG:?}: killing the daemon");
                        let _gone = kill_process(pid, Signal::KILL);
                    }
                }
            }
        }
    });
    sender
}

/// An open file of a lower layer that was unlinked without a copy-up: the kernel shows the link count of the lower
/// inode, plyfs the 0 that a program expects.
fn unlinked_lower(op: &Op, left: &str, right: &str) -> bool {
    matches!(op, Op::SlotStat { .. }) && left.replace(" nlink=0 ", " nlink=1 ") == right
}

/// Both say that a directory is not empty; POSIX lets a filesystem choose the word, and xfs has another.
fn not_empty(left: &str, right: &str) -> bool {
    let word = |text: &str| text.starts_with("Directory not empty");
    word(left) && (word(right) || right.starts_with("File exists"))
}
