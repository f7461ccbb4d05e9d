//! POSIX ACLs.

use crate::support::disk::set_acl;
use crate::support::{Fixture, as_user, is_kernel, is_root, requires};

const ACCESS: &str = "u::rw-,u:1000:rw-,g::r--,m::rw-,o::---";
const DEFAULT: &str = "u::rwx,u:1000:rwx,g::r-x,m::rwx,o::---";

/// The user named in the ACL must exist in the user namespace of the run.
fn named(acl: &str) -> String {
    let id = if is_root() {
        1000
    } else {
        crate::support::run::own_ids().0
    };
    acl.replace("1000", &id.to_string())
}

#[test]
fn an_acl_of_a_lower_file_is_seen_and_survives_copy_up() {
    let acl = named(ACCESS);
    let mut fs = Fixture::new()
        .lower(&format!("f 'x' 0660 acl={acl}; g 'y' 0660 acl={acl}"))
        .mount();
    fs.assert_merged(&format!("f 'x' 0660 acl={acl}; g 'y' 0660 acl={acl}"));
    fs.append("f", "+");
    fs.set_mtime("g", 1000, 0);
    let state = format!("f 'x+' 0660 acl={acl}; g 'y' 0660 acl={acl} mtime=1000");
    fs.assert_state(&state, &state);
}

#[test]
fn what_is_copied_up_inherits_nothing_of_the_workdir() {
    let mut fs = Fixture::new().lower("f 'x' 0640; d/ 0750").mount();
    fs.umount();
    set_acl(&fs.work(""), "default", &named(DEFAULT));
    fs.mount().unwrap();
    fs.append("f", "+");
    fs.chmod("d", 0o700);
    fs.write("d/new", "n");
    fs.assert_state(
        "f 'x+' 0640; d/ 0700; d/new 'n'",
        "f 'x+' 0640; d/ 0700; d/new 'n'",
    );
}

#[test]
fn an_acl_set_through_the_mount_is_stored_in_the_upper() {
    let acl = named(ACCESS);
    let mut fs = Fixture::new().lower("f 'x' 0600").mount();
    set_acl(&fs.path("f"), "acl", &acl);
    let state = format!("f 'x' 0660 acl={acl}");
    fs.assert_state(&state, &state);
}

#[test]
fn default_acls_of_a_lower_directory_are_inherited_and_the_umask_is_not_applied() {
    let acl = named(DEFAULT);
    let mut fs = Fixture::new()
        .lower(&format!("d/ 0770 default={acl}; d/x"))
        .mount();
    fs.sh("umask 077; : > d/f; mkdir d/e");
    let inherited = named("u::rw-,u:1000:rwx,g::r-x,m::rw-,o::---");
    let made = format!("d/f '' 0660 acl={inherited}; d/e/ 0770 acl={acl} default={acl}");
    fs.assert_state(
        &format!("d/ 0770 default={acl}; d/x; {made}"),
        &format!(
            "d/ 0770 default={acl}; {}",
            made.replace("d/e/", "d/e/ opaque=either")
        ),
    );
}

#[test]
fn chmod_changes_the_mask_of_an_acl() {
    let acl = named(ACCESS);
    let mut fs = Fixture::new()
        .lower(&format!("f 'x' 0660 acl={acl}"))
        .mount();
    fs.chmod("f", 0o640);
    let masked = acl.replace("m::rw-", "m::r--");
    let state = format!("f 'x' 0640 acl={masked}");
    fs.assert_state(&state, &state);
}

#[test]
fn removing_an_acl_of_a_lower_stays_removed() {
    let acl = named(ACCESS);
    let mut fs = Fixture::new()
        .lower(&format!("f 'x' 0660 acl={acl}"))
        .mount();
    rustix::fs::lremovexattr(fs.path("f"), "system.posix_acl_access").unwrap();
    fs.assert_state("f 'x'", "f 'x'");
}

#[test]
fn access_is_decided_by_the_acl() {
    requires!(is_root(), "needs a second user");
    let fs = Fixture::new()
        .lower(&format!("f 'x' 0660 acl={ACCESS}"))
        .mount();
    let read = |uid| as_user(uid, || std::fs::read_to_string(fs.path("f")).ok());
    assert_eq!(read(1000).as_deref(), Some("x"));
    assert_eq!(read(1001), None);
    as_user(1000, || fs.append("f", "+"));
    assert_eq!(fs.text("f"), "x+");
}

/// The kernel asks for an ACL before it looks at the mode; an error would be its answer to everybody but the owner.
#[test]
fn without_xattrs_the_mode_decides_for_everybody() {
    requires!(is_root(), "needs a second user");
    requires!(!is_kernel(), "an option of plyfs");
    let fs = Fixture::new()
        .lower("d/ 0755; d/f 'x' 0644; secret 'y' 0600")
        .option("noxattr")
        .mount();
    as_user(1001, || {
        assert_eq!(std::fs::read_to_string(fs.path("d/f")).unwrap(), "x");
        let refused = std::fs::read(fs.path("secret")).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::PermissionDenied);
    });
}

#[test]
fn a_default_acl_set_through_the_mount_works_at_once() {
    let acl = named(DEFAULT);
    let mut fs = Fixture::new().lower("d/ 0770; d/x").mount();
    set_acl(&fs.path("d"), "default", &acl);
    fs.sh("umask 022; mkdir d/e");
    let made = format!("d/e/ 0770 acl={acl} default={acl}");
    fs.assert_state(
        &format!("d/ 0770 default={acl}; d/x; {made}"),
        &format!(
            "d/ 0770 default={acl}; {}",
            made.replace("d/e/", "d/e/ opaque=either")
        ),
    );
}
