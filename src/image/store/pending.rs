//! Large files that reach the disk when the kernel gets to it.
//!
//! Waiting for the disk would be most of the time that a load takes. So layers and their blobs are published unsynced,
//! and a note in `pending/` tells which, together with the id of this boot of the system; the note is synced before
//! they are published. As long as that boot lasts, what was written is there, whoever gets killed. After another boot
//! whoever opens the store first reads what the notes list, and removes what did not reach the disk, so that it can be
//! loaded again. Notes of this boot go when the kernel has had its time: by an fsync that has little left to do.
//!
//! On filesystems that may tell of a full disk or a broken one only at the fsync, as NFS does, it is not put off.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::fsck::Report;
use super::{Store, private_dir};
use crate::image::digest::{DiffId, Digest};
use crate::image::error::{Context, Result};

/// The kernel writes what is older than 30 s (`vm.dirty_expire_centisecs`) and looks every 5 s.
const KERNELS_TIME: Duration = Duration::from_secs(60);
/// Filesystems that take the space for a write when it is made, and put metadata on the disk in order (statfs(2)):
/// ext4, XFS, btrfs, F2FS, tmpfs.
const ORDERLY: [u64; 5] = [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010, 0x0102_1994];

/// A note: which boot, and what was published unsynced.
struct Note {
    path: PathBuf,
    boot: String,
    objects: Vec<Digest>,
}

/// Whether files in `root` can be left to the kernel.
pub(super) fn may_wait(root: &File) -> bool {
    let kind = rustix::fs::fstatfs(root).map(|stat| stat.f_type);
    let known =
        kind.is_ok_and(|kind| u64::try_from(kind).is_ok_and(|kind| ORDERLY.contains(&kind)));
    known && boot().is_some()
}

fn boot() -> Option<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned()).filter(|id| !id.is_empty())
}

impl Store {
    /// Notes that these are going to be published unsynced, unless that was noted or cannot be.
    pub(in crate::image) fn announce(&self, objects: &[Digest]) -> Result<()> {
        let Some(boot) = boot().filter(|_| self.may_wait) else {
            return Ok(());
        };
        let mut announced = self.announced.lock();
        let mut new = objects.iter().filter(|object| !announced.contains(object));
        if new.next().is_none() {
            return Ok(());
        }
        let lines = objects.iter().map(|object| format!("{object}\n"));
        let text = format!("{boot}\n{}", lines.collect::<String>());
        let dir = self.root.join("pending");
        let note = dir.join(Digest::of(text.as_bytes()).hex());
        private_dir(&dir)
            .and_then(|()| self.replace(&note, text.as_bytes()))
            .context(|| self.cannot_write())?;
        announced.extend(objects);
        Ok(())
    }

    /// Whether a note lists `object`, so that it may be published unsynced.
    pub(super) fn is_announced(&self, object: Digest) -> bool {
        self.announced.lock().contains(&object)
    }

    /// Syncs what was published unsynced a while ago, if no other process uses the store.
    pub(in crate::image) fn settle(&self) -> Result<()> {
        let now = SystemTime::now();
        let is_due = |note: &Note| {
            let written = fs::metadata(&note.path).and_then(|metadata| metadata.modified());
            written.is_ok_and(|at| now.duration_since(at).is_ok_and(|age| age > KERNELS_TIME))
        };
        if !self.notes().iter().any(is_due) || !self.try_exclusive() {
            return self.share();
        }
        for note in self.notes().iter().filter(|note| is_due(note)) {
            let synced = note
                .objects
                .iter()
                .try_for_each(|&object| self.sync(object));
            synced
                .and_then(|()| fs::remove_file(&note.path))
                .context(|| self.cannot_write())?;
        }
        self.share()
    }

    /// Reads what was published unsynced before the system was booted, and removes what is damaged. Only while the lock
    /// is exclusive.
    pub(super) fn check_after_boot(&self) -> Result<()> {
        let boot = boot().unwrap_or_default();
        for note in self.notes().iter().filter(|note| note.boot != boot) {
            let mut report = Report::default();
            for &object in &note.objects {
                if self.by_digest("blobs", object).exists() {
                    self.check_blob(object, true, &mut report)?;
                }
            }
            for &object in &note.objects {
                if self.by_digest("layers", object).exists() {
                    self.check_layer(DiffId(object), true, &mut report)?;
                }
            }
            for damage in report.damages {
                tracing::warn!("after a crash of the system: {}", damage.what);
            }
            fs::remove_file(&note.path).context(|| self.cannot_write())?;
        }
        Ok(())
    }

    fn notes(&self) -> Vec<Note> {
        let entries = fs::read_dir(self.root.join("pending"));
        let entries = entries.into_iter().flatten().flatten();
        entries
            .filter_map(|entry| Note::read(&entry.path()))
            .collect()
    }

    fn sync(&self, object: Digest) -> io::Result<()> {
        let layer = self.layer_files(DiffId(object));
        let dirs = ["blobs", "layers"].map(|kind| self.by_digest(kind, object));
        let parents = dirs.iter().filter_map(|path| path.parent());
        let files = [&layer.tar, &layer.index, &dirs[0], &dirs[1]];
        for path in files.into_iter().map(PathBuf::as_path).chain(parents) {
            match File::open(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                opened => opened?.sync_all()?,
            }
        }
        Ok(())
    }
}

impl Note {
    fn read(path: &Path) -> Option<Self> {
        let text = fs::read_to_string(path).ok()?;
        let mut lines = text.lines();
        Some(Self {
            path: path.to_owned(),
            boot: lines.next()?.to_owned(),
            objects: lines.filter_map(|line| line.parse().ok()).collect(),
        })
    }
}
