//! Copy-up: what the copy keeps, what it touches besides, what it leaves behind.

use rustix::fs::{SeekFrom, seek};

use crate::support::tree::{lines, pattern};
use crate::support::{Fixture, is_root, requires};

#[test]
fn copy_up_keeps_mode_times_and_attributes() {
    let mut fs = Fixture::new()
        .lower("f 'x' 4751 mtime=1000.000000123 user.a='1' user.b=''")
        .mount();
    fs.link("f", "g");
    fs.unlink("g");
    let state = "f 'x' 4751 mtime=1000.000000123 user.a='1' user.b=''";
    fs.assert_state(state, state);
}

#[test]
fn copy_up_of_parents_keeps_their_metadata_and_takes_none_of_their_entries() {
    let text = "a/ 0750 mtime=1000.5 user.k='a'; a/b/ 0711 mtime=2000.5 user.k='b'; a/b/f 'f'";
    let mut fs = Fixture::new()
        .lower(&format!("{text}; a/other; a/b/other"))
        .mount();
    fs.append("a/b/f", "+");
    let expected = text.replace("'f'", "'f+'");
    fs.assert_state(&format!("{expected}; a/other; a/b/other"), &expected);
}

#[test]
fn copy_up_does_not_change_the_times_of_the_parent() {
    let fs = Fixture::new()
        .lower("d/ mtime=1000.25; d/f 'f'; d/e/g 'g'")
        .mount();
    let before = fs.stat("d");
    fs.append("d/f", "+");
    fs.chmod("d/e", 0o700);
    let after = fs.stat("d");
    assert_eq!(
        (after.st_mtime, after.st_mtime_nsec),
        (before.st_mtime, before.st_mtime_nsec)
    );
    assert_eq!(
        (after.st_atime, after.st_atime_nsec),
        (before.st_atime, before.st_atime_nsec)
    );
}

#[test]
fn copy_up_takes_metadata_of_a_merged_directory_from_its_topmost_layer() {
    let mut fs = Fixture::new()
        .lower("d/ 0700 user.top='t' mtime=1000; d/a")
        .lower("d/ 0755 user.bottom='b' mtime=2000; d/b")
        .mount();
    fs.chmod("d", 0o711);
    fs.assert_state(
        "d/ 0711 user.top='t' mtime=1000; d/a; d/b",
        "d/ 0711 user.top='t' mtime=1000",
    );
}

#[test]
fn copy_up_of_one_name_leaves_all_others_in_the_lower() {
    let text: String = lines(0..200, |number| format!("d/f{number} '{number}'\n"));
    let mut fs = Fixture::new().lower(&text).mount();
    fs.append("d/f7", "+");
    fs.assert_state(&text.replace("d/f7 '7'", "d/f7 '7+'"), "d/f7 '7+'");
}

#[test]
fn a_large_file_is_copied_exactly() {
    let mut fs = Fixture::new().lower("f pattern=20000001 0600").mount();
    fs.chmod("f", 0o640);
    fs.assert_state("f pattern=20000001 0640", "f pattern=20000001 0640");
}

#[test]
fn holes_stay_holes() {
    let mut fs = Fixture::new()
        .lower("f hole=50000000")
        .lowers_change()
        .mount();
    fs.umount();
    let lower = std::fs::OpenOptions::new()
        .write(true)
        .open(fs.lower(0, "f"))
        .unwrap();
    std::os::unix::fs::FileExt::write_all_at(&lower, b"island", 25_000_000).unwrap();
    drop(lower);
    fs.mount().unwrap();
    fs.chmod("f", 0o600);
    fs.append("f", "end");
    let expected = {
        let mut bytes = vec![0; 50_000_003];
        bytes[25_000_000..25_000_006].copy_from_slice(b"island");
        bytes[50_000_000..].copy_from_slice(b"end");
        bytes
    };
    assert!(fs.read("f") == expected);
    fs.umount();
    let blocks = rustix::fs::stat(fs.upper("f")).unwrap().st_blocks;
    assert!(
        blocks * 512 < 2_000_000,
        "{blocks} blocks for six bytes of data"
    );
    fs.mount().unwrap();
    assert!(fs.read("f") == expected);
}

#[test]
fn a_file_that_is_one_hole_is_copied_without_data() {
    let mut fs = Fixture::new().lower("f hole=100000000").mount();
    fs.set_mtime("f", 1000, 0);
    fs.remount();
    assert_eq!(fs.stat("f").st_size, 100_000_000);
    assert!(rustix::fs::stat(fs.upper("f")).unwrap().st_blocks < 1000);
}

#[test]
fn symlinks_fifos_and_sockets_are_copied_as_themselves() {
    let mut fs = Fixture::new()
        .lower("d/l -> ../x; d/p fifo 0640; d/s socket 0755")
        .mount();
    for name in ["d/l", "d/p", "d/s"] {
        fs.set_mtime(name, 1000, 5);
    }
    let state =
        "d/l -> ../x mtime=1000.000000005; d/p fifo 0640 mtime=1000.000000005; d/s socket 0755";
    fs.assert_state(state, state);
}

#[test]
fn copy_up_works_inside_directories_without_write_permission() {
    let mut fs = Fixture::new()
        .lower("ro/ 0555; ro/f 'x' 0644; ro/sub/ 0500; ro/sub/g 'y' 0600")
        .mount();
    fs.append("ro/f", "+");
    fs.append("ro/sub/g", "+");
    let state = "ro/ 0555; ro/f 'x+' 0644; ro/sub/ 0500; ro/sub/g 'y+' 0600";
    fs.assert_state(state, state);
    fs.sh("chmod 755 ro ro/sub");
}

#[test]
fn copy_up_from_the_lowest_of_many_layers_works() {
    let mut fixture = Fixture::new();
    for number in 0..20 {
        fixture = fixture.lower(&format!("d/e{number}/; only{number} '{number}'"));
    }
    let mut fs = fixture.lower("d/e0/deep/f 'bottom' 0640").mount();
    fs.append("d/e0/deep/f", "+");
    fs.append("only19", "+");
    fs.remount();
    assert_eq!(fs.text("d/e0/deep/f"), "bottom+");
    fs.assert_upper("d/e0/deep/f 'bottom+' 0640; only19 '19+'");
}

#[test]
fn copy_up_of_a_file_while_it_is_being_read_gives_the_reader_whole_data() {
    let fs = Fixture::new().lower("f pattern=3000000").mount();
    let expected = pattern(0, 3_000_000);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..3)
            .map(|_| scope.spawn(|| (0..10).all(|_| fs.read("f") == expected)))
            .collect();
        fs.chmod("f", 0o600);
        fs.link("f", "g");
        assert!(readers.into_iter().all(|reader| reader.join().unwrap()));
    });
}

#[test]
fn copy_up_keeps_the_position_of_open_descriptors() {
    let fs = Fixture::new().lower("f '0123456789'").mount();
    let file = fs.open("f");
    seek(&file, SeekFrom::Start(4)).unwrap();
    fs.write_at("f", 9, b"X");
    let mut rest = [0; 6];
    rustix::io::read(&file, &mut rest).unwrap();
    assert_eq!(&rest, b"45678X");
}

#[test]
fn copy_up_of_a_file_with_an_upper_directory_above_does_not_touch_that_directory() {
    let mut fs = Fixture::new()
        .lower("d/f 'x'")
        .upper("d/ 0711 mtime=1234; d/u 'u'")
        .mount();
    fs.append("d/f", "+");
    fs.assert_state(
        "d/ 0711; d/f 'x+'; d/u 'u'",
        "d/ 0711 mtime=1234; d/f 'x+'; d/u 'u'",
    );
}

#[test]
fn the_owner_of_a_copied_directory_stays_who_it_was() {
    requires!(is_root(), "needs files of another owner");
    let mut fs = Fixture::new()
        .lower("d/ owner=1000:1000 0700; d/e/ owner=1001:1001; d/e/f 'x' owner=7:7")
        .mount();
    fs.write("d/e/new", "n");
    fs.assert_state(
        "d/ owner=1000:1000 0700; d/e/ owner=1001:1001; d/e/f 'x' owner=7:7; d/e/new 'n' owner=0:0",
        "d/ owner=1000:1000 0700; d/e/ owner=1001:1001; d/e/new 'n' owner=0:0",
    );
}

#[test]
fn the_workdir_is_empty_after_a_thousand_copy_ups() {
    let text: String = lines(0..1000, |number| {
        format!("d{}/f{number} 'x'\n", number % 10)
    });
    let mut fs = Fixture::new().lower(&text).mount();
    for number in 0..1000 {
        fs.chmod(format!("d{}/f{number}", number % 10), 0o600);
    }
    fs.umount();
    assert!(fs.temporaries().is_empty());
    fs.mount().unwrap();
}
