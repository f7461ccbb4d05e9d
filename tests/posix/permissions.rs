//! Who may do what. Root sets the scene, threads with other ids act.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};

use rustix::fs::{Access, AtFlags, CWD, XattrFlags, accessat};
use rustix::io::Errno;

use crate::support::{Fixture, as_member, as_user, is_kernel, is_root, requires};

const ONE_USER: &str = "needs several users";

fn errno<T>(result: std::io::Result<T>) -> Option<Errno> {
    result.err().and_then(|error| Errno::from_io_error(&error))
}

#[test]
fn modes_and_owners_of_a_lower_are_enforced() {
    requires!(is_root(), ONE_USER);
    let fs = Fixture::new()
        .lower("mine 'm' 0600 owner=1000:1000; secret 's' 0600; open 'o' 0644; group 'g' 0640 owner=0:500")
        .mount();
    as_user(1000, || {
        assert_eq!(fs.text("mine"), "m");
        assert_eq!(fs.text("open"), "o");
        assert_eq!(errno(fs::read(fs.path("secret"))), Some(Errno::ACCESS));
        assert_eq!(errno(fs::write(fs.path("open"), "x")), Some(Errno::ACCESS));
        assert_eq!(errno(fs::read(fs.path("group"))), Some(Errno::ACCESS));
    });
    as_member(1000, 1000, &[500], || assert_eq!(fs.text("group"), "g"));
    fs.assert_upper("");
}

#[test]
fn a_user_changes_an_own_lower_file_whose_directory_is_not_writable() {
    requires!(is_root(), ONE_USER);
    let mut fs = Fixture::new()
        .lower("d/ 0755; d/mine 'm' 0600 owner=1000:1000")
        .mount();
    as_user(1000, || {
        fs.append("d/mine", "+");
        fs.chmod("d/mine", 0o640);
        assert_eq!(errno(fs::write(fs.path("d/new"), "")), Some(Errno::ACCESS));
        assert_eq!(
            errno(fs::remove_file(fs.path("d/mine"))),
            Some(Errno::ACCESS)
        );
        assert_eq!(
            errno(fs::rename(fs.path("d/mine"), fs.path("d/x"))),
            Some(Errno::ACCESS)
        );
    });
    let file = "d/ 0755 owner=0:0; d/mine 'm+' 0640 owner=1000:1000";
    fs.assert_state(file, file);
}

#[test]
fn a_user_creates_in_an_own_lower_directory_and_owns_what_is_made() {
    requires!(is_root(), ONE_USER);
    let mut fs = Fixture::new()
        .lower("home/ 0700 owner=1000:1000; home/x owner=1000:1000")
        .mount();
    as_user(1000, || {
        fs.write("home/f", "f");
        fs.mkdir("home/d");
        fs.symlink("f", "home/l");
        fs.link("home/f", "home/g");
        fs.rename("home/x", "home/y");
    });
    let made = "home/f 'f' owner=1000:1000; home/d/ owner=1000:1000; home/l -> f owner=1000:1000;
        home/g = home/f; home/y '' owner=1000:1000";
    let made = made.replace("        ", "");
    fs.assert_state(
        &format!("home/ 0700 owner=1000:1000; {made}"),
        &format!(
            "home/ 0700; {}; home/x whiteout",
            made.replace("home/d/", "home/d/ opaque=either")
        ),
    );
}

#[test]
fn a_user_deletes_files_of_others_in_an_own_directory() {
    requires!(is_root(), ONE_USER);
    let mut fs = Fixture::new()
        .lower("home/ owner=1000:1000; home/roots 'r' 0600; home/d/")
        .mount();
    as_user(1000, || {
        fs.unlink("home/roots");
        fs.rmdir("home/d");
    });
    fs.assert_state(
        "home/ owner=1000:1000",
        "home/ owner=1000:1000; home/roots whiteout; home/d whiteout",
    );
}

#[test]
fn the_sticky_bit_protects_files_of_others() {
    requires!(is_root(), ONE_USER);
    let fs = Fixture::new()
        .lower("tmp/ 01777; tmp/roots 'r' 0666; tmp/mine owner=1000:1000")
        .mount();
    as_user(1000, || {
        assert_eq!(rustix::fs::unlink(fs.path("tmp/roots")), Err(Errno::PERM));
        let result = rustix::fs::rename(fs.path("tmp/roots"), fs.path("tmp/x"));
        assert_eq!(result, Err(Errno::PERM));
        fs.append("tmp/roots", "+");
        fs.unlink("tmp/mine");
    });
    fs.assert_merged("tmp/ 1777; tmp/roots 'r+' owner=0:0");
}

#[test]
fn a_directory_that_may_not_be_searched_hides_its_content() {
    requires!(is_root(), ONE_USER);
    let fs = Fixture::new()
        .lower("shut/ 0700; shut/f 'f' 0644; list/ 0744; list/f 'f'; pass/ 0711; pass/f 'f'")
        .mount();
    as_user(1000, || {
        assert_eq!(fs.lookup_error("shut/f"), Some(Errno::ACCESS));
        assert_eq!(errno(fs::read_dir(fs.path("shut"))), Some(Errno::ACCESS));
        assert_eq!(fs.names("list"), ["f"]);
        assert_eq!(fs.lookup_error("list/f"), Some(Errno::ACCESS));
        assert_eq!(fs.text("pass/f"), "f");
        assert_eq!(errno(fs::read_dir(fs.path("pass"))), Some(Errno::ACCESS));
    });
}

#[test]
fn chmod_chown_and_utimens_need_the_owner() {
    requires!(is_root(), ONE_USER);
    let fs = Fixture::new()
        .lower("roots 'r' 0666; mine 'm' owner=1000:1000")
        .mount();
    let uid = |uid| Some(rustix::fs::Uid::from_raw(uid));
    let gid = |gid| Some(rustix::fs::Gid::from_raw(gid));
    as_member(1000, 1000, &[500], || {
        assert_eq!(
            rustix::fs::chmod(fs.path("roots"), 0o777.into()),
            Err(Errno::PERM)
        );
        assert_eq!(
            rustix::fs::chown(fs.path("roots"), uid(1000), None),
            Err(Errno::PERM)
        );
        assert_eq!(
            rustix::fs::chown(fs.path("mine"), uid(1001), None),
            Err(Errno::PERM)
        );
        assert_eq!(
            rustix::fs::chown(fs.path("mine"), None, gid(501)),
            Err(Errno::PERM)
        );
        rustix::fs::chown(fs.path("mine"), None, gid(500)).unwrap();
        let time = rustix::fs::Timespec {
            tv_sec: 1,
            tv_nsec: 0,
        };
        let times = rustix::fs::Timestamps {
            last_access: time,
            last_modification: time,
        };
        let result = rustix::fs::utimensat(CWD, fs.path("roots"), &times, AtFlags::empty());
        assert_eq!(result, Err(Errno::PERM));
    });
    fs.assert_merged("roots 'r' 0666 owner=0:0; mine 'm' owner=1000:500");
}

#[test]
fn user_attributes_need_write_permission_and_trusted_ones_are_invisible() {
    requires!(is_root(), ONE_USER);
    let fs = Fixture::new()
        .lower("roots 'r' 0644 user.k='v' trusted.t='t'; mine owner=1000:1000 trusted.t='t'")
        .mount();
    as_user(1000, || {
        let flags = XattrFlags::empty();
        let set = |path, name| rustix::fs::lsetxattr(fs.path(path), name, b"x", flags);
        assert_eq!(set("roots", "user.k"), Err(Errno::ACCESS));
        assert_eq!(set("mine", "trusted.t"), Err(Errno::PERM));
        assert_eq!(set("mine", "user.k"), Ok(()));
        assert_eq!(
            crate::support::disk::xattr_names(&fs.path("roots")),
            ["user.k"]
        );
        assert_eq!(fs.xattr("mine", "trusted.t"), None);
    });
}

#[test]
fn root_reads_and_writes_everything() {
    requires!(is_root(), ONE_USER);
    let mut fs = Fixture::new()
        .lower("d/ 0 owner=1000:1000; d/f 'f' 0 owner=1000:1000")
        .mount();
    fs.append("d/f", "+");
    fs.write("d/g", "g");
    let state = "d/ 0000 owner=1000:1000; d/f 'f+' 0000 owner=1000:1000; d/g 'g' owner=0:0";
    fs.assert_state(state, state);
}

#[test]
fn access_answers_for_the_caller() {
    requires!(is_root(), ONE_USER);
    let fs = Fixture::new()
        .lower("r 0644; x 0755; none 0600; w 0606")
        .mount();
    as_user(1000, || {
        let access = |path, mode| accessat(CWD, fs.path(path), mode, AtFlags::empty());
        assert_eq!(access("r", Access::READ_OK), Ok(()));
        assert_eq!(access("r", Access::WRITE_OK), Err(Errno::ACCESS));
        assert_eq!(access("x", Access::EXEC_OK), Ok(()));
        assert_eq!(access("r", Access::EXEC_OK), Err(Errno::ACCESS));
        assert_eq!(access("none", Access::EXISTS), Ok(()));
        assert_eq!(access("none", Access::READ_OK), Err(Errno::ACCESS));
        assert_eq!(access("w", Access::WRITE_OK), Ok(()));
    });
    fs.assert_upper("");
}

#[test]
fn a_file_without_execute_permission_is_not_run() {
    let fs = Fixture::new()
        .lower("run 0644 '#!/bin/sh\necho ran'")
        .mount();
    assert_eq!(fs.sh("./run 2>/dev/null || echo refused"), "refused");
    fs.chmod("run", 0o755);
    assert_eq!(fs.sh("./run"), "ran");
}

#[test]
fn an_own_file_of_mode_0000_is_unreadable_for_its_owner_and_can_be_opened_up() {
    requires!(is_root(), ONE_USER);
    let mut fs = Fixture::new().lower("f 'f' 0 owner=1000:1000").mount();
    as_user(1000, || {
        assert_eq!(errno(fs::read(fs.path("f"))), Some(Errno::ACCESS));
        fs.chmod("f", 0o600);
        assert_eq!(fs.text("f"), "f");
    });
    fs.assert_state("f 'f' 0600 owner=1000:1000", "f 'f' 0600 owner=1000:1000");
}

#[test]
fn a_directory_that_its_owner_may_only_search_is_merged_like_others() {
    let mut fs = Fixture::new()
        .lower("d/f 'f'; d/g 'g'; d/h 'h'")
        .lower("d/below 'b'")
        .mount();
    fs.chmod("d", 0o300);
    let changed = "d/; d/moved 'f+'; d/h 'h'; d/below 'b'; d/new 'n'";
    assert_eq!(
        (fs.text("d/below"), fs.text("d/h")),
        ("b".into(), "h".into())
    );
    assert!((0..10).all(|number| fs.is_absent(format!("d/{number}"))));
    fs.append("d/f", "+");
    fs.rename("d/f", "d/moved");
    fs.unlink("d/g");
    fs.write("d/new", "n");
    fs.remount();
    assert_eq!(
        (fs.mode("d") & 0o7777, fs.text("d/moved")),
        (0o300, "f+".into())
    );
    assert!(fs.is_absent("d/g") && fs.is_absent("d/f"));
    fs.chmod("d", 0o755);
    fs.assert_merged(changed);
    fs.chmod("d", 0o300);
    for name in ["moved", "h", "below", "new"] {
        fs.unlink(format!("d/{name}"));
    }
    fs.rmdir("d");
    fs.assert_state("", "d whiteout");
}

#[test]
fn what_is_known_of_a_directory_that_may_only_be_searched_keeps_its_name_and_number() {
    let moves = crate::support::has_redirects();
    for timeout in [false, true] {
        if timeout && is_kernel() {
            continue;
        }
        let mut fixture = Fixture::new()
            .lower("d/f 'f'; d/sub/in 'in'; d/first '1'; d/over 'over'")
            .lowers_change();
        if timeout {
            fixture = fixture.option("timeout=0");
        }
        let mut merged = fixture.mount();
        // Not before, because the test could not list it either to see that it does not change.
        let lower = merged.lower(0, "d");
        let set_mode =
            |mode| fs::set_permissions(&lower, fs::Permissions::from_mode(mode)).unwrap();
        set_mode(0o300);
        assert_eq!(merged.text("d/over"), "over");
        merged.rename("d/first", "d/second");
        assert_eq!(merged.text("d/second"), "1");
        assert_eq!(merged.text("d/over"), "over");
        merged.rename("d/second", "d/over");
        assert_eq!(merged.text("d/over"), "1");
        merged.unlink("d/over");
        assert!(merged.is_absent("d/over") && merged.is_absent("d/second"));
        merged.write("d/second", "1");
        let (file, dir) = (merged.inode("d/f"), merged.inode("d/sub"));
        assert_eq!(
            (merged.text("d/f"), merged.text("d/sub/in")),
            ("f".into(), "in".into())
        );
        merged.write("d/new", "new");
        assert!((0..10).all(|number| merged.is_absent(format!("d/{number}"))));
        merged.rename("d/f", "d/g");
        merged.append("d/g", "+");
        assert_eq!(
            (merged.text("d/g"), merged.inode("d/g")),
            ("f+".into(), file)
        );
        assert_eq!(merged.inode("d/sub"), dir);
        if moves {
            merged.rename("d/sub", "d/x");
            merged.write("d/x/more", "more");
        }
        merged.remount();
        let gone = ["d/f", "d/first", "d/over"];
        assert!(gone.iter().all(|name| merged.is_absent(name)));
        assert_eq!(
            (merged.text("d/g"), merged.text("d/second")),
            ("f+".into(), "1".into())
        );
        merged.umount();
        set_mode(0o755);
        merged.mount().unwrap();
        merged.chmod("d", 0o755);
        let sub = if moves {
            "d/x/in 'in'; d/x/more 'more'"
        } else {
            "d/sub/in 'in'"
        };
        merged.assert_merged(&format!("d/g 'f+'; d/new 'new'; d/second '1'; {sub}"));
    }
}

#[test]
fn marks_of_directories_that_their_owner_may_not_read_count() {
    let mut fs = Fixture::new().lower("made/x; moved/f 'f'; plain").mount();
    fs.remove_tree("made");
    fs.mkdir("made");
    fs.chmod("made", 0o300);
    let moves = crate::support::has_redirects();
    if moves {
        fs.rename("moved", "away");
        fs.chmod("away", 0o300);
    }
    fs.remount();
    assert!(fs.is_absent("made/x"), "deleted content came back");
    fs.chmod("made", 0o755);
    assert!(fs.names("made").is_empty());
    if moves {
        assert_eq!(fs.text("away/f"), "f");
        fs.chmod("away", 0o755);
        fs.assert_state(
            "made/; away/f 'f'; plain",
            "made/ opaque; moved whiteout; away/ redirect=moved",
        );
    }
}

#[test]
fn what_is_open_in_a_directory_closed_to_everybody_can_be_used() {
    let mut fs = Fixture::new()
        .lower("d/f 'lower'; d/g 'g' 0644; d/e/h 'h'")
        .mount();
    let (changed, read, deep) = (fs.open_rw("d/f"), fs.open("d/g"), fs.open_rw("d/e/h"));
    fs.write("d/new", "");
    let new = fs.open_rw("d/new");
    fs.chmod("d/e", 0);
    fs.chmod("d", 0);
    for file in [&changed, &deep, &new] {
        file.write_all_at(b"upper", 0).unwrap();
        file.set_len(4).unwrap();
        file.sync_all().unwrap();
        assert_eq!(file.metadata().unwrap().len(), 4);
        let mut content = [0; 4];
        file.read_exact_at(&mut content, 0).unwrap();
        assert_eq!(&content, b"uppe");
    }
    rustix::fs::fchmod(&read, 0o600.into()).unwrap();
    rustix::fs::fsetxattr(&changed, "user.k", b"v", XattrFlags::empty()).unwrap();
    drop((changed, read, deep, new));
    fs.chmod("d", 0o755);
    fs.chmod("d/e", 0o755);
    let all = "d/f 'uppe' user.k='v'; d/g 'g' 0600; d/e/h 'uppe'; d/new 'uppe'";
    fs.assert_state(all, all);
}
