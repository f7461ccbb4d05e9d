//! `plyfs cat`, `ls` and `cp`: looking into an image without mounting it.
//!
//! Nothing of an image becomes a path here: names are looked up in its layers one by one, symlinks are followed inside
//! the image, and `cp` makes only what did not exist.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, FileTimes, Permissions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use serde_json::json;
use tempfile::NamedTempFile;

use super::exit::{Exit, Failure, why};
use super::output;
use super::tree::{FindArgs, Tree, split_image_path};
use crate::image::time;
use crate::layer;
use crate::layer::attr::{Kind, Time};
use crate::layer::lower::Content;
use crate::layer::view::{MergedDir, Object, Place, View};

/// Print files of an image
#[derive(Debug, Args)]
pub(super) struct CatArgs {
    #[command(flatten)]
    find: FindArgs,
    /// The files
    #[arg(value_name = "IMAGE:/PATH", required = true)]
    paths: Vec<OsString>,
}

/// List a directory of an image
#[derive(Debug, Args)]
pub(super) struct LsArgs {
    #[command(flatten)]
    find: FindArgs,
    /// Mode, owner, size, time, and the layer that supplies it, 1 being the base
    #[arg(short)]
    long: bool,
    /// What is below, too
    #[arg(short = 'R')]
    recursive: bool,
    /// Print JSON, one object a line
    #[arg(long)]
    json: bool,
    /// The directory, or one file
    #[arg(value_name = "IMAGE[:/PATH]")]
    path: OsString,
}

/// Copy a file or directory out of an image
///
/// Into DST if that is a directory, else to DST. Permission bits (without suid and sgid) and times are kept, owners are
/// not; devices, pipes and sockets are left out.
#[derive(Debug, Args)]
pub(super) struct CpArgs {
    #[command(flatten)]
    find: FindArgs,
    /// What to copy
    #[arg(value_name = "IMAGE:/PATH")]
    from: OsString,
    /// Where to
    #[arg(value_name = "DST")]
    to: PathBuf,
}

/// Something in an image.
struct Found {
    tree: Tree,
    path: Vec<u8>,
    object: Object,
}

fn find(given: &OsStr, find: &FindArgs) -> Result<Found, Failure> {
    let (image, path) = split_image_path(given).unwrap_or((given, b"/"));
    let tree = Tree::find(image, find)?;
    let place = path.escape_ascii();
    let found = tree.whole().resolve(path).map_err(|error| {
        Failure::other(format!(
            "cannot look up {place} in {}: {}",
            image.display(),
            layer::describe(error)
        ))
    })?;
    let object = found.ok_or_else(|| {
        Failure::new(Exit::NotFound, format!("no {place} in {}", image.display()))
    })?;
    Ok(Found {
        tree,
        path: path.to_vec(),
        object,
    })
}

/// Prints files.
pub(super) fn cat(args: &CatArgs) -> Result<u8, Failure> {
    for path in &args.paths {
        let found = find(path, &args.find)?;
        if found.object.kind() != Kind::File {
            let sentence = format!("{} is not a regular file", path.display());
            return Err(Failure::other(sentence));
        }
        let view = found.tree.whole();
        let mut out = output::bytes();
        let copied = copy_content(&view, &found.object, &mut out).and_then(|()| out.flush());
        match copied {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            other => other.map_err(|error| cannot("read", path, &error))?,
        }
    }
    Ok(Exit::Ok as u8)
}

fn cannot(what: &str, path: impl AsRef<Path>, error: &io::Error) -> Failure {
    let path = path.as_ref().display();
    Failure::other(format!("cannot {what} {path}: {}", why(error)))
}

fn copy_content(view: &View, object: &Object, out: &mut impl Write) -> io::Result<()> {
    const PIECE: usize = 256 * 1024;
    let content: Content = view.data(object)?.content()?;
    let mut buffer = vec![0; PIECE];
    let mut offset = 0;
    loop {
        let got = content.read_at(&mut buffer, offset)?;
        if got == 0 {
            return Ok(());
        }
        out.write_all(&buffer[..got])?;
        offset += got as u64;
    }
}

/// Lists a directory.
pub(super) fn ls(args: &LsArgs) -> Result<u8, Failure> {
    let found = find(&args.path, &args.find)?;
    let view = found.tree.whole();
    let layers = found.tree.layers();
    let failed = |error| cannot("list", &args.path, &io::Error::from(error));
    let mut lines = Vec::new();
    let Some(dir) = found.object.directory().cloned() else {
        let name = found
            .path
            .rsplit(|&byte| byte == b'/')
            .next()
            .unwrap_or(b"");
        lines.push((name.to_vec(), found.object.clone()));
        return show(args, &lines, layers);
    };
    // Names below come in the order of the walk: a directory, then what is in it.
    let mut open: Vec<(Vec<u8>, Listed)> = vec![(Vec::new(), listed(&view, &dir).map_err(failed)?)];
    while let Some((prefix, entries)) = open.last_mut() {
        let Some((name, object)) = entries.next() else {
            open.pop();
            continue;
        };
        let path = [prefix.as_slice(), &name].concat();
        let below = object.directory().filter(|_| args.recursive).cloned();
        lines.push((path.clone(), object));
        if let Some(dir) = below {
            let prefix = [&path[..], b"/"].concat();
            open.push((prefix, listed(&view, &dir).map_err(failed)?));
        }
    }
    show(args, &lines, layers)
}

type Listed = std::vec::IntoIter<(Vec<u8>, Object)>;

fn listed(view: &View, dir: &MergedDir) -> rustix::io::Result<Listed> {
    let entries = view.list(dir)?.into_iter();
    let entries = entries.map(|(name, object)| (name.get().bytes().to_vec(), object));
    Ok(entries.collect::<Vec<_>>().into_iter())
}

fn show(args: &LsArgs, lines: &[(Vec<u8>, Object)], layers: usize) -> Result<u8, Failure> {
    let mut text = Vec::new();
    for (path, object) in lines {
        let attr = &object.attr;
        let layer = layers - object.lower().position;
        let target = match &object.place {
            Place::File(file) if attr.kind == Kind::Symlink => file.link_target().ok(),
            _ => None,
        };
        if args.json {
            let mut line = json!({
                "path": String::from_utf8_lossy(path),
                "type": super::which::kind_word(attr.kind),
                "mode": format!("{:04o}", attr.mode),
                "uid": attr.uid,
                "gid": attr.gid,
                "size": attr.size,
                "modified": time::format(attr.mtime.sec),
                "layer": layer,
            });
            if let Some(target) = &target {
                line["target"] = String::from_utf8_lossy(target).into();
            }
            text.extend_from_slice(format!("{line}\n").as_bytes());
            continue;
        }
        if args.long {
            let about = format!(
                "{}{} {:>5} {:>5} {:>10} {} {:>2} ",
                letter(attr.kind),
                permissions(attr.mode),
                attr.uid,
                attr.gid,
                attr.size,
                time::format(attr.mtime.sec),
                layer
            );
            text.extend_from_slice(about.as_bytes());
        }
        text.extend_from_slice(&output::for_terminal(path));
        if let Some(target) = target.filter(|_| args.long) {
            text.extend_from_slice(b" -> ");
            text.extend_from_slice(&output::for_terminal(&target));
        }
        text.push(b'\n');
    }
    output::print_bytes(&text)?;
    Ok(Exit::Ok as u8)
}

fn letter(kind: Kind) -> char {
    match kind {
        Kind::File => '-',
        Kind::Directory => 'd',
        Kind::Symlink => 'l',
        Kind::CharDevice => 'c',
        Kind::BlockDevice => 'b',
        Kind::Fifo => 'p',
        Kind::Socket => 's',
    }
}

/// `rwxr-xr-x`, with s and t for the special bits.
fn permissions(mode: u16) -> String {
    let bit = |shift: u16| mode >> shift & 1 == 1;
    let class = |shift: u16, special: bool, letter: char| {
        let execute = match (bit(shift), special) {
            (true, true) => letter,
            (false, true) => letter.to_ascii_uppercase(),
            (true, false) => 'x',
            (false, false) => '-',
        };
        let read = if bit(shift + 2) { 'r' } else { '-' };
        let write = if bit(shift + 1) { 'w' } else { '-' };
        [read, write, execute].into_iter().collect::<String>()
    };
    class(6, bit(11), 's') + &class(3, bit(10), 's') + &class(0, bit(9), 't')
}

/// Copies something out.
pub(super) fn cp(args: &CpArgs) -> Result<u8, Failure> {
    let found = find(&args.from, &args.find)?;
    let name = found
        .path
        .rsplit(|&byte| byte == b'/')
        .find(|name| !name.is_empty());
    let to = match (fs::metadata(&args.to), name) {
        (Ok(there), Some(name)) if there.is_dir() => args.to.join(OsStr::from_bytes(name)),
        (Ok(there), None) if there.is_dir() => {
            return Err(Failure::usage(format!(
                "{} exists: say a new directory to copy the whole image to",
                args.to.display()
            )));
        }
        _ => args.to.clone(),
    };
    let mut copier = Copier {
        view: found.tree.whole(),
        skipped: 0,
    };
    copier.copy(&found.object, &to)?;
    if copier.skipped > 0 {
        output::complain(&format!(
            "{} devices, pipes and sockets are left out",
            copier.skipped
        ));
    }
    Ok(Exit::Ok as u8)
}

struct Copier {
    view: View,
    skipped: u64,
}

impl Copier {
    /// Copies `object` and, without recursion, what is in it.
    fn copy(&mut self, object: &Object, to: &Path) -> Result<(), Failure> {
        let mut left = vec![(object.clone(), to.to_owned())];
        let mut made = Vec::new();
        while let Some((object, to)) = left.pop() {
            let failed = |error: &io::Error| cannot("write", &to, error);
            match object.directory() {
                None => self
                    .copy_one(&object, &to)
                    .map_err(|error| failed(&error))?,
                Some(dir) => {
                    fs::create_dir(&to).map_err(|error| failed(&error))?;
                    let entries = self.view.list(dir);
                    let entries = entries.map_err(|error| failed(&error.into()))?;
                    left.extend(entries.into_iter().map(|(name, object)| {
                        (object, to.join(OsStr::from_bytes(name.get().bytes())))
                    }));
                    made.push((to.clone(), object.attr.mode, object.attr.mtime));
                }
            }
        }
        // Only now: a directory may be read-only, and its time changes with its contents.
        for (dir, mode, mtime) in made.into_iter().rev() {
            let set = File::open(&dir).and_then(|dir| finish(&dir, mode, mtime));
            set.map_err(|error| cannot("write", &dir, &error))?;
        }
        Ok(())
    }

    fn copy_one(&mut self, object: &Object, to: &Path) -> io::Result<()> {
        match (&object.place, object.kind()) {
            (Place::File(file), Kind::Symlink) => {
                symlink(OsStr::from_bytes(&file.link_target()?), to)
            }
            (_, Kind::File) => {
                // A symlink at the destination is replaced, not followed.
                let parent = to.parent().filter(|parent| !parent.as_os_str().is_empty());
                let mut file = NamedTempFile::new_in(parent.unwrap_or(Path::new(".")))?;
                copy_content(&self.view, object, &mut file)?;
                finish(file.as_file(), object.attr.mode, object.attr.mtime)?;
                file.persist(to).map(drop).map_err(|error| error.error)
            }
            _ => {
                self.skipped += 1;
                Ok(())
            }
        }
    }
}

/// Mode and time, when all else is done.
fn finish(file: &File, mode: u16, mtime: Time) -> io::Result<()> {
    file.set_permissions(Permissions::from_mode(u32::from(mode & 0o1777)))?;
    let whole = Duration::from_secs(mtime.sec.unsigned_abs());
    let part = Duration::from_nanos(mtime.nsec.into());
    let seconds = if mtime.sec < 0 {
        UNIX_EPOCH.checked_sub(whole)
    } else {
        UNIX_EPOCH.checked_add(whole)
    };
    let modified: Option<SystemTime> = seconds.and_then(|seconds| seconds.checked_add(part));
    match modified {
        Some(modified) => file.set_times(FileTimes::new().set_modified(modified)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::permissions;

    #[test]
    fn permissions_are_spelled_as_ls_does() {
        assert_eq!(permissions(0o755), "rwxr-xr-x");
        assert_eq!(permissions(0o6711), "rws--s--x");
        assert_eq!(permissions(0o5644), "rwSr--r-T");
    }
}
