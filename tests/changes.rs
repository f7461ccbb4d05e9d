//! What a tree changes over another: `plyfs diff`, and changes as a layer.

mod commit;
mod diff;
mod formats;
mod law;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use plyfs::changes::Comparison;
use plyfs::changes::compare::Exactness;
use plyfs::changes::layer_tar::{self, LayerOptions};
use plyfs::changes::owner::Owners;
use plyfs::layer::stack::{LayerSource, Owner, Stack, StackConfig};
use plyfs::layer::view::View;

use crate::support::disk::xattr_names;
use crate::support::fixture::run;

const PLYFS: &str = env!("CARGO_BIN_EXE_plyfs");

/// Runs plyfs and expects success; its stdout.
#[track_caller]
fn plyfs(arguments: &[&str]) -> String {
    let output = Command::new(PLYFS).args(arguments).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "plyfs {arguments:?}: {stderr}");
    assert_eq!(stderr, "", "plyfs {arguments:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn open(layers: &[PathBuf]) -> Arc<Stack> {
    let lowers = layers.iter().cloned().map(LayerSource::from).collect();
    let config = StackConfig {
        lowers,
        owner: Owner::Image,
        ..StackConfig::default()
    };
    Arc::new(Stack::open(&config).unwrap())
}

pub(crate) use law::storable;

/// What the topmost of `layers` changes, written as a layer to `tar`.
pub(crate) fn write_layer(layers: &[PathBuf], work: Option<&Path>, owners: Owners, tar: &Path) {
    let stack = open(layers);
    let mut after = View::new(Arc::clone(&stack), 0);
    let index = work
        .map(|work| work.join("index"))
        .filter(|dir| dir.is_dir());
    if let Some(index) = index {
        after = after.with_index(Arc::clone(&open(&[index]).roots[0]));
    }
    let comparison = Comparison {
        before: View::new(stack, 1),
        after,
        exactness: Exactness::Exact,
        owners,
        owned_below: None,
        complete: true,
    };
    let out = File::create(tar).unwrap();
    layer_tar::write(&comparison, LayerOptions::default(), out).unwrap();
}

/// The names in a tar, as they are.
fn tar_names(tar: &Path) -> Vec<String> {
    let output = Command::new("tar")
        .args(["--list", "--quoting-style=literal", "--file"])
        .arg(tar)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(str::to_owned).collect()
}

/// Applies a layer to a directory as the OCI specification says: whiteouts first, then GNU tar, replacing what is not
/// a directory on both sides.
fn apply_layer(tar: &Path, root: &Path) {
    let names = tar_names(tar);
    let distinct: BTreeSet<_> = names.iter().collect();
    assert_eq!(distinct.len(), names.len(), "an entry twice: {names:?}");
    for name in &names {
        let path = root.join(name.trim_end_matches('/'));
        let file = path.file_name().unwrap().to_str().unwrap();
        let (target, keep) = match file.strip_prefix(".wh.") {
            Some(hidden) => (path.with_file_name(hidden), false),
            None => (path.clone(), name.ends_with('/')),
        };
        match fs::symlink_metadata(&target) {
            Ok(there) if keep && there.is_dir() => {
                // All attributes are replaced, of which GNU tar only adds.
                for name in xattr_names(&target) {
                    rustix::fs::lremovexattr(&target, name).unwrap();
                }
            }
            Ok(there) if there.is_dir() => fs::remove_dir_all(&target).unwrap(),
            Ok(_) => fs::remove_file(&target).unwrap(),
            Err(_) => {}
        }
    }
    let (tar, root) = (tar.to_str().unwrap(), root.to_str().unwrap());
    run(
        "tar",
        &[
            "--extract",
            "--file",
            tar,
            "--directory",
            root,
            "--same-permissions",
            "--same-owner",
            "--numeric-owner",
            "--xattrs",
            "--xattrs-include=*",
            "--exclude=.wh.*",
        ],
    );
    // GNU tar leaves the bit that a new directory inherits from one with setgid.
    let mut archive = tar::Archive::new(File::open(tar).unwrap());
    for entry in archive.entries().unwrap() {
        let entry = entry.unwrap();
        if entry.header().entry_type().is_dir() {
            let path = Path::new(root).join(entry.path().unwrap());
            let mode = fs::Permissions::from_mode(entry.header().mode().unwrap());
            fs::set_permissions(path, mode).unwrap();
        }
    }
}
