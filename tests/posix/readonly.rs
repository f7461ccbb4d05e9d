//! A stack without an upper.

use rustix::fs::{AtFlags, CWD, FileType, OFlags, RenameFlags, XattrFlags};
use rustix::io::Errno;

use crate::support::{Fixture, Mounted};

fn mount() -> Mounted {
    Fixture::new()
        .lower("f 'top'; d/a; l -> f")
        .lower("f 'bottom'; d/b; e/")
        .read_only()
        .mount()
}

#[test]
fn everything_is_seen_merged() {
    mount().assert_merged("f 'top'; d/a; d/b; e/; l -> f");
}

#[test]
fn one_lower_alone_can_be_mounted() {
    Fixture::new()
        .lower("f 'x'; d/e/g")
        .read_only()
        .mount()
        .assert_merged("f 'x'; d/e/g");
}

#[test]
fn every_change_is_erofs() {
    let fs = mount();
    let path = |name| fs.path(name);
    let create = OFlags::CREATE | OFlags::WRONLY;
    let none = AtFlags::empty();
    let refused = [
        rustix::fs::open(path("new"), create, 0o644.into()).map(drop),
        rustix::fs::open(path("f"), OFlags::WRONLY, 0.into()).map(drop),
        rustix::fs::open(path("f"), OFlags::RDONLY | OFlags::TRUNC, 0.into()).map(drop),
        rustix::fs::mkdir(path("new"), 0o755.into()),
        rustix::fs::unlink(path("f")),
        rustix::fs::rmdir(path("e")),
        rustix::fs::rename(path("f"), path("g")),
        rustix::fs::renameat_with(CWD, path("f"), CWD, path("l"), RenameFlags::EXCHANGE),
        rustix::fs::linkat(CWD, path("f"), CWD, path("g"), none),
        rustix::fs::symlink("t", path("new")),
        rustix::fs::mknodat(CWD, path("new"), FileType::Fifo, 0o644.into(), 0),
        rustix::fs::chmod(path("f"), 0o600.into()),
        rustix::fs::chown(path("f"), Some(rustix::process::getuid()), None),
        rustix::fs::lsetxattr(path("f"), "user.k", b"v", XattrFlags::empty()),
        rustix::fs::lremovexattr(path("f"), "user.k"),
    ];
    for (number, result) in refused.into_iter().enumerate() {
        assert_eq!(result, Err(Errno::ROFS), "operation {number}");
    }
    fs.assert_merged("f 'top'; d/a; d/b; e/; l -> f");
}

#[test]
fn creating_a_name_that_exists_is_eexist_as_on_every_read_only_filesystem() {
    let fs = mount();
    assert_eq!(
        rustix::fs::mkdir(fs.path("d"), 0o755.into()),
        Err(Errno::EXIST)
    );
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY;
    assert_eq!(
        rustix::fs::open(fs.path("f"), flags, 0.into()).err(),
        Some(Errno::EXIST)
    );
}

#[test]
fn access_for_writing_is_erofs() {
    let fs = mount();
    let access = rustix::fs::accessat(
        CWD,
        fs.path("f"),
        rustix::fs::Access::WRITE_OK,
        AtFlags::empty(),
    );
    assert_eq!(access, Err(Errno::ROFS));
}

#[test]
fn a_fifo_of_a_read_only_stack_can_be_used() {
    let fs = Fixture::new().lower("p fifo").read_only().mount();
    assert_eq!(fs.sh("cat p & echo through > p; wait"), "through");
}
