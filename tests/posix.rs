//! The specification: what programs see in a merged view, and what then lies in the upper. One file
//! per operation. The same tests run on kernel overlayfs, the oracle; where we differ by design a
//! test says so with `deviates`.

mod acl;
mod append;
mod chmod;
mod chown;
mod copy_file_range;
mod copy_up;
mod errors;
mod fsync;
mod hardlink;
mod ids;
mod inode_numbers;
mod layers_mix;
mod link;
mod locks;
mod lookup;
mod lower_untouched;
mod metacopy;
mod mkdir;
mod mknod;
mod mmap;
mod mount_over_lower;
mod names;
mod opaque;
mod open_create;
mod open_unlinked;
mod permissions;
mod read;
mod readdir;
mod readonly;
mod rename_dir;
mod rename_file;
mod rename_flags;
mod rmdir;
mod sparse;
mod statfs;
mod suid_clearing;
mod symlink;
mod truncate;
mod umask_setgid;
mod unlink;
mod utimens;
mod whiteout;
mod write;
mod xattr;
