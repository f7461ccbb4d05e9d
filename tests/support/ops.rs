//! Short forms of the operations of a test, on paths of the merged view. They panic with the path
//! when they fail; a test about an error calls the system call itself.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{Stat, XattrFlags, lsetxattr};
use rustix::io::Errno;

use super::disk;
use super::mounted::Mounted;

trait Must<T> {
    fn must(self, what: &str, path: impl AsRef<Path>) -> T;
}

impl<T, E: std::fmt::Display> Must<T> for Result<T, E> {
    #[track_caller]
    fn must(self, what: &str, path: impl AsRef<Path>) -> T {
        self.unwrap_or_else(|error| panic!("{what} {}: {error}", path.as_ref().display()))
    }
}

impl Mounted {
    #[track_caller]
    pub fn read(&self, path: impl AsRef<Path>) -> Vec<u8> {
        fs::read(self.path(&path)).must("read", path)
    }

    #[track_caller]
    pub fn text(&self, path: impl AsRef<Path>) -> String {
        fs::read_to_string(self.path(&path)).must("read", path)
    }

    /// Writes the whole file, creating it or cutting it first.
    #[track_caller]
    pub fn write(&self, path: impl AsRef<Path>, data: impl AsRef<[u8]>) {
        fs::write(self.path(&path), data).must("write", path);
    }

    #[track_caller]
    pub fn append(&self, path: impl AsRef<Path>, data: &str) {
        let file = OpenOptions::new().append(true).open(self.path(&path));
        file.must("open", &path)
            .write_all(data.as_bytes())
            .must("append", path);
    }

    /// Overwrites bytes at an offset of an existing file.
    #[track_caller]
    pub fn write_at(&self, path: impl AsRef<Path>, offset: u64, data: &[u8]) {
        self.open_rw(&path)
            .write_all_at(data, offset)
            .must("write", path);
    }

    #[track_caller]
    pub fn open(&self, path: impl AsRef<Path>) -> File {
        File::open(self.path(&path)).must("open", path)
    }

    #[track_caller]
    pub fn open_rw(&self, path: impl AsRef<Path>) -> File {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(self.path(&path))
            .must("open", path)
    }

    #[track_caller]
    pub fn truncate(&self, path: impl AsRef<Path>, length: u64) {
        self.open_rw(&path).set_len(length).must("truncate", path);
    }

    #[track_caller]
    pub fn mkdir(&self, path: impl AsRef<Path>) {
        fs::create_dir(self.path(&path)).must("mkdir", path);
    }

    #[track_caller]
    pub fn rmdir(&self, path: impl AsRef<Path>) {
        fs::remove_dir(self.path(&path)).must("rmdir", path);
    }

    #[track_caller]
    pub fn unlink(&self, path: impl AsRef<Path>) {
        fs::remove_file(self.path(&path)).must("unlink", path);
    }

    #[track_caller]
    pub fn remove_tree(&self, path: impl AsRef<Path>) {
        fs::remove_dir_all(self.path(&path)).must("rm -r", path);
    }

    #[track_caller]
    pub fn rename(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) {
        fs::rename(self.path(&from), self.path(to)).must("rename", from);
    }

    #[track_caller]
    pub fn link(&self, old: impl AsRef<Path>, new: impl AsRef<Path>) {
        fs::hard_link(self.path(&old), self.path(new)).must("link", old);
    }

    #[track_caller]
    pub fn symlink(&self, target: &str, path: impl AsRef<Path>) {
        std::os::unix::fs::symlink(target, self.path(&path)).must("symlink", path);
    }

    #[track_caller]
    pub fn chmod(&self, path: impl AsRef<Path>, mode: u32) {
        let mode = fs::Permissions::from_mode(mode);
        fs::set_permissions(self.path(&path), mode).must("chmod", path);
    }

    #[track_caller]
    pub fn chown(&self, path: impl AsRef<Path>, uid: u32, gid: u32) {
        disk::chown(&self.path(path), uid, gid);
    }

    #[track_caller]
    pub fn set_mtime(&self, path: impl AsRef<Path>, seconds: i64, nanos: u32) {
        disk::set_mtime(&self.path(path), seconds, nanos);
    }

    #[track_caller]
    pub fn set_xattr(&self, path: impl AsRef<Path>, name: &str, value: &str) {
        let flags = XattrFlags::empty();
        lsetxattr(self.path(&path), name, value.as_bytes(), flags).must("setxattr", path);
    }

    pub fn xattr(&self, path: impl AsRef<Path>, name: &str) -> Option<String> {
        disk::xattr(&self.path(path), name).map(|value| String::from_utf8(value).unwrap())
    }

    /// `lstat`.
    #[track_caller]
    pub fn stat(&self, path: impl AsRef<Path>) -> Stat {
        rustix::fs::lstat(self.path(&path)).must("lstat", path)
    }

    /// The permission bits.
    #[track_caller]
    pub fn mode(&self, path: impl AsRef<Path>) -> u32 {
        self.stat(path).st_mode & 0o7777
    }

    #[track_caller]
    pub fn inode(&self, path: impl AsRef<Path>) -> u64 {
        self.stat(path).st_ino
    }

    /// The modification time.
    #[track_caller]
    pub fn mtime(&self, path: impl AsRef<Path>) -> (i64, u32) {
        let stat = self.stat(path);
        (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap())
    }

    /// Why `lstat` fails, if it does.
    pub fn lookup_error(&self, path: impl AsRef<Path>) -> Option<Errno> {
        rustix::fs::lstat(self.path(path)).err()
    }

    /// Whether nothing has the name.
    pub fn is_absent(&self, path: impl AsRef<Path>) -> bool {
        self.lookup_error(path) == Some(Errno::NOENT)
    }

    /// Whether the upper holds nothing under the name, not even a whiteout.
    pub fn upper_lacks(&self, path: impl AsRef<Path>) -> bool {
        rustix::fs::lstat(self.upper(path)).err() == Some(Errno::NOENT)
    }

    /// The names in a directory as listed, sorted.
    #[track_caller]
    pub fn names(&self, path: impl AsRef<Path>) -> Vec<String> {
        let list = fs::read_dir(self.path(&path)).must("readdir", path);
        let names = list.map(|item| item.unwrap().file_name().to_string_lossy().into_owned());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }
}
