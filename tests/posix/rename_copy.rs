//! rename(2) of directories with `redirect_dir=copy`: what is in them is copied up first, so any union reads the upper.

use std::fs;
use std::io::Read;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rustix::io::Errno;

use crate::support::disk::fingerprint;
use crate::support::run::{Privilege, privilege, runs_with};
use crate::support::strace::Tracer;
use crate::support::{Fixture, has_index, has_origins, is_kernel, is_root, requires};

const OURS: &str = "the kernel renames by a mark or not at all";

fn fixture() -> Fixture {
    Fixture::new().option("redirect_dir=copy")
}

#[test]
fn a_lower_directory_is_copied_with_all_in_it_and_the_upper_has_no_redirect() {
    requires!(!is_kernel(), OURS);
    let mut fs = fixture()
        .lower("d/ 0750 user.k='v' mtime=1000; d/f 'f' mtime=2000; d/e/ mtime=3000; d/e/g 'g' 0600; d/s -> f; d/p fifo")
        .mount();
    let before: Vec<u64> = ["d", "d/f", "d/e", "d/e/g", "d/s"]
        .map(|path| fs.inode(path))
        .to_vec();
    fs.rename("d", "moved");
    let paths = ["moved", "moved/f", "moved/e", "moved/e/g", "moved/s"];
    assert!(fs.is_absent("d"));
    let after = paths.map(|path| fs.inode(path)).to_vec();
    assert_eq!(after, before);
    fs.assert_state(
        "moved/ 0750 user.k='v' mtime=1000; moved/f 'f' mtime=2000; moved/e/ mtime=3000; moved/e/g 'g' 0600;
         moved/s -> f; moved/p fifo",
        "d whiteout; moved/ opaque 0750 user.k='v' mtime=1000; moved/f 'f' mtime=2000; moved/e/ opaque mtime=3000;
         moved/e/g 'g' 0600; moved/s -> f; moved/p fifo",
    );
    if has_origins() {
        // Symlinks of an ordinary user take no marks, so their numbers hold for one mount.
        let again = paths[..4].iter().map(|path| fs.inode(path));
        assert_eq!(again.collect::<Vec<_>>(), before[..4]);
    }
}

#[test]
fn a_directory_merged_from_all_layers_shows_the_same_and_keeps_no_whiteout() {
    requires!(!is_kernel(), OURS);
    let mut fs = fixture()
        .lower("d/a 'a'; d/s/1 '1'; d/gone 'x'; d/o/top 't'")
        .lower("d/b 'b'; d/s/2 '2'; d/away/x 'x'; d/o/hidden")
        .upper("d/ mtime=1000; d/u 'u'; d/s/3 '3'; d/gone whiteout; d/away whiteout; d/o/ opaque; d/o/own 'o'; d/a 'changed'")
        .mount();
    fs.rename("d", "e");
    fs.assert_state(
        "e/ mtime=1000; e/a 'changed'; e/b 'b'; e/u 'u'; e/s/1 '1'; e/s/2 '2'; e/s/3 '3'; e/o/own 'o'",
        "d whiteout; e/ opaque mtime=1000; e/a 'changed'; e/b 'b'; e/u 'u'; e/s/ opaque; e/s/1 '1'; e/s/2 '2'; e/s/3 '3';
         e/o/ opaque; e/o/own 'o'",
    );
}

#[test]
fn it_can_be_used_removed_and_made_again_at_once() {
    requires!(!is_kernel(), OURS);
    let mut fs = fixture().lower("p/d/f 'f'; p/d/e/g 'g'; q/x").mount();
    fs.rename("p/d", "q/d");
    fs.append("q/d/f", "+");
    fs.unlink("q/d/e/g");
    fs.rename("q/d/e", "q/e");
    fs.mkdir("p/d");
    fs.write("p/d/new", "n");
    fs.assert_state(
        "p/d/new 'n'; q/x; q/e/; q/d/f 'f+'",
        "p/d/ opaque; p/d/new 'n'; q/e/ opaque; q/d/ opaque; q/d/f 'f+'",
    );
}

#[test]
fn a_directory_with_a_redirect_from_before_loses_it() {
    requires!(!is_kernel(), OURS);
    let mut fs = fixture()
        .lower("d/f 'f'; d/e/g 'g'")
        .upper("d whiteout; m/ redirect=d; m/u 'u'")
        .mount();
    fs.rename("m", "n");
    fs.assert_state(
        "n/f 'f'; n/e/g 'g'; n/u 'u'",
        "d whiteout; n/ opaque; n/f 'f'; n/e/ opaque; n/e/g 'g'; n/u 'u'",
    );
}

#[test]
fn both_of_an_exchange_are_copied() {
    requires!(!is_kernel(), OURS);
    let mut fs = fixture().lower("a/1 '1'; b/2 '2'").mount();
    rustix::fs::renameat_with(
        rustix::fs::CWD,
        fs.path("a"),
        rustix::fs::CWD,
        fs.path("b"),
        rustix::fs::RenameFlags::EXCHANGE,
    )
    .unwrap();
    fs.assert_state("a/2 '2'; b/1 '1'", "a/ opaque; a/2 '2'; b/ opaque; b/1 '1'");
}

#[test]
fn a_rename_that_is_refused_has_copied_nothing() {
    requires!(!is_kernel(), OURS);
    let fs = fixture().lower("d/f 'f'; full/x; file").mount();
    let before = fingerprint(&fs.upper(""));
    for (target, error) in [
        ("full", Errno::NOTEMPTY),
        ("file", Errno::NOTDIR),
        ("d/below", Errno::INVAL),
    ] {
        let renamed = rustix::fs::rename(fs.path("d"), fs.path(target));
        assert_eq!(renamed, Err(error), "{target}");
    }
    assert_eq!(fingerprint(&fs.upper("")), before);
}

#[test]
fn an_open_file_and_a_working_directory_survive_the_rename() {
    requires!(!is_kernel(), OURS);
    let mut fs = fixture().lower("d/f 'content'; d/e/g").mount();
    let mut file = fs.open("d/f");
    let answer = fs.sh("cd d/e; mv ../../d ../../moved; echo new > h; ls ../../moved/e");
    assert_eq!(answer, "g\nh");
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "content");
    drop(file);
    fs.assert_state(
        "moved/f 'content'; moved/e/g; moved/e/h 'new\\n'",
        "d whiteout; moved/ opaque; moved/f 'content'; moved/e/ opaque; moved/e/g; moved/e/h 'new\\n'",
    );
}

#[test]
fn hard_links_into_the_directory_stay_links() {
    requires!(!is_kernel() && has_index(), "hard links need the index");
    let mut fs = fixture()
        .lower("d/in 'x'; out = d/in; d/both = d/in")
        // Without a workdir it has no index.
        .not_for_the_kernel()
        .mount();
    fs.rename("d", "m");
    fs.append("out", "+");
    assert_eq!(fs.text("m/in"), "x+");
    assert_eq!(fs.inode("m/in"), fs.inode("out"));
    fs.assert_state(
        "m/both 'x+'; m/in = m/both; out = m/both",
        "d whiteout; m/ opaque; m/both 'x+'; m/in = m/both",
    );
}

#[test]
fn others_work_in_the_tree_and_outside_meanwhile() {
    requires!(!is_kernel(), OURS);
    let files: Vec<String> = (0..100)
        .map(|n| format!("d/{}/f{n} '{n}'", n % 7))
        .collect();
    let mut fs = fixture()
        .lower(&(files.join("; ") + "; busy/x; d/made/"))
        .mount();
    // Each copy takes a while.
    let slow = "utimensat:delay_enter=5000";
    let tracer = Tracer::attach(fs.daemon(), &fs.aside("calls"), Some(slow)).unwrap();
    let (done, changes) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0.. {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                fs.write("busy/x", format!("{n}"));
                let number = n * 7 + 3;
                // Of those there are only so many.
                fs::remove_file(fs.path(format!("d/3/f{number}"))).ok();
                fs::rename(
                    fs.path(format!("d/5/f{}", number + 2)),
                    fs.path(format!("d/5/other{}", number + 2)),
                )
                .ok();
                let made = fs::write(fs.path(format!("d/made/{n}")), "n");
                changes.fetch_add(usize::from(made.is_ok()), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        // While the first changes are made.
        std::thread::sleep(Duration::from_millis(20));
        let before = changes.load(Ordering::Relaxed);
        fs.rename("d", "m");
        done.store(true, Ordering::Relaxed);
        assert!(
            changes.load(Ordering::Relaxed) > before,
            "nobody could work in it"
        );
    });
    tracer.detach().unwrap();
    fs.write("busy/x", "end");
    fs.remove_tree("m/made");
    let shown: Vec<String> = (0..100)
        .filter_map(|n| {
            let path = |name| fs.path(format!("m/{}/{name}{n}", n % 7));
            if path("f").exists() {
                return Some(format!("m/{}/f{n} '{n}'", n % 7));
            }
            let other = path("other").exists();
            assert!(n % 7 == 3 || other, "{n} is lost");
            other.then(|| format!("m/{}/other{n} '{n}'", n % 7))
        })
        .collect();
    fs.remount();
    fs.assert_merged(&(shown.join("; ") + "; busy/x 'end'; m/3/; m/5/"));
}

#[test]
fn what_was_deleted_in_it_can_be_made_again() {
    requires!(!is_kernel(), OURS);
    requires!(
        !runs_with("xattr_permissions=2"),
        "a chmod there does not reach the directory on disk, which stays closed"
    );
    let mut fs = fixture()
        .lower("d/gone 'g'; d/keep 'k'")
        .upper("d/ 0555; d/gone whiteout")
        .mount();
    fs.rename("d", "m");
    fs.chmod("m", 0o755);
    fs.write("m/gone", "back");
    fs.assert_state(
        "m/gone 'back'; m/keep 'k'",
        "d whiteout; m/ opaque; m/gone 'back'; m/keep 'k'",
    );
}

#[test]
fn what_files_delete_by_an_xattr_stays_deleted() {
    requires!(!is_kernel(), OURS);
    let mut fs = fixture()
        .lower("d/gone 'g'; d/keep 'k'")
        .upper("d/gone whiteout=xattr; d/own 'o'")
        .not_for_the_kernel()
        .mount();
    fs.rename("d", "m");
    fs.assert_state(
        "m/keep 'k'; m/own 'o'",
        "d whiteout; m/ opaque; m/keep 'k'; m/own 'o'",
    );
}

#[test]
fn what_cannot_be_copied_is_exdev_so_that_mv_copies_what_it_can() {
    requires!(!is_kernel(), OURS);
    requires!(privilege() == Privilege::User, "root copies everything");
    let fs = fixture().lower("d/f 'f' 0000; d/g 'g'").mount();
    let renamed = rustix::fs::rename(fs.path("d"), fs.path("m"));
    assert_eq!(renamed, Err(Errno::XDEV));
    assert_eq!(fs.text("d/g"), "g");
    assert_eq!(fs.mode("d/f"), 0);
}

#[test]
fn without_xattrs_a_lower_directory_is_copied_unasked() {
    requires!(!is_kernel(), OURS);
    requires!(is_root(), "mounts a file system");
    requires!(
        !runs_with("xattr_permissions=2"),
        "refused where there are no xattrs"
    );
    let mut fs = Fixture::new()
        .lower("d/f 'f'; d/gone; d/e/g 'g'")
        .upper_on("ramfs:mode=755")
        .not_for_the_kernel()
        .mount();
    fs.unlink("d/gone");
    fs.rename("d", "m");
    fs.rename("m/e", "m/again");
    fs.assert_merged("m/f 'f'; m/again/g 'g'");
    fs.remount();
    fs.assert_merged("m/f 'f'; m/again/g 'g'");
}
