//! What a user means by IMAGE: a name in the store, or the path of an archive or layout.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::digest::{Digest, ManifestDigest, plain};
use super::error::{ImageError, Result};
use super::load::{self, LoadOptions};
use super::name::Name;
use super::plan::Plan;
use super::store::{Store, split_level};
use super::{Image, docker, oci};

/// `sources/HEX`: an archive that was read before, as it was then.
#[derive(Debug, Deserialize, Eq, PartialEq, Serialize)]
struct Known {
    file: Identity,
    manifest: ManifestDigest,
}

/// A file that has not changed.
#[derive(Debug, Deserialize, Eq, PartialEq, Serialize)]
struct Identity {
    dev: u64,
    ino: u64,
    size: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
}

impl Store {
    /// The image that `text` means.
    ///
    /// - `NAME[:TAG]`, `NAME@DIGEST`, or the beginning of an id: in the store;
    /// - the path of an archive or layout; `PATH:NAME` or `PATH:@N` if it holds several images. The image is brought
    ///   into the store, without a name. What begins with `/` or `.` is always a path, other words only if the store
    ///   knows no image of that name;
    /// - each with `~N` for the image without its N topmost layers.
    pub fn resolve(&self, text: &str, options: LoadOptions<'_>) -> Result<Image> {
        let is_path = |text: &str| fs::symlink_metadata(text).is_ok();
        let (name, off) = if is_path(text) {
            (text, 0)
        } else {
            split_level(text)
        };
        let image = if name.starts_with(['/', '.']) {
            self.at_path(name, options)?
        } else {
            match self.lookup(name) {
                Ok(Some(digest)) => self.image(digest)?,
                _ if split_path(name).is_some() => self.at_path(name, options)?,
                Ok(None) => self.find(name)?,
                Err(error) => return Err(error),
            }
        };
        image.without_top(off)
    }

    fn at_path(&self, text: &str, options: LoadOptions<'_>) -> Result<Image> {
        let Some((path, selector)) = split_path(text) else {
            return Err(ImageError::not_found(format!(
                "{}: there is no such file",
                plain(text)
            )));
        };
        let within = |error: ImageError| error.within(load::shown(&path));
        let identity = Identity::of(&path);
        let note = self.source_note(&path, selector, options);
        if let (Some(identity), Some(known)) = (&identity, Known::read(&note))
            && known.file == *identity
            && self.has_image(known.manifest)
        {
            return self.image(known.manifest);
        }
        let plans = load::plans(self, &path, options).map_err(within)?;
        let plan = choose(plans, selector).map_err(within)?;
        let mut images = load::bring_in(self, &[plan], options).map_err(within)?;
        let image = images
            .pop()
            .ok_or_else(|| within(ImageError::not_found("there is no image in it")))?;
        // Unless it was changed while it was read.
        if let Some(file) =
            identity.filter(|identity| Identity::of(&path).as_ref() == Some(identity))
        {
            let known = Known {
                file,
                manifest: image.digest,
            };
            self.remember(&note, &known);
        }
        Ok(image)
    }

    fn source_note(
        &self,
        path: &Path,
        selector: Option<&str>,
        options: LoadOptions<'_>,
    ) -> PathBuf {
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let key = format!("{}\n{selector:?}\n{:?}", path.display(), options.platform);
        self.root()
            .join("sources")
            .join(Digest::of(key.as_bytes()).hex())
    }

    /// Without it the archive is read again, no more.
    fn remember(&self, note: &Path, known: &Known) {
        let written = serde_json::to_vec(known)
            .map_err(io::Error::from)
            .and_then(|json| self.replace(note, &json));
        if let Err(error) = written {
            tracing::debug!("cannot write {}: {error}", note.display());
        }
    }
}

impl Known {
    fn read(note: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(note).ok()?).ok()
    }
}

impl Identity {
    /// Of an archive, or of the file in a directory that names all others.
    fn of(path: &Path) -> Option<Self> {
        let mut metadata = fs::metadata(path).ok()?;
        if metadata.is_dir() {
            let mut index = [oci::INDEX, docker::MANIFEST]
                .iter()
                .map(|name| path.join(name));
            metadata = index.find_map(|path| fs::metadata(path).ok())?;
        }
        metadata.is_file().then(|| Self {
            dev: metadata.dev(),
            ino: metadata.ino(),
            size: metadata.size(),
            mtime: (metadata.mtime(), metadata.mtime_nsec()),
            ctime: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

/// `PATH` or `PATH:SELECTOR` of something that exists.
fn split_path(text: &str) -> Option<(PathBuf, Option<&str>)> {
    let exists = |path: &str| fs::metadata(path).is_ok();
    if exists(text) {
        return Some((text.into(), None));
    }
    text.match_indices(':')
        .map(|(at, _)| (&text[..at], &text[at + 1..]))
        .find(|(path, _)| exists(path))
        .map(|(path, selector)| (path.into(), Some(selector)))
}

/// The one image meant.
fn choose(mut plans: Vec<Plan>, selector: Option<&str>) -> Result<Plan> {
    let all = |plans: &[Plan]| {
        let names = plans.iter().enumerate().map(|(number, plan)| {
            let name = plan
                .names
                .first()
                .map(|name| format!(" ({name})"))
                .unwrap_or_default();
            format!("@{number}{name}")
        });
        names.collect::<Vec<_>>().join(", ")
    };
    let Some(selector) = selector else {
        return match plans.len() {
            1 => Ok(plans.remove(0)),
            _ => Err(ImageError::not_found(format!(
                "it holds several images; say PATH:NAME or PATH:@N with one of {}",
                all(&plans)
            ))),
        };
    };
    let number = selector
        .strip_prefix('@')
        .and_then(|number| number.parse::<usize>().ok());
    let name = selector.parse::<Name>().ok();
    let fits = |plan: &Plan| {
        plan.names
            .iter()
            .any(|known| Some(known) == name.as_ref() || known.tag() == selector)
    };
    let found = number
        .filter(|&number| number < plans.len())
        .or_else(|| plans.iter().position(fits));
    match found {
        Some(found) => Ok(plans.swap_remove(found)),
        None => Err(ImageError::not_found(format!(
            "it has no image '{}'; it has {}",
            plain(selector),
            all(&plans)
        ))),
    }
}
