//! What the arguments of `diff`, `commit` and `which` name: a tree of files and what it is made of.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;

use super::description::{self, Description};
use super::exit::{Exit, Failure, why};
use super::options::Draft;
use super::{mountinfo, virtual_xattr};
use crate::layer;
use crate::layer::lower::LowerDir;
use crate::layer::name::{Name, OwnedName};
use crate::layer::stack::{LayerSource, OverrideStat, Owner, Stack, StackConfig, XattrNamespace};
use crate::layer::view::View;
use crate::layer::workdir::INDEX;

/// A tree and the layers it is made of.
#[derive(Debug)]
pub(super) struct Tree {
    /// All layers, an upper topmost.
    stack: Arc<Stack>,
    /// The hard-link index of the upper.
    index: Option<Arc<LowerDir>>,
    /// The topmost layer is an upper.
    pub(super) has_upper: bool,
    /// What the mount says of itself, if it is one.
    pub(super) mount: Option<Description>,
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

    /// The tree without what its upper changes.
    pub(super) fn below(&self) -> View {
        View::new(Arc::clone(&self.stack), usize::from(self.has_upper))
    }

    /// A tree without anything in it.
    pub(super) fn nothing(&self) -> View {
        View::new(Arc::clone(&self.stack), self.stack.lowers.len())
    }

    /// The tree at `path`: a mount, the upper of one, or any directory.
    pub(super) fn at(path: &Path) -> Result<Self, Failure> {
        let (path, mount) = mountinfo::at(path).map_err(|error| missing(path, &why(&error)))?;
        if mount.is_some_and(|mount| mount.is_plyfs()) {
            return Self::mounted(&path);
        }
        if let Some(mountpoint) = mount_with_upper(&path)? {
            return Self::mounted(&mountpoint);
        }
        Self::open(StackConfig {
            lowers: vec![path.into()],
            owner: Owner::Image,
            ..StackConfig::default()
        })
    }

    /// The upper `path` over `lowers`, topmost first; `work` is its workdir, if that is known.
    pub(super) fn upper_over(
        path: &Path,
        lowers: &[PathBuf],
        work: Option<&Path>,
    ) -> Result<Self, Failure> {
        let lowers = [&[path.to_owned()], lowers].concat();
        let lowers = lowers.into_iter().map(LayerSource::from).collect();
        let mut tree = Self::open(StackConfig {
            lowers,
            owner: Owner::Image,
            ..StackConfig::default()
        })?;
        tree.has_upper = true;
        tree.index = work.map(links_of).transpose()?.flatten();
        Ok(tree)
    }

    fn open(config: StackConfig) -> Result<Self, Failure> {
        Ok(Self {
            stack: Arc::new(Stack::open(&config)?),
            index: None,
            has_upper: false,
            mount: None,
        })
    }

    /// The layers of the mount at `mountpoint`, opened beside it.
    fn mounted(mountpoint: &Path) -> Result<Self, Failure> {
        let place = mountpoint.display();
        let about = ask(mountpoint)?;
        if about.lowers.len() < about.lower_count {
            let sentence = format!(
                "the mount {place} has too many layers to be told; name its upper and --lower"
            );
            return Err(Failure::other(sentence));
        }
        let (xattrs, override_stat) = reading(&about)?;
        let upper = about.upper.iter();
        let lowers: Vec<PathBuf> = upper.chain(&about.lowers).map(PathBuf::from).collect();
        let dev = |path: &Path| rustix::fs::stat(path).map(|stat| (stat.st_dev, stat.st_ino));
        let hidden = lowers.iter().find(|layer| dev(layer) == dev(mountpoint));
        if let Some(layer) = hidden {
            return Err(Failure::new(
                Exit::Lower,
                format!(
                    "the mount {place} covers its own layer {}: mount somewhere else to see both",
                    layer.display()
                ),
            ));
        }
        let mut tree = Self::open(StackConfig {
            lowers: lowers.into_iter().map(LayerSource::from).collect(),
            owner: Owner::Image,
            xattrs,
            override_stat,
            ..StackConfig::default()
        })?;
        tree.has_upper = about.upper.is_some();
        if let Some(work) = about.work.as_deref().filter(|_| keeps_links(&about)) {
            tree.index = links_of(Path::new(work))?;
        }
        tree.mount = Some(about);
        Ok(tree)
    }
}

/// Whether hard links of lower files stay links in the mount.
fn keeps_links(about: &Description) -> bool {
    let last = about.options.iter().rfind(|option| option.starts_with("index="));
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
    let mut draft = Draft::at(PathBuf::new());
    for option in &about.options {
        draft.options(option.as_ref())?;
    }
    Ok(draft.reading())
}

fn missing(path: &Path, reason: &str) -> Failure {
    Failure::new(Exit::Lower, format!("{}: {reason}", path.display()))
}

/// What the mount at `mountpoint` says of itself.
pub(super) fn ask(mountpoint: &Path) -> Result<Description, Failure> {
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
    let mounts = mountinfo::all()
        .map_err(|error| Failure::other(format!("cannot list mounts: {}", why(&error))))?;
    let questions: Vec<_> = mounts
        .into_iter()
        .filter(mountinfo::Mount::is_plyfs)
        .map(|mount| {
            let question = virtual_xattr::ask(&mount.mountpoint, description::XATTR);
            (mount.mountpoint, question)
        })
        .collect();
    let found = questions.into_iter().find_map(|(mountpoint, question)| {
        let upper = question.answer().ok().and_then(|said| {
            let about: Description = serde_json::from_slice(&said).ok()?;
            std::fs::canonicalize(about.upper?).ok()
        });
        (upper.as_deref() == Some(path)).then_some(mountpoint)
    });
    Ok(found)
}

/// The names of `path`, which may begin with a slash and has no `..`.
pub(super) fn names(path: &[u8]) -> Result<Vec<OwnedName>, Errno> {
    path.split(|&byte| byte == b'/')
        .filter(|part| !matches!(*part, b"" | b"."))
        .map(|part| Name::from_bytes(part).map(Name::to_owned))
        .collect()
}
