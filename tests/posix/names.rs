//! Names: any bytes but `/` and NUL, up to 255 of them.

use rustix::io::Errno;

use crate::support::Fixture;
use crate::support::tree::lines;

#[test]
fn names_of_255_bytes_are_created_changed_renamed_and_deleted() {
    let (low, gone, made) = ("l".repeat(255), "g".repeat(255), "m".repeat(255));
    let mut fs = Fixture::new()
        .lower(&format!("{low} 'x'; {gone} 'y'; d/{gone}/{low} 'z'"))
        .mount();
    fs.append(&low, "+");
    fs.unlink(&gone);
    fs.remove_tree(format!("d/{gone}"));
    fs.mkdir(&made);
    fs.rename(&low, format!("{made}/{low}"));
    fs.assert_state(
        &format!("{made}/{low} 'x+'; d/"),
        &format!("{low} whiteout; {gone} whiteout; d/{gone} whiteout; {made}/ opaque=either; {made}/{low} 'x+'"),
    );
}

#[test]
fn a_name_of_256_bytes_is_enametoolong() {
    let long = "n".repeat(256);
    let fs = Fixture::new().lower("f 'x'").mount();
    assert_eq!(fs.lookup_error(&long), Some(Errno::NAMETOOLONG));
    assert_eq!(
        rustix::fs::mkdir(fs.path(&long), 0o755.into()),
        Err(Errno::NAMETOOLONG)
    );
    assert_eq!(
        rustix::fs::rename(fs.path("f"), fs.path(&long)),
        Err(Errno::NAMETOOLONG)
    );
    assert_eq!(
        rustix::fs::symlink("t", fs.path(&long)),
        Err(Errno::NAMETOOLONG)
    );
    fs.assert_merged("f 'x'");
}

#[test]
fn names_that_are_not_utf8_work_in_every_operation() {
    let mut fs = Fixture::new()
        .lower("\\xff\\xfe 'low'; d\\x80/\\xc3 'in'; gone\\x81 'x'")
        .mount();
    fs.sh(r#"f=$(printf '\377\376'); printf + >> "$f"; mv "$f" "$(printf 'n\200')"
        rm "$(printf 'gone\201')"; mkdir "$(printf '\376')"; ln -s "$(printf '\375')" "$(printf '\376/l')"
        printf x > "$(printf 'd\200/\300')""#);
    fs.assert_state(
        "n\\x80 'low+'; d\\x80/\\xc3 'in'; d\\x80/\\xc0 'x'; \\xfe/l -> \\xfd",
        "\\xff\\xfe whiteout; n\\x80 'low+'; gone\\x81 whiteout; d\\x80/\\xc0 'x'; \\xfe/ opaque=either; \\xfe/l -> \\xfd",
    );
}

#[test]
fn every_byte_that_a_name_may_have_survives() {
    let names = (1..=255_u8).filter(|byte| *byte != b'/' && *byte != b'.');
    let lines: String = lines(names, |byte| format!("\\x{byte:02x} 'x'\n"));
    let mut fs = Fixture::new().lower(&lines).mount();
    fs.sh("chmod 600 ./*");
    fs.assert_state(
        &lines.replace("'x'", "'x' 0600"),
        &lines.replace("'x'", "'x' 0600"),
    );
}

#[test]
fn names_with_the_separators_of_mount_options_and_shells_work() {
    let text = "a:b 'x'; c,d 'x'; e\\\\f 'x'; g=h 'x'; -rf 'x'; *.txt 'x'; \\x20lead 'x'; new\\nline 'x'; ... 'x'; #1 'x'";
    let mut fs = Fixture::new().lower(text).mount();
    fs.sh("for f in ./* ./...; do printf + >> \"$f\"; done");
    let changed = text.replace("'x'", "'x+'");
    fs.assert_state(&changed, &changed);
}

#[test]
fn upper_and_lower_case_are_different_names() {
    let mut fs = Fixture::new().lower("File 'A'; file 'b'").mount();
    fs.unlink("File");
    fs.write("FILE", "C");
    fs.assert_state("file 'b'; FILE 'C'", "File whiteout; FILE 'C'");
}

#[test]
fn a_path_close_to_the_limit_works() {
    let part = "p".repeat(200);
    let deep = vec![part; 15].join("/");
    let mut fs = Fixture::new().lower(&format!("{deep}/f 'deep'")).mount();
    fs.append(format!("{deep}/f"), "+");
    fs.assert_state(&format!("{deep}/f 'deep+'"), &format!("{deep}/f 'deep+'"));
}
