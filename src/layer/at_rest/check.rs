//! Looking for marks in an upper that a union would misread, ignore or answer with an error.

use std::ffi::CStr;

use super::{AtRest, Dir, Entry, Overrides};
use crate::layer::attr::Kind;
use crate::layer::error::SetupError;
use crate::layer::handle;
use crate::layer::lower::list;
use crate::layer::mark::{self, AufsName, Mark, NlinkMark, Prefix, Raw, Redirect, Space};
use crate::layer::name::OwnedName;
use crate::layer::override_stat::{self, Override};
use crate::layer::workdir::{VOLATILE, WORK};

/// One thing that is wrong.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Problem {
    /// Where, from the root of the upper; of the workdir, its whole path.
    pub path: Vec<u8>,
    /// A word for scripts.
    pub kind: &'static str,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub advice: String,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Report {
    /// Objects looked at, marks aside.
    pub objects: u64,
    /// What is wrong, in the order of the tree.
    pub problems: Vec<Problem>,
}

/// Looks through an upper, and its workdir if that was told.
pub fn check(upper: &AtRest) -> Result<Report, SetupError> {
    let mut checker = Checker {
        own: upper.own,
        overrides: None,
        report: Report::default(),
    };
    upper.walk(|dir| {
        checker.dir(&dir);
        Ok(())
    })?;
    let mut report = checker.report;
    work(upper, &mut report)?;
    Ok(report)
}

/// What a mount does itself needs no hand; what it leaves to its user does.
fn work(upper: &AtRest, report: &mut Report) -> Result<(), SetupError> {
    let Some((path, fd)) = &upper.work else {
        return Ok(());
    };
    let mut problem = |below: &str, kind, what: &str, advice: &str| {
        report.problems.push(Problem {
            path: path.join(below).into_os_string().into_encoded_bytes(),
            kind,
            what: what.to_owned(),
            advice: advice.to_owned(),
        });
    };
    let fail = |error| upper.failure(path.as_os_str().as_encoded_bytes(), error);
    let temp = match crate::layer::at::open_directory(fd, WORK.as_bytes()) {
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        other => other.map_err(fail)?,
    };
    let (mut left, mut volatile) = (0, false);
    list(&temp, |entry| {
        if entry.name == VOLATILE[0].as_bytes() {
            volatile = true;
        } else {
            left += 1;
        }
        Ok(())
    })
    .map_err(fail)?;
    if volatile {
        problem(
            &format!("{WORK}/{}", VOLATILE.join("/")),
            "volatile",
            "says that a volatile mount did not end cleanly, so changes may be lost",
            "start with a new upper, or remove it to go on at your own risk",
        );
    }
    if left > 0 {
        problem(
            WORK,
            "leftover",
            &format!("holds {left} unfinished objects of a mount that was killed"),
            "mount it once with plyfs or the kernel, which puts back what has to be and empties it",
        );
    }
    Ok(())
}

struct Checker {
    own: Prefix,
    /// The override xattr of the root, by which all below is read.
    overrides: Option<&'static CStr>,
    report: Report,
}

impl Checker {
    fn add(
        &mut self,
        path: Vec<u8>,
        kind: &'static str,
        what: impl Into<String>,
        advice: impl Into<String>,
    ) {
        self.report.problems.push(Problem {
            path,
            kind,
            what: what.into(),
            advice: advice.into(),
        });
    }

    fn dir(&mut self, dir: &Dir) {
        if dir.path.is_empty() {
            self.overrides = dir.overrides.first().map(|(name, _)| *name);
        }
        self.report.objects += 1;
        self.marks(dir, None, &dir.marks, Kind::Directory);
        self.over(dir, None, &dir.overrides, Kind::Directory);
        for entry in &dir.entries {
            if let Some(name) = entry.aufs() {
                self.aufs_name(dir, entry, name);
                continue;
            }
            if entry.attr.kind == Kind::Directory && !entry.attr.mount_root {
                continue;
            }
            let kind = entry.attr.kind;
            if !dir.is_whiteout(entry) {
                self.report.objects += 1;
                self.over(dir, Some(&entry.name), &entry.overrides, kind);
            }
            self.marks(dir, Some(entry), &entry.marks, kind);
        }
    }

    fn aufs_name(&mut self, dir: &Dir, entry: &Entry, name: AufsName<'_>) {
        let path = dir.path_of(Some(&entry.name));
        if entry.is_stray_device() {
            return;
        }
        if name != AufsName::Reserved && !entry.is_empty_file() {
            return self.add(
                path,
                "stray-name",
                "has the name of a mark but is no empty file: no union shows it",
                "rename or remove it",
            );
        }
        let AufsName::Whiteout(hidden) = name else {
            if name == AufsName::Reserved {
                self.add(
                    path,
                    "reserved-name",
                    "is bookkeeping of aufs, or nothing: the kernel shows it as a file",
                    "remove it unless aufs still uses this directory",
                );
            }
            return;
        };
        match dir.find(hidden) {
            None => {}
            Some(object) if dir.is_whiteout(object) => self.add(
                path,
                "whiteout-twice",
                "is a whiteout of a name that has one in another form",
                "finish the conversion: plyfs convert --to overlay (or aufs)",
            ),
            Some(object) => {
                let what = if object.attr.kind == Kind::Directory {
                    "is a whiteout beside the directory it deletes, which hides what the lowers have in it from plyfs \
                     only"
                } else {
                    "is a whiteout beside the file it deletes, which fuse-overlayfs does not show"
                };
                self.add(
                    path,
                    "whiteout-beside",
                    what,
                    "plyfs convert --to overlay keeps what plyfs shows; or remove the one that is wrong",
                );
            }
        }
    }

    fn marks(&mut self, dir: &Dir, entry: Option<&Entry>, marks: &[Raw], kind: Kind) {
        let path = || dir.path_of(entry.map(|entry| &entry.name));
        for raw in marks {
            let Space::Overlay(prefix) = raw.space else {
                continue;
            };
            let name = raw.name.to_string_lossy();
            let remove = format!("remove the xattr: setfattr -x {name}");
            let wrong = if raw.is_whiteout() {
                wrong_whiteout(dir, entry)
            } else {
                raw.mark().and_then(|mark| wrong_mark(mark, raw, kind))
            };
            if let Some((word, what)) = wrong {
                self.add(path(), word, format!("{name} {what}"), remove);
                continue;
            }
            let leads = matches!(raw.mark(), Some(Mark::Redirect | Mark::Metacopy));
            let twin = marks
                .iter()
                .find(|other| other.key == raw.key && other.space == Space::Overlay(self.own));
            if prefix == self.own || raw.mark().is_none() {
                continue;
            }
            match twin {
                Some(twin) if twin.value != raw.value => self.add(
                    path(),
                    "namespaces-differ",
                    format!("{name} and {} differ", twin.name.to_string_lossy()),
                    remove,
                ),
                None if leads => self.add(
                    path(),
                    "not-believed",
                    format!("{name} leads to another object, which a mount by this user does not believe"),
                    "mount as who wrote it; or trust its owner: plyfs convert --to overlay --namespace trusted (or \
                     user)",
                ),
                _ => {}
            }
        }
    }

    fn over(&mut self, dir: &Dir, name: Option<&OwnedName>, overrides: &Overrides, kind: Kind) {
        for (xattr, value) in overrides {
            let path = dir.path_of(name);
            let text = xattr.to_string_lossy();
            if !override_stat::is_read(xattr, self.overrides) {
                self.add(
                    path,
                    "override-not-read",
                    format!("{text} is not read, because the root of the upper does not have it"),
                    "give the root one, or remove it",
                );
                continue;
            }
            let shown = String::from_utf8_lossy(value);
            match Override::parse(value) {
                None => self.add(
                    path,
                    "override-malformed",
                    format!("{text} is '{shown}', so owner and mode are those of the disk"),
                    "set it to UID:GID:MODE:TYPE, mode octal, for example 0:0:0644:file",
                ),
                Some(over) if !over.fits(kind) => self.add(
                    path,
                    "override-type",
                    format!("{text} is '{shown}', which this object cannot stand for"),
                    "correct its type",
                ),
                Some(_) => {}
            }
        }
    }
}

fn wrong_whiteout(dir: &Dir, entry: Option<&Entry>) -> Option<(&'static str, &'static str)> {
    if !entry.is_some_and(Entry::is_empty_file) {
        return Some((
            "whiteout-not-empty",
            "makes a whiteout of empty regular files only",
        ));
    }
    let marked = dir.has_xattr_whiteouts();
    (!marked).then_some((
        "whiteout-not-marked",
        "counts only in a directory with overlay.opaque=x: the file is shown",
    ))
}

/// What is wrong with a mark by itself.
fn wrong_mark(mark: Mark, raw: &Raw, kind: Kind) -> Option<(&'static str, &'static str)> {
    let Some(value) = raw.value.as_deref() else {
        return Some(("unreadable", "cannot be read by this user"));
    };
    let (directory, file) = (kind == Kind::Directory, kind == Kind::File);
    match mark {
        Mark::Opaque if !directory => Some(("opaque-not-directory", "is on what is no directory")),
        Mark::Opaque if !raw.is_opaque() && !raw.has_xattr_whiteouts() => Some((
            "opaque-malformed",
            "is neither y nor x: it counts for nothing",
        )),
        Mark::Redirect if !directory && !file => {
            Some(("redirect-misplaced", "is on neither a directory nor a file"))
        }
        Mark::Redirect if Redirect::parse(value).is_err() => Some((
            "redirect-malformed",
            "is neither an absolute path nor one name: the object answers errors",
        )),
        Mark::Metacopy if !file => Some(("metacopy-misplaced", "is on what is no regular file")),
        Mark::Metacopy if !mark::is_metacopy(value) => Some((
            "metacopy-malformed",
            "is not in the kernel's format, which answers EIO",
        )),
        Mark::Origin if !handle::is_well_formed(value) => Some((
            "origin-malformed",
            "is no file handle: the inode number is not kept",
        )),
        Mark::Impure if !directory => Some(("impure-misplaced", "is on what is no directory")),
        Mark::Nlink if NlinkMark::parse(value).is_none() => Some((
            "nlink-malformed",
            "is not of the form U+1: links are miscounted",
        )),
        _ => None,
    }
}
