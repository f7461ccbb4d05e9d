//! One scene: layers, operations, and a kill at each point.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::Sender;

use rustix::fs::FileType;

use crate::model::exec::Hands;
use crate::model::layers;
use crate::model::mounts::{Engine, Mounted, Stack};
use crate::model::run::{expect_clean_workdir, watchdog};
use crate::model::script::{Build, Op};
use crate::model::snapshot::{Listing, Times, Tree, difference, snapshot, timeless};
use crate::support::run::base_dir;
use crate::support::strace::{Tracer, calls};

/// Which modes matter for a scene; the long run does all.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Modes {
    Plain,
    /// Also with `metacopy=on`.
    Metacopy,
}

/// Performs `ops` over `layers` with a kill at each point, in each mode; panics with what went wrong.
pub(super) fn survive(layers: &[Build], ops: &[Op], modes: Modes) {
    let long = std::env::var_os("PLYFS_CRASH_LONG").is_some();
    let metacopies: &[&str] = if long || modes == Modes::Metacopy {
        &["off", "on"]
    } else {
        &["off"]
    };
    let durabilities: &[&str] = if long { &["auto", "strict"] } else { &["auto"] };
    for metacopy in metacopies {
        for fsync in durabilities {
            let base = tempfile::tempdir_in(base_dir()).expect("the test directory is writable");
            let scene = Scene::new(base.path(), layers, ops, metacopy, fsync);
            let problems = scene.play().unwrap_or_else(|problem| panic!("{problem}"));
            assert!(
                problems.is_empty(),
                "metacopy={metacopy} fsync={fsync}: {} kills went wrong\n{}",
                problems.len(),
                problems.join("\n")
            );
        }
    }
}

struct Scene<'a> {
    base: &'a Path,
    ops: &'a [Op],
    lowers: Vec<PathBuf>,
    engine: Engine,
    /// Options the kernel knows, too.
    options: String,
    fsync: String,
    /// Ends a daemon that hangs.
    watchdog: Sender<Option<u32>>,
}

/// The tree before the first operation and after each.
type Story = Vec<Tree>;

impl<'a> Scene<'a> {
    fn new(base: &'a Path, objects: &[Build], ops: &'a [Op], metacopy: &str, fsync: &str) -> Self {
        layers::build(base, &objects.iter().collect::<Vec<_>>()).expect("layers can be made");
        let state = base.join("start");
        std::fs::create_dir(&state).expect("a directory can be made");
        std::fs::create_dir(state.join("work")).expect("a directory can be made");
        std::fs::rename(base.join("upper"), state.join("upper")).expect("a directory can be moved");
        Self {
            base,
            ops,
            lowers: layers::directories(base).split_off(1),
            engine: Engine::from_env("PLYFS_CRASH_DAEMON"),
            options: format!("redirect_dir=on,index=on,metacopy={metacopy}"),
            fsync: format!("fsync={fsync}"),
            watchdog: watchdog(),
        }
    }

    fn play(&self) -> Result<Vec<String>, String> {
        let lowers: Vec<Tree> = self
            .lowers
            .iter()
            .map(|lower| snapshot(lower, Listing::Strict))
            .collect();
        let story = self.tell()?;
        let mut problems = Vec::new();
        let mut kills = 0;
        for (call, count) in self.count()? {
            for n in 1..=count {
                kills += 1;
                if let Err(problem) = self.kill(&call, n, &story) {
                    problems.push(format!("killed at {call} number {n}: {problem}"));
                }
            }
        }
        println!("{kills} kills");
        if kills == 0 {
            problems.push("no system call of the daemon was seen".to_string());
        }
        for (lower, before) in self.lowers.iter().zip(&lowers) {
            let lines = difference(&snapshot(lower, Listing::Strict), before, Times::Equal);
            if !lines.is_empty() {
                problems.push(format!("{} was changed:\n{lines}", lower.display()));
            }
        }
        Ok(problems)
    }

    /// A copy of upper and workdir as they are in `from`.
    fn copy(&self, from: &str, to: &str) -> Result<Stack, String> {
        let (from, to) = (self.base.join(from), self.base.join(to));
        if to.exists() {
            std::fs::remove_dir_all(&to).map_err(|error| format!("{}: {error}", to.display()))?;
        }
        let copied = Command::new("cp").arg("-a").args([&from, &to]).status();
        if !copied.is_ok_and(|status| status.success()) {
            return Err(format!("cp -a {} failed", from.display()));
        }
        Ok(Stack {
            lowers: self.lowers.clone(),
            upper: to.join("upper"),
            work: to.join("work"),
            options: self.options.clone(),
        })
    }

    fn mount(&self, engine: &Engine, stack: &Stack) -> Result<(Mounted, Hands), String> {
        let mountpoint = self.base.join("merged");
        let mut stack = stack.clone();
        if *engine != Engine::Kernel {
            stack.options = format!("{},{}", stack.options, self.fsync);
        }
        let mounted = Mounted::new(engine, &stack, &mountpoint)?;
        // The watchdog ends with this sender only.
        let _alive = self.watchdog.send(mounted.daemon());
        Ok((mounted, Hands::new(&mountpoint)))
    }

    fn look(&self, by: &Engine) -> Tree {
        snapshot(&self.base.join("merged"), by.listing())
    }

    /// What the operations do, by the kernel.
    fn tell(&self) -> Result<Story, String> {
        let (mounted, mut hands) = self.mount(&Engine::Kernel, &self.copy("start", "story")?)?;
        let mut story = vec![self.look(&Engine::Kernel)];
        for op in self.ops {
            let outcome = hands.perform(op);
            if !outcome.starts_with("ok") {
                return Err(format!("the kernel answers `{op}`: {outcome}"));
            }
            story.push(self.look(&Engine::Kernel));
        }
        mounted.unmount()?;
        Ok(story)
    }

    /// The daemon's mutating calls while the operations are performed and the mount ends.
    fn count(&self) -> Result<Vec<(String, usize)>, String> {
        let record = self.base.join("calls");
        let (mounted, mut hands) = self.mount(&self.engine, &self.copy("start", "counted")?)?;
        let daemon = mounted.daemon().ok_or("a crash needs a daemon")?;
        let tracer = Tracer::attach(daemon, &record, None)?;
        for op in self.ops {
            let outcome = hands.perform(op);
            if !outcome.starts_with("ok") {
                return Err(format!("without any kill `{op}` gives: {outcome}"));
            }
        }
        mounted.unmount()?;
        tracer.finish()?;
        Ok(calls(&record).into_iter().collect())
    }

    /// Performs the operations with a kill, then checks what is left.
    fn kill(&self, call: &str, n: usize, story: &Story) -> Result<(), String> {
        let stack = self.copy("start", "killed")?;
        let (mut mounted, mut hands) = self.mount(&self.engine, &stack)?;
        let daemon = mounted.daemon().ok_or("a crash needs a daemon")?;
        let inject = format!("{call}:signal=KILL:when={n}");
        let tracer = Tracer::attach(daemon, &self.base.join("calls"), Some(&inject))?;
        let mut done = 0;
        for op in self.ops {
            let outcome = hands.perform(op);
            if is_dead(&outcome) {
                break;
            }
            if !outcome.starts_with("ok") {
                return Err(format!("`{op}` gives: {outcome}"));
            }
            done += 1;
        }
        if done == self.ops.len() {
            // The call was one made while unmounting, or was not made this time.
            let _killed = mounted.unmount();
        } else {
            mounted.detach();
            drop(mounted);
        }
        tracer.finish()?;
        let during = self
            .ops
            .get(done)
            .map_or("the unmount".to_string(), |op| format!("`{op}`"));
        self.check(&stack, done, story)
            .map_err(|problem| format!("during {during}: {problem}"))
    }

    fn check(&self, stack: &Stack, done: usize, story: &Story) -> Result<(), String> {
        let (mounted, _) = self.mount(&Engine::Kernel, &self.copy("killed", "checked")?)?;
        let kernel = self.look(&Engine::Kernel);
        mounted.unmount()?;
        let reached = self.state_reached(&kernel, story, done).map_err(|lines| {
            format!("seen by the kernel (-), not as before nor as after (+):\n{lines}")
        })?;
        let (mounted, mut hands) = self.mount(&self.engine, stack)?;
        let lines = self.unexplained(&self.look(&self.engine), &kernel);
        if !lines.is_empty() {
            return Err(format!(
                "after the next mount (-), not as the kernel (+):\n{lines}"
            ));
        }
        for op in &self.ops[reached..] {
            let outcome = hands.perform(op);
            if !outcome.starts_with("ok") {
                return Err(format!("after the next mount `{op}` gives: {outcome}"));
            }
        }
        let lines = self.unexplained(&self.look(&self.engine), &story[self.ops.len()]);
        if !lines.is_empty() {
            return Err(format!("at last (-), not as without a kill (+):\n{lines}"));
        }
        mounted.unmount()?;
        expect_clean_workdir(&stack.work)
    }

    /// The number of operations that `seen` shows as done: `done` or one more.
    fn state_reached(&self, seen: &Tree, story: &Story, done: usize) -> Result<usize, String> {
        let before = self.unexplained(seen, &story[done]);
        if before.is_empty() {
            return Ok(done);
        }
        match story
            .get(done + 1)
            .map(|after| self.unexplained(seen, after))
        {
            None => Err(before),
            Some(after) if after.is_empty() => Ok(done + 1),
            Some(after) => Err(format!("{before}  or\n{after}")),
        }
    }

    /// The difference, except where it takes two system calls, with a kill between them in the kernel's case
    /// as well: a directory may be marked as changed now, as publishing an entry and putting back the
    /// directory's times are two; so may a file whose data follows a metadata-only copy-up.
    fn unexplained(&self, seen: &Tree, expected: &Tree) -> String {
        let mut seen = seen.clone();
        for (path, entry) in &mut seen {
            let Some(other) = expected.get(path) else {
                continue;
            };
            let excused = match entry.kind {
                FileType::Directory => true,
                FileType::RegularFile => self.options.ends_with("metacopy=on"),
                _ => false,
            };
            let now = entry.text.contains(" mtime=now");
            if excused && now && timeless(&entry.text) == timeless(&other.text) {
                entry.text.clone_from(&other.text);
            }
        }
        difference(&seen, expected, Times::Equal)
    }
}

fn is_dead(outcome: &str) -> bool {
    ["os error 107", "os error 103"]
        .iter()
        .any(|gone| outcome.contains(gone))
}
