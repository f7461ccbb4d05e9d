//! `plyfs mount` and all the other ways to ask for a mount.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::process::parent_id;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Arc;
use std::thread;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGURG};
use signal_hook::iterator::SignalsInfo;
use signal_hook::iterator::exfiltrator::WithOrigin;

use super::background::{self, Daemon, Ended, Role};
use super::description::Description;
use super::ephemeral::{self, Ephemeral};
use super::exit::{Exit, Failure, why};
use super::options::MountOptions;
use super::{command, log, output, umount};
use crate::fuse::first_open;
use crate::fuse::passthrough::Files;
use crate::fuse::session::{Session, Unmounter};
use crate::image::store::Store;
use crate::layer::{self, stack::Stack};
use crate::overlay::Overlay;

/// Mounts in the way `options` and `role` ask for; returns the code to exit with. `args` is the whole
/// command line, for the process that serves. `store` has the image to mount, if it is one: nothing is removed from it
/// before the mount is there.
pub(super) fn run(
    mut options: MountOptions,
    role: Role,
    args: &[OsString],
    store: Option<Store>,
) -> Result<u8, Failure> {
    options.session.mountpoint = absolute(&options.session.mountpoint)?;
    let args = match &options.image {
        Some(image) if role == Role::Front => image.hand_over(args, &options.session.mountpoint),
        _ => args.to_vec(),
    };
    let image = options.image.clone();
    let mountpoint = options.session.mountpoint.clone();
    let done = match role {
        Role::Front if !options.command.is_empty() => with_command(&options, &args),
        Role::Front if !options.foreground => in_background(&options, &args),
        _ => serve(options, role, store).map(|()| Exit::Ok as u8),
    };
    if let (Err(_), Some(image), Role::Front) = (&done, image, role) {
        image.remove_chosen(&mountpoint);
    }
    done
}

fn in_background(options: &MountOptions, args: &[OsString]) -> Result<u8, Failure> {
    let daemon = Daemon::start(args, Role::Background)?;
    let mountpoint = &options.session.mountpoint;
    answers(options, &daemon)?;
    if options.image.as_ref().is_some_and(|image| image.chosen) {
        output::print(&format!("{}\n", mountpoint.display()))?;
    }
    Ok(Exit::Ok as u8)
}

/// Asks the mount something that the kernel cannot know by itself.
fn answers(options: &MountOptions, daemon: &Daemon) -> Result<(), Failure> {
    let mountpoint = &options.session.mountpoint;
    if options.session.passthrough == Files::None {
        first_open::ask(mountpoint, daemon.id());
    }
    rustix::fs::statvfs(mountpoint).map(drop).map_err(|error| {
        Failure::other(format!(
            "{} is mounted but does not answer: {}",
            mountpoint.display(),
            layer::describe(error)
        ))
    })
}

fn with_command(options: &MountOptions, args: &[OsString]) -> Result<u8, Failure> {
    let mountpoint = options.session.mountpoint.clone();
    let daemon = Daemon::start(args, Role::Companion)?;
    // Nobody knows a mountpoint that was chosen, so CMD starts in it.
    let chosen = options.image.as_ref().is_some_and(|image| image.chosen);
    let dir = chosen.then_some(&mountpoint);
    let code = answers(options, &daemon)
        .and_then(|()| command::run(&options.command, dir.map(PathBuf::as_path)));
    match daemon.end() {
        Ok(Ended::Gone(status)) if status.success() => {}
        Ok(Ended::Gone(_)) => umount::clear_away(&mountpoint),
        Ok(Ended::Detached) => output::complain(&format!(
            "{} is still in use: it is unmounted, and its daemon stays until the last file is closed",
            mountpoint.display()
        )),
        Err(error) => output::complain(&format!("cannot wait for the daemon: {}", why(&error))),
    }
    code
}

/// Mounts and serves until unmounted.
fn serve(mut options: MountOptions, role: Role, store: Option<Store>) -> Result<(), Failure> {
    layer::tune_allocator();
    layer::keep_to_quotas();
    log::start(options.debug, options.log.as_deref())?;
    let system = |error: io::Error| Failure::other(format!("cannot serve: {}", why(&error)));
    role.leave_session().map_err(system)?;
    // From here on a signal ends the mount, not the process.
    let signals = SignalsInfo::new([SIGTERM, SIGINT, SIGHUP, SIGURG]).map_err(system)?;
    let claims = Claims {
        yields: options.stack.take_over,
        caller: (role == Role::Front).then(parent_id),
    };
    let ephemeral = options
        .ephemeral
        .then(|| Ephemeral::create(&mut options.stack))
        .transpose()?;
    let ephemeral_path = ephemeral
        .as_ref()
        .map(|ephemeral| ephemeral.path().to_owned());
    let hold = store
        .as_ref()
        .zip(options.image.as_ref())
        .map(|(store, image)| image.hold(store, &options))
        .transpose()?;
    let description = Description::of(&options);
    options.session.description = serde_json::to_string(&description)
        .map_err(|error| Failure::other(format!("cannot describe the mount: {error}")))?;

    Session::check(&options.session)?;
    let stack = Stack::open(&options.stack)?;
    // The image is held from here on; others may remove what they want.
    drop(store);
    let overlay = Overlay::new(stack, options.overlay)?;
    let session = Session::mount(overlay, &options.session)?;
    let end = Arc::new(End {
        unmounter: session.unmounter(),
        role,
    });
    tracing::info!("mounted on {}", options.session.mountpoint.display());
    watch(signals, Arc::clone(&end), ephemeral_path, claims);
    if role
        .ready()
        .and_then(|()| role.let_go(options.debug))
        .is_err()
    {
        // The process in front is gone, so nobody would know of this mount.
        end.unmount();
    } else if role == Role::Companion {
        let end = Arc::clone(&end);
        thread::spawn(move || {
            background::front_is_gone();
            end.unmount();
        });
    }
    let served = session.run();
    drop((ephemeral, hold));
    if let Some(image) = &options.image {
        image.remove_chosen(&options.session.mountpoint);
    }
    served.map_err(|error| {
        tracing::error!("serving ended: {error}");
        let mountpoint = options.session.mountpoint.display();
        Failure::other(format!("serving {mountpoint} ended: {}", why(&error)))
    })
}

/// The end of a mount, for whoever asks for it first.
struct End {
    unmounter: Unmounter,
    role: Role,
}

impl End {
    /// Whether a process can unmount it: not if it does not have the mount in its mount namespace. Of one in a pid
    /// namespace that we do not see there is no number.
    fn is_seen_by(&self, process: Option<i32>) -> bool {
        match process {
            Some(0) => false,
            Some(pid) => self.unmounter.is_attached_for(&pid.to_string()),
            None => true,
        }
    }

    /// Unmounts; a busy mount loses its name at once and ends when its last file is closed.
    fn unmount(&self) {
        let Err(busy) = self.unmounter.unmount(false) else {
            return;
        };
        tracing::info!("cannot unmount ({busy}); detaching");
        let detached = self
            .unmounter
            .unmount(true)
            .and_then(|()| self.role.detached());
        if let Err(error) = detached {
            tracing::warn!("cannot unmount: {error}");
        }
    }
}

/// When another mount may have our upper.
#[derive(Clone, Copy)]
struct Claims {
    /// An engine mounted this one.
    yields: bool,
    /// Who called us with `-f` and so stays our parent; a mount in the background has none.
    caller: Option<u32>,
}

impl Claims {
    fn is_orphan(self) -> bool {
        self.caller.is_some_and(|caller| caller != parent_id())
    }
}

/// The first signal unmounts; another one, while files are still open, ends the process at once. `layer::holder` asks by
/// SIGURG, which means nothing to other programs, whether there is still a mount.
fn watch(
    mut signals: SignalsInfo<WithOrigin>,
    end: Arc<End>,
    ephemeral: Option<PathBuf>,
    claims: Claims,
) {
    thread::spawn(move || {
        let mut unmounted = false;
        for origin in signals.forever() {
            let signal = origin.signal;
            let asked = signal == SIGURG;
            if asked {
                if !claims.yields {
                    continue;
                }
                if end.unmounter.is_attached() {
                    let asking = origin.process.map(|asking| asking.pid);
                    if claims.is_orphan() && !end.is_seen_by(asking) {
                        tracing::info!("the caller is gone and the upper is asked for: unmounting");
                        unmounted |= end.unmounter.unmount(false).is_ok();
                    }
                    continue;
                }
            }
            if !asked && !unmounted {
                tracing::info!("signal {signal}: unmounting");
                end.unmount();
                unmounted = true;
                continue;
            }
            tracing::warn!("signal {signal}: ending although files are open");
            if let Some(path) = ephemeral {
                ephemeral::remove(&path);
            }
            process::exit(128 + signal);
        }
    });
}

fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|error| {
        Failure::new(
            Exit::Mountpoint,
            format!("{}: {}", path.display(), why(&error)),
        )
    })
}

/// What `mount -f` wants to know: that the mountpoint is there; the options are parsed by now.
pub(super) fn pretend(options: &MountOptions) -> Result<u8, Failure> {
    let mountpoint = &options.session.mountpoint;
    match fs::metadata(mountpoint) {
        Ok(metadata) if metadata.is_dir() => Ok(Exit::Ok as u8),
        Ok(_) => Err(io::Error::from(io::ErrorKind::NotADirectory)),
        Err(error) => Err(error),
    }
    .map_err(|error| {
        let sentence = format!("cannot mount on {}: {}", mountpoint.display(), why(&error));
        Failure::new(Exit::Mountpoint, sentence)
    })
}
