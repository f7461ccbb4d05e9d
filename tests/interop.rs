//! Stores of other unions under plyfs, and of plyfs under them: what the real programs write and show.
//!
//! `PLYFS_TEST_PEERS` names the fuse-overlayfs binaries to try, separated by `:`; `fuse-overlayfs` of the search path
//! if it is not set, which `scripts/setup` installs.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::mount::{UnmountFlags, unmount};

use crate::support::disk::{View, read, xattr};
use crate::support::run::{Privilege, comes_true, own_ids, privilege};
use crate::support::tree::{Entry, lines};
use crate::support::{Fixture, Mounted, is_kernel, requires};

const OURS: &str = "compares plyfs with others";

/// What all scripts work on: a lower with something of every kind.
const LOWER: &str = "gone 'g'; dir/ 0750; dir/a 'a' 0640; dir/b 'b'; dir/sub/c 'c'; emptied/x 'x'; emptied/y 'y';
again/old 'o'; again/deep/older 'oo'; swap/inside 's'; file 'f' 0600 user.a='1'; link -> file; moved 'm'; keep 'k';
redone/z 'z'; long pattern=70000; tree/x 'x'; tree/deep/y 'y'; tree/deep/link -> y";

/// Every change that leaves a mark.
const SCRIPT: &str = "set -e; umask 022
rm gone; rm -r emptied/x; rm -r again; mkdir again; echo new > again/new
rm -r swap; echo swapped > swap; rm file; mkdir file; echo in > file/in
mv moved moved2; echo more >> dir/a; chmod 0600 dir/b; ln -s dir/a link2; rm link
mkdir -p fresh/deep; echo d > fresh/deep/d; ln keep keep2; rm -r redone; mkdir redone
printf Z | dd of=long bs=1 seek=66000 conv=notrunc status=none; mkdir dir/made; rm -r dir/sub; mkfifo pipe
mv tree dir/moved-tree; echo + >> dir/moved-tree/x";

const MORE: &str = "set -e; umask 022
echo back > gone; rm again/new; rm -r fresh; mkdir dir/sub; echo again > dir/sub/again; rm swap; mkdir swap
rm dir/a; echo 2 >> keep; rm -r file; echo f2 > file";

/// More on top of what the other left. mv(1) would rename with `RENAME_NOREPLACE`, for which fuse-overlayfs 2.0 finds its
/// own whiteout in the way; and mv then goes on with what it has not read.
fn more(root: &Path) {
    sh(root, MORE);
    fs::rename(root.join("moved2"), root.join("moved")).unwrap();
}

fn peers() -> Vec<String> {
    let given = std::env::var("PLYFS_TEST_PEERS").unwrap_or_else(|_| "fuse-overlayfs".to_owned());
    given.split(':').map(str::to_owned).collect()
}

/// The directories of a store.
struct Store<'a> {
    fs: &'a Mounted,
    /// `-o` besides the layers.
    options: &'a str,
}

/// Who mounts a store.
enum Other<'a> {
    Fuse(&'a str, &'a [(&'a str, &'a str)]),
    Kernel,
}

impl Store<'_> {
    /// Runs `act` on the store mounted by `other`, at the mountpoint of the fixture.
    fn under<T>(&self, other: &Other<'_>, act: impl FnOnce(&Path) -> T) -> T {
        let merged = self.fs.path("");
        let layers = format!(
            "lowerdir={},upperdir={},workdir={}",
            self.fs.lower(0, "").display(),
            self.fs.upper("").display(),
            self.fs.work("").display()
        );
        let layers = layers.replace("/,", ",").trim_end_matches('/').to_owned();
        match other {
            Other::Fuse(program, environment) => {
                let options = format!("{layers}{}", self.options);
                let status = Command::new(program)
                    .args(["-o", &options])
                    .arg(&merged)
                    .envs(environment.iter().copied())
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .status()
                    .unwrap_or_else(|error| {
                        panic!("{program}: {error}; scripts/setup installs it")
                    });
                assert!(status.success(), "{program} -o {options}: {status}");
            }
            Other::Kernel => {
                let userxattr = if privilege() == Privilege::Root {
                    "redirect_dir=on,metacopy=on"
                } else {
                    "userxattr"
                };
                let options = format!("{layers},{userxattr}");
                let mounted = Command::new("mount")
                    .args(["-t", "overlay", "-o", &options, "overlay"])
                    .arg(&merged)
                    .output()
                    .unwrap();
                let said = String::from_utf8_lossy(&mounted.stderr);
                assert!(mounted.status.success(), "{options}: {said}");
            }
        }
        let result = act(&merged);
        assert!(
            comes_true(|| unmounted(&merged)),
            "{} stays busy",
            merged.display()
        );
        if let Other::Fuse(..) = other {
            wait_for_end(&self.fs.upper(""));
        }
        result
    }
}

fn unmounted(merged: &Path) -> bool {
    if privilege() != Privilege::User {
        return unmount(merged, UnmountFlags::empty()).is_ok();
    }
    let output = Command::new("fusermount3").arg("-u").arg(merged).output();
    output.unwrap().status.success()
}

/// The daemon of fuse-overlayfs has ended, which an unmount does not wait for.
fn wait_for_end(upper: &Path) {
    let upper = format!("upperdir={}", upper.display());
    let upper = upper.trim_end_matches('/');
    let runs = || {
        fs::read_dir("/proc").unwrap().flatten().any(|process| {
            let command = fs::read(process.path().join("cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&command).contains(upper)
        })
    };
    assert!(comes_true(|| !runs()), "fuse-overlayfs does not end");
}

fn sh(dir: &Path, script: &str) {
    let output = Command::new("sh")
        .args(["-c", script])
        .current_dir(dir)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {said}");
}

/// A view as text: everything but link counts of directories, which each union counts in its own way.
fn seen(root: &Path) -> String {
    let like = Entry {
        mode: Some(0),
        owner: Some((0, 0)),
        ..Entry::default()
    };
    lines(read(root, View::Merged), |entry| entry.line(&like) + "\n")
}

fn fixture() -> Mounted {
    let mut fs = Fixture::new()
        .lower(LOWER)
        // fuse-overlayfs knows no redirects.
        .option("redirect_dir=copy,index=off")
        .not_for_the_kernel()
        .mount();
    fs.umount();
    fs
}

/// The environments that make C's fuse-overlayfs write either form of whiteouts.
const WHITEOUTS: [&[(&str, &str)]; 2] = [&[], &[("FUSE_OVERLAYFS_DISABLE_OVL_WHITEOUT", "y")]];

#[test]
fn a_store_of_fuse_overlayfs_shows_the_same_under_plyfs() {
    requires!(!is_kernel(), OURS);
    for peer in peers() {
        for environment in WHITEOUTS {
            let mut fs = fixture();
            let other = Other::Fuse(&peer, environment);
            let wanted = {
                let store = Store {
                    fs: &fs,
                    options: "",
                };
                store.under(&other, |merged| sh(merged, SCRIPT));
                store.under(&other, seen)
            };
            fs.mount().unwrap();
            let shown = seen(&fs.path(""));
            assert_eq!(shown, wanted, "{peer} {environment:?}");
            // And plyfs goes on where the other stopped.
            more(&fs.path(""));
            let wanted = seen(&fs.path(""));
            fs.umount();
            let shown = Store {
                fs: &fs,
                options: "",
            }
            .under(&other, seen);
            assert_eq!(shown, wanted, "{peer} {environment:?}");
        }
    }
}

#[test]
fn a_store_of_plyfs_shows_the_same_under_fuse_overlayfs() {
    requires!(!is_kernel(), OURS);
    for peer in peers() {
        let mut fs = fixture();
        fs.mount().unwrap();
        fs.sh(SCRIPT);
        let wanted = seen(&fs.path(""));
        fs.umount();
        let other = Other::Fuse(&peer, &[]);
        let wanted_more = {
            let store = Store {
                fs: &fs,
                options: "",
            };
            assert_eq!(store.under(&other, seen), wanted, "{peer}");
            store.under(&other, more);
            store.under(&other, seen)
        };
        fs.mount().unwrap();
        assert_eq!(seen(&fs.path("")), wanted_more, "{peer}");
    }
}

#[test]
fn a_store_of_the_kernel_shows_the_same_under_plyfs_and_back() {
    requires!(!is_kernel(), OURS);
    requires!(
        privilege() != Privilege::User,
        "the kernel wants a user namespace"
    );
    let mut fs = fixture();
    let wanted = {
        let store = Store {
            fs: &fs,
            options: "",
        };
        store.under(&Other::Kernel, |merged| sh(merged, SCRIPT));
        store.under(&Other::Kernel, seen)
    };
    fs.mount().unwrap();
    assert_eq!(seen(&fs.path("")), wanted);
    more(&fs.path(""));
    let wanted = seen(&fs.path(""));
    fs.umount();
    assert_eq!(
        Store {
            fs: &fs,
            options: ""
        }
        .under(&Other::Kernel, seen),
        wanted
    );
}

#[test]
fn a_store_of_fuse_overlayfs_is_converted_for_the_kernel_and_back() {
    requires!(!is_kernel(), OURS);
    requires!(
        privilege() != Privilege::User,
        "the kernel wants a user namespace"
    );
    for (peer, environment) in peers()
        .iter()
        .flat_map(|peer| WHITEOUTS.map(|environment| (peer, environment)))
    {
        let fs = fixture();
        let store = Store {
            fs: &fs,
            options: "",
        };
        let other = Other::Fuse(peer, environment);
        let checked = || {
            let mut check = Command::new(env!("CARGO_BIN_EXE_plyfs"));
            check.arg("check").arg(fs.upper(""));
            check.output().unwrap()
        };
        store.under(&other, |merged| sh(merged, SCRIPT));
        let wanted = store.under(&other, seen);
        assert!(checked().status.success(), "{:?}", checked());
        let convert = |form| {
            let output = Command::new(env!("CARGO_BIN_EXE_plyfs"))
                .args(["convert", "--to", form])
                .arg(fs.upper(""))
                .output()
                .unwrap();
            assert!(output.status.success(), "{output:?}");
        };
        convert("overlay");
        assert_eq!(store.under(&Other::Kernel, seen), wanted, "{peer}");
        convert("aufs");
        assert_eq!(store.under(&other, seen), wanted, "{peer}");
    }
}

#[test]
fn an_upper_with_redirects_and_metacopies_is_converted_for_those_who_follow_none() {
    requires!(!is_kernel(), OURS);
    let mut others: Vec<Other<'_>> = Vec::new();
    let peers = peers();
    others.extend(peers.iter().map(|peer| Other::Fuse(peer, &[])));
    if privilege() == Privilege::Namespace {
        others.push(Other::Kernel);
    }
    for other in others {
        let mut fs = Fixture::new()
            .lower(LOWER)
            .option("metacopy=on")
            .not_for_the_kernel()
            .mount();
        fs.sh(SCRIPT);
        fs.sh("chmod 0640 long; mv dir/moved-tree/deep dir/moved-tree/deeper; mv emptied again/");
        let wanted = seen(&fs.path(""));
        fs.umount();
        let output = Command::new(env!("CARGO_BIN_EXE_plyfs"))
            .args(["convert", "--to", "overlay", "--work"])
            .args([fs.work(""), "--lower".into(), fs.lower(0, ""), fs.upper("")])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let store = Store {
            fs: &fs,
            options: "",
        };
        assert_eq!(store.under(&other, seen), wanted);
        fs.mount().unwrap();
        assert_eq!(seen(&fs.path("")), wanted);
    }
}

const OVERRIDE: &str = "user.containers.override_stat";

#[test]
fn owners_in_xattrs_of_fuse_overlayfs_are_read_and_its_reader_reads_ours() {
    requires!(!is_kernel(), OURS);
    requires!(privilege() != Privilege::User, "changes owners");
    let (uid, gid) = own_ids();
    for peer in peers() {
        let mut fs = Fixture::new()
            .lower(&format!(
                ". 0755 {OVERRIDE}='{uid}:{gid}:0755:dir'; f 'f' 0700 {OVERRIDE}='{uid}:{gid}:0640:file';
d/ 0700 {OVERRIDE}='{uid}:{gid}:0750:dir'; d/g 'g' 0700 {OVERRIDE}='{uid}:{gid}:4711:file'"
            ))
            .option("xattr_permissions=2,redirect_dir=off,index=off")
            .not_for_the_kernel()
            .mount();
        fs.umount();
        let other = Other::Fuse(&peer, &[]);
        let options = ",xattr_permissions=2";
        let wanted = {
            let store = Store { fs: &fs, options };
            let script = "umask 022; chmod 0600 f; echo + >> d/g; chmod 0700 d";
            store.under(&other, |merged| sh(merged, script));
            store.under(&other, seen)
        };
        fs.mount().unwrap();
        assert_eq!(seen(&fs.path("")), without_override(&wanted), "{peer}");
        fs.sh("umask 022; echo n > n; mkdir m; chmod 0711 m; chmod 0444 f");
        let wanted = seen(&fs.path(""));
        // Before 1.11 fuse-overlayfs gave it another name, which plyfs keeps to in such a store.
        let names = [OVERRIDE, "user.fuseoverlayfs.override_stat"];
        let written = names.map(|name| xattr(&fs.upper("m"), name));
        let written: Vec<_> = written.into_iter().flatten().collect();
        assert_eq!(written, [format!("{uid}:{gid}:0711:dir").into_bytes()]);
        fs.umount();
        let shown = Store { fs: &fs, options }.under(&other, seen);
        assert_eq!(without_override(&shown), wanted, "{peer}");
    }
}

/// fuse-overlayfs does not hide the xattr from users of the mount.
fn without_override(text: &str) -> String {
    let lines = text.lines().map(|line| {
        let words = line.split(' ').filter(|word| !word.starts_with(OVERRIDE));
        words.collect::<Vec<_>>().join(" ") + "\n"
    });
    lines.collect()
}
