//! The names and calling conventions of others.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use rustix::process::Signal;

use super::{Place, assert_contains, fails, succeeds};
use crate::support::requires;
use crate::support::run::{comes_true, is_root};

/// The first column of /proc/mounts and the type.
#[track_caller]
fn source_and_type(place: &Place) -> (String, String) {
    let fields = place.mountinfo().expect("a mount");
    let dash = fields.iter().position(|field| field == "-").unwrap();
    (fields[dash + 2].clone(), fields[dash + 1].clone())
}

/// Unmounts as engines do.
#[track_caller]
fn fusermount(place: &Place) {
    let merged = place.path("merged");
    let args = [OsStr::new("-u"), merged.as_os_str()];
    let mut unmount = place.program("fusermount3", args);
    assert!(
        comes_true(|| unmount.status().unwrap().success()),
        "fusermount3 does not unmount"
    );
}

#[test]
fn fuse_overlayfs_tells_its_version_as_probes_expect() {
    let place = Place::new();
    let version = succeeds(&mut place.named("fuse-overlayfs", &["--version"]));
    let lines: Vec<&str> = version.lines().collect();
    assert!(
        lines[0].starts_with("fuse-overlayfs: version 1."),
        "{version}"
    );
    assert!(lines[1].starts_with("FUSE library version "), "{version}");
    assert!(
        lines[2].starts_with("using FUSE kernel interface version 7."),
        "{version}"
    );
    assert_contains(
        &succeeds(&mut place.named("fuse-overlayfs", &["-h"])),
        "usage: fuse-overlayfs",
    );
    assert_eq!(
        succeeds(&mut place.named("fuse-overlayfs", &["-V"])),
        version
    );
}

#[test]
fn fuse_overlayfs_mounts_as_podman_calls_it() {
    let place = Place::new();
    // Relative paths through symlinks, from the directory of the storage.
    fs::create_dir(place.path("l")).unwrap();
    std::os::unix::fs::symlink("../lower", place.path("l/A")).unwrap();
    std::os::unix::fs::symlink("../below", place.path("l/B")).unwrap();
    let (upper, work) = (place.path("upper"), place.path("work"));
    let options = format!(
        "lowerdir=l/A:l/B,upperdir={},workdir={},nodev,fsync=0,volatile",
        upper.display(),
        work.display()
    );
    let merged = place.path("merged");
    succeeds(&mut place.named(
        "fuse-overlayfs",
        &["-o", &options, merged.to_str().unwrap()],
    ));
    assert_eq!(
        source_and_type(&place),
        ("fuse-overlayfs".into(), "fuse.plyfs".into())
    );
    fs::write(place.path("merged/deep"), "changed").unwrap();
    assert_eq!(
        fs::read_to_string(place.path("upper/deep")).unwrap(),
        "changed"
    );
    assert_eq!(
        fs::read_to_string(place.path("merged/file")).unwrap(),
        "from the lower"
    );
}

/// As of fuse-overlayfs: no device works unless it is asked for, and what is volatile leaves nothing to be cleared up
/// after a crash, since an engine knows better what to do with its container.
#[test]
fn an_engines_mounts_have_no_devices_and_no_mark_of_a_volatile_upper() {
    let place = Place::new();
    let options = "lowerdir=lower,upperdir=upper,workdir=work";
    for more in ["volatile", "fsync=0"] {
        succeeds(&mut place.plyfs(["-o", &format!("{options},{more}"), "merged"]));
        assert!(place.mountinfo().unwrap()[5].contains("nodev"));
        fs::write(place.path("merged/deep"), more).unwrap();
        let daemon = place.daemon();
        daemon.signal(Signal::KILL);
        daemon.ended();
        place.done(&["umount", "-l", "merged"]);
        assert!(!place.path("work/work/incompat").exists());
    }
    succeeds(&mut place.plyfs(["-o", options, "merged"]));
    assert_eq!(
        fs::read_to_string(place.path("merged/deep")).unwrap(),
        "fsync=0"
    );
    place.umount("merged");
    if is_root() {
        succeeds(&mut place.plyfs(["-o", &format!("{options},dev"), "merged"]));
        assert!(!place.mountinfo().unwrap()[5].contains("nodev"));
        place.umount("merged");
    }
}

/// containerd's snapshotter mounts by mount.fuse3, which runs `fuse-overlayfs overlay TARGET -o OPTIONS` by a shell,
/// and unmounts by fusermount3. Before the first mount it tries whether two lowers and no upper work.
#[test]
fn fuse_overlayfs_mounts_as_containerd_calls_it() {
    requires!(
        Path::new("/sbin/mount.fuse3").exists(),
        "mount.fuse3 is not installed"
    );
    let place = Place::new();
    place.named("fuse-overlayfs", &[]);
    let [lower, below, upper, work, merged] = ["lower", "below", "upper", "work", "merged"]
        .map(|name| place.path(name).display().to_string());
    let mount = |options: &[String]| {
        let mut args = vec!["overlay".to_owned(), merged.clone()];
        for option in options {
            args.extend(["-o".to_owned(), option.clone()]);
        }
        args.extend(["-t".to_owned(), "fuse-overlayfs".to_owned()]);
        let mut helper = place.program("/sbin/mount.fuse3", &args);
        let path = std::env::var("PATH").unwrap();
        succeeds(helper.env("PATH", format!("{}:{path}", place.path("").display())));
        assert_eq!(
            source_and_type(&place),
            ("overlay".into(), "fuse.plyfs".into())
        );
    };
    let lowers = format!("lowerdir={lower}:{below}");
    mount(std::slice::from_ref(&lowers));
    assert_eq!(
        fs::read_to_string(place.path("merged/file")).unwrap(),
        "from the lower"
    );
    assert_eq!(
        fs::write(place.path("merged/file"), "").unwrap_err().kind(),
        std::io::ErrorKind::ReadOnlyFilesystem
    );
    fusermount(&place);
    mount(&[
        format!("workdir={work}"),
        format!("upperdir={upper}"),
        lowers,
        "writeback=0".to_owned(),
    ]);
    fs::write(place.path("merged/deep"), "changed").unwrap();
    assert_eq!(
        fs::read_to_string(place.path("upper/deep")).unwrap(),
        "changed"
    );
    fusermount(&place);
    assert!(!place.is_mounted());
}

/// Docker's graph driver: from its home, the options with a label in quotes; a FUSE mount by statfs(2); unmounted by
/// fusermount3, and the mountpoint removed at once.
#[test]
fn fuse_overlayfs_mounts_as_docker_calls_it() {
    let place = Place::new();
    let [lower, below, upper, work, merged] = ["lower", "below", "upper", "work", "merged"]
        .map(|name| place.path(name).display().to_string());
    for options in [
        format!("lowerdir={upper}:{lower}:{below}"),
        format!("lowerdir={lower}:{below},upperdir={upper},workdir={work}"),
    ] {
        let mut driver = place.named("fuse-overlayfs", &["-o", &options, &merged]);
        assert_eq!(succeeds(&mut driver), "");
        let statfs = succeeds(&mut place.program("stat", ["-f", "-c", "%t", &merged]));
        assert_eq!(statfs.trim(), "65735546");
        assert_eq!(
            fs::read_to_string(place.path("merged/file")).unwrap(),
            "from the lower"
        );
        fusermount(&place);
        fs::remove_dir(&merged).unwrap();
        fs::create_dir(&merged).unwrap();
    }
}

#[test]
fn fuse_overlayfs_says_what_is_wrong_in_our_words() {
    let place = Place::new();
    let mut command = place.named("fuse-overlayfs", &["-o", "lowerdir=absent", "merged"]);
    assert_contains(&fails(&mut command, 3), "absent");
    let mut command = place.named(
        "fuse-overlayfs",
        &["-o", "lowerdir=lower,plugins=x", "merged"],
    );
    assert_contains(&fails(&mut command, 2), "plugins");
}

#[test]
fn our_own_name_takes_the_conventions_of_fuse_overlayfs_and_mount_fuse() {
    let place = Place::new();
    for args in [
        &["-o", "lowerdir=lower", "merged"][..],
        &["merged", "-olowerdir=lower"],
        &["overlay", "merged", "-o", "rw,lowerdir=lower,dev,suid"],
    ] {
        assert_eq!(place.done(args), "");
        assert!(place.path("merged/file").exists(), "{args:?}");
        let source = if args[0] == "overlay" {
            "overlay"
        } else {
            "plyfs"
        };
        assert_eq!(
            source_and_type(&place),
            (source.into(), "fuse.plyfs".into())
        );
        place.umount("merged");
    }
}

#[test]
fn mount_plyfs_takes_the_flags_of_mount_and_fakes_when_asked() {
    let place = Place::new();
    let args = ["src", "merged", "-n", "-f", "-o", "rw,lowerdir=lower"];
    succeeds(&mut place.named("mount.plyfs", &args));
    assert!(!place.is_mounted());
    let args = ["src", "absent", "-f", "-o", "rw,lowerdir=lower"];
    assert_contains(&fails(&mut place.named("mount.plyfs", &args), 6), "absent");
    let args = [
        "src",
        "merged",
        "-n",
        "-s",
        "-v",
        "-o",
        "rw,noatime,_netdev,lowerdir=lower",
    ];
    succeeds(&mut place.named("mount.plyfs", &args));
    assert_eq!(source_and_type(&place).0, "src");
}

#[test]
fn mount_8_mounts_an_fstab_line_of_type_fuse_plyfs() {
    requires!(is_root(), "mount(8) wants root");
    requires!(
        Path::new("/sbin/mount.fuse").exists(),
        "mount.fuse is not installed"
    );
    let place = Place::new();
    std::os::unix::fs::symlink(super::PLYFS, place.path("plyfs")).unwrap();
    let [lower, merged] = ["lower", "merged"].map(|name| place.path(name).display().to_string());
    let options = format!("noauto,nofail,_netdev,x-systemd.automount,ro,lowerdir={lower}");
    fs::write(
        place.path("fstab"),
        format!("layers {merged} fuse.plyfs {options} 0 0\n"),
    )
    .unwrap();
    // mount(8) drops PATH, so the program has to be where a shell looks by itself.
    let script = r#"
        mount --bind . /usr/local/bin
        mount -T fstab "$0"
        cat merged/file
        grep " $0 " /proc/self/mountinfo | cut -d ' ' -f 6-
        umount "$0"
    "#;
    let output = succeeds(&mut place.program("unshare", ["-m", "sh", "-euc", script, &merged]));
    // mount.fuse asks for suid and dev on behalf of mount(8), whose defaults they are.
    let (content, mount) = output.split_at("from the lower".len());
    assert_eq!(content, "from the lower");
    assert_contains(mount, "- fuse.plyfs layers ");
    assert!(mount.starts_with("ro"), "{mount}");
    assert!(
        !mount.contains("nosuid") && !mount.contains("nodev"),
        "{mount}"
    );
}
