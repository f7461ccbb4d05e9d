//! A full filesystem, and what it leaves behind.

use rustix::io::Errno;

use crate::support::fixture::run;
use crate::support::mounted::Mounted;
use crate::support::run::{Privilege, comes_true, privilege};
use crate::support::tree::pattern;
use crate::support::{Fixture, is_root, requires};

const NO_MOUNTS: &str = "an ordinary user cannot mount a small filesystem";

fn errno<T>(result: std::io::Result<T>) -> Option<Errno> {
    result.err().and_then(|error| Errno::from_io_error(&error))
}

fn free_blocks_and_inodes(fs: &Mounted) -> (u64, u64) {
    let free = rustix::fs::statvfs(fs.upper("")).unwrap();
    (free.f_bfree, free.f_ffree)
}

/// What was deleted frees its space, on the kernel's overlayfs as well.
#[track_caller]
fn assert_gives_back(fs: &Mounted, free: (u64, u64)) {
    comes_true(|| free_blocks_and_inodes(fs) == free);
    assert_eq!(free_blocks_and_inodes(fs), free);
}

#[test]
fn a_copy_up_without_space_is_enospc_and_leaves_nothing() {
    requires!(privilege() != Privilege::User, NO_MOUNTS);
    let mut fs = Fixture::new()
        .lower("big pattern=5000000; small 's'")
        .upper_on("tmpfs:size=1m")
        .mount();
    assert_eq!(
        errno(
            std::fs::OpenOptions::new()
                .append(true)
                .open(fs.path("big"))
                .and_then(|mut file| { std::io::Write::write_all(&mut file, b"+") })
        ),
        Some(Errno::NOSPC)
    );
    assert_eq!(
        rustix::fs::chmod(fs.path("big"), 0o600.into()),
        Err(Errno::NOSPC)
    );
    fs.assert_merged("big pattern=5000000 0644; small 's'");
    fs.append("small", "+");
    fs.write("new", "n");
    fs.unlink("big");
    fs.assert_merged("small 's+'; new 'n'");
    fs.umount();
    fs.assert_upper("big whiteout; small 's+'; new 'n'");
    assert!(fs.temporaries().is_empty());
}

#[test]
fn a_copy_up_beyond_a_quota_is_edquot_and_leaves_nothing() {
    requires!(is_root(), "only root sets quotas");
    let mut fs = Fixture::new()
        .lower("big pattern=5000000; small 's'")
        .upper_on("btrfs:114m")
        .mount();
    let rw = fs.aside("rw");
    let rw = rw.to_str().unwrap();
    run("btrfs", &["quota", "enable", rw]);
    run("btrfs", &["qgroup", "limit", "2M", "0/5", rw]);
    let mode = rustix::fs::chmod(fs.path("big"), 0o600.into());
    assert_eq!(mode, Err(Errno::DQUOT));
    assert_eq!(
        errno(std::fs::write(fs.path("new"), pattern(0, 5_000_000))),
        Some(Errno::DQUOT)
    );
    fs.unlink("new");
    // btrfs gives the space of a deleted file back when the last user of it has let go: some time.
    run("btrfs", &["qgroup", "limit", "none", "0/5", rw]);
    fs.append("small", "+");
    fs.assert_merged("big pattern=5000000 0644; small 's+'");
    fs.umount();
    fs.assert_upper("small 's+'");
    assert!(fs.temporaries().is_empty());
}

#[test]
fn a_write_without_space_is_enospc_and_the_file_keeps_what_was_written() {
    requires!(privilege() != Privilege::User, NO_MOUNTS);
    let fs = Fixture::new()
        .lower("f 'x'")
        .upper_on("tmpfs:size=256k")
        .mount();
    let free = free_blocks_and_inodes(&fs);
    assert_eq!(
        errno(std::fs::write(fs.path("new"), pattern(0, 1_000_000))),
        Some(Errno::NOSPC)
    );
    let written = fs.read("new");
    assert!(written.len() < 300_000 && written == pattern(0, written.len()));
    fs.unlink("new");
    assert_gives_back(&fs, free);
    fs.append("f", "+");
    fs.assert_merged("f 'x+'");
}

#[test]
fn creation_without_inodes_is_enospc_and_the_mount_goes_on() {
    requires!(privilege() != Privilege::User, NO_MOUNTS);
    let fs = Fixture::new()
        .lower("f 'x'; d/g 'y'")
        .upper_on("tmpfs:nr_inodes=20")
        .mount();
    let free = free_blocks_and_inodes(&fs);
    let mut made = 0;
    while let Ok(file) = std::fs::File::create_new(fs.path(format!("new{made}"))) {
        drop(file);
        made += 1;
        assert!(made < 20);
    }
    assert_eq!(
        errno(std::fs::File::create_new(fs.path("more"))),
        Some(Errno::NOSPC)
    );
    assert_eq!(
        rustix::fs::mkdir(fs.path("more"), 0o755.into()),
        Err(Errno::NOSPC)
    );
    assert_eq!(
        rustix::fs::chmod(fs.path("d/g"), 0o600.into()),
        Err(Errno::NOSPC)
    );
    assert_eq!(fs.text("d/g"), "y");
    for number in 0..made {
        fs.unlink(format!("new{number}"));
    }
    assert_gives_back(&fs, free);
    fs.append("d/g", "+");
    fs.assert_merged("f 'x'; d/g 'y+'");
}

#[test]
fn an_upper_that_became_read_only_answers_erofs_and_reading_goes_on() {
    requires!(is_root(), "only root remounts a filesystem read-only");
    let fs = Fixture::new()
        .lower("f 'x'")
        .upper("u 'u'")
        .upper_on("tmpfs:size=1m")
        .mount();
    let rw = fs.aside("rw");
    run("mount", &["-o", "remount,ro", rw.to_str().unwrap()]);
    let result = errno(std::fs::write(fs.path("new"), "n"));
    let reading = (fs.text("f"), fs.text("u"));
    run("mount", &["-o", "remount,rw", rw.to_str().unwrap()]);
    assert_eq!(result, Some(Errno::ROFS));
    assert_eq!(reading, ("x".to_owned(), "u".to_owned()));
    fs.write("new", "n");
    fs.assert_merged("f 'x'; u 'u'; new 'n'");
}

#[test]
fn a_file_size_limit_of_the_caller_is_efbig() {
    let fs = Fixture::new().lower("f 'x'").mount();
    let answer = fs.sh(
        "(ulimit -f 8; trap '' XFSZ; head -c 100000 /dev/zero > new 2>/dev/null || echo failed)",
    );
    assert_eq!(answer, "failed");
    assert!(fs.stat("new").st_size <= 8192);
}
