//! chattr(1) and lsattr(1): what the upper's filesystem makes of file flags.

use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
use rustix::io::Errno;

use crate::support::{Fixture, Mounted, deviates, is_root, requires};

const NO_IMAGE: &str = "only root mounts a filesystem that has flags";

/// On ext4, all of it.
fn mount() -> Mounted {
    Fixture::new()
        .lower_on("ext4", "d/f 'data' 0644; d/g 'g'; l -> d")
        .upper_on("ext4:16m")
        .mount()
}

fn flags(fs: &Mounted, path: &str) -> IFlags {
    ioctl_getflags(fs.open(path)).unwrap()
}

fn set(fs: &Mounted, path: &str, flags: IFlags) -> Result<(), Errno> {
    ioctl_setflags(fs.open(path), flags)
}

#[test]
fn flags_that_are_set_are_those_of_the_upper() {
    requires!(is_root(), NO_IMAGE);
    let mut fs = mount();
    let wanted = IFlags::NODUMP | IFlags::NOATIME;
    for path in ["d/f", "d"] {
        let before = flags(&fs, path);
        assert!(!before.intersects(wanted), "{before:?}");
        set(&fs, path, before | wanted).unwrap();
        assert_eq!(flags(&fs, path), before | wanted);
    }
    fs.write("new", "n");
    set(&fs, "new", flags(&fs, "new") | IFlags::NODUMP).unwrap();
    fs.remount();
    for path in ["d/f", "d", "new"] {
        assert!(flags(&fs, path).contains(IFlags::NODUMP), "{path}");
        let below = std::fs::File::open(fs.upper(path)).unwrap();
        assert_eq!(ioctl_getflags(below).unwrap(), flags(&fs, path), "{path}");
    }
    set(&fs, "d/f", flags(&fs, "d/f") - wanted).unwrap();
    assert!(!flags(&fs, "d/f").intersects(wanted));
    fs.assert_state(
        "d/f 'data' 0644; d/g 'g'; l -> d; new 'n'",
        "d/f 'data' 0644; new 'n'",
    );
}

#[test]
fn asking_for_flags_copies_nothing() {
    requires!(is_root(), NO_IMAGE);
    let mut fs = mount();
    assert_eq!(fs.sh("lsattr -d d d/f l/g | wc -l"), "3");
    let below = std::fs::File::open(fs.lower(0, "d/f")).unwrap();
    assert_eq!(flags(&fs, "d/f"), ioctl_getflags(below).unwrap());
    fs.assert_state("d/f 'data'; d/g 'g'; l -> d", "");
}

#[test]
fn immutable_and_append_only_are_refused_or_hold() {
    requires!(is_root(), NO_IMAGE);
    let fs = mount();
    for flag in [IFlags::IMMUTABLE, IFlags::APPEND] {
        let now = flags(&fs, "d/f");
        let answer = set(&fs, "d/f", now | flag);
        if deviates("nothing would keep the kernel from letting others change our object") {
            assert_eq!(answer, Err(Errno::OPNOTSUPP));
            fs.chmod("d/f", 0o600);
        } else {
            answer.unwrap();
            let denied = rustix::fs::chmod(fs.path("d/f"), 0o600.into());
            assert_eq!(denied, Err(Errno::PERM));
            set(&fs, "d/f", now).unwrap();
        }
    }
}

#[test]
fn a_file_is_no_terminal() {
    let fs = Fixture::new().lower("f 'data'").mount();
    assert_eq!(fs.sh("[ -t 0 ] < f || echo no"), "no");
}
