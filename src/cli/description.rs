//! What a mount says of itself: the JSON text of the virtual xattr `user.plyfs.mount` on its root.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::options::{MountOptions, MountedImage};

/// Where the daemon shows it.
pub(super) const XATTR: &str = "user.plyfs.mount";

/// An xattr holds 64 KiB; the layers of a very high stack are cut to leave room for the rest.
const LAYERS_BYTES: usize = 48 * 1024;

/// Stack and options of a mount. Fields that a newer or older daemon lacks read as empty.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub(super) struct Description {
    pub(super) version: String,
    /// The process that serves, as its own pid namespace numbers it.
    pub(super) pid: u32,
    /// Topmost first, absolute; the first ones of a stack too high to be told whole.
    pub(super) lowers: Vec<String>,
    /// How many layers there are.
    pub(super) lower_count: usize,
    pub(super) upper: Option<String>,
    pub(super) work: Option<String>,
    pub(super) ephemeral: bool,
    pub(super) read_only: bool,
    /// As given, without the layers.
    pub(super) options: Vec<String>,
    /// The image that the lowers are of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) image: Option<MountedImage>,
}

impl Description {
    /// Describes a mount that this process serves; call it before the working directory changes.
    pub(super) fn of(options: &MountOptions) -> Self {
        let upper = options.stack.upper.as_ref();
        let mut room = LAYERS_BYTES;
        let lowers = options
            .stack
            .lowers
            .iter()
            .map(|lower| absolute(lower.path()));
        let lowers = lowers.take_while(|path| {
            let need = serde_json::to_string(path).map_or(usize::MAX, |json| json.len() + 1);
            let fits = need <= room;
            room = room.saturating_sub(need);
            fits
        });
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            lowers: lowers.collect(),
            lower_count: options.stack.lowers.len(),
            upper: upper.map(|upper| absolute(&upper.upper)),
            work: upper.map(|upper| absolute(&upper.work)),
            ephemeral: options.ephemeral,
            read_only: options.session.read_only || upper.is_none(),
            options: options.given.clone(),
            image: options.image.clone(),
        }
    }
}

fn absolute(path: &Path) -> String {
    let path = std::path::absolute(path).unwrap_or_else(|_| PathBuf::from(path));
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::convention::Name;
    use crate::cli::options::Draft;

    #[test]
    fn a_high_stack_still_fits_an_xattr() {
        let mut draft = Draft::default();
        draft.mountpoint = Some("/m".into());
        (0..2000).for_each(|n| draft.lower(format!("/{}/{n}", "x".repeat(100)).into()));
        let description = Description::of(&draft.finish(Name::Plyfs.defaults()).unwrap());
        assert_eq!(description.lower_count, 2000);
        assert!(!description.lowers.is_empty());
        assert!(serde_json::to_string(&description).unwrap().len() < 64 * 1024);
    }

    #[test]
    fn a_description_with_unknown_and_missing_fields_can_be_read() {
        let text = r#"{"pid": 7, "invented": true}"#;
        let description: Description = serde_json::from_str(text).unwrap();
        assert_eq!(
            description,
            Description {
                pid: 7,
                ..Description::default()
            }
        );
    }
}
