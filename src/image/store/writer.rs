//! What is being written: nothing of it has a name before it is complete and verified.

use std::fs::File;
use std::io::{self, Write};

use tempfile::{NamedTempFile, TempDir};

use super::Store;
use super::publish::{self, Sync};
use crate::image::digest::{DiffId, Digest, Hashing};
use crate::image::error::{Context, ImageError, Result};
use crate::layer::archive::{IndexError, Indexer, Limits};

/// Writing as much takes longer than noting that it was not written.
const LARGE: u64 = 4 << 20;

/// A blob on its way into the store; dropped unfinished, it leaves nothing.
#[derive(Debug)]
pub struct BlobWriter<'a> {
    store: &'a Store,
    file: Hashing<NamedTempFile>,
}

/// A layer on its way into the store: the bytes written are its uncompressed tar. Dropped unfinished, it leaves
/// nothing.
#[derive(Debug)]
pub struct LayerWriter<'a> {
    store: &'a Store,
    dir: TempDir,
    tar: Hashing<File>,
    indexer: Indexer,
}

impl Store {
    /// Begins a blob.
    pub fn blob_writer(&self) -> Result<BlobWriter<'_>> {
        let file = NamedTempFile::new_in(self.root.join("tmp"));
        Ok(BlobWriter {
            store: self,
            file: Hashing::new(file.context(|| self.cannot_write())?),
        })
    }

    /// Begins a layer.
    pub fn layer_writer(&self) -> Result<LayerWriter<'_>> {
        let dir = TempDir::new_in(self.root.join("tmp")).context(|| self.cannot_write())?;
        let tar = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(dir.path().join("tar"))
            .context(|| self.cannot_write())?;
        Ok(LayerWriter {
            store: self,
            dir,
            tar: Hashing::new(tar),
            indexer: Indexer::new(Limits::default()),
        })
    }

    /// Stores `bytes` as a blob.
    pub fn put_blob(&self, bytes: &[u8]) -> Result<Digest> {
        let digest = Digest::of(bytes);
        let path = self.by_digest("blobs", digest);
        if !path.exists() {
            self.replace(&path, bytes).context(|| self.cannot_write())?;
        }
        Ok(digest)
    }

    /// Whether a layer or blob of `length` bytes is synced before it is published.
    fn how_to_sync(&self, object: Digest, length: u64) -> Result<Sync> {
        if length >= LARGE {
            self.announce(&[object])?;
        }
        Ok(if self.is_announced(object) {
            Sync::Later
        } else {
            Sync::Now
        })
    }

    pub(super) fn cannot_write(&self) -> String {
        format!("cannot write to the image store {}", self.root.display())
    }
}

impl Write for BlobWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl BlobWriter<'_> {
    /// The digest of what was written.
    pub fn digest(&self) -> Digest {
        self.file.digest()
    }

    /// Publishes a compressed layer that was seen to unpack to `diff_id`; returns the blob's digest and length.
    pub fn finish_layer(self, diff_id: DiffId) -> Result<(Digest, u64)> {
        let (file, digest, length) = self.file.finish();
        let cannot = || self.store.cannot_write();
        let sync = self.store.how_to_sync(digest, length)?;
        publish::publish(file, &self.store.by_digest("blobs", digest), sync).context(cannot)?;
        let note = self.store.by_digest("diffs", digest);
        publish::replace(
            &self.store.root.join("tmp"),
            &note,
            format!("{diff_id}\n").as_bytes(),
        )
        .context(cannot)?;
        Ok((digest, length))
    }
}

impl Write for LayerWriter<'_> {
    /// Takes all of `bytes`. What is wrong with the tar is said by [`LayerWriter::finish`].
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.indexer.write_all(bytes)?;
        self.tar.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.tar.flush()
    }
}

impl LayerWriter<'_> {
    /// The digest of what was written.
    pub fn digest(&self) -> Digest {
        self.tar.digest()
    }

    /// Checks the layer against `expected`, if that is known, and publishes it; returns its diffID and length.
    pub fn finish(self, expected: Option<DiffId>) -> Result<(DiffId, u64)> {
        let index = self
            .indexer
            .finish()
            .map_err(|error| ImageError::malformed(error.to_string()))?;
        let (tar, digest, length) = self.tar.finish();
        let diff_id = DiffId(digest);
        if let Some(expected) = expected
            && expected != diff_id
        {
            return Err(ImageError::malformed(format!(
                "the layer unpacks to {diff_id}, but the image config says {expected}"
            )));
        }
        if self.store.has_layer(diff_id) {
            return Ok((diff_id, length));
        }
        let cannot = || self.store.cannot_write();
        let sync = self.store.how_to_sync(digest, length)?;
        let write = || -> io::Result<()> {
            let mut file = File::create_new(self.dir.path().join("index"))?;
            file.write_all(index.bytes())?;
            if sync == Sync::Now {
                file.sync_all()?;
                tar.sync_all()?;
            }
            Ok(())
        };
        write().context(cannot)?;
        let to = self.store.by_digest("layers", diff_id.0);
        publish::publish_dir(&self.dir.keep(), &to, sync).context(cannot)?;
        Ok((diff_id, length))
    }

    /// What [`Write::write`] failed with, if it was the tar and not the disk.
    pub(in crate::image) fn is_tar_wrong(error: &io::Error) -> bool {
        error
            .get_ref()
            .is_some_and(|error| error.is::<IndexError>())
    }
}
