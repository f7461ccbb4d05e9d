//! Any bytes as the options of a mount: understood, or an error in one line.
#![no_main]

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Err(sentence) = plyfs::cli::check_options(OsStr::from_bytes(bytes)) {
        assert!(!sentence.is_empty() && !sentence.contains('\n'), "{sentence:?}");
    }
});
