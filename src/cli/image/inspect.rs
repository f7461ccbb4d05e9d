//! `plyfs inspect`: all about an image, as `docker inspect` tells it.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Map, Value, json};

use super::template::Template;
use super::{ReadArgs, StoreArgs};
use crate::cli::exit::Failure;
use crate::cli::output;
use crate::image::Image;
use crate::image::name::Name;
use crate::image::store::{MountRecord, Store};
use crate::image::time;

/// Show all about images as JSON, with docker's fields
///
/// `GraphDriver` tells the files of the layers and, for each live mount of the image, upper and mountpoint.
#[derive(Debug, Args)]
pub(in crate::cli) struct InspectArgs {
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    read: ReadArgs,
    /// Names, ids, or paths of archives or layouts
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,
    /// A template, as docker has it, for example '{{.Architecture}}'
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// The image config, byte for byte
    #[arg(long, conflicts_with_all = ["format", "manifest"])]
    config: bool,
    /// The manifest, byte for byte
    #[arg(long, visible_alias = "raw", conflicts_with = "format")]
    manifest: bool,
}

pub(super) fn run(args: &InspectArgs) -> Result<(), Failure> {
    let store = args.store.open()?;
    let images = args
        .images
        .iter()
        .map(|image| args.read.resolve(&store, image));
    let images = images.collect::<Result<Vec<_>, _>>()?;
    if args.config || args.manifest {
        let document = |image: &Image| {
            if args.config {
                image.config_json.clone()
            } else {
                image.manifest_json.clone()
            }
        };
        return images
            .iter()
            .try_for_each(|image| output::write(&document(image)));
    }
    let values = images.iter().map(|image| value(&store, image));
    let values = values.collect::<Result<Vec<_>, Failure>>()?;
    if let Some(format) = &args.format {
        let template = Template::parse(format)?;
        let lines = values
            .iter()
            .map(|value| Ok(template.render(value)? + "\n"));
        return output::print(&lines.collect::<Result<String, Failure>>()?);
    }
    let text = serde_json::to_string_pretty(&values);
    output::print(
        &(text.map_err(|error| Failure::other(format!("cannot write JSON: {error}")))? + "\n"),
    )
}

fn value(store: &Store, image: &Image) -> Result<Value, Failure> {
    let names = store.names()?;
    let names = names
        .into_iter()
        .filter(|(_, manifest)| *manifest == image.digest);
    let names: Vec<Name> = names.map(|(name, _)| name).collect();
    let digests = names
        .iter()
        .map(|name| format!("{}@{}", name.repository(), image.digest));
    let config = &image.config;
    let mut value = Map::new();
    let mut set = |field: &str, to: Value| value.insert(field.to_owned(), to);
    set("Id", image.id().to_string().into());
    set("RepoTags", names.iter().map(ToString::to_string).collect());
    set("RepoDigests", digests.collect());
    set("Comment", config.comment.clone().into());
    set("Created", config.created.clone().into());
    set("Author", config.author.clone().into());
    set("DockerVersion", config.docker_version.clone().into());
    set("Config", config.config.clone());
    set("Architecture", config.architecture.clone().into());
    if !config.variant.is_empty() {
        set("Variant", config.variant.clone().into());
    }
    set("Os", config.os.clone().into());
    if !config.os_version.is_empty() {
        set("OsVersion", config.os_version.clone().into());
    }
    set("Size", super::image_size(store, image)?.into());
    set("GraphDriver", graph_driver(store, image)?);
    set(
        "RootFS",
        json!({"Type": "layers", "Layers": image.diff_ids()}),
    );
    let loaded = store.loaded_at(image.digest).map(time::seconds);
    set(
        "Metadata",
        json!({"LastTagTime": super::time_shown(loaded)}),
    );
    let size = image.manifest_json.len();
    set(
        "Descriptor",
        json!({"mediaType": image.manifest.media_type, "digest": image.digest, "size": size}),
    );
    set("Layers", layers(store, image)?);
    Ok(Value::Object(value))
}

/// Docker's section about where a container is on disk, for the first live mount of the image; all mounts are in
/// `Mounts`.
fn graph_driver(store: &Store, image: &Image) -> Result<Value, Failure> {
    let tars = image
        .layers
        .iter()
        .rev()
        .map(|layer| Ok(store.layer(layer.diff_id)?.tar));
    let tars = tars.collect::<Result<Vec<PathBuf>, Failure>>()?;
    let tars = tars
        .iter()
        .map(|tar| tar.display().to_string())
        .collect::<Vec<_>>();
    let mounts = store.mounted()?;
    let mounts: Vec<MountRecord> = mounts
        .into_iter()
        .filter(|mount| mount.manifest == image.digest)
        .collect();
    let mut data = Map::new();
    data.insert("LowerDir".into(), tars.join(":").into());
    if let Some(mount) = mounts.first() {
        data.insert(
            "MergedDir".into(),
            mount.mountpoint.display().to_string().into(),
        );
        if let (Some(upper), Some(work)) = (&mount.upper, &mount.work) {
            data.insert("UpperDir".into(), upper.display().to_string().into());
            data.insert("WorkDir".into(), work.display().to_string().into());
        }
    }
    Ok(json!({"Name": "plyfs", "Data": data, "Mounts": mounts}))
}

/// What docker does not tell: each layer with its digests, sizes and the step that made it. Base first.
fn layers(store: &Store, image: &Image) -> Result<Value, Failure> {
    let steps = image.config.steps(image.layers.len());
    let made_by = |number: usize| {
        let step = steps.iter().find(|step| step.layer == Some(number));
        step.and_then(|step| step.history.clone())
            .map(|history| history.created_by)
    };
    let layers = image.layers.iter().enumerate().map(|(number, layer)| {
        Ok(json!({
            "Index": number + 1,
            "DiffID": layer.diff_id,
            "Digest": layer.blob.digest,
            "MediaType": layer.blob.media_type,
            "Size": layer.blob.size,
            "UncompressedSize": store.layer_size(layer.diff_id)?,
            "CreatedBy": made_by(number),
        }))
    });
    layers.collect()
}
