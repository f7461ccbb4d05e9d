//! When the setuid and setgid bits go.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

use crate::support::{Fixture, Mounted, as_user, is_root, requires};

const ONE_USER: &str = "needs a second user";

fn mount(path: &str) -> Mounted {
    let line = format!("{path} 'content' 06755 owner=1000:1000");
    Fixture::new().lower(&line).mount()
}

fn assert_cleared(mut fs: Mounted, content: &str) {
    let state = format!("f '{content}' 0755 owner=1000:1000");
    fs.assert_state(&state, &state);
}

#[test]
fn a_write_by_a_user_clears_both_bits() {
    requires!(is_root(), ONE_USER);
    let fs = mount("f");
    as_user(1000, || fs.write_at("f", 0, b"X"));
    assert_cleared(fs, "Xontent");
}

#[test]
fn a_write_by_another_user_who_may_write_clears_both_bits() {
    requires!(is_root(), ONE_USER);
    let mut fs = Fixture::new().lower("f 'content' 06777").mount();
    as_user(1000, || fs.write_at("f", 0, b"X"));
    fs.assert_state("f 'Xontent' 0777", "f 'Xontent' 0777");
}

#[test]
fn a_write_through_a_descriptor_opened_by_root_clears_by_who_writes() {
    requires!(is_root(), ONE_USER);
    let fs = mount("f");
    let file = OpenOptions::new().write(true).open(fs.path("f")).unwrap();
    as_user(1000, || file.write_all_at(b"X", 0).unwrap());
    drop(file);
    assert_cleared(fs, "Xontent");
}

#[test]
fn a_write_by_root_keeps_the_bits() {
    requires!(is_root(), ONE_USER);
    let mut fs = mount("f");
    fs.write_at("f", 0, b"X");
    fs.assert_state("f 'Xontent' 6755", "f 'Xontent' 6755");
}

#[test]
fn truncate_by_a_user_clears_both_bits() {
    requires!(is_root(), ONE_USER);
    let fs = mount("f");
    as_user(1000, || fs.truncate("f", 3));
    assert_cleared(fs, "con");
}

#[test]
fn an_open_with_truncation_by_a_user_clears_both_bits() {
    requires!(is_root(), ONE_USER);
    let fs = mount("f");
    as_user(1000, || fs.write("f", ""));
    assert_cleared(fs, "");
}

#[test]
fn chown_clears_the_bits_of_an_executable() {
    requires!(is_root(), ONE_USER);
    let mut fs = mount("f");
    fs.chown("f", 1001, 1001);
    fs.assert_state(
        "f 'content' 0755 owner=1001:1001",
        "f 'content' 0755 owner=1001:1001",
    );
}

#[test]
fn chown_of_a_directory_keeps_its_setgid_bit() {
    requires!(is_root(), ONE_USER);
    let mut fs = Fixture::new().lower("d/ 02755").mount();
    fs.chown("d", 1000, 1000);
    fs.assert_state("d/ 2755 owner=1000:1000", "d/ 2755 owner=1000:1000");
}

#[test]
fn copy_up_itself_keeps_the_bits() {
    let mut fs = Fixture::new().lower("f 'content' 06755").mount();
    fs.set_mtime("f", 1000, 0);
    fs.link("f", "g");
    fs.unlink("g");
    fs.assert_state("f 'content' 6755", "f 'content' 6755");
}

#[test]
fn a_write_by_a_user_clears_the_bits_of_an_upper_file_too() {
    requires!(is_root(), ONE_USER);
    let mut fs = Fixture::new()
        .lower("")
        .upper("f 'content' 06755 owner=1000:1000")
        .mount();
    as_user(1000, || fs.append("f", "+"));
    fs.assert_state("f 'content+' 0755", "f 'content+' 0755");
}

#[test]
fn chmod_by_the_owner_can_set_them_again() {
    requires!(is_root(), ONE_USER);
    let mut fs = mount("f");
    as_user(1000, || {
        fs.append("f", "+");
        fs.chmod("f", 0o6755);
    });
    fs.assert_state("f 'content+' 6755", "f 'content+' 6755");
}
