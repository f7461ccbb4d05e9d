//! What has to be rewritten, and whether it can be.

use std::os::fd::BorrowedFd;

use rustix::fs::{Access, AtFlags};
use rustix::io::Result;

use super::super::{Dir, Entry};
use super::{Change, Completed, Form, Marks, Whiteout};
use crate::layer::at::open_directory;
use crate::layer::attr::Kind;
use crate::layer::lower::list;
use crate::layer::mark::{self, AufsName, Mark, NlinkMark, Prefix, Raw, Space};

/// What does not fit, by the first path of it.
#[derive(Debug, Default)]
pub(super) struct Misfits {
    pub(super) first: Option<(Vec<u8>, String)>,
    pub(super) count: usize,
}

impl Misfits {
    fn add(&mut self, path: Vec<u8>, what: impl Into<String>) {
        self.count += 1;
        self.first.get_or_insert_with(|| (path, what.into()));
    }
}

/// Entries can be made and removed in the directory.
pub(super) fn writable(dir: BorrowedFd<'_>) -> Result<()> {
    rustix::fs::accessat(
        dir,
        c".",
        Access::WRITE_OK | Access::EXEC_OK,
        AtFlags::EACCESS,
    )
}

/// The planning of one directory.
pub(super) struct Planner<'a> {
    pub(super) dir: &'a Dir,
    pub(super) form: Form,
    pub(super) treat: Marks,
    pub(super) misfits: &'a mut Misfits,
    pub(super) changes: Vec<Change>,
}

impl Planner<'_> {
    /// What is to be done in the directory.
    pub(super) fn plan(mut self) -> Vec<Change> {
        self.whiteouts();
        let (dir, form) = (self.dir, self.form);
        let file = dir
            .entries
            .iter()
            .any(|entry| entry.aufs() == Some(AufsName::Opaque));
        let xattrs: Vec<Raw> = dir
            .marks
            .iter()
            .filter(|raw| raw.is_opaque())
            .cloned()
            .collect();
        let is_new = |raw: &Raw| matches!(form, Form::Overlay(prefix) if raw.space == Space::Overlay(prefix));
        let complete = match form {
            Form::Overlay(_) => !file && xattrs.iter().all(is_new),
            Form::Aufs => xattrs.is_empty(),
        };
        if (file || !xattrs.is_empty()) && !complete {
            self.changes.push(Change::Opaque(xattrs));
        }
        let holds: Vec<Raw> = dir
            .marks
            .iter()
            .filter(|raw| raw.has_xattr_whiteouts())
            .cloned()
            .collect();
        if !holds.is_empty() {
            self.changes.push(Change::NoXattrWhiteouts(holds));
        }
        self.marks(None, &dir.marks, dir.attr.kind);
        for entry in &dir.entries {
            if entry.attr.kind != Kind::Directory {
                self.marks(Some(entry), &entry.marks, entry.attr.kind);
            }
        }
        self.changes
    }

    fn whiteouts(&mut self) {
        for entry in &self.dir.entries {
            match entry.aufs() {
                None if self.dir.is_whiteout(entry) => {}
                None | Some(AufsName::Opaque) => continue,
                Some(AufsName::Reserved) => {
                    self.reserved(entry);
                    continue;
                }
                // Done with the entry it is beside.
                Some(AufsName::Whiteout(name))
                    if self
                        .dir
                        .find(name)
                        .is_some_and(|at| self.dir.is_whiteout(at)) =>
                {
                    continue;
                }
                Some(_) if entry.is_stray_device() => {
                    let name = entry.name.clone();
                    self.changes.push(Change::Remove(name, entry.attr.kind));
                    continue;
                }
                Some(AufsName::Whiteout(_)) if !entry.is_empty_file() => {
                    let path = self.dir.path_of(Some(&entry.name));
                    self.misfits.add(
                        path,
                        "has the name of a whiteout but is no empty file: rename or remove it",
                    );
                    continue;
                }
                Some(AufsName::Whiteout(_)) => {}
            }
            let whiteout = self.whiteout(entry);
            let done = match self.form {
                Form::Overlay(_) => !whiteout.file && !whiteout.xattr,
                Form::Aufs => whiteout.file && !whiteout.device && !whiteout.xattr,
            };
            if !done && self.has_room(&whiteout) {
                self.changes.push(Change::Whiteout(whiteout));
            }
        }
    }

    fn has_room(&mut self, whiteout: &Whiteout) -> bool {
        let file = self.form == Form::Aufs || whiteout.xattr;
        let fits = !file || mark::aufs_whiteout(whiteout.name.get()).is_ok();
        if !fits {
            let path = self.dir.path_of(Some(&whiteout.name));
            self.misfits.add(path, "is deleted, and its name is too long for a whiteout file: this upper stays as it is");
        }
        fits
    }

    fn whiteout(&self, entry: &Entry) -> Whiteout {
        let name = match entry.aufs() {
            Some(AufsName::Whiteout(name)) => name,
            _ => entry.name.get(),
        };
        let object = self.dir.find(name);
        let file = mark::aufs_whiteout(name).ok();
        Whiteout {
            name: name.to_owned(),
            device: object.is_some_and(|object| mark::is_whiteout(&object.attr)),
            xattr: object.is_some_and(|object| self.dir.is_xattr_whiteout(object)),
            file: file.is_some_and(|file| self.dir.find(file.get()).is_some()),
            beside: object
                .filter(|object| !self.dir.is_whiteout(object))
                .map(|object| object.attr.kind),
        }
    }

    /// aufs keeps books in the upper; what holds nothing can go.
    fn reserved(&mut self, entry: &Entry) {
        if self.form == Form::Aufs {
            return;
        }
        let kind = entry.attr.kind;
        let empty = entry.is_empty_file() || (kind == Kind::Directory && self.is_empty(entry));
        if empty {
            self.changes.push(Change::Remove(entry.name.clone(), kind));
        } else {
            let path = self.dir.path_of(Some(&entry.name));
            self.misfits.add(
                path,
                "is bookkeeping of aufs that is not empty: unmount aufs, and remove it",
            );
        }
    }

    fn is_empty(&self, entry: &Entry) -> bool {
        let mut empty = true;
        let listed = open_directory(&*self.dir.fd, entry.name.get().bytes()).and_then(|fd| {
            list(&fd, |_| {
                empty = false;
                Ok(())
            })
        });
        listed.is_ok() && empty
    }

    /// Whether the object is about to be completed: a union that follows its marks copies up what they lead to.
    fn completed(&self, marks: &[Raw]) -> bool {
        let Completed::By(prefix) = self.treat.completed else {
            return false;
        };
        let mut own = marks
            .iter()
            .filter(|raw| raw.space == Space::Overlay(prefix));
        own.any(|raw| without_form(raw).is_some())
    }

    /// Marks that have no form in aufs, or the wrong namespace.
    fn marks(&mut self, entry: Option<&Entry>, marks: &[Raw], kind: Kind) {
        let name = entry.map(|entry| &entry.name);
        let completed = self.completed(marks);
        if completed {
            self.changes.push(Change::Complete(name.cloned()));
        }
        let kept = |raw: &&Raw| !(completed && needs_lowers(raw));
        match self.form {
            Form::Aufs => {
                for raw in marks.iter().filter(kept) {
                    if let Some(why) = without_form(raw) {
                        self.misfits.add(self.dir.path_of(name), why);
                    }
                }
            }
            Form::Overlay(prefix) => {
                let foreign = |raw: &&Raw| raw.space == Space::FuseOverlayfs;
                let foreign = marks.iter().filter(foreign);
                let foreign: Vec<Raw> = foreign
                    .filter(|raw| !raw.is_opaque() || kind != Kind::Directory)
                    .cloned()
                    .collect();
                if !foreign.is_empty() {
                    self.changes.push(Change::Forget(name.cloned(), foreign));
                }
                let moved: Vec<(Mark, Raw)> = marks
                    .iter()
                    .filter(kept)
                    .filter(|raw| raw.space != Space::Overlay(prefix))
                    .filter_map(|raw| Some((raw.mark()?, raw.clone())))
                    .filter(|(mark, _)| *mark != Mark::Opaque)
                    .collect();
                let leads = moved
                    .iter()
                    .any(|(mark, _)| matches!(mark, Mark::Redirect | Mark::Metacopy));
                let left = marks.iter().filter(kept).any(leads_elsewhere);
                if left && self.treat.completed != Completed::No {
                    let why = "leads to other objects by a mark that the union over --lower does not follow: say \
                               --namespace trusted or --namespace user";
                    self.misfits.add(self.dir.path_of(name), why);
                } else if leads && !self.treat.believed {
                    let why = "leads to other objects by a mark that mounts of this user do not believe: say \
                               --namespace trusted or --namespace user";
                    self.misfits.add(self.dir.path_of(name), why);
                } else if moved.iter().any(|(_, raw)| raw.value.is_none()) {
                    let why = "has a mark that this user may not read: do it as root";
                    self.misfits.add(self.dir.path_of(name), why);
                } else if prefix == Prefix::User && !takes_user_xattrs(kind) {
                    // It cannot carry them there; what is lost is a number.
                } else if !moved.is_empty() {
                    self.changes.push(Change::Move(name.cloned(), moved));
                }
            }
        }
    }
}

fn leads_elsewhere(raw: &Raw) -> bool {
    matches!(raw.mark(), Some(Mark::Redirect | Mark::Metacopy))
}

/// Whether the mark means nothing without the lowers.
fn needs_lowers(raw: &Raw) -> bool {
    leads_elsewhere(raw) || raw.mark() == Some(Mark::Nlink)
}

/// Linux allows `user.` xattrs on these only.
fn takes_user_xattrs(kind: Kind) -> bool {
    matches!(kind, Kind::File | Kind::Directory)
}

/// Why a mark has no form in aufs.
fn without_form(raw: &Raw) -> Option<&'static str> {
    let nlink = || NlinkMark::parse(raw.value.as_deref()?);
    match raw.mark()? {
        Mark::Redirect | Mark::Metacopy => Some(
            "is renamed or has its data in a lower, which the form of aufs cannot say: name the lowers with --lower, so \
             that it can be copied up",
        ),
        // The entry in the index is one of its names.
        Mark::Nlink if !matches!(nlink(), Some(NlinkMark::Upper(..=-1))) => Some(
            "is linked with names of a lower, which the form of aufs cannot say: name the lowers with --lower, so that \
             those are linked in the upper",
        ),
        _ => None,
    }
}
