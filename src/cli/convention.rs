//! The calling conventions of others.
//!
//! - fuse-overlayfs, as podman, buildah, apptainer and containerd call it: `PROGRAM [-f] -o OPTS MNT`,
//!   by our own name or by the name `fuse-overlayfs`;
//! - mount.fuse, as `mount -t fuse.plyfs` calls it: `plyfs SOURCE MNT -o OPTS`;
//! - mount helpers, as `mount -t plyfs` calls them: `mount.plyfs SOURCE MNT [-sfnv] -o OPTS`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::exit::Failure;
use super::options::{Defaults, Draft};

/// What the program was called as.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Name {
    Plyfs,
    FuseOverlayfs,
    /// `mount.plyfs`, `mount.fuse.plyfs`: mount(8) is calling.
    MountHelper,
}

/// A command line in one of the conventions above.
#[derive(Debug)]
pub(super) enum Call {
    /// `fake` asks to check everything and mount nothing (`mount -f`).
    Mount {
        draft: Box<Draft>,
        fake: bool,
    },
    Help,
    Version,
}

impl Name {
    pub(super) fn of(arg0: &OsStr) -> Self {
        match Path::new(arg0).file_name().map(OsStr::as_bytes) {
            Some(b"fuse-overlayfs") => Self::FuseOverlayfs,
            Some(name) if name.starts_with(b"mount.") => Self::MountHelper,
            _ => Self::Plyfs,
        }
    }

    pub(super) fn defaults(self) -> Defaults {
        Defaults {
            root: rustix::process::geteuid().is_root(),
            source: if self == Self::FuseOverlayfs {
                "fuse-overlayfs"
            } else {
                "plyfs"
            },
        }
    }

    /// Whether `args` (without the program's name) follow a convention of others. Our own name leaves
    /// that open: it has subcommands, and there must be a `-o`.
    pub(super) fn conventional(self, args: &[OsString], is_subcommand: fn(&OsStr) -> bool) -> bool {
        self != Self::Plyfs
            || (args.first().is_some_and(|first| !is_subcommand(first))
                && args.iter().any(|arg| arg.as_bytes().starts_with(b"-o")))
    }

    /// Reads `args` (without the program's name). Options may stand before, between and after the paths.
    pub(super) fn read(self, args: &[OsString]) -> Result<Call, Failure> {
        let mut reader = Reader {
            name: self,
            draft: Draft::default(),
            paths: Vec::new(),
            fake: false,
        };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            match arg.as_bytes() {
                b"--" => reader.rest(args.by_ref()),
                b"--help" | b"-h" => return Ok(Call::Help),
                b"--version" | b"-V" => return Ok(Call::Version),
                b"--debug" => reader.draft.debug = true,
                b"--foreground" => reader.draft.foreground = true,
                b"-o" => {
                    let options = args.next();
                    let options = options.ok_or_else(|| Failure::usage("-o needs options"))?;
                    reader.draft.options(options)?;
                }
                // The type and namespace mount(8) tells its helpers: both are as they should be.
                b"-t" | b"-N" => _ = args.next(),
                [b'-', b'o', glued @ ..] => reader.draft.options(OsStr::from_bytes(glued))?,
                [b'-', letters @ ..] if !letters.is_empty() => {
                    letters
                        .iter()
                        .try_for_each(|&letter| reader.flag(letter, arg))?;
                }
                _ => reader.paths.push(arg.clone()),
            }
        }
        reader.finish()
    }
}

struct Reader {
    name: Name,
    draft: Draft,
    paths: Vec<OsString>,
    fake: bool,
}

impl Reader {
    /// What follows `--`: the paths if there are none yet, else a command to run in the mount.
    fn rest<'a>(&mut self, rest: impl Iterator<Item = &'a OsString>) {
        let place = if self.paths.is_empty() {
            &mut self.paths
        } else {
            &mut self.draft.command
        };
        place.extend(rest.cloned());
    }

    fn flag(&mut self, letter: u8, arg: &OsStr) -> Result<(), Failure> {
        let helper = self.name == Name::MountHelper;
        match letter {
            b'f' if helper => self.fake = true,
            b'f' => self.draft.foreground = true,
            b'd' => self.draft.debug = true,
            // "sloppy" to mount(8), which we are not; "single thread" to libfuse.
            b's' if helper => {}
            b's' => self.draft.options(OsStr::new("threaded=0"))?,
            b'n' | b'v' => {}
            b'r' => self.draft.options(OsStr::new("ro"))?,
            b'w' => self.draft.options(OsStr::new("rw"))?,
            _ => {
                return Err(Failure::usage(format!(
                    "unknown argument '{}'; see 'plyfs --help'",
                    arg.to_string_lossy()
                )));
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Call, Failure> {
        let mut paths = self.paths.into_iter();
        let (source, mountpoint) = match (paths.next(), paths.next(), paths.next()) {
            (Some(source), Some(mountpoint), None) => (Some(source), Some(mountpoint)),
            (mountpoint, None, _) => (None, mountpoint),
            (_, _, Some(third)) => {
                return Err(Failure::usage(format!(
                    "too many arguments: '{}' is neither the source nor the mountpoint",
                    third.to_string_lossy()
                )));
            }
            (None, Some(_), None) => (None, None),
        };
        self.draft.mountpoint = mountpoint.map(PathBuf::from);
        // mount(8) names a source; engines do not, except where they call fuse-overlayfs by mount.fuse.
        self.draft.engine = match self.name {
            Name::FuseOverlayfs => true,
            Name::Plyfs => source.is_none(),
            Name::MountHelper => false,
        };
        if let Some(source) = source.filter(|source| source != "none" && !source.is_empty()) {
            self.draft.source_column(&source.to_string_lossy());
        }
        Ok(Call::Mount {
            draft: Box::new(self.draft),
            fake: self.fake,
        })
    }
}

/// What `fuse-overlayfs --version` prints: callers look for `fuse-overlayfs: version N`, compare N, and
/// expect the two other lines. 1.14 is the release whose command line this is.
pub(super) const FUSE_OVERLAYFS_VERSION: &str = concat!(
    "fuse-overlayfs: version 1.14-plyfs-",
    env!("CARGO_PKG_VERSION"),
    "\nFUSE library version fuser 0.18\nusing FUSE kernel interface version 7.40\n"
);

/// What `fuse-overlayfs --help` and `mount.plyfs --help` print, above the options.
pub(super) fn usage(name: Name) -> &'static str {
    match name {
        Name::FuseOverlayfs => {
            "usage: fuse-overlayfs [-f] [-d] [-V] -o lowerdir=TOP:BELOW,upperdir=U,workdir=W MOUNTPOINT\n\n\
             This is plyfs, called in the manner of fuse-overlayfs; see also 'plyfs --help'.\n\n"
        }
        _ => {
            "usage: mount.plyfs SOURCE MOUNTPOINT [-fnrsvw] -o lowerdir=TOP:BELOW,...\n\n\
             This is plyfs, called by mount(8); see also 'plyfs --help'.\n\n"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::exit::Exit;
    use crate::cli::options::MountOptions;

    fn strings(args: &[&str]) -> Vec<OsString> {
        args.iter().map(OsString::from).collect()
    }

    fn read(name: Name, args: &[&str]) -> MountOptions {
        match name.read(&strings(args)).unwrap() {
            Call::Mount { draft, .. } => draft.finish(name.defaults()).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    fn is_subcommand(word: &OsStr) -> bool {
        word == "mount" || word == "umount"
    }

    #[test]
    fn the_name_decides_the_convention() {
        assert_eq!(Name::of(OsStr::new("/usr/bin/plyfs")), Name::Plyfs);
        assert_eq!(
            Name::of(OsStr::new("/usr/bin/fuse-overlayfs")),
            Name::FuseOverlayfs
        );
        assert_eq!(Name::of(OsStr::new("/sbin/mount.plyfs")), Name::MountHelper);
        assert_eq!(Name::of(OsStr::new("mount.fuse.plyfs")), Name::MountHelper);
        assert_eq!(Name::of(OsStr::new("renamed")), Name::Plyfs);
    }

    #[test]
    fn our_own_name_is_read_as_ours_unless_there_is_a_dash_o_and_no_subcommand() {
        let conventional = |args: &[&str]| Name::Plyfs.conventional(&strings(args), is_subcommand);
        assert!(conventional(&["-o", "lowerdir=/a", "/m"]));
        assert!(conventional(&["none", "/m", "-olowerdir=/a"]));
        assert!(!conventional(&["mount", "-o", "lowerdir=/a", "/m"]));
        assert!(!conventional(&["--help"]));
        assert!(!conventional(&[]));
        assert!(Name::FuseOverlayfs.conventional(&strings(&["--version"]), is_subcommand));
    }

    #[test]
    fn options_may_stand_anywhere_and_repeat() {
        for args in [
            &["-o", "lowerdir=/a:/b,ro", "/m"][..],
            &["/m", "-o", "lowerdir=/a:/b,ro"],
            &["-olowerdir=/a:/b", "/m", "-o", "ro"],
            &["-o", "lowerdir=/a:/b", "-r", "--", "/m"],
        ] {
            let options = read(Name::Plyfs, args);
            assert_eq!(
                options.stack.lowers,
                ["/a", "/b"].map(|path| PathBuf::from(path).into()),
                "{args:?}"
            );
            assert!(options.session.read_only, "{args:?}");
            assert_eq!(options.session.mountpoint, Path::new("/m"), "{args:?}");
            assert_eq!(options.session.source, "plyfs", "{args:?}");
        }
    }

    #[test]
    fn mount_fuse_passes_a_source_before_the_mountpoint() {
        let options = read(
            Name::Plyfs,
            &["overlay", "/m", "-o", "rw,lowerdir=/a,dev,suid"],
        );
        assert_eq!(options.session.source, "overlay");
        assert_eq!(options.session.mountpoint, Path::new("/m"));
        for source in ["none", ""] {
            let options = read(Name::Plyfs, &[source, "/m", "-o", "lowerdir=/a"]);
            assert_eq!(options.session.source, "plyfs");
        }
        let options = read(Name::Plyfs, &["x", "/m", "-o", "lowerdir=/a,fsname=y"]);
        assert_eq!(options.session.source, "y");
    }

    #[test]
    fn a_third_path_is_refused() {
        let error = Name::Plyfs
            .read(&strings(&["-o", "lowerdir=/a", "x", "/m", "/n"]))
            .unwrap_err();
        assert_eq!(error.exit, Exit::Usage);
        assert!(error.sentence.contains("'/n'"), "{error}");
    }

    #[test]
    fn foreground_and_debug_flags_are_those_of_fuse_overlayfs() {
        let options = read(Name::FuseOverlayfs, &["-f", "-o", "lowerdir=/a", "/m"]);
        assert!(options.foreground && !options.debug);
        for flag in ["-d", "--debug", "-fd"] {
            let options = read(Name::FuseOverlayfs, &[flag, "-o", "lowerdir=/a", "/m"]);
            assert!(options.foreground && options.debug, "{flag}");
        }
    }

    #[test]
    fn a_mount_helper_takes_the_flags_of_mount() {
        let args = strings(&[
            "src",
            "/m",
            "-n",
            "-s",
            "-v",
            "-f",
            "-o",
            "rw,lowerdir=/a",
            "-t",
            "plyfs",
        ]);
        let Call::Mount { draft, fake } = Name::MountHelper.read(&args).unwrap() else {
            panic!("not a mount");
        };
        assert!(fake);
        assert!(
            !draft
                .finish(Name::MountHelper.defaults())
                .unwrap()
                .foreground
        );
    }

    #[test]
    fn unknown_flags_are_refused_by_name() {
        for flag in ["-x", "--nonsense"] {
            let error = Name::FuseOverlayfs
                .read(&strings(&[flag, "/m"]))
                .unwrap_err();
            assert_eq!(error.exit, Exit::Usage);
            assert!(error.sentence.contains(flag), "{error}");
        }
    }

    #[test]
    fn a_command_may_follow_the_mountpoint() {
        let options = read(Name::Plyfs, &["-o", "lowerdir=/a", "/m", "--", "ls", "-o"]);
        assert_eq!(options.command, ["ls", "-o"]);
    }

    #[test]
    fn version_starts_as_probes_expect_it() {
        let first = FUSE_OVERLAYFS_VERSION.lines().next().unwrap();
        assert!(first.starts_with("fuse-overlayfs: version 1."), "{first}");
        assert!(matches!(
            Name::FuseOverlayfs.read(&strings(&["-V"])),
            Ok(Call::Version)
        ));
    }
}
