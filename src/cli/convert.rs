//! `plyfs convert`: an upper's marks in another form.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde_json::json;

use super::exit::{Exit, Failure};
use super::output;
use crate::layer::at_rest::AtRest;
use crate::layer::at_rest::convert::{Counts, Form, Plan};
use crate::layer::mark::Prefix;

/// Rewrite the marks of an upper that is not mounted in another form
///
/// A deletion is a character device 0:0 in the form of Linux overlayfs, and a file .wh.NAME in that of aufs, OCI layers
/// and fuse-overlayfs where it takes no devices; an opaque directory has an xattr, or a file .wh..wh..opq in it. plyfs
/// reads both, other programs do not.
///
/// Everything is looked at first; what the new form cannot say is refused, and nothing is changed: for aufs, directories
/// renamed by a redirect, metadata-only copies, and links with names of a lower. Then all new marks are added, and only
/// when they are on disk the old ones are removed: killed in between, the upper still shows the same to plyfs, and the
/// same command finishes the work.
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
    let upper = AtRest::open(&args.upper, args.work.as_deref())?;
    let form = match (args.to, args.namespace) {
        (To::Aufs, _) => Form::Aufs,
        (To::Overlay, None) => Form::Overlay(upper.own),
        (To::Overlay, Some(Namespace::User)) => Form::Overlay(Prefix::User),
        (To::Overlay, Some(Namespace::Trusted)) if upper.own == Prefix::User => {
            return Err(Failure::usage(
                "--namespace trusted is for root outside of user namespaces only",
            ));
        }
        (To::Overlay, Some(Namespace::Trusted)) => Form::Overlay(Prefix::Trusted),
    };
    let plan = Plan::new(&upper, form, args.namespace.is_some())?;
    if args.dry_run {
        let mut lines = Vec::new();
        for (word, path) in plan.paths() {
            lines.extend_from_slice(format!("{word:<10} ").as_bytes());
            lines.extend_from_slice(&output::for_terminal(&path));
            lines.push(b'\n');
        }
        output::print_bytes(&lines)?;
        output::print(&format!("would convert {}\n", sentence(plan.counts)))?;
        return Ok(Exit::Ok as u8);
    }
    plan.run(&upper)?;
    let Counts {
        whiteouts,
        opaque,
        moved,
        removed,
    } = plan.counts;
    let text = if args.json {
        json!({ "whiteouts": whiteouts, "opaque": opaque, "moved": moved, "removed": removed })
            .to_string()
    } else {
        format!("converted {}", sentence(plan.counts))
    };
    output::print(&(text + "\n"))?;
    Ok(Exit::Ok as u8)
}

fn sentence(counts: Counts) -> String {
    let parts = [
        (counts.whiteouts, "whiteout", "whiteouts"),
        (counts.opaque, "opaque directory", "opaque directories"),
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
