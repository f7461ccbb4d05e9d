//! Makes the layers of a script on disk.

use std::path::{Path, PathBuf};

use rustix::fs::{
    self, AtFlags, CWD, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::{self, Errno};

use super::exec::pattern;
use super::generate::LOWERS;
use super::script::{Build, Item};
use super::snapshot::{Listing, hash, snapshot};

/// The layer directories below `base`, the upper first, then the lowers from the top.
pub(crate) fn directories(base: &Path) -> Vec<PathBuf> {
    let lowers = (1..=LOWERS).map(|layer| base.join(format!("lower{layer}")));
    std::iter::once(base.join("upper")).chain(lowers).collect()
}

/// Makes the layers. An object that cannot be made (its name is taken) is left out.
pub(crate) fn build(base: &Path, objects: &[&Build]) -> std::io::Result<()> {
    let layers = directories(base);
    for layer in &layers {
        std::fs::create_dir_all(layer)?;
    }
    // Ordinary users act, too.
    fs::chmod(base, Mode::from_raw_mode(0o755))?;
    fs::chmod(&layers[0], Mode::from_raw_mode(0o777))?;
    for object in objects {
        let _taken = make(&layers[object.layer], object);
    }
    for layer in &layers {
        for (path, _) in snapshot(layer, Listing::Strict) {
            let time = time_of(layer, &path);
            let times = Timestamps {
                last_access: time,
                last_modification: time,
            };
            fs::utimensat(CWD, layer.join(path), &times, AtFlags::SYMLINK_NOFOLLOW)?;
        }
    }
    Ok(())
}

/// The whiteouts in a directory of a layer; none if there is no such directory.
pub(crate) fn whiteouts(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|path| {
            fs::lstat(path).is_ok_and(|stat| {
                FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
                    && stat.st_rdev == 0
            })
        })
        .collect()
}

/// A modification time far from now, different for each object: before 1970, ordinary, after 2038.
fn time_of(layer: &Path, path: &str) -> Timespec {
    let name = layer
        .file_name()
        .map(std::ffi::OsStr::as_encoded_bytes)
        .unwrap_or_default();
    let mut rng = fastrand::Rng::with_seed(hash(&[name, path.as_bytes()].concat()));
    let eras = [-500_000_000, 1_000_000_000, 1_500_000_000, 5_000_000_000];
    Timespec {
        tv_sec: eras[rng.usize(..eras.len())] + rng.i64(0..10_000_000),
        tv_nsec: rng.i64(0..1_000_000_000),
    }
}

fn make(layer: &Path, object: &Build) -> Result<(), Errno> {
    let path = layer.join(&object.path);
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    }
    let mode = Mode::from_raw_mode(object.mode);
    match &object.item {
        Item::Dir { opaque } => {
            match fs::mkdirat(CWD, &path, mode) {
                Err(errno) if errno != Errno::EXIST => return Err(errno),
                _ => {}
            }
            if *opaque {
                fs::lsetxattr(&path, "trusted.overlay.opaque", b"y", XattrFlags::empty())?;
            }
        }
        Item::File { hole, len, fill } => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            let fd = fs::openat(CWD, &path, flags, mode)?;
            io::pwrite(&fd, &pattern(*fill, *len), *hole)?;
            fs::ftruncate(&fd, 2 * hole + *len as u64)?;
        }
        Item::Link { to } => {
            return fs::linkat(CWD, layer.join(to), CWD, &path, AtFlags::empty());
        }
        Item::Symlink { target } => fs::symlinkat(target, CWD, &path)?,
        Item::Fifo => fs::mknodat(CWD, &path, FileType::Fifo, mode, 0)?,
        Item::Device => {
            fs::mknodat(CWD, &path, FileType::BlockDevice, mode, fs::makedev(240, 7))?;
        }
        Item::Whiteout => {
            return fs::mknodat(CWD, &path, FileType::CharacterDevice, Mode::empty(), 0);
        }
        Item::Xattr { name, len } => {
            return fs::lsetxattr(&path, *name, &pattern(7, *len), XattrFlags::empty());
        }
    }
    let (uid, gid) = (
        Some(Uid::from_raw(object.owner)),
        Some(Gid::from_raw(object.owner)),
    );
    fs::chownat(CWD, &path, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
    match object.item {
        Item::Symlink { .. } => Ok(()),
        _ => fs::chmodat(CWD, &path, mode, AtFlags::empty()),
    }
}
