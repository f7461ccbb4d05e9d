//! Holes: fallocate(2), `SEEK_HOLE` and `SEEK_DATA`. What the filesystem below cannot do is no fault of
//! the union, so the same calls are made on a plain file beside the layers.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;

use crate::support::tree::pattern;
use crate::support::{Fixture, deviates};

const SIZE: usize = 1 << 20;

fn plain(path: &Path) -> File {
    std::fs::write(path, pattern(0, SIZE)).unwrap();
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap()
}

/// Makes the same call on a lower file, an upper file and a plain one; all must come out alike.
fn same_as_plain(flags: FallocateFlags, offset: u64, length: u64) {
    let mut fs = Fixture::new()
        .lower("low pattern=1048576")
        .upper("up pattern=1048576")
        .mount();
    let file = plain(&fs.aside("plain"));
    let expected = fallocate(&file, flags, offset, length);
    for name in ["low", "up"] {
        assert_eq!(
            fallocate(fs.open_rw(name), flags, offset, length),
            expected,
            "{name}"
        );
    }
    let plain = std::fs::read(fs.aside("plain")).unwrap();
    let blocks = file
        .metadata()
        .map(|meta| std::os::unix::fs::MetadataExt::blocks(&meta))
        .unwrap();
    for name in ["low", "up"] {
        assert!(fs.read(name) == plain, "{name} in the merged view");
    }
    fs.remount();
    for name in ["low", "up"] {
        assert!(fs.read(name) == plain, "{name} after the remount");
        if name == "up" || expected.is_ok() {
            let found = rustix::fs::stat(fs.upper(name)).unwrap().st_blocks;
            assert!(
                found.abs_diff(i64::try_from(blocks).unwrap()) < 600,
                "{name}: {found}, {blocks}"
            );
        }
    }
}

#[test]
fn allocation_extends_a_file() {
    same_as_plain(FallocateFlags::empty(), SIZE as u64 - 10, 5000);
}

#[test]
fn allocation_may_keep_the_size() {
    same_as_plain(FallocateFlags::KEEP_SIZE, SIZE as u64, 1 << 20);
}

#[test]
fn punching_a_hole_gives_zeros_and_frees_blocks() {
    same_as_plain(
        FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
        65_536,
        524_288,
    );
}

#[test]
fn a_hole_that_is_not_aligned_gives_exactly_its_bytes() {
    same_as_plain(
        FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
        1001,
        20_003,
    );
}

#[test]
fn zeroing_a_range_gives_zeros() {
    same_as_plain(FallocateFlags::ZERO_RANGE, 1001, 100_003);
}

#[test]
fn collapsing_and_inserting_a_range_is_done_or_refused() {
    let fs = Fixture::new().lower("f pattern=1048576").mount();
    for flags in [FallocateFlags::COLLAPSE_RANGE, FallocateFlags::INSERT_RANGE] {
        let expected = fallocate(plain(&fs.aside("plain")), flags, 65_536, 65_536);
        fs.write("f", pattern(0, SIZE));
        let result = fallocate(fs.open_rw("f"), flags, 65_536, 65_536);
        if deviates("the kernel passes neither to a FUSE filesystem") {
            assert_eq!(result, Err(Errno::OPNOTSUPP));
            assert!(fs.read("f") == pattern(0, SIZE));
        } else {
            assert_eq!(result, expected);
            assert!(fs.read("f") == std::fs::read(fs.aside("plain")).unwrap());
        }
    }
}

#[test]
fn allocation_without_write_permission_of_the_descriptor_is_ebadf() {
    let fs = Fixture::new().lower("f 'x'").mount();
    let result = fallocate(fs.open("f"), FallocateFlags::empty(), 0, 100);
    assert_eq!(result, Err(Errno::BADF));
    fs.assert_upper("");
}

/// The offsets of data and hole from each of some offsets.
fn map(file: &File) -> Vec<(Result<u64, Errno>, Result<u64, Errno>)> {
    let offsets = [0, 5000, 1 << 20, 3 << 20, (4 << 20) - 1, 4 << 20, 5 << 20];
    let find = |offset| {
        (
            seek(file, SeekFrom::Data(offset)),
            seek(file, SeekFrom::Hole(offset)),
        )
    };
    offsets.map(find).to_vec()
}

fn make_islands(path: &Path) {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .unwrap();
    file.set_len(4 << 20).unwrap();
    file.write_all_at(&[1; 4096], 1 << 20).unwrap();
    file.write_all_at(&[2; 8192], 3 << 20).unwrap();
    file.sync_all().unwrap();
}

#[test]
fn holes_and_data_of_lower_and_upper_files_are_found() {
    let mut fs = Fixture::new()
        .lower("low")
        .upper("up")
        .lowers_change()
        .mount();
    fs.umount();
    make_islands(&fs.lower(0, "low"));
    make_islands(&fs.upper("up"));
    make_islands(&fs.aside("plain"));
    fs.mount().unwrap();
    let expected = map(&File::open(fs.aside("plain")).unwrap());
    assert_eq!(expected[6], (Err(Errno::NXIO), Err(Errno::NXIO)));
    for name in ["low", "up"] {
        assert_eq!(map(&fs.open(name)), expected, "{name}");
    }
    fs.chmod("low", 0o600);
    fs.umount();
    let blocks = rustix::fs::stat(fs.upper("low")).unwrap().st_blocks;
    fs.mount().unwrap();
    if deviates("holes are copied exactly; the kernel looks for them once in a mebibyte") {
        assert_eq!(map(&fs.open("low")), expected, "after the copy-up");
    } else {
        assert!(blocks < 5000, "{blocks} of 8192 blocks");
    }
}

#[test]
fn holes_made_through_the_mount_are_holes() {
    let mut fs = Fixture::new().lower("").mount();
    make_islands(&fs.path("f"));
    make_islands(&fs.aside("plain"));
    let expected = map(&File::open(fs.aside("plain")).unwrap());
    assert_eq!(map(&fs.open("f")), expected);
    fs.remount();
    assert_eq!(map(&fs.open("f")), expected);
    assert!(fs.stat("f").st_blocks < 200);
}
