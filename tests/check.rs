//! `plyfs check`: what is wrong with the marks of an upper, and what to do.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::support::disk::namespace;
use crate::support::run::own_ids;
use crate::support::{Fixture, Mounted, is_kernel, is_root, requires};

const OURS: &str = "the kernel has no such program";

fn check(upper: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_plyfs"))
        .arg("check")
        .args(arguments)
        .arg(upper)
        .output()
        .unwrap()
}

fn at_rest(upper: &str) -> Mounted {
    let mut fs = Fixture::new()
        .lower("l 'l'")
        .upper(upper)
        .not_for_the_kernel()
        .mount();
    fs.umount();
    fs
}

/// `PATH KIND` of every problem.
fn problems(fs: &Mounted, arguments: &[&str]) -> Vec<String> {
    let output = check(&fs.upper(""), &[arguments, &["--json"]].concat());
    let json: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    let problems = json["problems"].as_array().unwrap();
    let code = if problems.is_empty() { 0 } else { 10 };
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    let text = |problem: &Value, key: &str| problem[key].as_str().unwrap().to_owned();
    for problem in problems {
        assert!(!text(problem, "problem").is_empty() && !text(problem, "advice").is_empty());
    }
    problems
        .iter()
        .map(|problem| format!("{} {}", text(problem, "path"), text(problem, "kind")))
        .collect()
}

#[test]
fn what_a_mount_wrote_has_no_problem() {
    requires!(!is_kernel(), OURS);
    for options in [
        "redirect_dir=on",
        "metacopy=on",
        "userxattr",
        "xattr_permissions=2",
    ] {
        let mut fs = Fixture::new()
            .lower("gone 'g'; d/a 'a'; d/b 'b'; old/x 'x'; one '1'; two = one; meta 'm'; l -> d")
            .option(options)
            .not_for_the_kernel()
            .mount();
        fs.sh("rm gone; rm -r d; mkdir d; echo n > d/n; mv old new; echo + >> one; chmod 600 meta; mv meta meta2; mkfifo p; mv l l2");
        fs.umount();
        let work = fs.work("");
        let options: &[&str] = &["--work", work.to_str().unwrap()];
        if fs.options()[0] == "userxattr" && is_root() {
            // Root believes what leads elsewhere in the other namespace only.
            let found = problems(&fs, options);
            assert_eq!(found, ["new not-believed"]);
        } else {
            assert_eq!(problems(&fs, options), [""; 0]);
        }
    }
}

#[test]
fn a_clean_upper_says_so_and_a_bad_one_has_a_line_for_each_problem() {
    requires!(!is_kernel(), OURS);
    let fs = at_rest("a whiteout; d/ opaque; d/f 'f'");
    let output = check(&fs.upper(""), &[]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.ends_with("/upper: 3 objects, no problem\n"), "{said}");
    let ns = namespace();
    let fs = at_rest(&format!("d/f 'f' {ns}.overlay.opaque='y'; .wh.x 'text'"));
    let output = check(&fs.upper(""), &[]);
    let said = String::from_utf8(output.stdout).unwrap();
    let wanted = format!(
        ".wh.x: has the name of a mark but is no empty file: no union shows it: rename or remove it\n\
         d/f: {ns}.overlay.opaque is on what is no directory: remove the xattr: setfattr -x {ns}.overlay.opaque\n"
    );
    assert_eq!(said, wanted);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.ends_with("/upper has 2 problems: do what their lines say\n"),
        "{said}"
    );
    assert_eq!(output.status.code(), Some(10));
}

#[test]
fn every_malformed_or_misplaced_mark_is_found() {
    requires!(!is_kernel(), OURS);
    let overlay = format!("{}.overlay.", namespace());
    for (upper, wanted) in [
        ("d/ NSopaque='maybe'", "d opaque-malformed"),
        ("f 'x' NSopaque='y'", "f opaque-not-directory"),
        ("d/ NSredirect='a/b'", "d redirect-malformed"),
        ("d/ NSredirect='/a//b'", "d redirect-malformed"),
        ("d/ NSmetacopy=''", "d metacopy-misplaced"),
        ("f 'x' NSmetacopy='zz'", "f metacopy-malformed"),
        ("f 'x' NSorigin='nonsense'", "f origin-malformed"),
        ("f 'x' NSimpure='y'", "f impure-misplaced"),
        ("f 'x' NSnlink='7'", "f nlink-malformed"),
        ("f 'x' NSwhiteout=''", "f whiteout-not-empty"),
        ("f '' NSwhiteout='y'", "f whiteout-not-marked"),
        (".wh.name/", ".wh.name stray-name"),
        (".wh..wh..opq 'x'", ".wh..wh..opq stray-name"),
        (".wh..wh.plnk/", ".wh..wh.plnk reserved-name"),
        ("f 'x'; .wh.f ''", ".wh.f whiteout-beside"),
        ("d/e 'x'; .wh.d ''", ".wh.d whiteout-beside"),
        ("f whiteout; .wh.f ''", ".wh.f whiteout-twice"),
    ] {
        let fs = at_rest(&upper.replace("NS", &overlay));
        assert_eq!(problems(&fs, &[]), [wanted], "{upper}");
    }
}

#[test]
fn namespaces_that_contradict_each_other_or_are_not_believed_are_found() {
    requires!(!is_kernel(), OURS);
    requires!(is_root(), "only root reads both namespaces");
    let fs = at_rest(
        "d/ trusted.overlay.opaque='y' user.overlay.opaque='x'; e/ user.overlay.redirect='/f';
g 'x' user.overlay.metacopy=''; h/ user.overlay.opaque='y'",
    );
    let wanted = ["g not-believed", "d namespaces-differ", "e not-believed"];
    assert_eq!(problems(&fs, &[]), wanted);
}

#[test]
fn overrides_that_are_not_read_or_make_no_sense_are_found() {
    requires!(!is_kernel(), OURS);
    let name = "user.containers.override_stat";
    let (uid, gid) = own_ids();
    let over = |value: &str| format!("{name}='{}'", value.replace("OWN", &format!("{uid}:{gid}")));
    let fs = at_rest(&format!("f 'x' {}", over("OWN:0644:file")));
    assert_eq!(problems(&fs, &[]), ["f override-not-read"]);
    let fs = at_rest(&format!(
        ". {}; a 'x' {}; b 'x' {}; c 'x' {}; d/ {}; ok 'x' {}; dev 'x' {}",
        over("OWN:0755:dir"),
        over("nonsense"),
        over("OWN:0755:dir"),
        over("OWN:0600:char-0-0"),
        over("OWN:0755:file"),
        over("OWN:0644"),
        over("OWN:0600:char-1-3"),
    ));
    let wanted = [
        "a override-malformed",
        "b override-type",
        "c override-type",
        "d override-type",
    ];
    assert_eq!(problems(&fs, &[]), wanted);
}

#[test]
fn what_a_crash_left_in_the_workdir_is_told() {
    requires!(!is_kernel(), OURS);
    let fs = at_rest("f 'x'");
    let work = fs
        .work("")
        .to_str()
        .unwrap()
        .trim_end_matches('/')
        .to_owned();
    std::fs::write(fs.work("work/#7"), "half").unwrap();
    std::fs::create_dir_all(fs.work("work/incompat/volatile")).unwrap();
    let wanted = [
        format!("{work}/work/incompat/volatile volatile"),
        format!("{work}/work leftover"),
    ];
    assert_eq!(problems(&fs, &["--work", &work]), wanted);
}

#[test]
fn an_upper_in_use_or_missing_is_refused() {
    requires!(!is_kernel(), OURS);
    let fs = Fixture::new().lower("l 'l'").mount();
    assert_eq!(check(&fs.upper(""), &[]).status.code(), Some(5));
    assert_eq!(check(&fs.upper("missing"), &[]).status.code(), Some(4));
}
