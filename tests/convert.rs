//! `plyfs convert`: an upper in another form shows the same.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use crate::support::disk::{fingerprint, namespace, xattr};
use crate::support::run::{Privilege, privilege};
use crate::support::strace::calls;
use crate::support::{Fixture, Mounted, has_index, is_kernel, is_root, requires};

const OURS: &str = "the kernel has no such program";

fn convert(upper: &Path, arguments: &[impl AsRef<std::ffi::OsStr>]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_plyfs"))
        .arg("convert")
        .args(arguments)
        .arg(upper)
        .output()
        .unwrap()
}

/// `--lower` and `--work` of the fixture, before other arguments.
fn over_lower(fs: &Mounted, arguments: &[&str]) -> Vec<String> {
    let place = |path: std::path::PathBuf| path.to_str().unwrap().to_owned();
    let layers = [
        "--lower".into(),
        place(fs.lower(0, "")),
        "--work".into(),
        place(fs.work("")),
    ];
    let arguments = arguments.iter().map(|argument| (*argument).to_owned());
    layers.into_iter().chain(arguments).collect()
}

/// Converts the upper, which must succeed; what it prints.
fn converted(fs: &Mounted, arguments: &[impl AsRef<std::ffi::OsStr>]) -> String {
    let output = convert(&fs.upper(""), arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    String::from_utf8(output.stdout).unwrap()
}

/// The sentence and code of a refusal.
fn refused(fs: &Mounted, arguments: &[impl AsRef<std::ffi::OsStr>]) -> (String, i32) {
    let before = fingerprint(&fs.upper(""));
    let output = convert(&fs.upper(""), arguments);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    assert_eq!(said.lines().count(), 1, "{said}");
    assert_eq!(fingerprint(&fs.upper("")), before, "{said}");
    (said, output.status.code().unwrap())
}

const LOWER: &str = "a 'a'; b 'b'; d/e 'e'; d/f 'f'; d/sub/g 'g'; o/p 'p'; o/q/r 'r'; keep 'k'";
const MERGED: &str = "b 'b2'; d/ 0750; d/f 'f'; d/new 'n'; o/; o/s 's'; keep 'k'";
const DEVICES: &str = "a whiteout; b 'b2'; d/ 0750 mtime=1000; d/e whiteout; d/new 'n'; d/sub whiteout; o/ opaque mtime=2000; o/s 's'";
const FILES: &str = "a whiteout=aufs; b 'b2'; d/ 0750 mtime=1000; d/e whiteout=aufs; d/new 'n'; d/sub whiteout=aufs;
o/ opaque=file mtime=2000; o/s 's'";

fn stack(upper: &str) -> Mounted {
    let mut fs = Fixture::new().lower(LOWER).upper(upper).mount();
    fs.umount();
    fs
}

#[test]
fn marks_of_the_kernel_become_files_and_marks_again() {
    requires!(!is_kernel(), OURS);
    let mut fs = stack(DEVICES);
    assert_eq!(
        converted(&fs, &["--to", "overlay"]),
        "converted nothing: it has that form\n"
    );
    assert_eq!(
        converted(&fs, &["--to", "aufs"]),
        "converted 3 whiteouts, 1 opaque directory\n"
    );
    fs.assert_upper(FILES);
    fs.mount().unwrap();
    fs.assert_merged(MERGED);
    fs.umount();
    assert_eq!(
        converted(&fs, &["--to", "aufs"]),
        "converted nothing: it has that form\n"
    );
    let json = converted(
        &fs,
        &[
            "--to",
            "overlay",
            "--json",
            "--work",
            fs.work("").to_str().unwrap(),
        ],
    );
    assert_eq!(
        json,
        "{\"whiteouts\":3,\"opaque\":1,\"moved\":0,\"removed\":0,\"completed\":0}\n"
    );
    fs.assert_upper(DEVICES);
    fs.mount().unwrap();
    // The kernel shows it as well.
    fs.assert_state(MERGED, DEVICES);
}

#[test]
fn every_form_that_is_read_becomes_the_one_asked_for() {
    requires!(!is_kernel(), OURS);
    for (opaque, whiteout) in [
        ("fuse", "xattr"),
        ("file", "xattr"),
        ("user", "aufs"),
        ("fuse", "device"),
    ] {
        // What others wrote for themselves says nothing to the kernel.
        let upper = format!("{DEVICES}; keep 'k2' user.fuseoverlayfs.origin='keep'");
        let upper = upper
            .replace("opaque", &format!("opaque={opaque}"))
            .replace(" whiteout", &format!(" whiteout={whiteout}"));
        for (form, wanted) in [("overlay", DEVICES), ("aufs", FILES)] {
            let mut fs = stack(&upper);
            converted(&fs, &["--to", form]);
            let note = if form == "overlay" {
                ""
            } else {
                " user.fuseoverlayfs.origin='keep'"
            };
            fs.assert_upper(&format!("{wanted}; keep 'k2'{note}"));
            fs.mount().unwrap();
            fs.assert_merged(&MERGED.replace("'k'", "'k2'"));
            fs.umount();
            assert_eq!(
                converted(&fs, &["--to", form]),
                "converted nothing: it has that form\n"
            );
        }
    }
}

#[test]
fn a_whiteout_beside_what_it_deletes_keeps_what_the_mount_shows() {
    requires!(!is_kernel(), OURS);
    let mut fs = Fixture::new()
        .lower("d/below 'b'; f 'lower'")
        .upper("d/own 'o'; .wh.d ''; f 'upper'; .wh.f ''")
        .not_for_the_kernel()
        .mount();
    let merged = "d/own 'o'; f 'upper'";
    fs.assert_merged(merged);
    fs.umount();
    assert_eq!(
        converted(&fs, &["--to", "overlay"]),
        "converted 2 whiteouts\n"
    );
    fs.assert_upper("d/ opaque; d/own 'o'; f 'upper'");
    fs.mount().unwrap();
    fs.assert_merged(merged);
}

#[test]
fn a_dry_run_names_the_paths_and_changes_nothing() {
    requires!(!is_kernel(), OURS);
    let fs = stack(DEVICES);
    let before = fingerprint(&fs.upper(""));
    let said = converted(&fs, &["--to", "aufs", "--dry-run"]);
    let wanted = "whiteout   a\nwhiteout   d/e\nwhiteout   d/sub\nopaque     o\nwould convert 3 whiteouts, 1 opaque directory\n";
    assert_eq!(said, wanted);
    assert_eq!(fingerprint(&fs.upper("")), before);
}

#[test]
fn what_aufs_cannot_say_is_refused_and_nothing_is_changed() {
    requires!(!is_kernel(), OURS);
    let long = "n".repeat(252);
    for (upper, path, why) in [
        (
            "x whiteout; new/ redirect=/old".to_owned(),
            "new",
            "is renamed",
        ),
        (
            "x whiteout; f hole=5 metacopy".to_owned(),
            "f",
            "data in a lower",
        ),
        (format!("{long} whiteout; x whiteout"), &*long, "too long"),
    ] {
        let mut fs = Fixture::new()
            .lower(&format!("old/in 'i'; f '12345'; x 'x'; {long} 'l'"))
            .upper(&upper)
            .mount();
        fs.umount();
        let (said, code) = refused(&fs, &["--to", "aufs"]);
        assert!(
            said.contains(&format!("/{path} ")) && said.contains(why),
            "{said}"
        );
        assert!(said.contains("nothing was changed"), "{said}");
        assert_eq!(code, 4);
    }
}

#[test]
fn links_that_only_the_index_joins_are_refused_for_aufs() {
    requires!(!is_kernel(), OURS);
    let mut fs = Fixture::new().lower("one 'x'; two = one").mount();
    fs.append("one", "+");
    fs.umount();
    let (said, _) = refused(&fs, &["--to", "aufs"]);
    assert!(
        said.contains("/one ") && said.contains("linked with names of a lower"),
        "{said}"
    );
    // With all its names in the upper it is an ordinary file.
    fs.mount().unwrap();
    fs.rename("two", "three");
    fs.umount();
    converted(&fs, &["--to", "aufs"]);
}

const BELOW: &str =
    "d/f 'f'; d/e/g 'g' 0600; d/e/gone; meta '12345'; one 'x'; two = one; sub/three = one; x 'x'";
const LEADING: &str = "d whiteout; moved/ redirect=d mtime=1000; moved/u 'u'; moved/e/ mtime=2000; moved/e/gone whiteout;
meta hole=5 metacopy 0600; x whiteout; own/e/ redirect=/d/e";
const LED: &str = "moved/ mtime=1000; moved/u 'u'; moved/f 'f'; moved/e/ mtime=2000; moved/e/g 'g' 0600; meta '12345' 0600;
own/e/g 'g' 0600; own/e/gone; one 'x'; two = one; sub/three = one";

#[test]
fn with_the_lowers_what_marks_lead_to_is_copied_up_first() {
    requires!(!is_kernel(), OURS);
    let wanted = |whiteout: &str, opaque: &str| {
        format!(
            "d whiteout{whiteout}; moved/ {opaque} mtime=1000; moved/u 'u'; moved/f 'f'; moved/e/ {opaque} mtime=2000;
             moved/e/g 'g' 0600; meta '12345' 0600; x whiteout{whiteout}; own/e/ {opaque}; own/e/g 'g' 0600; own/e/gone"
        )
    };
    for (form, said, upper) in [
        (
            "aufs",
            "converted 2 whiteouts, 3 opaque directories, 3 objects with what they were in the lowers\n",
            wanted("=aufs", "opaque=file"),
        ),
        (
            "overlay",
            "converted 3 objects with what they were in the lowers\n",
            wanted("", "opaque"),
        ),
    ] {
        let mut fs = Fixture::new().lower(BELOW).upper(LEADING).mount();
        fs.assert_merged(LED);
        fs.umount();
        let arguments = over_lower(&fs, &["--to", form]);
        let before = fingerprint(&fs.upper(""));
        let plan = converted(&fs, &over_lower(&fs, &["--to", form, "--dry-run"]));
        for line in [
            "complete   moved\n",
            "complete   meta\n",
            "complete   own/e\n",
        ] {
            assert!(plan.contains(line), "{plan}");
        }
        assert_eq!(fingerprint(&fs.upper("")), before);
        assert_eq!(converted(&fs, &arguments), said);
        fs.assert_upper(&upper);
        assert_eq!(
            converted(&fs, &arguments),
            "converted nothing: it has that form\n"
        );
        fs.mount().unwrap();
        fs.assert_merged(LED);
    }
}

#[test]
fn with_the_lowers_links_that_the_index_joins_are_made_in_the_upper() {
    requires!(!is_kernel() && has_index(), OURS);
    let mut fs = Fixture::new().lower(BELOW).mount();
    fs.append("two", "+");
    fs.umount();
    let said = converted(&fs, &over_lower(&fs, &["--to", "aufs", "--json"]));
    let counts: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(counts["completed"], 2, "{said}");
    fs.assert_upper("one 'x+'; sub/three = one; two = one");
    fs.mount().unwrap();
    fs.assert_merged("d/f 'f'; d/e/g 'g' 0600; d/e/gone; meta '12345'; one 'x+'; sub/three = one; two = one; x 'x'");
}

#[test]
fn a_link_whose_other_name_is_nowhere_in_the_view_is_an_ordinary_file() {
    requires!(!is_kernel() && has_index(), OURS);
    let mut fs = Fixture::new().lower("one 'x'").lowers_change().mount();
    fs.umount();
    fs::hard_link(fs.lower(0, "one"), fs.aside("elsewhere")).unwrap();
    fs.mount().unwrap();
    fs.append("one", "+");
    fs.umount();
    converted(&fs, &over_lower(&fs, &["--to", "aufs"]));
    fs.assert_upper("one 'x+'");
}

#[test]
fn a_redirect_without_a_meaning_goes() {
    requires!(!is_kernel(), OURS);
    let mut fs = Fixture::new()
        .lower("old 'o'")
        .upper("f 'own' redirect=/old")
        .mount();
    fs.umount();
    converted(&fs, &over_lower(&fs, &["--to", "aufs"]));
    fs.assert_upper("f 'own'");
}

#[test]
fn marks_of_the_namespace_that_is_said_are_followed_and_others_refused() {
    requires!(!is_kernel(), OURS);
    requires!(is_root(), "only root has a choice");
    let mut fs = Fixture::new().lower("d/f 'f'").option("userxattr").mount();
    fs.rename("d", "m");
    fs.umount();
    let (said, _) = refused(&fs, &over_lower(&fs, &["--to", "overlay"]));
    assert!(
        said.contains("/m ") && said.contains("--namespace"),
        "{said}"
    );
    converted(
        &fs,
        &over_lower(&fs, &["--to", "overlay", "--namespace", "user"]),
    );
    assert_eq!(xattr(&fs.upper("m"), "user.overlay.redirect"), None);
    assert_eq!(
        xattr(&fs.upper("m"), "user.overlay.opaque"),
        Some(b"y".to_vec())
    );
    assert_eq!(fs::read_to_string(fs.upper("m/f")).unwrap(), "f");
}

#[test]
fn other_lowers_than_those_of_the_upper_are_refused() {
    requires!(!is_kernel(), OURS);
    let mut fs = Fixture::new()
        .lower("other 'o'")
        .upper("moved/ redirect=d; moved/u 'u'")
        .mount();
    fs.umount();
    let (said, code) = refused(&fs, &over_lower(&fs, &["--to", "overlay"]));
    assert!(
        said.contains("/moved leads to what none of the lowers has"),
        "{said}"
    );
    assert_eq!(code, 3);
    let work = fs.work("");
    let (said, code) = refused(
        &fs,
        &[
            "--to",
            "aufs",
            "--lower",
            "/nowhere",
            "--work",
            work.to_str().unwrap(),
        ],
    );
    assert!(said.contains("/nowhere"), "{said}");
    assert_eq!(code, 3);
    let output = convert(&fs.upper(""), &["--to", "aufs", "--lower", "/"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn an_upper_in_use_is_refused() {
    requires!(!is_kernel(), OURS);
    let mut fs = Fixture::new().lower("a 'a'").upper("a whiteout").mount();
    let output = convert(&fs.upper(""), &["--to", "aufs"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(5), "{said}");
    assert!(said.contains("in use by another mount"), "{said}");
    fs.umount();
    converted(&fs, &["--to", "aufs"]);
}

#[test]
fn an_upper_mounted_by_others_is_refused() {
    requires!(!is_kernel(), OURS);
    requires!(
        privilege() != Privilege::User,
        "the kernel wants a user namespace"
    );
    let fs = stack("a whiteout");
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        fs.lower(0, "").display(),
        fs.upper("").display(),
        fs.work("").display()
    );
    let userxattr = if is_root() { "" } else { ",userxattr" };
    let kernel = format!(
        "mount -t overlay -o {options}{userxattr} o {}",
        fs.path("").display()
    );
    let fuse = format!("fuse-overlayfs -o {options} {}", fs.path("").display());
    for (mount, who) in [(kernel, "kernel overlayfs"), (fuse, "fuse-overlayfs")] {
        crate::support::fixture::run("sh", &["-c", &mount]);
        let output = convert(&fs.upper(""), &["--to", "aufs"]);
        let said = String::from_utf8(output.stderr).unwrap();
        rustix::mount::unmount(fs.path(""), rustix::mount::UnmountFlags::empty()).unwrap();
        assert_eq!(output.status.code(), Some(5), "{said}");
        assert!(said.contains(who), "{said}");
    }
}

#[test]
fn what_is_no_upper_or_no_sense_is_refused_with_a_sentence() {
    requires!(!is_kernel(), OURS);
    let fs = stack(".wh.stray 'not empty'; a whiteout");
    let (said, code) = refused(&fs, &["--to", "overlay"]);
    assert!(
        said.contains(".wh.stray") && said.contains("no empty file"),
        "{said}"
    );
    assert_eq!(code, 4);
    let (said, code) = refused(&fs, &["--to", "aufs", "--namespace", "user"]);
    assert!(said.contains("--namespace is of no use"), "{said}");
    assert_eq!(code, 2);
    let missing = convert(&fs.upper("missing"), &["--to", "aufs"]);
    assert_eq!(missing.status.code(), Some(4), "{missing:?}");
    if !is_root() {
        let (said, code) = refused(&fs, &["--to", "overlay", "--namespace", "trusted"]);
        assert!(said.contains("for root"), "{said}");
        assert_eq!(code, 2);
    }
}

#[test]
fn marks_that_lead_elsewhere_change_their_namespace_only_if_that_is_said() {
    requires!(!is_kernel(), OURS);
    requires!(is_root(), "only root reads both namespaces");
    let mut fs = Fixture::new()
        .lower("old/in 'i'; f '12345'; gone 'g'")
        .upper("new/ user.overlay.redirect='/old'; old whiteout; f hole=5 user.overlay.metacopy=''; o/ opaque=user")
        .not_for_the_kernel()
        .mount();
    fs.umount();
    let (said, code) = refused(&fs, &["--to", "overlay"]);
    assert!(
        said.contains("--namespace trusted") && said.contains("and 1 more"),
        "{said}"
    );
    assert_eq!(code, 4);
    let said = converted(&fs, &["--to", "overlay", "--namespace", "trusted"]);
    assert_eq!(
        said,
        "converted 1 opaque directory, 2 xattrs of the other namespace\n"
    );
    fs.assert_upper("new/ redirect=/old; old whiteout; f hole=5 metacopy; o/ opaque=trusted");
    fs.mount().unwrap();
    fs.assert_merged("new/in 'i'; f '12345'; gone 'g'; o/");
    fs.umount();
    converted(&fs, &["--to", "overlay", "--namespace", "user"]);
    assert_eq!(
        xattr(&fs.upper("new"), "user.overlay.redirect"),
        Some(b"/old".to_vec())
    );
    assert_eq!(xattr(&fs.upper("new"), "trusted.overlay.redirect"), None);
}

#[test]
fn bookkeeping_of_aufs_goes_if_it_is_empty() {
    requires!(!is_kernel(), OURS);
    let fs = stack(".wh..wh.plnk/; .wh..wh.orph/; .wh..wh.aufs ''; .wh.a ''; b 'b'");
    let said = converted(&fs, &["--to", "overlay"]);
    assert_eq!(said, "converted 1 whiteout, 3 notes of other unions\n");
    fs.assert_upper("a whiteout; b 'b'");
    let fs = stack(".wh..wh.plnk/1.2 'x'");
    let (said, _) = refused(&fs, &["--to", "overlay"]);
    assert!(
        said.contains("bookkeeping of aufs that is not empty"),
        "{said}"
    );
}

/// Kills the conversion at each call that changes something; the mount must show the same, and a second run finish.
fn survive(
    stack: impl Fn() -> Mounted,
    arguments: impl Fn(&Mounted) -> Vec<String>,
    merged: &str,
    wanted: &str,
) {
    let record = tempfile::NamedTempFile::new().unwrap();
    let run = |fs: &Mounted, inject: Option<&str>| {
        let mut strace = Command::new("strace");
        strace.args(["-f", "-qq", "-o"]).arg(record.path());
        strace.args(["-e", &format!("trace={}", crate::support::strace::MUTATING)]);
        if let Some(inject) = inject {
            strace.args(["-e", &format!("inject={inject}")]);
        }
        strace.arg(env!("CARGO_BIN_EXE_plyfs"));
        strace
            .arg("convert")
            .args(arguments(fs))
            .arg(fs.upper(""))
            .output()
            .unwrap()
    };
    let fs = stack();
    assert!(run(&fs, None).status.success());
    let counts = calls(record.path());
    let mut kills = 0;
    for (call, count) in counts {
        for n in 1..=count {
            let mut fs = stack();
            run(&fs, Some(&format!("{call}:signal=KILL:when={n}")));
            let left = fingerprint(&fs.upper(""));
            fs.mount()
                .unwrap_or_else(|error| panic!("{call} {n}: {error}"));
            let shown = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                fs.assert_merged(&without_times(merged));
            }));
            assert!(shown.is_ok(), "killed at {call} {n}, which left\n{left}");
            fs.umount();
            converted(&fs, &arguments(&fs));
            // The times of the directory it was at are gone.
            fs.assert_upper(&without_times(wanted));
            kills += 1;
        }
    }
    assert!(kills > 10, "{kills} kills");
}

#[test]
fn a_kill_at_any_moment_leaves_an_upper_that_shows_the_same() {
    requires!(!is_kernel(), OURS);
    let to = |form: &'static str| move |_: &Mounted| vec!["--to".to_owned(), form.to_owned()];
    survive(|| stack(DEVICES), to("aufs"), MERGED, FILES);
    survive(|| stack(FILES), to("overlay"), MERGED, DEVICES);
    let xattrs = DEVICES
        .replace(" whiteout", " whiteout=xattr")
        .replace("opaque", "opaque=fuse");
    survive(|| stack(&xattrs), to("overlay"), MERGED, DEVICES);
}

#[test]
fn a_kill_while_the_lowers_are_copied_up_leaves_an_upper_that_shows_the_same() {
    requires!(!is_kernel(), OURS);
    let stack = || {
        let mut fs = Fixture::new()
            .lower("d/e/g 'g' 0600; d/gone; meta '12345'")
            .upper("d whiteout; moved/ redirect=d; moved/gone whiteout; meta hole=5 metacopy 0600")
            .mount();
        fs.umount();
        fs
    };
    survive(
        stack,
        |fs| over_lower(fs, &["--to", "aufs"]),
        "moved/e/g 'g' 0600; meta '12345' 0600",
        "d whiteout=aufs; moved/ opaque=file; moved/e/ opaque=file; moved/e/g 'g' 0600; meta '12345' 0600",
    );
}

/// Times that were set, taken out of a tree.
fn without_times(tree: &str) -> String {
    tree.replace(" mtime=1000", "").replace(" mtime=2000", "")
}

#[test]
fn an_upper_of_another_user_is_refused_before_anything_changes() {
    requires!(!is_kernel(), OURS);
    requires!(privilege() == Privilege::User, "root writes everywhere");
    let fs = stack("d/ 0555; d/e whiteout; a whiteout");
    let (said, code) = refused(&fs, &["--to", "aufs"]);
    assert!(said.contains("/d: ") && said.contains("as root"), "{said}");
    assert_eq!(code, 4);
    fs::set_permissions(
        fs.upper("d"),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    converted(&fs, &["--to", "aufs"]);
    assert_eq!(namespace(), "user");
}
