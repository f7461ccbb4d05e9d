//! `plyfs which`: which layer a path comes from, and every version of it in the layers.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use clap::Args;
use rustix::io::Errno;
use serde::Serialize;

use super::exit::{Exit, Failure};
use super::output;
use super::tree::{self, FindArgs, Tree, TreeKind, names};
use crate::image::digest::plain;
use crate::image::time;
use crate::layer;
use crate::layer::attr::Kind;
use crate::layer::name::OwnedName;
use crate::layer::view::{Object, View};

/// Show which layer a path comes from, and its versions in the layers below
///
/// PATH is a path in a mount, or `IMAGE:/PATH`. The first line is the version that is seen; those below it are hidden.
/// A deleted path can be asked for, too. Layers are numbered from the base, which is 1.
#[derive(Debug, Args)]
pub(super) struct WhichArgs {
    #[command(flatten)]
    find: FindArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// In a mount, or `IMAGE:/PATH`
    #[arg(value_name = "PATH")]
    path: OsString,
}

/// What a layer did to the path.
#[derive(Debug, Serialize)]
struct Version {
    /// From the base; `null` for the upper.
    layer: Option<usize>,
    change: &'static str,
    #[serde(flatten)]
    object: Option<Described>,
    /// The directory or tar that is the layer.
    from: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    diff_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    created_by: Option<String>,
}

/// What the path is in a layer.
#[derive(Debug, Serialize)]
struct Described {
    #[serde(rename = "type")]
    kind: &'static str,
    mode: String,
    uid: u32,
    gid: u32,
    size: u64,
    modified: String,
}

/// Prints the versions, newest first.
pub(super) fn run(args: &WhichArgs) -> Result<u8, Failure> {
    let shown = args.path.display();
    let (tree, path) = find(args)?;
    let names = names(&path)?;
    let versions = versions(&tree, &names).map_err(|error| {
        Failure::other(format!("cannot read {shown}: {}", layer::describe(error)))
    })?;
    if versions.is_empty() {
        return Err(Failure::new(
            Exit::NotFound,
            format!("no layer has {shown}: there is no such path, nor was one deleted"),
        ));
    }
    if args.json {
        let text = serde_json::to_string_pretty(&versions);
        let text = text.map_err(|error| Failure::other(format!("cannot write JSON: {error}")))?;
        output::print(&(text + "\n"))?;
    } else {
        let header = [
            "LAYER", "CHANGE", "TYPE", "MODE", "OWNER", "SIZE", "MODIFIED", "FROM",
        ];
        let rows: Vec<Vec<String>> = versions.iter().map(Version::row).collect();
        output::print(&output::table(&header, &rows))?;
    }
    Ok(Exit::Ok as u8)
}

/// The tree and the path in it.
fn find(args: &WhichArgs) -> Result<(Tree, Vec<u8>), Failure> {
    let path = Path::new(&args.path);
    if let Some((mountpoint, inside)) = tree::mount_of(path)? {
        return Ok((
            Tree::at(&mountpoint)?,
            inside.as_os_str().as_bytes().to_vec(),
        ));
    }
    match tree::split_image_path(&args.path) {
        Some((image, inside)) if path.symlink_metadata().is_err() => {
            Ok((Tree::find(image, &args.find)?, inside.to_vec()))
        }
        _ => Err(Failure::new(
            Exit::NotPlyfs,
            format!(
                "{} is in no plyfs mount; of an image, say IMAGE:/PATH",
                path.display()
            ),
        )),
    }
}

/// What each layer did to the path, the topmost first.
fn versions(tree: &Tree, names: &[OwnedName]) -> Result<Vec<Version>, Errno> {
    let mut versions = Vec::new();
    let mut below: Option<Object> = None;
    // Against the grain: each layer is compared with what those below it show.
    for position in (0..tree.layers()).rev() {
        let here = find_in(&tree.from(position), names)?;
        let change = match (&below, &here) {
            (None, None) => None,
            (None, Some(_)) => Some("added"),
            (Some(_), None) => Some("deleted"),
            (Some(then), Some(now)) => (!now.is(then)).then_some("changed"),
        };
        if let Some(change) = change {
            versions.push(version(tree, position, change, here.as_ref()));
        }
        below = here;
    }
    versions.reverse();
    Ok(versions)
}

fn find_in(view: &View, names: &[OwnedName]) -> Result<Option<Object>, Errno> {
    match view.find(names) {
        Err(Errno::NOTDIR) => Ok(None),
        other => other,
    }
}

fn version(tree: &Tree, position: usize, change: &'static str, object: Option<&Object>) -> Version {
    let is_upper = tree.kind == TreeKind::WithUpper && position == 0;
    let number = tree.layers() - position;
    let (diff_id, created_by) = of_image(tree, number).filter(|_| !is_upper).unzip();
    Version {
        layer: (!is_upper).then_some(number),
        change,
        object: object.map(Described::of),
        from: tree.layer_path(position).display().to_string(),
        diff_id,
        created_by: created_by.flatten(),
    }
}

/// Digest and command of layer `number` of the image.
fn of_image(tree: &Tree, number: usize) -> Option<(String, Option<String>)> {
    let of = tree.image.as_ref().filter(|of| !of.partial)?;
    let index = number.checked_sub(1)?;
    let layer = of.image.layers.get(index)?;
    let steps = of.image.config.steps(of.image.layers.len());
    let step = steps.into_iter().find(|step| step.layer == Some(index));
    let history = step.and_then(|step| step.history);
    Some((
        layer.diff_id.to_string(),
        history.map(|history| history.created_by),
    ))
}

impl Described {
    fn of(object: &Object) -> Self {
        let attr = &object.attr;
        Self {
            kind: kind_word(attr.kind),
            mode: format!("{:04o}", attr.mode),
            uid: attr.uid,
            gid: attr.gid,
            size: attr.size,
            modified: time::format(attr.mtime.sec),
        }
    }
}

pub(super) fn kind_word(kind: Kind) -> &'static str {
    match kind {
        Kind::File => "file",
        Kind::Directory => "directory",
        Kind::Symlink => "symlink",
        Kind::CharDevice => "char device",
        Kind::BlockDevice => "block device",
        Kind::Fifo => "fifo",
        Kind::Socket => "socket",
    }
}

impl Version {
    fn row(&self) -> Vec<String> {
        let none = || "-".to_owned();
        let layer = self
            .layer
            .map_or("upper".to_owned(), |number| number.to_string());
        let mut row = vec![layer, self.change.to_owned()];
        match &self.object {
            Some(object) => row.extend([
                object.kind.to_owned(),
                object.mode.clone(),
                format!("{}:{}", object.uid, object.gid),
                object.size.to_string(),
                object.modified.clone(),
            ]),
            None => row.extend(std::iter::repeat_with(none).take(5)),
        }
        let made = self
            .created_by
            .as_deref()
            .filter(|command| !command.is_empty());
        let from = made.or(self.diff_id.as_deref()).unwrap_or(&self.from);
        row.push(plain(from));
        row
    }
}
