//! One layer on its way into the store: read, hashed, unpacked, hashed again, indexed, written; in one pass and two
//! threads.

use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::compress::Compression;
use super::digest::{DiffId, Digest, Hashing, plain};
use super::error::{Cause, Context, ImageError, Result};
use super::manifest::{Descriptor, media};
use super::plan::PlannedLayer;
use super::pump::{Inlet, pump};
use super::source::{Part, PartReader, damaged, too_large};
use super::store::{BlobWriter, LayerWriter, Store};

/// What happens to a layer, for whoever shows it.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// Layer `number` begins.
    Begin {
        /// Of the layer, among those of this load.
        number: usize,
        /// Short name.
        name: &'a str,
        /// Bytes to read.
        size: u64,
    },
    /// Layer `number` is in the store already.
    Present {
        /// Of the layer, among those of this load.
        number: usize,
        /// Short name.
        name: &'a str,
    },
    /// Bytes of layer `number` were read.
    Read {
        /// Of the layer, among those of this load.
        number: usize,
        /// How many more.
        bytes: u64,
    },
    /// Layer `number` is in the store now.
    Done {
        /// Of the layer, among those of this load.
        number: usize,
    },
}

/// A layer in the store and the blob it has there.
#[derive(Clone, Debug)]
pub(super) struct Ingested {
    pub(super) diff_id: DiffId,
    pub(super) blob: Descriptor,
}

/// When to give up.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits<'a> {
    /// Bytes that all layers together may still unpack to.
    pub(super) left: &'a AtomicU64,
    /// The same at the beginning.
    pub(super) all: u64,
    /// Another layer has failed.
    pub(super) stop: &'a AtomicBool,
}

impl PlannedLayer {
    /// The same for layers that need to be read only once.
    pub(super) fn identity(&self) -> (Option<DiffId>, Option<Digest>, Option<(usize, u64)>) {
        let place = self.part.as_ref().map(Part::place);
        let blob = self.blob.as_ref().map(|blob| blob.digest);
        // What it must become says enough, if that is known.
        (self.diff_id, blob, place.filter(|_| self.diff_id.is_none()))
    }

    fn short_name(&self) -> String {
        self.diff_id
            .map_or_else(|| plain(&self.path), |id| id.0.short())
    }
}

/// Brings in one layer, unless it is there.
pub(super) fn layer(
    store: &Store,
    number: usize,
    layer: &PlannedLayer,
    limits: Limits<'_>,
    progress: &(dyn Fn(Event<'_>) + Sync),
) -> Result<Ingested> {
    let name = layer.short_name();
    if let Some(ingested) = present(store, layer)? {
        progress(Event::Present {
            number,
            name: &name,
        });
        return Ok(ingested);
    }
    let within = |error: ImageError| match error.cause() {
        Cause::Stopped | Cause::System => error,
        _ => error.within(format!("layer '{}'", plain(&layer.path))),
    };
    let missing = || ImageError::malformed("it is missing, and not in the store either");
    let part = layer.part.as_ref().ok_or_else(missing).map_err(within)?;
    progress(Event::Begin {
        number,
        name: &name,
        size: part.size,
    });
    let report = |bytes| progress(Event::Read { number, bytes });
    let ingested = read(store, layer, part, limits, &report).map_err(within)?;
    progress(Event::Done { number });
    Ok(ingested)
}

/// Whether nothing of the layer needs to be read.
pub(super) fn is_present(store: &Store, layer: &PlannedLayer) -> bool {
    present(store, layer).is_ok_and(|ingested| ingested.is_some())
}

/// The layer, if nothing of it needs to be read.
fn present(store: &Store, layer: &PlannedLayer) -> Result<Option<Ingested>> {
    let Some(diff_id) = layer.diff_id.filter(|&id| store.has_layer(id)) else {
        return Ok(None);
    };
    let blob = match &layer.blob {
        Some(blob) if store.has(diff_id, blob) => blob.clone(),
        // It is to be stored as this blob too.
        Some(_) => return Ok(None),
        None => plain_blob(diff_id, store.layer_size(diff_id)?),
    };
    Ok(Some(Ingested { diff_id, blob }))
}

/// A layer that is its own blob.
pub(super) fn plain_blob(diff_id: DiffId, size: u64) -> Descriptor {
    Descriptor::new(media::LAYER, diff_id.0, size)
}

fn read(
    store: &Store,
    layer: &PlannedLayer,
    part: &Part,
    limits: Limits<'_>,
    report: &(dyn Fn(u64) + Sync),
) -> Result<Ingested> {
    let compression = part.compression().map_err(|error| damaged(&error))?;
    // Without a manifest nobody refers to the compressed bytes.
    let kept = layer
        .blob
        .as_ref()
        .filter(|_| compression != Compression::None);
    let copy = kept.map(|_| store.blob_writer()).transpose()?;
    let mut tap = Tap {
        part: part.reader(),
        copy,
        failed: None,
        report,
    };
    let mut writer = store.layer_writer()?;
    let unpacked = unpack(compression, &mut tap, &mut writer, limits);
    if let Some(error) = tap.failed.take() {
        return Err(ImageError::system(
            "cannot write to the image store",
            &error,
        ));
    }
    if let Err(error) = unpacked {
        // A wrong digest says more than what became of it.
        if error.cause() == Cause::Malformed {
            check_digest(layer, digest_of(part)?)?;
        }
        return Err(error);
    }
    let copied = tap.copy.as_ref().map(BlobWriter::digest);
    if copied.is_some() || compression == Compression::None {
        check_digest(layer, copied.unwrap_or_else(|| writer.digest()))?;
    }
    let (diff_id, length) = writer.finish(layer.diff_id)?;
    match (kept, tap.copy) {
        (Some(blob), Some(copy)) => {
            copy.finish_layer(diff_id)?;
            Ok(Ingested {
                diff_id,
                blob: blob.clone(),
            })
        }
        _ => Ok(Ingested {
            diff_id,
            blob: layer
                .blob
                .clone()
                .unwrap_or_else(|| plain_blob(diff_id, length)),
        }),
    }
}

/// Compares the digest of a layer's blob with what its descriptor says, if there is one.
fn check_digest(layer: &PlannedLayer, digest: Digest) -> Result<()> {
    match &layer.blob {
        Some(blob) if blob.digest != digest => Err(ImageError::malformed(format!(
            "the content is damaged: its digest is {digest}, it should be {}",
            blob.digest
        ))),
        _ => Ok(()),
    }
}

fn digest_of(part: &Part) -> Result<Digest> {
    let mut bytes = Hashing::new(part.reader());
    io::copy(&mut bytes, &mut io::sink()).map_err(|error| damaged(&error))?;
    Ok(bytes.finish().1)
}

/// Writes what `tap` unpacks to.
fn unpack(
    compression: Compression,
    tap: &mut Tap<'_>,
    writer: &mut LayerWriter<'_>,
    limits: Limits<'_>,
) -> Result<()> {
    let read = |inlet: &Inlet| {
        let mut put = || {
            inlet.put_all(&mut compression.decoder(&mut *tap)?)?;
            // What the decoder had no use for belongs to the blob all the same.
            io::copy(tap, &mut io::sink())
        };
        put().map(drop).map_err(|error| damaged(&error))
    };
    pump(read, |piece| {
        if limits.stop.load(Ordering::Relaxed) {
            return Err(ImageError::new(Cause::Stopped, "another layer failed"));
        }
        let spend = |left: u64| left.checked_sub(piece.len() as u64);
        limits
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, spend)
            .map_err(|_| too_large(limits.all))?;
        match writer.write_all(piece) {
            Err(error) if LayerWriter::is_tar_wrong(&error) => {
                Err(ImageError::malformed(error.to_string()))
            }
            other => other.context(|| "cannot write to the image store"),
        }
    })
}

/// The bytes of a blob as they are read: counted, and kept if they are wanted.
struct Tap<'a> {
    part: PartReader,
    copy: Option<BlobWriter<'a>>,
    /// Why they could not be kept.
    failed: Option<io::Error>,
    report: &'a (dyn Fn(u64) + Sync),
}

impl Read for Tap<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.part.read(buffer)?;
        if let Some(copy) = &mut self.copy
            && let Err(error) = copy.write_all(&buffer[..count])
        {
            let same = io::Error::from(error.kind());
            self.failed.get_or_insert(error);
            return Err(same);
        }
        (self.report)(count as u64);
        Ok(count)
    }
}
