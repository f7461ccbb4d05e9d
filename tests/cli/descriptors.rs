//! A small limit of open files: caches go first, then EMFILE, and the mount goes on.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::process::Command;

use rustix::io::Errno;

use super::{Daemon, PLYFS, Place, succeeds};

const LIMIT: usize = 400;
/// What a mount may need for itself and leaves free for the work of others.
const RESERVED: usize = 60;
const DIRS: usize = 150;

/// Descriptors the daemon has, and how many of them are of deleted files.
fn descriptors(daemon: &Daemon) -> (usize, usize) {
    let links = fs::read_dir(daemon.proc("fd")).unwrap();
    let targets: Vec<_> = links
        .filter_map(|link| fs::read_link(link.unwrap().path()).ok())
        .collect();
    let deleted = |target: &&std::path::PathBuf| target.to_string_lossy().ends_with("(deleted)");
    (targets.len(), targets.iter().filter(deleted).count())
}

fn mount_with_limit(place: &Place) {
    for number in 0..DIRS {
        let dir = place.path(format!("lower/d{number}"));
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("f"), number.to_string()).unwrap();
    }
    let script = format!("ulimit -n {LIMIT}; exec \"$0\" \"$@\"");
    let args = [
        "mount", "--lower", "lower", "--lower", "below", "--upper", "upper",
    ];
    let mut command = Command::new("sh");
    command
        .args(["-c", &script, PLYFS])
        .args(args)
        .args(["--work", "work", "merged"])
        .current_dir(place.path(""));
    succeeds(&mut command);
}

/// Every file of the lower, read; opens as many directories and files as there are.
fn read_all(place: &Place) {
    for number in 0..DIRS {
        let text = fs::read_to_string(place.path(format!("merged/d{number}/f"))).unwrap();
        assert_eq!(text, number.to_string());
    }
}

/// Creates files and deletes them open, up to `wanted`, until one cannot be deleted; those.
fn deleted(place: &Place, prefix: &str, wanted: usize) -> (Vec<File>, Option<std::io::Error>) {
    let mut files = Vec::new();
    while files.len() < wanted {
        let path = place.path(format!("merged/{prefix}{}", files.len()));
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .unwrap();
        file.write_all_at(files.len().to_string().as_bytes(), 0)
            .unwrap();
        if let Err(error) = fs::remove_file(&path) {
            assert_eq!(fs::read_to_string(&path).unwrap(), files.len().to_string());
            return (files, Some(error));
        }
        files.push(file);
    }
    (files, None)
}

fn check(files: &[File]) {
    for (number, file) in files.iter().enumerate() {
        let mut content = [0; 8];
        let length = file.read_at(&mut content, 0).unwrap();
        assert_eq!(content[..length], *number.to_string().as_bytes());
    }
}

#[test]
fn hundreds_of_deleted_open_files_take_the_place_of_what_is_cached() {
    let place = Place::new();
    mount_with_limit(&place);
    read_all(&place);
    let (files, error) = deleted(&place, "a", LIMIT - RESERVED);
    assert!(error.is_none(), "{} files, then {error:?}", files.len());
    let (all, pinned) = descriptors(&place.daemon());
    assert!(pinned >= files.len() && all <= LIMIT, "{pinned} of {all}");
    read_all(&place);
    check(&files);
}

#[test]
fn when_nothing_can_be_dropped_emfile_reaches_the_caller_and_the_mount_goes_on() {
    let place = Place::new();
    mount_with_limit(&place);
    read_all(&place);
    let (mut files, error) = deleted(&place, "a", LIMIT);
    let error = error.expect("more deleted files than descriptors");
    assert_eq!(Errno::from_io_error(&error), Some(Errno::MFILE));
    assert!(files.len() > LIMIT - RESERVED, "only {} files", files.len());
    // Everything else works: lookups, reading, copy-up, creation, listing, removal of what is not open.
    read_all(&place);
    check(&files);
    for number in 0..DIRS {
        let dir = place.path(format!("merged/d{number}"));
        fs::write(dir.join("new"), "n").unwrap();
        fs::write(dir.join("f"), "changed").unwrap();
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 2);
    }
    let (more, error) = deleted(&place, "b", RESERVED);
    assert!(more.len() < RESERVED / 2, "{} more", more.len());
    let error = error.expect("more deleted files than descriptors");
    assert_eq!(Errno::from_io_error(&error), Some(Errno::MFILE));
    // What is closed makes room. The kernel tells of it a moment later.
    let full = place.path(format!("merged/b{}", more.len()));
    files.truncate(files.len() / 2);
    let mut attempts = 0;
    while let Err(error) = fs::remove_file(&full) {
        assert_eq!(Errno::from_io_error(&error), Some(Errno::MFILE));
        attempts += 1;
        assert!(attempts < 100_000, "closed files are kept");
    }
    assert_eq!(fs::metadata(&full).unwrap_err().kind(), ErrorKind::NotFound);
    check(&files);
    check(&more);
}
