//! No operation changes a lower layer: content, metadata, times (also ctime), link counts. Every
//! fixture of this suite is compared at its end; this test does a bit of everything at once.

use std::os::unix::fs::FileExt;

use rustix::fs::{CWD, FallocateFlags, RenameFlags, fallocate, renameat_with};

use crate::support::disk::fingerprint;
use crate::support::{Fixture, has_redirects};

const LOWER: &str = "a/f 'f' 0644 user.k='v'; a/g pattern=100000; a/h = a/f; a/l -> f; a/p fifo; a/s socket;
a/sub/deep/x 'x'; a/sub/deep/y 'y' 0400; b/f 'bf'; b/empty/; c/ 0700; c/z 'z' 04755 mtime=1000.5; ro/ 0555; ro/r 'r' 0444";

#[test]
fn a_mix_of_all_operations_leaves_every_lower_as_it_was() {
    let mut fs = Fixture::new()
        .lower(LOWER)
        .lower("a/below 'b'; b/f 'hidden'; d/e/f 'e'")
        .mount();
    let before = [fingerprint(&fs.lower(0, "")), fingerprint(&fs.lower(1, ""))];
    for round in 0..2 {
        let reader = fs.open("a/g");
        fs.append("a/f", "+");
        fs.write_at("a/g", 50_000, b"changed");
        fs.truncate("a/below", 0);
        fallocate(fs.open_rw("a/g"), FallocateFlags::empty(), 0, 200_000).unwrap();
        let mut bytes = [0; 7];
        reader.read_exact_at(&mut bytes, 50_000).unwrap();
        fs.chmod("c/z", 0o600);
        fs.set_mtime("c", 5000, round);
        fs.set_xattr("a/sub/deep/x", "user.new", "n");
        rustix::fs::lremovexattr(fs.path("a/h"), "user.k").ok();
        fs.link("b/f", "b/linked");
        fs.rename("b/f", "b/renamed");
        fs.unlink("b/linked");
        fs.rename("b/renamed", "b/f");
        fs.sh("cp -a a copy; rm -r copy; touch ro/r; ls -laR . > /dev/null; cat c/z > /dev/null");
        renameat_with(
            CWD,
            fs.path("a/l"),
            CWD,
            fs.path("a/p"),
            RenameFlags::EXCHANGE,
        )
        .unwrap();
        if has_redirects() {
            fs.rename("a/sub", "moved");
            fs.rename("moved", "a/sub");
        }
        drop(reader);
        fs.sh("sync -f .");
        fs.remount();
    }
    fs.sh("chmod 755 ro; rm -rf a b c d ro");
    fs.assert_merged("");
    fs.umount();
    assert_eq!(
        [fingerprint(&fs.lower(0, "")), fingerprint(&fs.lower(1, ""))],
        before
    );
    fs.mount().unwrap();
}
