//! What is on disk: layers and their marks, the workdir, copying. No policy lives here; `overlay` decides.
//!
//! A lower layer ([`lower`]) has reading calls only. The upper ([`upper`]) is the one place with calls that
//! change something, and everything it makes appears complete: staged in the [`workdir`], then published by one
//! rename or link. Marks of all formats are in [`mark`]. Errors are the system's errno, unchanged.

pub mod acl;
pub mod archive;
pub mod at;
pub mod at_rest;
pub mod attr;
pub mod beneath;
pub mod capability;
pub mod content;
pub mod copy;
pub mod error;
pub mod fd;
pub mod file_flags;
pub mod handle;
mod holder;
pub mod ids;
pub mod io;
pub mod lower;
pub mod mark;
pub mod name;
mod open;
pub mod override_stat;
pub mod stack;
mod sys;
pub mod upper;
pub mod view;
mod widen;
pub mod workdir;

use rustix::io::Errno;

/// For steps whose failure changes nothing that was promised: logged, not returned.
pub fn best_effort(what: &str, result: Result<(), Errno>) {
    if let Err(error) = result {
        tracing::debug!(%error, "could not {what}");
    }
}

/// The system's words for an errno, as they appear behind a colon.
pub fn describe(error: Errno) -> String {
    let text = std::io::Error::from(error).to_string();
    let end = text.find(" (os error").unwrap_or(text.len());
    let mut words = text[..end].to_owned();
    if let Some(first) = words.get_mut(0..1) {
        first.make_ascii_lowercase();
    }
    words
}

/// User and group of files this process creates.
pub fn own_ids() -> (u32, u32) {
    (
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    )
}

/// To be called once by a process that serves a mount, before it starts threads.
pub fn tune_allocator() {
    sys::tune_allocator();
}

/// Gives up what would let root write beyond disk quotas and into space set aside for root: in a mount it is used for
/// others. As in the kernel's overlayfs; to be called once by a process that serves a mount, before it starts threads.
pub fn keep_to_quotas() {
    use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
    let dropped = capabilities(None).and_then(|mut held| {
        held.effective.remove(CapabilitySet::SYS_RESOURCE);
        set_capabilities(None, held)
    });
    best_effort("give up CAP_SYS_RESOURCE", dropped);
}

/// Resident memory of this process in bytes, 0 if the system does not tell.
pub fn resident_memory() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse().ok())
        .unwrap_or(0);
    pages * rustix::param::page_size() as u64
}
