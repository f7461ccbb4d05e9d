//! Renaming. A directory with a lower part moves in one step: its upper part gets a redirect to where the lower
//! parts stay, or all of it is copied up before. Whatever a lower layer shows at the old name is hidden by a whiteout
//! left in the same step.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use parking_lot::MutexGuard;
use rustix::io::{Errno, Result};

use super::Overlay;
use super::copy_up::Data;
use super::copy_up_tree::has_lowers;
use super::index::Source;
use super::node::{Alias, DirState, Node, ROOT};
use super::options::RedirectDir;
use crate::layer::at::UpperAt;
use crate::layer::attr::{Attr, Kind};
use crate::layer::best_effort;
use crate::layer::mark::{self, Mark, Redirect};
use crate::layer::name::Name;
use crate::layer::upper::{Upper, WhiteoutForm};

/// What to do about the target.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    /// Replace it.
    Replace,
    /// Fail with EEXIST if there is one.
    NoReplace,
    /// Swap the two.
    Exchange,
}

/// One end of a rename.
#[derive(Clone, Copy)]
struct End<'a> {
    parent: &'a Arc<Node>,
    name: Name<'a>,
}

/// The locked directories of both ends; one lock if they are the same.
struct Locked<'a> {
    first: MutexGuard<'a, DirState>,
    second: Option<MutexGuard<'a, DirState>>,
    /// `first` is the target's directory.
    swapped: bool,
}

impl Locked<'_> {
    fn source(&mut self) -> &mut DirState {
        match &mut self.second {
            Some(second) if self.swapped => second,
            _ => &mut self.first,
        }
    }

    fn target(&mut self) -> &mut DirState {
        match &mut self.second {
            Some(second) if !self.swapped => second,
            _ => &mut self.first,
        }
    }
}

impl Overlay {
    /// renameat2(2).
    pub fn rename(&self, from: (u64, Name<'_>), to: (u64, Name<'_>), mode: Mode) -> Result<()> {
        self.upper()?;
        if mark::aufs_name(to.1.bytes()).is_some() {
            return Err(Errno::INVAL);
        }
        let (old_parent, new_parent) = (self.node(from.0)?, self.node(to.0)?);
        let old = End {
            parent: &old_parent,
            name: from.1,
        };
        let new = End {
            parent: &new_parent,
            name: to.1,
        };
        let node = self.find_child(old.parent, old.name)?.ok_or(Errno::NOENT)?;
        let victim = self.find_child(new.parent, new.name)?;
        match (mode, &victim) {
            (Mode::NoReplace, Some(_)) => return Err(Errno::EXIST),
            (Mode::Exchange, None) => return Err(Errno::NOENT),
            (_, Some(victim)) if Arc::ptr_eq(victim, &node) => return Ok(()),
            _ => {}
        }
        self.check_kinds(&node, victim.as_ref(), mode)?;
        if Arc::ptr_eq(&node, new.parent) || is_ancestor(&node, new.parent) {
            return Err(Errno::INVAL);
        }
        if let Some(victim) = &victim
            && (Arc::ptr_eq(victim, old.parent) || is_ancestor(victim, old.parent))
        {
            return Err(Errno::NOTEMPTY);
        }
        self.copy_up_dir(old.parent)?;
        self.copy_up_dir(new.parent)?;
        if mode == Mode::Exchange {
            self.make_movable(&node, old)?;
            self.make_movable(victim.as_ref().ok_or(Errno::NOENT)?, new)?;
        } else {
            self.make_movable(&node, old)?;
            if victim.is_some() {
                self.prepare_victim(new.parent, new.name)?;
            }
        }
        let _names = self.names.write();
        let still = node.is_at(old.parent, old.name)
            && victim
                .as_ref()
                .is_none_or(|victim| victim.is_at(new.parent, new.name));
        if !still {
            return Err(Errno::NOENT);
        }
        if mode == Mode::Exchange {
            return self.exchange(&node, old, victim.as_ref().ok_or(Errno::NOENT)?, new);
        }
        self.replace(&node, old, victim.as_ref(), new)
    }

    fn check_kinds(&self, node: &Node, victim: Option<&Arc<Node>>, mode: Mode) -> Result<()> {
        if mode != Mode::Exchange
            && let Some(victim) = victim
        {
            match (node.kind == Kind::Directory, victim.kind == Kind::Directory) {
                (true, false) => return Err(Errno::NOTDIR),
                (false, true) => return Err(Errno::ISDIR),
                (true, true) if self.copies_to_rename(node) => {
                    // Before much is copied for nothing.
                    let _names = self.names.write();
                    self.check_empty(victim)?;
                }
                _ => {}
            }
        }
        let moved = std::iter::once(node)
            .chain(victim.filter(|_| mode == Mode::Exchange).map(AsRef::as_ref));
        for node in moved {
            if self.renames_by() == RedirectDir::Off && has_lowers(node) {
                return Err(Errno::XDEV);
            }
        }
        Ok(())
    }

    /// Gets what will be moved into the upper, under its present name.
    fn make_movable(&self, node: &Arc<Node>, end: End<'_>) -> Result<()> {
        if self.copies_to_rename(node) {
            return self.copy_up_tree(node).map_err(|error| match error {
                // What cannot be copied; the caller may do without some of it.
                Errno::PERM | Errno::ACCESS | Errno::INVAL | Errno::OPNOTSUPP => Errno::XDEV,
                other => other,
            });
        }
        self.bring_up(node, (end.parent, end.name), Data::Later)
    }

    fn replace(
        &self,
        node: &Arc<Node>,
        old: End<'_>,
        victim: Option<&Arc<Node>>,
        new: End<'_>,
    ) -> Result<()> {
        let upper = self.upper()?;
        let mut dirs = lock_ends(old, new)?;
        if dirs.target().dead {
            return Err(Errno::NOENT);
        }
        self.know(new.parent, dirs.target(), new.name)?;
        if let Some(victim) = victim.filter(|victim| victim.kind == Kind::Directory) {
            self.check_empty(victim)?;
        }
        let from = self.upper_dir(old.parent)?;
        let to = self.upper_dir(new.parent)?;
        let (source, hides) = match dirs.source().index.find(old.name) {
            Some(entry) => (entry.source, entry.below),
            None => return Err(Errno::NOENT),
        };
        if source != Source::Upper {
            return Err(Errno::STALE);
        }
        let target = dirs
            .target()
            .index
            .find(new.name)
            .map(|entry| (entry.source, entry.below));
        let below_target = target.is_some_and(|(_, below)| below);
        mark_moved(node, below_target, upper, &from, (old, new))?;
        let impure = dirs.source().impure;
        if impure || hides {
            self.mark_impure(dirs.target(), upper.pinned(to.as_fd()))?;
        }
        if let Some(victim) = victim
            && matches!(target, Some((Source::Upper, _)))
        {
            self.pin_last_name(victim)?;
            self.store_nlink(victim)?;
            if victim.kind == Kind::Directory {
                clear_victim(victim, upper, &to, new.name)?;
            }
        }
        let over_whiteout = matches!(target, Some((Source::Whiteout, _)));
        move_on_disk(
            upper,
            (&from, old.name),
            (&to, new.name),
            hides,
            over_whiteout,
            node.kind == Kind::Directory,
        )?;
        dirs.source().index.take_away(old.name, hides);
        let name = new.name.to_owned();
        dirs.target()
            .index
            .set(name, node.kind, Source::Upper, below_target, node.ino);
        drop(dirs);
        if let Some(victim) = victim {
            self.lose_name(victim, new.parent, new.name)?;
        }
        move_alias(node, old, new);
        node.stale();
        old.parent.stale();
        new.parent.stale();
        upper.sync_if_strict(&to)?;
        upper.sync_if_strict(&from)
    }

    fn exchange(&self, one: &Arc<Node>, old: End<'_>, two: &Arc<Node>, new: End<'_>) -> Result<()> {
        let upper = self.upper()?;
        let mut dirs = lock_ends(old, new)?;
        let from = self.upper_dir(old.parent)?;
        let to = self.upper_dir(new.parent)?;
        let entry = |state: &DirState, name| {
            state
                .index
                .find(name)
                .map(|entry| (entry.source, entry.below))
                .ok_or(Errno::NOENT)
        };
        let (source_one, below_one) = entry(dirs.source(), old.name)?;
        let (source_two, below_two) = entry(dirs.target(), new.name)?;
        if source_one != Source::Upper || source_two != Source::Upper {
            return Err(Errno::STALE);
        }
        mark_moved(one, below_two, upper, &from, (old, new))?;
        mark_moved(two, below_one, upper, &to, (new, old))?;
        let impure = dirs.source().impure || dirs.target().impure || below_one || below_two;
        if impure {
            self.mark_impure(dirs.source(), upper.pinned(from.as_fd()))?;
            self.mark_impure(dirs.target(), upper.pinned(to.as_fd()))?;
        }
        upper.rename((from.as_fd(), old.name), (to.as_fd(), new.name), true)?;
        let become_ = |state: &mut DirState, name, node: &Node| {
            state.index.update(name, |entry| {
                (entry.node, entry.kind) = (node.ino, node.kind);
            });
        };
        become_(dirs.source(), old.name, two);
        become_(dirs.target(), new.name, one);
        drop(dirs);
        move_alias(one, old, new);
        move_alias(two, new, old);
        for node in [one, two, old.parent, new.parent] {
            node.stale();
        }
        upper.sync_if_strict(&to)?;
        upper.sync_if_strict(&from)
    }
}

/// Whether `node` is above `below`.
fn is_ancestor(node: &Arc<Node>, below: &Arc<Node>) -> bool {
    let mut current = Arc::clone(below);
    loop {
        let alias = current.state().aliases.first().cloned();
        let Some(alias) = alias else { return false };
        if Arc::ptr_eq(&alias.parent, node) {
            return true;
        }
        current = alias.parent;
    }
}

fn move_alias(node: &Node, from: End<'_>, to: End<'_>) {
    let mut state = node.state();
    let fresh = Alias {
        parent: Arc::clone(to.parent),
        name: to.name.to_owned(),
    };
    match state
        .aliases
        .iter_mut()
        .find(|alias| alias.is(from.parent, from.name))
    {
        Some(alias) => *alias = fresh,
        None => state.aliases.push(fresh),
    }
}

/// Notes on a metadata-only copy where its data is, before it gets another name than its lower file has.
pub(super) fn keep_data_path(
    upper: &Upper,
    at: UpperAt<'_>,
    parent: &Arc<Node>,
    name: Name<'_>,
) -> Result<()> {
    if upper.marks(at.read())?.redirect.is_some() {
        return Ok(());
    }
    upper.set_mark(at, Mark::Redirect, &path_below(parent, name, None).encode())
}

/// The path of `parent/name` in the layers below: its names, with the redirects of the directories above it.
fn path_below(parent: &Arc<Node>, name: Name<'_>, own: Option<&Redirect>) -> Redirect {
    let mut path = vec![match own {
        Some(Redirect::Sibling(name)) => name.clone(),
        _ => name.to_owned(),
    }];
    let mut node = Arc::clone(parent);
    while node.ino != ROOT {
        let alias = node.state().aliases.first().cloned();
        let Some(alias) = alias else { break };
        let redirect = node.dir.as_ref().and_then(|dir| dir.redirect());
        match redirect {
            Some(Redirect::Absolute(mut above)) => {
                path.reverse();
                above.extend(path);
                return Redirect::Absolute(above);
            }
            Some(Redirect::Sibling(name)) => path.push(name),
            None => path.push(alias.name),
        }
        node = alias.parent;
    }
    path.reverse();
    Redirect::Absolute(path)
}

/// Locks both directories, an ancestor before its descendant.
fn lock_ends<'a>(old: End<'a>, new: End<'a>) -> Result<Locked<'a>> {
    let (from, to) = (old.parent, new.parent);
    let lock = |node: &'a Arc<Node>| node.dir.as_ref().map(|dir| dir.state.lock());
    if Arc::ptr_eq(from, to) {
        let first = lock(from).ok_or(Errno::NOTDIR)?;
        return Ok(Locked {
            first,
            second: None,
            swapped: false,
        });
    }
    let swapped = is_ancestor(to, from) || (!is_ancestor(from, to) && to.ino < from.ino);
    let (one, two) = if swapped { (to, from) } else { (from, to) };
    let first = lock(one).ok_or(Errno::NOTDIR)?;
    let second = Some(lock(two).ok_or(Errno::NOTDIR)?);
    Ok(Locked {
        first,
        second,
        swapped,
    })
}

/// Writes what a directory or metacopy file needs to keep its content under another name.
fn mark_moved(
    node: &Arc<Node>,
    below_target: bool,
    upper: &Upper,
    dir: &Arc<OwnedFd>,
    (end, other): (End<'_>, End<'_>),
) -> Result<()> {
    let at = upper.at(dir.as_fd(), end.name);
    if node.state().data.is_some() {
        return keep_data_path(upper, at, end.parent, end.name);
    }
    let Some(own) = &node.dir else { return Ok(()) };
    let mut state = own.state.lock();
    if state.lowers.is_empty() {
        if below_target && !state.opaque {
            upper.set_opaque(at)?;
            state.opaque = true;
        }
        return Ok(());
    }
    let present = own.redirect();
    // A redirect stays true wherever the directory goes, one to a sibling while it stays with its parent.
    let same_parent = Arc::ptr_eq(end.parent, other.parent);
    let redirect = match present {
        Some(Redirect::Absolute(_)) => return Ok(()),
        Some(Redirect::Sibling(_)) if same_parent => return Ok(()),
        None if same_parent => Redirect::Sibling(end.name.to_owned()),
        present => path_below(end.parent, end.name, present.as_ref()),
    };
    upper.set_mark(at, Mark::Redirect, &redirect.encode())?;
    own.set_redirect(Some(redirect));
    Ok(())
}

/// Puts an empty opaque directory in place of one that holds whiteouts, so that it can be renamed over.
fn clear_victim(
    victim: &Arc<Node>,
    upper: &Upper,
    dir: &Arc<OwnedFd>,
    name: Name<'_>,
) -> Result<()> {
    let mut entries = 0;
    if let Some(fd) = victim.dir.as_ref().and_then(|own| own.pinned()) {
        upper.list(fd.as_fd(), |_| {
            entries += 1;
            Ok(())
        })?;
    }
    if entries == 0 {
        return Ok(());
    }
    let attr: Attr = upper.stat(upper.at(dir.as_fd(), name).read())?;
    let staged = upper.stage_dir(0o700)?;
    upper.set_owner_and_mode(staged.at(), &attr, &staged.at().read().stat()?)?;
    if upper.prefix.is_some() {
        upper.set_opaque(staged.at())?;
    }
    let target = (dir.as_fd(), name);
    upper.with_mode_to_move(upper.at(target.0, name), staged.place(), || {
        upper.with_mode_to_move(staged.at(), target, || {
            upper.swap(staged.place(), target, false)
        })
    })
}

/// The rename itself. `hides`: a whiteout must be left at the old name; `over_whiteout`: one is at the new.
fn move_on_disk(
    upper: &Upper,
    (from, old): (&Arc<OwnedFd>, Name<'_>),
    (to, new): (&Arc<OwnedFd>, Name<'_>),
    hides: bool,
    over_whiteout: bool,
    is_dir: bool,
) -> Result<()> {
    let (source, target) = ((from.as_fd(), old), (to.as_fd(), new));
    // A directory that moves to another parent must be writable itself.
    let moved = upper.at(from.as_fd(), old);
    let device = over_whiteout && upper.is_whiteout(to.as_fd(), new)?;
    if device && (hides || is_dir) && upper.whiteouts == WhiteoutForm::Device {
        // The whiteout at the new name becomes that at the old one.
        upper.with_mode_to_move(moved, target, || upper.swap(source, target, hides))?;
        if !hides {
            // Nothing is below it.
            best_effort("remove a whiteout", upper.unlink(from.as_fd(), old));
        }
        return Ok(());
    }
    if hides {
        upper.with_mode_to_move(moved, target, || upper.rename_and_whiteout(source, target))?;
    } else {
        upper.with_mode_to_move(moved, target, || upper.rename(source, target, false))?;
    }
    if over_whiteout && !device {
        upper.clear_whiteout(to.as_fd(), new);
    }
    Ok(())
}
