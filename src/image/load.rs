//! Bringing images in: every layer is read once, verified, indexed and stored, several at a time.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;

use serde_json::{Value, json};

use super::digest::{DiffId, ManifestDigest, plain};
use super::error::{Cause, Context, ImageError, Result};
use super::ingest::{self, Event, Ingested};
use super::manifest::{Descriptor, Manifest, Platform, media};
use super::name::Name;
use super::plan::{Plan, PlannedConfig, PlannedLayer};
use super::source::Source;
use super::store::Store;
use super::{Config, Image, docker, oci, platform};

/// How to load.
#[derive(Clone, Copy)]
pub struct LoadOptions<'a> {
    /// Of several images for different platforms this one; the machine's own if nothing is said.
    pub platform: Option<&'a Platform>,
    /// All that is unpacked, in bytes, may together become so large.
    pub max_size: u64,
    /// Told of what happens, from several threads.
    pub progress: &'a (dyn Fn(Event<'_>) + Sync),
}

impl std::fmt::Debug for LoadOptions<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoadOptions")
            .field("platform", &self.platform)
            .field("max_size", &self.max_size)
            .finish_non_exhaustive()
    }
}

/// An image that was brought in.
#[derive(Debug)]
pub struct Loaded {
    /// The image.
    pub image: Image,
    /// What the source calls it: names that it has now.
    pub names: Vec<Name>,
    /// Names that meant other images before.
    pub replaced: Vec<(Name, ManifestDigest)>,
}

/// Brings in all images of an archive or layout, `-` for stdin, and gives them the names they have there.
pub fn load(store: &Store, path: &Path, options: LoadOptions<'_>) -> Result<Vec<Loaded>> {
    let bring = || -> Result<Vec<Loaded>> {
        let plans = plans(store, path, options)?;
        let images = bring_in(store, &plans, options)?;
        plans
            .into_iter()
            .zip(images)
            .map(|(plan, image)| name(store, plan.names, image))
            .collect()
    };
    bring().map_err(|error| error.within(shown(path)))
}

/// How errors call a source.
pub(super) fn shown(path: &Path) -> String {
    if path == Path::new("-") {
        return "stdin".into();
    }
    plain(&path.display().to_string())
}

fn name(store: &Store, names: Vec<Name>, image: Image) -> Result<Loaded> {
    let mut replaced = Vec::new();
    for name in &names {
        if let Some(before) = store.tag(name, image.digest)? {
            replaced.push((name.clone(), before));
        }
    }
    Ok(Loaded {
        image,
        names,
        replaced,
    })
}

/// What the archive or layout at `path` has to offer.
pub(super) fn plans(store: &Store, path: &Path, options: LoadOptions<'_>) -> Result<Vec<Plan>> {
    let spool = || store.temporary_file();
    let source = Source::open(path, spool, options.max_size)?;
    let stem = path.file_name().and_then(|name| name.to_str());
    let stem = stem.map(|name| name.split('.').next().unwrap_or(name).to_lowercase());
    let plans = choose(&source, options.platform, stem.as_deref())?;
    if plans.is_empty() {
        return Err(ImageError::not_found("there is no image in it"));
    }
    Ok(plans)
}

/// A layout counts before a `manifest.json` beside it, unless it is incomplete: docker 25.0 wrote manifests without
/// layers (moby issue 47065).
fn choose(source: &Source, wanted: Option<&Platform>, stem: Option<&str>) -> Result<Vec<Plan>> {
    let layout = oci::plans(source, wanted, stem);
    if let Ok(Some(plans)) = &layout
        && plans
            .iter()
            .flat_map(|plan| &plan.layers)
            .all(|layer| layer.part.is_some())
    {
        return layout.map(Option::unwrap_or_default);
    }
    let plans = match source.json(docker::MANIFEST)? {
        Some(manifest) => Some(docker::plans(source, &manifest)?),
        None => None,
    };
    let plans = match (plans, layout) {
        (Some(plans), _) => Some(plans),
        (None, Ok(None)) => docker::legacy_plans(source)?,
        (None, layout) => layout?,
    };
    plans.ok_or_else(|| {
        ImageError::malformed(
            "it is no image: it has neither manifest.json nor oci-layout; for a layer or a root filesystem use \
             'plyfs import'",
        )
    })
}

/// Stores the images of `plans`.
pub(super) fn bring_in(
    store: &Store,
    plans: &[Plan],
    options: LoadOptions<'_>,
) -> Result<Vec<Image>> {
    let layers: Vec<&PlannedLayer> = plans.iter().flat_map(|plan| &plan.layers).collect();
    let mut ingested = in_parallel(store, &layers, options)?.into_iter();
    plans
        .iter()
        .map(|plan| {
            let layers: Vec<Ingested> = ingested.by_ref().take(plan.layers.len()).collect();
            publish(store, plan, &layers, options.platform)
        })
        .collect()
}

/// The same layer is read once, however often it is named.
pub(super) fn in_parallel(
    store: &Store,
    layers: &[&PlannedLayer],
    options: LoadOptions<'_>,
) -> Result<Vec<Ingested>> {
    let mut jobs: Vec<&PlannedLayer> = Vec::new();
    let mut known = HashMap::new();
    let numbers: Vec<usize> = layers
        .iter()
        .map(|layer| {
            *known.entry(layer.identity()).or_insert_with(|| {
                jobs.push(layer);
                jobs.len() - 1
            })
        })
        .collect();
    announce(store, &jobs)?;
    let results: Vec<_> = jobs.iter().map(|_| std::sync::OnceLock::new()).collect();
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let budget = AtomicU64::new(options.max_size);
    let work = || {
        while !failed.load(Ordering::Relaxed)
            && let number = next.fetch_add(1, Ordering::Relaxed)
            && let Some(job) = jobs.get(number)
        {
            let limits = ingest::Limits {
                left: &budget,
                all: options.max_size,
                stop: &failed,
            };
            let result = ingest::layer(store, number, job, limits, options.progress);
            if result.is_err() {
                failed.store(true, Ordering::Relaxed);
            }
            // Each number is given out once.
            _ = results[number].set(result);
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 1..threads.min(jobs.len()) {
            scope.spawn(work);
        }
        work();
    });
    collect(results, &numbers)
}

/// Notes in one go what is likely to be published.
fn announce(store: &Store, layers: &[&PlannedLayer]) -> Result<()> {
    store.settle()?;
    let wanted = layers
        .iter()
        .filter(|layer| !ingest::is_present(store, layer));
    let objects = wanted.flat_map(|layer| {
        let blob = layer.blob.as_ref().map(|blob| blob.digest);
        layer.diff_id.map(|id| id.0).into_iter().chain(blob)
    });
    store.announce(&objects.collect::<Vec<_>>())
}

fn collect(
    results: Vec<std::sync::OnceLock<Result<Ingested>>>,
    numbers: &[usize],
) -> Result<Vec<Ingested>> {
    // Layers that were stopped because another failed are not the reason.
    let mut done: Vec<Option<Ingested>> = Vec::with_capacity(results.len());
    let mut stopped = None;
    for result in results {
        match result.into_inner() {
            Some(Ok(ingested)) => done.push(Some(ingested)),
            Some(Err(error)) if error.cause() == Cause::Stopped => {
                stopped = Some(error);
                done.push(None);
            }
            Some(Err(error)) => return Err(error),
            None => done.push(None),
        }
    }
    let all = numbers.iter().map(|&number| done[number].clone());
    all.collect::<Option<_>>().ok_or_else(|| {
        stopped.unwrap_or_else(|| ImageError::new(Cause::Stopped, "it was interrupted"))
    })
}

/// Stores config and manifest, when the layers are there.
fn publish(
    store: &Store,
    plan: &Plan,
    layers: &[Ingested],
    wanted: Option<&Platform>,
) -> Result<Image> {
    let config_json = match &plan.config {
        PlannedConfig::Json(json) => json.clone(),
        PlannedConfig::Legacy(chain) => legacy_config(chain, layers)?,
    };
    if let Some(wanted) = wanted {
        check_platform(&Config::parse(&config_json)?, wanted)?;
    }
    let manifest_json = match &plan.manifest_json {
        Some(json) => json.clone(),
        None => new_manifest(&config_json, layers)?,
    };
    store.put_blob(&config_json)?;
    store.put_image(&manifest_json)
}

fn check_platform(config: &Config, wanted: &Platform) -> Result<()> {
    let platform = Platform {
        architecture: config.architecture.clone(),
        os: config.os.clone(),
        variant: config.variant.clone(),
    };
    if platform::fits(&platform, wanted) {
        return Ok(());
    }
    Err(ImageError::not_found(format!(
        "the image is for {}, not for {}",
        plain(&platform::text(&platform)),
        platform::text(wanted)
    )))
}

/// The manifest of an image that came without: always the same for the same config.
pub(super) fn new_manifest(config_json: &[u8], layers: &[Ingested]) -> Result<Vec<u8>> {
    let config = Descriptor::new(
        media::CONFIG,
        super::Digest::of(config_json),
        config_json.len() as u64,
    );
    let manifest = Manifest {
        schema_version: 2,
        media_type: media::MANIFEST.into(),
        config,
        layers: layers.iter().map(|layer| layer.blob.clone()).collect(),
        annotations: std::collections::BTreeMap::new(),
    };
    serde_json::to_vec(&manifest)
        .map_err(io::Error::from)
        .context(|| "cannot write a manifest")
}

/// The config of an image of docker before 1.10, as docker 1.10 made it at its first start.
fn legacy_config(chain: &[Value], layers: &[Ingested]) -> Result<Vec<u8>> {
    let mut config = serde_json::Map::new();
    if let Some(top) = chain.last() {
        for field in [
            "architecture",
            "os",
            "created",
            "author",
            "comment",
            "docker_version",
            "config",
        ] {
            if let Some(value) = top.get(field) {
                config.insert(field.into(), value.clone());
            }
        }
    }
    let history = chain.iter().map(|about| {
        let mut step = serde_json::Map::new();
        for field in ["created", "author", "comment"] {
            if let Some(value) = about.get(field) {
                step.insert(field.into(), value.clone());
            }
        }
        let command = about
            .pointer("/container_config/Cmd")
            .and_then(Value::as_array);
        let words = command.into_iter().flatten().filter_map(Value::as_str);
        step.insert(
            "created_by".into(),
            words.collect::<Vec<_>>().join(" ").into(),
        );
        Value::Object(step)
    });
    config.insert("history".into(), history.collect());
    let diff_ids: Vec<DiffId> = layers.iter().map(|layer| layer.diff_id).collect();
    config.insert(
        "rootfs".into(),
        json!({"type": "layers", "diff_ids": diff_ids}),
    );
    serde_json::to_vec(&config)
        .map_err(io::Error::from)
        .context(|| "cannot write a config")
}
