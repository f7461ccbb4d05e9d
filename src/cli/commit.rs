//! `plyfs commit`: what an upper changes becomes a layer of a new image.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::exit::{Exit, Failure};
use super::output;
use super::tree::{FindArgs, Tree, TreeImage, TreeKind};
use crate::changes::Comparison;
use crate::changes::compare::Exactness;
use crate::changes::owner::Owners;
use crate::image::commit::{self, CommitOptions, LayerCompression};
use crate::image::directive::Directive;
use crate::image::name::Name;
use crate::image::store::Store;
use crate::image::time;

/// Make an image of what a mount has changed
///
/// The changes in the upper become one more layer over the image that is mounted, and the new image gets the name.
/// Without an image below, the whole tree becomes the one layer of a new image. Prints the id of the image.
///
/// Files that an ordinary user made are recorded as root's, files changed as whose they were before.
#[derive(Debug, Args)]
pub(super) struct CommitArgs {
    #[command(flatten)]
    find: FindArgs,
    /// What to say of it in the history
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,
    /// Who made it
    #[arg(short, long, value_name = "NAME")]
    author: Option<String>,
    /// Change the configuration by a Dockerfile directive, for example `USER www`; repeat it
    #[arg(short, long, value_name = "DIRECTIVE")]
    change: Vec<Directive>,
    /// The command that made the changes, for the history
    #[arg(long, value_name = "TEXT", default_value = "plyfs commit")]
    created_by: String,
    /// Make one layer of all
    #[arg(long)]
    squash: bool,
    /// How the new layer is kept and passed on
    #[arg(long, value_enum, default_value_t)]
    compression: Compression,
    /// Record times after this one as this one, and make the image at it; `$SOURCE_DATE_EPOCH` if not given
    #[arg(long, value_name = "SECONDS")]
    source_date_epoch: Option<i64>,
    /// Whose files are that this user made: UID, UID:GID (0:0 if not given), or 'disk' for as they are on disk
    #[arg(long, value_name = "WHO", value_parser = owner)]
    owner: Option<Owner>,
    /// The image that an unmounted UPPER changes
    #[arg(long, value_name = "IMAGE")]
    base: Option<OsString>,
    /// The workdir of an unmounted UPPER, which knows hard links that only some names of were copied up
    #[arg(long, value_name = "DIR", requires = "base")]
    work: Option<PathBuf>,
    /// A mount, or an upper
    #[arg(value_name = "MNT|UPPER")]
    tree: PathBuf,
    /// What to call the image
    #[arg(value_name = "NAME[:TAG]")]
    name: Option<Name>,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Compression {
    #[default]
    None,
    Gzip,
    Zstd,
}

#[derive(Clone, Copy, Debug)]
enum Owner {
    Disk,
    New(u32, u32),
}

fn owner(text: &str) -> Result<Owner, String> {
    let malformed = || format!("'{text}' is not UID, UID:GID or 'disk'");
    if text == "disk" {
        return Ok(Owner::Disk);
    }
    let number = |text: &str| text.parse().map_err(|_| malformed());
    match text.split_once(':') {
        Some((uid, gid)) => Ok(Owner::New(number(uid)?, number(gid)?)),
        None => number(text).map(|id| Owner::New(id, id)),
    }
}

impl CommitArgs {
    fn tree(&self) -> Result<Tree, Failure> {
        let path = &self.tree;
        let (base, work) = match &self.base {
            Some(base) => {
                let base = Tree::image(base, &self.find)?;
                (base.image.filter(|of| !of.partial), self.work.clone())
            }
            None => match Tree::at(path)? {
                tree if tree.kind != TreeKind::Alone => return Ok(tree),
                _ => self.kept_upper()?,
            },
        };
        let Some(TreeImage { image, store, .. }) = base else {
            return Err(Failure::usage(format!(
                "{} is not mounted: say which image it changes with --base IMAGE",
                path.display()
            )));
        };
        Tree::upper_over_image(path, (image, store), work.as_deref())
    }

    /// The image of a writable layer that is kept in the store.
    fn kept_upper(&self) -> Result<(Option<TreeImage>, Option<PathBuf>), Failure> {
        let store = self.find.store.open()?;
        let Some((image, work)) = store.upper_at(&self.tree)? else {
            return Ok((None, None));
        };
        let image = store.image(image)?;
        let of = TreeImage {
            image,
            partial: false,
            store,
        };
        Ok((Some(of), Some(work)))
    }

    fn owners(&self) -> Owners {
        match (self.owner, Owners::of_this_process()) {
            (Some(Owner::Disk), _) => Owners::AsOnDisk,
            (Some(Owner::New(uid, gid)), _) => Owners::Unprivileged {
                own: crate::layer::own_ids(),
                new: (uid, gid),
            },
            (None, fitting) => fitting,
        }
    }

    fn epoch(&self) -> Result<Option<i64>, Failure> {
        let Some(given) = std::env::var_os("SOURCE_DATE_EPOCH") else {
            return Ok(self.source_date_epoch);
        };
        if self.source_date_epoch.is_some() {
            return Ok(self.source_date_epoch);
        }
        let seconds = given.to_str().and_then(|given| given.parse().ok());
        seconds.map(Some).ok_or_else(|| {
            Failure::usage(format!(
                "SOURCE_DATE_EPOCH is '{}', which is no number of seconds",
                given.display()
            ))
        })
    }
}

/// Makes the image.
pub(super) fn run(args: &CommitArgs) -> Result<u8, Failure> {
    let epoch = args.epoch()?;
    let tree = args.tree()?;
    let of = tree.image.as_ref();
    if of.is_some_and(|of| of.partial) {
        return Err(Failure::usage(format!(
            "{} shows one layer, which is no image by itself: mount the image whole",
            args.tree.display()
        )));
    }
    let squash = args.squash || of.is_none();
    let comparison = Comparison {
        before: if squash { tree.nothing() } else { tree.below() },
        after: tree.whole(),
        exactness: Exactness::Exact,
        owners: args.owners(),
        owned_below: squash.then(|| tree.below()),
        complete: true,
    };
    let options = CommitOptions {
        author: args.author.clone(),
        message: args.message.clone(),
        created_by: args.created_by.clone(),
        created: epoch.unwrap_or_else(time::now),
        latest: epoch,
        directives: args.change.clone(),
        compression: match args.compression {
            Compression::None => LayerCompression::None,
            Compression::Gzip => LayerCompression::Gzip,
            Compression::Zstd => LayerCompression::Zstd,
        },
        squash,
    };
    // Without an image below there is no store yet.
    let opened: Option<Store> = match of {
        Some(_) => None,
        None => Some(args.find.store.open()?),
    };
    let Some(store) = of.map(|of| &of.store).or(opened.as_ref()) else {
        unreachable!("one of them is open");
    };
    let made = commit::commit(store, of.map(|of| &of.image), &comparison, &options)?;
    if let Some(name) = &args.name {
        store.tag(name, made.image.digest)?;
    }
    if made.summary.sockets > 0 {
        output::complain(&format!(
            "{} sockets are not recorded: a layer cannot hold them",
            made.summary.sockets
        ));
    }
    output::print(&format!("{}\n", made.image.id()))?;
    Ok(Exit::Ok as u8)
}
