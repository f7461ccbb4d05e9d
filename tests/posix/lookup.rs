//! Which layer a name comes from.

use rustix::io::Errno;

use crate::support::{Fixture, is_kernel, requires};

#[test]
fn the_topmost_layer_that_has_a_file_gives_it() {
    let fs = Fixture::new()
        .lower("a 'top'; b 'top'")
        .lower("a 'middle'; b 'middle'; c 'middle'")
        .lower("a 'bottom'; b 'bottom'; c 'bottom'; d 'bottom'")
        .upper("a 'upper'")
        .mount();
    fs.assert_merged("a 'upper'; b 'top'; c 'middle'; d 'bottom'");
}

#[test]
fn directories_of_all_layers_are_merged() {
    let fs = Fixture::new()
        .lower("d/top 't'; d/e/top 't'")
        .lower("d/bottom 'b'; d/e/bottom 'b'")
        .upper("d/upper 'u'; d/e/upper 'u'")
        .mount();
    fs.assert_merged(
        "d/bottom 'b'; d/top 't'; d/upper 'u'; d/e/bottom 'b'; d/e/top 't'; d/e/upper 'u'",
    );
}

#[test]
fn a_merged_directory_has_the_metadata_of_its_topmost_layer() {
    let fs = Fixture::new()
        .lower("d/ 0750 mtime=1000 user.from='top'; d/t")
        .lower("d/ 0700 mtime=2000 user.from='bottom' user.bottom='yes'; d/b")
        .mount();
    fs.assert_merged("d/ 0750 mtime=1000 user.from='top'; d/t; d/b");
}

#[test]
fn a_file_hides_a_directory_below() {
    let fs = Fixture::new()
        .lower("x 'file'")
        .lower("x/inside 'hidden'")
        .mount();
    fs.assert_merged("x 'file'");
    assert_eq!(fs.lookup_error("x/inside"), Some(Errno::NOTDIR));
}

#[test]
fn a_directory_hides_a_file_below() {
    Fixture::new()
        .lower("x/inside 'seen'")
        .lower("x 'file'")
        .mount()
        .assert_merged("x/inside 'seen'");
}

#[test]
fn a_file_between_two_directories_ends_the_merge() {
    let fs = Fixture::new()
        .lower("x/top 't'")
        .lower("x 'file'")
        .lower("x/bottom 'b'")
        .mount();
    fs.assert_merged("x/top 't'");
    assert!(fs.is_absent("x/bottom"));
}

#[test]
fn a_symlink_hides_a_directory_below_and_is_not_merged_with_it() {
    let fs = Fixture::new()
        .lower("x -> elsewhere; elsewhere/f 'f'")
        .lower("x/g 'g'")
        .mount();
    fs.assert_merged("x -> elsewhere; elsewhere/f 'f'");
    assert_eq!(fs.text("x/f"), "f");
    assert!(fs.is_absent("x/g"));
}

#[test]
fn a_directory_hides_a_symlink_to_a_directory_below() {
    let fs = Fixture::new()
        .lower("x/f 'f'")
        .lower("x -> y; y/g 'g'")
        .mount();
    fs.assert_merged("x/f 'f'; y/g 'g'");
}

#[test]
fn a_whiteout_hides_the_name_in_all_layers_below() {
    let fs = Fixture::new()
        .lower("f whiteout; d whiteout")
        .lower("f '1'; d/x")
        .lower("f '2'; d/y")
        .mount();
    fs.assert_merged("");
    assert!(fs.is_absent("f"));
    assert!(fs.is_absent("d"));
    assert!(fs.is_absent("d/x"));
}

#[test]
fn a_whiteout_between_two_layers_ends_the_merge_of_a_directory() {
    let fs = Fixture::new()
        .lower("d/top 't'")
        .lower("d whiteout")
        .lower("d/bottom 'b'")
        .mount();
    fs.assert_merged("d/top 't'");
    assert!(fs.is_absent("d/bottom"));
}

#[test]
fn a_whiteout_does_not_hide_what_lies_above_it() {
    let fs = Fixture::new()
        .lower("f 'top'; d/f 'top'")
        .lower("f whiteout; d/f whiteout")
        .lower("f 'b'; d/f 'b'")
        .mount();
    fs.assert_merged("f 'top'; d/f 'top'");
}

#[test]
fn a_whiteout_of_a_name_that_exists_nowhere_shows_nothing() {
    let fs = Fixture::new()
        .lower("ghost whiteout; d/ghost whiteout")
        .lower("d/f 'f'")
        .mount();
    fs.assert_merged("d/f 'f'");
    assert!(fs.is_absent("ghost"));
}

#[test]
fn a_missing_name_is_enoent_and_a_path_through_a_file_enotdir() {
    let fs = Fixture::new().lower("f 'f'; d/").mount();
    assert_eq!(fs.lookup_error("missing"), Some(Errno::NOENT));
    assert_eq!(fs.lookup_error("d/missing"), Some(Errno::NOENT));
    assert_eq!(fs.lookup_error("missing/x"), Some(Errno::NOENT));
    assert_eq!(fs.lookup_error("f/x"), Some(Errno::NOTDIR));
}

#[test]
fn a_name_that_was_missing_is_found_once_created() {
    let mut fs = Fixture::new().lower("d/").mount();
    for name in ["d/f", "d/g", "h"] {
        assert!(fs.is_absent(name));
    }
    fs.write("d/f", "f");
    fs.mkdir("d/g");
    fs.link("d/f", "h");
    fs.assert_state(
        "d/f 'f'; d/g/; h = d/f",
        "d/f 'f'; d/g/ opaque=either; h = d/f",
    );
}

#[test]
fn dot_dot_of_a_merged_directory_is_its_merged_parent() {
    let fs = Fixture::new()
        .lower("d/e/x; f 'top'")
        .lower("d/e/y; d/g 'bottom'")
        .mount();
    assert_eq!(fs.text("d/e/../g"), "bottom");
    assert_eq!(fs.text("d/e/../../f"), "top");
    assert_eq!(fs.inode("d/e/.."), fs.inode("d"));
}

#[test]
fn an_upper_alone_over_empty_layers_is_seen_as_it_is() {
    let mut fs = Fixture::new()
        .lower("")
        .lower("")
        .upper("a/b/c 'c'; l -> a")
        .mount();
    fs.assert_state("a/b/c 'c'; l -> a", "a/b/c 'c'; l -> a");
}

#[test]
fn with_a_timeout_what_changes_in_the_lowers_is_seen() {
    requires!(!is_kernel(), "the kernel says that lowers do not change");
    let fs = Fixture::new()
        .lower("d/replaced 'old'; d/longer 'old'; d/gone 'g'; d/kept 'k'; d/mode 0644")
        .lower("d/below 'b'")
        .option("timeout=0")
        .lowers_change()
        .mount();
    fs.assert_merged(
        "d/replaced 'old'; d/longer 'old'; d/gone 'g'; d/kept 'k'; d/mode 0644; d/below 'b'",
    );
    assert!(fs.is_absent("d/new"));
    let lower = |name: &str| fs.lower(0, format!("d/{name}"));
    std::fs::write(lower("other"), "new").unwrap();
    std::fs::rename(lower("other"), lower("replaced")).unwrap();
    std::fs::write(lower("longer"), "longer than before").unwrap();
    std::fs::remove_file(lower("gone")).unwrap();
    std::fs::write(lower("new"), "n").unwrap();
    rustix::fs::chmod(lower("mode"), 0o600.into()).unwrap();
    fs.assert_merged(
        "d/replaced 'new'; d/longer 'longer than before'; d/kept 'k'; d/mode 0600; d/new 'n'; d/below 'b'",
    );
}

#[test]
fn with_a_timeout_a_directory_that_may_only_be_searched_is_asked_again_too() {
    requires!(!is_kernel(), "the kernel says that lowers do not change");
    let fs = Fixture::new()
        .lower("d/ 0300; d/f 'top'; d/both 'top'")
        .lower("d/f 'below'; d/both/in 'below'")
        .option("timeout=0")
        .lowers_change()
        .mount();
    assert_eq!(
        (fs.text("d/f"), fs.text("d/both")),
        ("top".into(), "top".into())
    );
    std::fs::remove_file(fs.lower(0, "d/f")).unwrap();
    std::fs::remove_file(fs.lower(0, "d/both")).unwrap();
    assert_eq!(
        (fs.text("d/f"), fs.text("d/both/in")),
        ("below".into(), "below".into())
    );
    std::fs::write(fs.lower(0, "d/f"), "again").unwrap();
    assert_eq!(fs.text("d/f"), "again");
}

#[test]
fn with_a_timeout_a_directory_that_is_made_again_and_a_name_that_comes_back_are_others() {
    requires!(!is_kernel(), "the kernel says that lowers do not change");
    let fs = Fixture::new()
        .lower("d/sub/old 'old'; d/f 'old'")
        .option("timeout=0")
        .lowers_change()
        .mount();
    assert_eq!(fs.names("d/sub"), ["old"]);
    let before = fs.open("d/f");
    std::fs::remove_dir_all(fs.lower(0, "d/sub")).unwrap();
    std::fs::remove_file(fs.lower(0, "d/f")).unwrap();
    assert!(fs.is_absent("d/sub") && fs.is_absent("d/f"));
    std::fs::create_dir(fs.lower(0, "d/sub")).unwrap();
    std::fs::write(fs.lower(0, "d/sub/new"), "new").unwrap();
    std::fs::write(fs.lower(0, "d/f"), "new").unwrap();
    assert_eq!(
        (fs.names("d/sub"), fs.text("d/f")),
        (vec!["new".to_owned()], "new".into())
    );
    fs.append("d/f", "+");
    drop(before);
    assert_eq!(fs.text("d/f"), "new+");
    std::fs::remove_dir_all(fs.lower(0, "d/sub")).unwrap();
    std::fs::create_dir(fs.lower(0, "d/sub")).unwrap();
    assert!(fs.names("d/sub").is_empty());
}

#[test]
fn with_a_timeout_a_directory_is_emptied_while_it_is_listed() {
    requires!(!is_kernel(), "the kernel says that lowers do not change");
    // So long that they do not fit in one reply.
    let names: Vec<_> = (0..400).map(|number| format!("d/{number:0>200}")).collect();
    let fs = Fixture::new()
        .lower(&names.join("; "))
        .option("timeout=0")
        .mount();
    let dir = fs.open("d");
    for entry in rustix::fs::Dir::read_from(&dir).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().to_str().unwrap();
        if !name.starts_with('.') {
            fs.unlink(format!("d/{name}"));
        }
    }
    assert!(fs.names("d").is_empty());
}
