//! Whose a file is that an ordinary user made.
//!
//! Whoever works without root can give files to nobody else, so in directories everything is his. What he changed
//! belongs to whom it belonged before, as an image's layer below says; what he made is recorded as root's.

use crate::layer::view::{Object, Place, owner_is_exact};

/// How the owners of files in directory layers are read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Owners {
    /// As they are on disk.
    AsOnDisk,
    /// Files of this user and group are whose they were before, else those of others.
    Unprivileged {
        /// The user and group who mounted.
        own: (u32, u32),
        /// The user and group whose new files are.
        new: (u32, u32),
    },
}

impl Owners {
    /// What fits the user this process runs as: root can give files away, others cannot.
    pub fn of_this_process() -> Self {
        if crate::layer::ids::can_give_files_away() {
            return Self::AsOnDisk;
        }
        let own = crate::layer::own_ids();
        Self::Unprivileged { own, new: (0, 0) }
    }

    /// Gives `object` the owner it stands for; `before` is what was at its path, with its own owner found already.
    pub(super) fn apply(self, object: &mut Object, before: Option<&Object>) {
        let Self::Unprivileged { own, new } = self else {
            return;
        };
        if object.owner_is_exact() {
            return;
        }
        // A renamed directory is still merged with what it was copied from.
        let merged = match &object.place {
            Place::Directory(dir) => dir.layers().find(|dir| owner_is_exact(dir.lower())),
            Place::File(_) => None,
        };
        let merged = merged.and_then(|dir| dir.stat_self().ok());
        let (old_uid, old_gid) = merged
            .or(before.map(|before| before.attr))
            .map_or(new, |attr| (attr.uid, attr.gid));
        if object.attr.uid == own.0 {
            object.attr.uid = old_uid;
        }
        if object.attr.gid == own.1 {
            object.attr.gid = old_gid;
        }
    }
}
