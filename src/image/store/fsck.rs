//! Checking that the store holds what its names say.

use std::fs::{self, File};
use std::io;

use serde::Serialize;

use super::Store;
use crate::image::compress;
use crate::image::digest::{DiffId, Digest, Hashing, ManifestDigest};
use crate::image::error::{Context, Result};
use crate::layer::archive::{Index, build_index};

/// One thing that is wrong.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Damage {
    /// What is wrong with what.
    pub what: String,
    /// It was put right: what was damaged was made anew from what is not, or removed so that it can be loaded again.
    pub repaired: bool,
}

/// What a check found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// How many blobs were read.
    pub blobs: usize,
    /// How many layers were read.
    pub layers: usize,
    /// How many images are complete.
    pub images: usize,
    /// All that is wrong.
    pub damages: Vec<Damage>,
}

impl Store {
    /// Reads everything in the store. With `repair` the store must be exclusive ([`Store::make_exclusive`]).
    pub fn check(&self, repair: bool) -> Result<Report> {
        let mut report = Report::default();
        for blob in self.digests("blobs")? {
            report.blobs += 1;
            self.check_blob(blob, repair, &mut report)?;
        }
        for layer in self.digests("layers")? {
            report.layers += 1;
            self.check_layer(DiffId(layer), repair, &mut report)?;
        }
        for image in self.manifests()? {
            match self.check_image(image) {
                Ok(()) => report.images += 1,
                Err(error) => report.damages.push(Damage {
                    what: error.to_string(),
                    repaired: false,
                }),
            }
        }
        for (name, image) in self.names()? {
            if !self.has_image(image) {
                report.damages.push(Damage {
                    what: format!("the name {name} means image {image}, which is not in the store"),
                    repaired: false,
                });
            }
        }
        Ok(report)
    }

    pub(super) fn check_blob(&self, blob: Digest, repair: bool, report: &mut Report) -> Result<()> {
        let path = self.by_digest("blobs", blob);
        let cannot = || format!("cannot check {}", path.display());
        let found = digest_of(&path).context(cannot)?;
        if found != blob {
            if repair {
                self.remove_blob(blob).context(cannot)?;
            }
            report.damages.push(Damage {
                what: format!("blob {blob} is damaged: its digest is {found}"),
                repaired: repair,
            });
        }
        Ok(())
    }

    pub(super) fn check_layer(
        &self,
        layer: DiffId,
        repair: bool,
        report: &mut Report,
    ) -> Result<()> {
        let files = self.layer_files(layer);
        let cannot = || format!("cannot check {}", files.tar.display());
        let found = digest_of(&files.tar);
        let sound = found.as_ref().is_ok_and(|&found| found == layer.0);
        if !sound {
            let rebuilt = repair && self.unpack_again(layer)?;
            if repair && !rebuilt {
                self.remove_layer(layer).context(cannot)?;
            }
            let how = found.map_or_else(
                |error| error.to_string(),
                |found| format!("its digest is {found}"),
            );
            report.damages.push(Damage {
                what: format!("layer {layer} is damaged: {how}"),
                repaired: repair,
            });
            return Ok(());
        }
        let tar = fs::metadata(&files.tar).context(cannot)?.len();
        let index = Index::open(&files.index).and_then(|index| index.verify().map(|()| index));
        let why = match index {
            Ok(index) if index.tar_length() == tar => return Ok(()),
            Ok(_) => "it is of another tar".to_owned(),
            Err(error) => error.to_string(),
        };
        if repair {
            let file = File::open(&files.tar).context(cannot)?;
            let index = build_index(&file).map_err(|error| {
                crate::image::ImageError::malformed(format!("layer {layer}: {error}"))
            })?;
            self.replace(&files.index, index.bytes()).context(cannot)?;
        }
        report.damages.push(Damage {
            what: format!("the index of layer {layer} is damaged: {why}"),
            repaired: repair,
        });
        Ok(())
    }

    /// Makes a layer anew from a compressed blob that it came as, if there is one.
    fn unpack_again(&self, layer: DiffId) -> Result<bool> {
        let blobs = self.digests("diffs")?;
        let Some(blob) = blobs
            .into_iter()
            .find(|&blob| self.diff_of(blob) == Some(layer))
        else {
            return Ok(false);
        };
        let mut writer = self.layer_writer()?;
        let unpacked = compress::open(self.open_blob(blob)?)
            .and_then(|mut tar| io::copy(&mut tar, &mut writer));
        if unpacked.is_err() {
            return Ok(false);
        }
        self.remove_layer(layer)
            .context(|| format!("cannot replace layer {layer}"))?;
        Ok(writer.finish(Some(layer)).is_ok())
    }

    fn check_image(&self, image: ManifestDigest) -> Result<()> {
        let read = self.image(image)?;
        for layer in &read.layers {
            self.layer(layer.diff_id)
                .and_then(|_| self.open_blob(layer.blob.digest))
                .map_err(|error| error.within(format!("image {}", image.0.short())))?;
        }
        Ok(())
    }
}

fn digest_of(path: &std::path::Path) -> io::Result<Digest> {
    let mut file = Hashing::new(File::open(path)?);
    io::copy(&mut file, &mut io::sink())?;
    Ok(file.finish().1)
}
