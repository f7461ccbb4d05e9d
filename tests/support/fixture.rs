//! A stack of layers described as text, mounted by the backend of this run.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::disk::{build, fingerprint};
use super::mounted::{Mounted, Stack};
use super::run::{Backend, archived_lowers, backend, base_dir, runs_with};
use super::tree::parse;

/// Layers to be made, topmost first, and how to mount them.
#[derive(Debug, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent switches of a test"
)]
pub struct Fixture {
    lowers: Vec<Lower>,
    upper: String,
    read_only: bool,
    options: Vec<String>,
    upper_fs: Option<String>,
    not_for_the_kernel: bool,
    lowers_change: bool,
    tracing: Option<String>,
    mount_at: Option<String>,
    archived: bool,
}

#[derive(Debug)]
enum Lower {
    Text(String),
    Dir(PathBuf),
    Image { fs: String, text: String },
}

impl Fixture {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a lower layer below those added before.
    pub fn lower(mut self, text: &str) -> Self {
        self.lowers.push(Lower::Text(text.to_owned()));
        self
    }

    /// Adds an existing directory as a lower layer.
    pub fn lower_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.lowers.push(Lower::Dir(dir.into()));
        self
    }

    /// Adds a lower layer on a filesystem of its own: `ext4`, `xfs`, `btrfs`, `squashfs`, `tmpfs`, `ramfs`.
    /// Real root only.
    pub fn lower_on(mut self, fs: &str, text: &str) -> Self {
        self.lowers.push(Lower::Image {
            fs: fs.to_owned(),
            text: text.to_owned(),
        });
        self
    }

    /// What lies in the upper before the mount.
    pub fn upper(mut self, text: &str) -> Self {
        text.clone_into(&mut self.upper);
        self
    }

    /// Puts upper and workdir on a small filesystem: `tmpfs:size=1m`, `ext4:16m`.
    pub fn upper_on(mut self, fs: &str) -> Self {
        self.upper_fs = Some(fs.to_owned());
        self
    }

    /// Mounts without an upper.
    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// Adds a mount option.
    pub fn option(mut self, option: &str) -> Self {
        self.options.push(option.to_owned());
        self
    }

    /// Says that the upper is not meant to be mounted by the kernel afterwards (formats or options
    /// that only plyfs knows), so [`Mounted::assert_state`] does not try.
    pub fn not_for_the_kernel(mut self) -> Self {
        self.not_for_the_kernel = true;
        self
    }

    /// Says that the test itself changes the lowers, so they are not compared at the end.
    pub fn lowers_change(mut self) -> Self {
        self.lowers_change = true;
        self
    }

    /// Runs the first mount, and its daemon, under strace with this `-e` option.
    pub fn tracing(mut self, option: &str) -> Self {
        self.tracing = Some(option.to_owned());
        self
    }

    /// Mounts at this place, relative to the fixture's directory, in which the lowers are `l0`, `l1`
    /// and so on, and the upper is `rw/upper`.
    pub fn mount_at(mut self, place: &str) -> Self {
        self.mount_at = Some(place.to_owned());
        self
    }

    /// Gives the lowers to plyfs as tars ([`archive`](super::archive)), not as directories.
    pub fn archived(mut self) -> Self {
        self.archived = true;
        self
    }

    /// Makes the layers and mounts them.
    pub fn mount(self) -> Mounted {
        self.try_mount()
            .unwrap_or_else(|error| panic!("the mount failed: {error}"))
    }

    /// Makes the layers and tries to mount them; the error is what the mounter said.
    pub fn try_mount(self) -> Result<Mounted, String> {
        let base = tempfile::Builder::new()
            .prefix("plyfs-test-")
            .tempdir_in(base_dir())
            .unwrap();
        fs::set_permissions(base.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let mut mounts = Vec::new();
        let lowers = self.make_lowers(&base, &mut mounts);
        let rw = base.path().join("rw");
        fs::create_dir(&rw).unwrap();
        if let Some(upper_fs) = &self.upper_fs {
            mounts.push(mount_small(&base, upper_fs, &rw));
        }
        let (upper, work) = (rw.join("upper"), rw.join("work"));
        fs::create_dir(&upper).unwrap();
        fs::create_dir(&work).unwrap();
        build(&upper, &parse(&self.upper));
        let merged = base
            .path()
            .join(self.mount_at.as_deref().unwrap_or("merged"));
        if self.mount_at.is_none() {
            fs::create_dir(&merged).unwrap();
        }
        let fingerprints = if self.lowers_change {
            None
        } else {
            Some(lowers.iter().map(|lower| fingerprint(lower)).collect())
        };
        let upper = (!self.read_only).then_some(upper);
        // The kernel reads no owners from xattrs.
        let kernel_knows = !self.not_for_the_kernel && !runs_with("xattr_permissions=2");
        let check_by_kernel = backend() == Backend::Plyfs && kernel_knows;
        let stack = Stack {
            base,
            lowers,
            upper,
            work,
            merged,
            options: self.options,
            archived: self.archived || archived_lowers(),
            tracing: self.tracing,
        };
        Mounted::new(stack, mounts, fingerprints, check_by_kernel)
    }

    fn make_lowers(&self, base: &TempDir, mounts: &mut Vec<SideMount>) -> Vec<PathBuf> {
        let dirs = self.lowers.iter().enumerate().map(|(number, lower)| {
            let dir = base.path().join(format!("l{number}"));
            match lower {
                Lower::Dir(dir) => return dir.clone(),
                Lower::Text(text) => {
                    fs::create_dir(&dir).unwrap();
                    build(&dir, &parse(text));
                }
                Lower::Image { fs: kind, text } => {
                    fs::create_dir(&dir).unwrap();
                    mounts.push(mount_filled(base, kind, text, &dir));
                }
            }
            dir
        });
        dirs.collect()
    }
}

/// A filesystem mounted beside the view under test; unmounted on drop.
#[derive(Debug)]
pub struct SideMount(PathBuf);

impl SideMount {
    /// Mounts by the `mount` command with these arguments, the last being the directory.
    pub fn new(arguments: &[&str], dir: &Path) -> Self {
        run("mount", &[arguments, &[dir.to_str().unwrap()]].concat());
        Self(dir.to_owned())
    }
}

impl Drop for SideMount {
    fn drop(&mut self) {
        let flags = rustix::mount::UnmountFlags::DETACH;
        rustix::mount::unmount(&self.0, flags).expect("unmounting what the test mounted");
    }
}

/// Runs a program that must succeed.
pub fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {stderr}");
}

/// Mounts a small writable filesystem (`TYPE:SIZE` or `tmpfs:OPTIONS`) on `dir`.
fn mount_small(base: &TempDir, what: &str, dir: &Path) -> SideMount {
    let (kind, size) = what.split_once(':').expect("TYPE:SIZE");
    if kind == "tmpfs" || kind == "ramfs" {
        return SideMount::new(&["-t", kind, "-o", size, kind], dir);
    }
    let image = make_image(base, kind, size, dir);
    if kind == "fuse2fs" {
        run("fuse2fs", &[&image, dir.to_str().unwrap()]);
        return SideMount(dir.to_owned());
    }
    SideMount::new(&["-o", "loop", &image], dir)
}

fn make_image(base: &TempDir, kind: &str, size: &str, dir: &Path) -> String {
    let image = base
        .path()
        .join(format!("{}.img", dir.file_name().unwrap().display()));
    let image = image.to_str().unwrap().to_owned();
    run("truncate", &["-s", size, &image]);
    let quiet = if kind == "btrfs" { "-q" } else { "-qF" };
    match kind {
        "xfs" => run("mkfs.xfs", &["-q", "-f", &image]),
        "fuse2fs" => run("mkfs.ext4", &[quiet, &image]),
        _ => run(&format!("mkfs.{kind}"), &[quiet, &image]),
    }
    image
}

/// Mounts a filesystem holding the tree `text` on `dir`.
fn mount_filled(base: &TempDir, kind: &str, text: &str, dir: &Path) -> SideMount {
    if kind == "squashfs" {
        let source = tempfile::tempdir_in(base.path()).unwrap();
        build(source.path(), &parse(text));
        let image = dir.with_extension("img");
        let arguments = [
            source.path().to_str().unwrap(),
            image.to_str().unwrap(),
            "-quiet",
        ];
        run(
            "mksquashfs",
            &[&arguments[..], &["-no-progress", "-xattrs"]].concat(),
        );
        return SideMount::new(&["-o", "loop,ro", image.to_str().unwrap()], dir);
    }
    let size = match kind {
        "tmpfs" | "ramfs" => "mode=755",
        "xfs" => "300m",
        "btrfs" => "114m",
        _ => "16m",
    };
    let mount = mount_small(base, &format!("{kind}:{size}"), dir);
    let lost = dir.join("lost+found");
    if lost.exists() {
        fs::remove_dir(lost).unwrap();
    }
    build(dir, &parse(text));
    mount
}
