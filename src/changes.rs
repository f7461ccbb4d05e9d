//! What one tree changes over another: the one source of `diff`, `commit` and what shows differences.
//!
//! Both trees are [`View`]s of layers. Where they share layers (an upper over its lowers, two images of one base) only
//! directories they do not share are listed, so the differences of an upper cost what the upper holds, whatever lies
//! below it. [`Comparison::walk`] reports them in the words of `docker diff`: see [`Action`].
//!
//! - [`compare`]: whether two objects are equal, and if not, why.
//! - [`owner`]: whose a file is that an ordinary user made.
//! - [`layer_tar`]: changes as the tar archive of an image layer.

pub mod compare;
pub mod layer_tar;
pub mod owner;

use std::collections::{BTreeSet, HashSet};
use std::io::{self, Result};

use crate::layer::attr::Kind;
use crate::layer::name::{Name, OwnedName};
use crate::layer::view::{MergedDir, Object, View};
use compare::{Exactness, Reasons};
use owner::Owners;

/// What happened to a path.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Action {
    /// It is new. All that a new directory holds is reported too.
    Added,
    /// It is in both trees and differs, or something in it does: a directory is reported before its contents, also if
    /// it is itself equal ([`Reasons`] is empty then). What another type of object replaced is changed, not deleted.
    Changed,
    /// It is gone. What a deleted directory held is not reported.
    Deleted,
}

/// One difference.
#[derive(Debug)]
pub struct Change<'a> {
    /// Path relative to the root of the trees, without a slash at either end; never empty.
    pub path: &'a [u8],
    /// What happened.
    pub action: Action,
    /// In what the two differ; empty for additions and deletions.
    pub reasons: Reasons,
    /// What was there before.
    pub before: Option<&'a Object>,
    /// What is there now.
    pub after: Option<&'a Object>,
}

/// The two trees that are compared, and how.
#[derive(Debug)]
pub struct Comparison {
    /// The earlier tree.
    pub before: View,
    /// The later tree.
    pub after: View,
    /// What counts as equal.
    pub exactness: Exactness,
    /// Whose the files in directory layers are.
    pub owners: Owners,
    /// Where the owner of what there was before is found, if not in `before`.
    pub owned_below: Option<View>,
    /// Report also what `docker diff` does not call a change but a layer must record: the time alone of a directory,
    /// which changes with its contents, and that a file equal to what was there is now a link of another.
    pub complete: bool,
}

/// Where a walk failed.
#[derive(Debug)]
pub struct WalkError {
    /// Path relative to the root of the trees.
    pub path: Vec<u8>,
    /// What the system said.
    pub error: io::Error,
}

impl WalkError {
    /// What to do about it, to be put behind the error.
    pub fn hint(&self) -> &'static str {
        let denied = self.error.kind() == io::ErrorKind::PermissionDenied;
        if denied && !rustix::process::geteuid().is_root() {
            "; what is your own and has a mode that forbids you to read it, is read under 'unshare -r'"
        } else {
            ""
        }
    }
}

/// A directory that is being compared.
struct Frame {
    before: Option<MergedDir>,
    after: MergedDir,
    /// Names yet to be compared; those that are gone are reported before any other.
    names: std::vec::IntoIter<OwnedName>,
    /// Length of the path of the directory.
    length: usize,
    /// The directory's own change, if it is to be reported only with one in it.
    pending: Option<Pending>,
}

struct Pending {
    before: Object,
    after: Object,
    reasons: Reasons,
}

impl Comparison {
    /// Calls `report` for every difference, depth first: a directory before what is in it, of the names in a directory
    /// first the deleted ones, then the others, each in the order of their bytes. If it fails, the error has the path
    /// that was looked at.
    pub fn walk(
        &self,
        mut report: impl FnMut(&Change<'_>) -> Result<()>,
    ) -> std::result::Result<(), WalkError> {
        let mut path = Vec::new();
        self.walk_all(&mut path, &mut report)
            .map_err(|error| WalkError { path, error })
    }

    fn walk_all(
        &self,
        path: &mut Vec<u8>,
        report: &mut impl FnMut(&Change<'_>) -> Result<()>,
    ) -> Result<()> {
        let mut walk = Walk {
            of: self,
            links: self.links(path)?,
            added_only: false,
            report,
        };
        walk.run(path)
    }

    /// The paths that change although neither they nor what they lead to is in a directory the trees do not share: as
    /// names of an inode that did change, or that has a new name.
    fn links(&self, path: &mut Vec<u8>) -> Result<BTreeSet<Vec<u8>>> {
        let mut renamed = HashSet::new();
        // A new name of an old inode is that of a renamed directory's file.
        if self.complete && self.before.root()?.is_some() {
            let mut walk = Walk {
                of: self,
                links: BTreeSet::new(),
                added_only: true,
                report: |change: &Change<'_>| {
                    let old = change.after.filter(|object| {
                        object.attr.nlink > 1
                            && object.directory().is_none()
                            && object.lower().position != self.after.from()
                    });
                    renamed.extend(old.map(Object::inode));
                    Ok(())
                },
            };
            walk.run(path)?;
            path.clear();
        }
        let mut found = BTreeSet::new();
        for view in [&self.before, &self.after] {
            if view.has_links_below()? || !renamed.is_empty() {
                let wanted = |object: &Object| {
                    object.is_indexed()
                        || (object.attr.nlink > 1 && renamed.contains(&object.inode()))
                };
                find_all(view, wanted, path, &mut found)?;
            }
        }
        Ok(found)
    }

    /// Whether these reasons make a change by themselves.
    fn counts(&self, reasons: Reasons, kind: Kind) -> bool {
        if self.complete {
            return !reasons.is_empty();
        }
        let reasons = reasons.without(Reasons::LINKS);
        !reasons.is_empty() && (kind != Kind::Directory || reasons != Reasons::TIME)
    }
}

/// A walk that is under way.
struct Walk<'a, F> {
    of: &'a Comparison,
    /// Paths that are not in the topmost layer and yet changed, as names of an inode that is.
    links: BTreeSet<Vec<u8>>,
    /// Do not look in what objects of both trees differ, and report only new ones and those that are gone.
    added_only: bool,
    report: F,
}

impl<F: FnMut(&Change<'_>) -> Result<()>> Walk<'_, F> {
    fn run(&mut self, path: &mut Vec<u8>) -> Result<()> {
        let directory = |view: &View| -> Result<Option<MergedDir>> {
            Ok(view.root()?.and_then(|root| root.directory().cloned()))
        };
        let mut frames = Vec::new();
        if let Some(after) = directory(&self.of.after)? {
            let before = directory(&self.of.before)?;
            self.enter(&mut frames, path, (before, after), None)?;
        }
        // A stack of its own: trees may be deeper than the thread's.
        while let Some(frame) = frames.last_mut() {
            let Some(name) = frame.names.next() else {
                frames.pop();
                continue;
            };
            path.truncate(frame.length);
            append(path, &name);
            let before = match &frame.before {
                Some(dir) => self.of.before.child(dir, name.get())?,
                None => None,
            };
            if let Some(after) = self.of.after.child(&frame.after, name.get())? {
                self.compare(&mut frames, path, (before, after))?;
            }
        }
        Ok(())
    }

    /// Goes into a directory that is at `path` now: reports what is gone from it and leaves the rest for later.
    fn enter(
        &mut self,
        frames: &mut Vec<Frame>,
        path: &mut Vec<u8>,
        (before, after): (Option<MergedDir>, MergedDir),
        pending: Option<Pending>,
    ) -> Result<()> {
        let length = path.len();
        let mut names = after.names_apart(before.as_ref())?;
        self.add_links(&mut names, path)?;
        frames.push(Frame {
            before: before.clone(),
            after: after.clone(),
            names: Vec::new().into_iter(),
            length,
            pending,
        });
        if let Some(before) = &before {
            let mut left = Vec::with_capacity(names.len());
            for name in names {
                if self.of.after.child(&after, name.get())?.is_some() {
                    left.push(name);
                } else if let Some(gone) = self.of.before.child(before, name.get())? {
                    append(path, &name);
                    self.flush(frames, path)?;
                    (self.report)(&Change {
                        path,
                        action: Action::Deleted,
                        reasons: Reasons::default(),
                        before: Some(&gone),
                        after: None,
                    })?;
                    path.truncate(length);
                }
            }
            names = left;
        }
        if let Some(frame) = frames.last_mut() {
            frame.names = names.into_iter();
        }
        Ok(())
    }

    /// Compares what the two trees have at `path`.
    fn compare(
        &mut self,
        frames: &mut Vec<Frame>,
        path: &mut Vec<u8>,
        (mut before, mut after): (Option<Object>, Object),
    ) -> Result<()> {
        let same = before.as_ref().is_some_and(|before| before.is(&after));
        let linked = same && self.links.contains(path.as_slice());
        if same && !linked && self.links_below(path).next().is_none() {
            return Ok(());
        }
        self.find_owners(path, before.as_mut(), &mut after)?;
        let reasons = match &before {
            Some(_) if linked => Reasons::LINKS,
            Some(before) if !self.added_only => {
                let (old, new) = (&self.of.before, &self.of.after);
                compare::reasons((old, before), (new, &after), self.of.exactness)?
            }
            _ => Reasons::default(),
        };
        let counts = before.is_none() || self.of.counts(reasons, after.kind());
        if counts {
            self.flush(frames, path)?;
            (self.report)(&Change {
                path,
                action: match before {
                    Some(_) => Action::Changed,
                    None => Action::Added,
                },
                reasons,
                before: before.as_ref(),
                after: Some(&after),
            })?;
        }
        let Some(dir) = after.directory().cloned() else {
            return Ok(());
        };
        let old = before
            .as_ref()
            .and_then(|before| before.directory().cloned());
        let pending = before.filter(|_| !counts).map(|before| Pending {
            before,
            after,
            reasons,
        });
        self.enter(frames, path, (old, dir), pending)
    }

    /// Adds the names in the directory `path` that lead to `links`.
    fn add_links(&self, names: &mut Vec<OwnedName>, path: &[u8]) -> Result<()> {
        let known = names.len();
        for below in self.links_below(path) {
            let name = below.split(|&byte| byte == b'/').next().unwrap_or(below);
            names.push(Name::from_bytes(name)?.to_owned());
        }
        if names.len() > known {
            names.sort_by(|a, b| a.get().bytes().cmp(b.get().bytes()));
            names.dedup();
        }
        Ok(())
    }

    /// Gives both objects at `path` the owners they stand for.
    fn find_owners(
        &self,
        path: &[u8],
        before: Option<&mut Object>,
        after: &mut Object,
    ) -> Result<()> {
        let owners = self.of.owners;
        if owners == Owners::AsOnDisk {
            return Ok(());
        }
        let Some(before) = before else {
            let below = match &self.of.owned_below {
                Some(view) if !after.owner_is_exact() => view.at(path)?,
                _ => None,
            };
            owners.apply(after, below.as_ref());
            return Ok(());
        };
        // Of two trees either may be the one that knows.
        let knows = after.owner_is_exact();
        owners.apply(before, knows.then_some(&*after));
        owners.apply(after, Some(before));
        Ok(())
    }

    /// The paths of `links` below the directory `path`.
    fn links_below<'b>(&'b self, path: &[u8]) -> impl Iterator<Item = &'b [u8]> {
        let prefix = if path.is_empty() {
            Vec::new()
        } else {
            [path, b"/"].concat()
        };
        let from = self.links.range(prefix.clone()..);
        from.map_while(move |path| path.strip_prefix(prefix.as_slice()))
    }

    /// Reports the directories above a change that are not reported yet.
    fn flush(&mut self, frames: &mut [Frame], path: &[u8]) -> Result<()> {
        for frame in frames {
            let Some(pending) = frame.pending.take() else {
                continue;
            };
            (self.report)(&Change {
                path: &path[..frame.length],
                action: Action::Changed,
                reasons: pending.reasons,
                before: Some(&pending.before),
                after: Some(&pending.after),
            })?;
        }
        Ok(())
    }
}

/// Adds the paths of all non-directories of `view` that are wanted. If that fails, `path` is the directory.
fn find_all(
    view: &View,
    wanted: impl Fn(&Object) -> bool,
    path: &mut Vec<u8>,
    found: &mut BTreeSet<Vec<u8>>,
) -> Result<()> {
    let mut dirs: Vec<(Vec<u8>, MergedDir)> = Vec::new();
    let root = view.root()?;
    dirs.extend(root.and_then(|root| Some((Vec::new(), root.directory()?.clone()))));
    while let Some((at, dir)) = dirs.pop() {
        let length = at.len();
        *path = at;
        for (name, object) in view.list(&dir)? {
            path.truncate(length);
            append(path, &name);
            match object.directory() {
                Some(dir) => dirs.push((path.clone(), dir.clone())),
                None if wanted(&object) => {
                    found.insert(path.clone());
                }
                None => {}
            }
        }
    }
    path.clear();
    Ok(())
}

fn append(path: &mut Vec<u8>, name: &OwnedName) {
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name.get().bytes());
}
