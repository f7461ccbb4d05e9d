//! The rules of the house: layering, confinement, file length, names of tests.
//!
//! Sources are read as text. Comments and the unit tests at the end of a file do not count.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// At most this many lines of a source file, its unit tests aside.
const LONGEST: usize = 600;

/// Who may name whom by `crate::`, besides itself. What is not listed here is forbidden. `fuse` speaks
/// the vocabulary of `layer` that passes through `overlay`, and none of its actions.
const LAYERING: &[(&str, &[&str])] = &[
    ("main", &[]),
    ("cli", &["fuse", "overlay", "layer", "changes", "image"]),
    (
        "fuse",
        &[
            "overlay",
            "layer::attr",
            "layer::name",
            "layer::error",
            "layer::file_flags",
            "layer::best_effort",
            "layer::describe",
            "layer::ids",
            "layer::own_ids",
        ],
    ),
    ("overlay", &["layer"]),
    ("image", &["layer", "changes"]),
    ("changes", &["layer"]),
    ("layer", &[]),
];

/// Text that only the files whose path starts so may contain.
const CONFINED: &[(&str, &[&str])] = &[
    ("fuser::", &["fuse"]),
    ("clap::", &["cli"]),
    ("clap_mangen::", &["cli"]),
    ("clap_complete::", &["cli"]),
    ("tar::", &["image"]),
    ("\".wh.", &["layer/mark.rs"]),
    ("\"trusted.overlay.", &["layer/mark.rs"]),
    ("\"user.overlay.", &["layer/mark.rs"]),
    ("fuseoverlayfs.opaque", &["layer/mark.rs"]),
    (
        "containers.override_stat",
        &["layer/mark.rs", "layer/override_stat.rs"],
    ),
    ("rdev == 0", &["layer/mark.rs"]),
    ("unsafe ", &["layer/sys.rs"]),
    ("println!", &["cli/output.rs"]),
];

/// A source file below `src`.
struct Source {
    /// Relative to `src`.
    path: String,
    /// The lines before the unit tests, without comments.
    code: Vec<(usize, String)>,
    /// How many lines there are before the unit tests.
    length: usize,
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files_below(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files_below(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn sources() -> Vec<Source> {
    let root = repository().join("src");
    let mut paths = Vec::new();
    files_below(&root, &mut paths);
    paths.retain(|path| !path.ends_with("tests.rs"));
    paths.sort();
    assert!(paths.len() > 20, "no sources below {}", root.display());
    paths
        .iter()
        .map(|path| {
            let text = fs::read_to_string(path).unwrap();
            let code = text.split("\n#[cfg(test)]\nmod ").next().unwrap();
            Source {
                path: path
                    .strip_prefix(&root)
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .to_owned(),
                length: code.lines().count(),
                code: code
                    .lines()
                    .enumerate()
                    .filter(|(_, line)| !line.trim_start().starts_with("//"))
                    .map(|(index, line)| (index + 1, line.to_owned()))
                    .collect(),
            }
        })
        .collect()
}

impl Source {
    /// The top module: `overlay` for `overlay.rs` and `overlay/node.rs`.
    fn module(&self) -> &str {
        self.path.split('/').next().unwrap().trim_end_matches(".rs")
    }
}

fn assert_none(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

#[test]
fn a_module_uses_only_those_below_it() {
    let mut complaints = Vec::new();
    for source in sources().iter().filter(|source| source.module() != "lib") {
        let module = source.module();
        let Some((_, below)) = LAYERING.iter().find(|(name, _)| *name == module) else {
            complaints.push(format!(
                "src/{}: '{module}' is not in the layering table",
                source.path
            ));
            continue;
        };
        for (number, line) in &source.code {
            for (at, _) in line.match_indices("crate::") {
                let used = &line[at + "crate::".len()..];
                let allowed = std::iter::once(&module).chain(below.iter());
                if !allowed
                    .into_iter()
                    .any(|allowed| starts_with_path(used, allowed))
                {
                    let line = line.trim();
                    complaints.push(format!(
                        "src/{}:{number}: '{module}' may not: {line}",
                        source.path
                    ));
                }
            }
        }
    }
    assert_none(&complaints);
}

/// Whether the path `used` is `allowed` or something in it.
fn starts_with_path(used: &str, allowed: &str) -> bool {
    let rest = used.strip_prefix(allowed);
    rest.is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_'))
}

#[test]
fn crates_marks_unsafe_code_and_output_stay_in_their_rooms() {
    let mut complaints = Vec::new();
    for source in sources() {
        for (number, line) in &source.code {
            for (text, homes) in CONFINED {
                let found = line.match_indices(text).any(|(at, _)| {
                    // Not as the end of a longer word.
                    !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_')
                        || text.starts_with('"')
                });
                if found && !homes.iter().any(|home| source.path.starts_with(home)) {
                    complaints.push(format!(
                        "src/{}:{number}: '{text}' belongs into {homes:?}",
                        source.path
                    ));
                }
            }
        }
    }
    assert_none(&complaints);
}

#[test]
fn source_files_are_short_and_none_is_called_mod() {
    let mut complaints = Vec::new();
    for source in sources() {
        if source.length > LONGEST {
            complaints.push(format!(
                "src/{}: {} lines, at most {LONGEST}",
                source.path, source.length
            ));
        }
        if Path::new(&source.path).ends_with("mod.rs") {
            complaints.push(format!("src/{}: name it after its module", source.path));
        }
    }
    assert_none(&complaints);
}

#[test]
fn nothing_is_left_to_do_in_the_sources() {
    let words = ["TODO", "FIXME", "XXX", "todo!(", "unimplemented!("];
    let mut paths = Vec::new();
    for dir in ["src", "tests", "benches"] {
        files_below(&repository().join(dir), &mut paths);
    }
    let mut complaints = Vec::new();
    for path in paths.iter().filter(|path| !path.ends_with("tests/tidy.rs")) {
        for (index, line) in fs::read_to_string(path).unwrap().lines().enumerate() {
            if words.iter().any(|word| line.contains(word)) {
                complaints.push(format!("{}:{}: {}", path.display(), index + 1, line.trim()));
            }
        }
    }
    assert_none(&complaints);
}

fn readme() -> String {
    fs::read_to_string(repository().join("README.md")).expect("README.md")
}

/// What stands between backquotes in `text`.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// `posix::unlink::name` for every test function below `tests`.
fn test_names() -> BTreeSet<String> {
    let root = repository().join("tests");
    let mut paths = Vec::new();
    files_below(&root, &mut paths);
    let mut names = BTreeSet::new();
    for path in paths {
        let module = path.strip_prefix(&root).unwrap().with_extension("");
        let module = module.to_str().unwrap().replace('/', "::");
        let text = fs::read_to_string(&path).unwrap();
        let tests = text.split("#[test]").skip(1);
        for name in tests.filter_map(|test| test.split_once("fn ")?.1.split_once('(')) {
            names.insert(format!("{module}::{}", name.0));
        }
    }
    names
}

#[test]
fn every_row_of_the_readmes_semantics_table_names_a_test_that_exists() {
    let (readme, names) = (readme(), test_names());
    let rows: Vec<_> = readme
        .lines()
        .skip_while(|line| !(line.starts_with('|') && line.contains("same as the kernel?")))
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .collect();
    assert!(
        rows.len() > 20,
        "README.md: no semantics table, or a short one: {} rows",
        rows.len()
    );
    let mut complaints = Vec::new();
    for row in rows {
        let proof = row.trim_end_matches([' ', '|']).rsplit('|').next().unwrap();
        let mut tests = quoted(proof).peekable();
        if tests.peek().is_none() {
            complaints.push(format!("no test: {row}"));
        }
        complaints.extend(
            tests
                .filter(|test| !names.contains(*test))
                .map(|test| format!("no such test: {test}")),
        );
    }
    assert_none(&complaints);
}

fn help(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_plyfs"))
        .args(arguments)
        .arg("--help")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "plyfs {arguments:?} --help: {output:?}"
    );
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn every_option_the_readme_names_is_in_the_help_and_every_flag_of_mount_is_in_the_readme() {
    let readme = readme();
    let mount = help(&["mount"]);
    let others = [
        "umount", "mounts", "load", "import", "images", "history", "inspect", "tree", "save", "gc",
        "uppers", "fsck", "diff", "commit", "convert", "check",
    ];
    let others: String = others.iter().map(|command| help(&[command])).collect();
    let all = [help(&[]), mount.clone(), others].concat();
    // Those of the scripts, which have a help of their own.
    let scripts = ["--quick", "--long"];
    let named = quoted(&readme)
        .flat_map(str::split_whitespace)
        .filter(|word| word.starts_with("--") && word.len() > 2)
        .map(|word| {
            word.split('=')
                .next()
                .unwrap()
                .trim_end_matches(|c: char| !c.is_alphanumeric())
        });
    let mut complaints: Vec<_> = named
        .filter(|flag| !scripts.contains(flag) && !all.contains(flag))
        .map(|flag| format!("README.md names {flag}, no help does"))
        .collect();
    let table = readme
        .lines()
        .skip_while(|line| !line.starts_with("| option "))
        .skip(2)
        .take_while(|line| line.starts_with('|'));
    for name in table.filter_map(|row| quoted(row).next()) {
        let name = name.split(['=', ' ']).next().unwrap();
        if !mount.contains(name) {
            complaints.push(format!(
                "README.md names the option {name}, `plyfs mount --help` does not"
            ));
        }
    }
    for flag in mount
        .split_whitespace()
        .filter(|word| word.starts_with("--") && word.len() > 2)
    {
        let flag = flag.split(['[', '=']).next().unwrap();
        let flag = flag.trim_end_matches(|c: char| !c.is_alphanumeric());
        if !readme.contains(flag) {
            complaints.push(format!(
                "`plyfs mount --help` has {flag}, README.md does not"
            ));
        }
    }
    assert_none(&complaints);
}
