//! The binary: everything is in the library's [`plyfs::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    plyfs::cli::main(std::env::args_os().collect())
}
