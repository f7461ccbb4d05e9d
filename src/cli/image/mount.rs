//! `plyfs mount IMAGE [MNT]`: from what a user calls an image to the layers of a mount.
//!
//! The process in front finds the image, reading an archive if need be, and chooses a mountpoint if none is given. What
//! it found it hands to the process that serves, as hidden arguments; that one notes in the store that the image is
//! mounted, for as long as it lives.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::{Deserialize, Serialize};

use super::{ReadArgs, StoreArgs};
use crate::cli::exit::{Exit, Failure, why};
use crate::cli::options::MountOptions;
use crate::image::digest::{Digest, ManifestDigest};
use crate::image::store::{Hold, MountRecord, Store};
use crate::layer::stack::{LayerSource, Owner, UpperConfig};

/// Arguments of `mount` that are about images.
#[derive(Debug, Default, Args)]
pub(in crate::cli) struct ImageArgs {
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    read: ReadArgs,
    /// Write to an upper that is kept in the store, and found again by its name [the image's name]
    #[arg(long, value_name = "NAME", num_args = 0..=1, require_equals = true, default_missing_value = "",
          conflicts_with_all = ["ephemeral", "upper", "work"])]
    rw: Option<String>,
    /// Only the N lowest layers of the image
    #[arg(long, value_name = "N", conflicts_with = "layer")]
    upto: Option<usize>,
    /// Only layer N of the image; 1 is the base
    #[arg(long, value_name = "N")]
    layer: Option<usize>,
    /// As whose the files of archives and images are shown: me, or image [image for root, else me]
    #[arg(long, value_name = "WHO", value_parser = owner)]
    pub(in crate::cli) owner: Option<Owner>,
    /// The image that the process in front found: `MANIFEST~N`.
    #[arg(long, hide = true)]
    found: Option<String>,
    /// Where the process in front decided to mount, in a directory made for that.
    #[arg(long, hide = true)]
    chosen: Option<PathBuf>,
}

fn owner(text: &str) -> Result<Owner, String> {
    match text {
        "me" => Ok(Owner::Me),
        "image" => Ok(Owner::Image),
        _ => Err("say me or image".to_owned()),
    }
}

/// The image of a mount.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct MountedImage {
    /// As it was asked for.
    pub name: String,
    /// Its manifest, `sha256:…`; with [`Self::layers`] not all of its layers may be mounted.
    pub manifest: String,
    /// The store it is in.
    pub store: PathBuf,
    /// How many of its layers are mounted, from the base; 0 if it is one from above.
    pub layers: usize,
    /// The mountpoint was made for the mount and goes with it.
    pub chosen: bool,
    /// For the process that serves: `MANIFEST~N`.
    #[serde(skip)]
    found: String,
}

/// What a mount needs of an image.
#[derive(Debug)]
pub(in crate::cli) struct Found {
    pub(in crate::cli) image: MountedImage,
    /// Topmost first.
    pub(in crate::cli) layers: Vec<LayerSource>,
    pub(in crate::cli) upper: Option<UpperConfig>,
    pub(in crate::cli) mountpoint: PathBuf,
    /// While it is open nothing is removed from it.
    pub(in crate::cli) store: Store,
}

/// Finds the image `name`; `mountpoint` may be left to be chosen.
pub(in crate::cli) fn find(
    args: &ImageArgs,
    name: &OsStr,
    mountpoint: Option<&Path>,
) -> Result<Found, Failure> {
    let text = name
        .to_str()
        .ok_or_else(|| Failure::usage("the name of an image is not valid UTF-8"))?;
    let store = args.store.open()?;
    let found = args.found.as_ref().and_then(|found| found.split_once('~'));
    let image = match found {
        Some((manifest, off)) => {
            let whole = store.image(ManifestDigest(manifest.parse()?))?;
            whole.without_top(off.parse().unwrap_or_default())?
        }
        None => args.read.resolve(&store, text)?,
    };
    let (first, last) = range(args, image.layers.len())?;
    let layers = image.layers[first..last].iter().rev().map(|layer| {
        let files = store.layer(layer.diff_id)?;
        Ok(LayerSource::Archive {
            tar: files.tar,
            index: files.index,
        })
    });
    let layers = layers.collect::<Result<Vec<_>, Failure>>()?;
    if layers.is_empty() {
        return Err(Failure::new(
            Exit::Lower,
            format!("image {text} has no layers to mount"),
        ));
    }
    let upper = args.rw.as_ref().map(|asked| {
        let upper = if asked.is_empty() {
            short_name(text)
        } else {
            asked.clone()
        };
        store.upper(&upper, image.digest)
    });
    let upper = upper.transpose()?;
    let chosen = mountpoint.is_none();
    let mountpoint = match (mountpoint, &args.chosen) {
        (Some(given), _) => given.to_owned(),
        (None, Some(chosen)) => chosen.clone(),
        (None, None) => choose(text)?,
    };
    Ok(Found {
        image: MountedImage {
            name: text.to_owned(),
            manifest: image.digest.to_string(),
            store: store.root().to_owned(),
            layers: if first == 0 { last } else { 0 },
            chosen,
            found: format!(
                "{}~{}",
                image.digest,
                image.manifest.layers.len() - image.layers.len()
            ),
        },
        layers,
        upper,
        mountpoint,
        store,
    })
}

/// Which of `count` layers are wanted: from, to.
fn range(args: &ImageArgs, count: usize) -> Result<(usize, usize), Failure> {
    let check = |flag: &str, number: usize| {
        if (1..=count).contains(&number) {
            return Ok(number);
        }
        Err(Failure::usage(format!(
            "--{flag} must be from 1 to {count}: so many layers has the image"
        )))
    };
    match (args.upto, args.layer) {
        (Some(upto), _) => Ok((0, check("upto", upto)?)),
        (None, Some(layer)) => Ok((check("layer", layer)? - 1, layer)),
        (None, None) => Ok((0, count)),
    }
}

/// What an upper or a directory for `image` is called: the file's name, or the whole name of an image.
fn short_name(image: &str) -> String {
    let name = match image.rsplit_once('/') {
        Some((_, last)) if image.starts_with(['/', '.']) => last,
        _ => image,
    };
    let name = name
        .trim_end_matches(":latest")
        .trim_matches(|c: char| !c.is_ascii_alphanumeric());
    let clean = |c: char| {
        if c.is_ascii_alphanumeric() || matches!(c, '.' | '_') {
            c
        } else {
            '-'
        }
    };
    let name: String = name.chars().map(clean).take(100).collect();
    if name.is_empty() {
        "image".into()
    } else {
        name
    }
}

/// A new directory to mount on.
fn choose(image: &str) -> Result<PathBuf, Failure> {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let parent = runtime
        .filter(|dir| dir.is_dir())
        .unwrap_or_else(std::env::temp_dir);
    let dir = tempfile::Builder::new()
        .prefix(&format!("plyfs-{}-", short_name(image)))
        .tempdir_in(&parent);
    dir.map(tempfile::TempDir::keep).map_err(|error| {
        let sentence = format!(
            "cannot make a mountpoint in {}: {}",
            parent.display(),
            why(&error)
        );
        Failure::new(Exit::Mountpoint, sentence)
    })
}

impl MountedImage {
    /// Notes in the store that the image is mounted, until what is returned is dropped.
    pub(in crate::cli) fn hold(
        &self,
        store: &Store,
        options: &MountOptions,
    ) -> Result<Hold, Failure> {
        let upper = options.stack.upper.as_ref();
        let digest: Digest = self.manifest.parse()?;
        let record = MountRecord {
            manifest: ManifestDigest(digest),
            mountpoint: options.session.mountpoint.clone(),
            upper: upper.map(|upper| upper.upper.clone()),
            work: upper.map(|upper| upper.work.clone()),
        };
        Ok(store.hold(&record)?)
    }

    /// The command line for the process that serves: `args` with what was found and chosen.
    pub(in crate::cli) fn hand_over(&self, args: &[OsString], mountpoint: &Path) -> Vec<OsString> {
        let mut args = args.to_vec();
        // Behind the program's name and `mount`.
        let mut found = vec![format!("--found={}", self.found).into()];
        if self.chosen {
            let mut chosen = OsString::from("--chosen=");
            chosen.push(mountpoint);
            found.push(chosen);
        }
        args.splice(2..2, found);
        args
    }

    /// Removes the mountpoint if it was made for this mount.
    pub(in crate::cli) fn remove_chosen(&self, mountpoint: &Path) {
        if self.chosen
            && let Err(error) = fs::remove_dir(mountpoint)
        {
            tracing::debug!("cannot remove {}: {error}", mountpoint.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uppers_and_mountpoints_are_called_after_the_image() {
        for (image, name) in [
            ("alpine", "alpine"),
            ("alpine:latest", "alpine"),
            ("localhost:5000/me/app:v1", "localhost-5000-me-app-v1"),
            ("./out/app.tar", "app.tar"),
            ("/", "image"),
            ("app~2", "app-2"),
        ] {
            assert_eq!(short_name(image), name);
        }
    }

    #[test]
    fn layers_are_counted_from_one() {
        let args = |upto, layer| ImageArgs {
            upto,
            layer,
            ..ImageArgs::default()
        };
        assert_eq!(range(&args(None, None), 3).unwrap(), (0, 3));
        assert_eq!(range(&args(Some(2), None), 3).unwrap(), (0, 2));
        assert_eq!(range(&args(None, Some(1)), 3).unwrap(), (0, 1));
        for wrong in [
            args(Some(0), None),
            args(Some(4), None),
            args(None, Some(0)),
            args(None, Some(4)),
        ] {
            assert!(
                range(&wrong, 3)
                    .unwrap_err()
                    .sentence
                    .contains("from 1 to 3")
            );
        }
    }
}
