//! Uppers in the formats of others read the same.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::plyfs;
use crate::support::disk::build;
use crate::support::fixture::run;
use crate::support::run::{base_dir, is_root, requires};
use crate::support::tree::parse;

struct Place(tempfile::TempDir);

impl Place {
    fn new(lower: &str) -> Self {
        let base = tempfile::tempdir_in(base_dir()).unwrap();
        for dir in ["lower", "upper", "work", "merged"] {
            fs::create_dir(base.path().join(dir)).unwrap();
        }
        build(&base.path().join("lower"), &parse(lower));
        Self(base)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn upper(&self, text: &str) {
        build(&self.path("upper"), &parse(text));
    }

    fn options(&self) -> String {
        let at = |name| self.path(name).to_str().unwrap().to_owned();
        format!(
            "lowerdir={},upperdir={},workdir={}",
            at("lower"),
            at("upper"),
            at("work")
        )
    }

    fn diff(&self) -> String {
        let at = |name: &str| self.path(name).to_str().unwrap().to_owned();
        plyfs(&[
            "diff",
            "--lower",
            &at("lower"),
            "--work",
            &at("work"),
            &at("upper"),
        ])
    }

    fn sh(&self, script: &str) {
        change(&self.path("merged"), script);
    }
}

fn change(dir: &Path, script: &str) {
    let output = Command::new("sh")
        .args(["-ec", script])
        .current_dir(dir)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

const LOWER: &str = "d/keep 'x'; d/gone 'x'; o/1 'x'; o/2 'x'; mv/a/b 'x'; plain 'x'";
const CHANGES: &str =
    "echo new > d/new; rm d/gone; rm -r o; mkdir o; echo x > o/3; chmod 600 plain";
const TOLD: &str = "C /d\nD /d/gone\nA /d/new\nC /o\nD /o/1\nD /o/2\nA /o/3\nC /plain\n";

#[test]
fn an_upper_of_the_kernel_with_redirects_and_metacopy() {
    requires!(is_root(), "the kernel needs root for redirect_dir");
    let place = Place::new(LOWER);
    let options = place.options() + ",redirect_dir=on,metacopy=on,index=on";
    let merged = place.path("merged");
    run(
        "mount",
        &[
            "-t",
            "overlay",
            "overlay",
            "-o",
            &options,
            merged.to_str().unwrap(),
        ],
    );
    place.sh(CHANGES);
    place.sh("mv mv moved");
    run("umount", &[merged.to_str().unwrap()]);
    let moved = "A /moved\nA /moved/a\nA /moved/a/b\nD /mv\nC /o\n";
    assert_eq!(place.diff(), TOLD.replace("C /o\n", moved));
}

#[test]
fn an_upper_of_the_kernel_in_a_user_namespace() {
    let place = Place::new(LOWER);
    let script = format!(
        "mount -t overlay overlay -o {},userxattr {merged} && cd {merged} && {CHANGES}",
        place.options(),
        merged = place.path("merged").display()
    );
    let output = Command::new("unshare")
        .args(["-Urm", "sh", "-ec", &script])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(place.diff(), TOLD);
}

#[test]
fn an_upper_of_fuse_overlayfs() {
    requires!(is_root(), "fuse-overlayfs as a peer is tested once");
    let place = Place::new(LOWER);
    let merged = place.path("merged");
    run(
        "fuse-overlayfs",
        &["-o", &place.options(), merged.to_str().unwrap()],
    );
    place.sh(CHANGES);
    run("umount", &[merged.to_str().unwrap()]);
    assert_eq!(place.diff(), TOLD);
}

#[test]
fn whiteouts_and_opaque_marks_in_every_form() {
    let place = Place::new("a 'x'; b 'x'; c/d 'x'; c/e 'x'; f/g 'x'; h/i 'x'; j/k 'x'");
    place.upper("a whiteout=aufs; b whiteout; c/d whiteout=xattr; h/ opaque; j/ opaque=file; j/l 'x'; f/ opaque=fuse");
    assert_eq!(
        place.diff(),
        "D /a\nD /b\nC /c\nD /c/d\nC /f\nD /f/g\nC /h\nD /h/i\nC /j\nD /j/k\nA /j/l\n"
    );
}
