//! What the tests share: layers as text, mounts that always go away, trees compared as text.
//!
//! `PLYFS_TEST_FS=kernel` runs the same tests against kernel overlayfs, `PLYFS_TEST_LOWERS=tar` with all lowers as tars.
//! `PLYFS_TEST_DIR` says where the layers lie, `PLYFS_TEST_SKIPS` names a file that collects the tests that do not apply.

pub mod acl;
mod archive;
pub mod disk;
pub mod fixture;
pub mod mounted;
pub mod ops;
pub mod run;
pub mod strace;
pub mod tree;

pub use fixture::Fixture;
pub use mounted::Mounted;
pub(crate) use run::requires;
pub use run::{
    as_member, as_user, deviates, has_index, has_metacopy, has_origins, has_redirects, is_kernel,
    is_root, runs_with,
};
