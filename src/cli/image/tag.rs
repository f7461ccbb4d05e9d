//! `plyfs tag` and `plyfs rmi`: names of images.

use clap::Args;

use super::{ReadArgs, StoreArgs, exclusive};
use crate::cli::exit::{Exit, Failure};
use crate::cli::output;
use crate::image::name::Name;
use crate::image::store::{Keep, Store};

/// Give an image one more name
#[derive(Debug, Args)]
pub(in crate::cli) struct TagArgs {
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    read: ReadArgs,
    /// A name, an id, or the path of an archive or layout
    #[arg(value_name = "IMAGE")]
    image: String,
    /// The new name; if another image has it, that one loses it
    #[arg(value_name = "NAME[:TAG]", required = true)]
    names: Vec<String>,
}

/// Remove names; an image without a name is removed with all that no other image needs
#[derive(Debug, Args)]
pub(in crate::cli) struct RmiArgs {
    #[command(flatten)]
    store: StoreArgs,
    /// Names; or an id, which removes all names of that image
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,
    /// Also if the image has several names and is given by its id
    #[arg(short, long)]
    force: bool,
}

pub(super) fn tag(args: &TagArgs) -> Result<(), Failure> {
    let names = args.names.iter().map(|name| Ok(name.parse::<Name>()?));
    let names = names.collect::<Result<Vec<_>, Failure>>()?;
    let store = args.store.open()?;
    let image = args.read.resolve(&store, &args.image)?;
    if !image.is_whole() {
        return Err(Failure::usage(
            "only whole images can have a name; commit the lower state first",
        ));
    }
    for name in names {
        store.tag(&name, image.digest)?;
    }
    Ok(())
}

pub(super) fn remove(args: &RmiArgs) -> Result<(), Failure> {
    let store = args.store.open()?;
    exclusive(&store)?;
    for image in &args.images {
        remove_one(&store, image, args.force)?;
    }
    let garbage = store.collect_garbage(Keep::Images, false)?;
    let lines = garbage
        .layers
        .iter()
        .map(|layer| format!("Deleted: {layer}\n"));
    output::print(&lines.collect::<String>())
}

fn remove_one(store: &Store, text: &str, force: bool) -> Result<(), Failure> {
    let image = store.find(text)?;
    let named = text.parse::<Name>().ok();
    let all: Vec<Name> = store
        .names()?
        .into_iter()
        .filter(|(_, manifest)| *manifest == image.digest)
        .map(|(name, _)| name)
        .collect();
    let spellings = named
        .iter()
        .cloned()
        .chain(named.as_ref().and_then(Name::local));
    let by_name = spellings.into_iter().find(|name| all.contains(name));
    let names = match by_name {
        Some(name) => vec![name],
        None if all.len() > 1 && !force => {
            return Err(Failure::new(
                Exit::InUse,
                format!(
                    "image {text} has {} names; give one, or --force to remove all",
                    all.len()
                ),
            ));
        }
        None => all.clone(),
    };
    let last = names.len() == all.len();
    if last && store.is_held(image.digest)? {
        return Err(Failure::new(
            Exit::InUse,
            format!(
                "image {text} is mounted, or an upper was made for it; 'plyfs inspect {text}' shows where"
            ),
        ));
    }
    for name in &names {
        store.untag(name)?;
        output::print(&format!("Untagged: {name}\n"))?;
    }
    if last {
        store.forget_image(image.digest)?;
        output::print(&format!("Deleted: {}\n", image.id()))?;
    }
    Ok(())
}
