//! The image store: a directory that holds everything by digest.
//!
//! ```text
//! STORE/
//!   version                   "1"
//!   lock                      flock: shared by whoever adds or reads, exclusive for removing
//!   blobs/sha256/HEX          manifests, configs, compressed layers: the bytes as they came
//!   layers/sha256/HEX/tar     a layer, uncompressed, under its diffID ...
//!   layers/sha256/HEX/index   ... and the index of its entries
//!   diffs/sha256/HEX          of a compressed layer: the diffID that it was seen to unpack to
//!   images/HEX                the manifest HEX and all it needs are here
//!   refs/HEX                  a name and its manifest; HEX is the digest of the name
//!   sources/HEX               an archive that was mounted by its path, and its manifest
//!   mounts/ID                 a live mount and its manifest; its daemon holds a lock on the file
//!   uppers/NAME/              a writable layer kept for an image
//!   pending/HEX               which layers and blobs may not have reached the disk, see `store/pending.rs`
//!   tmp/                      what is being written
//! ```
//!
//! An uncompressed layer that came as a blob is stored once, as a layer. Publishing is: write to `tmp`, check length and
//! digest, sync or note in `pending`, rename. So a name in `blobs` or `layers` means complete and verified, whatever process is killed
//! when; what is left in `tmp` is removed by the next process that is alone.

mod fsck;
mod gc;
mod hold;
mod pending;
mod publish;
mod refs;
mod writer;

use std::collections::HashSet;
use std::env;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::Image;
use super::digest::{DiffId, Digest, ManifestDigest, plain};
use super::error::{Cause, Context, ImageError, Result};
use super::manifest::{Descriptor, JSON_MAX};

pub use fsck::{Damage, Report};
pub use gc::{Garbage, Keep};
pub use hold::{Hold, MountRecord};
pub use refs::Referred;
pub(super) use refs::split_level;
pub use writer::{BlobWriter, LayerWriter};

/// The format described above.
const VERSION: &str = "1";

const DIRS: &[&str] = &[
    "blobs/sha256",
    "layers/sha256",
    "diffs/sha256",
    "images",
    "refs",
    "sources",
    "mounts",
    "uppers",
    "pending",
    "tmp",
];

/// An open store. While it is open nothing is removed from it by others.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    lock: File,
    /// Large files can be left to the kernel to write.
    may_wait: bool,
    /// What a note of this process lists.
    announced: Mutex<HashSet<Digest>>,
}

/// A layer in the store.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct StoredLayer {
    /// The uncompressed tar.
    pub tar: PathBuf,
    /// The index of its entries.
    pub index: PathBuf,
}

impl Store {
    /// Where the store of this user is: `$XDG_DATA_HOME/plyfs`, else `~/.local/share/plyfs`.
    pub fn default_root() -> Result<PathBuf> {
        let absolute = |name| {
            env::var_os(name)
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
        };
        let data = absolute("XDG_DATA_HOME")
            .or_else(|| absolute("HOME").map(|home| home.join(".local/share")));
        let data = data.ok_or_else(|| {
            ImageError::new(
                Cause::Usage,
                "neither XDG_DATA_HOME nor HOME is set; say where the image store is with --store DIR",
            )
        })?;
        Ok(data.join("plyfs"))
    }

    /// Opens the store at `root` and creates it if there is none. Waits while another process removes something.
    pub fn open(root: &Path) -> Result<Self> {
        let cannot = || format!("cannot open the image store {}", root.display());
        let root = std::path::absolute(root).context(cannot)?;
        let is_new = !root.join("version").exists();
        if is_new {
            private_dir(&root)
                .and_then(|()| check_empty(&root))
                .context(cannot)?;
        }
        let lock = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(root.join("lock"))
            .context(cannot)?;
        if is_new {
            // Of two that find none, one makes it.
            flock(&lock, FlockOperation::LockExclusive).context(cannot)?;
            create(&root).context(cannot)?;
        }
        check_version(&root)?;
        let store = Self {
            root,
            may_wait: pending::may_wait(&lock),
            lock,
            announced: Mutex::default(),
        };
        if store.try_exclusive() {
            store.empty_tmp();
            store.check_after_boot()?;
        }
        store.share()?;
        Ok(store)
    }

    /// Locks out all others if none uses the store; if one does, the shared lock is lost, too.
    fn try_exclusive(&self) -> bool {
        flock(&self.lock, FlockOperation::NonBlockingLockExclusive).is_ok()
    }

    /// Takes the lock that everybody has, or goes back to it.
    fn share(&self) -> Result<()> {
        flock(&self.lock, FlockOperation::LockShared)
            .context(|| format!("cannot lock the image store {}", self.root.display()))
    }

    /// Waits until this is the only process that uses the store; calls `waiting` if that takes a while.
    pub fn make_exclusive(&self, waiting: impl FnOnce()) -> Result<()> {
        let cannot = || format!("cannot lock the image store {}", self.root.display());
        match flock(&self.lock, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => {
                waiting();
                flock(&self.lock, FlockOperation::LockExclusive).context(cannot)?;
            }
            other => other.context(cannot)?,
        }
        self.empty_tmp();
        Ok(())
    }

    /// Writes a small file of the store whole.
    pub(super) fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        publish::replace(&self.root.join("tmp"), path, bytes)
    }

    /// A file without a name, for as long as it is open.
    pub(super) fn temporary_file(&self) -> io::Result<File> {
        tempfile::tempfile_in(self.root.join("tmp"))
    }

    /// The directory that is the store.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Removes what killed processes left. Only while the lock is exclusive.
    fn empty_tmp(&self) {
        let Ok(entries) = fs::read_dir(self.root.join("tmp")) else {
            return;
        };
        for entry in entries.flatten() {
            let path = entry.path();
            let removed = fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path));
            if let Err(error) = removed {
                tracing::debug!("cannot remove {}: {error}", path.display());
            }
        }
    }

    fn by_digest(&self, kind: &str, digest: Digest) -> PathBuf {
        self.root.join(kind).join("sha256").join(digest.hex())
    }

    /// The files of a layer, whether they are there or not.
    pub(super) fn layer_files(&self, diff_id: DiffId) -> StoredLayer {
        let dir = self.by_digest("layers", diff_id.0);
        StoredLayer {
            tar: dir.join("tar"),
            index: dir.join("index"),
        }
    }

    /// Whether the layer is here, complete.
    pub fn has_layer(&self, diff_id: DiffId) -> bool {
        self.layer_files(diff_id).index.exists()
    }

    /// The files of a layer.
    pub fn layer(&self, diff_id: DiffId) -> Result<StoredLayer> {
        let files = self.layer_files(diff_id);
        if files.index.exists() {
            return Ok(files);
        }
        Err(ImageError::malformed(format!(
            "layer {diff_id} is missing from the store; load its image again"
        )))
    }

    /// Length of its tar in bytes.
    pub fn layer_size(&self, diff_id: DiffId) -> Result<u64> {
        let tar = self.layer(diff_id)?.tar;
        let metadata = fs::metadata(&tar).context(|| format!("cannot read {}", tar.display()))?;
        Ok(metadata.len())
    }

    /// The file that has the bytes of `digest`: a blob, or a layer that is its own blob.
    pub fn blob_path(&self, digest: Digest) -> Option<PathBuf> {
        let blob = self.by_digest("blobs", digest);
        [blob, self.layer_files(DiffId(digest)).tar]
            .into_iter()
            .find(|path| path.exists())
    }

    /// Opens a blob for reading.
    pub fn open_blob(&self, digest: Digest) -> Result<File> {
        let path = self.blob_path(digest).ok_or_else(|| {
            ImageError::malformed(format!(
                "blob {digest} is missing from the store; load its image again"
            ))
        })?;
        File::open(&path).context(|| format!("cannot read {}", path.display()))
    }

    /// The bytes of a manifest or config; checked against the digest.
    pub fn read_json(&self, digest: Digest) -> Result<Vec<u8>> {
        let mut json = Vec::new();
        self.open_blob(digest)?
            .take(JSON_MAX)
            .read_to_end(&mut json)
            .context(|| format!("cannot read blob {digest}"))?;
        if Digest::of(&json) != digest {
            return Err(ImageError::malformed(format!(
                "blob {digest} of the store is damaged; 'plyfs fsck' shows what else is"
            )));
        }
        Ok(json)
    }

    /// The image of a manifest that is in the store.
    pub fn image(&self, digest: ManifestDigest) -> Result<Image> {
        let read = || {
            let manifest_json = self.read_json(digest.0)?;
            let manifest = super::Manifest::parse(&manifest_json, "")?;
            let config_json = self.read_json(manifest.config.digest)?;
            Image::new(manifest_json, "", config_json)
        };
        read().map_err(|error| error.within(format!("image {digest}")))
    }

    /// Publishes an image whose config and layers are in the store.
    pub fn put_image(&self, manifest_json: &[u8]) -> Result<Image> {
        let manifest = super::Manifest::parse(manifest_json, "")?;
        let config_json = self.read_json(manifest.config.digest)?;
        let image = Image::new(manifest_json.to_vec(), "", config_json)?;
        for layer in &image.layers {
            self.layer(layer.diff_id)?;
            if self.diff_of(layer.blob.digest) != Some(layer.diff_id) {
                return Err(ImageError::malformed(format!(
                    "blob {} is not layer {}",
                    layer.blob.digest, layer.diff_id
                )));
            }
        }
        self.put_blob(manifest_json)?;
        self.mark_image(image.digest)?;
        Ok(image)
    }

    /// The layer that a blob of the store was seen to unpack to.
    pub fn diff_of(&self, blob: Digest) -> Option<DiffId> {
        if self.has_layer(DiffId(blob)) {
            return Some(DiffId(blob));
        }
        let text = fs::read_to_string(self.by_digest("diffs", blob)).ok()?;
        let there = self.by_digest("blobs", blob).exists();
        text.trim_end().parse().ok().filter(|_| there).map(DiffId)
    }

    /// Whether `layer` and the blob it came as are here and belong together.
    pub fn has(&self, diff_id: DiffId, blob: &Descriptor) -> bool {
        self.has_layer(diff_id) && self.diff_of(blob.digest) == Some(diff_id)
    }
}

fn private_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// An existing directory of something else must not be taken for a store and filled.
fn check_empty(root: &Path) -> io::Result<()> {
    let is_ours = |name: &str| {
        matches!(name, "lock" | "version")
            || DIRS.iter().any(|dir| dir.split('/').next() == Some(name))
    };
    for entry in fs::read_dir(root)? {
        let name = entry?.file_name();
        if !name.to_str().is_some_and(is_ours) {
            return Err(io::Error::other(format!(
                "it is not a store: it holds '{}'; name an empty or new directory",
                plain(&name.to_string_lossy())
            )));
        }
    }
    Ok(())
}

/// Makes the directories of a store that are missing.
fn create(root: &Path) -> io::Result<()> {
    if root.join("version").exists() {
        return Ok(());
    }
    DIRS.iter()
        .try_for_each(|dir| private_dir(&root.join(dir)))?;
    // Last: a version means that all of it is there.
    publish::replace(
        &root.join("tmp"),
        &root.join("version"),
        format!("{VERSION}\n").as_bytes(),
    )
}

fn check_version(root: &Path) -> Result<()> {
    let version = fs::read_to_string(root.join("version"))
        .context(|| format!("cannot read {}/version", root.display()))?;
    if version.trim_end() == VERSION {
        return Ok(());
    }
    Err(ImageError::malformed(format!(
        "the image store {} has format '{}', this plyfs knows {VERSION}; use a newer plyfs, or another --store",
        root.display(),
        plain(version.trim_end())
    )))
}
