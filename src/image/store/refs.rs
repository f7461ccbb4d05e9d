//! Which images there are, and their names.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::{Store, publish};
use crate::image::Image;
use crate::image::digest::{Digest, ManifestDigest, plain};
use crate::image::error::{Cause, Context, ImageError, Result};
use crate::image::manifest::parse;
use crate::image::name::Name;

/// Fewer digits of an id than this could be a name.
const ID_PREFIX_MIN: usize = 4;

/// `refs/HEX`.
#[derive(Debug, Deserialize, Serialize)]
struct Reference {
    name: Name,
    manifest: ManifestDigest,
}

/// An image and the names it has.
#[derive(Clone, Debug)]
pub struct Referred {
    /// The image.
    pub image: Image,
    /// Sorted; empty for an image that lost its names or never had one.
    pub names: Vec<Name>,
}

impl Store {
    fn reference(&self, name: &Name) -> PathBuf {
        let digest = Digest::of(name.to_string().as_bytes());
        self.root.join("refs").join(digest.hex())
    }

    /// What `name` means.
    pub fn named(&self, name: &Name) -> Result<Option<ManifestDigest>> {
        let path = self.reference(name);
        match fs::read(&path) {
            Ok(json) => parse::<Reference>(&json, "reference")
                .map(|reference| Some(reference.manifest))
                .map_err(|error| error.within(path.display())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(ImageError::system(
                format!("cannot read {}", path.display()),
                &error,
            )),
        }
    }

    /// Gives `image` a name; what had it before keeps its other names. Returns what had it, if that was another.
    pub fn tag(&self, name: &Name, image: ManifestDigest) -> Result<Option<ManifestDigest>> {
        let before = self.named(name)?;
        let reference = Reference {
            name: name.clone(),
            manifest: image,
        };
        let json = serde_json::to_vec(&reference).map_err(io::Error::from);
        json.and_then(|json| self.replace(&self.reference(name), &json))
            .context(|| format!("cannot write the name {name}"))?;
        Ok(before.filter(|&before| before != image))
    }

    /// Takes a name away; its image stays.
    pub fn untag(&self, name: &Name) -> Result<()> {
        let path = self.reference(name);
        fs::remove_file(&path)
            .and_then(|()| publish::sync_parent(&path))
            .context(|| format!("cannot remove the name {name}"))
    }

    /// All names.
    pub fn names(&self) -> Result<BTreeMap<Name, ManifestDigest>> {
        let mut names = BTreeMap::new();
        for path in self.entries("refs")? {
            let json = match fs::read(&path) {
                // Removed meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other.context(|| format!("cannot read {}", path.display()))?,
            };
            let reference: Reference =
                parse(&json, "reference").map_err(|error| error.within(path.display()))?;
            names.insert(reference.name, reference.manifest);
        }
        Ok(names)
    }

    /// Notes that a manifest and all it needs are in the store.
    pub(super) fn mark_image(&self, image: ManifestDigest) -> Result<()> {
        let path = self.root.join("images").join(image.0.hex());
        if path.exists() {
            return Ok(());
        }
        self.replace(&path, b"")
            .context(|| format!("cannot write {}", path.display()))
    }

    /// An image whose names are gone is garbage from now on.
    pub fn forget_image(&self, image: ManifestDigest) -> Result<()> {
        let path = self.root.join("images").join(image.0.hex());
        fs::remove_file(&path).context(|| format!("cannot remove {}", path.display()))
    }

    /// Whether the image is here.
    pub fn has_image(&self, image: ManifestDigest) -> bool {
        self.root.join("images").join(image.0.hex()).exists()
    }

    /// The digests of all images.
    pub fn manifests(&self) -> Result<Vec<ManifestDigest>> {
        let mut found: Vec<_> = self
            .entries("images")?
            .iter()
            .filter_map(|path| Digest::from_hex(path.file_name()?.to_str()?))
            .map(ManifestDigest)
            .collect();
        found.sort();
        Ok(found)
    }

    /// All images with their names.
    pub fn images(&self) -> Result<Vec<Referred>> {
        let names = self.names()?;
        let images = self.manifests()?.into_iter().map(|digest| {
            let names = names.iter().filter(|(_, manifest)| **manifest == digest);
            Ok(Referred {
                image: self.image(digest)?,
                names: names.map(|(name, _)| name.clone()).collect(),
            })
        });
        images.collect()
    }

    /// When the image came into the store.
    pub fn loaded_at(&self, image: ManifestDigest) -> Option<SystemTime> {
        let path = self.root.join("images").join(image.0.hex());
        fs::metadata(path)
            .and_then(|metadata| metadata.modified())
            .ok()
    }

    pub(super) fn entries(&self, dir: &str) -> Result<Vec<PathBuf>> {
        let dir = self.root.join(dir);
        fs::read_dir(&dir)
            .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
            .context(|| format!("cannot read {}", dir.display()))
    }

    /// The image in the store that `text` means: `NAME[:TAG]`, `NAME@DIGEST`, an id or the beginning of one; each
    /// with `~N` for the image without its N topmost layers.
    pub fn find(&self, text: &str) -> Result<Image> {
        let (name, off) = split_level(text);
        let digest = self.lookup(name)?.ok_or_else(|| {
            ImageError::not_found(format!(
                "no image '{}' in the store {}; 'plyfs images' lists them",
                plain(name),
                self.root.display()
            ))
        })?;
        self.image(digest)?.without_top(off)
    }

    /// What `text` means, a name before an id.
    pub fn lookup(&self, text: &str) -> Result<Option<ManifestDigest>> {
        if let Some((_, digest)) = text.split_once('@') {
            return self.by_id(digest);
        }
        if let Ok(name) = text.parse::<Name>() {
            let spellings = [Some(name.clone()), name.local()];
            for name in spellings.iter().flatten() {
                if let Some(found) = self.named(name)? {
                    return Ok(Some(found));
                }
            }
        }
        self.by_id(text)
    }

    /// The one image whose id or manifest digest begins so.
    fn by_id(&self, text: &str) -> Result<Option<ManifestDigest>> {
        let prefix = text.strip_prefix("sha256:").unwrap_or(text);
        let is_id = prefix.len() >= ID_PREFIX_MIN
            && prefix
                .bytes()
                .all(|byte| byte.is_ascii_digit() || matches!(byte, b'a'..=b'f'));
        if !is_id {
            return Ok(None);
        }
        let mut found = Vec::new();
        for digest in self.manifests()? {
            if digest.0.hex().starts_with(prefix)
                || self.image(digest)?.id().0.hex().starts_with(prefix)
            {
                found.push(digest);
            }
        }
        match found[..] {
            [] => Ok(None),
            [one] => Ok(Some(one)),
            _ => Err(ImageError::new(
                Cause::Usage,
                format!(
                    "'{prefix}' is the beginning of {} image ids; say more digits",
                    found.len()
                ),
            )),
        }
    }
}

/// `IMAGE~2` as the image and how many layers to take off; `IMAGE~` is `IMAGE~1`.
pub(in crate::image) fn split_level(text: &str) -> (&str, usize) {
    let split = text.rsplit_once('~').and_then(|(name, level)| match level {
        "" => Some((name, 1)),
        level => Some((name, level.parse().ok()?)),
    });
    split.unwrap_or((text, 0))
}
