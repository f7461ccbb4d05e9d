//! What keeps an image in the store besides its names: live mounts, and writable layers made for it.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;

use super::Store;
use crate::image::digest::{Digest, ManifestDigest, plain};
use crate::image::error::{Cause, Context, ImageError, Result};
use crate::image::manifest::parse;
use crate::layer::stack::UpperConfig;

/// A live mount: `mounts/ID`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct MountRecord {
    /// The image.
    pub manifest: ManifestDigest,
    /// Where.
    pub mountpoint: PathBuf,
    /// The writable layer.
    pub upper: Option<PathBuf>,
    /// Its workdir.
    pub work: Option<PathBuf>,
}

/// Keeps an image in the store until it is dropped, or its process ends in whatever way.
#[derive(Debug)]
pub struct Hold {
    path: PathBuf,
    /// Locked.
    _file: File,
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!("cannot remove {}: {error}", self.path.display());
        }
    }
}

impl Store {
    /// Notes that an image is mounted by this process.
    pub fn hold(&self, record: &MountRecord) -> Result<Hold> {
        let write = || {
            let json = serde_json::to_vec(record)?;
            let mut file = NamedTempFile::new_in(self.root.join("tmp"))?;
            io::Write::write_all(&mut file, &json)?;
            // Nobody can see it before it is locked.
            flock(&file, FlockOperation::NonBlockingLockExclusive)?;
            let name = file.path().file_name().unwrap_or_default().to_owned();
            let path = self.root.join("mounts").join(name);
            let file = file.persist(&path).map_err(|error| error.error)?;
            Ok::<_, io::Error>(Hold { path, _file: file })
        };
        write().context(|| format!("cannot write to the image store {}", self.root.display()))
    }

    /// All live mounts. Records of processes that were killed are removed.
    pub fn mounted(&self) -> Result<Vec<MountRecord>> {
        let mut live = Vec::new();
        for path in self.entries("mounts")? {
            let cannot = || format!("cannot read {}", path.display());
            let Some(file) = opened(&path).context(cannot)? else {
                continue;
            };
            if flock(&file, FlockOperation::NonBlockingLockShared).is_ok() {
                fs::remove_file(&path).context(cannot)?;
                continue;
            }
            let json = io::read_to_string(file).context(cannot)?;
            live.push(
                parse(json.as_bytes(), "mount record")
                    .map_err(|error| error.within(path.display()))?,
            );
        }
        Ok(live)
    }

    /// Whether something other than a name needs the image.
    pub fn is_held(&self, image: ManifestDigest) -> Result<bool> {
        let mounted = self.mounted()?.iter().any(|mount| mount.manifest == image);
        let uppers = self.uppers()?;
        let mut uppers = uppers.iter().map(|upper| self.upper_image(upper));
        Ok(mounted
            || uppers.any(|made_for| matches!(made_for, Ok(Some(made_for)) if made_for == image)))
    }

    /// The writable layer `name` for `image`: made at its first use, the same one at every other.
    pub fn upper(&self, name: &str, image: ManifestDigest) -> Result<UpperConfig> {
        let dir = self.upper_dir(name)?;
        let cannot = || format!("cannot make the upper {}", dir.display());
        let upper = UpperConfig {
            upper: dir.join("upper"),
            work: dir.join("work"),
        };
        match self.upper_image(name)? {
            Some(made_for) if made_for == image => return Ok(upper),
            Some(made_for) => {
                return Err(ImageError::new(
                    Cause::InUse,
                    format!(
                        "the upper '{name}' was made for image {}; take another with --rw=NAME, or mount that image",
                        made_for.0.short()
                    ),
                ));
            }
            None => {}
        }
        let make = || {
            DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
            DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(&upper.upper)?;
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&upper.work)?;
            self.replace(&dir.join("image"), format!("{image}\n").as_bytes())
        };
        make().context(cannot)?;
        Ok(upper)
    }

    /// The image that the upper `name` was made for; `None` if there is no such upper.
    pub fn upper_image(&self, name: &str) -> Result<Option<ManifestDigest>> {
        let path = self.upper_dir(name)?.join("image");
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.context(|| format!("cannot read {}", path.display()))?,
        };
        let digest: Digest = text.trim_end().parse()?;
        Ok(Some(ManifestDigest(digest)))
    }

    /// Takes the upper `name` away; what is returned is the directory that has it now, to be removed. The store must be
    /// exclusive ([`Store::make_exclusive`]).
    pub fn discard_upper(&self, name: &str) -> Result<PathBuf> {
        let dir = self.upper_dir(name)?;
        if self.upper_image(name)?.is_none() {
            return Err(ImageError::not_found(format!(
                "there is no upper '{}'",
                plain(name)
            )));
        }
        let mounted = self.mounted()?;
        let mut uppers = mounted.iter().filter_map(|mount| mount.upper.as_ref());
        if uppers.any(|upper| upper.starts_with(&dir)) {
            return Err(ImageError::new(
                Cause::InUse,
                format!("the upper '{name}' is mounted"),
            ));
        }
        let aside = self.root.join("tmp").join(format!("upper-{name}"));
        fs::rename(&dir, &aside).context(|| format!("cannot remove {}", dir.display()))?;
        Ok(aside)
    }

    /// If the directory `path` is one of the writable layers, the image it was made for and its workdir.
    pub fn upper_at(&self, path: &Path) -> Result<Option<(ManifestDigest, PathBuf)>> {
        let (Ok(path), Ok(root)) = (fs::canonicalize(path), fs::canonicalize(&self.root)) else {
            return Ok(None);
        };
        let below = path.strip_prefix(root.join("uppers")).ok();
        let name = below
            .and_then(|below| below.parent()?.to_str())
            .filter(|_| path.ends_with("upper"));
        let Some(name) = name.filter(|name| !name.is_empty()) else {
            return Ok(None);
        };
        let image = self.upper_image(name)?;
        Ok(image.map(|image| (image, path.with_file_name("work"))))
    }

    /// The names of all uppers.
    pub fn uppers(&self) -> Result<Vec<String>> {
        let mut names: Vec<_> = self
            .entries("uppers")?
            .iter()
            .filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()))
            .collect();
        names.sort();
        Ok(names)
    }

    fn upper_dir(&self, name: &str) -> Result<PathBuf> {
        let valid = name.starts_with(|c: char| c.is_ascii_alphanumeric())
            && name.len() <= 200
            && name
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
        if valid {
            return Ok(self.root.join("uppers").join(name));
        }
        Err(ImageError::new(
            Cause::Usage,
            format!(
                "'{}' cannot be the name of an upper: use letters, digits, '.', '_' and '-'",
                plain(name)
            ),
        ))
    }
}

/// The file, unless it was removed meanwhile.
fn opened(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}
