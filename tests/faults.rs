//! Errors of the upper's filesystem, from whatever call they come: they reach the caller as they are, nothing
//! half-made is left, and the mount goes on.
//!
//! Each test does one operation on plyfs, and strace makes the daemon's n-th call of each mutating system call fail,
//! for every n. Afterwards the view is the one before or after the operation, entirely; the workdir is empty; the
//! operation succeeds when it is done again; and a new mount shows the same.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::symlink;

use rustix::io::Errno;

use crate::support::disk::{View, read};
use crate::support::strace::{Tracer, calls};
use crate::support::tree::{compare, parse};
use crate::support::{Fixture, Mounted, is_kernel, is_root, requires};

const NEEDS: &str = "strace on the daemon needs root";
const DISK: &[Errno] = &[Errno::IO, Errno::NOSPC];
const ALL: &[Errno] = &[Errno::IO, Errno::NOSPC, Errno::DQUOT, Errno::NOMEM];

type Act = fn(&Mounted) -> io::Result<()>;

struct Operation {
    lower: &'static str,
    upper: &'static str,
    options: &'static str,
    /// The view before and after it.
    before: &'static str,
    after: &'static str,
    act: Act,
}

const NOTHING: Operation = Operation {
    lower: "",
    upper: "",
    // With all calls there are.
    options: "fsync=strict",
    before: "",
    after: "",
    act: |_| Ok(()),
};

impl Operation {
    fn mount(&self) -> Mounted {
        let fs = Fixture::new()
            .lower(self.lower)
            .upper(self.upper)
            .option(self.options)
            .mount();
        // Looked up before, so that what is counted is the operation.
        assert!(shows(&fs, self.before), "the layers are wrong");
        fs
    }

    /// Its mutating calls and how many of each.
    fn calls(&self) -> Vec<(String, usize)> {
        let fs = self.mount();
        let record = fs.aside("calls");
        let tracer = Tracer::attach(fs.daemon(), &record, None).unwrap();
        (self.act)(&fs).unwrap();
        tracer.detach().unwrap();
        assert!(shows(&fs, self.after), "the operation does something else");
        calls(&record).into_iter().collect()
    }

    /// Does it with one failing call.
    fn fail(&self, call: &str, n: usize, errno: Errno) -> Result<(), String> {
        let mut fs = self.mount();
        let inject = format!("{call}:error={}:when={n}", errno.raw_os_error());
        let tracer = Tracer::attach(fs.daemon(), &fs.aside("calls"), Some(&inject))?;
        let result = (self.act)(&fs).map_err(|error| Errno::from_io_error(&error));
        tracer.detach()?;
        let (before, after) = (shows(&fs, self.before), shows(&fs, self.after));
        match result {
            Ok(()) if !after => return Err("it succeeds and changes nothing".to_owned()),
            Err(got) if got != Some(errno) => return Err(format!("the caller gets {got:?}")),
            Err(_) if !before && !after => return Err("it is half done".to_owned()),
            _ => {}
        }
        // Where removing is what fails, the next mount does it.
        let temporaries = fs.temporaries();
        if !call.contains("unlink") && !temporaries.is_empty() {
            return Err(format!("left in the workdir: {temporaries:?}"));
        }
        // A change that could not be synced has happened; its error says that it may not last, and the kernel goes
        // on showing what it knew.
        let unsynced = call == "fsync";
        if !after && !unsynced {
            (self.act)(&fs).map_err(|error| format!("it fails for ever: {error}"))?;
        }
        for when in ["when done again", "after a remount"] {
            if !unsynced && !shows(&fs, self.after) {
                return Err(format!("{when}, the view is wrong"));
            }
            fs.remount();
        }
        if unsynced && !shows(&fs, self.before) && !shows(&fs, self.after) {
            return Err("after a remount it is half done".to_owned());
        }
        let temporaries = fs.temporaries();
        if temporaries.is_empty() {
            Ok(())
        } else {
            Err(format!("the next mount leaves {temporaries:?}"))
        }
    }

    #[track_caller]
    fn fails_cleanly(&self, errnos: &[Errno]) {
        let mut cases = 0;
        let mut problems = Vec::new();
        for (call, count) in self.calls() {
            for n in 1..=count {
                for errno in errnos {
                    cases += 1;
                    if let Err(problem) = self.fail(&call, n, *errno) {
                        problems.push(format!("{errno:?} from {call} number {n}: {problem}"));
                    }
                }
            }
        }
        println!("{cases} failures");
        assert!(cases > 0, "no system call of the daemon was seen");
        assert!(problems.is_empty(), "\n{}", problems.join("\n"));
    }
}

fn shows(fs: &Mounted, text: &str) -> bool {
    let mut found = read(&fs.path(""), View::Merged);
    found.retain(|entry| entry.path != b".");
    compare(&parse(text), &found).is_ok()
}

fn append(fs: &Mounted, path: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().append(true).open(fs.path(path))?;
    file.write_all(b"+")
}

#[test]
fn a_copy_up_that_fails_leaves_the_lower_file_and_nothing_else() {
    requires!(is_root() && !is_kernel(), NEEDS);
    let operation = Operation {
        lower: "d/f 'old' 0640 user.k='v'; d/g 'g'",
        before: "d/f 'old' 0640 user.k='v'; d/g 'g'",
        after: "d/f 'old+' 0640 user.k='v'; d/g 'g'",
        act: |fs| append(fs, "d/f"),
        ..NOTHING
    };
    operation.fails_cleanly(ALL);
}

#[test]
fn a_copy_up_of_much_data_that_fails_leaves_the_lower_file_and_nothing_else() {
    requires!(is_root() && !is_kernel(), NEEDS);
    let operation = Operation {
        lower: "f pattern=300000",
        before: "f pattern=300000 0644",
        after: "f pattern=300000 0600",
        act: |fs| Ok(rustix::fs::chmod(fs.path("f"), 0o600.into())?),
        ..NOTHING
    };
    operation.fails_cleanly(DISK);
}

#[test]
fn data_that_cannot_follow_its_metadata_stays_in_the_lower() {
    requires!(is_root() && !is_kernel(), NEEDS);
    let operation = Operation {
        lower: "f '0123456789' 0644",
        options: "metacopy=on,fsync=strict",
        before: "f '0123456789'",
        after: "f '0123456789+'",
        act: |fs| {
            rustix::fs::chmod(fs.path("f"), 0o600.into())?;
            append(fs, "f")
        },
        ..NOTHING
    };
    operation.fails_cleanly(DISK);
}

#[test]
fn a_copy_up_of_a_hard_linked_file_that_fails_leaves_the_names_linked() {
    requires!(is_root() && !is_kernel(), NEEDS);
    let operation = Operation {
        lower: "d/one 'x'; d/two = d/one",
        before: "d/one 'x'; d/two = d/one",
        after: "d/one 'x+'; d/two = d/one",
        act: |fs| append(fs, "d/one"),
        ..NOTHING
    };
    operation.fails_cleanly(DISK);
}

#[test]
fn a_creation_that_fails_leaves_no_name() {
    requires!(is_root() && !is_kernel(), NEEDS);
    let act: [(&str, Act); 4] = [
        ("d/f; d/new", |fs| {
            File::create_new(fs.path("d/new")).map(drop)
        }),
        ("d/f; gone", |fs| {
            File::create_new(fs.path("gone")).map(drop)
        }),
        ("d/f; gone/", |fs| fs::create_dir(fs.path("gone"))),
        ("d/f; d/l -> f", |fs| symlink("f", fs.path("d/l"))),
    ];
    for (after, act) in act {
        let operation = Operation {
            lower: "d/f; gone 'g'",
            upper: "gone whiteout",
            before: "d/f",
            after,
            act,
            ..NOTHING
        };
        operation.fails_cleanly(DISK);
    }
}

#[test]
fn a_write_that_fails_leaves_the_file_as_it_was() {
    requires!(is_root() && !is_kernel(), NEEDS);
    let operation = Operation {
        upper: "f 'x'",
        before: "f 'x'",
        after: "f 'x+'",
        act: |fs| append(fs, "f"),
        ..NOTHING
    };
    operation.fails_cleanly(ALL);
}

#[test]
fn a_removal_that_fails_leaves_the_name_or_takes_it_away() {
    requires!(is_root() && !is_kernel(), NEEDS);
    for (before, upper) in [("f 'f'", ""), ("f 'u'", "f 'u'")] {
        let operation = Operation {
            lower: "f 'f'",
            upper,
            before,
            act: |fs| fs::remove_file(fs.path("f")),
            ..NOTHING
        };
        operation.fails_cleanly(DISK);
    }
}

#[test]
fn a_rename_that_fails_leaves_one_of_both_names() {
    requires!(is_root() && !is_kernel(), NEEDS);
    let file = Operation {
        lower: "d/f 'f'; e/g",
        before: "d/f 'f'; e/g",
        after: "d/; e/g 'f'",
        act: |fs| fs::rename(fs.path("d/f"), fs.path("e/g")),
        ..NOTHING
    };
    file.fails_cleanly(DISK);
    let directory = Operation {
        lower: "d/f 'f'; e/g",
        before: "d/f 'f'; e/g",
        after: "e/d/f 'f'; e/g",
        act: |fs| fs::rename(fs.path("d"), fs.path("e/d")),
        ..NOTHING
    };
    directory.fails_cleanly(DISK);
}

#[test]
fn a_filesystem_that_knows_no_flags_of_renameat2_takes_every_change() {
    requires!(!is_kernel(), "injects into the daemon");
    let mut fs = Fixture::new()
        .lower(
            "d/f 'f'; d/e/g 'g'; file 'x'; empty/; s -> t; one 'x'; two = one; tree/in 'i'; over/gone; w 'w'; top/sub/a",
        )
        .mount();
    let record = fs.aside("calls");
    let tracer = Tracer::attach(fs.daemon(), &record, Some("renameat2:error=EINVAL")).unwrap();
    fs.remove_tree("d");
    fs.unlink("file");
    fs.mkdir("file");
    fs.write("file/new", "n");
    fs.rmdir("empty");
    fs.mkdir("empty");
    fs.unlink("s");
    fs.symlink("u", "s");
    fs.append("two", "+");
    fs.rename("tree", "moved");
    fs.mkdir("tree");
    fs.unlink("over/gone");
    fs.rename("moved", "over");
    fs.unlink("w");
    fs.rename("one", "w");
    fs.mkdir("fresh");
    fs.rename("fresh", "d");
    fs.remove_tree("top/sub");
    let exchanged = rustix::fs::renameat_with(
        rustix::fs::CWD,
        fs.path("s"),
        rustix::fs::CWD,
        fs.path("w"),
        rustix::fs::RenameFlags::EXCHANGE,
    );
    assert_eq!(exchanged, Err(Errno::INVAL));
    tracer.detach().unwrap();
    assert!(calls(&record)["renameat2"] > 5);
    fs.assert_state(
        "d/; file/new 'n'; empty/; s -> u; two 'x+'; w = two; over/in 'i'; tree/; top/",
        "d/ opaque; file/ opaque; file/new 'n'; empty/ opaque; s -> u; one whiteout; two 'x+'; w = two;
         over/ redirect=tree; tree/ opaque; top/; top/sub whiteout",
    );
}

/// A change on a filesystem without flags of renameat2(2), and what shows before and after it.
struct Flagless {
    upper: &'static str,
    act: fn(&Mounted) -> io::Result<()>,
    before: &'static str,
    after: &'static str,
}

impl Flagless {
    const FLAGS: &str = "renameat2:error=EINVAL";

    /// Does it under strace with more injections; the calls that were seen.
    fn run(&self, inject: &str) -> (Mounted, Vec<(String, usize)>) {
        let fs = Fixture::new()
            .lower("old 'o'; target 't'; dir/in 'i'; gone/x")
            .upper(self.upper)
            .not_for_the_kernel()
            .mount();
        assert!(shows(&fs, self.before), "{}", self.upper);
        let record = fs.aside("calls");
        let inject = format!("{} {inject}", Self::FLAGS);
        let tracer = Tracer::attach(fs.daemon(), &record, Some(&inject)).unwrap();
        (self.act)(&fs).ok();
        if inject.contains("KILL") {
            tracer.finish().unwrap();
        } else {
            tracer.detach().unwrap();
        }
        (fs, calls(&record).into_iter().collect())
    }

    fn survives_kills(&self) {
        let (fs, counts) = self.run("");
        assert!(shows(&fs, self.after), "it does something else");
        let mut kills = 0;
        for (call, count) in counts {
            // What moves, makes or removes names.
            let moves = ["rename", "link", "mknod", "mkdir"];
            if call == "renameat2" || !moves.iter().any(|word| call.contains(word)) {
                continue;
            }
            for n in 1..=count {
                let (mut fs, _) = self.run(&format!("{call}:signal=KILL:when={n}"));
                fs.kill();
                fs.mount().unwrap();
                let one = shows(&fs, self.before) || shows(&fs, self.after);
                assert!(one, "killed at {call} number {n}: {:?}", fs.names(""));
                kills += 1;
            }
        }
        assert!(kills > 2, "{kills} kills");
    }
}

#[test]
fn without_flags_of_renameat2_a_kill_shows_no_name_twice_and_nothing_deleted() {
    requires!(!is_kernel(), "injects into the daemon");
    for change in [
        Flagless {
            upper: "target whiteout",
            act: |fs| fs::rename(fs.path("old"), fs.path("target")),
            before: "old 'o'; dir/in 'i'; gone/x",
            after: "target 'o'; dir/in 'i'; gone/x",
        },
        Flagless {
            upper: "gone whiteout",
            act: |fs| fs::rename(fs.path("dir"), fs.path("gone")),
            before: "old 'o'; target 't'; dir/in 'i'",
            after: "old 'o'; target 't'; gone/in 'i'",
        },
        Flagless {
            upper: "",
            act: |fs| fs::rename(fs.path("old"), fs.path("new")),
            before: "old 'o'; target 't'; dir/in 'i'; gone/x",
            after: "new 'o'; target 't'; dir/in 'i'; gone/x",
        },
        Flagless {
            upper: "gone/x whiteout",
            act: |fs| fs::remove_dir(fs.path("gone")),
            before: "old 'o'; target 't'; dir/in 'i'; gone/",
            after: "old 'o'; target 't'; dir/in 'i'",
        },
        Flagless {
            upper: "gone whiteout",
            act: |fs| fs::create_dir(fs.path("gone")),
            before: "old 'o'; target 't'; dir/in 'i'",
            after: "old 'o'; target 't'; dir/in 'i'; gone/",
        },
    ] {
        change.survives_kills();
    }
}
