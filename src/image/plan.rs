//! What a source has to offer, before anything is read but manifests and configs.

use super::digest::DiffId;
use super::manifest::Descriptor;
use super::name::Name;
use super::source::Part;

/// One image to bring into the store.
#[derive(Debug)]
pub(super) struct Plan {
    /// What the source calls it.
    pub(super) names: Vec<Name>,
    /// The manifest as it is, if the source has one.
    pub(super) manifest_json: Option<Vec<u8>>,
    /// The config.
    pub(super) config: PlannedConfig,
    /// Base first.
    pub(super) layers: Vec<PlannedLayer>,
}

/// A config, or what to make one of.
#[derive(Debug)]
pub(super) enum PlannedConfig {
    /// As it is.
    Json(Vec<u8>),
    /// The `json` files of an archive of docker before 1.10, base first: there the layers have no digests.
    Legacy(Vec<serde_json::Value>),
}

/// One layer to bring into the store.
#[derive(Debug)]
pub(super) struct PlannedLayer {
    /// What an error calls it.
    pub(super) path: String,
    /// Where it is; `None` if the source does not have it, because the store may.
    pub(super) part: Option<Part>,
    /// What the manifest says of the blob, if there is a manifest.
    pub(super) blob: Option<Descriptor>,
    /// What the config says that it unpacks to, if there is a config.
    pub(super) diff_id: Option<DiffId>,
}
