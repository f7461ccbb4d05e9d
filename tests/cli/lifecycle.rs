//! From the mount that answers to the unmount that leaves nothing.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::Stdio;

use rustix::io::Errno;
use rustix::process::Signal;

use crate::support::requires;
use crate::support::run::{Privilege, comes_true, is_root, privilege};

use super::{Daemon, Place, assert_contains, fails, succeeds, text};

const IN_USE: i32 = 5;
const NOT_PLYFS: i32 = 8;

#[test]
fn mount_returns_when_the_view_answers_and_umount_when_the_upper_is_free() {
    let place = Place::new();
    // Any gap between "unmounted" and "released" would make the next mount fail.
    for round in 0..5 {
        place.mount(&[]);
        assert_eq!(
            fs::read_to_string(place.path("merged/file")).unwrap(),
            "from the lower"
        );
        fs::write(place.path("merged/new"), format!("round {round}")).unwrap();
        let daemon = place.daemon();
        assert_eq!(place.umount("merged"), "");
        assert!(!place.is_mounted());
        assert!(!daemon.proc("cwd").exists(), "the daemon outlives umount");
        let new = fs::read_to_string(place.path("upper/new")).unwrap();
        assert_eq!(new, format!("round {round}"));
    }
}

#[test]
fn both_spellings_of_layers_stack_in_the_order_given() {
    let place = Place::new();
    fs::create_dir(place.path("third")).unwrap();
    for (layer, text) in [("lower", "1"), ("below", "2"), ("third", "3")] {
        fs::write(place.path(layer).join("who"), text).unwrap();
    }
    fs::write(place.path("below/two"), "2").unwrap();
    fs::write(place.path("third/two"), "3").unwrap();
    place.done(&[
        "mount",
        "--lower",
        "lower",
        "-o",
        "lowerdir=below:third",
        "merged",
    ]);
    assert_eq!(fs::read_to_string(place.path("merged/who")).unwrap(), "1");
    assert_eq!(fs::read_to_string(place.path("merged/two")).unwrap(), "2");
    place.umount("merged");
    place.done(&[
        "mount",
        "-o",
        "lowerdir=third",
        "--lower",
        "below",
        "--lower",
        "lower",
        "merged",
    ]);
    assert_eq!(fs::read_to_string(place.path("merged/who")).unwrap(), "3");
}

#[test]
fn escaped_colons_and_commas_name_layers() {
    let place = Place::new();
    let odd = place.path("a:b,c");
    fs::create_dir(&odd).unwrap();
    fs::write(odd.join("odd"), "").unwrap();
    place.done(&["mount", "-o", r"lowerdir=a\:b\,c:lower", "merged"]);
    assert!(place.path("merged/odd").exists() && place.path("merged/file").exists());
    let lowers = &place.entry()["lowers"];
    assert_eq!(lowers[0], odd.to_str().unwrap());
}

#[test]
fn the_daemon_lets_go_of_terminal_directory_and_stdio() {
    let place = Place::new();
    // `output` ends only when nobody holds the other ends of the pipes.
    let mut mount = place.plyfs(["mount", "--lower", "lower", "merged"]);
    assert_eq!(succeeds(&mut mount), "");
    let daemon = place.daemon();
    assert_eq!(fs::read_link(daemon.proc("cwd")).unwrap(), Path::new("/"));
    for fd in 0..3 {
        let target = fs::read_link(daemon.proc(&format!("fd/{fd}"))).unwrap();
        assert_eq!(target, Path::new("/dev/null"), "fd {fd}");
    }
    let stat = fs::read_to_string(daemon.proc("stat")).unwrap();
    let session = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .nth(3)
        .unwrap();
    assert_eq!(
        session,
        daemon.pid.as_raw_nonzero().to_string(),
        "no session of its own"
    );
    assert_eq!(fs::read_to_string(daemon.proc("comm")).unwrap(), "plyfs\n");
}

#[test]
fn signals_unmount_cleanly() {
    let place = Place::new();
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        place.mount(&[]);
        let daemon = place.daemon();
        daemon.signal(signal);
        daemon.ended();
        assert!(!place.is_mounted(), "{signal:?}");
    }
}

#[test]
fn a_signal_detaches_a_busy_mount_which_serves_its_open_files_to_the_end() {
    let place = Place::new();
    place.mount(&[]);
    let daemon = place.daemon();
    let mut open = File::options()
        .read(true)
        .append(true)
        .open(place.path("merged/file"))
        .unwrap();
    daemon.signal(Signal::TERM);
    // The name goes at once, while the daemon stays.
    let mut log = String::new();
    while place.is_mounted() {
        std::thread::yield_now();
    }
    open.write_all(b" and later").unwrap();
    open.read_to_string(&mut log).unwrap();
    assert!(daemon.proc("cwd").exists());
    drop(open);
    daemon.ended();
    let upper = fs::read_to_string(place.path("upper/file")).unwrap();
    assert_eq!(upper, "from the lower and later");
}

#[test]
fn umount_of_a_busy_mount_is_refused_and_lazy_detaches_it() {
    let place = Place::new();
    place.mount(&[]);
    let mut open = File::open(place.path("merged/file")).unwrap();
    let sentence = fails(&mut place.plyfs(["umount", "merged"]), IN_USE);
    assert_contains(&sentence, "in use");
    assert_contains(&sentence, "umount -l");
    assert!(place.is_mounted());
    place.done(&["umount", "-l", "merged"]);
    assert!(!place.is_mounted());
    let mut content = String::new();
    open.read_to_string(&mut content).unwrap();
    assert_eq!(content, "from the lower");
}

#[test]
fn umount_touches_only_plyfs_mounts() {
    let place = Place::new();
    for path in ["merged", "absent", "/proc"] {
        let sentence = fails(&mut place.plyfs(["umount", path]), NOT_PLYFS);
        assert_contains(&sentence, &format!("{path} is not a plyfs mount"));
    }
}

#[test]
fn umount_takes_relative_paths_symlinks_and_the_topmost_of_two_mounts() {
    let helped = privilege() == Privilege::User;
    requires!(
        !helped,
        "fusermount3 cannot look at a mountpoint inside a user's mount"
    );
    let place = Place::new();
    std::os::unix::fs::symlink("merged", place.path("link")).unwrap();
    place.done(&["mount", "--lower", "lower", "merged"]);
    place.done(&["mount", "--lower", "below", "merged"]);
    assert!(place.path("merged/deep").exists());
    place.umount("link");
    assert!(place.path("merged/file").exists());
    place.umount("./merged/");
    assert!(!place.is_mounted());
}

#[test]
fn foreground_serves_until_unmounted_and_ends_well() {
    let place = Place::new();
    let args = ["mount", "--lower", "lower", "--foreground", "merged"];
    let mut child = place.plyfs(args).stderr(Stdio::piped()).spawn().unwrap();
    while !place.is_mounted() {
        assert!(
            child.try_wait().unwrap().is_none(),
            "it ended before it was mounted"
        );
        std::thread::yield_now();
    }
    let pid = place.entry()["pid"].as_u64().unwrap();
    assert_eq!(pid, u64::from(child.id()));
    place.umount("merged");
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", output.status);
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn debug_stays_in_the_foreground_and_tells_of_requests_on_stderr() {
    let place = Place::new();
    let args = ["mount", "--lower", "lower", "--debug", "merged"];
    let mut command = place.plyfs(args);
    let log = File::create(place.path("stderr")).unwrap();
    let mut child = command.stderr(log).spawn().unwrap();
    while !place.is_mounted() {
        assert!(
            child.try_wait().unwrap().is_none(),
            "it ended before it was mounted"
        );
        std::thread::yield_now();
    }
    assert!(!place.path("merged/absent").exists());
    place.umount("merged");
    assert!(child.wait().unwrap().success());
    let log = fs::read_to_string(place.path("stderr")).unwrap();
    assert_contains(&log, "DEBUG");
    assert_contains(&log, "absent");
}

#[test]
fn log_appends_to_a_file() {
    let place = Place::new();
    fs::write(place.path("log"), "before\n").unwrap();
    for _ in 0..2 {
        place.mount(&["--log", "log"]);
        place.umount("merged");
    }
    let log = fs::read_to_string(place.path("log")).unwrap();
    assert!(log.starts_with("before\n"), "{log}");
    let mounted = log
        .lines()
        .filter(|line| line.contains("INFO") && line.contains("mounted on"));
    assert_eq!(mounted.count(), 2, "{log}");
}

#[test]
fn an_ephemeral_upper_takes_changes_and_disappears() {
    let place = Place::new();
    let end: [fn(&Place, &Daemon); 2] = [
        |place, _| drop(place.umount("merged")),
        |_, daemon| daemon.signal(Signal::TERM),
    ];
    for end in end {
        place.done(&["mount", "--lower", "lower", "--ephemeral", "merged"]);
        fs::write(place.path("merged/file"), "changed").unwrap();
        fs::create_dir_all(place.path("merged/new/dir")).unwrap();
        assert_eq!(place.entry()["ephemeral"], true);
        assert_eq!(place.temporaries().len(), 1);
        let daemon = place.daemon();
        end(&place, &daemon);
        daemon.ended();
        assert!(!place.is_mounted());
        assert_eq!(place.temporaries(), Vec::<std::path::PathBuf>::new());
        assert_eq!(
            fs::read_to_string(place.path("lower/file")).unwrap(),
            "from the lower"
        );
        assert!(!place.path("lower/new").exists());
    }
}

#[test]
fn a_mount_may_cover_one_of_its_own_layers() {
    let place = Place::new();
    place.done(&["mount", "--lower", "lower", "--lower", "merged", "merged"]);
    assert_eq!(
        fs::read_to_string(place.path("merged/file")).unwrap(),
        "from the lower"
    );
}

#[test]
fn auto_unmount_leaves_no_dead_mount_when_the_daemon_is_killed() {
    let place = Place::new();
    place.mount(&["--auto-unmount"]);
    assert_eq!(
        fs::read_to_string(place.path("merged/file")).unwrap(),
        "from the lower"
    );
    let daemon = place.daemon();
    daemon.signal(Signal::KILL);
    daemon.ended();
    while place.is_mounted() {
        std::thread::yield_now();
    }
}

/// A view of a whole tree keeps its changes somewhere in it.
#[test]
fn an_upper_and_a_workdir_inside_a_lower_show_as_empty_directories() {
    let place = Place::new();
    let mount = [
        "mount", "--lower", ".", "--lower", "below", "--upper", "upper", "--work", "work", "merged",
    ];
    let names = |path: &str| {
        let listed = fs::read_dir(place.path(path)).unwrap();
        let mut names: Vec<_> = listed.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    fs::create_dir(place.path("below/upper")).unwrap();
    fs::write(place.path("below/upper/deep"), "below").unwrap();
    fs::write(place.path("upper/before"), "x").unwrap();
    for _ in 0..2 {
        place.done(&mount);
        assert_eq!(fs::read(place.path("merged/before")).unwrap(), b"x");
        assert!(names("merged/work").is_empty() && names("merged/merged").is_empty());
        assert!(!place.path("merged/upper/before").exists());
        assert!(!place.path("merged/work/work").exists());
        fs::write(place.path("merged/lower/file"), "changed").unwrap();
        assert_eq!(
            fs::read(place.path("lower/file")).unwrap(),
            b"from the lower"
        );
        assert_eq!(
            fs::read(place.path("upper/lower/file")).unwrap(),
            b"changed"
        );
        // What lies below it in another layer is there.
        fs::write(place.path("merged/upper/inside"), "y").unwrap();
        assert_eq!(names("merged/upper"), ["deep", "inside"]);
        assert_eq!(fs::read(place.path("upper/upper/inside")).unwrap(), b"y");
        place.umount("merged");
    }
}

#[test]
fn what_lies_in_an_upper_inside_a_lower_is_no_change_of_the_tree() {
    let place = Place::new();
    for made in ["tree/in/upper", "tree/work"] {
        fs::create_dir_all(place.path(made)).unwrap();
    }
    fs::write(place.path("tree/file"), "f").unwrap();
    let mount = [
        "mount",
        "--lower",
        "tree",
        "--upper",
        "tree/in/upper",
        "--work",
        "tree/work",
        "merged",
    ];
    place.done(&mount);
    fs::write(place.path("merged/new"), "n").unwrap();
    fs::rename(place.path("merged/in"), place.path("merged/renamed")).unwrap();
    fs::write(place.path("merged/renamed/upper/inside"), "i").unwrap();
    let wanted = "A /new\nA /renamed\nA /renamed/upper\nA /renamed/upper/inside\nD /in\n";
    let changes = |tree| {
        let mut lines: Vec<_> = place
            .done(&["diff", tree])
            .lines()
            .map(str::to_owned)
            .collect();
        lines.retain(|line| !line.starts_with("C "));
        lines.sort();
        lines.join("\n") + "\n"
    };
    assert_eq!(changes("merged"), wanted);
    place.umount("merged");
    place.done(&mount);
    assert!(!place.path("merged/renamed/upper/new").exists());
    assert_eq!(changes("merged"), wanted);
    place.umount("merged");
}

#[test]
fn root_gets_a_disposable_view_of_the_whole_system() {
    requires!(is_root(), "files of root can be changed by root only");
    let place = Place::new();
    let script = r#"
        test -s merged/etc/passwd
        echo x >>merged/etc/passwd && touch "merged$PWD/new" && test -e "merged$PWD/new"
        test ! -e new
    "#;
    let before = fs::read("/etc/passwd").unwrap();
    place.done(&[
        "mount",
        "--lower",
        "/",
        "--ephemeral",
        "merged",
        "--",
        "sh",
        "-ec",
        script,
    ]);
    assert_eq!(fs::read("/etc/passwd").unwrap(), before);
}

/// An engine that stops a container detaches its mount where somebody is still in it, and has nothing left to unmount when
/// it starts the container again.
#[test]
fn an_engine_takes_the_upper_of_a_mount_that_was_detached_while_it_was_busy_and_of_no_other() {
    let place = Place::new();
    let options = "lowerdir=lower,upperdir=upper,workdir=work";
    let engine = |place: &Place, mountpoint| place.plyfs(["-o", options, mountpoint]);
    fs::create_dir(place.path("second")).unwrap();
    succeeds(&mut engine(&place, "merged"));
    fs::write(place.path("merged/new"), "written").unwrap();
    let first = place.daemon();
    let sentence = fails(&mut engine(&place, "second"), 5);
    assert_contains(&sentence, "in use");
    assert_eq!(
        fs::read_to_string(place.path("merged/new")).unwrap(),
        "written"
    );

    let mut busy = File::open(place.path("merged/new")).unwrap();
    place.done(&["umount", "-l", "merged"]);
    let mount = [
        "mount", "--lower", "lower", "--upper", "upper", "--work", "work", "merged",
    ];
    assert_contains(&fails(&mut place.plyfs(mount), 5), "in use");
    let mut content = String::new();
    busy.read_to_string(&mut content).unwrap();
    assert_eq!(content, "written");

    succeeds(&mut engine(&place, "merged"));
    first.ended();
    assert_eq!(
        fs::read_to_string(place.path("merged/new")).unwrap(),
        "written"
    );
    assert_eq!(rustix::fs::fstatvfs(&busy).err(), Some(Errno::NOTCONN));
    drop(busy);
    place.umount("merged");

    place.mount(&[]);
    let busy = File::open(place.path("merged/new")).unwrap();
    place.done(&["umount", "-l", "merged"]);
    let sentence = fails(&mut engine(&place, "merged"), 5);
    assert_contains(&sentence, "in use");
    assert_eq!(
        rustix::fs::fstatvfs(&busy).err(),
        None,
        "not one of an engine"
    );
}

/// Apptainer runs the program with `-f` in a mount namespace of the container, which nobody can enter any more once it was
/// killed.
#[test]
fn an_engine_takes_the_upper_of_a_mount_whose_caller_was_killed_if_nobody_else_sees_or_uses_it() {
    let place = Place::new();
    let options = "lowerdir=lower,upperdir=upper,workdir=work";
    let script = format!(
        "{} -f -o {options} merged & echo $!; read -r line; exec 3<merged/file; sleep 60 >/dev/null 2>&1 & echo $!; wait",
        env!("CARGO_BIN_EXE_plyfs")
    );
    let launch = || {
        let mut launcher = place
            .program("unshare", ["-Urm", "sh", "-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(launcher.stdout.take().unwrap()).lines();
        let daemon = Daemon::of(lines.next().unwrap().unwrap().parse().unwrap());
        let mounted = || {
            let mounts = fs::read_to_string(daemon.proc("mountinfo")).unwrap();
            mounts.contains(" - fuse.plyfs ")
        };
        assert!(comes_true(mounted), "it does not mount");
        (launcher, daemon, lines)
    };
    let mut engine = place.plyfs(["-o", options, "merged"]);

    let (mut launcher, daemon, _) = launch();
    assert_contains(&fails(&mut engine, IN_USE), "in use");
    launcher.kill().unwrap();
    launcher.wait().unwrap();
    succeeds(&mut engine);
    daemon.ended();
    assert!(place.is_mounted());
    place.umount("merged");

    let (mut launcher, daemon, mut lines) = launch();
    launcher.stdin.take().unwrap().write_all(b"\n").unwrap();
    let user = Daemon::of(lines.next().unwrap().unwrap().parse().unwrap());
    launcher.kill().unwrap();
    launcher.wait().unwrap();
    assert_contains(&fails(&mut engine, IN_USE), "in use");
    user.signal(Signal::KILL);
    user.ended();
    succeeds(&mut engine);
    daemon.ended();
    place.umount("merged");
}
