//! `plyfs diff`: what one tree changes over another, in the words of `docker diff`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Map, Value, json};

use super::exit::{Exit, Failure, why};
use super::image::units;
use super::output;
use super::tree::{FindArgs, Tree, TreeKind};
use crate::changes::compare::{Exactness, Reasons};
use crate::changes::owner::Owners;
use crate::changes::{Action, Change, Comparison, WalkError};
use crate::layer::attr::Kind;
use crate::layer::stack::LayerSource;

/// Show what a tree changes over another
///
/// One argument: what the upper of a mount changes, named by the mountpoint or the upper; any other upper together with
/// --lower; or what the topmost layer of an image changes. Two arguments: what turns the tree A into the tree B, each a
/// mount, a directory, the tar of a layer, or an image: by its name, IMAGE~N without its N topmost layers, IMAGE#N only
/// its layer N, or the path of an archive.
///
/// Each line is a letter and a path: A added, C changed, D deleted. A directory is listed as changed if anything in it
/// is; of a deleted one only itself is listed. Times of directories alone do not count.
#[derive(Debug, Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent switches of the command line"
)]
pub(super) struct DiffArgs {
    #[command(flatten)]
    find: FindArgs,
    /// What lies below the upper A; repeat it, topmost first
    #[arg(long, value_name = "DIR", conflicts_with = "b")]
    lower: Vec<PathBuf>,
    /// The workdir of the upper A, which knows hard links that only some names of were copied up
    #[arg(long, value_name = "DIR", requires = "lower")]
    work: Option<PathBuf>,
    /// Print JSON: the paths under "changed", "added" and "deleted"
    #[arg(long)]
    json: bool,
    /// Say in what a changed path differs: type, content, mode, owner, time, xattr
    #[arg(long)]
    reason: bool,
    /// Print sizes of files
    #[arg(short, long)]
    size: bool,
    /// Print only how much changed
    #[arg(long, conflicts_with_all = ["reason", "size"])]
    stat: bool,
    /// A mount, an upper, a directory, a layer or an image
    #[arg(value_name = "A")]
    a: OsString,
    /// What A is compared with
    #[arg(value_name = "B")]
    b: Option<OsString>,
}

/// One line of the list.
#[derive(Debug)]
struct Line {
    action: Action,
    path: Vec<u8>,
    reasons: Reasons,
    /// Of a regular file: of what is there now, or what was deleted.
    size: Option<u64>,
    /// Bytes of content that are new.
    written: u64,
}

impl DiffArgs {
    fn comparison(&self) -> Result<Comparison, Failure> {
        if let Some(b) = &self.b {
            let (before, after) = (Tree::find(&self.a, &self.find)?, Tree::find(b, &self.find)?);
            let has_image = before.image.is_some() || after.image.is_some();
            return Ok(Comparison {
                before: before.whole(),
                after: after.whole(),
                exactness: Exactness::Tolerant,
                owners: if has_image {
                    Owners::of_this_process()
                } else {
                    Owners::AsOnDisk
                },
                owned_below: None,
                complete: false,
            });
        }
        let tree = if self.lower.is_empty() {
            Tree::find(&self.a, &self.find)?
        } else {
            let lowers = self.lower.iter().cloned().map(LayerSource::from);
            Tree::upper_over(Path::new(&self.a), lowers.collect(), self.work.as_deref())?
        };
        if tree.kind == TreeKind::Alone {
            return Err(Failure::usage(format!(
                "{} is not mounted: say what it is compared with, a second tree or --lower DIR",
                self.a.display()
            )));
        }
        Ok(Comparison {
            before: tree.below(),
            after: tree.whole(),
            exactness: Exactness::Exact,
            owners: Owners::of_this_process(),
            owned_below: None,
            complete: false,
        })
    }
}

/// Prints the differences.
pub(super) fn run(args: &DiffArgs) -> Result<u8, Failure> {
    let comparison = args.comparison()?;
    let mut lines = Vec::new();
    comparison
        .walk(|change| {
            lines.push(Line::of(change));
            Ok(())
        })
        .map_err(|error| failure(&args.a.display().to_string(), &error))?;
    lines.sort_by(|a, b| a.path.cmp(&b.path));
    if args.json {
        let text = if args.stat {
            stat_json(&lines).to_string()
        } else {
            list_json(&lines, args).to_string()
        };
        output::print(&(text + "\n"))?;
    } else if args.stat {
        output::print(&stat(&lines))?;
    } else {
        let text: Vec<u8> = lines.iter().flat_map(|line| line.text(args)).collect();
        output::print_bytes(&text)?;
    }
    Ok(Exit::Ok as u8)
}

/// Why a walk over the trees of `what` ended.
pub(super) fn failure(what: &str, error: &WalkError) -> Failure {
    let place = error.path.escape_ascii();
    let reason = why(&error.error);
    let hint = error.hint();
    Failure::other(format!("cannot read /{place} of {what}: {reason}{hint}"))
}

impl Line {
    fn of(change: &Change<'_>) -> Self {
        let object = change.after.or(change.before);
        let size = object
            .filter(|object| object.kind() == Kind::File)
            .map(|object| object.attr.size);
        let new = change.action == Action::Added
            || change.reasons.contains(Reasons::CONTENT)
            || change.reasons.contains(Reasons::TYPE);
        Self {
            action: change.action,
            path: [b"/", change.path].concat(),
            reasons: change.reasons,
            size,
            written: size.filter(|_| new).unwrap_or(0),
        }
    }

    fn text(&self, args: &DiffArgs) -> Vec<u8> {
        let mut text = self.letter().as_bytes().to_vec();
        if args.size {
            let size = self.size.map_or("-".to_owned(), units::size);
            text.extend_from_slice(format!(" {size:>6}").as_bytes());
        }
        text.push(b' ');
        text.extend_from_slice(&output::for_terminal(&self.path));
        if args.reason && !self.reasons.is_empty() {
            text.extend_from_slice(format!(" ({})", self.reasons).as_bytes());
        }
        text.push(b'\n');
        text
    }

    fn letter(&self) -> &'static str {
        match self.action {
            Action::Added => "A",
            Action::Changed => "C",
            Action::Deleted => "D",
        }
    }

    fn json(&self, args: &DiffArgs) -> Value {
        let path = String::from_utf8_lossy(&self.path);
        if !args.reason && !args.size {
            return json!(path);
        }
        let mut object = Map::new();
        object.insert("path".into(), json!(path));
        if args.reason && self.action == Action::Changed {
            let reasons: Vec<_> = self.reasons.words().collect();
            object.insert("reasons".into(), json!(reasons));
        }
        if let Some(size) = self.size.filter(|_| args.size) {
            object.insert("size".into(), json!(size));
        }
        object.into()
    }
}

const SECTIONS: [(&str, Action); 3] = [
    ("changed", Action::Changed),
    ("added", Action::Added),
    ("deleted", Action::Deleted),
];

/// In podman's form: no key without paths.
fn list_json(lines: &[Line], args: &DiffArgs) -> Value {
    let mut sections = Map::new();
    for (name, action) in SECTIONS {
        let of = lines.iter().filter(|line| line.action == action);
        let paths: Vec<Value> = of.map(|line| line.json(args)).collect();
        if !paths.is_empty() {
            sections.insert(name.into(), paths.into());
        }
    }
    sections.into()
}

fn count(lines: &[Line], action: Action) -> usize {
    lines.iter().filter(|line| line.action == action).count()
}

fn written(lines: &[Line]) -> u64 {
    lines.iter().map(|line| line.written).sum()
}

fn stat_json(lines: &[Line]) -> Value {
    json!({
        "changed": count(lines, Action::Changed),
        "added": count(lines, Action::Added),
        "deleted": count(lines, Action::Deleted),
        "bytes": written(lines),
    })
}

fn stat(lines: &[Line]) -> String {
    format!(
        "{} added, {} changed, {} deleted, {} of new content\n",
        count(lines, Action::Added),
        count(lines, Action::Changed),
        count(lines, Action::Deleted),
        units::size(written(lines))
    )
}
