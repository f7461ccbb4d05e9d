//! The FUSE side: decode a request, ask the overlay, reply. The only user of the crate `fuser`.

mod adapter;
mod convert;
mod crowd;
pub mod first_open;
mod ioctl;
pub mod mount;
mod negotiate;
pub mod passthrough;
mod poll;
mod pool;
mod requests;
mod seats;
pub mod session;
mod stats;
mod walker;
mod warmer;
