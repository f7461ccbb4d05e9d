//! `plyfs load`: images from archives and layouts into the store.

use std::path::{Path, PathBuf};

use clap::Args;

use super::progress::Bars;
use super::{ReadArgs, StoreArgs};
use crate::cli::exit::Failure;
use crate::cli::output;
use crate::image::ingest::Event;
use crate::image::load::{LoadOptions, Loaded, load};
use crate::image::store::Store;

/// Load images from an archive or a layout into the store
///
/// FILE is what `docker save`, `podman save`, `skopeo copy` and build tools write: a docker-archive of any age, an OCI
/// archive or an OCI layout directory; compressed or not; `-` is stdin. Layers that the store has already are not read
/// again. Nothing is unpacked: a layer is kept as one tar with an index.
#[derive(Debug, Args)]
pub(in crate::cli) struct LoadArgs {
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    read: ReadArgs,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
    /// The same as FILE, as docker has it
    #[arg(short, long, value_name = "FILE")]
    input: Vec<PathBuf>,
    /// Archives, layouts or - for stdin [-]
    #[arg(value_name = "FILE|DIR|-")]
    files: Vec<PathBuf>,
}

pub(super) fn run(args: &LoadArgs) -> Result<(), Failure> {
    let mut files: Vec<&Path> = args
        .input
        .iter()
        .chain(&args.files)
        .map(PathBuf::as_path)
        .collect();
    if files.is_empty() {
        if std::io::IsTerminal::is_terminal(&std::io::stdin()) {
            return Err(Failure::usage(
                "no archive is given; say 'plyfs load FILE', or pipe one into stdin",
            ));
        }
        files.push(Path::new("-"));
    }
    let store = args.store.open()?;
    let platform = args.read.platform()?;
    for file in files {
        let bars = Bars::new(args.quiet);
        let progress = |event: Event<'_>| bars.show(event);
        let options = LoadOptions {
            platform: platform.as_ref(),
            max_size: args.read.max_size(),
            progress: &progress,
        };
        let loaded = load(&store, file, options)?;
        loaded.iter().try_for_each(|loaded| tell(&store, loaded))?;
    }
    Ok(())
}

/// As docker tells it.
pub(super) fn tell(store: &Store, loaded: &Loaded) -> Result<(), Failure> {
    for (name, before) in &loaded.replaced {
        let id = store.image(*before).map_or(before.0, |image| image.id().0);
        output::complain(&format!(
            "the name {name} was that of image {}, which is kept without it",
            id.short()
        ));
    }
    if loaded.names.is_empty() {
        return output::print(&format!("Loaded image ID: {}\n", loaded.image.id()));
    }
    let lines = loaded
        .names
        .iter()
        .map(|name| format!("Loaded image: {name}\n"));
    output::print(&lines.collect::<String>())
}
