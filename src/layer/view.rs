//! What a stack shows without being mounted: the merged tree of its layers from some position on, read only.
//!
//! The rules are those of the mount (`overlay`): the topmost object of a name wins, directories merge until a
//! whiteout, a non-directory or an opaque one, and redirects lead to other paths below.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::sync::Arc;

use rustix::io::{Errno, Result};

use super::attr::{Attr, Kind};
use super::lower::{Listed, Lower, LowerDir, LowerFile};
use super::mark::{self, AufsName, Redirect};
use super::name::{Name, OwnedName};
use super::stack::Stack;

/// The merged tree of a stack's lowers from one position on.
#[derive(Clone, Debug)]
pub struct View {
    stack: Arc<Stack>,
    from: usize,
}

/// A directory of a view: the directories of the layers that it is merged of, topmost first; at least one.
#[derive(Clone, Debug)]
pub struct MergedDir {
    parts: Vec<Part>,
    /// The part that the directory's own attributes are of: the topmost that is not only implied.
    own: usize,
}

#[derive(Clone, Debug)]
struct Part {
    dir: Arc<LowerDir>,
    dev: u64,
    ino: u64,
}

/// An object of a view.
#[derive(Clone, Debug)]
pub struct Object {
    /// Attributes of its topmost layer, `nlink` as there.
    pub attr: Attr,
    /// Where it is.
    pub place: Place,
}

/// Where an object of a view is.
#[derive(Clone, Debug)]
pub enum Place {
    /// A directory, of one or more layers.
    Directory(MergedDir),
    /// Anything else, in one layer.
    File(LowerFile),
}

/// Names in the layers' directories: `true` if an object, `false` if only marks say something of it.
type Names = BTreeMap<Vec<u8>, bool>;

impl Part {
    fn new(dir: Arc<LowerDir>, attr: &Attr) -> Self {
        Self {
            dir,
            dev: attr.dev,
            ino: attr.ino,
        }
    }

    fn is(&self, other: &Self) -> bool {
        let (a, b) = (self.dir.lower(), other.dir.lower());
        same((a, self.dev, self.ino), (b, other.dev, other.ino))
    }
}

/// Whether the objects of these device and inode numbers are one, of one layer (perhaps opened twice).
fn same((a, a_dev, a_ino): (&Lower, u64, u64), (b, b_dev, b_ino): (&Lower, u64, u64)) -> bool {
    // The device number of an archive is that of its place in a stack.
    let same_dev = a_dev == b_dev || (a_dev == a.dev && b_dev == b.dev);
    a_ino == b_ino && same_dev && a.path == b.path
}

impl MergedDir {
    /// The layers' directories, topmost first.
    pub fn layers(&self) -> impl Iterator<Item = &Arc<LowerDir>> {
        self.parts.iter().map(|part| &part.dir)
    }

    /// The topmost layer's directory that says what the directory itself is like.
    pub fn own(&self) -> &Arc<LowerDir> {
        &self.parts[self.own].dir
    }

    /// A directory of `parts`, if there are any, with the attributes it shows.
    fn of(parts: Vec<(Part, Attr)>) -> Option<Object> {
        let own = parts.iter().position(|(part, _)| !part.dir.is_implied());
        let own = own.unwrap_or(0);
        let attr = parts.get(own)?.1;
        let parts = parts.into_iter().map(|(part, _)| part).collect();
        Some(Object {
            attr,
            place: Place::Directory(Self { parts, own }),
        })
    }

    /// How many of the lowest layers' directories this one and `other` share.
    fn shared(&self, other: &Self) -> usize {
        let pairs = self.parts.iter().rev().zip(other.parts.iter().rev());
        pairs.take_while(|(a, b)| a.is(b)).count()
    }

    /// Whether both are made of the same directories, so that everything in them is equal.
    pub fn is(&self, other: &Self) -> bool {
        self.parts.len() == other.parts.len() && self.shared(other) == self.parts.len()
    }

    /// The names that one of the two may show otherwise than the other, in order: all those in directories that they
    /// do not share. What lies in shared ones only is equal and not even listed.
    pub fn names_apart(&self, other: Option<&Self>) -> Result<Vec<OwnedName>> {
        let shared = other.map_or(0, |other| self.shared(other));
        let mut names = Names::new();
        for dir in [Some(self), other].into_iter().flatten() {
            for part in &dir.parts[..dir.parts.len() - shared] {
                list(&part.dir, &mut names)?;
            }
        }
        names.keys().map(|name| owned(name)).collect()
    }
}

fn owned(name: &[u8]) -> Result<OwnedName> {
    Name::from_bytes(name).map(Name::to_owned)
}

fn list(dir: &LowerDir, names: &mut Names) -> Result<()> {
    dir.list(|Listed { name, .. }| {
        match mark::aufs_name(name) {
            Some(AufsName::Whiteout(hidden)) => {
                names.entry(hidden.bytes().to_vec()).or_insert(false);
            }
            Some(AufsName::Opaque | AufsName::Reserved) => {}
            None => {
                names.insert(name.to_vec(), true);
            }
        }
        Ok(())
    })
}

impl Object {
    /// What it is.
    pub fn kind(&self) -> Kind {
        self.attr.kind
    }

    /// The directory, if it is one.
    pub fn directory(&self) -> Option<&MergedDir> {
        match &self.place {
            Place::Directory(dir) => Some(dir),
            Place::File(_) => None,
        }
    }

    /// The layer that supplies it.
    pub fn lower(&self) -> &Arc<Lower> {
        match &self.place {
            Place::Directory(dir) => dir.own().lower(),
            Place::File(file) => file.dir.lower(),
        }
    }

    /// Whether its owner is the true one, not that of whoever could make the file.
    pub fn owner_is_exact(&self) -> bool {
        self.lower().owner_is_exact()
    }

    /// Names of its xattrs, each ended by NUL.
    pub fn xattr_names(&self) -> Result<Vec<u8>> {
        match &self.place {
            Place::Directory(dir) => dir.own().xattr_names_self(),
            Place::File(file) => file.xattr_names(),
        }
    }

    /// The value of an xattr.
    pub fn xattr(&self, name: &CStr) -> Result<Option<Vec<u8>>> {
        match &self.place {
            Place::Directory(dir) => dir.own().xattr_self(name),
            Place::File(file) => file.xattr(name),
        }
    }

    /// Whether both are one object of one layer (or, of directories, made of the same ones).
    pub fn is(&self, other: &Self) -> bool {
        match (&self.place, &other.place) {
            (Place::Directory(a), Place::Directory(b)) => a.is(b),
            (Place::File(a), Place::File(b)) => {
                let (attr, other) = (&self.attr, &other.attr);
                let (a, b) = (a.dir.lower(), b.dir.lower());
                same((a, attr.dev, attr.ino), (b, other.dev, other.ino))
            }
            _ => false,
        }
    }
}

impl View {
    /// What the lowers of `stack` from position `from` on show.
    pub fn new(stack: Arc<Stack>, from: usize) -> Self {
        Self { stack, from }
    }

    /// The stack behind it.
    pub fn stack(&self) -> &Arc<Stack> {
        &self.stack
    }

    /// Position of its topmost layer.
    pub fn from(&self) -> usize {
        self.from
    }

    /// The root; `None` if there is no layer.
    pub fn root(&self) -> Result<Option<Object>> {
        let mut parts = Vec::new();
        for root in self.stack.roots.iter().skip(self.from) {
            let attr = root.stat_self()?;
            parts.push((Part::new(Arc::clone(root), &attr), attr));
            if root.marks_self()?.opaque || root.has_aufs_opaque() {
                break;
            }
        }
        Ok(MergedDir::of(parts))
    }

    /// The names in `dir`, sorted by bytes, with their objects.
    pub fn list(&self, dir: &MergedDir) -> Result<Vec<(OwnedName, Object)>> {
        let mut found = Vec::new();
        for name in dir.names_apart(None)? {
            if let Some(object) = self.child(dir, name.get())? {
                found.push((name, object));
            }
        }
        Ok(found)
    }

    /// What `dir` shows as `name`.
    pub fn child(&self, dir: &MergedDir, name: Name<'_>) -> Result<Option<Object>> {
        if mark::aufs_name(name.bytes()).is_some() {
            return Ok(None);
        }
        let mut name = name.to_owned();
        let mut parts: Vec<(Part, Attr)> = Vec::new();
        for Part { dir, .. } in &dir.parts {
            let attr = match dir.stat(name.get()) {
                Err(Errno::NOENT) if dir.has_aufs_whiteout(name.get()) => break,
                Err(Errno::NOENT) => continue,
                other => other?,
            };
            if attr.kind != Kind::Directory {
                if parts.is_empty() && !is_whiteout(dir, name.get(), &attr)? {
                    let dir = Arc::clone(dir);
                    let place = Place::File(LowerFile { dir, name });
                    return Ok(Some(Object { attr, place }));
                }
                break;
            }
            let child = dir.child(name.clone(), &attr);
            let marks = dir.marks(name.get())?;
            let last = marks.opaque || child.has_aufs_opaque() || dir.has_aufs_whiteout(name.get());
            parts.push((Part::new(child, &attr), attr));
            match marks.redirect {
                _ if last => break,
                None => {}
                Some(Redirect::Sibling(next)) => name = next,
                Some(Redirect::Absolute(path)) => {
                    for below in self.stack.find_dirs(dir.lower().position + 1, &path)? {
                        let attr = below.stat_self()?;
                        parts.push((Part::new(below, &attr), attr));
                    }
                    break;
                }
            }
        }
        Ok(MergedDir::of(parts))
    }

    /// What the view shows at `path`; ENOTDIR if a component of it is something else.
    pub fn find(&self, path: &[OwnedName]) -> Result<Option<Object>> {
        let Some(mut object) = self.root()? else {
            return Ok(None);
        };
        for name in path {
            let dir = object.directory().ok_or(Errno::NOTDIR)?;
            match self.child(dir, name.get())? {
                Some(child) => object = child,
                None => return Ok(None),
            }
        }
        Ok(Some(object))
    }

    /// The file that holds the data of the regular file `object`: itself, unless it is a metadata-only copy.
    pub fn data(&self, file: &LowerFile, attr: &Attr) -> Result<LowerFile> {
        self.stack.data_of(file, attr)
    }
}

/// Whether both are one file of one layer.
pub fn same_file(a: &LowerFile, b: &LowerFile) -> Result<bool> {
    let (first, second) = (a.stat()?, b.stat()?);
    let (a, b) = (a.dir.lower(), b.dir.lower());
    Ok(same((a, first.dev, first.ino), (b, second.dev, second.ino)))
}

fn is_whiteout(dir: &LowerDir, name: Name<'_>, attr: &Attr) -> Result<bool> {
    if dir.lower().is_whiteout(attr) {
        return Ok(true);
    }
    let maybe = attr.kind == Kind::File && attr.size == 0 && dir.marks_self()?.xattr_whiteouts;
    Ok(maybe && dir.marks(name)?.whiteout)
}
