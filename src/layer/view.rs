//! What a stack shows without being mounted: the merged tree of its layers from some position on, read only.
//!
//! The rules are those of the mount (`overlay`): the topmost object of a name wins, directories merge until a
//! whiteout, a non-directory or an opaque one, and redirects lead to other paths below.

use std::collections::BTreeSet;
use std::ffi::CStr;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::io::{Errno, Result};

use super::attr::{Attr, Kind};
use super::handle::index_name;
use super::lower::{Listed, Lower, LowerDir, LowerFile};
use super::mark::{self, AufsName, NlinkMark, Redirect};
use super::name::{Name, OwnedName};
use super::stack::Stack;

/// The merged tree of a stack's lowers from one position on.
#[derive(Clone, Debug)]
pub struct View {
    stack: Arc<Stack>,
    from: usize,
    index: Option<Arc<LowerDir>>,
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
    /// Of a file in the hard-link index: the lower file by whose name it was found.
    copied_from: Option<LowerFile>,
}

/// Where an object of a view is.
#[derive(Clone, Debug)]
pub enum Place {
    /// A directory, of one or more layers.
    Directory(MergedDir),
    /// Anything else, in one layer.
    File(LowerFile),
}

/// As many as Linux follows in one path.
const MAX_SYMLINKS: usize = 40;

/// Names that directories of layers have, or that marks in them say something of.
type Names = BTreeSet<Vec<u8>>;

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

/// Whether the objects of these device and inode numbers are one: of one filesystem, or of one archive, which may be
/// opened twice.
fn same((a, a_dev, a_ino): (&Lower, u64, u64), (b, b_dev, b_ino): (&Lower, u64, u64)) -> bool {
    inode(a, a_dev, a_ino) == inode(b, b_dev, b_ino)
}

/// What tells an inode from all others. The device number of an archive is only that of its place in a stack.
fn inode(lower: &Lower, dev: u64, ino: u64) -> Inode {
    match lower.archive() {
        Some(_) => (Some(lower.path.clone()), 0, ino),
        None => (None, dev, ino),
    }
}

/// An inode of a directory layer by device and number, or of an archive by its path and number.
pub type Inode = (Option<PathBuf>, u64, u64);

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
            copied_from: None,
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
        names.iter().map(|name| owned(name)).collect()
    }
}

fn raw_names(dir: &LowerDir) -> Result<Vec<OwnedName>> {
    let mut names = Vec::new();
    dir.list(|listed| {
        names.push(owned(listed.name)?);
        Ok(())
    })?;
    Ok(names)
}

fn owned(name: &[u8]) -> Result<OwnedName> {
    Name::from_bytes(name).map(Name::to_owned)
}

fn list(dir: &LowerDir, names: &mut Names) -> Result<()> {
    dir.list(|Listed { name, .. }| {
        match mark::aufs_name(name) {
            Some(AufsName::Whiteout(hidden)) => {
                names.insert(hidden.bytes().to_vec());
            }
            Some(AufsName::Opaque | AufsName::Reserved) => {}
            None => {
                names.insert(name.to_vec());
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

    /// Whether only the hard-link index has it, under this name.
    pub fn is_indexed(&self) -> bool {
        self.copied_from.is_some()
    }

    /// What tells its inode from all others.
    pub fn inode(&self) -> Inode {
        inode(self.lower(), self.attr.dev, self.attr.ino)
    }

    /// Whether its owner is the true one, not that of whoever could make the file.
    pub fn owner_is_exact(&self) -> bool {
        owner_is_exact(self.lower())
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
            (Place::File(_), Place::File(_)) => self.inode() == other.inode(),
            _ => false,
        }
    }
}

impl View {
    /// What the lowers of `stack` from position `from` on show.
    pub fn new(stack: Arc<Stack>, from: usize) -> Self {
        Self {
            stack,
            from,
            index: None,
        }
    }

    /// The same view, where names of lower inodes of several names are looked for in the hard-link index of the mount
    /// that wrote the topmost layer: the copied-up inode is there under the lower one's origin.
    #[must_use]
    pub fn with_index(self, index: Arc<LowerDir>) -> Self {
        Self {
            index: Some(index),
            ..self
        }
    }

    /// Whether the index has an inode that names which are not in the topmost layer may lead to.
    pub fn has_links_below(&self) -> Result<bool> {
        let Some(index) = &self.index else {
            return Ok(false);
        };
        let mut found = false;
        for name in raw_names(index)? {
            let attr = index.stat(name.get())?;
            // The count of all names relative to that of the topmost layer's, the index entry being one of those.
            found |= match index.marks(name.get())?.nlink {
                _ if attr.kind == Kind::Directory || mark::is_whiteout(&attr) => false,
                Some(NlinkMark::Upper(more)) => more >= 0,
                Some(NlinkMark::Lower(_)) | None => true,
            };
        }
        Ok(found)
    }

    /// What a name of the lower inode `file` shows if that inode was copied up by another name.
    fn indexed(&self, file: &LowerFile, attr: &Attr) -> Result<Option<Object>> {
        let upper = file.dir.lower().position == self.from;
        let Some(index) = self.index.as_ref().filter(|_| !upper && attr.nlink > 1) else {
            return Ok(None);
        };
        let Some(origin) = file.origin()? else {
            return Ok(None);
        };
        let Ok(name) = owned(&index_name(&origin)) else {
            return Ok(None);
        };
        match index.stat(name.get()) {
            Ok(attr) if mark::is_whiteout(&attr) => Ok(None),
            Ok(attr) => {
                let dir = Arc::clone(index);
                Ok(Some(Object {
                    attr,
                    place: Place::File(LowerFile { dir, name }),
                    copied_from: Some(file.clone()),
                }))
            }
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error),
        }
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
                    let file = LowerFile { dir, name };
                    if let Some(indexed) = self.indexed(&file, &attr)? {
                        return Ok(Some(indexed));
                    }
                    return Ok(Some(Object {
                        attr,
                        place: Place::File(file),
                        copied_from: None,
                    }));
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

    /// What the view shows at a path of names; none if a component of it is no directory.
    pub fn at(&self, path: &[u8]) -> Result<Option<Object>> {
        let names = path.split(|&byte| byte == b'/').map(owned);
        match self.find(&names.collect::<Result<Vec<_>>>()?) {
            Err(Errno::NOTDIR) => Ok(None),
            other => other,
        }
    }

    /// What the view shows at `path`, every symlink in which is followed within the view; ELOOP if they are too many.
    pub fn resolve(&self, path: &[u8]) -> Result<Option<Object>> {
        let components = |path: &[u8]| -> Vec<Vec<u8>> {
            let parts = path.split(|&byte| byte == b'/').rev();
            parts
                .filter(|part| !matches!(*part, b"" | b"."))
                .map(<[u8]>::to_vec)
                .collect()
        };
        let Some(root) = self.root()? else {
            return Ok(None);
        };
        let mut left = components(path);
        let mut way = vec![root];
        let mut links = 0;
        while let Some(part) = left.pop() {
            if part == b".." {
                way.truncate(way.len().saturating_sub(1).max(1));
                continue;
            }
            let dir = way[way.len() - 1].directory().ok_or(Errno::NOTDIR)?;
            let Some(object) = self.child(dir, Name::from_bytes(&part)?)? else {
                return Ok(None);
            };
            match &object.place {
                Place::File(file) if object.kind() == Kind::Symlink => {
                    links += 1;
                    if links > MAX_SYMLINKS {
                        return Err(Errno::LOOP);
                    }
                    let target = file.link_target()?;
                    if target.starts_with(b"/") {
                        way.truncate(1);
                    }
                    left.extend(components(&target));
                }
                _ => way.push(object),
            }
        }
        Ok(way.pop())
    }

    /// The file that holds the data of a regular file: itself, unless it is a metadata-only copy.
    pub fn data(&self, object: &Object) -> Result<LowerFile> {
        let Place::File(file) = &object.place else {
            return Err(Errno::ISDIR);
        };
        match &object.copied_from {
            None => self.stack.data_of(file, &object.attr),
            Some(lower) if object.attr.size > 0 && file.marks()?.metacopy => {
                self.stack.data_of(lower, &object.attr)
            }
            Some(_) => Ok(file.clone()),
        }
    }
}

/// Whether owners in a layer are the true ones, not those of whoever could make the files.
pub fn owner_is_exact(lower: &Lower) -> bool {
    lower.archive().is_some() || lower.override_name().is_some()
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
