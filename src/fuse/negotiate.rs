//! What is agreed with the kernel at INIT. Each choice and its cost: the no-open mode needs `FUSE_ATOMIC_O_TRUNC`
//! absent (a truncating open comes as SETATTR); listings come with attributes always (`FUSE_DO_READDIRPLUS` without
//! `_AUTO`); `FUSE_HANDLE_KILLPRIV_V2` saves a GETXATTR before every write; no writeback cache.

use fuser::{InitFlags, KernelConfig};

/// Largest WRITE, and READ with large readahead, in bytes.
const MAX_WRITE: u32 = 1 << 20;
/// Requests the kernel may have in flight for readahead and the like.
const MAX_BACKGROUND: u16 = 64;

/// Asks for the capabilities we use; `acl`: POSIX ACLs are enforced; `layers_change`: cached data of a file whose time or
/// size changed is to be dropped; `passes`: the kernel reads and writes real files itself.
pub(super) fn negotiate(config: &mut KernelConfig, acl: bool, layers_change: bool, passes: bool) {
    let mut wanted = InitFlags::FUSE_DO_READDIRPLUS
        | InitFlags::FUSE_PARALLEL_DIROPS
        | InitFlags::FUSE_CACHE_SYMLINKS
        | InitFlags::FUSE_HANDLE_KILLPRIV_V2
        | InitFlags::FUSE_EXPLICIT_INVAL_DATA
        | InitFlags::FUSE_ASYNC_DIO
        | InitFlags::FUSE_NO_EXPORT_SUPPORT
        | InitFlags::FUSE_DONT_MASK;
    if layers_change {
        wanted.remove(InitFlags::FUSE_EXPLICIT_INVAL_DATA);
        wanted |= InitFlags::FUSE_AUTO_INVAL_DATA;
    }
    if passes {
        // Every open is answered, so truncation may come with it.
        wanted |= InitFlags::FUSE_PASSTHROUGH | InitFlags::FUSE_ATOMIC_O_TRUNC;
    }
    if acl {
        wanted |= InitFlags::FUSE_POSIX_ACL;
    }
    for capability in wanted.iter() {
        if config.add_capabilities(capability).is_err() {
            tracing::info!(?capability, "the kernel lacks a capability");
        }
    }
    if passes && let Err(most) = config.set_max_stack_depth(1) {
        tracing::warn!(most, "the kernel does not pass files through");
    }
    // The largest value the kernel takes is the answer to one that is too large.
    for refused in [
        config.set_max_write(MAX_WRITE).err(),
        config
            .set_max_readahead(MAX_WRITE)
            .err()
            .and_then(|most| config.set_max_readahead(most).err()),
        config
            .set_max_background(MAX_BACKGROUND)
            .err()
            .map(u32::from),
    ]
    .into_iter()
    .flatten()
    {
        tracing::debug!(refused, "a limit of the connection is smaller");
    }
}
