//! Manifests: which config and which layers make an image.
//!
//! Formats: OCI image specification 1.1 (`manifest.md`, `image-index.md`, `descriptor.md`, `media-types.md`) and
//! docker's "Image Manifest Version 2, Schema 2", which differ in media types only. Parsing takes what is needed;
//! the bytes themselves are kept by the store, because their digest is the image's address.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use super::digest::{Digest, plain};
use super::error::{ImageError, Result};

/// Media types we write, or decide by.
pub mod media {
    /// An image manifest.
    pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    /// A list of manifests.
    pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    /// An image config.
    pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    /// A layer, uncompressed. Compressed ones end with `+gzip` or `+zstd`.
    pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
    /// Docker's uncompressed layer. Compressed ones end with `.gzip` or `.zstd`.
    pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
    /// Docker's manifest.
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    /// Docker's list of manifests.
    pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

    /// Docker's config.
    pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

    /// Whether a manifest whose config is of this type is one of an image: signatures and other artifacts have others.
    pub fn is_config(media_type: &str) -> bool {
        matches!(media_type, CONFIG | DOCKER_CONFIG | "")
    }

    /// Whether a descriptor of this type leads to more manifests.
    pub fn is_index(media_type: &str) -> bool {
        matches!(media_type, INDEX | DOCKER_LIST)
    }

    /// Whether a descriptor of this type leads to an image.
    pub fn is_manifest(media_type: &str) -> bool {
        matches!(media_type, MANIFEST | DOCKER_MANIFEST)
    }
}

/// Longest JSON document that is read into memory; containerd's limit.
pub const JSON_MAX: u64 = 20 << 20;

/// A field that may be missing or `null`.
pub(super) fn nullable<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> std::result::Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Points to a blob. Its `urls` are not followed and not kept.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the blob is.
    #[serde(default, deserialize_with = "nullable")]
    pub media_type: String,
    /// Of the blob's bytes.
    pub digest: Digest,
    /// Length of the blob in bytes; checked before the digest.
    pub size: u64,
    /// Free text by key.
    #[serde(
        default,
        deserialize_with = "nullable",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub annotations: BTreeMap<String, String>,
    /// In an index: what the image runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
}

impl Descriptor {
    /// A descriptor of `size` bytes without annotations.
    pub fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest,
            size,
            annotations: BTreeMap::new(),
            platform: None,
        }
    }
}

/// What an image runs on, in Go's words.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Platform {
    /// `amd64`, `arm64`, ...
    #[serde(default, deserialize_with = "nullable")]
    pub architecture: String,
    /// `linux`, ...
    #[serde(default, deserialize_with = "nullable")]
    pub os: String,
    /// `v8`, ...
    #[serde(
        default,
        deserialize_with = "nullable",
        skip_serializing_if = "String::is_empty"
    )]
    pub variant: String,
}

/// An image manifest, parsed.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// May be missing in OCI manifests.
    #[serde(
        default,
        deserialize_with = "nullable",
        skip_serializing_if = "String::is_empty"
    )]
    pub media_type: String,
    /// The image config.
    pub config: Descriptor,
    /// Base first.
    #[serde(default, deserialize_with = "nullable")]
    pub layers: Vec<Descriptor>,
    /// Free text by key.
    #[serde(
        default,
        deserialize_with = "nullable",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub annotations: BTreeMap<String, String>,
}

/// An image index, parsed: also `index.json` of a layout.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u32,
    /// May be missing.
    #[serde(
        default,
        deserialize_with = "nullable",
        skip_serializing_if = "String::is_empty"
    )]
    pub media_type: String,
    /// Manifests and further indexes.
    #[serde(default, deserialize_with = "nullable")]
    pub manifests: Vec<Descriptor>,
}

/// What a document is known by before it is read as one kind or the other.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    #[serde(default, deserialize_with = "nullable")]
    media_type: String,
    #[serde(default)]
    manifests: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    layers: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    config: Option<serde::de::IgnoredAny>,
}

/// Refuses a document that is not what its descriptor says, or that could be read as two things (CVE-2021-41190).
fn check_shape(json: &[u8], expected: &str, is_index: bool) -> Result<()> {
    let shape: Shape = parse(json, "manifest")?;
    if shape.manifests.is_some() && (shape.layers.is_some() || shape.config.is_some()) {
        return Err(ImageError::malformed(
            "the document is a manifest and an index at once",
        ));
    }
    let same = if is_index {
        media::is_index
    } else {
        media::is_manifest
    };
    let described_as = if expected.is_empty() {
        &shape.media_type
    } else {
        expected
    };
    if !shape.media_type.is_empty()
        && (shape.media_type != described_as || !same(&shape.media_type))
    {
        return Err(ImageError::malformed(format!(
            "the document says that it is '{}', not '{}'",
            plain(&shape.media_type),
            plain(described_as)
        )));
    }
    Ok(())
}

/// Reads a JSON object; `what` names the document. serde would take an array for one, field by field.
pub(super) fn parse<'a, T: Deserialize<'a>>(json: &'a [u8], what: &str) -> Result<T> {
    if json.trim_ascii_start().first() != Some(&b'{') {
        return Err(ImageError::malformed(format!(
            "not a valid {what}: not an object"
        )));
    }
    parse_any(json, what)
}

/// Reads JSON of any kind.
pub(super) fn parse_any<'a, T: Deserialize<'a>>(json: &'a [u8], what: &str) -> Result<T> {
    let error =
        |error: serde_json::Error| format!("not a valid {what}: {}", plain(&error.to_string()));
    serde_json::from_slice(json).map_err(|wrong| ImageError::malformed(error(wrong)))
}

impl Manifest {
    /// Reads a manifest whose descriptor said `media_type`, which may be empty.
    pub fn parse(json: &[u8], media_type: &str) -> Result<Self> {
        check_shape(json, media_type, false)?;
        let manifest: Self = parse(json, "manifest")?;
        if manifest.schema_version != 2 {
            return Err(ImageError::malformed(format!(
                "manifest of schema version {}; only version 2 is supported",
                manifest.schema_version
            )));
        }
        Ok(manifest)
    }
}

impl Index {
    /// Reads an index whose descriptor said `media_type`, which may be empty.
    pub fn parse(json: &[u8], media_type: &str) -> Result<Self> {
        check_shape(json, media_type, true)?;
        parse(json, "index")
    }
}
