//! Bad input: one sentence each, the documented code, nothing created, nothing left mounted.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::process::Signal;

use super::{PLYFS, Place, assert_contains, fails, succeeds};
use crate::support::requires;
use crate::support::run::is_root;

const USAGE: i32 = 2;
const LOWER: i32 = 3;
const UPPER: i32 = 4;
const IN_USE: i32 = 5;
const MOUNTPOINT: i32 = 6;
const FUSE: i32 = 7;

/// Asks for a mount that must be refused with `code`; the sentence.
#[track_caller]
fn refused(place: &Place, code: i32, args: &[&str]) -> String {
    let sentence = fails(place.plyfs(["mount"]).args(args), code);
    assert!(
        !place.is_mounted(),
        "mounted although it was refused: {sentence}"
    );
    for dir in ["upper", "work"] {
        let left = fs::read_dir(place.path(dir)).unwrap().count();
        assert_eq!(left, 0, "something was made in {dir} although: {sentence}");
    }
    sentence
}

#[test]
fn a_missing_lower_layer_is_named() {
    let place = Place::new();
    let sentence = refused(
        &place,
        LOWER,
        &["--lower", "lower", "--lower", "absent", "merged"],
    );
    assert_contains(&sentence, "absent");
}

#[test]
fn a_mountpoint_without_layers_is_not_taken_for_an_image() {
    let place = Place::new();
    for args in [
        &["--upper", "upper", "--work", "work", "merged"][..],
        &["-o", "upperdir=upper,workdir=work", "merged"],
        &["--ephemeral", "merged"],
    ] {
        assert_contains(&refused(&place, USAGE, args), "no lower layer is given");
    }
}

#[test]
fn a_lower_layer_that_is_a_file_is_named() {
    let place = Place::new();
    let sentence = refused(&place, LOWER, &["--lower", "lower/file", "merged"]);
    assert_contains(&sentence, "lower/file");
}

#[test]
fn a_lower_layer_that_cannot_be_read_is_named() {
    requires!(is_root(), "only root can become another user");
    let place = Place::new();
    fs::set_permissions(place.path("below"), fs::Permissions::from_mode(0o700)).unwrap();
    let program = place.path("plyfs");
    fs::copy(PLYFS, &program).unwrap();
    let args = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    let mut command = place.program("setpriv", args);
    command
        .arg(program)
        .args(["mount", "--lower", "lower", "--lower", "below", "merged"]);
    let sentence = fails(&mut command, LOWER);
    assert_contains(&sentence, "below");
    assert!(!place.is_mounted());
}

#[test]
fn an_upper_that_is_missing_or_a_file_is_named() {
    let place = Place::new();
    for upper in ["absent", "lower/file"] {
        let sentence = refused(
            &place,
            UPPER,
            &[
                "--lower", "lower", "--upper", upper, "--work", "work", "merged",
            ],
        );
        assert_contains(&sentence, upper);
    }
    assert!(!place.path("absent").exists());
}

#[test]
fn an_upper_that_is_a_lower_layer_is_refused() {
    let place = Place::new();
    for (upper, work) in [("lower", "work"), ("upper", "lower")] {
        let args = [
            "--lower", "lower", "--upper", upper, "--work", work, "merged",
        ];
        let sentence = refused(&place, UPPER, &args);
        assert_contains(&sentence, "lower layer");
    }
}

#[test]
fn a_workdir_inside_the_upper_is_refused() {
    let place = Place::new();
    let work = place.path("upper/work");
    fs::create_dir(&work).unwrap();
    let args = [
        "mount",
        "--lower",
        "lower",
        "--upper",
        "upper",
        "--work",
        "upper/work",
        "merged",
    ];
    let sentence = fails(&mut place.plyfs(args), UPPER);
    assert_contains(&sentence, "upper/work");
    assert_eq!(fs::read_dir(work).unwrap().count(), 0);
    assert!(!place.is_mounted());
}

#[test]
fn a_workdir_on_another_filesystem_is_refused() {
    let place = Place::new();
    let device = |path: &Path| fs::metadata(path).unwrap().dev();
    let candidates = ["/dev/shm", "/tmp", "/var/tmp"].map(Path::new);
    let here = device(&place.path("upper"));
    let elsewhere = candidates
        .into_iter()
        .find(|dir| dir.is_dir() && device(dir) != here);
    let elsewhere = elsewhere.expect("/dev/shm, /tmp and /var/tmp are one filesystem");
    let work = tempfile::tempdir_in(elsewhere).unwrap();
    let work_path = work.path().to_str().unwrap();
    let args = [
        "--lower", "lower", "--upper", "upper", "--work", work_path, "merged",
    ];
    let sentence = refused(&place, UPPER, &args);
    assert_contains(&sentence, work_path);
    assert_eq!(fs::read_dir(work.path()).unwrap().count(), 0);
}

/// A union passes on neither whiteout devices nor `.wh.` files, so a deletion could not be recorded.
#[test]
fn an_upper_on_another_union_is_refused() {
    let place = Place::new();
    place.done(&[
        "mount", "--lower", "lower", "--upper", "upper", "--work", "work", "merged",
    ]);
    for dir in ["u", "w"] {
        fs::create_dir(place.path("merged").join(dir)).unwrap();
    }
    let inner = [
        "--lower", "below", "--upper", "merged/u", "--work", "merged/w", "tmp",
    ];
    let sentence = fails(place.plyfs(["mount"]).args(inner), UPPER);
    assert_contains(&sentence, "merged/u");
    assert_contains(&sentence, "another filesystem");
    assert_eq!(fs::read_dir(place.path("tmp")).unwrap().count(), 0);
    place.umount("merged");
}

#[test]
fn an_upper_in_use_by_another_mount_is_refused() {
    let place = Place::new();
    place.mount(&[]);
    fs::create_dir(place.path("second")).unwrap();
    let mut args = vec![
        "mount", "--lower", "lower", "--upper", "upper", "--work", "work",
    ];
    args.push("second");
    let sentence = fails(&mut place.plyfs(args), IN_USE);
    assert_contains(&sentence, "in use");
    assert_eq!(
        fs::read_to_string(place.path("merged/file")).unwrap(),
        "from the lower"
    );
    assert_eq!(fs::read_dir(place.path("second")).unwrap().count(), 0);
}

#[test]
fn an_upper_left_volatile_by_a_crash_is_refused() {
    let place = Place::new();
    place.mount(&["-o", "volatile"]);
    let daemon = place.daemon();
    daemon.signal(Signal::KILL);
    daemon.ended();
    place.done(&["umount", "-l", "merged"]);
    let args = [
        "mount", "--lower", "lower", "--upper", "upper", "--work", "work", "merged",
    ];
    let sentence = fails(&mut place.plyfs(args), IN_USE);
    assert_contains(&sentence, "volatile");
    assert!(!place.is_mounted());
}

#[test]
fn a_mountpoint_that_is_missing_or_a_file_is_named() {
    let place = Place::new();
    for mountpoint in ["absent", "lower/file"] {
        let sentence = refused(&place, MOUNTPOINT, &["--lower", "lower", mountpoint]);
        assert_contains(&sentence, mountpoint);
    }
    assert!(!place.path("absent").exists());
}

#[test]
fn a_mount_that_mount_fuse_made_itself_is_refused() {
    let place = Place::new();
    let sentence = refused(&place, MOUNTPOINT, &["--lower", "lower", "/dev/fd/5"]);
    assert_contains(&sentence, "drop_privileges");
}

#[test]
fn what_a_killed_mount_left_is_named_as_mountpoint_and_as_layer() {
    let place = Place::new();
    fs::create_dir(place.path("other")).unwrap();
    place.mount(&[]);
    // The kernel knows it well by now.
    assert_eq!(fs::read_dir(place.path("merged")).unwrap().count(), 1);
    let daemon = place.daemon();
    daemon.signal(Signal::KILL);
    daemon.ended();
    for (args, code) in [
        (["--lower", "lower", "merged"], MOUNTPOINT),
        (["--lower", "merged", "other"], LOWER),
    ] {
        let sentence = fails(place.plyfs(["mount"]).args(args), code);
        assert_contains(&sentence, "merged is a dead mount:");
    }
    place.umount("merged");
    assert!(!place.is_mounted());
    place.mount(&[]);
}

#[test]
fn a_mountpoint_inside_the_upper_is_refused() {
    let place = Place::new();
    fs::create_dir(place.path("upper/inner")).unwrap();
    let args = [
        "mount",
        "--lower",
        "lower",
        "--upper",
        "upper",
        "--work",
        "work",
        "upper/inner",
    ];
    let sentence = fails(&mut place.plyfs(args), MOUNTPOINT);
    assert_contains(&sentence, "upper/inner");
}

#[test]
fn without_dev_fuse_the_sentence_says_so() {
    requires!(is_root(), "only root can hide /dev");
    let place = Place::new();
    let script = "mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && exec \"$0\" \"$@\"";
    let mut command = place.program("unshare", ["-m", "sh", "-c", script, PLYFS, "mount"]);
    command.args(["--lower", "lower", "merged"]);
    let sentence = fails(&mut command, FUSE);
    assert_contains(&sentence, "/dev/fuse");
}

#[test]
fn an_unknown_option_is_named_with_the_nearest_one() {
    let place = Place::new();
    let sentence = refused(
        &place,
        USAGE,
        &["--lower", "lower", "-o", "metacpy=on", "merged"],
    );
    assert_eq!(
        sentence,
        "unknown option 'metacpy'; did you mean 'metacopy'?"
    );
}

#[test]
fn malformed_and_unsupported_options_are_refused_with_the_reason() {
    let place = Place::new();
    for (option, reason) in [
        ("timeout=soon", "'timeout' needs a number"),
        ("uidmapping=1:2", "HOST:INSIDE:LEN"),
        ("lowerdir=a::b", "data-only"),
        ("nfs_export=on", "cannot be exported"),
        ("upperdir=upper", "upperdir needs workdir"),
        ("context=\"a,b", "not closed"),
    ] {
        let sentence = refused(&place, USAGE, &["--lower", "lower", "-o", option, "merged"]);
        assert_contains(&sentence, reason);
    }
}

#[test]
fn incomplete_command_lines_are_refused() {
    let place = Place::new();
    assert_contains(&refused(&place, USAGE, &[]), "MNT");
    assert_contains(&refused(&place, USAGE, &["--lower", "lower"]), "MNT");
    assert_contains(
        &refused(&place, USAGE, &["--lowre", "lower", "merged"]),
        "'--lower'",
    );
    let ephemeral = [
        "--lower",
        "lower",
        "--ephemeral",
        "--upper",
        "upper",
        "--work",
        "work",
        "merged",
    ];
    assert_contains(&refused(&place, USAGE, &ephemeral), "upper of its own");
    assert_contains(&fails(&mut place.plyfs::<&str>([]), USAGE), "no subcommand");
    assert_contains(&fails(&mut place.plyfs(["mont"]), USAGE), "'mount'");
}

#[test]
fn a_log_file_that_cannot_be_written_is_named() {
    let place = Place::new();
    let sentence = refused(
        &place,
        1,
        &["--lower", "lower", "--log", "absent/log", "merged"],
    );
    assert_contains(&sentence, "absent/log");
}

#[test]
fn an_ephemeral_upper_that_cannot_be_made_is_refused_and_one_of_a_failed_mount_is_removed() {
    let place = Place::new();
    let args = ["mount", "--lower", "lower", "--ephemeral", "merged"];
    let sentence = fails(place.plyfs(args).env("TMPDIR", "absent"), UPPER);
    assert_contains(&sentence, "absent");
    refused(
        &place,
        LOWER,
        &["--lower", "absent", "--ephemeral", "merged"],
    );
    assert!(place.temporaries().is_empty());
}

#[test]
fn help_documents_exit_codes_and_options() {
    let place = Place::new();
    let help = succeeds(&mut place.plyfs(["mount", "--help"]));
    for part in [
        "Exit codes:",
        "128+N",
        "redirect_dir=on|copy|off",
        "--ephemeral",
    ] {
        assert_contains(&help, part);
    }
    assert_contains(&place.done(&["--help"]), "Exit codes:");
    assert_eq!(
        place.done(&["--version"]),
        concat!("plyfs ", env!("CARGO_PKG_VERSION"), "\n")
    );
}

#[test]
fn a_layer_on_a_case_folding_directory_is_refused() {
    requires!(is_root(), "strace follows the mount as root");
    // Few kernels are built with case folding, so strace sets the flag in what the ioctl that reads it returns.
    for (code, what) in [(LOWER, "lower layer"), (UPPER, "upper"), (UPPER, "workdir")] {
        let place = Place::new();
        let dir = match what {
            "lower layer" => "lower",
            "upper" => "upper",
            _ => "work",
        };
        let folding = place.path(dir);
        let mut mount = place.program("strace", ["-f", "-qq", "-o", "trace", "-P"]);
        mount
            .arg(&folding)
            .args([
                "-e",
                "trace=ioctl",
                "-e",
                "inject=ioctl:poke_exit=@arg3=00000040",
            ])
            .args([PLYFS, "mount", "--lower", "lower", "--upper", "upper"])
            .args(["--work", "work", "merged"]);
        let sentence = fails(&mut mount, code);
        let expected = format!("{what} {dir} folds upper and lower case");
        assert_contains(&sentence, &expected);
        assert!(!place.is_mounted());
        for dir in ["upper", "work"] {
            assert_eq!(fs::read_dir(place.path(dir)).unwrap().count(), 0);
        }
    }
}
