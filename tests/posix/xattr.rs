//! Extended attributes.

use std::path::Path;

use rustix::fs::{XattrFlags, lgetxattr, lremovexattr, lsetxattr};
use rustix::io::Errno;

use crate::support::disk::{namespace, set_acl, xattr, xattr_names};
use crate::support::run::own_ids;
use crate::support::{Fixture, Mounted, is_kernel, is_root, requires};

fn set(fs: &Mounted, path: &str, name: &str, value: &str, flags: XattrFlags) -> Result<(), Errno> {
    lsetxattr(fs.path(path), name, value.as_bytes(), flags)
}

#[test]
fn attributes_of_a_lower_are_listed_and_read_without_copy_up() {
    let fs = Fixture::new()
        .lower("f 'x' user.a='1' user.b='two'; d/ user.c='3'")
        .mount();
    assert_eq!(xattr_names(&fs.path("f")), ["user.a", "user.b"]);
    assert_eq!(fs.xattr("f", "user.b").as_deref(), Some("two"));
    assert_eq!(fs.xattr("d", "user.c").as_deref(), Some("3"));
    fs.assert_upper("");
}

#[test]
fn setting_an_attribute_copies_up_with_the_others() {
    let mut fs = Fixture::new()
        .lower("d/ user.old='o'; d/f 'x' 0640 mtime=1000 user.a='1'")
        .mount();
    fs.set_xattr("d/f", "user.b", "2");
    fs.set_xattr("d", "user.new", "n");
    let state = "d/ user.old='o' user.new='n'; d/f 'x' 0640 mtime=1000 user.a='1' user.b='2'";
    fs.assert_state(state, state);
}

#[test]
fn removing_an_attribute_of_a_lower_stays_removed() {
    let mut fs = Fixture::new()
        .lower("f 'x' user.a='1' user.b='2'; d/ user.c='3'")
        .mount();
    lremovexattr(fs.path("f"), "user.a").unwrap();
    lremovexattr(fs.path("d"), "user.c").unwrap();
    fs.assert_state("f 'x' user.b='2'; d/", "f 'x' user.b='2'; d/");
}

#[test]
fn a_missing_attribute_is_enodata_and_copies_nothing() {
    let fs = Fixture::new().lower("f 'x'; d/").mount();
    let mut buffer = [0_u8; 16];
    assert_eq!(
        lgetxattr(fs.path("f"), "user.none", &mut buffer[..]),
        Err(Errno::NODATA)
    );
    assert_eq!(
        lgetxattr(fs.path("d"), "user.none", &mut buffer[..]),
        Err(Errno::NODATA)
    );
    assert_eq!(lremovexattr(fs.path("f"), "user.none"), Err(Errno::NODATA));
    fs.assert_merged("f 'x'; d/");
}

/// None is there as far as anybody may ask, in every way there is to ask.
fn assert_bare(path: &Path) {
    let mut buffer = [0_u8; 64];
    for name in ["user.a", "security.capability", "system.posix_acl_access"] {
        let answer = lgetxattr(path, name, &mut buffer[..]);
        assert_eq!(answer, Err(Errno::NODATA), "{name} of {}", path.display());
    }
    assert!(xattr_names(path).is_empty(), "{}", path.display());
}

#[test]
fn an_attribute_given_where_there_was_none_is_there_at_once_and_gone_when_it_is_removed() {
    let mut fs = Fixture::new().lower("f 'x'; d/").upper("u 'u'; p/").mount();
    fs.write("new", "n");
    fs.link("u", "linked");
    for path in ["f", "d", "u", "p", "new", "linked"] {
        for _ in 0..2 {
            assert_bare(&fs.path(path));
            fs.set_xattr(path, "user.a", "1");
            assert_eq!(fs.xattr(path, "user.a").as_deref(), Some("1"));
            assert_eq!(xattr_names(&fs.path(path)), ["user.a"]);
            lremovexattr(fs.path(path), "user.a").unwrap();
        }
        assert_bare(&fs.path(path));
    }
    fs.set_xattr("linked", "user.a", "1");
    assert_eq!(fs.xattr("u", "user.a").as_deref(), Some("1"));
    let state = "linked 'u' user.a='1'; u = linked; new 'n'; f 'x'; d/; p/";
    fs.assert_state(state, state);
}

#[test]
fn an_acl_given_where_there_was_none_is_there_at_once() {
    let mut fs = Fixture::new().lower("f 'x' 0600; d/ 0700").mount();
    let id = if is_root() { 1000 } else { own_ids().0 };
    let acl = format!("u::rw-,u:{id}:rw-,g::r--,m::rw-,o::---");
    for path in ["f", "d"] {
        assert_bare(&fs.path(path));
        set_acl(&fs.path(path), "acl", &acl);
        // xfs lists for root what it keeps them in, too.
        let names = xattr_names(&fs.path(path));
        assert!(
            names.iter().any(|name| name == "system.posix_acl_access"),
            "{names:?}"
        );
    }
    let state = format!("f 'x' 0660 acl={acl}; d/ 0660 acl={acl}");
    fs.assert_state(&state, &state);
}

#[test]
fn a_layer_changed_under_the_mount_is_asked_again_with_a_timeout_and_not_without() {
    requires!(!is_kernel(), "the kernel asks each time");
    for (option, seen) in [("timeout=0", Some("1")), ("", None)] {
        let mut fixture = Fixture::new().lower("f 'x'").lowers_change();
        if !option.is_empty() {
            fixture = fixture.option(option);
        }
        let fs = fixture.mount();
        assert_bare(&fs.path("f"));
        lsetxattr(fs.lower(0, "f"), "user.a", b"1", XattrFlags::empty()).unwrap();
        assert_eq!(fs.xattr("f", "user.a").as_deref(), seen, "{option}");
        assert_eq!(
            xattr_names(&fs.path("f")).len(),
            usize::from(seen.is_some())
        );
    }
}

#[test]
fn create_and_replace_flags_are_honoured() {
    let mut fs = Fixture::new().lower("f 'x' user.a='1'").mount();
    assert_eq!(
        set(&fs, "f", "user.a", "2", XattrFlags::CREATE),
        Err(Errno::EXIST)
    );
    assert_eq!(
        set(&fs, "f", "user.b", "2", XattrFlags::REPLACE),
        Err(Errno::NODATA)
    );
    set(&fs, "f", "user.a", "3", XattrFlags::REPLACE).unwrap();
    set(&fs, "f", "user.b", "4", XattrFlags::CREATE).unwrap();
    fs.assert_state("f 'x' user.a='3' user.b='4'", "f 'x' user.a='3' user.b='4'");
}

#[test]
fn a_buffer_that_is_too_short_is_erange() {
    let fs = Fixture::new().lower("f 'x' user.a='12345'").mount();
    let mut buffer = [0_u8; 3];
    assert_eq!(
        lgetxattr(fs.path("f"), "user.a", &mut buffer[..]),
        Err(Errno::RANGE)
    );
    assert_eq!(
        rustix::fs::llistxattr(fs.path("f"), &mut buffer[..]),
        Err(Errno::RANGE)
    );
}

#[test]
fn empty_and_long_values_survive() {
    let long = "v".repeat(2000);
    let mut fs = Fixture::new()
        .lower(&format!("f 'x' user.long='{long}' user.empty=''"))
        .mount();
    fs.chmod("f", 0o600);
    fs.set_xattr("f", "user.empty2", "");
    let state = format!("f 'x' user.long='{long}' user.empty='' user.empty2=''");
    fs.assert_state(&state, &state);
}

#[test]
fn trusted_attributes_of_root_are_copied_up() {
    requires!(is_root(), "trusted attributes are for root");
    let mut fs = Fixture::new()
        .lower("f 'x' trusted.t='1'; l -> f trusted.l='2'; p fifo trusted.p='3'")
        .mount();
    fs.chmod("f", 0o600);
    fs.set_mtime("l", 1000, 0);
    fs.set_mtime("p", 1000, 0);
    let state = "f 'x' trusted.t='1'; l -> f trusted.l='2'; p fifo trusted.p='3'";
    fs.assert_state(state, state);
}

#[test]
fn the_marks_of_overlay_are_hidden_from_users_of_the_mount() {
    let fs = Fixture::new().lower("d/old 'old'; f 'x'").mount();
    fs.remove_tree("d");
    fs.mkdir("d");
    fs.append("f", "+");
    fs.assert_merged("d/; f 'x+'");
    let name = format!("{}.overlay.opaque", namespace());
    assert!(xattr(&fs.upper("d"), &name).is_some(), "the mark is there");
    assert_eq!(xattr(&fs.path("d"), &name), None, "but not seen");
}

#[test]
fn a_user_of_the_mount_cannot_set_the_marks_of_overlay() {
    let mut fs = Fixture::new().lower("d/f 'kept'").mount();
    let name = format!("{}.overlay.opaque", namespace());
    let result = set(&fs, "d", &name, "y", XattrFlags::empty());
    // The name is escaped on disk: it is the mark of a union mounted on this one.
    assert_eq!(result, Ok(()));
    assert_eq!(xattr(&fs.path("d"), &name).as_deref(), Some(&b"y"[..]));
    fs.assert_merged(&format!("d/ {name}='y'; d/f 'kept'"));
    lremovexattr(fs.path("d"), &name).unwrap();
    fs.assert_merged("d/f 'kept'");
    fs.remount();
    fs.assert_merged("d/f 'kept'");
}

#[test]
fn attributes_of_a_merged_directory_are_those_of_its_topmost_layer() {
    let fs = Fixture::new()
        .lower("d/ user.top='t'; d/a")
        .lower("d/ user.bottom='b'; d/b")
        .mount();
    assert_eq!(xattr_names(&fs.path("d")), ["user.top"]);
}

#[test]
fn user_attributes_on_symlinks_are_refused_as_everywhere() {
    let fs = Fixture::new().lower("l -> f").mount();
    assert_eq!(
        set(&fs, "l", "user.a", "1", XattrFlags::empty()),
        Err(Errno::PERM)
    );
    fs.assert_merged("l -> f");
}

#[test]
fn attributes_set_through_a_read_only_descriptor_of_a_lower_file_arrive() {
    let mut fs = Fixture::new().lower("f 'x'").mount();
    let file = fs.open("f");
    rustix::fs::fsetxattr(&file, "user.a", b"1", XattrFlags::empty()).unwrap();
    drop(file);
    fs.assert_state("f 'x' user.a='1'", "f 'x' user.a='1'");
}

#[test]
fn file_capabilities_survive_copy_up_by_metadata_and_go_at_a_write() {
    requires!(is_root(), "only root gives capabilities");
    let mut fs = Fixture::new()
        .lower("f 'x' 0755; g 'x' 0755")
        .lowers_change()
        .mount();
    fs.umount();
    for name in ["f", "g"] {
        let path = fs.lower(0, name);
        crate::support::fixture::run("setcap", &["cap_net_raw+ep", path.to_str().unwrap()]);
    }
    fs.mount().unwrap();
    let capability = xattr(&fs.lower(0, "f"), "security.capability");
    fs.chmod("f", 0o700);
    fs.append("g", "+");
    fs.remount();
    assert!(capability.is_some());
    assert_eq!(xattr(&fs.path("f"), "security.capability"), capability);
    assert_eq!(xattr(&fs.path("g"), "security.capability"), None);
}
