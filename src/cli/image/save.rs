//! `plyfs save`.

use std::fs;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use super::{ReadArgs, StoreArgs};
use crate::cli::exit::{Failure, why};
use crate::cli::output;
use crate::image::save::{self, Format, Saved};
use crate::image::store::Store;

/// Write images into an archive or a layout that docker, podman, skopeo and others read
///
/// The bytes are always the same for the same images; manifests, configs and layers keep their digests.
#[derive(Debug, Args)]
pub(in crate::cli) struct SaveArgs {
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    read: ReadArgs,
    /// Names, ids, or paths of archives or layouts
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,
    /// Where to [stdout]
    #[arg(short, long, value_name = "FILE|DIR")]
    output: Option<PathBuf>,
    /// What to write
    #[arg(long, value_enum, default_value_t = Kind::DockerArchive)]
    format: Kind,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    /// A tar as docker save writes it
    DockerArchive,
    /// An OCI layout in a tar
    OciArchive,
    /// An OCI layout in a directory
    OciDir,
}

pub(super) fn run(args: &SaveArgs) -> Result<(), Failure> {
    let store = args.store.open()?;
    let images = args.images.iter().map(|text| saved(&store, args, text));
    let images = merged(images.collect::<Result<Vec<_>, _>>()?);
    let format = match args.format {
        Kind::DockerArchive => Format::DockerArchive,
        Kind::OciArchive => Format::OciArchive,
        Kind::OciDir => Format::OciDir,
    };
    match (&args.output, format) {
        (Some(dir), Format::OciDir) => into_dir(&store, &images, dir),
        (None, Format::OciDir) => Err(Failure::usage(
            "a directory cannot go to stdout; name one with -o DIR",
        )),
        (Some(file), _) => into_file(&store, &images, format, file),
        (None, _) if io::stdout().is_terminal() => Err(Failure::usage(
            "an archive is nothing for a terminal; use -o FILE, or redirect stdout",
        )),
        (None, _) => Ok(save::to_archive(&store, &images, format, output::bytes())?),
    }
}

/// An image given by its name is saved under that name; given otherwise, under all that it has.
fn saved(store: &Store, args: &SaveArgs, text: &str) -> Result<Saved, Failure> {
    let image = args.read.resolve(store, text)?;
    let names = store.names()?;
    let names: Vec<_> = names
        .into_iter()
        .filter(|(_, manifest)| *manifest == image.digest)
        .map(|(name, _)| name)
        .collect();
    let meant = text.parse().ok().filter(|name| names.contains(name));
    Ok(Saved {
        image,
        names: meant.map_or(names, |name| vec![name]),
    })
}

/// The same image under several names is one.
fn merged(images: Vec<Saved>) -> Vec<Saved> {
    let mut merged: Vec<Saved> = Vec::new();
    for saved in images {
        match merged
            .iter_mut()
            .find(|other| other.image.digest == saved.image.digest)
        {
            Some(other) => {
                other.names.extend(saved.names);
                other.names.sort();
                other.names.dedup();
            }
            None => merged.push(saved),
        }
    }
    merged
}

/// The file appears when it is complete.
fn into_file(store: &Store, images: &[Saved], format: Format, path: &Path) -> Result<(), Failure> {
    let failed = |error: io::Error| {
        Failure::other(format!("cannot write {}: {}", path.display(), why(&error)))
    };
    // A device or pipe cannot be replaced.
    if fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
        let file = fs::File::options().write(true).open(path).map_err(failed)?;
        return Ok(save::to_archive(store, images, format, file)?);
    }
    let file = tempfile::NamedTempFile::new_in(parent(path)).map_err(failed)?;
    save::to_archive(store, images, format, file.as_file())?;
    file.as_file().sync_all().map_err(failed)?;
    file.persist(path).map_err(|error| failed(error.error))?;
    Ok(())
}

/// The directory appears when it is complete; only an empty one is replaced.
fn into_dir(store: &Store, images: &[Saved], path: &Path) -> Result<(), Failure> {
    let failed = |error: io::Error| {
        Failure::other(format!("cannot write {}: {}", path.display(), why(&error)))
    };
    let dir = tempfile::TempDir::new_in(parent(path)).map_err(failed)?;
    save::to_dir(store, images, dir.path())?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(dir.path(), mode).map_err(failed)?;
    fs::rename(dir.path(), path).map_err(failed)?;
    // It has another name now, there is nothing to remove.
    _ = dir.keep();
    Ok(())
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}
