//! Any bytes as a tar: an error or an index all of which can be asked; never a panic, never an index that is larger
//! than the tar can justify.
#![no_main]

use std::io::Write;

use libfuzzer_sys::fuzz_target;
use plyfs::layer::archive::{Index, Indexer, Limits};

/// Sets the checksum of every block that says it is a header: most inputs would end there.
fn with_checksums(bytes: &[u8]) -> Vec<u8> {
    let mut tar = bytes.to_vec();
    for block in tar
        .chunks_exact_mut(512)
        .filter(|block| &block[257..262] == b"ustar")
    {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    tar
}

fn ask_everything(index: &Index) {
    index.verify().expect("what was just built is whole");
    for number in 0..index.inodes() {
        let inode = index.inode(number).expect("every inode can be read");
        for entry in index.list(&inode).into_iter().flatten() {
            let entry = entry.expect("every name can be read");
            assert_eq!(index.find(&inode, entry.name), Ok(Some(entry)));
            assert!(!entry.name.is_empty() && !entry.name.contains(&b'/'));
        }
        assert!(index.xattrs(&inode).all(|(name, _)| !name.is_empty()));
        _ = index.target(&inode);
    }
}

fuzz_target!(|bytes: &[u8]| {
    let tar = with_checksums(bytes);
    let mut indexer = Indexer::new(Limits::default());
    let written = indexer.write_all(&tar);
    match indexer.finish() {
        Ok(index) => {
            assert!(written.is_ok());
            ask_everything(&index);
            // A path is 64 KiB at most, and every two bytes of it can be a directory.
            assert!(index.bytes().len() < 200 * (tar.len() + 1024));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
