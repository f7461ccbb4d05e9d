//! An image of layers that come without one.

use std::io;
use std::path::Path;

use serde_json::json;

use super::error::{Cause, Context, ImageError, Result};
use super::load::{self, LoadOptions, shown};
use super::plan::PlannedLayer;
use super::source::Part;
use super::store::Store;
use super::{Image, compress, platform, time};

/// What to make an image of.
#[derive(Clone, Copy, Debug)]
pub struct Import<'a> {
    /// Tars, compressed or not, base first; `-` is stdin.
    pub layers: &'a [&'a Path],
    /// Goes into the history.
    pub message: &'a str,
    /// Seconds since 1970; now if nothing is said.
    pub created: Option<i64>,
}

/// Makes the image.
pub fn import(store: &Store, wanted: &Import<'_>, options: LoadOptions<'_>) -> Result<Image> {
    let layers = wanted.layers.iter().map(|path| {
        Ok(PlannedLayer {
            path: shown(path),
            part: Some(
                part(store, path, options.max_size).map_err(|error| error.within(shown(path)))?,
            ),
            blob: None,
            diff_id: None,
        })
    });
    let layers = layers.collect::<Result<Vec<_>>>()?;
    let ingested = load::in_parallel(store, &layers.iter().collect::<Vec<_>>(), options)?;
    let created = time::format(wanted.created.unwrap_or_else(time::now));
    let own = platform::own();
    let platform = options.platform.unwrap_or(&own);
    let history: Vec<_> = wanted
        .layers
        .iter()
        .map(|path| {
            let mut step = json!({"created": created, "created_by": format!("plyfs import {}", file_name(path))});
            if !wanted.message.is_empty() {
                step["comment"] = wanted.message.into();
            }
            step
        })
        .collect();
    let diff_ids: Vec<_> = ingested.iter().map(|layer| layer.diff_id).collect();
    let mut config = json!({
        "created": created,
        "architecture": platform.architecture,
        "os": platform.os,
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": history,
    });
    if !platform.variant.is_empty() {
        config["variant"] = platform.variant.clone().into();
    }
    let config = serde_json::to_vec(&config)
        .map_err(io::Error::from)
        .context(|| "cannot write a config")?;
    store.put_blob(&config)?;
    store.put_image(&load::new_manifest(&config, &ingested)?)
}

/// Where a file is on this machine is nobody's business.
fn file_name(path: &Path) -> String {
    path.file_name()
        .map_or_else(|| "-".into(), |name| name.to_string_lossy().into_owned())
}

fn part(store: &Store, path: &Path, limit: u64) -> Result<Part> {
    let cannot = || "cannot read it";
    if path == Path::new("-") {
        let mut file = store.temporary_file().context(cannot)?;
        let mut stdin = compress::open(io::stdin()).context(cannot)?;
        super::source::copy(&mut stdin, &mut file, limit)?;
        return Part::whole(file).context(cannot);
    }
    let file = std::fs::File::open(path).context(cannot)?;
    if !file.metadata().context(cannot)?.is_file() {
        return Err(ImageError::new(
            Cause::Usage,
            "it is not a file; a layer is a tar",
        ));
    }
    Part::whole(file).context(cannot)
}
