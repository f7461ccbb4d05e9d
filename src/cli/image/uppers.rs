//! `plyfs uppers`: what `mount --rw` keeps.

use clap::Args;
use serde_json::{Value, json};

use super::{StoreArgs, exclusive};
use crate::cli::exit::Failure;
use crate::cli::{ephemeral, output};
use crate::image::name::Name;
use crate::image::store::Store;

/// List the uppers that mount --rw keeps, or remove some with all changes in them
#[derive(Debug, Args)]
pub(in crate::cli) struct UppersArgs {
    #[command(flatten)]
    store: StoreArgs,
    /// Remove this one; repeat it
    #[arg(long, value_name = "NAME")]
    remove: Vec<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &UppersArgs) -> Result<(), Failure> {
    let store = args.store.open()?;
    if args.remove.is_empty() {
        return list(&store, args.json);
    }
    exclusive(&store)?;
    for name in &args.remove {
        ephemeral::remove(&store.discard_upper(name)?);
    }
    Ok(())
}

fn list(store: &Store, json: bool) -> Result<(), Failure> {
    let uppers = store.uppers()?;
    let values = uppers.iter().map(|name| value(store, name));
    let values = values.collect::<Result<Vec<_>, _>>()?;
    if json {
        return output::print(&format!("{}\n", Value::Array(values)));
    }
    super::show(
        &values,
        "table {{.Name}}\\t{{.ID}}\\t{{.Image}}",
        "IMAGE ID",
    )
}

fn value(store: &Store, name: &str) -> Result<Value, Failure> {
    let made_for = store.upper_image(name)?;
    let names = store.names()?;
    let names = names
        .into_iter()
        .filter(|(_, image)| Some(*image) == made_for);
    let names: Vec<Name> = names.map(|(name, _)| name).collect();
    let id = made_for.map(|image| store.image(image)).transpose()?;
    Ok(json!({
        "Name": name,
        "ID": id.map(|image| image.id().0.short()),
        "Image": names.first().map(ToString::to_string),
    }))
}
