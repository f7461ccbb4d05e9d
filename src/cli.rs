//! The command line: clap types and the way from arguments to actions.
//!
//! One file per subcommand below. What others call us with (`fuse-overlayfs -o ...`, mount(8)) is read in
//! `convention.rs`; both ways end in [`MountOptions`]. Exit codes are in [`exit`]; a failure is one line on
//! stderr, `plyfs: <sentence>`.

mod background;
mod check;
mod command;
mod commit;
mod convention;
mod convert;
mod description;
mod diff;
mod ephemeral;
pub mod exit;
mod files;
mod generate;
mod image;
mod log;
mod mount;
mod mountinfo;
mod mounts;
mod option_string;
mod options;
mod output;
mod stats;
mod tree;
mod umount;
mod virtual_xattr;
mod which;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use clap_complete::Shell;

pub use options::MountOptions;

use background::Role;
use check::CheckArgs;
use commit::CommitArgs;
use convention::{Call, Name};
use convert::ConvertArgs;
use diff::DiffArgs;
use exit::{Exit, Failure};
use files::{CatArgs, CpArgs, LsArgs};
use image::mount::ImageArgs;
use options::Draft;
use which::WhichArgs;

use crate::image::store::Store;

/// Merge read-only directories and one writable directory into one tree.
///
/// plyfs is a union filesystem in userspace. It shows a stack of directories as one; all changes go to
/// the topmost one, the upper, in the format of Linux overlayfs.
#[derive(Debug, Parser)]
#[command(name = "plyfs", version, after_long_help = exit::help(), disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Mount(Box<MountArgs>),
    /// Unmount, and wait until the upper can be used again
    Umount {
        /// Where it is mounted
        #[arg(value_name = "MNT")]
        mountpoint: PathBuf,
        /// Detach a mount that is in use; it ends when its last file is closed
        #[arg(short, long)]
        lazy: bool,
    },
    /// List what is mounted: layers, options, daemon
    Mounts {
        /// Print JSON with all layers of every mount
        #[arg(long)]
        json: bool,
    },
    /// Show the counters of a live mount
    Stats {
        /// Where it is mounted
        #[arg(value_name = "MNT")]
        mountpoint: PathBuf,
        /// Print JSON as the daemon gives it
        #[arg(long)]
        json: bool,
        /// Print again every second, with rates
        #[arg(long)]
        watch: bool,
    },
    #[command(flatten)]
    Image(image::Command),
    Diff(DiffArgs),
    Commit(CommitArgs),
    Which(WhichArgs),
    Cat(CatArgs),
    Ls(LsArgs),
    Cp(CpArgs),
    Convert(ConvertArgs),
    Check(CheckArgs),
    /// Write the man pages into a directory
    #[command(hide = true)]
    Man {
        /// Created if missing
        #[arg(value_name = "DIR")]
        dir: PathBuf,
    },
    /// Print the completion script of a shell
    #[command(hide = true)]
    Completions {
        /// Which one
        shell: Shell,
    },
}

/// Mount a stack of layers
///
/// Layers are given topmost first, by --lower or by -o lowerdir=TOP:BELOW in any mixture. Without an
/// upper the mount is read-only. The command returns when the mount answers; a process in the background
/// serves it until `plyfs umount`, or SIGTERM to that process.
///
/// With `-- CMD ARGS` CMD runs while the view is mounted, and its exit code is ours.
#[derive(Debug, Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent switches of the command line"
)]
#[command(after_long_help = options::help() + "\n" + &exit::help())]
struct MountArgs {
    /// A read-only layer, a directory or an uncompressed tar; repeat it, topmost first
    #[arg(long, value_name = "DIR")]
    lower: Vec<PathBuf>,
    /// The directory that receives all changes
    #[arg(long, value_name = "DIR")]
    upper: Option<PathBuf>,
    /// A directory for work in progress, on the filesystem of the upper but not in it; keep it with the upper
    #[arg(long, value_name = "DIR")]
    work: Option<PathBuf>,
    /// Write to an upper of its own, made in $TMPDIR and gone after unmount
    ///
    /// A daemon killed by SIGKILL leaves it behind, as $TMPDIR/plyfs-*.
    #[arg(long)]
    ephemeral: bool,
    /// Options separated by commas, in the spelling of overlayfs; --help lists them
    #[arg(short, long = "options", value_name = "OPTS")]
    options: Vec<OsString>,
    /// Let other users in; root does so unasked
    #[arg(long)]
    allow_other: bool,
    /// Unmount even if the daemon is killed
    #[arg(long)]
    auto_unmount: bool,
    /// Serve in this process
    #[arg(short, long)]
    foreground: bool,
    /// Log every request to stderr; implies --foreground
    #[arg(short, long)]
    debug: bool,
    /// Append the log to a file
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    #[command(flatten)]
    image: ImageArgs,
    /// An image, unless there are --lower: its name, or the path of an archive or layout; and where to mount
    #[arg(value_name = "[IMAGE] MNT", required = true, num_args = 1..=2)]
    places: Vec<OsString>,
    /// Run this with the view mounted, and unmount when it ends
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// Acts on the command line `args`, whose first is the program's name.
pub fn main(mut args: Vec<OsString>) -> ExitCode {
    // A limit of file sizes (RLIMIT_FSIZE) is an error of the write that meets it, not the end of the process.
    let limit = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::default());
    debug_assert!(limit.is_ok());
    let role = Role::take(&mut args);
    match run(&args, role) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            role.complain(&failure);
            ExitCode::from(failure.exit as u8)
        }
    }
}

/// Reads the options of a mount, as they stand behind `-o`, and no more; what is wrong with them.
pub fn check_options(text: &OsStr) -> Result<(), String> {
    let checked = Draft::default().options(text);
    checked.map_err(|failure| output::one_line(&failure.sentence))
}

fn run(args: &[OsString], role: Role) -> Result<u8, Failure> {
    let (arg0, rest) = args
        .split_first()
        .ok_or_else(|| Failure::usage("no arguments"))?;
    let name = Name::of(arg0);
    if name.conventional(rest, is_subcommand) {
        return conventional(name, args, rest, role);
    }
    let matches = match Cli::command().try_get_matches_from(args) {
        Ok(matches) => matches,
        Err(error) => return shown_or_refused(&error),
    };
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => return shown_or_refused(&error),
    };
    match cli.command {
        Command::Mount(asked) => {
            let order = matches
                .subcommand_matches("mount")
                .map(places)
                .unwrap_or_default();
            let (draft, store) = asked.draft(&order)?;
            mount::run(draft.finish(name.defaults())?, role, args, store)
        }
        Command::Umount { mountpoint, lazy } => umount::run(&mountpoint, lazy),
        Command::Mounts { json } => mounts::run(json),
        Command::Stats {
            mountpoint,
            json,
            watch,
        } => stats::run(&mountpoint, json, watch),
        Command::Image(command) => command.run(),
        Command::Diff(args) => diff::run(&args),
        Command::Commit(args) => commit::run(&args),
        Command::Which(args) => which::run(&args),
        Command::Cat(args) => files::cat(&args),
        Command::Ls(args) => files::ls(&args),
        Command::Cp(args) => files::cp(&args),
        Command::Convert(args) => convert::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Man { dir } => generate::man(Cli::command(), &dir),
        Command::Completions { shell } => generate::completions(Cli::command(), shell),
    }
}

/// Called in the way of fuse-overlayfs or mount(8).
fn conventional(
    name: Name,
    args: &[OsString],
    rest: &[OsString],
    role: Role,
) -> Result<u8, Failure> {
    match name.read(rest)? {
        Call::Mount { draft, fake } => {
            let options = draft.finish(name.defaults())?;
            if fake {
                mount::pretend(&options)
            } else {
                mount::run(options, role, args, None)
            }
        }
        Call::Version if name == Name::FuseOverlayfs => show(convention::FUSE_OVERLAYFS_VERSION),
        Call::Version => show(concat!("plyfs ", env!("CARGO_PKG_VERSION"), "\n")),
        Call::Help => show(&format!(
            "{}{}\n{}",
            convention::usage(name),
            options::help(),
            exit::help()
        )),
    }
}

fn show(text: &str) -> Result<u8, Failure> {
    output::print(text)?;
    Ok(Exit::Ok as u8)
}

fn is_subcommand(word: &OsStr) -> bool {
    Cli::command()
        .get_subcommands()
        .any(|command| command.get_name() == word)
}

/// `--help` and `--version` come as errors too; all others become one sentence.
fn shown_or_refused(error: &clap::Error) -> Result<u8, Failure> {
    if !error.use_stderr() {
        return show(&error.render().to_string());
    }
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return Err(Failure::usage("no subcommand is given; see 'plyfs --help'"));
    }
    let text = error.render().to_string();
    let lines = text.lines().map(str::trim).take_while(|line| {
        !line.starts_with("Usage:") && !line.starts_with("For more information")
    });
    let lines = lines.filter(|line| !line.is_empty() && !line.starts_with("tip: to pass"));
    let sentence = lines.collect::<Vec<_>>().join(" ").replace(" tip: ", "; ");
    let sentence = sentence.strip_prefix("error: ").unwrap_or(&sentence);
    Err(Failure::usage(format!("{sentence}; see 'plyfs --help'")))
}

/// Where each `--lower` and each `-o` stood: layers stack in the order given, whichever way they are
/// spelled.
#[derive(Debug, Default)]
struct Places {
    lowers: Vec<usize>,
    options: Vec<usize>,
}

fn places(matches: &clap::ArgMatches) -> Places {
    let of = |id| {
        matches
            .indices_of(id)
            .map(Iterator::collect)
            .unwrap_or_default()
    };
    Places {
        lowers: of("lower"),
        options: of("options"),
    }
}

impl MountArgs {
    /// What is asked for, and the store of the image if it is one.
    fn draft(self, places: &Places) -> Result<(Draft, Option<Store>), Failure> {
        let mut draft = Draft::default();
        draft.foreground = self.foreground;
        draft.debug = self.debug;
        draft.ephemeral = self.ephemeral;
        draft.log = self.log;
        draft.command = self.command;
        let lowers = self.lower.into_iter().map(Ok);
        let options = self.options.into_iter().map(Err);
        let mut placed: Vec<_> = places.lowers.iter().zip(lowers).collect();
        placed.extend(places.options.iter().zip(options));
        placed.sort_by_key(|(place, _)| **place);
        for (_, asked) in placed {
            match asked {
                Ok(lower) => draft.lower(lower),
                Err(options) => draft.options(&options)?,
            }
        }
        self.upper.map_or(Ok(()), |upper| draft.upper(upper))?;
        self.work.map_or(Ok(()), |work| draft.work(work))?;
        for (asked, option) in [
            (self.allow_other, "allow_other"),
            (self.auto_unmount, "auto_unmount"),
        ] {
            if asked {
                draft.options(OsStr::new(option))?;
            }
        }
        if let Some(owner) = &self.image.owner {
            draft.options(OsStr::new(&format!("owner={owner}")))?;
        }
        let store = match &self.places[..] {
            [mountpoint] if draft.has_lowers() => {
                draft.mountpoint = Some(mountpoint.into());
                None
            }
            _ if draft.has_lowers() => {
                return Err(Failure::usage(
                    "with --lower or lowerdir only MNT is given besides, no image",
                ));
            }
            [] => {
                return Err(Failure::usage(
                    "no mountpoint is given; see 'plyfs mount --help'",
                ));
            }
            [image, rest @ ..] => {
                let mountpoint = rest.first().map(Path::new);
                let alone = rest.is_empty() && draft.is_writable();
                match image::mount::find(&self.image, image, mountpoint) {
                    Ok(found) => Some(draft.image(found)?),
                    // A mountpoint was meant.
                    Err(_) if alone && tree::is_plain_directory(image.as_ref()) => {
                        draft.mountpoint = Some(image.into());
                        None
                    }
                    Err(error) => return Err(error),
                }
            }
        };
        Ok((draft, store))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(args: &[&str]) -> Result<MountOptions, Failure> {
        let args = ["plyfs", "mount"].iter().chain(args);
        let matches = Cli::command().try_get_matches_from(args).unwrap();
        let Command::Mount(asked) = Cli::from_arg_matches(&matches).unwrap().command else {
            panic!("not a mount");
        };
        let order = places(matches.subcommand_matches("mount").unwrap());
        asked.draft(&order)?.0.finish(Name::Plyfs.defaults())
    }

    fn refused(args: &[&str]) -> Failure {
        let error = Cli::command().try_get_matches_from(args).unwrap_err();
        shown_or_refused(&error).unwrap_err()
    }

    #[test]
    fn definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn both_spellings_of_layers_mix_in_the_order_given() {
        let options = parsed(&[
            "--lower",
            "/1",
            "-o",
            "lowerdir=/2:/3,ro",
            "--lower",
            "/4",
            "/m",
            "--upper",
            "/u",
            "--work",
            "/w",
        ])
        .unwrap();
        assert_eq!(
            options.stack.lowers,
            ["/1", "/2", "/3", "/4"].map(|path| PathBuf::from(path).into())
        );
        assert!(options.session.read_only);
        assert_eq!(options.stack.upper.unwrap().upper, PathBuf::from("/u"));
    }

    #[test]
    fn everything_behind_the_dashes_is_the_command() {
        let options = parsed(&["--lower", "/l", "/m", "--", "ls", "-l", "--lower"]).unwrap();
        assert_eq!(options.command, ["ls", "-l", "--lower"]);
    }

    #[test]
    fn flags_with_a_name_of_their_own_are_options_too() {
        let options = parsed(&[
            "--lower",
            "/l",
            "/m",
            "--allow-other",
            "--auto-unmount",
            "-f",
        ])
        .unwrap();
        assert!(options.session.allow_other && options.session.auto_unmount);
        assert!(options.foreground && !options.debug);
        assert_eq!(options.given, ["allow_other", "auto_unmount"]);
    }

    #[test]
    fn an_upper_given_both_ways_is_refused() {
        let failure = parsed(&[
            "--lower",
            "/l",
            "--upper",
            "/u",
            "--work",
            "/w",
            "-o",
            "upperdir=/v",
            "/m",
        ]);
        assert_eq!(failure.unwrap_err().sentence, "upperdir is given twice");
    }

    #[test]
    fn a_wrong_argument_is_one_sentence() {
        let failure = refused(&["plyfs", "mount", "--lowre", "/a", "/m"]);
        assert_eq!(failure.exit, Exit::Usage);
        assert!(
            failure
                .sentence
                .starts_with("unexpected argument '--lowre' found"),
            "{failure}"
        );
        assert!(failure.sentence.contains("'--lower'"), "{failure}");
        assert!(!failure.sentence.contains('\n'), "{failure}");
        let failure = refused(&["plyfs", "mount", "--lower", "/a"]);
        assert!(failure.sentence.contains("MNT"), "{failure}");
        let failure = refused(&["plyfs", "mout", "/m"]);
        assert!(failure.sentence.contains("'mount'"), "{failure}");
    }

    #[test]
    fn man_pages_are_made_for_every_visible_subcommand() {
        let dir = tempfile::tempdir().unwrap();
        generate::man(Cli::command(), dir.path()).unwrap();
        for page in [
            "plyfs.1",
            "plyfs-mount.1",
            "plyfs-umount.1",
            "plyfs-mounts.1",
            "plyfs-stats.1",
        ] {
            assert!(dir.path().join(page).exists(), "{page}");
        }
        let page = std::fs::read_to_string(dir.path().join("plyfs-mount.1")).unwrap();
        assert!(
            page.contains("redirect_dir") && page.contains("EXIT STATUS"),
            "{page}"
        );
    }
}
