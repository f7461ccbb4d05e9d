//! Every option by name: for `--help`, for suggestions, and those that are accepted or refused unseen.

use crate::cli::option_string::{Opt, nearest};

/// Whether a group of options knew the one it was shown.
pub(super) type Known = Result<bool, String>;

/// Options with an effect, as `--help` shows them: how they are written, and what they do.
pub(in crate::cli) const EFFECTIVE: &[(&str, &str)] = &[
    (
        "lowerdir=TOP:BELOW",
        "read-only layers, topmost first; '\\:' and '\\,' escape",
    ),
    (
        "upperdir=DIR",
        "receives all changes; without it the mount is read-only",
    ),
    ("workdir=DIR", "staging area on the filesystem of the upper"),
    (
        "ephemeral",
        "an upper of its own that is gone after unmount",
    ),
    (
        "redirect_dir=on|copy|off",
        "rename directories of lower layers by a mark, by copying them, or not: EXDEV [on; called as engines do: copy]",
    ),
    (
        "metacopy=on|off",
        "chmod, chown and the like copy no data [off; ephemeral: on]",
    ),
    ("index=on|off", "keep hard links across copy-up [on]"),
    (
        "userxattr",
        "write marks as user.overlay.* instead of trusted.overlay.*",
    ),
    (
        "fsync=auto|strict|volatile",
        "when a copy-up reaches the disk; 1 is auto, 0 is volatile [auto]",
    ),
    ("sync=1|0", "the same as fsync=1 and fsync=0"),
    (
        "volatile",
        "the same as fsync=volatile: a crash may lose the whole upper",
    ),
    (
        "uidmapping=HOST:INSIDE:LEN",
        "owner ids on disk to ids in the mount; more with ':'",
    ),
    ("gidmapping=HOST:INSIDE:LEN", "the same for groups"),
    (
        "owner=me|image",
        "files of tar layers belong to who mounts, or to whom the tar says [image for root, else me]",
    ),
    ("squash_to_root", "every file belongs to root"),
    ("squash_to_uid=UID", "every file belongs to this user"),
    ("squash_to_gid=GID", "every file belongs to this group"),
    (
        "xattr_permissions=0|1|2",
        "keep owner and mode in xattrs: 1 security.*, 2 user.*",
    ),
    ("acl", "enforce POSIX ACLs [where others may use the mount]"),
    ("noacl", "refuse POSIX ACLs"),
    ("noxattr", "refuse extended attributes; also noxattrs=1"),
    ("noxattrs=0|1", "1 refuses extended attributes"),
    ("static_nlink", "directories report one link"),
    ("ino32_t", "inode numbers fit 32 bits"),
    (
        "timeout=SECONDS",
        "believe what was read of the layers that long [for ever]",
    ),
    ("threads=N", "threads that read requests"),
    ("threaded=0|1", "0 is threads=1"),
    (
        "poll=auto|off|USEC",
        "how the reader waits for the next request [auto]",
    ),
    (
        "passthrough=off|on|all",
        "files the kernel reads and writes itself: on: of the upper; all: of lowers too; needs root [off]",
    ),
    (
        "cache_nodes=N",
        "nodes kept although the kernel forgot them",
    ),
    ("cache_dirs=N", "open directories kept"),
    ("cache_files=N", "open files kept"),
    ("ro", "read-only, even with an upper"),
    ("rw", "the opposite of ro"),
    (
        "suid",
        "honour suid bits [root: yes, but not of an image; others cannot]",
    ),
    ("nosuid", "ignore suid bits"),
    (
        "dev",
        "honour device nodes [root: yes, but not of an image, nor called as engines do; others cannot]",
    ),
    ("nodev", "ignore device nodes"),
    ("exec", "allow programs to be executed [yes]"),
    ("noexec", "refuse to execute programs"),
    (
        "private",
        "mounts below stay here; also shared, slave, unbindable, and rprivate and so on",
    ),
    ("allow_other", "other users may use the mount [root: yes]"),
    (
        "auto_unmount",
        "unmount even if the daemon is killed; needs fusermount3",
    ),
    ("fsname=NAME", "the first column of /proc/mounts"),
    ("subtype=plyfs", "the type, always fuse.plyfs"),
    ("context=LABEL", "SELinux label of all files"),
    ("fscontext=LABEL", "SELinux label of the filesystem"),
    ("defcontext=LABEL", "SELinux label of unlabelled files"),
    ("rootcontext=LABEL", "SELinux label of the root"),
    ("debug", "stay in the foreground and log every request"),
];

/// The option's name in the way it is written.
pub(super) fn name_of(syntax: &str) -> &str {
    syntax.split('=').next().unwrap_or(syntax)
}

/// [`EFFECTIVE`] as a paragraph of `--help`.
pub(in crate::cli) fn help() -> String {
    let lines = EFFECTIVE
        .iter()
        .map(|(syntax, effect)| format!("  {syntax:<28} {effect}\n"));
    let rest = "Options of mount(8), fstab, libfuse and fuse-overlayfs that change nothing here are \
                accepted;\nany other is an error.\n";
    std::iter::once("Options of -o:\n".to_owned())
        .chain(lines)
        .chain([rest.to_owned()])
        .collect()
}

/// What an option of [`NO_EFFECT`] may be set to.
#[derive(Clone, Copy, Debug)]
enum Takes {
    Nothing,
    Number,
    /// A value that asks for what we do anyway, or for what only others do.
    Words(&'static [&'static str]),
    Anything,
}

/// Options of mount(8), fstab, libfuse, kernel overlayfs and fuse-overlayfs that ask for nothing we do
/// otherwise: access times are those of the layers, permissions are always checked by the kernel, inode
/// numbers are always unique, tuning is our own.
const NO_EFFECT: &[(&str, Takes)] = &[
    ("defaults", Takes::Nothing),
    ("auto", Takes::Nothing),
    ("noauto", Takes::Nothing),
    ("user", Takes::Anything),
    ("nouser", Takes::Nothing),
    ("users", Takes::Nothing),
    ("owner", Takes::Nothing),
    ("group", Takes::Nothing),
    ("nofail", Takes::Nothing),
    ("_netdev", Takes::Nothing),
    ("comment", Takes::Anything),
    ("silent", Takes::Nothing),
    ("loud", Takes::Nothing),
    ("async", Takes::Nothing),
    ("nomand", Takes::Nothing),
    ("atime", Takes::Nothing),
    ("noatime", Takes::Nothing),
    ("relatime", Takes::Nothing),
    ("norelatime", Takes::Nothing),
    ("nostrictatime", Takes::Nothing),
    ("diratime", Takes::Nothing),
    ("nodiratime", Takes::Nothing),
    ("lazytime", Takes::Nothing),
    ("nolazytime", Takes::Nothing),
    ("default_permissions", Takes::Nothing),
    ("nonempty", Takes::Nothing),
    ("kernel_cache", Takes::Nothing),
    ("auto_cache", Takes::Nothing),
    ("big_writes", Takes::Nothing),
    ("async_read", Takes::Nothing),
    ("splice_read", Takes::Nothing),
    ("splice_write", Takes::Nothing),
    ("splice_move", Takes::Nothing),
    ("no_splice_read", Takes::Nothing),
    ("no_splice_write", Takes::Nothing),
    ("no_splice_move", Takes::Nothing),
    ("clone_fd", Takes::Nothing),
    ("max_read", Takes::Number),
    ("max_write", Takes::Number),
    ("max_readahead", Takes::Number),
    ("max_threads", Takes::Number),
    ("max_idle_threads", Takes::Number),
    ("max_background", Takes::Number),
    ("congestion_threshold", Takes::Number),
    ("writeback", Takes::Words(&["0", "1"])),
    ("fast_ino", Takes::Words(&["0", "1"])),
    ("fast_ino_check", Takes::Words(&["0", "1"])),
    ("xino", Takes::Words(&["off", "auto", "on"])),
    ("uuid", Takes::Words(&["off", "null", "auto"])),
    ("nfs_export", Takes::Words(&["off"])),
    ("verity", Takes::Words(&["off"])),
    ("override_creds", Takes::Nothing),
];

pub(super) fn has_no_effect(option: &Opt) -> Known {
    let name = option.name();
    if name.starts_with("x-") || name.starts_with("X-") {
        return Ok(true);
    }
    let Some((_, takes)) = NO_EFFECT.iter().find(|(known, _)| *known == name) else {
        return Ok(false);
    };
    match takes {
        // The bare word is mount(8)'s, a different thing.
        Takes::Nothing if name == "owner" && option.has_value() => return Ok(false),
        Takes::Nothing => option.flag()?,
        Takes::Number => drop(option.number::<u32>()?),
        Takes::Anything => {}
        Takes::Words(words) => {
            let text = option.text()?;
            // Other values ask for something; `refusal` says why not.
            return Ok(words.contains(&&*text));
        }
    }
    Ok(true)
}

/// Options that exist elsewhere and would change what the mount means.
const REFUSED: &[(&str, &str)] = &[
    (
        "redirect_dir",
        "redirects found in a layer are always followed",
    ),
    ("nfs_export", "a plyfs mount cannot be exported by NFS"),
    (
        "verity",
        "fs-verity digests of metacopy files are not checked",
    ),
    (
        "uuid",
        "the filesystem id of a FUSE mount is chosen by the kernel",
    ),
    ("writeback", "it takes 0 or 1"),
    ("xino", "it takes off, auto or on"),
    ("fast_ino", "it takes 0 or 1"),
    ("fast_ino_check", "it takes 0 or 1"),
    ("plugins", "layer plugins do not exist here"),
    ("lowerdir+", "list the layers in one lowerdir=TOP:BELOW"),
    ("datadir+", "data-only layers are not supported"),
    (
        "nodefault_permissions",
        "the kernel always checks permissions",
    ),
    (
        "no_default_permissions",
        "the kernel always checks permissions",
    ),
    (
        "nooverride_creds",
        "layers are always accessed with the rights of whoever mounted",
    ),
    (
        "allow_root",
        "root cannot be let in without all others; use allow_other",
    ),
    ("remount", "unmount and mount again"),
    ("bind", "bind mounts are made by mount(8) itself"),
    ("sync", "use fsync=strict"),
    ("dirsync", "use fsync=strict"),
    ("mand", "mandatory locks no longer exist"),
    ("strictatime", "access times are those of the layers"),
    ("nosymfollow", "it cannot be passed on to the kernel"),
    ("direct_io", "files could no longer be mapped"),
    ("noauto_cache", "use timeout=SECS"),
    ("attr_timeout", "use timeout=SECS"),
    ("entry_timeout", "use timeout=SECS"),
    ("negative_timeout", "use timeout=SECS"),
    ("ac_attr_timeout", "use timeout=SECS"),
    ("uid", "use squash_to_uid or uidmapping"),
    ("gid", "use squash_to_gid or gidmapping"),
    ("umask", "modes are those of the layers"),
];

/// The sentence for an option nobody took.
pub(super) fn refusal(option: &Opt) -> String {
    let name = option.name();
    if let Some((_, why)) = REFUSED.iter().find(|(refused, _)| *refused == name) {
        return format!("option '{}' is not supported: {why}", option.as_written());
    }
    let known = EFFECTIVE.iter().map(|(syntax, _)| name_of(syntax));
    let known = known.chain(NO_EFFECT.iter().map(|(name, _)| *name));
    match nearest(name, known) {
        Some(known) => format!("unknown option '{name}'; did you mean '{known}'?"),
        None => format!("unknown option '{name}'; see 'plyfs mount --help'"),
    }
}

#[cfg(test)]
pub(super) fn accepted_without_effect() -> impl Iterator<Item = String> {
    NO_EFFECT.iter().map(|(name, takes)| match takes {
        Takes::Nothing | Takes::Anything => (*name).to_owned(),
        Takes::Number => format!("{name}=4096"),
        Takes::Words(words) => format!("{name}={}", words[0]),
    })
}
