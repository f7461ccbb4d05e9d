//! Making an upper complete: for readers that follow no redirects, find no data by a metadata-only copy and know no
//! index of hard links. What the union shows is the same at every moment.

use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::io::{Errno, Result};

use super::Overlay;
use super::copy_up::Data;
use super::index::Source;
use super::node::{Dir, Node, ROOT, Real};
use crate::layer::mark::{Mark, NlinkMark};
use crate::layer::name::{Name, OwnedName};

/// Why an upper could not be made complete.
#[derive(Debug)]
pub struct Incomplete {
    /// The path in the mount, from its root.
    pub path: Vec<u8>,
    /// What went wrong. ENOENT: it leads to what none of the layers below has.
    pub error: Errno,
}

impl Overlay {
    /// Makes the upper complete. How many objects were not.
    pub fn complete(&self) -> std::result::Result<usize, Incomplete> {
        let about_all = |error| Incomplete {
            path: Vec::new(),
            error,
        };
        let root = self.node(ROOT).map_err(about_all)?;
        let mut done = 0;
        loop {
            let indexed = self.has_index();
            done += self.complete_below(&root)?;
            // Names of what came into the index may be where there was nothing to look for before.
            if self.has_index() == indexed {
                break;
            }
        }
        self.forget_lower_names().map_err(about_all)?;
        Ok(done)
    }

    fn complete_below(&self, root: &Arc<Node>) -> std::result::Result<usize, Incomplete> {
        let mut done = 0;
        // Directories with their paths, which only errors need.
        let mut left = vec![(Arc::clone(root), Vec::new())];
        while let Some((dir, path)) = left.pop() {
            let below = |name: &OwnedName| [&path[..], b"/", name.get().bytes()].concat();
            let names = match self.names_in(&dir) {
                // Nobody who may not list it has made a link in it.
                Err(Errno::ACCESS) if !dir.in_upper() => Vec::new(),
                listed => listed.map_err(|error| Incomplete {
                    path: path.clone(),
                    error,
                })?,
            };
            for name in names {
                let completed = self.complete_name(&dir, &name);
                let (more, node) = completed.map_err(|error| Incomplete {
                    path: below(&name),
                    error,
                })?;
                done += usize::from(more);
                left.extend(node.map(|node| (node, below(&name))));
            }
        }
        Ok(done)
    }

    /// Whether something was done about a name, and the directory if there may be more to do in it.
    fn complete_name(
        &self,
        dir: &Arc<Node>,
        name: &OwnedName,
    ) -> Result<(bool, Option<Arc<Node>>)> {
        let Some(node) = self.find_child(dir, name.get())? else {
            return Ok((false, None));
        };
        if let Some(own) = &node.dir {
            let redirected = self.complete_dir(&node, own)?;
            // Names of an inode in the index may be anywhere.
            let descend = node.in_upper() || self.has_index();
            return Ok((redirected, descend.then_some(node)));
        }
        let in_upper = is_upper_name(dir, name.get());
        let data = node.state().data.as_deref().cloned();
        if let Some(data) = &data {
            // Else it is another file.
            if data.stat()?.size != self.attr(&node)?.size {
                return Err(Errno::NOENT);
            }
            self.copy_up(&node, Data::All)?;
        } else if in_upper {
            self.remove_stray_redirect(&node)?;
        }
        let linked = matches!(node.state().real, Real::Indexed(_)) && !in_upper;
        if linked {
            self.copy_up_dir(dir)?;
            self.bring_up(&node, (dir, name.get()), Data::All)?;
        }
        Ok((data.is_some() || linked, None))
    }

    /// Whether the directory had a redirect.
    fn complete_dir(&self, node: &Arc<Node>, own: &Dir) -> Result<bool> {
        let (opaque, alone) = {
            let state = own.state.lock();
            (state.opaque, state.lowers.is_empty())
        };
        if own.redirect().is_some() {
            if alone && !opaque {
                return Err(Errno::NOENT);
            }
            self.copy_up_tree(node)?;
            return Ok(true);
        }
        if opaque {
            // A conversion that was killed has left whiteouts in it, if anybody.
            self.names_in(node)?;
            self.cut_off(node)?;
        }
        Ok(false)
    }

    /// What a conversion that was killed leaves of a metadata-only copy.
    fn remove_stray_redirect(&self, node: &Arc<Node>) -> Result<()> {
        let _names = self.names.read();
        let upper = self.upper()?;
        let held = self.held(node)?;
        let marks = upper.marks(held.read())?;
        if marks.redirect.is_some() && !marks.metacopy {
            upper.remove_mark(held.change(upper), Mark::Redirect)?;
        }
        Ok(())
    }

    /// Notes for all that is in the index that its names are those in the upper: every name that shows is there by now.
    fn forget_lower_names(&self) -> Result<()> {
        let upper = self.upper()?;
        let Some(index) = self.index_fd.as_ref().filter(|_| self.has_index()) else {
            return Ok(());
        };
        let mut names = Vec::new();
        upper.list(index.as_fd(), |entry| {
            names.push(Name::from_bytes(entry.name)?.to_owned());
            Ok(())
        })?;
        for name in names {
            let at = upper.at(index.as_fd(), name.get());
            if upper.marks(at.read())?.nlink.is_some() {
                let mark = NlinkMark::Upper(-1).encode();
                upper.set_mark(at, Mark::Nlink, mark.as_bytes())?;
            }
        }
        Ok(())
    }
}

/// Whether the upper has this name in the directory.
fn is_upper_name(dir: &Node, name: Name<'_>) -> bool {
    let own = dir.dir.as_ref();
    own.is_some_and(|own| {
        let state = own.state.lock();
        let entry = state.index.find(name);
        entry.is_some_and(|entry| entry.source == Source::Upper)
    })
}
