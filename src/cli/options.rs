//! What a mount was asked for: every spelling of the command line ends in one [`MountOptions`].
//!
//! Parsing is strict. An option that is not understood is an error, because a mount that silently lacks
//! what was asked for is worse than none. Options with an effect are matched in [`Draft`]; `known.rs` has
//! those that change nothing here, those whose meaning we cannot give, and the text of `--help`. Where an
//! option is given twice the later one counts, except for paths.

mod known;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use rustix::mount::MountPropagationFlags;

use super::exit::Failure;
use super::image::mount::Found;
pub(super) use super::image::mount::MountedImage;
use super::option_string::{self, Opt};
use crate::fuse::passthrough;
use crate::fuse::session::{Poll, SessionConfig};
use crate::image::store::Store;
use crate::layer::stack::{
    Durability, OverrideStat, Owner, StackConfig, UpperConfig, XattrNamespace,
};
use crate::overlay::options::{Acl, IdRange, Options, RedirectDir};

use known::Known;
pub(super) use known::{EFFECTIVE as HELP, help};

/// All that `mount` acts on, whichever way it was called.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// The layers.
    pub stack: StackConfig,
    /// How the union behaves.
    pub overlay: Options,
    /// Where and how it is mounted. `description` is filled in by the process that serves.
    pub session: SessionConfig,
    /// Serve in this process instead of a background one.
    pub foreground: bool,
    /// Log every request to stderr.
    pub debug: bool,
    /// Append the log to this file.
    pub log: Option<PathBuf>,
    /// Make an upper and workdir of our own and remove them at unmount.
    pub ephemeral: bool,
    /// Run this with the view mounted and unmount when it ends; empty = stay mounted.
    pub command: Vec<OsString>,
    /// The options as given, without the layers: for `plyfs mounts`.
    pub given: Vec<String>,
    /// The image that the lowers are of.
    pub image: Option<MountedImage>,
}

/// What differs between callers when nothing is said.
#[derive(Clone, Copy, Debug)]
pub(super) struct Defaults {
    /// Effective uid 0, in the initial or in a user namespace.
    pub(super) root: bool,
    /// First column of /proc/mounts.
    pub(super) source: &'static str,
}

/// Options collected so far.
#[derive(Debug, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent switches of the command line"
)]
pub(super) struct Draft {
    pub(super) foreground: bool,
    pub(super) debug: bool,
    pub(super) ephemeral: bool,
    pub(super) log: Option<PathBuf>,
    pub(super) mountpoint: Option<PathBuf>,
    pub(super) command: Vec<OsString>,
    /// It is called as container engines call fuse-overlayfs: no device nodes unless they are asked for, what is
    /// volatile is never synced, an upper is taken from a mount that was detached while it was busy, and renamed
    /// directories are copied.
    pub(super) engine: bool,
    image: Option<MountedImage>,
    /// The upper is in our keeping.
    managed: bool,
    stack: StackConfig,
    overlay: Options,
    redirect_dir: Option<RedirectDir>,
    lowerdir_given: bool,
    source: Option<String>,
    upper: Option<PathBuf>,
    work: Option<PathBuf>,
    durability: Option<Durability>,
    metacopy: Option<bool>,
    suid: Option<bool>,
    dev: Option<bool>,
    noexec: bool,
    read_only: bool,
    allow_other: bool,
    auto_unmount: bool,
    threads: Option<usize>,
    poll: Poll,
    passthrough: passthrough::Files,
    security: Vec<String>,
    propagation: Option<MountPropagationFlags>,
    given: Vec<String>,
}

impl Draft {
    /// Mounts an image: its layers, and the upper that is kept for it.
    pub(super) fn image(&mut self, found: Found) -> Result<Store, Failure> {
        self.mountpoint = Some(found.mountpoint);
        self.image = Some(found.image);
        self.stack.lowers = found.layers;
        if let Some(upper) = found.upper {
            self.managed = true;
            self.upper(upper.upper)?;
            self.work(upper.work)?;
        }
        Ok(found.store)
    }

    /// Whether a lower is given by now.
    pub(super) fn has_lowers(&self) -> bool {
        !self.stack.lowers.is_empty()
    }

    /// Whether an upper is asked for by now.
    pub(super) fn is_writable(&self) -> bool {
        self.upper.is_some() || self.ephemeral
    }

    /// Adds one layer below those given so far.
    pub(super) fn lower(&mut self, path: PathBuf) {
        self.stack.lowers.push(path.into());
    }

    pub(super) fn upper(&mut self, path: PathBuf) -> Result<(), Failure> {
        once(&mut self.upper, path, "upperdir").map_err(Failure::usage)
    }

    pub(super) fn work(&mut self, path: PathBuf) -> Result<(), Failure> {
        once(&mut self.work, path, "workdir").map_err(Failure::usage)
    }

    /// What the mount is called in /proc/mounts, unless `fsname` says so.
    pub(super) fn source_column(&mut self, source: &str) {
        self.source.get_or_insert_with(|| source.to_owned());
    }

    /// One argument of `-o`.
    pub(super) fn options(&mut self, text: &OsStr) -> Result<(), Failure> {
        let options = option_string::split(text.as_bytes()).map_err(Failure::usage)?;
        options
            .iter()
            .try_for_each(|option| self.option(option))
            .map_err(Failure::usage)
    }

    fn option(&mut self, option: &Opt) -> Result<(), String> {
        if self.path_option(option)? || known::has_no_effect(option)? {
            return Ok(());
        }
        if self.stack_option(option)?
            || self.union_option(option)?
            || self.mount_option(option)?
            || self.daemon_option(option)?
        {
            self.given.push(option.as_written());
            return Ok(());
        }
        Err(known::refusal(option))
    }

    fn path_option(&mut self, option: &Opt) -> Known {
        match option.name() {
            "lowerdir" => {
                if self.lowerdir_given {
                    return Err("option 'lowerdir' is given twice; list all layers in one, \
                                lowerdir=TOP:BELOW"
                        .into());
                }
                self.lowerdir_given = true;
                self.stack
                    .lowers
                    .extend(option.paths()?.into_iter().map(Into::into));
            }
            "upperdir" => once(&mut self.upper, option.path()?, "upperdir")?,
            "workdir" => once(&mut self.work, option.path()?, "workdir")?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// What is on disk and when it gets there.
    fn stack_option(&mut self, option: &Opt) -> Known {
        match option.name() {
            "userxattr" => {
                option.flag()?;
                self.stack.xattrs = XattrNamespace::User;
            }
            "volatile" => {
                option.flag()?;
                self.durability = Some(Durability::Volatile);
            }
            "fsync" => {
                self.durability = Some(option.choice(&[
                    ("auto", Durability::Auto),
                    ("strict", Durability::Strict),
                    ("volatile", Durability::Volatile),
                    ("1", Durability::Auto),
                    ("0", Durability::Volatile),
                ])?);
            }
            // The bare word is mount(8)'s, a different thing.
            "sync" if option.has_value() => {
                let synced = option.zero_one()?;
                self.durability = Some(if synced {
                    Durability::Auto
                } else {
                    Durability::Volatile
                });
            }
            "xattr_permissions" => {
                self.stack.override_stat = option.choice(&[
                    ("0", OverrideStat::Detect),
                    ("1", OverrideStat::Security),
                    ("2", OverrideStat::Containers),
                ])?;
            }
            "owner" => {
                self.stack.owner = option.choice(&[("me", Owner::Me), ("image", Owner::Image)])?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// How the union behaves.
    fn union_option(&mut self, option: &Opt) -> Known {
        let overlay = &mut self.overlay;
        match option.name() {
            // Redirects found in a layer are always followed, so `follow` says no more than `off`.
            "redirect_dir" if option.text()? == "nofollow" => return Ok(false),
            "redirect_dir" => {
                self.redirect_dir = Some(option.choice(&[
                    ("on", RedirectDir::On),
                    ("copy", RedirectDir::Copy),
                    ("off", RedirectDir::Off),
                    ("follow", RedirectDir::Off),
                ])?);
            }
            "metacopy" => self.metacopy = Some(option.on_off()?),
            "index" => overlay.index = option.on_off()?,
            "uidmapping" => overlay.uid_map = id_map(option)?,
            "gidmapping" => overlay.gid_map = id_map(option)?,
            "squash_to_root" => {
                option.flag()?;
                overlay.squash_uid = overlay.squash_uid.or(Some(0));
                overlay.squash_gid = overlay.squash_gid.or(Some(0));
            }
            "squash_to_uid" => overlay.squash_uid = Some(option.number()?),
            "squash_to_gid" => overlay.squash_gid = Some(option.number()?),
            "acl" => {
                option.flag()?;
                overlay.acl = Acl::On;
            }
            "noacl" => {
                option.flag()?;
                overlay.acl = Acl::Off;
            }
            "noxattr" => {
                option.flag()?;
                overlay.xattrs = false;
            }
            "noxattrs" => overlay.xattrs = !option.zero_one()?,
            "static_nlink" => {
                option.flag()?;
                overlay.static_nlink = true;
            }
            "ino32_t" => {
                option.flag()?;
                overlay.ino32 = true;
            }
            "timeout" => overlay.timeout = timeout(option)?,
            "cache_nodes" => overlay.limits.nodes = option.number()?,
            "cache_dirs" => overlay.limits.dir_fds = option.number()?,
            "cache_files" => overlay.limits.file_fds = option.number()?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// What mount(8) and fusermount3 know.
    fn mount_option(&mut self, option: &Opt) -> Known {
        match option.name() {
            "context" | "fscontext" | "defcontext" | "rootcontext" => {
                option.text()?;
                self.security.push(option.as_written());
            }
            "fsname" => self.source = Some(option.text()?.into_owned()),
            name if let Some(propagation) = propagation(name) => {
                option.flag()?;
                self.propagation = Some(propagation);
            }
            "subtype" => option.choice(&[("plyfs", ()), ("fuse-overlayfs", ())])?,
            name => {
                match name {
                    "ro" => self.read_only = true,
                    "rw" => self.read_only = false,
                    "suid" => self.suid = Some(true),
                    "nosuid" => self.suid = Some(false),
                    "dev" => self.dev = Some(true),
                    "nodev" => self.dev = Some(false),
                    "exec" => self.noexec = false,
                    "noexec" => self.noexec = true,
                    "allow_other" => self.allow_other = true,
                    "auto_unmount" => self.auto_unmount = true,
                    _ => return Ok(false),
                }
                option.flag()?;
            }
        }
        Ok(true)
    }

    /// How the daemon runs.
    fn daemon_option(&mut self, option: &Opt) -> Known {
        match option.name() {
            "ephemeral" => {
                option.flag()?;
                self.ephemeral = true;
            }
            "debug" => {
                option.flag()?;
                self.debug = true;
            }
            "passthrough" => {
                self.passthrough = passthrough(option)?;
            }
            "threads" => match option.number()? {
                0 => return Err("option 'threads' must be at least 1".into()),
                threads => self.threads = Some(threads),
            },
            "threaded" => {
                if !option.zero_one()? {
                    self.threads = Some(1);
                }
            }
            "poll" => self.poll = poll(option)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// How the layers' marks and owners are read.
    pub(super) fn reading(&self) -> (XattrNamespace, OverrideStat) {
        (self.stack.xattrs, self.stack.override_stat)
    }

    /// Checks what belongs together and fills in what was not said.
    pub(super) fn finish(mut self, defaults: Defaults) -> Result<MountOptions, Failure> {
        let mountpoint = self.mountpoint.take();
        let mountpoint = mountpoint
            .ok_or_else(|| Failure::usage("no mountpoint is given; see 'plyfs mount --help'"))?;
        if self.stack.lowers.is_empty() {
            return Err(Failure::usage(
                "no lower layer is given; use --lower DIR or -o lowerdir=TOP:BELOW",
            ));
        }
        self.stack.upper = self.writable_part()?;
        // Nobody reads an ephemeral upper after the mount, and it is in our own keeping: no syncs, and
        // metadata-only copy-up, which would surprise someone who looks into an upper of his own.
        self.stack.durability = self.durability.unwrap_or(if self.ephemeral {
            Durability::Volatile
        } else {
            Durability::Auto
        });
        self.stack.take_over = self.engine;
        if self.engine && self.stack.durability == Durability::Volatile {
            self.stack.durability = Durability::Unsynced;
        }
        self.overlay.metacopy = self.metacopy.unwrap_or(self.ephemeral || self.managed);
        // What a container changed is for other programs of the engine's choice, too, unless it asks for marks.
        self.overlay.redirect_dir =
            self.redirect_dir
                .unwrap_or(if self.engine && self.metacopy != Some(true) {
                    RedirectDir::Copy
                } else {
                    RedirectDir::On
                });
        if self.metacopy == Some(true) && self.overlay.redirect_dir == RedirectDir::Off {
            return Err(Failure::usage(
                "options 'metacopy=on' and 'redirect_dir=off' contradict each other: a renamed file \
                 finds its data by a redirect",
            ));
        }
        Ok(self.assemble(mountpoint, defaults))
    }

    fn writable_part(&mut self) -> Result<Option<UpperConfig>, Failure> {
        match (self.upper.take(), self.work.take()) {
            (None, None) => Ok(None),
            _ if self.ephemeral => Err(Failure::usage(
                "an ephemeral mount has an upper of its own; leave out upperdir and workdir, or \
                 --ephemeral",
            )),
            (Some(upper), Some(work)) => Ok(Some(UpperConfig { upper, work })),
            (Some(_), None) => Err(Failure::usage(
                "upperdir needs workdir: a directory of its own on the same filesystem as the upper",
            )),
            (None, Some(_)) => Err(Failure::usage("workdir is of no use without upperdir")),
        }
    }

    fn assemble(self, mountpoint: PathBuf, defaults: Defaults) -> MountOptions {
        // Who made an image need not be trusted with root's bits; a mount of root's lets everybody in.
        let trusted = self.image.is_none();
        let session = SessionConfig {
            mountpoint,
            source: self.source.unwrap_or_else(|| defaults.source.to_owned()),
            allow_other: self.allow_other || defaults.root,
            read_only: self.read_only,
            // Only root's suid bits and devices mean anything; the kernel or fusermount3 would refuse.
            suid: defaults.root && self.suid.unwrap_or(trusted),
            dev: defaults.root && self.dev.unwrap_or(!self.engine && trusted),
            exec: !self.noexec,
            auto_unmount: self.auto_unmount,
            threads: self.threads.unwrap_or(DEFAULT_THREADS),
            poll: self.poll,
            passthrough: self.passthrough,
            security: self.security,
            propagation: self.propagation,
            description: String::new(),
        };
        MountOptions {
            stack: self.stack,
            overlay: self.overlay,
            session,
            foreground: self.foreground || self.debug,
            debug: self.debug,
            log: self.log,
            ephemeral: self.ephemeral,
            command: self.command,
            given: self.given,
            image: self.image,
        }
    }
}

/// One reader answers from memory faster than several that wake each other.
const DEFAULT_THREADS: usize = 1;

/// Sets a path that may be given only once: two uppers are a mistake, not a preference.
fn once(place: &mut Option<PathBuf>, path: PathBuf, name: &str) -> Result<(), String> {
    if place.is_some() {
        return Err(format!("{name} is given twice"));
    }
    *place = Some(path);
    Ok(())
}

/// mount(8)'s words for how mounts spread; buildah sends `private` for the overlays that are its volumes.
fn propagation(name: &str) -> Option<MountPropagationFlags> {
    let (recursive, word) = match name.strip_prefix('r') {
        Some(word) => (MountPropagationFlags::REC, word),
        None => (MountPropagationFlags::empty(), name),
    };
    let kind = match word {
        "private" => MountPropagationFlags::PRIVATE,
        "shared" => MountPropagationFlags::SHARED,
        "slave" => MountPropagationFlags::DOWNSTREAM,
        "unbindable" => MountPropagationFlags::UNBINDABLE,
        _ => return None,
    };
    Some(kind | recursive)
}

/// `HOST:INSIDE:LEN[:HOST:INSIDE:LEN...]`, as fuse-overlayfs takes it.
fn id_map(option: &Opt) -> Result<Vec<IdRange>, String> {
    let text = option.text()?;
    let malformed = || {
        format!(
            "option '{}' must be HOST:INSIDE:LEN, repeated with ':', not '{text}'",
            option.name()
        )
    };
    // Podman joins every range to an empty string, so that its first has a ':' before it.
    let ranges = text.strip_prefix(':').unwrap_or(&text);
    let numbers: Result<Vec<u32>, _> = ranges.split(':').map(str::parse).collect();
    let numbers = numbers.map_err(|_| malformed())?;
    let (triples, []) = numbers.as_chunks::<3>() else {
        return Err(malformed());
    };
    let fits = |start: u32, len: u32| len > 0 && start.checked_add(len - 1).is_some();
    triples
        .iter()
        .map(|&[host, inside, len]| {
            (fits(host, len) && fits(inside, len))
                .then_some(IdRange { host, inside, len })
                .ok_or_else(malformed)
        })
        .collect()
}

fn timeout(option: &Opt) -> Result<Option<Duration>, String> {
    let seconds: f64 = option.number()?;
    if seconds < 0.0 || seconds.is_nan() {
        return Err(format!("option 'timeout' cannot be {seconds}"));
    }
    // Longer than a Duration can hold is for ever.
    Ok(Duration::try_from_secs_f64(seconds).ok())
}

fn passthrough(option: &Opt) -> Result<passthrough::Files, String> {
    match &*option.text()? {
        "off" => Ok(passthrough::Files::None),
        "on" => Ok(passthrough::Files::Safe),
        "all" => Ok(passthrough::Files::All),
        text => Err(format!(
            "option 'passthrough' must be off, on or all, not '{text}'"
        )),
    }
}

fn poll(option: &Opt) -> Result<Poll, String> {
    match &*option.text()? {
        "auto" => Ok(Poll::Auto),
        "off" => Ok(Poll::Off),
        text => text.parse().map(Poll::Micros).map_err(|_| {
            format!("option 'poll' must be auto, off or a number of microseconds, not '{text}'")
        }),
    }
}

#[cfg(test)]
mod tests;
