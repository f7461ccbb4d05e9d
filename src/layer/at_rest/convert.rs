//! Rewriting the marks of an upper in another form: the kernel's, or that of aufs, OCI layers and older fuse-overlayfs.
//!
//! ```text
//! whiteout     device 0:0                  <->  file .wh.NAME         (xattr whiteouts become either)
//! opaque       xattr overlay.opaque=y      <->  file .wh..wh..opq     (user.fuseoverlayfs.opaque becomes either)
//! redirect, metacopy                            have no form in aufs: refused, or completed beforehand
//! xattrs of the other namespace             ->  the one asked for     (overlay only)
//! ```
//!
//! All of it is decided first, and refused as a whole if some of it cannot be done. Then come two passes: the first
//! adds the new marks beside the old ones and puts them on disk, the second removes the old ones. So at any moment one
//! of the two forms is complete, a mount by plyfs, which reads both, shows the same tree throughout, and a conversion
//! that was killed is finished by another; only the time of the directory it was at may be lost.

mod plan;

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, Mode, OFlags, XattrFlags};
use rustix::io::{Errno, Result};

use plan::{Misfits, Planner, writable};

use super::{AtRest, Dir};
use crate::layer::at::{At, UpperAt, open_directory};
use crate::layer::attr::{Attr, Kind};
use crate::layer::copy::copy_times;
use crate::layer::error::{Cause, SetupError};
use crate::layer::mark::{self, Mark, Prefix, Raw, Space};
use crate::layer::name::{Name, OwnedName};
use crate::layer::workdir::make_node;

/// The form that marks are to have.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Form {
    /// Linux overlayfs, with xattrs in this namespace.
    Overlay(Prefix),
    /// aufs, OCI layers and fuse-overlayfs without devices and xattrs.
    Aufs,
}

/// How much of what is rewritten.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    /// Whiteouts.
    pub whiteouts: usize,
    /// Opaque directories.
    pub opaque: usize,
    /// Xattrs that change their namespace.
    pub moved: usize,
    /// Bookkeeping of aufs and fuse-overlayfs that is removed.
    pub removed: usize,
    /// Objects that are, or were, copied up as a whole.
    pub completed: usize,
}

/// What is to be done about marks that lead to other objects: redirects and metadata-only copies.
#[derive(Clone, Copy, Debug)]
pub struct Marks {
    /// They may change their namespace.
    pub believed: bool,
    /// What they lead to is copied up.
    pub completed: Completed,
}

/// Whether what marks lead to is copied up, which makes them needless.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Completed {
    /// No.
    No,
    /// It will be, by a union that follows the marks of this namespace.
    By(Prefix),
    /// It has been, and none may be left.
    Done,
}

/// What is rewritten at one path.
#[derive(Clone, Debug)]
enum Change {
    /// The name is deleted: written in the new form, and gone from the others.
    Whiteout(Whiteout),
    /// The directory itself is opaque.
    Opaque(Vec<Raw>),
    /// Xattrs of an entry, or of the directory itself, get another namespace.
    Move(Option<OwnedName>, Vec<(Mark, Raw)>),
    /// Bookkeeping of aufs.
    Remove(OwnedName, Kind),
    /// Bookkeeping of fuse-overlayfs at an entry, or at the directory itself.
    Forget(Option<OwnedName>, Vec<Raw>),
    /// The directory no longer holds xattr whiteouts.
    NoXattrWhiteouts(Vec<Raw>),
    /// An entry, or the directory itself, that is completed beforehand: nothing is left to do.
    Complete(Option<OwnedName>),
}

/// In which forms a name is deleted, and what else is there.
#[derive(Clone, Debug)]
struct Whiteout {
    name: OwnedName,
    device: bool,
    file: bool,
    xattr: bool,
    /// An object by the name, which is shown; a directory then takes nothing from below.
    beside: Option<Kind>,
}

/// The changes of one directory.
#[derive(Debug)]
struct DirPlan {
    path: Vec<OwnedName>,
    attr: Attr,
    changes: Vec<Change>,
}

/// All that is to be done, checked.
#[derive(Debug)]
pub struct Plan {
    form: Form,
    dirs: Vec<DirPlan>,
    /// How much it is.
    pub counts: Counts,
}

impl Plan {
    /// Looks through the upper.
    pub fn new(upper: &AtRest, form: Form, marks: Marks) -> std::result::Result<Self, SetupError> {
        let (mut dirs, mut counts) = (Vec::new(), Counts::default());
        let mut misfits = Misfits::default();
        upper.walk(|dir| {
            let changes = Planner {
                dir: &dir,
                form,
                treat: marks,
                misfits: &mut misfits,
                changes: Vec::new(),
            }
            .plan();
            for change in &changes {
                change.count(&mut counts);
            }
            if !changes.is_empty() {
                writable(dir.fd.as_fd())
                    .map_err(|error| upper.failure(&dir.path_of(None), error))?;
                let Dir { path, attr, .. } = dir;
                dirs.push(DirPlan {
                    path,
                    attr,
                    changes,
                });
            }
            Ok(())
        })?;
        if let Some((path, what)) = misfits.first {
            let path = upper.path.join(super::as_path(&path));
            let more = match misfits.count {
                1 => String::new(),
                count => format!(" (and {} more paths)", count - 1),
            };
            let sentence = format!("{}{more} {what}; nothing was changed", path.display());
            return Err(SetupError::new(Cause::Upper, sentence));
        }
        Ok(Self { form, dirs, counts })
    }

    /// Each path that is rewritten, with a word for what it is.
    pub fn paths(&self) -> impl Iterator<Item = (&'static str, Vec<u8>)> {
        self.dirs.iter().flat_map(|dir| {
            dir.changes.iter().filter_map(|change| {
                let (word, name) = change.describe()?;
                let names = dir.path.iter().chain(name);
                let path: Vec<&[u8]> = names.map(|name| name.get().bytes()).collect();
                let path = path.join(&b'/');
                Some((word, if path.is_empty() { b".".to_vec() } else { path }))
            })
        })
    }

    /// Does it.
    pub fn run(&self, upper: &AtRest) -> std::result::Result<(), SetupError> {
        for pass in [Pass::Add, Pass::Remove] {
            for dir in &self.dirs {
                dir.run(upper, self.form, pass)?;
            }
            // What comes next must not reach the disk before this.
            rustix::fs::syncfs(&upper.root).map_err(|error| upper.failure(b".", error))?;
        }
        Ok(())
    }
}

impl Change {
    fn count(&self, counts: &mut Counts) {
        match self {
            Self::Whiteout(_) => counts.whiteouts += 1,
            Self::Opaque(_) => counts.opaque += 1,
            Self::Move(_, marks) => counts.moved += marks.len(),
            Self::Remove(..) | Self::Forget(..) => counts.removed += 1,
            Self::Complete(_) => counts.completed += 1,
            Self::NoXattrWhiteouts(_) => {}
        }
    }

    fn describe(&self) -> Option<(&'static str, Option<&OwnedName>)> {
        match self {
            Self::Whiteout(whiteout) => Some(("whiteout", Some(&whiteout.name))),
            Self::Opaque(_) => Some(("opaque", None)),
            Self::Move(name, _) => Some(("namespace", name.as_ref())),
            Self::Remove(name, _) => Some(("remove", Some(name))),
            Self::Forget(name, _) => Some(("remove", name.as_ref())),
            Self::Complete(name) => Some(("complete", name.as_ref())),
            Self::NoXattrWhiteouts(_) => None,
        }
    }
}

/// New marks are added everywhere before an old one is removed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Pass {
    Add,
    Remove,
}

impl DirPlan {
    fn run(&self, upper: &AtRest, form: Form, pass: Pass) -> std::result::Result<(), SetupError> {
        let path: Vec<&[u8]> = self.path.iter().map(|name| name.get().bytes()).collect();
        let fail = |error| upper.failure(&path.join(&b'/'), error);
        let mut fd = open_directory(&upper.root, b".").map_err(fail)?;
        for name in &path {
            fd = open_directory(&fd, name).map_err(fail)?;
        }
        for change in &self.changes {
            let done = match pass {
                Pass::Add => change.add(fd.as_fd(), form),
                Pass::Remove => change.remove(fd.as_fd(), form),
            };
            done.map_err(fail)?;
        }
        // Another form of marks is no change of the directory.
        copy_times(&self.attr, UpperAt::new(At::Pinned(fd.as_fd()))).map_err(fail)
    }
}

impl Change {
    fn add(&self, dir: BorrowedFd<'_>, form: Form) -> Result<()> {
        let own = UpperAt::new(At::Pinned(dir));
        match (self, form) {
            (Self::Whiteout(whiteout), _) => whiteout.add(dir, form),
            (Self::Opaque(_), Form::Aufs) => make_file(dir, Name::from_bytes(mark::AUFS_OPAQUE)?),
            (Self::Opaque(_), Form::Overlay(prefix)) => {
                own.set_xattr(Mark::Opaque.name(prefix), b"y", XattrFlags::empty())
            }
            (Self::Move(name, marks), Form::Overlay(prefix)) => {
                let at = object(dir, name.as_ref());
                marks.iter().try_for_each(|(mark, raw)| {
                    let value = raw.value.as_deref().unwrap_or_default();
                    let set = at.set_xattr(mark.name(prefix), value, XattrFlags::CREATE);
                    // It was there before, and counts.
                    if set == Err(Errno::EXIST) {
                        Ok(())
                    } else {
                        set
                    }
                })
            }
            _ => Ok(()),
        }
    }

    fn remove(&self, dir: BorrowedFd<'_>, form: Form) -> Result<()> {
        let own = UpperAt::new(At::Pinned(dir));
        match self {
            Self::Whiteout(whiteout) => whiteout.remove(dir, form),
            Self::Opaque(xattrs) => {
                if form != Form::Aufs {
                    unlink(dir, mark::AUFS_OPAQUE)?;
                }
                let old = xattrs.iter().filter(|raw| !raw.is_of(form));
                remove_xattrs(own, old)
            }
            Self::Move(name, marks) => {
                let at = object(dir, name.as_ref());
                // A file without data must not lose the path to it while it says so.
                let order = [Mark::Metacopy, Mark::Redirect];
                let rank = |mark: &Mark| order.iter().position(|each| each == mark).unwrap_or(9);
                let mut marks: Vec<_> = marks.iter().collect();
                marks.sort_by_key(|(mark, _)| rank(mark));
                remove_xattrs(at, marks.into_iter().map(|(_, raw)| raw))
            }
            Self::Forget(name, raw) => remove_xattrs(object(dir, name.as_ref()), raw.iter()),
            Self::Remove(name, kind) => {
                let flags = if *kind == Kind::Directory {
                    AtFlags::REMOVEDIR
                } else {
                    AtFlags::empty()
                };
                rustix::fs::unlinkat(dir, name.get().bytes(), flags)
            }
            Self::Complete(_) => Ok(()),
            Self::NoXattrWhiteouts(xattrs) => {
                // Opaque in the form asked for meanwhile.
                let still = |raw: &&Raw| {
                    let value = At::Pinned(dir).xattr(&raw.name);
                    value.is_ok_and(|value| value.is_some_and(|value| value.first() == Some(&b'x')))
                };
                remove_xattrs(own, xattrs.iter().filter(still))
            }
        }
    }
}

impl Raw {
    /// Whether it is in the namespace of the form.
    fn is_of(&self, form: Form) -> bool {
        matches!(form, Form::Overlay(prefix) if self.space == Space::Overlay(prefix))
    }
}

impl Whiteout {
    fn add(&self, dir: BorrowedFd<'_>, form: Form) -> Result<()> {
        let file = mark::aufs_whiteout(self.name.get());
        match form {
            Form::Aufs => make_file(dir, file?.get()),
            // The object shows without it; a directory has to hide what is below by itself.
            Form::Overlay(prefix) if self.beside == Some(Kind::Directory) => {
                let at = UpperAt::new(At::Entry(dir, self.name.get()));
                at.set_xattr(Mark::Opaque.name(prefix), b"y", XattrFlags::empty())
            }
            Form::Overlay(_) if self.device || self.beside.is_some() => Ok(()),
            Form::Overlay(_) => {
                if self.xattr {
                    // The name stays deleted while nothing is there.
                    make_file(dir, file?.get())?;
                    unlink(dir, self.name.get().bytes())?;
                }
                make_node(dir, self.name.get().bytes(), Kind::CharDevice, 0, 0)
            }
        }
    }

    fn remove(&self, dir: BorrowedFd<'_>, form: Form) -> Result<()> {
        match form {
            Form::Aufs if self.device || self.xattr => unlink(dir, self.name.get().bytes()),
            Form::Aufs => Ok(()),
            Form::Overlay(_) => match mark::aufs_whiteout(self.name.get()) {
                Ok(file) => unlink(dir, file.get().bytes()),
                // It was never there.
                Err(_) => Ok(()),
            },
        }
    }
}

fn object<'a>(dir: BorrowedFd<'a>, name: Option<&'a OwnedName>) -> UpperAt<'a> {
    UpperAt::new(match name {
        Some(name) => At::Entry(dir, name.get()),
        None => At::Pinned(dir),
    })
}

fn make_file(dir: BorrowedFd<'_>, name: Name<'_>) -> Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    match rustix::fs::openat(dir, name.bytes(), flags, Mode::empty()) {
        Err(Errno::EXIST) => Ok(()),
        other => other.map(drop),
    }
}

fn unlink(dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

fn remove_xattrs<'a>(at: UpperAt<'_>, xattrs: impl Iterator<Item = &'a Raw>) -> Result<()> {
    for raw in xattrs {
        match at.remove_xattr(&raw.name) {
            Err(Errno::NODATA) | Ok(()) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
