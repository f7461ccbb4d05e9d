//! New objects and new names, always in the upper.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::{Errno, Result};

use super::copy_up::Data;
use super::index::{Index, Source};
use super::lookup::Resolved;
use super::node::{Alias, DirState, Node, Real, State, Xattrs};
use super::rename::keep_data_path;
use super::{Caller, Found, Overlay};
use crate::layer::at::At;
use crate::layer::attr::{Attr, Kind};
use crate::layer::mark;
use crate::layer::name::Name;
use crate::layer::stack::Durability;
use crate::layer::upper::Upper;

/// What to create.
#[derive(Clone, Copy, Debug)]
pub enum New<'a> {
    /// An empty regular file.
    File,
    /// A directory.
    Directory,
    /// A symlink with this target.
    Symlink(&'a [u8]),
    /// A device (with its number), FIFO or socket.
    Special(Kind, u32),
}

impl New<'_> {
    fn kind(self) -> Kind {
        match self {
            Self::File => Kind::File,
            Self::Directory => Kind::Directory,
            Self::Symlink(_) => Kind::Symlink,
            Self::Special(kind, _) => kind,
        }
    }
}

/// Owner and mode of an object to be made.
struct Plan {
    mode: u16,
    /// `None`: whatever the daemon's own are, owners are not stored.
    uid: Option<u32>,
    gid: Option<u32>,
    /// What stands at the name is a whiteout.
    over_whiteout: bool,
    /// It has to be made in the workdir and moved.
    staged: bool,
}

impl Overlay {
    /// Creates `parent/name`. EEXIST if there is such a name.
    pub fn create(
        &self,
        parent: u64,
        name: Name<'_>,
        new: New<'_>,
        mode: u16,
        caller: &Caller,
    ) -> Result<Found> {
        let upper = self.upper()?;
        if mark::aufs_name(name.bytes()).is_some() {
            // It would be taken for a deletion by whoever reads the layer.
            return Err(Errno::INVAL);
        }
        if let New::Special(Kind::CharDevice, 0) = new {
            // A whiteout is not for users to make, as in the kernel.
            return Err(Errno::PERM);
        }
        let parent = self.node(parent)?;
        self.copy_up_dir(&parent)?;
        let _names = self.names.read();
        let parent_attr = self.attr(&parent)?;
        let dir = parent.dir.as_ref().ok_or(Errno::NOTDIR)?;
        let mut state = dir.state.lock();
        let below = self.check_free(&parent, &mut state, name)?;
        let fd = self.upper_dir(&parent)?;
        let plan = self.plan((&parent_attr, fd.as_fd()), &state, name, new, mode, caller)?;
        let file = if plan.staged {
            create_staged(upper, (fd.as_fd(), name), new, &plan, state.default_acl)?
        } else {
            create_in_place(upper, (fd.as_fd(), name), new, plan.mode)?
        };
        if plan.over_whiteout {
            upper.clear_whiteout(fd.as_fd(), name);
        }
        let synced = upper.sync_if_strict(&fd);
        parent.stale();
        let opaque = plan.over_whiteout && new.kind() == Kind::Directory;
        let child = self.new_child(upper, (fd.as_fd(), name), file, opaque, state.default_acl)?;
        let reference = self.admit(&parent, &name.to_owned(), child);
        let ino = reference.node().ino;
        state
            .index
            .set(name.to_owned(), new.kind(), Source::Upper, below, ino);
        drop(state);
        synced?;
        self.found(reference)
    }

    /// Makes sure that `name` is free; answers whether a lower layer has something by that name.
    fn check_free(&self, parent: &Arc<Node>, state: &mut DirState, name: Name<'_>) -> Result<bool> {
        if state.dead {
            return Err(Errno::NOENT);
        }
        // Whether a whiteout stands in the way is known from the index only.
        self.know(parent, state, name)?;
        if self.child(parent, state, name)?.is_some() {
            return Err(Errno::EXIST);
        }
        Ok(state.index.find(name).is_some_and(|entry| entry.below))
    }

    fn plan(
        &self,
        (parent, dir): (&Attr, BorrowedFd<'_>),
        state: &DirState,
        name: Name<'_>,
        new: New<'_>,
        mode: u16,
        caller: &Caller,
    ) -> Result<Plan> {
        let upper = self.upper()?;
        let kind = new.kind();
        let inherits_acl = state.default_acl && kind != Kind::Symlink;
        let mut mode = if inherits_acl {
            mode
        } else {
            mode & !caller.umask
        };
        let setgid = parent.mode & 0o2000 != 0;
        if setgid && kind == Kind::Directory {
            mode |= 0o2000;
        }
        let uid = self.ids.uid_of_new(caller.uid);
        let gid = if setgid {
            Some(parent.gid)
        } else {
            self.ids.gid_of_new(caller.gid)
        };
        let over_whiteout = state
            .index
            .find(name)
            .is_some_and(|entry| entry.source == Source::Whiteout);
        let same_owner = uid.is_none_or(|uid| uid == self.own.0)
            && (setgid || gid.is_none_or(|gid| gid == self.own.1));
        let staged = !same_owner
            || upper.override_name.is_some()
            || (over_whiteout && kind == Kind::Directory)
            || upper.durability == Durability::Strict
            || (over_whiteout && upper.is_whiteout(dir, name)?);
        Ok(Plan {
            mode,
            uid,
            gid,
            over_whiteout,
            staged,
        })
    }

    /// The node-to-be of what was just made at `dir/name`.
    fn new_child(
        &self,
        upper: &Upper,
        (dir, name): (BorrowedFd<'_>, Name<'_>),
        file: Option<OwnedFd>,
        opaque: bool,
        default_acl: bool,
    ) -> Result<Resolved> {
        let attr = match &file {
            Some(fd) if upper.override_name.is_none() => At::Pinned(fd.as_fd()).stat()?,
            _ => upper.stat(At::Entry(dir, name))?,
        };
        let number = self.inos.number(attr.dev, attr.ino);
        if attr.kind == Kind::Directory {
            let mut state = DirState {
                in_upper: true,
                opaque,
                default_acl,
                ..DirState::default()
            };
            state.index = Index::empty();
            return Ok(Resolved::directory(number, attr, state));
        }
        let mut state = State::new(attr, Real::Upper);
        state.xattrs = Xattrs::NoCapabilities;
        if let Some(fd) = file {
            let slot = self.stack.fds.files.slot();
            slot.put(fd);
            state.set_open_file(Some((slot, true)));
        }
        Ok(Resolved::file(number, state))
    }

    /// Gives the node `ino` another name.
    pub fn link(&self, ino: u64, parent: u64, name: Name<'_>) -> Result<Found> {
        let upper = self.upper()?;
        if mark::aufs_name(name.bytes()).is_some() {
            return Err(Errno::INVAL);
        }
        let (node, parent) = (self.node(ino)?, self.node(parent)?);
        if node.kind == Kind::Directory {
            return Err(Errno::PERM);
        }
        self.copy_up_dir(&parent)?;
        self.copy_up(&node, Data::Later)?;
        let _names = self.names.read();
        let dir = parent.dir.as_ref().ok_or(Errno::NOTDIR)?;
        let mut state = dir.state.lock();
        let below = self.check_free(&parent, &mut state, name)?;
        let fd = self.upper_dir(&parent)?;
        let held = self.held(&node)?;
        let origin = upper.marks(held.read())?.origin;
        if origin.is_some() {
            self.mark_impure(&mut state, upper.pinned(fd.as_fd()))?;
        }
        let known_as = {
            let node_state = node.state();
            node_state
                .aliases
                .first()
                .filter(|_| node_state.data.is_some())
                .cloned()
        };
        if let Some(alias) = known_as {
            keep_data_path(upper, held.change(upper), &alias.parent, alias.name.get())?;
        }
        self.store_nlink(&node)?;
        let over_whiteout = state
            .index
            .find(name)
            .is_some_and(|entry| entry.source == Source::Whiteout);
        if over_whiteout && upper.is_whiteout(fd.as_fd(), name)? {
            upper.stage_link(held.read())?.publish(fd.as_fd(), name)?;
        } else {
            upper.link(held.read(), fd.as_fd(), name)?;
        }
        if over_whiteout {
            upper.clear_whiteout(fd.as_fd(), name);
        }
        Self::count_link(&node, 1);
        parent.stale();
        let name = name.to_owned();
        node.add_alias(Alias {
            parent: Arc::clone(&parent),
            name: name.clone(),
        });
        node.state().unpin();
        state
            .index
            .set(name, node.kind, Source::Upper, below, node.ino);
        drop(state);
        let reference = self.nodes.reference(ino).ok_or(Errno::STALE)?;
        self.found(reference)
    }
}

/// Makes the object where it will be; the system gives it group and ACL of its directory.
fn create_in_place(
    upper: &Upper,
    (dir, name): (BorrowedFd<'_>, Name<'_>),
    new: New<'_>,
    mode: u16,
) -> Result<Option<OwnedFd>> {
    match new {
        New::File => upper.create_file(dir, name, mode).map(Some),
        New::Directory => upper.make_dir(dir, name, mode).map(|()| None),
        New::Symlink(target) => upper.make_symlink(dir, name, target).map(|()| None),
        New::Special(kind, rdev) => upper.make_node(dir, name, kind, mode, rdev).map(|()| None),
    }
}

/// Makes the object in the workdir, complete, and moves it to its name.
fn create_staged(
    upper: &Upper,
    (dir, name): (BorrowedFd<'_>, Name<'_>),
    new: New<'_>,
    plan: &Plan,
    default_acl: bool,
) -> Result<Option<OwnedFd>> {
    // Marks are still to be written, which an unwritable file of an ordinary user would not take.
    let private = 0o700;
    let (staged, file) = match new {
        New::File => {
            let (staged, fd) = upper.stage_file(private)?;
            (staged, Some(fd))
        }
        New::Directory => (upper.stage_dir(private)?, None),
        New::Symlink(target) => (upper.stage_symlink(target)?, None),
        New::Special(kind, rdev) => (upper.stage_node(kind, private, rdev)?, None),
    };
    let now = staged.at().read().stat()?;
    let (kind, rdev) = match new {
        New::Special(kind, rdev) => (kind, rdev),
        other => (other.kind(), 0),
    };
    let uid = plan.uid.unwrap_or(now.uid);
    let gid = plan.gid.unwrap_or(now.gid);
    let mut mode = plan.mode;
    let owned = Attr {
        uid,
        gid,
        kind,
        rdev,
        mode: now.mode,
        ..now
    };
    if upper.override_name.is_none() {
        upper.set_owner_and_mode(staged.at(), &owned, &now)?;
    }
    if default_acl && kind != Kind::Symlink {
        let parent = upper.pinned(dir).read();
        mode = upper.inherit_acl(parent, staged.at(), kind == Kind::Directory, mode)?;
    }
    let now = staged.at().read().stat()?;
    upper.set_owner_and_mode(staged.at(), &Attr { mode, ..owned }, &now)?;
    if kind == Kind::Directory && plan.over_whiteout {
        upper.set_opaque(staged.at())?;
        if upper.is_whiteout(dir, name)? {
            upper.with_mode_to_move(staged.at(), (dir, name), || {
                upper.swap(staged.place(), (dir, name), false)
            })?;
            return Ok(file);
        }
    }
    upper.with_mode_to_move(staged.at(), (dir, name), || staged.publish(dir, name))?;
    Ok(file)
}
