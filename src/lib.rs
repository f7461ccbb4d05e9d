//! plyfs: a union filesystem in userspace.

pub mod cli;
pub mod fuse;
pub mod layer;
pub mod overlay;
