//! Where an object comes from: its layer, its path there, and the layers below that have its name, too.

use std::path::PathBuf;
use std::sync::Arc;

use rustix::io::{Errno, Result};

use super::Overlay;
use super::node::{Node, ROOT};
use super::place::Place;
use crate::layer::attr::Kind;
use crate::layer::name::OwnedName;

/// Where an object comes from.
#[derive(Clone, Debug, Default)]
pub struct Provenance {
    /// The directory or tar of the layer that supplies it.
    pub layer: PathBuf,
    /// Its path in that layer.
    pub path: Vec<u8>,
    /// The layers below that show something by its name in its directory: hidden, or merged with it if all are
    /// directories.
    pub below: Vec<PathBuf>,
}

impl Overlay {
    /// Where the object `ino` comes from.
    pub fn provenance(&self, ino: u64) -> Result<Provenance> {
        let _names = self.names.read();
        let node = self.node(ino)?;
        let below = self.below(&node)?;
        let (layer, names) = match self.place(&node)? {
            Place::Lower(file) => {
                let mut names = file.dir.path();
                names.push(file.name.clone());
                (file.dir.lower().path.clone(), names)
            }
            Place::LowerDir(dir) => (dir.lower().path.clone(), dir.path()),
            Place::Upper(_) => (self.upper()?.path.clone(), path_of(&node)),
        };
        let below = below.into_iter().filter(|path| *path != layer).collect();
        let path = names
            .iter()
            .flat_map(|name| [b"/", name.get().bytes()].concat());
        Ok(Provenance {
            layer,
            path: path.collect(),
            below,
        })
    }

    fn below(&self, node: &Arc<Node>) -> Result<Vec<PathBuf>> {
        if node.ino == ROOT {
            let lowers = self.stack.lowers.iter();
            return Ok(lowers.map(|lower| lower.path.clone()).collect());
        }
        let Some(alias) = node.state().aliases.first().cloned() else {
            return Ok(Vec::new());
        };
        let parent = alias.parent.dir.as_ref().ok_or(Errno::IO)?;
        let lowers = parent.state.lock().lowers.clone();
        let mut found = Vec::new();
        for dir in lowers {
            let attr = match dir.stat(alias.name.get()) {
                Err(Errno::NOENT) if dir.has_aufs_whiteout(alias.name.get()) => break,
                Err(Errno::NOENT) => continue,
                other => other?,
            };
            if dir.lower().is_whiteout(&attr) {
                break;
            }
            found.push(dir.lower().path.clone());
            if attr.kind == Kind::Directory && dir.marks(alias.name.get())?.opaque {
                break;
            }
        }
        Ok(found)
    }
}

/// The names that lead to `node` from the root of the mount; none if it has lost its name.
fn path_of(node: &Arc<Node>) -> Vec<OwnedName> {
    let mut names = Vec::new();
    let mut node = Arc::clone(node);
    while node.ino != ROOT {
        let Some(alias) = node.state().aliases.first().cloned() else {
            return Vec::new();
        };
        names.push(alias.name);
        node = alias.parent;
    }
    names.reverse();
    names
}
