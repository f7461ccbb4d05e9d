//! Archives as `docker save` writes them, of all ages.
//!
//! | written by | config and layers are named by |
//! |---|---|
//! | docker before 1.10 | `repositories`: no digests; layers by the parents in `ID/json` |
//! | docker 1.10 to 24, podman, skopeo, many build tools | `manifest.json` |
//! | docker since 25 | `manifest.json`, and an OCI layout beside it ([`oci`](super::oci)) |
//!
//! Paths in `manifest.json` are data, not conventions; layers may be links to each other, and compressed.

use std::collections::{BTreeMap, HashSet};

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::config::Config;
use super::digest::plain;
use super::error::{ImageError, Result};
use super::manifest::{nullable, parse, parse_any};
use super::name::Name;
use super::plan::{Plan, PlannedConfig, PlannedLayer};
use super::source::Source;

/// The file that says what is in the archive.
pub(super) const MANIFEST: &str = "manifest.json";
/// The same of docker before 1.10.
const REPOSITORIES: &str = "repositories";
/// Docker's own limit.
const LAYERS_MAX: usize = 1000;

/// One image of `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Item {
    config: String,
    #[serde(default, deserialize_with = "nullable")]
    repo_tags: Vec<String>,
    #[serde(default, deserialize_with = "nullable")]
    layers: Vec<String>,
}

/// The images of an archive that has a `manifest.json`.
pub(super) fn plans(source: &Source, manifest: &[u8]) -> Result<Vec<Plan>> {
    let items: Vec<&RawValue> = parse_any(manifest, MANIFEST)?;
    let plans = items
        .iter()
        .map(|item| plan(source, &parse(item.get().as_bytes(), MANIFEST)?));
    plans.collect()
}

fn plan(source: &Source, item: &Item) -> Result<Plan> {
    let within = |error: ImageError| error.within(plain(&item.config));
    let json = source.need(&item.config)?.json().map_err(within)?;
    let config = Config::parse(&json).map_err(within)?;
    let diff_ids = config.rootfs.diff_ids;
    if diff_ids.len() != item.layers.len() {
        return Err(ImageError::malformed(format!(
            "{MANIFEST} lists {} layers, but the config {} has {}",
            item.layers.len(),
            plain(&item.config),
            diff_ids.len()
        )));
    }
    let layers = item.layers.iter().zip(diff_ids).map(|(path, diff_id)| {
        Ok(PlannedLayer {
            path: path.clone(),
            part: source.part(path)?,
            blob: None,
            diff_id: Some(diff_id),
        })
    });
    Ok(Plan {
        names: names(&item.repo_tags)?,
        manifest_json: None,
        layers: layers.collect::<Result<_>>()?,
        config: PlannedConfig::Json(json),
    })
}

fn names(tags: &[String]) -> Result<Vec<Name>> {
    tags.iter()
        .map(|tag| tag.parse().map_err(|error: ImageError| malformed(&error)))
        .collect()
}

/// A name in an archive is not the user's mistake.
fn malformed(error: &ImageError) -> ImageError {
    ImageError::malformed(error.to_string())
}

/// The images of an archive that has only `repositories`; `None` if it has not even that.
pub(super) fn legacy_plans(source: &Source) -> Result<Option<Vec<Plan>>> {
    let Some(json) = source.json(REPOSITORIES)? else {
        return Ok(None);
    };
    let repositories: BTreeMap<String, BTreeMap<String, String>> = parse(&json, REPOSITORIES)?;
    let mut tops: BTreeMap<&str, Vec<Name>> = BTreeMap::new();
    for (repository, tags) in &repositories {
        for (tag, id) in tags {
            let name = format!("{repository}:{tag}").parse();
            let name = name.map_err(|error| malformed(&error))?;
            tops.entry(id).or_default().push(name);
        }
    }
    let plans = tops
        .into_iter()
        .map(|(top, names)| legacy_plan(source, top, names));
    plans.collect::<Result<_>>().map(Some)
}

fn legacy_plan(source: &Source, top: &str, names: Vec<Name>) -> Result<Plan> {
    let mut chain = Vec::new();
    let mut seen = HashSet::new();
    let mut next = Some(top.to_owned());
    while let Some(id) = next {
        if !seen.insert(id.clone()) || seen.len() > LAYERS_MAX {
            return Err(ImageError::malformed(format!(
                "the parents of image {} lead in a circle, or it has more than {LAYERS_MAX} layers",
                plain(top)
            )));
        }
        let json = source.need(&format!("{id}/json"))?.json()?;
        let about: Value = parse(&json, "image description")?;
        next = about
            .get("parent")
            .and_then(Value::as_str)
            .map(str::to_owned);
        next = next.filter(|parent| !parent.is_empty());
        chain.push((id, about));
    }
    chain.reverse();
    let layers = chain.iter().map(|(id, _)| {
        let path = format!("{id}/layer.tar");
        Ok(PlannedLayer {
            part: Some(source.need(&path)?),
            path,
            blob: None,
            diff_id: None,
        })
    });
    Ok(Plan {
        names,
        manifest_json: None,
        layers: layers.collect::<Result<_>>()?,
        config: PlannedConfig::Legacy(chain.into_iter().map(|(_, about)| about).collect()),
    })
}
