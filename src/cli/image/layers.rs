//! `plyfs tree`: the layers of an image, and who shares them.

use std::collections::{BTreeMap, BTreeSet};

use clap::Args;
use serde_json::json;

use super::{ReadArgs, StoreArgs, units};
use crate::cli::exit::Failure;
use crate::cli::output;
use crate::image::Image;
use crate::image::digest::{ChainId, DiffId};
use crate::image::store::{Referred, Store};

/// Show the layers of an image, base first, with shared and unique bytes
#[derive(Debug, Args)]
pub(in crate::cli) struct TreeArgs {
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    read: ReadArgs,
    /// A name, an id, or the path of an archive or layout
    #[arg(value_name = "IMAGE")]
    image: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// One layer of the image.
struct Row {
    diff_id: DiffId,
    size: u64,
    /// How many other images have it.
    sharers: usize,
    /// Names of images that end here.
    top_of: Vec<String>,
}

pub(super) fn run(args: &TreeArgs) -> Result<(), Failure> {
    let store = args.store.open()?;
    let image = args.read.resolve(&store, &args.image)?;
    let all = store.images()?;
    let names = all.iter().find(|other| other.image.digest == image.digest);
    let names = names.map(names_of).unwrap_or_default();
    let rows = rows(&store, &image, &all)?;
    let unique = sum(rows.iter().filter(|row| row.sharers == 0));
    let shared = sum(rows.iter().filter(|row| row.sharers > 0));
    if args.json {
        let layers: Vec<_> = rows
            .iter()
            .map(|row| json!({"DiffID": row.diff_id, "Size": row.size, "SharedWith": row.sharers, "TopLayerOf": row.top_of}))
            .collect();
        let value = json!({"Id": image.id(), "Tags": names, "Size": unique + shared, "Unique": unique,
            "Shared": shared, "Layers": layers});
        return output::print(&format!("{value}\n"));
    }
    let mut text = format!(
        "Image ID: {}\nTags:    [{}]\nSize:    {} ({} unique, {} shared)\n",
        image.id().0.short(),
        names.join(" "),
        units::human(unique + shared, 4),
        units::human(unique, 4),
        units::human(shared, 4)
    );
    text += if rows.is_empty() {
        "No Image Layers\n"
    } else {
        "Image Layers\n"
    };
    for (number, row) in rows.iter().enumerate() {
        text += &line(row, number + 1 == rows.len());
    }
    output::print(&text)
}

/// As podman has it, and who shares it.
fn line(row: &Row, last: bool) -> String {
    let branch = if last { "└──" } else { "├──" };
    let id = row.diff_id.0.short();
    let size = units::human(row.size, 4);
    let shared = match row.sharers {
        0 => String::new(),
        1 => " Shared with 1 image".into(),
        sharers => format!(" Shared with {sharers} images"),
    };
    let top = if row.top_of.is_empty() {
        String::new()
    } else {
        format!(" Top Layer of: [{}]", row.top_of.join(" "))
    };
    format!("{branch} ID: {id} Size: {size:>7}{shared}{top}\n")
}

/// A layer that is in the image twice counts once.
fn sum<'a>(rows: impl Iterator<Item = &'a Row>) -> u64 {
    let sizes: BTreeMap<DiffId, u64> = rows.map(|row| (row.diff_id, row.size)).collect();
    sizes.into_values().sum()
}

fn names_of(referred: &Referred) -> Vec<String> {
    referred.names.iter().map(ToString::to_string).collect()
}

fn rows(store: &Store, image: &Image, all: &[Referred]) -> Result<Vec<Row>, Failure> {
    let others = all
        .iter()
        .filter(|other| other.image.digest != image.digest);
    let sets: Vec<BTreeSet<DiffId>> = others
        .map(|other| other.image.diff_ids().into_iter().collect())
        .collect();
    let mut tops: BTreeMap<ChainId, Vec<String>> = BTreeMap::new();
    for referred in all {
        if let Some(chain) = referred.image.chain_id() {
            tops.entry(chain).or_default().extend(names_of(referred));
        }
    }
    let diff_ids = image.diff_ids();
    let rows = diff_ids.iter().enumerate().map(|(number, &diff_id)| {
        let chain = ChainId::of(&diff_ids[..=number]);
        Ok(Row {
            diff_id,
            size: store.layer_size(diff_id)?,
            sharers: sets.iter().filter(|set| set.contains(&diff_id)).count(),
            top_of: chain
                .and_then(|chain| tops.get(&chain).cloned())
                .unwrap_or_default(),
        })
    });
    rows.collect()
}
