//! The subcommands about images, in docker's words; one file each below.

mod cleanup;
mod history;
mod import;
mod inspect;
mod layers;
mod list;
mod load;
pub(super) mod mount;
mod progress;
mod save;
mod tag;
mod template;
pub(super) mod units;
mod uppers;

use std::collections::BTreeSet;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::Value;

use super::exit::{Exit, Failure};
use super::output;
use crate::image::Image;
use crate::image::digest::DiffId;
use crate::image::error::{Cause, ImageError};
use crate::image::load::LoadOptions;
use crate::image::manifest::Platform;
use crate::image::platform;
use crate::image::store::Store;
use crate::image::time;
use template::Template;

/// Subcommands about images.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    Load(load::LoadArgs),
    Import(import::ImportArgs),
    Images(list::ImagesArgs),
    History(history::HistoryArgs),
    Inspect(inspect::InspectArgs),
    Tree(layers::TreeArgs),
    Tag(tag::TagArgs),
    Rmi(tag::RmiArgs),
    Save(save::SaveArgs),
    Uppers(uppers::UppersArgs),
    Gc(cleanup::GcArgs),
    Fsck(cleanup::FsckArgs),
}

impl Command {
    pub(super) fn run(self) -> Result<u8, Failure> {
        match self {
            Self::Load(args) => load::run(&args),
            Self::Import(args) => import::run(&args),
            Self::Images(args) => list::run(&args),
            Self::History(args) => history::run(&args),
            Self::Inspect(args) => inspect::run(&args),
            Self::Tree(args) => layers::run(&args),
            Self::Tag(args) => tag::tag(&args),
            Self::Rmi(args) => tag::remove(&args),
            Self::Save(args) => save::run(&args),
            Self::Uppers(args) => uppers::run(&args),
            Self::Gc(args) => cleanup::gc(&args),
            Self::Fsck(args) => cleanup::fsck(&args),
        }
        .map(|()| Exit::Ok as u8)
    }
}

/// Where the images are.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct StoreArgs {
    /// The image store [`$XDG_DATA_HOME/plyfs`, else `~/.local/share/plyfs`]
    #[arg(long, value_name = "DIR")]
    pub(super) store: Option<PathBuf>,
}

impl StoreArgs {
    /// Opens the store, and creates it at its first use.
    pub(super) fn open(&self) -> Result<Store, Failure> {
        let root = match &self.store {
            Some(root) => root.clone(),
            None => Store::default_root()?,
        };
        Ok(Store::open(&root)?)
    }
}

/// How an archive is read.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct ReadArgs {
    /// Of an image for several platforms, take this one [this machine's]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    platform: Option<String>,
    /// Refuse what unpacks to more than this; K, M, G, T mean powers of 1024; 256G otherwise
    #[arg(long, value_name = "SIZE", value_parser = units::parse_size)]
    max_size: Option<u64>,
}

/// Above all real images, below what fills a disk unnoticed.
const MAX_SIZE: u64 = 256 << 30;

impl ReadArgs {
    fn platform(&self) -> Result<Option<Platform>, Failure> {
        let parsed = self.platform.as_deref().map(platform::parse);
        Ok(parsed.transpose()?)
    }

    fn max_size(&self) -> u64 {
        self.max_size.unwrap_or(MAX_SIZE)
    }

    /// The image that `text` means: a name, or the path of an archive, which is read with a progress bar.
    pub(super) fn resolve(&self, store: &Store, text: &str) -> Result<Image, Failure> {
        let platform = self.platform()?;
        let bars = progress::Bars::new(false);
        let progress = |event: crate::image::ingest::Event<'_>| bars.show(event);
        let options = LoadOptions {
            platform: platform.as_ref(),
            max_size: self.max_size(),
            progress: &progress,
        };
        Ok(store.resolve(text, options)?)
    }
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Self {
        let exit = match error.cause() {
            Cause::Usage => Exit::Usage,
            Cause::NotFound => Exit::NotFound,
            Cause::Malformed => Exit::Malformed,
            Cause::InUse => Exit::InUse,
            Cause::System | Cause::Stopped => Exit::Failure,
        };
        Self::new(exit, error.to_string())
    }
}

/// Waits for other processes that use the store, and says so.
fn exclusive(store: &Store) -> Result<(), Failure> {
    let waiting = || output::complain("waiting for other processes that use the store");
    Ok(store.make_exclusive(waiting)?)
}

/// Bytes of all layers of an image, unpacked, each counted once.
fn image_size(store: &Store, image: &Image) -> Result<u64, Failure> {
    let layers: BTreeSet<DiffId> = image.diff_ids().into_iter().collect();
    let sizes = layers.into_iter().map(|layer| store.layer_size(layer));
    Ok(sizes.sum::<Result<u64, _>>()?)
}

/// How long ago, as docker shows it: it takes what is before 2000 for no time at all.
fn age_shown(seconds: Option<i64>) -> String {
    const TIMES_BEGIN: i64 = 946_684_800;
    match seconds.filter(|&seconds| seconds > TIMES_BEGIN) {
        Some(seconds) => units::age(time::now() - seconds),
        None => "N/A".into(),
    }
}

/// RFC 3339.
fn time_shown(seconds: Option<i64>) -> String {
    seconds.map_or_else(|| "N/A".into(), time::format)
}

/// Prints values as docker's `--format` has it: `json`, `table TEMPLATE` or TEMPLATE. `id` heads the column of ids.
fn show(values: &[Value], format: &str, id: &str) -> Result<(), Failure> {
    if format == "json" {
        let lines = values.iter().map(|value| format!("{value}\n"));
        return output::print(&lines.collect::<String>());
    }
    let Some(columns) = format.strip_prefix("table ") else {
        let template = Template::parse(format)?;
        let lines = values
            .iter()
            .map(|value| Ok(template.render(value)? + "\n"));
        return output::print(&lines.collect::<Result<String, Failure>>()?);
    };
    let template = Template::parse(columns)?;
    let cells = |line: &str| line.split('\t').map(str::to_owned).collect::<Vec<_>>();
    let rows = values
        .iter()
        .map(|value| Ok(cells(&template.render(value)?)));
    let rows = rows.collect::<Result<Vec<_>, Failure>>()?;
    output::print(&output::docker_table(&cells(&template.heading(id)), &rows))
}
