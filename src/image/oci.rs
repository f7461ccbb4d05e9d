//! OCI image layouts, as a directory or in a tar: `oci-layout`, `index.json`, `blobs/ALGORITHM/DIGEST`.
//!
//! Format: OCI image specification, `image-layout.md` and `image-index.md`. An index may hold indexes; of the images
//! for several platforms one is chosen.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::config::Config;
use super::digest::{Digest, plain};
use super::error::{ImageError, Result};
use super::manifest::{Descriptor, Index, Manifest, Platform, media, parse};
use super::name::Name;
use super::plan::{Plan, PlannedConfig, PlannedLayer};
use super::platform;
use super::source::{Part, Source};

/// The file that says that a directory is a layout.
pub(super) const LAYOUT: &str = "oci-layout";
pub(super) const INDEX: &str = "index.json";
/// How deep indexes may lie in each other.
const DEPTH_MAX: usize = 8;
/// How many indexes and images are looked at.
const DOCUMENTS_MAX: usize = 10_000;

/// The name of an image, by containerd and docker: complete.
pub(super) const FULL_NAME: &str = "io.containerd.image.name";
/// The name of an image by the specification: anything, often only a tag.
pub(super) const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// What buildkit says of descriptors that are no images.
const ATTESTATION: &str = "vnd.docker.reference.type";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Layout {
    image_layout_version: String,
}

/// The images of a layout; `None` if it is none. `stem` is what an image is called that has only a tag.
pub(super) fn plans(
    source: &Source,
    wanted: Option<&Platform>,
    stem: Option<&str>,
) -> Result<Option<Vec<Plan>>> {
    let Some(layout) = source.json(LAYOUT)? else {
        return Ok(None);
    };
    let layout: Layout = parse(&layout, LAYOUT)?;
    if !layout.image_layout_version.starts_with("1.") {
        return Err(ImageError::malformed(format!(
            "OCI layout of version '{}'; only version 1 is known",
            plain(&layout.image_layout_version)
        )));
    }
    let index = source.need(INDEX)?.json()?;
    let index = Index::parse(&index, "").map_err(|error| error.within(INDEX))?;
    let mut reader = Reader {
        source,
        wanted,
        documents: 0,
    };
    let mut found: Vec<(Descriptor, Vec<Name>)> = Vec::new();
    for group in by_name(index.manifests, stem) {
        let (descriptors, name) = group;
        for descriptor in reader.choose(descriptors, 0)? {
            match found
                .iter_mut()
                .find(|(known, _)| known.digest == descriptor.digest)
            {
                Some((_, names)) => names.extend(name.clone()),
                None => found.push((descriptor, name.clone().into_iter().collect())),
            }
        }
    }
    let plans = found
        .into_iter()
        .map(|(descriptor, names)| reader.plan(&descriptor, names));
    let plans: Vec<_> = plans.collect::<Result<_>>()?;
    Ok(Some(plans.into_iter().flatten().collect()))
}

/// Descriptors that have the same name, in the order of the index: they are one image for several platforms.
fn by_name(
    descriptors: Vec<Descriptor>,
    stem: Option<&str>,
) -> Vec<(Vec<Descriptor>, Option<Name>)> {
    let mut groups: Vec<(Vec<Descriptor>, Option<Name>)> = Vec::new();
    for descriptor in descriptors {
        let name = name_of(&descriptor.annotations, stem);
        match groups.iter_mut().find(|(_, known)| *known == name) {
            Some((group, _)) => group.push(descriptor),
            None => groups.push((vec![descriptor], name)),
        }
    }
    groups
}

/// The name that annotations give. What cannot be a name here is none: the specification allows any text.
fn name_of(annotations: &BTreeMap<String, String>, stem: Option<&str>) -> Option<Name> {
    if let Some(name) = annotations
        .get(FULL_NAME)
        .and_then(|name| name.parse().ok())
    {
        return Some(name);
    }
    let said = annotations.get(REF_NAME)?;
    if said.contains([':', '/']) {
        return said.parse().ok();
    }
    Name::new(stem?, said)
}

struct Reader<'a> {
    source: &'a Source,
    wanted: Option<&'a Platform>,
    documents: usize,
}

impl Reader<'_> {
    /// The images to take of descriptors that stand beside each other: all that are for no platform in particular,
    /// else the one for the platform wanted.
    fn choose(&mut self, descriptors: Vec<Descriptor>, depth: usize) -> Result<Vec<Descriptor>> {
        if depth > DEPTH_MAX {
            return Err(ImageError::malformed(format!(
                "indexes lie in each other more than {DEPTH_MAX} deep"
            )));
        }
        let images: Vec<_> = descriptors.into_iter().filter(is_image).collect();
        let for_platforms = images.len() > 1 && images.iter().all(|image| image.platform.is_some());
        let chosen = if for_platforms {
            vec![self.for_platform(&images)?]
        } else {
            images
        };
        let mut found = Vec::new();
        for descriptor in chosen {
            self.documents += 1;
            if self.documents > DOCUMENTS_MAX {
                return Err(ImageError::malformed(format!(
                    "the index leads to more than {DOCUMENTS_MAX} documents"
                )));
            }
            if media::is_index(&descriptor.media_type) {
                let index = Index::parse(&self.json(&descriptor)?, &descriptor.media_type)
                    .map_err(|error| error.within(descriptor.digest))?;
                found.extend(self.choose(index.manifests, depth + 1)?);
            } else {
                found.push(descriptor);
            }
        }
        Ok(found)
    }

    fn for_platform(&self, images: &[Descriptor]) -> Result<Descriptor> {
        let own = platform::own();
        let wanted = self.wanted.unwrap_or(&own);
        let fitting = images.iter().find(|image| {
            let platform = image.platform.as_ref();
            platform.is_some_and(|platform| platform::fits(platform, wanted))
        });
        fitting.cloned().ok_or_else(|| {
            let there: Vec<_> = images
                .iter()
                .filter_map(|image| image.platform.as_ref())
                .map(|platform| plain(&platform::text(platform)))
                .collect();
            ImageError::not_found(format!(
                "there is no image for {}; there are some for {}: choose one with --platform",
                platform::text(wanted),
                there.join(", ")
            ))
        })
    }

    /// A blob, if the layout has it; its length is checked.
    fn blob(&self, blob: &Descriptor) -> Result<Option<Part>> {
        let part = self.source.part(&path(blob.digest))?;
        if let Some(part) = &part
            && part.size != blob.size
        {
            return Err(ImageError::malformed(format!(
                "blob {} has {} bytes, its descriptor says {}",
                blob.digest, part.size, blob.size
            )));
        }
        Ok(part)
    }

    /// A blob that is a JSON document; length and digest are checked.
    fn json(&self, blob: &Descriptor) -> Result<Vec<u8>> {
        let missing = || ImageError::malformed(format!("blob {} is missing", blob.digest));
        let within = |error: ImageError| error.within(path(blob.digest));
        let json = self
            .blob(blob)?
            .ok_or_else(missing)?
            .json()
            .map_err(within)?;
        let digest = Digest::of(&json);
        if digest != blob.digest {
            return Err(ImageError::malformed(format!(
                "blob {} has other content: its digest is {digest}",
                blob.digest
            )));
        }
        Ok(json)
    }

    /// `None` for a signature or another artifact that is stored like an image.
    fn plan(&self, descriptor: &Descriptor, names: Vec<Name>) -> Result<Option<Plan>> {
        let within = |error: ImageError| error.within(format!("manifest {}", descriptor.digest));
        let manifest_json = self.json(descriptor)?;
        let manifest = Manifest::parse(&manifest_json, &descriptor.media_type).map_err(within)?;
        if !media::is_config(&manifest.config.media_type) {
            return Ok(None);
        }
        let config_json = self.json(&manifest.config)?;
        let config = Config::parse(&config_json).map_err(within)?;
        let diff_ids = config.rootfs.diff_ids;
        if diff_ids.len() != manifest.layers.len() {
            return Err(within(ImageError::malformed(format!(
                "it has {} layers, but its config {}",
                manifest.layers.len(),
                diff_ids.len()
            ))));
        }
        let layers = manifest
            .layers
            .into_iter()
            .zip(diff_ids)
            .map(|(blob, diff_id)| {
                Ok(PlannedLayer {
                    path: path(blob.digest),
                    part: self.blob(&blob)?,
                    blob: Some(blob),
                    diff_id: Some(diff_id),
                })
            });
        Ok(Some(Plan {
            names,
            layers: layers.collect::<Result<_>>()?,
            manifest_json: Some(manifest_json),
            config: PlannedConfig::Json(config_json),
        }))
    }
}

/// Whether a descriptor leads to an image, and not to what buildkit keeps beside it, or to something unknown.
fn is_image(descriptor: &Descriptor) -> bool {
    let known =
        media::is_index(&descriptor.media_type) || media::is_manifest(&descriptor.media_type);
    known && !descriptor.annotations.contains_key(ATTESTATION)
}

/// The file of a blob in a layout.
pub(super) fn path(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}
