//! Killed at any system call: all or nothing, and the next mount goes on.
//!
//! Each test does a few operations on plyfs, which strace kills at its n-th call of each mutating system
//! call, for every n. After each kill the upper is mounted by the kernel and by plyfs, without cleaning by
//! hand. Both must show the tree before or after the operation that was under way, entirely; the workdir
//! holds nothing but the index, the rest of the operations succeeds, and the lowers are as they were.
//!
//! `PLYFS_CRASH_LONG=1` does it with all modes; `PLYFS_CRASH_DAEMON` names another daemon to try.

use crate::model::script::{Alloc, Build, Flag, How, Item, Node, Op};
use crate::support::run::{Privilege, is_kernel, is_root, privilege, requires};
use crate::support::strace::{Tracer, calls};
use crate::support::{Fixture, Mounted};

mod scene;

use scene::{Modes, survive};

/// The layers of all tests: two lowers that share directory `d`, an upper with something of its own.
fn layers() -> Vec<Build> {
    let object = |layer, path: &str, mode, item| Build {
        layer,
        path: path.to_string(),
        item,
        mode,
        owner: 1000,
    };
    let dir = |layer, path| object(layer, path, 0o750, Item::Dir { opaque: false });
    let file = |layer, path, fill| {
        object(
            layer,
            path,
            0o640,
            Item::File {
                hole: 0,
                len: 20_000,
                fill,
            },
        )
    };
    let xattr = |layer, path| {
        object(
            layer,
            path,
            0,
            Item::Xattr {
                name: "user.a",
                len: 20,
            },
        )
    };
    let link = |layer, path, to: &str| object(layer, path, 0, Item::Link { to: to.to_string() });
    vec![
        dir(2, "d"),
        file(2, "d/below", 1),
        dir(2, "d/sub"),
        file(2, "d/sub/deep", 2),
        dir(2, "empty"),
        file(2, "gone", 3),
        dir(1, "d"),
        xattr(1, "d"),
        file(1, "d/file", 4),
        xattr(1, "d/file"),
        file(1, "d/one", 5),
        link(1, "d/two", "d/one"),
        file(1, "top", 6),
        dir(0, "own"),
        file(0, "own/file", 7),
        object(0, "gone", 0, Item::Whiteout),
    ]
}

fn path(path: &str) -> String {
    path.to_string()
}

/// Whole pages: an unaligned write reaches a FUSE daemon as two requests.
fn write(file: &str) -> Op {
    Op::Write {
        path: path(file),
        how: How::At,
        off: 4096,
        len: 8192,
        fill: 9,
    }
}

fn chmod(file: &str, mode: u32) -> Op {
    Op::Chmod {
        path: path(file),
        mode,
    }
}

fn create(file: &str) -> Op {
    Op::Create {
        path: path(file),
        mode: 0o600,
        excl: true,
    }
}

fn mkdir(dir: &str) -> Op {
    Op::Mkdir {
        path: path(dir),
        mode: 0o700,
    }
}

fn unlink(file: &str) -> Op {
    Op::Unlink { path: path(file) }
}

fn rmdir(dir: &str) -> Op {
    Op::Rmdir { path: path(dir) }
}

fn rename(from: &str, to: &str, flag: Flag) -> Op {
    Op::Rename {
        from: path(from),
        to: path(to),
        flag,
    }
}

#[test]
fn a_kill_while_writing_a_lower_file_leaves_all_or_nothing() {
    requires!(is_root(), "strace and the kernel's index need root");
    survive(&layers(), &[write("d/file"), write("d/file")], Modes::Plain);
}

#[test]
fn a_kill_while_changing_metadata_of_a_lower_file_leaves_all_or_nothing() {
    requires!(is_root(), "strace and the kernel's index need root");
    let ops = [
        chmod("d/file", 0o4711),
        Op::Chown {
            path: path("top"),
            uid: Some(7),
            gid: Some(8),
        },
        Op::SetXattr {
            path: path("d/below"),
            name: "user.b",
            len: 30,
            fill: 1,
            flag: Flag::None,
        },
        Op::RemoveXattr {
            path: path("d/file"),
            name: "user.a",
        },
        Op::Utimes {
            path: path("d/sub/deep"),
            mtime: 77,
            nanos: 5,
        },
    ];
    survive(&layers(), &ops, Modes::Metacopy);
}

#[test]
fn a_kill_while_changing_metadata_of_a_lower_directory_leaves_all_or_nothing() {
    requires!(is_root(), "strace and the kernel's index need root");
    let ops = [
        chmod("d/sub", 0o2711),
        Op::Utimes {
            path: path("d"),
            mtime: 77,
            nanos: 5,
        },
    ];
    survive(&layers(), &ops, Modes::Plain);
}

#[test]
fn a_kill_while_data_follows_a_metadata_copy_leaves_all_or_nothing() {
    requires!(is_root(), "strace and the kernel's index need root");
    survive(
        &layers(),
        &[chmod("d/file", 0o600), write("d/file")],
        Modes::Metacopy,
    );
}

#[test]
fn a_kill_while_truncating_a_lower_file_leaves_all_or_nothing() {
    requires!(is_root(), "strace and the kernel's index need root");
    let ops = [
        Op::Truncate {
            path: path("d/file"),
            len: 100,
        },
        Op::Truncate {
            path: path("top"),
            len: 0,
        },
        Op::Fallocate {
            path: path("d/below"),
            alloc: Alloc::Extend,
            off: 0,
            len: 30_000,
        },
    ];
    survive(&layers(), &ops, Modes::Plain);
}

#[test]
fn a_kill_while_replacing_a_lower_file_leaves_all_or_nothing() {
    requires!(is_root(), "strace and the kernel's index need root");
    let ops = [
        create("d/new"),
        write("d/new"),
        rename("d/new", "d/file", Flag::None),
    ];
    survive(&layers(), &ops, Modes::Plain);
}

#[test]
fn a_kill_while_creating_in_lower_directories_leaves_all_or_nothing() {
    requires!(is_root(), "strace and the kernel's index need root");
    let ops = [
        create("d/sub/new"),
        mkdir("d/sub/dir"),
        Op::Symlink {
            target: path("deep"),
            path: path("d/sub/link"),
        },
        Op::Mknod {
            path: path("d/sub/fifo"),
            node: Node::Fifo,
            mode: 0o604,
        },
        Op::SetAcl {
            path: path("d/sub/dir"),
            default: true,
            perm: 5,
        },
        create("d/sub/dir/inherits"),
    ];
    survive(&layers(), &ops, Modes::Plain);
}

#[test]
fn a_kill_while_removing_leaves_all_or_nothing() {
    requires!(is_root(), "strace and the kernel's index need root");
    let ops = [
        unlink("top"),
        unlink("d/sub/deep"),
        rmdir("d/sub"),
        rmdir("empty"),
        unlink("own/file"),
        rmdir("own"),
    ];
    survive(&layers(), &ops, Modes::Plain);
}

#[test]
fn a_kill_while_removing_a_merged_directory_leaves_all_or_nothing() {
    requires!(is_root(), "strace and the kernel's index need root");
    let mut ops: Vec<Op> = ["file", "below", "one", "two", "sub/deep"]
        .map(|name| unlink(&format!("d/{name}")))
        .to_vec();
    ops.extend([rmdir("d/sub"), rmdir("d"), mkdir("d"), create("d/file")]);
    survive(&layers(), &ops, Modes::Plain);
}

#[test]
fn a_kill_while_creating_over_a_whiteout_leaves_all_or_nothing() {
    requires!(is_root(), "strace and the kernel's index need root");
    let ops = [
        mkdir("gone"),
        rmdir("gone"),
        create("gone"),
        unlink("gone"),
        Op::Link {
            from: path("own/file"),
            to: path("gone"),
        },
        unlink("gone"),
        Op::Symlink {
            target: path("top"),
            path: path("gone"),
        },
    ];
    survive(&layers(), &ops, Modes::Plain);
}

#[test]
fn a_kill_while_renaming_directories_leaves_all_or_nothing() {
    requires!(is_root(), "strace and the kernel's index need root");
    let ops = [
        rename("d/sub", "moved", Flag::None),
        rename("d", "own/d", Flag::NoReplace),
        rename("moved", "empty", Flag::None),
        rename("own/d", "d", Flag::None),
    ];
    survive(&layers(), &ops, Modes::Plain);
}

#[test]
fn a_kill_while_renaming_files_leaves_all_or_nothing() {
    requires!(is_root(), "strace and the kernel's index need root");
    let ops = [
        rename("d/file", "moved", Flag::None),
        rename("top", "gone", Flag::NoReplace),
        rename("own/file", "d/below", Flag::None),
    ];
    survive(&layers(), &ops, Modes::Metacopy);
}

#[test]
fn a_kill_while_exchanging_leaves_all_or_nothing() {
    requires!(is_root(), "strace and the kernel's index need root");
    let ops = [
        rename("top", "d/file", Flag::Exchange),
        rename("own", "d", Flag::Exchange),
        rename("empty", "own/below", Flag::Exchange),
    ];
    survive(&layers(), &ops, Modes::Plain);
}

#[test]
fn a_kill_while_a_hard_linked_file_is_copied_up_leaves_all_or_nothing() {
    requires!(is_root(), "strace and the kernel's index need root");
    let ops = [
        write("d/one"),
        chmod("d/two", 0o600),
        unlink("d/one"),
        write("d/two"),
    ];
    survive(&layers(), &ops, Modes::Metacopy);
}

#[test]
fn a_kill_while_linking_lower_files_leaves_all_or_nothing() {
    requires!(is_root(), "strace and the kernel's index need root");
    let link = |from, to| Op::Link {
        from: path(from),
        to: path(to),
    };
    let ops = [
        link("top", "own/top"),
        link("d/two", "d/sub/three"),
        unlink("d/two"),
        unlink("d/one"),
    ];
    survive(&layers(), &ops, Modes::Metacopy);
}

#[test]
fn a_kill_while_an_ordinary_users_modes_are_widened_is_repaired_by_the_next_mount() {
    let user = privilege() == Privilege::User;
    requires!(user && !is_kernel(), "root needs no wider modes");
    let scope = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope");
    let may_attach = scope.map_or(true, |scope| scope.trim() == "0");
    requires!(may_attach, "this system lets nobody trace a daemon");
    let layer = "d/ 0555; d/sub/ 0555; d/sub/f 'f' 0444";
    let act = |fs: &Mounted| rustix::fs::chmod(fs.path("d/sub/f"), 0o440.into());
    let fs = Fixture::new().lower(layer).mount();
    let record = fs.aside("calls");
    let tracer = Tracer::attach(fs.daemon(), &record, None).unwrap();
    act(&fs).unwrap();
    tracer.detach().unwrap();
    let mut kills = Vec::new();
    for (call, count) in calls(&record) {
        if call.contains("chmod") {
            kills.extend((1..=count).map(|n| format!("{call}:signal=KILL:when={n}")));
        }
    }
    assert!(
        kills.len() >= 8,
        "modes are widened and put back more often than {kills:?}"
    );
    drop(fs);
    for inject in kills {
        let mut fs = Fixture::new().lower(layer).mount();
        let tracer = Tracer::attach(fs.daemon(), &fs.aside("calls"), Some(&inject)).unwrap();
        act(&fs).unwrap_err();
        tracer.finish().unwrap();
        fs.kill();
        fs.mount().unwrap();
        for dir in ["d", "d/sub"] {
            let found = rustix::fs::stat(fs.upper(dir)).map(|stat| stat.st_mode & 0o7777);
            assert!(
                found.is_err() || found == Ok(0o555),
                "{dir} after {inject}: {found:?}"
            );
        }
        act(&fs).unwrap();
        fs.assert_state(
            "d/ 0555; d/sub/ 0555; d/sub/f 'f' 0440",
            "d/ 0555; d/sub/ 0555; d/sub/f 'f' 0440",
        );
    }
}
