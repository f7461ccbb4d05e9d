//! plyfs: a union filesystem in userspace.
//!
//! This page is the architecture. What a user gets is in the README; formats and algorithms are described in the
//! module that has them.
//!
//! # From above
//!
//! A mount is a stack of layers: read-only *lowers*, directories or tars, and at most one writable *upper*. The kernel
//! sends requests about *nodes*, which it knows by number; plyfs finds the object on disk that a node stands for, and
//! answers. A change to something that only a lower has copies it to the upper first. All state that matters is on
//! disk, in the format of Linux overlayfs, so a mount can end at any moment; what is in memory is a cache.
//!
//! ```text
//! program                                             plyfs umount, mounts, stats
//!    | system call                                            |
//! kernel: permissions, locks, page cache, cached names    plyfs::cli      options, background process, exit codes
//!    | request                                                |
//! /dev/fuse  ---------------------------------------->    plyfs::fuse     decode, reply; polling, workers, counters
//!                                                             |
//!                                                         plyfs::overlay  decides: which layer, copy up or not
//!                                                             |
//!                                                         plyfs::layer    acts: system calls, marks, staging
//!                                                             |
//!                                                         upper, workdir, lowers
//! ```
//!
//! # One request: a write to a lower file
//!
//! `echo level=debug >> merged/etc/log.conf`, where only a lower has `etc/log.conf`.
//!
//! 1. The kernel has looked the name up ([`Overlay::lookup`](overlay::Overlay::lookup)), so it knows a node and its
//!    attributes. It checks permissions itself (`default_permissions`). The open sends no request: the first OPEN of
//!    the mount was answered ENOSYS. What arrives is WRITE with a node number, an offset and bytes.
//! 2. The reader, spinning or asleep (`fuse/poll.rs`), hands the request to its handler in `fuse/requests.rs`, which
//!    starts a timer of `fuse/stats.rs`. [`Overlay::copies_data`](overlay::Overlay::copies_data) says that data would
//!    have to be copied first, so the bytes go to a worker (`fuse/pool.rs`) and the reader goes on. The worker runs
//!    the request behind a guard that turns a panic into EIO.
//! 3. [`Overlay::write`](overlay::Overlay::write) finds the [`Node`](overlay::node::Node) and asks
//!    [`overlay::copy_up`] for it with all its data. The node's lock `copying` is taken: another writer of this file
//!    waits here, everybody else goes on, and readers of the file read the lower.
//! 4. Missing parent directories are copied up, topmost first. Then the file is staged in the
//!    [`workdir`](layer::workdir): a new file of no name that anybody sees, filled by
//!    [`copy_data`](layer::copy::copy_data) (reflink, else `copy_file_range`, else read and write; holes stay holes),
//!    then owner, xattrs and ACLs, mode, times, and the mark `origin` that keeps its inode number. Unless the mount
//!    is volatile the data is synced.
//! 5. `Overlay::names` is taken shared and the parent's [`DirState`](overlay::node::DirState) locked. The name is
//!    still this node's, or the file was unlinked meanwhile and stays without one.
//!    [`Staged::publish`](layer::workdir::Staged::publish) renames it into place; the parent gets its times back. The
//!    parent's [`Index`](overlay::index::Index) says now that the name is in the upper, and the node's
//!    [`Real`](overlay::node::Real) says the same. Its number has not changed, so the kernel notices nothing.
//! 6. The node's descriptor, bounded and reopened on demand by [`layer::fd`], takes the bytes by
//!    [`write_at`](layer::io::write_at). The cached attributes become stale. If the kernel says that this writer may
//!    not keep suid and sgid, they are cleared.
//! 7. The handler replies with the number of bytes; dropping the timer counts the request.
//!
//! Killed before step 5, the upper lacks the file and the rest lies in the workdir, which the next mount empties.
//! Killed after it, the upper has all of the file.
//!
//! # Code map
//!
//! | question | file |
//! |---|---|
//! | how arguments become a mount; exit codes | [`cli`], `cli/options.rs`, `cli/convention.rs`, [`cli::exit`] |
//! | how the background process starts and ends | `cli/background.rs`, `cli/command.rs`, `cli/umount.rs` |
//! | how a request is decoded and answered; errno and attributes | `fuse/requests.rs`, `fuse/adapter.rs`, `fuse/convert.rs` |
//! | what is agreed with the kernel at INIT | `fuse/negotiate.rs` |
//! | how the reader waits for requests | `fuse/poll.rs`, `fuse/warmer.rs`, `fuse/seats.rs` |
//! | how /dev/fuse gets mounted | [`fuse::mount`], [`fuse::session`] |
//! | which layer shows a name | [`overlay::lookup`], [`overlay::index`], [`overlay::readdir`] |
//! | what `timeout=` asks again | `overlay/timeout.rs` |
//! | what is read before it is asked for, and by which thread | `overlay/read_ahead.rs`, `fuse/walker.rs`, `fuse/seats.rs` |
//! | what the kernel knows by number | [`overlay::node`], [`overlay::ino`] |
//! | where a node is on disk | [`overlay::place`] |
//! | copy-up | [`overlay::copy_up`] |
//! | changes | [`overlay::create`], [`overlay::remove`], [`overlay::rename`], [`overlay::attr`], [`overlay::xattr`], [`overlay::file_flags`] |
//! | hard links across copy-up | [`overlay::link`] |
//! | reading and writing | [`overlay::open`] |
//! | whiteouts, opaque directories, redirects: all formats | [`layer::mark`], [`layer::handle`], [`layer::override_stat`] |
//! | what is checked before a mount | [`layer::stack`], `layer/open.rs` |
//! | the calls that change something | [`layer::upper`], [`layer::at`], [`layer::workdir`] |
//! | reading a lower | [`layer::lower`] |
//! | a tar as a lower: its index, what its entries mean | [`layer::archive`] |
//! | copying bytes and metadata | [`layer::copy`] |
//! | owners, ACLs and capabilities: mapped ids; kept in other xattrs | [`overlay::ids`], [`layer::acl`], [`layer::override_stat`] |
//! | an upper that is not mounted: `convert`, `check` | [`layer::at_rest`], [`layer::at_rest::convert`], [`layer::at_rest::check`] |
//! | what a stack shows without a mount | [`layer::view`] |
//! | what a tree changes over another: `diff`, `commit` | [`changes`], [`changes::compare`], [`changes::owner`] |
//! | changes as the tar of a layer; as an image | [`changes::layer_tar`], [`image::commit`] |
//! | which layer an object comes from | [`overlay::provenance`], `cli/which.rs` |
//! | images: names, manifests, what is stored where | [`image`], [`image::name`], [`image::manifest`], [`image::store`] |
//! | how an archive or layout is read; one layer on its way in | [`image::load`], `image/docker.rs`, `image/oci.rs`, [`image::ingest`] |
//! | what a crash of the system may have kept from the disk | `image/store/pending.rs` |
//! | which ids a user namespace has | [`layer::ids`] |
//! | what IMAGE may mean on the command line | `image/resolve.rs`, `cli/image/mount.rs` |
//! | `unsafe` | `layer/sys.rs`, nowhere else |
//!
//! # Who may use whom
//!
//! | module | uses | does not |
//! |---|---|---|
//! | [`cli`] | all below | touch a layer; write to stdout outside `cli/output.rs` |
//! | [`fuse`](mod@fuse) | [`overlay`], and of [`layer`] the words that pass through it (names, attributes, file flags, errors) | decide; it alone uses the crate `fuser` |
//! | [`overlay`] | [`layer`] | make a system call |
//! | [`image`] | [`layer`], [`changes`] | know of mounts and requests |
//! | [`changes`] | [`layer`] | write anything but a stream of bytes |
//! | [`layer`] | rustix | know of nodes or requests |
//!
//! `tests/tidy.rs` reads the sources and checks this table, and that mark literals, `unsafe` and output stay in their
//! files.
//!
//! # Invariants
//!
//! - **Only the upper can be written.** [`At`](layer::at::At) and the types of [`layer::lower`] have no call that
//!   changes anything; [`UpperAt`](layer::at::UpperAt) has, and only [`Upper`](layer::upper::Upper) and its workdir
//!   make one, and [`layer::at_rest::convert`] for an upper that is not mounted.
//! - **A tar is only read.** Its names, links, owners and devices live in its index; none becomes a path or an object
//!   of the host, except as a copy in the upper that a user asked for.
//! - **Nothing appears in the upper half-made.** What takes more than one call to make is
//!   [`Staged`](layer::workdir::Staged) in the workdir and appears by one rename or link; dropped unpublished, it is
//!   removed.
//! - **A path is never a string inside.** Each step is a [`Name`](layer::name::Name) (bytes, no `/`, not `.` or `..`)
//!   in an open directory, without following symlinks, so no symlink of a layer leads outside.
//! - **A number names one object** for as long as the kernel knows it, over copy-up, rename and unlink. Lookup counts
//!   change only through [`LookupRef`](overlay::node::LookupRef) and
//!   [`NodeTable::forget`](overlay::node::NodeTable::forget).
//! - **A node moves one way:** a file from lower to upper, a directory gains an upper part. Only [`overlay::copy_up`]
//!   does that.
//! - **The cookie of a name in a listing never changes** while its directory's node lives, and cookies only grow.
//! - **Lowers do not change while mounted.** Caches of them have no time limit.
//! - **Caches are bounded**, and reaching a bound costs speed only: nodes that nobody references, descriptors of
//!   directories and of files.
//! - **Errors of the system travel unchanged** as [`Errno`](rustix::io::Errno) to the one function that answers.
//!   Steps whose failure breaks no promise go through [`best_effort`](layer::best_effort), which logs. Only setting
//!   up a mount has errors made of sentences ([`layer::error`]).
//!
//! # Lock order
//!
//! Taken in this order, each optional:
//!
//! 1. `Node::copying`: one copy-up of a file at a time. The only lock held while file data is copied.
//! 2. `Overlay::names`: shared by whatever goes from a node to its object on disk, exclusive while names move or
//!    vanish.
//! 3. `DirState` of a directory, a parent before its child; two unrelated ones only under exclusive `names`.
//! 4. Leaf locks: `Node::state`, the node table, `Dir::redirect`, inode numbers, descriptor slots, the origins told by
//!    the hard-link index. Nothing is locked and nothing slow is done under them, but that those origins are read once.
//!
//! No lock is held while a reply is sent. The worker queue and the poller have locks of their own, taken while none
//! of the above is held.
//!
//! # Words
//!
//! - **lower**, **upper**: a read-only layer; the writable one. The first lower given is the topmost.
//! - **merged**: a directory made of several layers' directories of one path; also the whole view.
//! - **workdir**: beside the upper, for staging and for the hard-link index.
//! - **whiteout**: a mark in a layer that a name of the layers below is deleted.
//! - **opaque**: of a directory that hides what the layers below have at its path.
//! - **copy-up**: giving the upper its own copy of a lower object, before it is changed.
//! - **metacopy**: an upper file with metadata of its own whose data is still in a lower.
//! - **redirect**: a mark on an upper directory (or metacopy file) that says at which path the layers below have the
//!   rest.
//! - **origin**: a mark that names the lower object an upper one was copied from, by file handle.
//! - **impure**: a mark on a directory that holds copied-up objects.
//! - **index**, of hard links: a directory in the workdir with an entry for each copied-up inode of several names.
//! - **index**, of a tar: everything about its entries but the content of files.
//! - **implied**: of a directory that is not itself in a tar, only something below it.
//! - **index**, of a directory: the names of a merged directory in memory, with the layer each comes from.
//! - **node**: one object of the merged tree in memory; its number is nodeid and `st_ino` both.
//! - **alias**: one of a node's names.
//! - **no-open mode**: OPEN and OPENDIR answered ENOSYS, after which the kernel sends none.

pub mod changes;
pub mod cli;
pub mod fuse;
pub mod image;
pub mod layer;
pub mod overlay;
