//! `plyfs convert`: an upper's marks in another form.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use rustix::io::Errno;
use serde_json::{Value, json};

use super::exit::{Exit, Failure};
use super::output;
use crate::layer;
use crate::layer::at_rest::AtRest;
use crate::layer::at_rest::convert::{Completed, Counts, Form, Marks, Plan};
use crate::layer::mark::Prefix;
use crate::layer::stack::{LayerSource, Stack, StackConfig, UpperConfig, XattrNamespace};
use crate::overlay::Overlay;
use crate::overlay::complete::Incomplete;
use crate::overlay::options::{Options, RedirectDir};

/// Rewrite the marks of an upper that is not mounted in another form
///
/// A deletion is a character device 0:0 in the form of Linux overlayfs, and a file .wh.NAME in that of aufs, OCI layers
/// and fuse-overlayfs where it takes no devices; an opaque directory has an xattr, or a file .wh..wh..opq in it. plyfs
/// reads both, other programs do not.
///
/// Everything is looked at first; what the new form cannot say is refused, and nothing is changed: for aufs, directories
/// renamed by a redirect, metadata-only copies, and links with names of a lower. With --lower such objects are copied up
/// as a whole first, so that the upper needs none of those marks: which is also what fuse-overlayfs and the kernel's
/// mounts of ordinary users (userxattr) need, since they follow none.
///
/// Then all new marks are added, and only when they are on disk the old ones are removed: killed in between, the upper
/// still shows the same to plyfs, and the same command finishes the work.
#[derive(Debug, Args)]
pub(super) struct ConvertArgs {
    /// The form to write
    #[arg(long, value_name = "FORM")]
    to: To,
    /// The xattrs of the overlay form, and to believe marks that lead to other objects from the other namespace
    ///
    /// Unless it is said: trusted for root, user for all others and in a user namespace; and such marks are refused.
    #[arg(long, value_name = "NAMESPACE")]
    namespace: Option<Namespace>,
    /// What the upper was mounted over, to copy up what marks lead to; repeat it for each layer, topmost first
    ///
    /// What a layer has that is not named is lost to the renamed directories.
    #[arg(long, value_name = "DIR", requires = "work")]
    lower: Vec<PathBuf>,
    /// The workdir of the upper, to be sure that no mount uses it
    #[arg(long, value_name = "DIR")]
    work: Option<PathBuf>,
    /// Print each path that would be rewritten, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Print the counts as JSON
    #[arg(long, conflicts_with = "dry_run")]
    json: bool,
    /// The upper
    #[arg(value_name = "UPPER")]
    upper: PathBuf,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum To {
    /// Linux overlayfs
    Overlay,
    /// aufs, OCI layers, fuse-overlayfs
    Aufs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Namespace {
    /// trusted.overlay.*, which only root writes
    Trusted,
    /// user.overlay.*, the kernel's userxattr
    User,
}

/// Rewrites them.
pub(super) fn run(args: &ConvertArgs) -> Result<u8, Failure> {
    if matches!(args.to, To::Aufs) && args.namespace.is_some() {
        return Err(Failure::usage(
            "--namespace is of no use with --to aufs, whose marks are files",
        ));
    }
    let mut upper = AtRest::open(&args.upper, args.work.as_deref())?;
    let form = args.form(upper.own)?;
    let mut marks = Marks {
        believed: args.namespace.is_some(),
        completed: if args.lower.is_empty() {
            Completed::No
        } else {
            Completed::By(args.followed(upper.own))
        },
    };
    let mut plan = Plan::new(&upper, form, marks)?;
    if args.dry_run {
        print_plan(&plan)?;
        return Ok(Exit::Ok as u8);
    }
    let mut completed = 0;
    if marks.completed != Completed::No {
        // The union takes the locks while it works.
        drop(upper);
        completed = complete(args)?;
        upper = AtRest::open(&args.upper, args.work.as_deref())?;
        marks.completed = Completed::Done;
        plan = Plan::new(&upper, form, marks)?;
    }
    plan.run(&upper)?;
    let counts = Counts {
        completed,
        ..plan.counts
    };
    let text = if args.json {
        in_json(counts).to_string()
    } else {
        format!("converted {}", sentence(counts))
    };
    output::print(&(text + "\n"))?;
    Ok(Exit::Ok as u8)
}

impl ConvertArgs {
    /// The namespace whose marks lead to what is copied up.
    fn followed(&self, own: Prefix) -> Prefix {
        match self.namespace {
            Some(Namespace::User) => Prefix::User,
            _ => own,
        }
    }

    /// `own`: the namespace of marks that this process writes.
    fn form(&self, own: Prefix) -> Result<Form, Failure> {
        Ok(match (self.to, self.namespace) {
            (To::Aufs, _) => Form::Aufs,
            (To::Overlay, None) => Form::Overlay(own),
            (To::Overlay, Some(Namespace::User)) => Form::Overlay(Prefix::User),
            (To::Overlay, Some(Namespace::Trusted)) if own == Prefix::User => {
                return Err(Failure::usage(
                    "--namespace trusted is for root outside of user namespaces only",
                ));
            }
            (To::Overlay, Some(Namespace::Trusted)) => Form::Overlay(Prefix::Trusted),
        })
    }
}

fn print_plan(plan: &Plan) -> Result<(), Failure> {
    let mut lines = Vec::new();
    for (word, path) in plan.paths() {
        lines.extend_from_slice(format!("{word:<10} ").as_bytes());
        lines.extend_from_slice(&output::for_terminal(&path));
        lines.push(b'\n');
    }
    output::print_bytes(&lines)?;
    output::print(&format!("would convert {}\n", sentence(plan.counts)))
}

/// Copies up what marks of the upper lead to; how many objects that was about.
fn complete(args: &ConvertArgs) -> Result<usize, Failure> {
    let upper = UpperConfig {
        upper: args.upper.clone(),
        work: args.work.clone().unwrap_or_default(),
    };
    let config = StackConfig {
        lowers: args.lower.iter().cloned().map(LayerSource::from).collect(),
        upper: Some(upper),
        xattrs: match args.namespace {
            Some(Namespace::User) => XattrNamespace::User,
            _ => XattrNamespace::Auto,
        },
        ..StackConfig::default()
    };
    let options = Options {
        redirect_dir: RedirectDir::Copy,
        ..Options::default()
    };
    let overlay = Overlay::new(Stack::open(&config)?, options)?;
    overlay.complete().map_err(|Incomplete { path, error }| {
        let path = OsStr::from_bytes(&path).display();
        if error == Errno::NOENT {
            return Failure::new(
                Exit::Lower,
                format!(
                    "{path} leads to what none of the lowers has: name those that {} was mounted over",
                    args.upper.display()
                ),
            );
        }
        let reason = layer::describe(error);
        Failure::other(format!("cannot copy up {path}: {reason}; what was copied so far stays, and shows the same"))
    })
}

fn in_json(counts: Counts) -> Value {
    let Counts {
        whiteouts,
        opaque,
        moved,
        removed,
        completed,
    } = counts;
    json!({
        "whiteouts": whiteouts,
        "opaque": opaque,
        "moved": moved,
        "removed": removed,
        "completed": completed,
    })
}

fn sentence(counts: Counts) -> String {
    let parts = [
        (counts.whiteouts, "whiteout", "whiteouts"),
        (counts.opaque, "opaque directory", "opaque directories"),
        (
            counts.completed,
            "object with what it was in the lowers",
            "objects with what they were in the lowers",
        ),
        (
            counts.moved,
            "xattr of the other namespace",
            "xattrs of the other namespace",
        ),
        (
            counts.removed,
            "note of another union",
            "notes of other unions",
        ),
    ];
    let parts: Vec<String> = parts
        .into_iter()
        .filter(|(count, ..)| *count > 0)
        .map(|(count, one, many)| format!("{count} {}", if count == 1 { one } else { many }))
        .collect();
    if parts.is_empty() {
        "nothing: it has that form".to_owned()
    } else {
        parts.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counts_are_words_that_fit_the_number() {
        let counts = Counts {
            whiteouts: 2,
            opaque: 1,
            ..Counts::default()
        };
        assert_eq!(sentence(counts), "2 whiteouts, 1 opaque directory");
        assert_eq!(sentence(Counts::default()), "nothing: it has that form");
    }
}
