//! `plyfs gc` and `plyfs fsck`.

use clap::Args;

use super::{StoreArgs, exclusive, units};
use crate::cli::exit::{Exit, Failure};
use crate::cli::output;
use crate::image::store::{Garbage, Keep};

/// Remove images without a name and what no image needs
///
/// What is mounted, has a name, or has an upper made by `mount --rw` is kept.
#[derive(Debug, Args)]
pub(in crate::cli) struct GcArgs {
    #[command(flatten)]
    store: StoreArgs,
    /// Only say what would be removed
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Read everything in the store again and compare it with its digests
#[derive(Debug, Args)]
pub(in crate::cli) struct FsckArgs {
    #[command(flatten)]
    store: StoreArgs,
    /// Make damaged indexes and layers anew where that is possible; remove what is damaged otherwise, so that it can
    /// be loaded again
    #[arg(long)]
    repair: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn gc(args: &GcArgs) -> Result<(), Failure> {
    let store = args.store.open()?;
    if !args.dry_run {
        exclusive(&store)?;
    }
    let garbage = store.collect_garbage(Keep::Roots, args.dry_run)?;
    if args.json {
        return json(&garbage);
    }
    let Garbage {
        images,
        layers,
        blobs,
        bytes,
    } = &garbage;
    let word = if args.dry_run {
        "Would remove"
    } else {
        "Removed"
    };
    let removed_images = images.iter().map(|image| format!("{word} image {image}"));
    let removed_layers = layers.iter().map(|layer| format!("{word} layer {layer}"));
    let sum = format!(
        "{word} {} images, {} layers, {} blobs: {}",
        images.len(),
        layers.len(),
        blobs.len(),
        units::size(*bytes)
    );
    lines(removed_images.chain(removed_layers).chain([sum]))
}

fn lines(lines: impl Iterator<Item = String>) -> Result<(), Failure> {
    output::print(&(lines.collect::<Vec<_>>().join("\n") + "\n"))
}

pub(super) fn fsck(args: &FsckArgs) -> Result<(), Failure> {
    let store = args.store.open()?;
    if args.repair {
        exclusive(&store)?;
    }
    let report = store.check(args.repair)?;
    if args.json {
        json(&report)?;
    } else {
        let damages = report.damages.iter().map(|damage| {
            let done = if damage.repaired {
                " (repaired, or removed: load its image again)"
            } else {
                ""
            };
            format!("{}{done}", damage.what)
        });
        let sum = format!(
            "Checked {} blobs, {} layers, {} images: {} damaged",
            report.blobs,
            report.layers,
            report.images,
            report.damages.len()
        );
        lines(damages.chain([sum]))?;
    }
    if report.damages.iter().all(|damage| damage.repaired) {
        return Ok(());
    }
    let hint = if args.repair {
        "load the images that miss something again"
    } else {
        "'plyfs fsck --repair' puts right what can be"
    };
    Err(Failure::new(
        Exit::Malformed,
        format!("the image store is damaged; {hint}"),
    ))
}

fn json(value: &impl serde::Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value);
    output::print(
        &(text.map_err(|error| Failure::other(format!("cannot write JSON: {error}")))? + "\n"),
    )
}
