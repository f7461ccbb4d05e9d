//! `plyfs import`: layers or a root filesystem without an image around them.

use std::path::{Path, PathBuf};

use clap::Args;

use super::progress::Bars;
use super::{ReadArgs, StoreArgs};
use crate::cli::exit::Failure;
use crate::cli::output;
use crate::image::import::{Import, import};
use crate::image::ingest::Event;
use crate::image::load::LoadOptions;
use crate::image::name::Name;

/// Make an image of layer tars, or of one root filesystem tar
///
/// `plyfs import rootfs.tar NAME` makes an image of one layer; `plyfs import --layer BASE.tar --layer ABOVE.tar NAME`
/// of several, base first. The tars may be compressed; whiteouts in them mean what they mean in image layers.
#[derive(Debug, Args)]
pub(in crate::cli) struct ImportArgs {
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    read: ReadArgs,
    /// A layer; repeat it, base first
    #[arg(long, value_name = "TAR")]
    layer: Vec<PathBuf>,
    /// Said in the image's history
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,
    /// Seconds since 1970 to write as the time of the image [`$SOURCE_DATE_EPOCH`, else now]
    #[arg(long, value_name = "SECONDS")]
    source_date_epoch: Option<i64>,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
    /// A root filesystem (- for stdin) unless there are --layer, and the name of the image
    #[arg(value_name = "TAR NAME[:TAG]", num_args = 0..=2)]
    words: Vec<String>,
}

pub(super) fn run(args: &ImportArgs) -> Result<(), Failure> {
    let (layers, name) = words(args)?;
    let name = name.map(|name| name.parse::<Name>()).transpose()?;
    let store = args.store.open()?;
    let platform = args.read.platform()?;
    let bars = Bars::new(args.quiet);
    let progress = |event: Event<'_>| bars.show(event);
    let options = LoadOptions {
        platform: platform.as_ref(),
        max_size: args.read.max_size(),
        progress: &progress,
    };
    let epoch = std::env::var("SOURCE_DATE_EPOCH")
        .ok()
        .and_then(|epoch| epoch.parse().ok());
    let wanted = Import {
        layers: &layers,
        message: args.message.as_deref().unwrap_or_default(),
        created: args.source_date_epoch.or(epoch),
    };
    let image = import(&store, &wanted, options)?;
    if let Some(name) = name {
        store.tag(&name, image.digest)?;
    }
    output::print(&format!("{}\n", image.id()))
}

/// The layers, base first, and the name.
fn words(args: &ImportArgs) -> Result<(Vec<&Path>, Option<&str>), Failure> {
    match (args.layer.is_empty(), &args.words[..]) {
        (true, []) => Err(Failure::usage(
            "no layer is given; say 'plyfs import TAR NAME' or --layer TAR",
        )),
        (true, [tar]) => Ok((vec![Path::new(tar)], None)),
        (true, [tar, name]) => Ok((vec![Path::new(tar)], Some(name))),
        (false, [] | [_]) => {
            let layers = args.layer.iter().map(PathBuf::as_path).collect();
            Ok((layers, args.words.first().map(String::as_str)))
        }
        _ => Err(Failure::usage(
            "with --layer only the name of the image is given besides",
        )),
    }
}
