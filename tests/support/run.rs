//! What this run is: the backend, the privileges, the directory; and what does not apply to it.

use std::env;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{getgid, getuid};
use rustix::thread::{set_thread_gid, set_thread_groups, set_thread_uid};

/// The filesystem under test (`PLYFS_TEST_FS`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    Plyfs,
    /// Kernel overlayfs, the oracle.
    Kernel,
}

/// What the process may do, found at run time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// Root in the initial user namespace.
    Root,
    /// Root of a user namespace, for example inside `unshare -Urm`.
    Namespace,
    User,
}

pub fn backend() -> Backend {
    match env::var("PLYFS_TEST_FS").as_deref() {
        Err(_) | Ok("plyfs") => Backend::Plyfs,
        Ok("kernel") => Backend::Kernel,
        Ok(other) => panic!("PLYFS_TEST_FS={other}: say plyfs or kernel"),
    }
}

pub fn privilege() -> Privilege {
    static PRIVILEGE: OnceLock<Privilege> = OnceLock::new();
    *PRIVILEGE.get_or_init(|| {
        let map = std::fs::read_to_string("/proc/self/uid_map").expect("/proc is mounted");
        let initial = map.split_whitespace().eq(["0", "0", "4294967295"]);
        match (getuid().is_root(), initial) {
            (true, true) => Privilege::Root,
            (true, false) => Privilege::Namespace,
            (false, _) => Privilege::User,
        }
    })
}

pub fn is_root() -> bool {
    privilege() == Privilege::Root
}

pub fn is_kernel() -> bool {
    backend() == Backend::Kernel
}

/// All lowers are given to plyfs as tars (`PLYFS_TEST_LOWERS=tar`), so that the suites for directories show what is
/// different.
pub fn archived_lowers() -> bool {
    match env::var("PLYFS_TEST_LOWERS").as_deref() {
        Err(_) | Ok("dir") => false,
        Ok("tar") => true,
        Ok(other) => panic!("PLYFS_TEST_LOWERS={other}: say dir or tar"),
    }
}

/// The caller's own ids, for `owner=` in expectations.
pub fn own_ids() -> (u32, u32) {
    (getuid().as_raw(), getgid().as_raw())
}

/// Where fixtures live (`PLYFS_TEST_DIR`), so that a suite can run on any filesystem.
pub fn base_dir() -> PathBuf {
    env::var_os("PLYFS_TEST_DIR").map_or_else(env::temp_dir, PathBuf::from)
}

/// Options of every plyfs mount (`PLYFS_TEST_OPTIONS`), in front of those of the test.
pub fn extra_options() -> Option<String> {
    env::var("PLYFS_TEST_OPTIONS").ok()
}

/// Whether `option` is one of [`extra_options`].
pub fn runs_with(option: &str) -> bool {
    extra_options().is_some_and(|options| options.split(',').any(|each| each == option))
}

/// Records that the calling test does not apply to this run (`PLYFS_TEST_SKIPS`).
pub fn not_applicable(test: &str, reason: &str) {
    static FILE: Mutex<()> = Mutex::new(());
    let test = test.trim_end_matches("::{{closure}}");
    println!("not applicable: {test}: {reason}");
    if let Some(path) = env::var_os("PLYFS_TEST_SKIPS") {
        let _guard = FILE.lock().unwrap();
        let mut file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
            .unwrap();
        writeln!(file, "{:?} {:?} {test}: {reason}", backend(), privilege()).unwrap();
    }
}

/// Ends the test as not applicable unless `$condition` holds.
macro_rules! requires {
    ($condition:expr, $reason:expr) => {
        if !$condition {
            let test = std::any::type_name_of_val(&|| ());
            $crate::support::run::not_applicable(test, $reason);
            return;
        }
    };
}
pub(crate) use requires;

/// True on plyfs, which here differs from the kernel by design, for the reason given.
pub fn deviates(_reason: &str) -> bool {
    backend() == Backend::Plyfs
}

/// Whether directories that exist in a lower can be renamed: the kernel refuses with `userxattr`.
pub fn has_redirects() -> bool {
    !is_kernel() || is_root()
}

/// Whether hard links survive copy-up: the kernel needs to decode file handles for its index.
pub fn has_index() -> bool {
    !is_kernel() || is_root()
}

/// Whether a copied-up object keeps its inode number over a remount; needs file handles as well.
pub fn has_origins() -> bool {
    has_index()
}

/// Whether a metadata-only copy-up is to be had: not with the kernel's `userxattr`.
pub fn has_metacopy() -> bool {
    !is_kernel() || is_root()
}

/// Calls `done` until it is true, for 20 s; says whether it was. For what has to wait until others let go: a child that
/// another test has just forked holds copies of our descriptors until it executes its program, a namespace that it has
/// just made holds our mounts.
pub fn comes_true(mut done: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if done() {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// Runs `work` in a thread whose user, group and only supplementary group are `id`.
pub fn as_user<T: Send>(id: u32, work: impl FnOnce() -> T + Send) -> T {
    as_member(id, id, &[], work)
}

/// Runs `work` in a thread with these ids; the capabilities of root are gone there.
pub fn as_member<T: Send>(
    uid: u32,
    gid: u32,
    groups: &[u32],
    work: impl FnOnce() -> T + Send,
) -> T {
    use rustix::fs::{Gid, Uid};
    let groups: Vec<_> = groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    let result = thread::scope(|scope| {
        let thread = scope.spawn(|| {
            set_thread_groups(&groups).unwrap();
            set_thread_gid(Gid::from_raw(gid)).unwrap();
            set_thread_uid(Uid::from_raw(uid)).unwrap();
            work()
        });
        thread.join()
    });
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
