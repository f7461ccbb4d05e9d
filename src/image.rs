//! Layered images, never unpacked: a layer is kept as one tar and an index of its entries.
//!
//! The [`store`] holds blobs and layers under the digest of their bytes, so one layer of ten images is there once.
//! Images come in from archives and layouts and go out again with the bytes they came with: writing them anew would
//! change their digests. Nothing from an archive ever becomes a path on the host.

pub mod commit;
pub mod compress;
pub mod config;
pub mod digest;
pub mod directive;
mod docker;
pub mod error;
pub mod import;
pub mod ingest;
pub mod load;
pub mod manifest;
pub mod name;
mod oci;
mod outer;
mod plan;
pub mod platform;
mod pump;
mod resolve;
pub mod save;
mod source;
pub mod store;
pub mod time;

use config::Config;
use digest::{ChainId, DiffId, Digest, ImageId, ManifestDigest};
use error::{ImageError, Result};
use manifest::{Descriptor, Manifest, Platform};

/// One layer of an image.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Layer {
    /// Of its uncompressed tar.
    pub diff_id: DiffId,
    /// The blob it came as: the tar itself, or compressed.
    pub blob: Descriptor,
}

/// An image of the store.
#[derive(Clone, Debug)]
pub struct Image {
    /// What the store keeps it under.
    pub digest: ManifestDigest,
    /// Its manifest.
    pub manifest: Manifest,
    /// The manifest as it came.
    pub manifest_json: Vec<u8>,
    /// Its config.
    pub config: Config,
    /// The config as it came.
    pub config_json: Vec<u8>,
    /// Base first. All of them, unless the image was asked for as `IMAGE~N`.
    pub layers: Vec<Layer>,
}

impl Image {
    /// Puts together what belongs together, and checks that it does.
    fn new(manifest_json: Vec<u8>, media_type: &str, config_json: Vec<u8>) -> Result<Self> {
        let manifest = Manifest::parse(&manifest_json, media_type)?;
        let config = Config::parse(&config_json)?;
        let diff_ids = &config.rootfs.diff_ids;
        if diff_ids.len() != manifest.layers.len() {
            return Err(ImageError::malformed(format!(
                "the manifest has {} layers, but the config {}",
                manifest.layers.len(),
                diff_ids.len()
            )));
        }
        let layers = diff_ids.iter().zip(&manifest.layers);
        let layers = layers.map(|(&diff_id, blob)| Layer {
            diff_id,
            blob: blob.clone(),
        });
        Ok(Self {
            digest: ManifestDigest(Digest::of(&manifest_json)),
            layers: layers.collect(),
            manifest,
            manifest_json,
            config,
            config_json,
        })
    }

    /// Docker's image id: the digest of the config.
    pub fn id(&self) -> ImageId {
        ImageId(self.manifest.config.digest)
    }

    /// The diffIDs of its layers, base first.
    pub fn diff_ids(&self) -> Vec<DiffId> {
        self.layers.iter().map(|layer| layer.diff_id).collect()
    }

    /// The id of its stack of layers; `None` if it has none.
    pub fn chain_id(&self) -> Option<ChainId> {
        ChainId::of(&self.diff_ids())
    }

    /// Whether no layer was taken off the top.
    pub fn is_whole(&self) -> bool {
        self.layers.len() == self.manifest.layers.len()
    }

    /// The image as it was before its `count` topmost layers: `IMAGE~N`.
    pub fn without_top(mut self, count: usize) -> Result<Self> {
        let Some(left) = self.layers.len().checked_sub(count) else {
            return Err(ImageError::not_found(format!(
                "the image has {} layers; {count} cannot be taken off",
                self.layers.len()
            )));
        };
        self.layers.truncate(left);
        Ok(self)
    }
}
