//! What the arguments of `diff`, `commit`, `which` and the like name: a tree of files and the layers it is made of.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use rustix::io::Errno;

use super::description::{self, Description};
use super::exit::{Exit, Failure, why};
use super::image::{ReadArgs, StoreArgs};
use super::options::{Draft, MountedImage};
use super::{mountinfo, virtual_xattr};
use crate::image::Image;
use crate::image::digest::ManifestDigest;
use crate::image::store::Store;
use crate::layer;
use crate::layer::lower::LowerDir;
use crate::layer::name::{Name, OwnedName};
use crate::layer::stack::{LayerSource, OverrideStat, Owner, Stack, StackConfig, XattrNamespace};
use crate::layer::view::View;
use crate::layer::workdir::INDEX;

/// How images that are named are found.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct FindArgs {
    #[command(flatten)]
    pub(super) store: StoreArgs,
    #[command(flatten)]
    pub(super) read: ReadArgs,
}

/// A tree and the layers it is made of.
#[derive(Debug)]
pub(super) struct Tree {
    /// All layers, topmost first; an upper is one of them.
    stack: Arc<Stack>,
    /// The hard-link index of the upper.
    index: Option<Arc<LowerDir>>,
    /// What it is.
    pub(super) kind: TreeKind,
    /// The image that it is, or that is below the upper.
    pub(super) image: Option<TreeImage>,
}

/// What a tree is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum TreeKind {
    /// A directory, or the tar of a layer.
    Alone,
    /// The topmost layer is an upper.
    WithUpper,
    /// A mount without an upper.
    ReadOnly,
    /// An image.
    Image,
}

/// An image that layers come from.
#[derive(Debug)]
pub(super) struct TreeImage {
    /// The image, without those of its topmost layers that the tree does not have.
    pub(super) image: Image,
    /// Only one layer, which is not the base, is in the tree.
    pub(super) partial: bool,
    /// Where it is; while it is open nothing is removed from it.
    pub(super) store: Store,
}

impl Tree {
    /// The tree as it is.
    pub(super) fn whole(&self) -> View {
        let view = View::new(Arc::clone(&self.stack), 0);
        match &self.index {
            Some(index) => view.with_index(Arc::clone(index)),
            None => view,
        }
    }

    /// The tree without its topmost layer: of a mount, without what its upper changes.
    pub(super) fn below(&self) -> View {
        let top = matches!(self.kind, TreeKind::WithUpper | TreeKind::Image);
        View::new(Arc::clone(&self.stack), usize::from(top))
    }

    /// A tree without anything in it.
    pub(super) fn nothing(&self) -> View {
        View::new(Arc::clone(&self.stack), self.stack.lowers.len())
    }

    /// How many layers there are.
    pub(super) fn layers(&self) -> usize {
        self.stack.lowers.len()
    }

    /// The directory or tar of a layer.
    pub(super) fn layer_path(&self, position: usize) -> &Path {
        &self.stack.lowers[position].path
    }

    /// What the layers from position `from` on show.
    pub(super) fn from(&self, from: usize) -> View {
        if from == 0 {
            return self.whole();
        }
        View::new(Arc::clone(&self.stack), from)
    }

    /// The tree that `given` means: a mount, the upper of one, a directory, the tar of a layer, or an image.
    pub(super) fn find(given: &OsStr, find: &FindArgs) -> Result<Self, Failure> {
        let path = Path::new(given);
        match fs::metadata(path) {
            Ok(_) if is_plain_directory(path) => return Self::at(path),
            Ok(there) if there.is_file() => {
                let as_image = Self::image(given, find);
                return as_image.or_else(|error| Self::layer(path).map_err(|_| error));
            }
            // A dead mount.
            Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => return Self::at(path),
            _ => {}
        }
        Self::image(given, find)
    }

    /// The directory `path`: a mount, the upper of one, or any other.
    pub(super) fn at(path: &Path) -> Result<Self, Failure> {
        let (path, mount) = mountinfo::at(path).map_err(|error| {
            Failure::new(Exit::Lower, format!("{}: {}", path.display(), why(&error)))
        })?;
        if mount.is_some_and(|mount| mount.is_plyfs()) {
            return Self::mounted(&path);
        }
        if let Some(mountpoint) = mount_with_upper(&path)? {
            return Self::mounted(&mountpoint);
        }
        Self::open(TreeKind::Alone, vec![path.into()])
    }

    fn layer(path: &Path) -> Result<Self, Failure> {
        Self::open(TreeKind::Alone, vec![path.to_owned().into()])
    }

    /// The image `given`; `IMAGE#N` is its layer N, 1 the base.
    pub(super) fn image(given: &OsStr, find: &FindArgs) -> Result<Self, Failure> {
        let text = given
            .to_str()
            .ok_or_else(|| Failure::usage("the name of an image is not valid UTF-8"))?;
        let store = find.store.open()?;
        let single = text
            .rsplit_once('#')
            .and_then(|(name, number)| Some((name, number.parse::<usize>().ok()?)));
        let name = single.map_or(text, |(name, _)| name);
        let image = find.read.resolve(&store, name)?;
        let mut layers = layers_of(&store, &image)?;
        if let Some((_, number)) = single {
            let above = image
                .layers
                .len()
                .checked_sub(number)
                .filter(|_| number > 0);
            let Some(above) = above else {
                return Err(Failure::usage(format!(
                    "image {name} has layers 1 to {}, not {number}",
                    image.layers.len()
                )));
            };
            layers = layers.split_off(above);
            layers.truncate(1);
        }
        if layers.is_empty() {
            return Err(Failure::new(
                Exit::Lower,
                format!("image {name} has no layers"),
            ));
        }
        let mut tree = Self::open(TreeKind::Image, layers)?;
        tree.image = Some(TreeImage {
            image,
            partial: single.is_some(),
            store,
        });
        Ok(tree)
    }

    /// The upper `path` over `lowers`, topmost first; `work` is its workdir, if that is known.
    pub(super) fn upper_over(
        path: &Path,
        lowers: Vec<LayerSource>,
        work: Option<&Path>,
    ) -> Result<Self, Failure> {
        let layers = std::iter::once(LayerSource::from(path.to_owned())).chain(lowers);
        let mut tree = Self::open(TreeKind::WithUpper, layers.collect())?;
        tree.index = work.map(links_of).transpose()?.flatten();
        tree.stack.hide_topmost(work);
        Ok(tree)
    }

    /// The upper `path` over an image.
    pub(super) fn upper_over_image(
        path: &Path,
        (image, store): (Image, Store),
        work: Option<&Path>,
    ) -> Result<Self, Failure> {
        let mut tree = Self::upper_over(path, layers_of(&store, &image)?, work)?;
        tree.image = Some(TreeImage {
            image,
            partial: false,
            store,
        });
        Ok(tree)
    }

    fn open(kind: TreeKind, lowers: Vec<LayerSource>) -> Result<Self, Failure> {
        Self::open_as(
            kind,
            &StackConfig {
                lowers,
                owner: Owner::Image,
                ..StackConfig::default()
            },
        )
    }

    fn open_as(kind: TreeKind, config: &StackConfig) -> Result<Self, Failure> {
        Ok(Self {
            stack: Arc::new(Stack::open(config)?),
            index: None,
            kind,
            image: None,
        })
    }

    /// The layers of the mount at `mountpoint`, opened beside it.
    fn mounted(mountpoint: &Path) -> Result<Self, Failure> {
        let place = mountpoint.display();
        let about = ask(mountpoint)?;
        if about.lowers.len() < about.lower_count {
            return Err(Failure::other(format!(
                "the mount {place} has too many layers to be told; name its upper and --lower"
            )));
        }
        let identity = |path: &Path| rustix::fs::stat(path).map(|stat| (stat.st_dev, stat.st_ino));
        let given = about.upper.iter().chain(&about.lowers);
        let hidden = given
            .clone()
            .find(|layer| identity(layer.as_ref()) == identity(mountpoint));
        if let Some(layer) = hidden {
            return Err(Failure::new(
                Exit::Lower,
                format!(
                    "the mount {place} covers its own layer {layer}: mount somewhere else to see both"
                ),
            ));
        }
        let image = about.image.as_ref().map(image_of_mount).transpose()?;
        let mut lowers: Vec<LayerSource> = given.map(|path| PathBuf::from(path).into()).collect();
        if let Some(of) = &image {
            let known = of
                .image
                .layers
                .iter()
                .map(|layer| of.store.layer(layer.diff_id));
            for files in known {
                let files = files?;
                for lower in lowers.iter_mut().filter(|lower| lower.path() == files.tar) {
                    *lower = LayerSource::Archive {
                        tar: files.tar.clone(),
                        index: files.index.clone(),
                        beneath: None,
                    };
                }
            }
        }
        let (xattrs, override_stat) = reading(&about)?;
        let kind = match about.upper {
            Some(_) => TreeKind::WithUpper,
            None => TreeKind::ReadOnly,
        };
        let config = StackConfig {
            lowers,
            owner: Owner::Image,
            xattrs,
            override_stat,
            ..StackConfig::default()
        };
        let mut tree = Self::open_as(kind, &config)?;
        if kind == TreeKind::WithUpper {
            tree.stack
                .hide_topmost(about.work.as_deref().map(Path::new));
        }
        tree.image = image;
        if let Some(work) = about.work.as_deref().filter(|_| keeps_links(&about)) {
            tree.index = links_of(Path::new(work))?;
        }
        Ok(tree)
    }
}

/// The layers of an image, topmost first.
fn layers_of(store: &Store, image: &Image) -> Result<Vec<LayerSource>, Failure> {
    let layers = image.layers.iter().rev().map(|layer| {
        let files = store.layer(layer.diff_id)?;
        Ok(LayerSource::Archive {
            tar: files.tar,
            index: files.index,
            beneath: None,
        })
    });
    layers.collect()
}

fn image_of_mount(about: &MountedImage) -> Result<TreeImage, Failure> {
    let store = Store::open(&about.store)?;
    let image = store.image(ManifestDigest(about.manifest.parse()?))?;
    let above = image.layers.len().saturating_sub(about.layers);
    let partial = about.layers == 0;
    Ok(TreeImage {
        image: if partial {
            image
        } else {
            image.without_top(above)?
        },
        partial,
        store,
    })
}

/// Whether hard links of lower files stay links in the mount.
fn keeps_links(about: &Description) -> bool {
    let last = about
        .options
        .iter()
        .rfind(|option| option.starts_with("index="));
    last.is_none_or(|option| option == "index=on")
}

/// The hard-link index in the workdir `work`, if there is one.
fn links_of(work: &Path) -> Result<Option<Arc<LowerDir>>, Failure> {
    let index = work.join(INDEX);
    if !index.is_dir() {
        return Ok(None);
    }
    let stack = Stack::open(&StackConfig {
        lowers: vec![index.into()],
        ..StackConfig::default()
    })?;
    Ok(stack.roots.first().cloned())
}

/// How the mount reads its layers.
fn reading(about: &Description) -> Result<(XattrNamespace, OverrideStat), Failure> {
    let mut draft = Draft::default();
    for option in &about.options {
        draft.options(option.as_ref())?;
    }
    Ok(draft.reading())
}

/// What the mount at `mountpoint` says of itself.
fn ask(mountpoint: &Path) -> Result<Description, Failure> {
    let place = mountpoint.display();
    let said = virtual_xattr::ask(mountpoint, description::XATTR).answer();
    let said = said.map_err(|error| match error {
        Errno::NOTCONN | Errno::CONNABORTED => Failure::new(
            Exit::NotPlyfs,
            format!("the daemon of {place} is gone; 'plyfs umount {place}' clears it away"),
        ),
        error => Failure::other(format!(
            "cannot ask {place} for its layers: {}",
            layer::describe(error)
        )),
    })?;
    serde_json::from_slice(&said).map_err(|error| {
        Failure::other(format!("what {place} says of itself is malformed: {error}"))
    })
}

/// The mountpoint of the mount whose upper is `path`.
fn mount_with_upper(path: &Path) -> Result<Option<PathBuf>, Failure> {
    let questions: Vec<_> = plyfs_mounts()?
        .into_iter()
        .map(|mountpoint| {
            let question = virtual_xattr::ask(&mountpoint, description::XATTR);
            (mountpoint, question)
        })
        .collect();
    let found = questions.into_iter().find_map(|(mountpoint, question)| {
        let upper = question.answer().ok().and_then(|said| {
            let about: Description = serde_json::from_slice(&said).ok()?;
            fs::canonicalize(about.upper?).ok()
        });
        (upper.as_deref() == Some(path)).then_some(mountpoint)
    });
    Ok(found)
}

fn plyfs_mounts() -> Result<Vec<PathBuf>, Failure> {
    let mounts = mountinfo::all()
        .map_err(|error| Failure::other(format!("cannot list mounts: {}", why(&error))))?;
    let ours = mounts.into_iter().filter(mountinfo::Mount::is_plyfs);
    Ok(ours.map(|mount| mount.mountpoint).collect())
}

/// The mount that `path` lies in, and the path in it. The last names need not exist: it may be about what is deleted.
pub(super) fn mount_of(path: &Path) -> Result<Option<(PathBuf, PathBuf)>, Failure> {
    let absolute = std::path::absolute(path)
        .map_err(|error| Failure::other(format!("{}: {}", path.display(), why(&error))))?;
    // The last component is looked at itself, also if it is a symlink.
    let mut above = absolute.ancestors().skip(1);
    let found = above.find_map(|above| Some((above, fs::canonicalize(above).ok()?)));
    let real = match found {
        Some((above, real)) => real.join(absolute.strip_prefix(above).unwrap_or(&absolute)),
        None => absolute,
    };
    let mut mounts = plyfs_mounts()?;
    mounts.retain(|mountpoint| real.starts_with(mountpoint));
    let deepest = mounts
        .into_iter()
        .max_by_key(|mountpoint| mountpoint.as_os_str().len());
    Ok(deepest.map(|mountpoint| {
        let inside = real.strip_prefix(&mountpoint).unwrap_or(&real).to_owned();
        (mountpoint, inside)
    }))
}

/// `IMAGE:/PATH` as image and path.
pub(super) fn split_image_path(given: &OsStr) -> Option<(&OsStr, &[u8])> {
    use std::os::unix::ffi::OsStrExt;
    let bytes = given.as_bytes();
    let colon = bytes.windows(2).position(|two| two == b":/")?;
    let image = OsStr::from_bytes(&bytes[..colon]);
    (!image.is_empty()).then_some((image, &bytes[colon + 1..]))
}

/// The names of `path`, which may begin with a slash.
pub(super) fn names(path: &[u8]) -> Result<Vec<OwnedName>, Failure> {
    path.split(|&byte| byte == b'/')
        .filter(|part| !matches!(*part, b"" | b"."))
        .map(|part| {
            let name = Name::from_bytes(part).map(Name::to_owned);
            name.map_err(|error| {
                let path = path.escape_ascii();
                Failure::usage(format!("path {path}: {}", layer::describe(error)))
            })
        })
        .collect()
}

/// A directory that is no layout of images.
pub(super) fn is_plain_directory(path: &Path) -> bool {
    path.is_dir() && !path.join("oci-layout").is_file()
}
