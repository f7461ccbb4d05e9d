//! mknod(2): FIFOs, sockets, devices.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use rustix::io::Errno;

use crate::support::{Fixture, Mounted, is_root, requires};

fn make(fs: &Mounted, path: &str, kind: FileType, device: (u32, u32)) -> Result<(), Errno> {
    mknodat(
        CWD,
        fs.path(path),
        kind,
        Mode::from(0o600),
        makedev(device.0, device.1),
    )
}

#[test]
fn fifo_socket_and_plain_file_are_made_in_the_upper() {
    let mut fs = Fixture::new().lower("d/x").mount();
    make(&fs, "d/p", FileType::Fifo, (0, 0)).unwrap();
    make(&fs, "d/s", FileType::Socket, (0, 0)).unwrap();
    make(&fs, "d/f", FileType::RegularFile, (0, 0)).unwrap();
    let made = "d/p fifo 0600; d/s socket 0600; d/f '' 0600";
    fs.assert_state(&format!("d/x; {made}"), made);
}

#[test]
fn devices_are_made_in_the_upper_with_their_numbers() {
    requires!(is_root(), "only root makes devices");
    let mut fs = Fixture::new().lower("").mount();
    make(&fs, "null", FileType::CharacterDevice, (1, 3)).unwrap();
    make(&fs, "disk", FileType::BlockDevice, (253, 262_143)).unwrap();
    let made = "null char=1:3 0600; disk block=253:262143 0600";
    fs.assert_state(made, made);
}

#[test]
fn devices_of_a_lower_are_seen_moved_and_changed() {
    requires!(is_root(), "only root makes devices");
    let mut fs = Fixture::new()
        .lower("null char=1:3 0666; disk block=8:1 0660; d/")
        .mount();
    fs.rename("null", "d/null");
    fs.chmod("disk", 0o600);
    fs.assert_state(
        "disk block=8:1 0600; d/null char=1:3 0666",
        "disk block=8:1 0600; null whiteout; d/null char=1:3 0666",
    );
}

#[test]
fn making_a_device_without_privilege_is_eperm() {
    requires!(!is_root(), "root may make devices");
    let fs = Fixture::new().lower("").mount();
    assert_eq!(
        make(&fs, "null", FileType::CharacterDevice, (1, 3)),
        Err(Errno::PERM)
    );
    fs.assert_upper("");
}

#[test]
fn nobody_can_plant_a_whiteout_through_the_mount() {
    let mut fs = Fixture::new().lower("f 'lower'").mount();
    assert_eq!(
        make(&fs, "w", FileType::CharacterDevice, (0, 0)),
        Err(Errno::PERM)
    );
    assert_eq!(
        make(&fs, "f", FileType::CharacterDevice, (0, 0)),
        Err(Errno::EXIST)
    );
    fs.assert_state("f 'lower'", "");
}

#[test]
fn mknod_over_a_deleted_name_replaces_the_whiteout() {
    let mut fs = Fixture::new().lower("p 'was a file'").mount();
    fs.unlink("p");
    make(&fs, "p", FileType::Fifo, (0, 0)).unwrap();
    fs.assert_state("p fifo", "p fifo");
}

#[test]
fn mknod_onto_a_name_of_any_layer_is_eexist() {
    let fs = Fixture::new().lower("low; d/").upper("up").mount();
    for name in ["low", "up", "d"] {
        assert_eq!(
            make(&fs, name, FileType::Fifo, (0, 0)),
            Err(Errno::EXIST),
            "{name}"
        );
    }
}

#[test]
fn a_fifo_of_a_lower_connects_writer_and_reader_and_is_not_copied() {
    let fs = Fixture::new().lower("p fifo").mount();
    assert_eq!(fs.sh("cat p & echo through > p; wait"), "through");
    fs.assert_upper("");
}

#[test]
fn a_socket_bound_in_the_merged_view_accepts_connections() {
    let mut fs = Fixture::new().lower("run/x").mount();
    let listener = UnixListener::bind(fs.path("run/s")).unwrap();
    let mut client = UnixStream::connect(fs.path("run/s")).unwrap();
    client.write_all(b"hello").unwrap();
    drop(client);
    let mut text = String::new();
    listener
        .accept()
        .unwrap()
        .0
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(text, "hello");
    drop(listener);
    fs.assert_state("run/s socket; run/x", "run/s socket");
}
