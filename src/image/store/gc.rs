//! Removing what nothing needs any more.
//!
//! Roots are names, live mounts and uppers. From a root: manifest, config, layers and the blobs they came as. All else
//! goes: images first, so that one whose parts are going is not listed any more, whenever this process is killed.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::Path;

use serde::Serialize;

use super::{Store, publish};
use crate::image::digest::{DiffId, Digest, ManifestDigest};
use crate::image::error::{Context, Result};

/// Which images stay.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Keep {
    /// Those that a name, a mount or an upper needs.
    Roots,
    /// All.
    Images,
}

/// What was removed, or would be.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Garbage {
    /// Images without a name, by manifest.
    pub images: Vec<ManifestDigest>,
    /// Layers of no image.
    pub layers: Vec<DiffId>,
    /// Manifests, configs and compressed layers of no image.
    pub blobs: Vec<Digest>,
    /// Bytes on disk that all of it takes.
    pub bytes: u64,
}

/// What the roots need.
#[derive(Default)]
struct Needed {
    images: HashSet<ManifestDigest>,
    layers: HashSet<DiffId>,
    blobs: HashSet<Digest>,
}

impl Store {
    /// Finds garbage, and removes it unless `dry_run`; then the store must be exclusive
    /// ([`Store::make_exclusive`]).
    pub fn collect_garbage(&self, keep: Keep, dry_run: bool) -> Result<Garbage> {
        let needed = self.needed(keep)?;
        let mut garbage = Garbage::default();
        for image in self.manifests()? {
            if !needed.images.contains(&image) {
                garbage.images.push(image);
            }
        }
        for digest in self.digests("layers")? {
            if !needed.layers.contains(&DiffId(digest)) {
                garbage.bytes += disk_usage(&self.by_digest("layers", digest));
                garbage.layers.push(DiffId(digest));
            }
        }
        for digest in self.digests("blobs")? {
            if !needed.blobs.contains(&digest) {
                garbage.bytes += disk_usage(&self.by_digest("blobs", digest));
                garbage.blobs.push(digest);
            }
        }
        if !dry_run {
            self.remove(&garbage).context(|| {
                format!("cannot remove from the image store {}", self.root.display())
            })?;
        }
        Ok(garbage)
    }

    fn needed(&self, keep: Keep) -> Result<Needed> {
        let mut needed = Needed::default();
        needed.images.extend(self.names()?.into_values());
        needed
            .images
            .extend(self.mounted()?.into_iter().map(|mount| mount.manifest));
        for upper in self.uppers()? {
            needed.images.extend(self.upper_image(&upper)?);
        }
        if keep == Keep::Images {
            needed.images.extend(self.manifests()?);
        }
        // A name may have outlived its image in a damaged store.
        needed.images.retain(|&image| self.has_image(image));
        for &image in &needed.images {
            let image = self.image(image)?;
            needed
                .blobs
                .extend([image.digest.0, image.manifest.config.digest]);
            for layer in image.layers {
                needed.layers.insert(layer.diff_id);
                needed.blobs.insert(layer.blob.digest);
            }
        }
        Ok(needed)
    }

    fn remove(&self, garbage: &Garbage) -> io::Result<()> {
        for image in &garbage.images {
            fs::remove_file(self.root.join("images").join(image.0.hex()))?;
        }
        publish::sync_parent(&self.root.join("images/any"))?;
        for &blob in &garbage.blobs {
            self.remove_blob(blob)?;
        }
        for &layer in &garbage.layers {
            self.remove_layer(layer)?;
        }
        Ok(())
    }

    /// Removes a blob and what is known of it.
    pub(super) fn remove_blob(&self, blob: Digest) -> io::Result<()> {
        match fs::remove_file(self.by_digest("diffs", blob)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::remove_file(self.by_digest("blobs", blob))
    }

    /// Removes a layer: at once for everybody else.
    pub(super) fn remove_layer(&self, layer: DiffId) -> io::Result<()> {
        let aside = tempfile::TempDir::new_in(self.root.join("tmp"))?;
        fs::rename(
            self.by_digest("layers", layer.0),
            aside.path().join("layer"),
        )?;
        aside.close()
    }

    /// The digests that `kind` has.
    pub(super) fn digests(&self, kind: &str) -> Result<Vec<Digest>> {
        let mut digests: Vec<_> = self
            .entries(&format!("{kind}/sha256"))?
            .iter()
            .filter_map(|path| Digest::from_hex(path.file_name()?.to_str()?))
            .collect();
        digests.sort();
        Ok(digests)
    }
}

/// Bytes of a file, or of the files in a directory.
fn disk_usage(path: &Path) -> u64 {
    let of = |path: &Path| fs::metadata(path).map_or(0, |metadata| metadata.len());
    match fs::read_dir(path) {
        Ok(entries) => entries.flatten().map(|entry| of(&entry.path())).sum(),
        Err(_) => of(path),
    }
}
