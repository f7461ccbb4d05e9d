//! Extended attributes of the upper by the names that programs know, wherever it keeps them (`layer/override_stat.rs`).

use std::ffi::CStr;

use rustix::fs::XattrFlags;
use rustix::io::{Errno, Result};

use super::Upper;
use crate::layer::at::{At, UpperAt};
use crate::layer::attr::Kind;
use crate::layer::{capability, override_stat};

impl Upper {
    /// An xattr of an object.
    pub fn xattr(&self, at: At<'_>, name: &CStr) -> Result<Option<Vec<u8>>> {
        override_stat::xattr(at, self.override_name, name)
    }

    /// Names of all xattrs of an object, each ended by NUL.
    pub fn xattr_names(&self, at: At<'_>) -> Result<Vec<u8>> {
        override_stat::xattr_names(at, self.override_name)
    }

    /// Sets an xattr; `flags` as of setxattr(2).
    pub fn set_xattr(
        &self,
        at: UpperAt<'_>,
        name: &CStr,
        value: &[u8],
        flags: XattrFlags,
    ) -> Result<()> {
        let Some(kept) = override_stat::kept_as(self.override_name, name.to_bytes()) else {
            return at.set_xattr(name, value, flags);
        };
        let exists = self.xattr(at.read(), name)?.is_some();
        if exists && flags.contains(XattrFlags::CREATE) {
            return Err(Errno::EXIST);
        }
        if !exists && flags.contains(XattrFlags::REPLACE) {
            return Err(Errno::NODATA);
        }
        let set = || at.set_xattr(&kept, value, XattrFlags::empty());
        match self.with_mode(at, 0o600, set) {
            // Symlinks take no user xattr.
            Err(Errno::PERM) if at.read().stat()?.kind == Kind::Symlink => {
                at.set_xattr(name, value, flags)
            }
            other => other,
        }
    }

    /// Removes an xattr; ENODATA if there is none.
    pub fn remove_xattr(&self, at: UpperAt<'_>, name: &CStr) -> Result<()> {
        let Some(kept) = override_stat::kept_as(self.override_name, name.to_bytes()) else {
            return at.remove_xattr(name);
        };
        let removed = self.with_mode(at, 0o600, || at.remove_xattr(&kept));
        match removed {
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error),
        }
        // Who may remove such a one is asked before whether it is there.
        if removed.is_err() || at.read().xattr(name)?.is_some() {
            at.remove_xattr(name)
        } else {
            Ok(())
        }
    }

    /// Whether file capabilities are kept where the system does not take them away when the file is written.
    pub fn keeps_capabilities(&self) -> bool {
        override_stat::keeps_foreign(self.override_name)
    }

    /// Takes away the file capabilities that are kept; of others the system takes care.
    pub fn clear_capabilities(&self, at: UpperAt<'_>) -> Result<()> {
        let name = capability::NAME.to_bytes();
        let Some(kept) = override_stat::kept_as(self.override_name, name) else {
            return Ok(());
        };
        match self.with_mode(at, 0o600, || at.remove_xattr(&kept)) {
            Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
            other => other,
        }
    }
}
