//! Writing images out, with the bytes they came with. The same images give the same bytes every time.
//!
//! All formats are an OCI layout: `oci-layout`, `index.json`, `blobs/`. In a docker-archive `manifest.json` stands
//! beside them, which docker since 1.10 and podman read; its layers are the same blobs.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::Path;

use serde::Serialize;
use serde_json::json;
use tar::{Builder, EntryType, Header};

use super::digest::{Digest, Hashing};
use super::error::{Cause, Context, ImageError, Result};
use super::manifest::{Descriptor, Index, media};
use super::name::Name;
use super::store::Store;
use super::{Image, Platform, docker, oci};

/// What to write.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Format {
    /// As `docker save`.
    DockerArchive,
    /// An OCI layout in a tar.
    OciArchive,
    /// An OCI layout in a directory.
    OciDir,
}

/// An image and the names to write beside it.
#[derive(Clone, Debug)]
pub struct Saved {
    /// The image, whole.
    pub image: Image,
    /// Its names, sorted.
    pub names: Vec<Name>,
}

const BUFFER: usize = 1 << 20;

/// Writes a tar in `format`, which is not [`Format::OciDir`].
pub fn to_archive(store: &Store, images: &[Saved], format: Format, out: impl Write) -> Result<()> {
    let cannot = || "cannot write the archive";
    let mut tar = Builder::new(BufWriter::with_capacity(BUFFER, out));
    let documents = documents(images, format)?;
    for (path, bytes) in &documents {
        let mut header = file_header(bytes.len() as u64);
        tar.append_data(&mut header, path, &bytes[..])
            .context(cannot)?;
    }
    for dir in ["blobs/", "blobs/sha256/"] {
        let mut header = file_header(0);
        header.set_entry_type(EntryType::Directory);
        header.set_mode(0o755);
        tar.append_data(&mut header, dir, io::empty())
            .context(cannot)?;
    }
    for blob in blobs(images)? {
        let mut content = Hashing::new(store.open_blob(blob.digest)?.take(blob.size));
        let mut header = file_header(blob.size);
        tar.append_data(&mut header, oci::path(blob.digest), &mut content)
            .context(cannot)?;
        check(&blob, content)?;
    }
    let mut out = tar.into_inner().context(cannot)?;
    out.flush().context(cannot)
}

/// Writes a layout into the directory `dir`, which is empty.
pub fn to_dir(store: &Store, images: &[Saved], dir: &Path) -> Result<()> {
    let cannot = || format!("cannot write to {}", dir.display());
    fs::create_dir_all(dir.join("blobs/sha256")).context(cannot)?;
    for blob in blobs(images)? {
        let mut content = Hashing::new(store.open_blob(blob.digest)?.take(blob.size));
        let mut file = File::create_new(dir.join(oci::path(blob.digest))).context(cannot)?;
        io::copy(&mut content, &mut file).context(cannot)?;
        check(&blob, content)?;
    }
    for (path, bytes) in documents(images, Format::OciDir)? {
        fs::write(dir.join(path), bytes).context(cannot)?;
    }
    Ok(())
}

/// Nothing damaged leaves the store.
fn check<T>(blob: &Descriptor, content: Hashing<T>) -> Result<()> {
    let (_, digest, size) = content.finish();
    if (digest, size) == (blob.digest, blob.size) {
        return Ok(());
    }
    Err(ImageError::malformed(format!(
        "blob {} of the store is damaged; 'plyfs fsck' shows what else is",
        blob.digest
    )))
}

fn file_header(size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_size(size);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_entry_type(EntryType::Regular);
    header
}

/// All blobs, each once: for every image manifest, config, layers.
fn blobs(images: &[Saved]) -> Result<Vec<Descriptor>> {
    let mut blobs = Vec::new();
    for Saved { image, .. } in images {
        if !image.is_whole() {
            return Err(ImageError::new(
                Cause::Usage,
                "only whole images can be saved; commit the lower state under a name of its own first",
            ));
        }
        let manifest_length = image.manifest_json.len() as u64;
        blobs.push(Descriptor::new(
            media_type(image),
            image.digest.0,
            manifest_length,
        ));
        blobs.push(image.manifest.config.clone());
        blobs.extend(image.manifest.layers.iter().cloned());
    }
    let mut seen: HashSet<Digest> = HashSet::new();
    blobs.retain(|blob| seen.insert(blob.digest));
    Ok(blobs)
}

/// What the manifest says that it is.
fn media_type(image: &Image) -> &str {
    match &image.manifest.media_type[..] {
        "" => media::MANIFEST,
        said => said,
    }
}

/// The files beside the blobs.
fn documents(images: &[Saved], format: Format) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let index = Index {
        schema_version: 2,
        media_type: media::INDEX.into(),
        manifests: images.iter().flat_map(descriptors).collect(),
    };
    let mut documents = vec![
        (oci::LAYOUT, json(&json!({"imageLayoutVersion": "1.0.0"}))?),
        (oci::INDEX, json(&index)?),
    ];
    if format == Format::DockerArchive {
        let items: Vec<_> = images.iter().map(item).collect();
        documents.push((docker::MANIFEST, json(&items)?));
    }
    Ok(documents)
}

/// One for each name, or one without.
fn descriptors(saved: &Saved) -> Vec<Descriptor> {
    let image = &saved.image;
    let mut descriptor = Descriptor::new(
        media_type(image),
        image.digest.0,
        image.manifest_json.len() as u64,
    );
    if !image.config.os.is_empty() {
        descriptor.platform = Some(Platform {
            architecture: image.config.architecture.clone(),
            os: image.config.os.clone(),
            variant: image.config.variant.clone(),
        });
    }
    if saved.names.is_empty() {
        return vec![descriptor];
    }
    let named = saved.names.iter().map(|name| {
        let annotations = [
            (oci::FULL_NAME, name.full()),
            (oci::REF_NAME, name.tag().into()),
        ];
        Descriptor {
            annotations: annotations
                .map(|(key, value)| (key.to_owned(), value))
                .into(),
            ..descriptor.clone()
        }
    });
    named.collect()
}

/// An image in `manifest.json`.
fn item(saved: &Saved) -> serde_json::Value {
    let manifest = &saved.image.manifest;
    let layers: Vec<_> = manifest
        .layers
        .iter()
        .map(|layer| oci::path(layer.digest))
        .collect();
    let names: Vec<_> = saved.names.iter().map(ToString::to_string).collect();
    json!({"Config": oci::path(manifest.config.digest), "RepoTags": names, "Layers": layers})
}

fn json(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value)
        .map_err(io::Error::from)
        .context(|| "cannot write JSON")
}
