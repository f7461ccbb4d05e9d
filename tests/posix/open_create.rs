//! open(2) and creat(2).

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, open};
use rustix::io::Errno;

use crate::support::tree::lines;
use crate::support::{Fixture, Mounted, deviates, runs_with};

fn try_open(fs: &Mounted, path: &str, flags: OFlags) -> Result<std::fs::File, Errno> {
    open(fs.path(path), flags, Mode::from(0o644)).map(Into::into)
}

#[test]
fn a_new_file_lies_in_the_upper_with_its_mode_and_content() {
    let mut fs = Fixture::new().lower("d/ 0700; d/f").mount();
    fs.sh("umask 0; : > d/empty; printf text > d/new; chmod 0640 d/new");
    fs.assert_state(
        "d/ 0700; d/f; d/empty 0666; d/new 'text' 0640",
        "d/ 0700; d/empty 0666; d/new 'text' 0640",
    );
}

#[test]
fn exclusive_create_of_a_name_of_any_layer_is_eexist() {
    let fs = Fixture::new()
        .lower("f; d/; l -> missing")
        .lower("g")
        .upper("u")
        .mount();
    for name in ["f", "d", "g", "u", "l"] {
        let result = try_open(&fs, name, OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY);
        assert_eq!(result.err(), Some(Errno::EXIST), "{name}");
    }
    fs.assert_upper("u");
}

#[test]
fn exclusive_create_of_a_deleted_name_works_and_replaces_the_whiteout() {
    let mut fs = Fixture::new()
        .lower("f 'old'; g 'old'")
        .upper("g whiteout")
        .mount();
    fs.unlink("f");
    for name in ["f", "g"] {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY;
        try_open(&fs, name, flags)
            .unwrap()
            .write_all(b"new")
            .unwrap();
    }
    fs.assert_state("f 'new'; g 'new'", "f 'new'; g 'new'");
}

#[test]
fn create_without_exclusive_opens_the_existing_lower_file() {
    let mut fs = Fixture::new().lower("f 'lower' 0600").mount();
    let mut file = try_open(&fs, "f", OFlags::CREATE | OFlags::RDWR).unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    file.write_all(b"+").unwrap();
    drop(file);
    assert_eq!(text, "lower");
    fs.assert_state("f 'lower+' 0600", "f 'lower+' 0600");
}

#[test]
fn opening_for_reading_copies_nothing() {
    let fs = Fixture::new().lower("d/f 'lower'").mount();
    let mut text = String::new();
    fs.open("d/f").read_to_string(&mut text).unwrap();
    assert_eq!(text, "lower");
    fs.assert_upper("");
}

#[test]
fn opening_for_writing_and_closing_changes_nothing_that_can_be_seen() {
    let mut fs = Fixture::new()
        .lower("f 'lower' 0640 mtime=1234567890.5")
        .mount();
    drop(fs.open_rw("f"));
    let seen = "f 'lower' 0640 mtime=1234567890.5";
    fs.assert_merged(seen);
    fs.remount();
    fs.assert_merged(seen);
    let reason = "a copy-up waits for the first write, because opens send no request";
    if !runs_with("passthrough=on") && deviates(reason) {
        fs.assert_upper("");
    } else {
        fs.assert_upper(seen);
    }
}

#[test]
fn opening_with_truncation_leaves_an_empty_file() {
    let mut fs = Fixture::new()
        .lower("f pattern=100000 0640 user.k='v'")
        .mount();
    drop(try_open(&fs, "f", OFlags::WRONLY | OFlags::TRUNC).unwrap());
    fs.assert_state("f '' 0640 user.k='v'", "f '' 0640 user.k='v'");
}

#[test]
fn truncation_by_creat_then_writing_gives_only_the_new_text() {
    let mut fs = Fixture::new()
        .lower("f 'a long old text'; e ''")
        .upper("u 'a long old text'")
        .mount();
    for name in ["f", "e", "u"] {
        fs.write(name, "new");
    }
    fs.assert_state("f 'new'; e 'new'; u 'new'", "f 'new'; e 'new'; u 'new'");
}

#[test]
fn truncation_with_a_read_only_descriptor_open_is_seen_there() {
    let fs = Fixture::new().lower("f 'text'").mount();
    let mut reader = fs.open("f");
    fs.write("f", "");
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "");
}

#[test]
fn wrong_kinds_of_open_fail_as_posix_says() {
    let fs = Fixture::new()
        .lower("d/; f; l -> f; dangling -> gone; loop -> loop")
        .mount();
    let error = |path, flags| try_open(&fs, path, flags).err();
    assert_eq!(error("d", OFlags::WRONLY), Some(Errno::ISDIR));
    assert_eq!(
        error("d", OFlags::RDWR | OFlags::CREATE),
        Some(Errno::ISDIR)
    );
    assert_eq!(
        error("f", OFlags::RDONLY | OFlags::DIRECTORY),
        Some(Errno::NOTDIR)
    );
    assert_eq!(
        error("l", OFlags::RDONLY | OFlags::NOFOLLOW),
        Some(Errno::LOOP)
    );
    assert_eq!(error("dangling", OFlags::RDONLY), Some(Errno::NOENT));
    assert_eq!(error("loop", OFlags::RDONLY), Some(Errno::LOOP));
    assert_eq!(
        error("missing/f", OFlags::CREATE | OFlags::RDWR),
        Some(Errno::NOENT)
    );
    assert_eq!(
        error("f/x", OFlags::CREATE | OFlags::RDWR),
        Some(Errno::NOTDIR)
    );
    fs.assert_upper("");
}

#[test]
fn create_through_a_dangling_symlink_makes_the_target() {
    let mut fs = Fixture::new().lower("l -> d/target; d/").mount();
    fs.write("l", "made");
    fs.assert_state("l -> d/target; d/target 'made'", "d/target 'made'");
}

#[test]
fn a_path_descriptor_gives_stat_and_does_not_copy_up() {
    let fs = Fixture::new().lower("f 'lower'; l -> f").mount();
    let path = try_open(&fs, "f", OFlags::PATH).unwrap();
    assert_eq!(rustix::fs::fstat(&path).unwrap().st_size, 5);
    let link = try_open(&fs, "l", OFlags::PATH | OFlags::NOFOLLOW).unwrap();
    assert_eq!(
        rustix::fs::readlinkat(&link, "", Vec::new())
            .unwrap()
            .as_bytes(),
        b"f"
    );
    fs.assert_upper("");
}

#[test]
fn an_unnamed_temporary_file_can_be_linked_or_is_refused() {
    let mut fs = Fixture::new().lower("d/").mount();
    let result = try_open(&fs, "d", OFlags::TMPFILE | OFlags::RDWR);
    if deviates("fuser 0.18 has no FUSE_TMPFILE; programs fall back to a named file") {
        assert_eq!(result.err(), Some(Errno::OPNOTSUPP));
        return;
    }
    let mut file = result.unwrap();
    file.write_all(b"unnamed").unwrap();
    let number = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::linkat(CWD, number, CWD, fs.path("d/f"), AtFlags::SYMLINK_FOLLOW).unwrap();
    drop(file);
    fs.assert_state("d/f 'unnamed'", "d/f 'unnamed'");
}

#[test]
fn many_descriptors_of_one_file_see_one_content() {
    let fs = Fixture::new().lower("f 'lower'").mount();
    let mut readers: Vec<_> = (0..50).map(|_| fs.open("f")).collect();
    fs.write_at("f", 0, b"UPPER");
    for reader in &mut readers {
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "UPPER");
    }
}

#[test]
fn two_thousand_files_can_be_open_at_once() {
    let text: String = lines(0..2000, |number| format!("f{number} '{number}'\n"));
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let wanted = rustix::process::Rlimit {
        current: limit.maximum,
        ..limit
    };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, wanted).unwrap();
    let fs = Fixture::new().lower(&text).mount();
    let files: Vec<_> = (0..2000)
        .map(|number| fs.open(format!("f{number}")))
        .collect();
    for (number, mut file) in files.into_iter().enumerate() {
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, number.to_string());
    }
}

#[test]
fn a_file_can_be_created_without_permissions_and_written_by_its_creator() {
    let mut fs = Fixture::new().lower("d/").mount();
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY;
    let file = open(fs.path("d/secret"), flags, Mode::empty()).unwrap();
    rustix::io::write(&file, b"written").unwrap();
    drop(file);
    assert_eq!(fs.mode("d/secret"), 0);
    assert_eq!(fs.stat("d/secret").st_size, 7);
    fs.remount();
    assert_eq!((fs.mode("d/secret"), fs.stat("d/secret").st_size), (0, 7));
    fs.chmod("d/secret", 0o600);
    fs.assert_state("d/secret 'written'", "d/secret 'written'");
}

#[test]
fn an_executable_runs_from_a_lower_and_after_copy_up() {
    let fs = Fixture::new()
        .lower("run 0755 '#!/bin/sh\necho $1'")
        .mount();
    assert_eq!(fs.sh("./run one"), "one");
    // By another process: what is open for writing here, other tests' children inherit for a moment.
    fs.sh(r"printf '\necho more' >> run");
    assert_eq!(fs.sh("./run two"), "two\nmore");
    let busy = OpenOptions::new().write(true).open(fs.path("run")).unwrap();
    drop(busy);
}
