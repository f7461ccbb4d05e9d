//! The one integration test binary: the behaviour of the built `plyfs`, seen from outside.
#![expect(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking, reports what does not apply to the run, and shares within one crate"
)]

mod changes;
mod check;
mod cli;
mod convert;
mod crash;
mod faults;
mod hostile;
mod image;
mod interop;
mod model;
mod posix;
mod support;
mod tidy;
