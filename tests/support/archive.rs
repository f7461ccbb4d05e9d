//! A lower directory as the tar of an image layer.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{lgetxattr, lremovexattr};

use super::fixture::run;

const OPAQUE: [&str; 3] = [
    "trusted.overlay.opaque",
    "user.overlay.opaque",
    "user.fuseoverlayfs.opaque",
];

/// Packs `dir` into `tar` with GNU tar, unless it is a tar. Marks of overlayfs become those of images.
pub fn archive(dir: &Path, tar: &Path) -> PathBuf {
    if dir.is_file() {
        return dir.to_owned();
    }
    let copy = tempfile::tempdir_in(tar.parent().unwrap()).unwrap();
    let tree = copy.path().join("tree");
    run("cp", &["-a", dir.to_str().unwrap(), tree.to_str().unwrap()]);
    convert(&tree);
    let arguments = [
        "--format=pax",
        "--numeric-owner",
        "--sparse",
        "--xattrs",
        "--xattrs-include=*",
    ];
    let places = [
        "-cf",
        tar.to_str().unwrap(),
        "-C",
        tree.to_str().unwrap(),
        ".",
    ];
    run("tar", &[&arguments[..], &places].concat());
    tar.to_owned()
}

fn convert(dir: &Path) {
    for name in OPAQUE {
        let mut value = [0; 8];
        if lgetxattr(dir, name, &mut value).is_ok_and(|length| &value[..length] == b"y") {
            lremovexattr(dir, name).unwrap();
            fs::write(dir.join(".wh..wh..opq"), "").unwrap();
        }
    }
    // What this user may not read is none of the test's marks either.
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let entry = entry.unwrap();
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        if kind.is_dir() {
            convert(&path);
        } else if kind.is_char_device() && entry.metadata().unwrap().rdev() == 0 {
            let mut name = b".wh.".to_vec();
            name.extend_from_slice(entry.file_name().as_bytes());
            fs::remove_file(&path).unwrap();
            fs::write(dir.join(std::ffi::OsStr::from_bytes(&name)), "").unwrap();
        }
    }
}
