//! The upper of an `--ephemeral` mount: made at mount, removed at unmount.
//!
//! It lies in `$TMPDIR` under a name that starts with `plyfs-`, mode 0700. A daemon killed by SIGKILL
//! leaves it behind.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use super::exit::{Exit, Failure, why};
use crate::layer::stack::{StackConfig, UpperConfig};

/// Removed with all it holds when dropped.
#[derive(Debug)]
pub(super) struct Ephemeral(PathBuf);

impl Ephemeral {
    /// Makes an upper and a workdir and puts them into `stack`.
    pub(super) fn create(stack: &mut StackConfig) -> Result<Self, Failure> {
        let failed = |error: io::Error| {
            let place = std::env::temp_dir();
            Failure::new(
                Exit::Upper,
                format!(
                    "cannot make an ephemeral upper in {}: {}",
                    place.display(),
                    why(&error)
                ),
            )
        };
        let place = tempfile::Builder::new()
            .prefix("plyfs-")
            .permissions(Permissions::from_mode(0o700))
            .tempdir()
            .map_err(failed)?;
        let place = Self(place.keep());
        let upper = place.0.join("upper");
        let work = place.0.join("work");
        for dir in [&upper, &work] {
            DirBuilder::new().mode(0o700).create(dir).map_err(failed)?;
        }
        if let Some(top) = stack.lowers.first() {
            resemble(&upper, top.path()).map_err(failed)?;
        }
        stack.upper = Some(UpperConfig { upper, work });
        Ok(place)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Ephemeral {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

/// The root of a merged view shows owner and mode of the upper's root: here those of the layer below.
fn resemble(upper: &Path, top: &Path) -> io::Result<()> {
    // A layer that is missing gets its own sentence when the stack is opened.
    let Ok(like) = fs::metadata(top) else {
        return Ok(());
    };
    if !like.is_dir() {
        // The file says nothing about the root of the tree that is in it.
        return fs::set_permissions(upper, Permissions::from_mode(0o755));
    }
    if rustix::process::geteuid().is_root() {
        // In a user namespace the owner may have no id here; then it stays ours.
        match chown(upper, Some(like.uid()), Some(like.gid())) {
            Err(error) if error.raw_os_error() != Some(libc::EINVAL) => return Err(error),
            _ => {}
        }
    }
    fs::set_permissions(upper, Permissions::from_mode(like.mode() & 0o7777))
}

/// Removes the tree at `path`, also directories whose owner took away his own permission.
pub(super) fn remove(path: &Path) {
    let removed = fs::remove_dir_all(path).or_else(|_| {
        unlock(path);
        fs::remove_dir_all(path)
    });
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!("cannot remove {}: {}", path.display(), why(&error));
        }
        _ => {}
    }
}

/// Gives the owner all rights on every directory below `path`; what fails shows when removing.
fn unlock(path: &Path) {
    let unlocked = fs::set_permissions(path, Permissions::from_mode(0o700));
    if let (Ok(()), Ok(entries)) = (unlocked, fs::read_dir(path)) {
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                unlock(&entry.path());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stack(lower: &Path) -> StackConfig {
        StackConfig {
            lowers: vec![lower.to_path_buf().into()],
            ..StackConfig::default()
        }
    }

    #[test]
    fn an_ephemeral_upper_is_private_resembles_the_layer_below_and_disappears() {
        let lower = tempfile::tempdir().unwrap();
        fs::set_permissions(lower.path(), Permissions::from_mode(0o1751)).unwrap();
        let mut stack = stack(lower.path());
        let ephemeral = Ephemeral::create(&mut stack).unwrap();
        let place = ephemeral.path().to_owned();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
        assert_eq!(mode(&place), 0o700);
        let upper = stack.upper.unwrap();
        assert_eq!(mode(&upper.upper), 0o1751);
        assert!(upper.upper.starts_with(&place) && upper.work.starts_with(&place));
        drop(ephemeral);
        assert!(!place.exists());
    }

    #[test]
    fn directories_without_permissions_are_removed_too() {
        let lower = tempfile::tempdir().unwrap();
        let ephemeral = Ephemeral::create(&mut stack(lower.path())).unwrap();
        let place = ephemeral.path().to_owned();
        let locked = place.join("upper/locked/inner");
        fs::create_dir_all(&locked).unwrap();
        fs::write(locked.join("file"), "x").unwrap();
        fs::set_permissions(place.join("upper/locked"), Permissions::from_mode(0o0)).unwrap();
        drop(ephemeral);
        assert!(!place.exists());
    }
}
