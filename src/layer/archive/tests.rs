use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;

use rustix::io::Errno;

use super::index::Index;
use super::testing::{Head, Tar};
use super::*;
use crate::layer::attr::{Time, encode_dev};

fn indexed(tar: &[u8]) -> std::result::Result<Index, IndexError> {
    let mut indexer = Indexer::new(Limits::default());
    let written = indexer.write_all(tar);
    let index = indexer.finish();
    assert!(written.is_ok() || index.is_err());
    index
}

fn index(tar: Tar) -> Index {
    indexed(&tar.end()).unwrap()
}

fn problem(tar: Tar) -> Problem {
    indexed(&tar.end()).unwrap_err().problem
}

/// A whole layer as lines, path to description; content included.
fn tree_of(tar: &[u8]) -> BTreeMap<String, String> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(tar).unwrap();
    let index = build_index(&file).unwrap();
    assert_eq!(index.bytes(), indexed(tar).unwrap().bytes());
    index.verify().unwrap();
    let archive = Arc::new(Archive::new(file.into(), index, 0, None));
    let mut lines = BTreeMap::new();
    let mut left = vec![(String::new(), ROOT)];
    while let Some((path, number)) = left.pop() {
        let inode = archive.index.inode(number).unwrap();
        let mut text = describe(&archive, number);
        for entry in archive.index.list(&inode).into_iter().flatten() {
            let entry = entry.unwrap();
            let name = entry.name.escape_ascii();
            match entry.inode {
                Some(child) => left.push((format!("{path}/{name}"), child)),
                None => text.extend([" -", &name.to_string()]),
            }
        }
        lines.insert(path, text);
    }
    lines
}

fn describe(archive: &Arc<Archive>, number: u32) -> String {
    let attr = archive.stat(number).unwrap();
    let inode = archive.index.inode(number).unwrap();
    let mut text = match attr.kind {
        Kind::File => {
            let size = usize::try_from(attr.size).unwrap();
            let mut content = vec![1; size + 3];
            let file = content_of(archive, number);
            assert_eq!(file.read_at(&mut content, 0).unwrap(), size);
            format!("'{}'", content[..size].escape_ascii())
        }
        Kind::Directory => "dir".to_owned(),
        Kind::Symlink => {
            format!("-> {}", archive.link_target(number).unwrap().escape_ascii())
        }
        Kind::CharDevice => format!("char {}", attr.rdev),
        Kind::BlockDevice => format!("block {}", attr.rdev),
        Kind::Fifo => "fifo".to_owned(),
        Kind::Socket => unreachable!(),
    };
    if inode.opaque {
        text.push_str(" opaque");
    }
    if inode.implied {
        text.push_str(" implied");
    }
    if attr.nlink > 1 && attr.kind != Kind::Directory {
        text.extend([" links=", &attr.nlink.to_string()]);
    }
    text
}

fn content_of(archive: &Arc<Archive>, number: u32) -> Archived {
    content(archive, number).unwrap()
}

/// As [`tree_of`], the root left out.
#[track_caller]
fn assert_tree(tar: Tar, expected: &[(&str, &str)]) {
    let mut tree = tree_of(&tar.end());
    tree.remove("");
    let tree: Vec<_> = tree
        .iter()
        .map(|(path, text)| (&path[1..], text.as_str()))
        .collect();
    assert_eq!(tree, expected);
}

#[track_caller]
fn inode_at(index: &Index, path: &str) -> Inode {
    let mut inode = index.inode(ROOT).unwrap();
    for part in path.split('/') {
        let entry = index.find(&inode, part.as_bytes()).unwrap();
        let number = entry.unwrap_or_else(|| panic!("no {part} of {path}")).inode;
        inode = index.inode(number.unwrap()).unwrap();
    }
    inode
}

#[test]
fn all_kinds_of_files_of_a_ustar_archive_are_in_the_index() {
    let device = |kind, major, minor| {
        Head::new(kind, format!("dev{}", char::from(kind)))
            .octal(329, 8, major)
            .octal(337, 8, minor)
    };
    let tar = Tar::default()
        .dir("d/")
        .file("d/f", "text")
        .symlink("d/l", "../d/f")
        .hard_link("d/h", "d/f")
        .add(device(b'3', 1, 3), b"")
        .add(device(b'4', 8, 300), b"")
        .add(device(b'6', 0, 0), b"")
        .add(Head::new(b'7', "contiguous"), b"c")
        .add(Head::new(0, "old"), b"o")
        .add(Head::new(0, "olddir/"), b"");
    let (char, block) = (encode_dev(1, 3), encode_dev(8, 300));
    assert_tree(
        tar,
        &[
            ("contiguous", "'c'"),
            ("d", "dir"),
            ("d/f", "'text' links=2"),
            ("d/h", "'text' links=2"),
            ("d/l", "-> ../d/f"),
            ("dev3", &format!("char {char}")),
            ("dev4", &format!("block {block}")),
            ("dev6", "fifo"),
            ("old", "'o'"),
            ("olddir", "dir"),
        ],
    );
}

#[test]
fn attributes_come_from_the_header_and_pax_counts_over_it() {
    let head = || {
        Head::new(b'0', "f")
            .mode(0o104_755)
            .octal(108, 8, 1000)
            .octal(116, 8, 2000)
            .mtime(1_600_000_000)
    };
    let plain = inode_at(&index(Tar::default().add(head(), b"x")), "f");
    assert_eq!((plain.mode, plain.uid, plain.gid), (0o4755, 1000, 2000));
    assert_eq!(
        (plain.mtime, plain.size),
        (
            Time {
                sec: 1_600_000_000,
                nsec: 0
            },
            1
        )
    );
    let tar = Tar::default()
        .pax(&[
            ("uid", b"4000000000"),
            ("gid", b"7"),
            ("mtime", b"-1.25"),
            ("atime", b"9"),
        ])
        .add(head(), b"");
    let inode = inode_at(&index(tar), "f");
    assert_eq!((inode.uid, inode.gid), (4_000_000_000, 7));
    assert_eq!(
        inode.mtime,
        Time {
            sec: -2,
            nsec: 750_000_000
        }
    );
    let big = head().bytes(108, &[0x80, 0, 0, 0, 0xee, 0x6b, 0x28, 0]);
    assert_eq!(
        inode_at(&index(Tar::default().add(big, b"")), "f").uid,
        4_000_000_000
    );
}

#[test]
fn names_of_every_dialect_are_read() {
    let long = "l".repeat(120);
    let deep = format!("{0}/{0}", "p".repeat(90));
    let gnu = Head::new(b'0', "short").gnu();
    let tar = Tar::default()
        .add(Head::new(b'0', "name").bytes(345, b"some/prefix"), b"")
        .add(
            Head::new(b'0', "go17")
                .gnu()
                .bytes(345, b"from-go-before-1.8"),
            b"",
        )
        .add(
            Head::new(b'0', "times")
                .gnu()
                .bytes(345, b"14222222222\0")
                .bytes(357, b"14222222222\0"),
            b"",
        )
        .add(
            Head::new(b'0', "star")
                .bytes(345, b"sp")
                .bytes(508, b"tar\0"),
            b"",
        )
        .long(b'L', long.as_bytes())
        .add(gnu.clone(), b"")
        .long(b'K', deep.as_bytes())
        .long(b'L', b"link")
        .add(Head::new(b'2', "x").gnu(), b"")
        .pax(&[("path", "ü/\u{1f600}".as_bytes()), ("comment", b"c")])
        .add(Head::new(b'0', "x"), b"")
        .pax(&[("path", b"bytes \xff\n\x1b[31m")])
        .add(Head::new(b'0', "x"), b"");
    let tree = tree_of(&tar.end());
    let names: Vec<_> = tree
        .keys()
        .filter(|path| !path.is_empty())
        .map(|path| &path[1..])
        .collect();
    let long = long.as_str();
    assert_eq!(
        names,
        [
            r"\xc3\xbc",
            r"\xc3\xbc/\xf0\x9f\x98\x80",
            r"bytes \xff\n\x1b[31m",
            "from-go-before-1.8",
            "from-go-before-1.8/go17",
            "link",
            long,
            "some",
            "some/prefix",
            "some/prefix/name",
            "sp",
            "sp/star",
            "times",
        ]
    );
    assert_eq!(tree["/link"], format!("-> {deep}"));
}

#[test]
fn a_gnu_long_name_counts_over_a_pax_path_and_the_last_of_two_headers_counts() {
    let names = |tar: Tar| tree_of(&tar.end()).into_keys().nth(1).unwrap();
    let entry = Head::new(b'0', "header");
    let tar = Tar::default()
        .pax(&[("path", b"pax")])
        .long(b'L', b"long")
        .add(entry.clone(), b"");
    assert_eq!(names(tar), "/long");
    let tar = Tar::default()
        .pax(&[("path", b"one"), ("mtime", b"5")])
        .pax(&[("path", b"two")]);
    let tar = tar.add(entry.clone(), b"");
    let mtime = inode_at(&index(tar.clone()), "two").mtime;
    assert_eq!(mtime, Time::default());
    assert_eq!(names(tar), "/two");
    let tar = Tar::default()
        .long(b'L', b"first")
        .long(b'L', b"second")
        .add(entry, b"");
    assert_eq!(names(tar), "/second");
}

#[test]
fn a_size_in_pax_counts_over_that_of_the_header_whichever_is_larger() {
    let inner = Tar::default().file("smuggled", "").end();
    let length = inner.len().to_string();
    let pax = Tar::default().pax(&[("size", length.as_bytes())]);
    let tar = pax.raw(Head::new(b'0', "f"), &inner).file("g", "");
    let index = index(tar);
    assert_eq!(
        (index.inodes(), inode_at(&index, "f").size),
        (3, inner.len() as u64)
    );
    let reverse = Tar::default()
        .pax(&[("size", b"0")])
        .raw(Head::new(b'0', "f").size(512), b"");
    assert_tree(reverse.file("g", "x"), &[("f", "''"), ("g", "'x'")]);
}

#[test]
fn a_newline_in_an_xattr_does_not_hide_the_size_behind_it() {
    let inner = Tar::default().file("smuggled", "").end();
    let tar = Tar::default()
        .pax(&[
            ("SCHILY.xattr.user.a", b"\x01\n\xff"),
            ("size", inner.len().to_string().as_bytes()),
        ])
        .raw(Head::new(b'0', "f"), &inner);
    assert_eq!(index(tar).inodes(), 2);
}

#[test]
fn links_devices_and_directories_have_no_body_whatever_their_size_says() {
    for kind in [b'1', b'2', b'3', b'4', b'5', b'6'] {
        let head = Head::new(kind, "x").link("f").size(512);
        let tar = Tar::default()
            .file("f", "")
            .raw(head, b"")
            .file("g", "seen");
        assert_eq!(tree_of(&tar.end())["/g"], "'seen'", "{}", char::from(kind));
    }
}

#[test]
fn xattrs_are_kept_by_the_name_a_layer_would_have_on_disk() {
    let caps = b"\x01\0\0\x02\0\n\0\0=";
    let xattrs: &[(&str, &[u8])] = &[
        ("SCHILY.xattr.security.capability", caps),
        ("SCHILY.xattr.user.empty", b""),
        ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        ("SCHILY.xattr.user.twice", b"1"),
        ("SCHILY.xattr.user.twice", b"2"),
    ];
    let tar = Tar::default()
        .pax(xattrs)
        .dir("d")
        .pax(xattrs)
        .file("f", "");
    let index = index(tar);
    let dir = inode_at(&index, "d");
    let found: Vec<_> = index.xattrs(&dir).collect();
    let expected: [(&[u8], &[u8]); 4] = [
        (b"security.capability", caps),
        (b"trusted.overlay.overlay.opaque", b"y"),
        (b"user.empty", b""),
        (b"user.twice", b"2"),
    ];
    assert_eq!(found, expected);
    assert!(!dir.opaque);
    assert_eq!(
        index.xattrs(&inode_at(&index, "f")).collect::<Vec<_>>(),
        expected
    );
}

#[test]
fn the_same_xattrs_of_many_files_are_kept_once() {
    let tar = |count| {
        (0..count).fold(Tar::default(), |tar: Tar, n| {
            tar.pax(&[("SCHILY.xattr.security.selinux", &[b'x'; 1000])])
                .file(&format!("f{n}"), "")
        })
    };
    let (one, many) = (index(tar(1)), index(tar(100)));
    assert!(many.bytes().len() - one.bytes().len() < 99 * 120);
}

#[test]
fn missing_parents_are_implied_and_become_real_when_they_come() {
    assert_tree(
        Tar::default()
            .file("a/b/f", "")
            .dir("a/c/d")
            .add(Head::new(b'5', "a").mode(0o700), b""),
        &[
            ("a", "dir"),
            ("a/b", "dir implied"),
            ("a/b/f", "''"),
            ("a/c", "dir implied"),
            ("a/c/d", "dir"),
        ],
    );
    let index = index(Tar::default().file("a/f", ""));
    let implied = inode_at(&index, "a");
    assert_eq!(
        (implied.mode, implied.uid, implied.mtime),
        (0o755, 0, Time::default())
    );
    assert!(index.inode(ROOT).unwrap().implied);
}

#[test]
fn an_entry_for_the_root_gives_it_attributes_and_must_be_a_directory() {
    for name in ["./", ".", "/", "//", "./."] {
        let head = Head::new(b'5', name).mode(0o711);
        let index = index(Tar::default().add(head, b"").file("f", ""));
        let root = index.inode(ROOT).unwrap();
        assert_eq!((root.mode, root.implied), (0o711, false), "{name}");
        for kind in [b'0', b'2', b'1', b'6'] {
            let tar = Tar::default()
                .file("t", "")
                .add(Head::new(kind, name).link("t"), b"");
            assert!(
                matches!(problem(tar), Problem::Name(_) | Problem::Link { .. }),
                "{name}"
            );
        }
    }
}

#[test]
fn names_are_relative_to_the_root_however_they_are_written() {
    assert_tree(
        Tar::default()
            .file("/abs", "1")
            .file("./dot", "2")
            .file("a//b", "3")
            .file("slash/", "4"),
        &[
            ("a", "dir implied"),
            ("a/b", "'3'"),
            ("abs", "'1'"),
            ("dot", "'2'"),
            ("slash", "'4'"),
        ],
    );
}

#[test]
fn names_that_lead_out_or_cannot_be_are_refused() {
    let long = "n".repeat(256);
    let path = "x/".repeat(40_000);
    for name in ["../x", "a/../../x", "..", "a/..", &long, &path] {
        let tar = Tar::default()
            .pax(&[("path", name.as_bytes())])
            .file("x", "");
        assert!(
            matches!(problem(tar), Problem::Name(_) | Problem::Limit { .. }),
            "{name}"
        );
    }
    let nul = Tar::default().pax(&[("path", b"a\0b")]).file("x", "");
    assert!(matches!(problem(nul), Problem::Pax(_)));
}

#[test]
fn ten_thousand_directories_below_each_other_are_read() {
    let path = "d/".repeat(10_000) + "f";
    let index = index(
        Tar::default()
            .pax(&[("path", path.as_bytes())])
            .file("x", "deep"),
    );
    assert_eq!(index.inodes(), 10_002);
    assert_eq!(inode_at(&index, &path).size, 4);
}

#[test]
fn of_two_entries_of_one_name_the_later_is_shown() {
    assert_tree(
        Tar::default()
            .file("f", "one")
            .file("f", "two")
            .dir("d")
            .file("d/kept", "")
            .dir("d/"),
        &[("d", "dir"), ("d/kept", "''"), ("f", "'two'")],
    );
    assert_tree(
        Tar::default().dir("x").file("x/gone", "").file("x", "file"),
        &[("x", "'file'")],
    );
    assert_tree(Tar::default().file("x", "file").dir("x"), &[("x", "dir")]);
    assert_tree(
        Tar::default()
            .dir("x")
            .file("x/gone", "")
            .symlink("x", "y")
            .file("x/new", ""),
        &[("x", "dir implied"), ("x/new", "''")],
    );
}

#[test]
fn a_replaced_file_lives_on_by_its_other_names() {
    assert_tree(
        Tar::default()
            .file("a", "old")
            .hard_link("b", "a")
            .file("a", "new"),
        &[("a", "'new'"), ("b", "'old'")],
    );
}

#[test]
fn an_entry_below_something_that_is_no_directory_replaces_it() {
    assert_tree(
        Tar::default()
            .symlink("a", "/etc")
            .file("a/passwd", "mine")
            .file("f", "")
            .file("f/x/y", ""),
        &[
            ("a", "dir implied"),
            ("a/passwd", "'mine'"),
            ("f", "dir implied"),
            ("f/x", "dir implied"),
            ("f/x/y", "''"),
        ],
    );
    assert_tree(
        Tar::default()
            .symlink("a", "b")
            .dir("b")
            .add(Head::new(b'5', "a").mode(0o777), b""),
        &[("a", "dir"), ("b", "dir")],
    );
}

#[test]
fn hard_links_lead_to_earlier_and_later_entries_through_each_other_and_to_anything_but_directories()
{
    assert_tree(
        Tar::default()
            .hard_link("first", "second")
            .hard_link("second", "./f")
            .file("f", "x")
            .hard_link("third", "/first")
            .symlink("s", "f")
            .hard_link("t", "s")
            .add(Head::new(b'6', "p"), b"")
            .hard_link("q", "p"),
        &[
            ("f", "'x' links=4"),
            ("first", "'x' links=4"),
            ("p", "fifo links=2"),
            ("q", "fifo links=2"),
            ("s", "-> f links=2"),
            ("second", "'x' links=4"),
            ("t", "-> f links=2"),
            ("third", "'x' links=4"),
        ],
    );
}

#[test]
fn a_chain_of_a_hundred_thousand_hard_links_is_one_file() {
    let mut tar = Tar::default();
    for n in 0..100_000 {
        tar = tar.hard_link(&format!("l{n:06}"), &format!("l{:06}", n + 1));
    }
    let index = index(tar.file("l100000", "end"));
    assert_eq!(inode_at(&index, "l000000").nlink, 100_001);
    assert_eq!(index.inodes(), 2);
}

#[test]
fn hard_links_that_lead_nowhere_they_may_are_refused_by_name() {
    let refused = |tar: Tar, target: &str| {
        let error = indexed(&tar.end()).unwrap_err();
        let Problem::Link { target: found, .. } = &error.problem else {
            panic!("{error}");
        };
        assert_eq!(found, target.as_bytes());
        assert_eq!(error.entry, b"l");
    };
    for target in [
        "/etc/shadow",
        "../../x",
        "l",
        "d",
        "/",
        "d/.wh.gone",
        "gone",
    ] {
        let tar = Tar::default()
            .dir("d")
            .file(".wh.gone", "")
            .hard_link("l", target);
        refused(tar, target);
    }
    refused(Tar::default().hard_link("l", "m").hard_link("m", "l"), "m");
    refused(Tar::default().hard_link("l", "later").dir("later"), "later");
}

#[test]
fn whiteouts_hide_what_is_below_and_spare_what_is_in_the_same_tar() {
    assert_tree(
        Tar::default()
            .file("d/.wh.gone", "")
            .file("d/.wh.both", "")
            .file("d/both", "stays")
            .file("before", "stays")
            .add(Head::new(b'2', ".wh.before").link("anything"), b"")
            .add(Head::new(b'5', ".wh.dir/"), b""),
        &[
            ("before", "'stays'"),
            ("d", "dir implied -gone"),
            ("d/both", "'stays'"),
        ],
    );
    let root = tree_of(&Tar::default().dir(".wh.dir").file(".wh.link", "").end());
    assert_eq!(root[""], "dir implied -dir -link");
}

#[test]
fn a_whiteout_that_is_a_hard_link_is_a_whiteout() {
    let tar = Tar::default()
        .file("tmp/CERN.repo", "")
        .hard_link("tmp/.wh.RPM-GPG-KEY", "tmp/CERN.repo");
    assert_tree(
        tar,
        &[("tmp", "dir implied -RPM-GPG-KEY"), ("tmp/CERN.repo", "''")],
    );
    assert_tree(
        Tar::default().hard_link("d/.wh.x", "nowhere"),
        &[("d", "dir implied -x")],
    );
}

#[test]
fn the_opaque_marker_counts_wherever_it_stands_and_whatever_it_is() {
    for kind in [b'0', b'1', b'2', b'5', b'6'] {
        let marker = Head::new(kind, "d/.wh..wh..opq").link("x");
        assert_tree(
            Tar::default()
                .file("d/f", "")
                .add(marker, b"")
                .dir("d")
                .file("d/g", ""),
            &[("d", "dir opaque"), ("d/f", "''"), ("d/g", "''")],
        );
    }
    let root = index(Tar::default().file(".wh..wh..opq", "not empty"));
    assert!(root.inode(ROOT).unwrap().opaque);
}

#[test]
fn a_whiteout_and_a_directory_of_one_name_are_an_opaque_directory() {
    assert_tree(
        Tar::default()
            .file(".wh.foo", "")
            .file("foo/.wh.bar", "")
            .file("foo/f", ""),
        &[("foo", "dir opaque implied -bar"), ("foo/f", "''")],
    );
}

#[test]
fn leftovers_of_aufs_are_not_shown_but_hard_links_may_lead_there() {
    assert_tree(
        Tar::default()
            .dir(".wh..wh.plnk/")
            .file(".wh..wh.plnk/1.2", "data")
            .file(".wh..wh.aufs", "")
            .dir(".wh..wh.orph")
            .hard_link("f", ".wh..wh.plnk/1.2"),
        &[("f", "'data'")],
    );
}

#[test]
fn whiteouts_of_nothing_and_entries_below_a_whiteout_are_refused() {
    for name in [
        ".wh.",
        "d/.wh..",
        ".wh...",
        ".wh.x/f",
        ".wh..wh..opq/f",
        "d/.wh.x/y/z",
    ] {
        assert!(
            matches!(problem(Tar::default().file(name, "")), Problem::Name(_)),
            "{name}"
        );
    }
}

#[test]
fn a_hundred_thousand_dangling_whiteouts_are_read() {
    let tar = (0..100_000).fold(Tar::default(), |tar: Tar, n| {
        tar.file(&format!("d/.wh.{n}"), "")
    });
    assert_eq!(index(tar).names(), 100_001);
}

#[test]
fn a_device_0_0_is_a_device() {
    let tar = Tar::default().add(Head::new(b'3', "c").octal(329, 8, 0).octal(337, 8, 0), b"");
    assert_tree(tar, &[("c", "char 0")]);
}

/// Regions of a sparse file of 5000 bytes and what is stored of it.
const REGIONS: [(u64, u64); 2] = [(1000, 3), (4096, 2)];
const STORED: &[u8] = b"abcde";

fn assert_sparse(tar: Tar) {
    let bytes = tar.file("next", "after").end();
    assert_eq!(tree_of(&bytes)["/next"], "'after'");
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes).unwrap();
    let index = build_index(&file).unwrap();
    let archive = Arc::new(Archive::new(file.into(), index, 0, None));
    let number = archive.find(ROOT, b"sparse").unwrap();
    let attr = archive.stat(number).unwrap();
    assert_eq!((attr.size, attr.blocks), (5000, 1));
    let file = content_of(&archive, number);
    let mut content = vec![1; 6000];
    assert_eq!(file.read_at(&mut content, 0).unwrap(), 5000);
    let mut expected = vec![0; 5000];
    expected[1000..1003].copy_from_slice(b"abc");
    expected[4096..4098].copy_from_slice(b"de");
    assert_eq!(content[..5000], expected);
    assert_eq!(file.read_at(&mut content[..10], 1001).unwrap(), 10);
    assert_eq!(content[..10], *b"bc\0\0\0\0\0\0\0\0");
    assert_eq!(file.read_at(&mut content, 4999).unwrap(), 1);
    assert_eq!(file.read_at(&mut content, 5000).unwrap(), 0);
    let seek = |offset, data| file.seek(offset, data);
    assert_eq!((seek(0, true), seek(0, false)), (Ok(1000), Ok(0)));
    assert_eq!((seek(1001, true), seek(1001, false)), (Ok(1001), Ok(1003)));
    assert_eq!((seek(1003, true), seek(4097, false)), (Ok(4096), Ok(4098)));
    assert_eq!(
        (seek(4098, true), seek(4098, false)),
        (Err(Errno::NXIO), Ok(4098))
    );
    assert_eq!(seek(5000, false), Err(Errno::NXIO));
}

/// The old GNU header of [`REGIONS`]; `inline` of them in it.
fn old_sparse(inline: usize) -> (Head, Vec<u8>) {
    let mut head = Head::new(b'S', "sparse")
        .gnu()
        .octal(483, 12, 5000)
        .size(STORED.len() as u64);
    let mut block = vec![0; 512];
    for (n, (offset, length)) in REGIONS.iter().enumerate() {
        let region = [format!("{offset:011o}\0"), format!("{length:011o}\0")].concat();
        if n < inline {
            head = head.bytes(386 + n * 24, region.as_bytes());
        } else {
            let at = (n - inline) * 24;
            block[at..at + 24].copy_from_slice(region.as_bytes());
        }
    }
    if inline < REGIONS.len() {
        head = head.bytes(482, &[1]);
    }
    (head, block)
}

#[test]
fn sparse_files_of_old_gnu_have_their_holes() {
    let (head, _) = old_sparse(2);
    assert_sparse(Tar::default().raw(head, STORED));
    let (head, block) = old_sparse(1);
    assert_sparse(Tar::default().raw(head, &[&block, STORED].concat()));
}

#[test]
fn sparse_files_of_pax_have_their_holes() {
    let regions = REGIONS.map(|(offset, length)| (offset.to_string(), length.to_string()));
    let [(first, first_length), (second, second_length)] = &regions;
    let fields: [(&str, &[u8]); 6] = [
        ("GNU.sparse.size", b"5000"),
        ("GNU.sparse.numblocks", b"2"),
        ("GNU.sparse.offset", first.as_bytes()),
        ("GNU.sparse.numbytes", first_length.as_bytes()),
        ("GNU.sparse.offset", second.as_bytes()),
        ("GNU.sparse.numbytes", second_length.as_bytes()),
    ];
    assert_sparse(
        Tar::default()
            .pax(&fields)
            .add(Head::new(b'0', "sparse"), STORED),
    );
    let fields: [(&str, &[u8]); 3] = [
        ("GNU.sparse.size", b"5000"),
        ("GNU.sparse.name", b"sparse"),
        ("GNU.sparse.map", b"1000,3,4096,2"),
    ];
    assert_sparse(
        Tar::default()
            .pax(&fields)
            .add(Head::new(b'0', "GNUSparseFile.1/x"), STORED),
    );
    let mut body = b"2\n1000\n3\n4096\n2\n".to_vec();
    body.resize(512, 0);
    body.extend_from_slice(STORED);
    let fields: [(&str, &[u8]); 4] = [
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"sparse"),
        ("GNU.sparse.realsize", b"5000"),
    ];
    assert_sparse(
        Tar::default()
            .pax(&fields)
            .add(Head::new(b'0', "GNUSparseFile.1/x"), &body),
    );
}

#[test]
fn a_hole_of_eight_exbibytes_costs_nothing() {
    let tar = Tar::default()
        .pax(&[
            ("GNU.sparse.size", b"9223372036854775807"),
            ("GNU.sparse.map", b"9223372036854775807,0"),
        ])
        .file("f", "");
    let index = index(tar);
    assert_eq!(inode_at(&index, "f").size, i64::MAX as u64);
    let archive = Arc::new(Archive::new(
        tempfile::tempfile().unwrap().into(),
        index,
        0,
        None,
    ));
    let file = content_of(&archive, archive.find(ROOT, b"f").unwrap());
    let mut buffer = [1; 100];
    assert_eq!(file.read_at(&mut buffer, i64::MAX as u64 - 7), Ok(7));
    assert_eq!(buffer[..8], [0, 0, 0, 0, 0, 0, 0, 1]);
}

#[test]
fn contradicting_sparse_maps_are_refused() {
    let map = |map: &str, size: &str| {
        let fields = [
            ("GNU.sparse.size", size.as_bytes()),
            ("GNU.sparse.map", map.as_bytes()),
        ];
        problem(Tar::default().pax(&fields).file("f", "abcde"))
    };
    for (text, size) in [
        ("0,3,2,2", "100"),
        ("4,2,0,3", "100"),
        ("0,5", "4"),
        ("0,4", "100"),
        ("0,6", "100"),
        ("0,5,7", "100"),
        ("9223372036854775807,5", "9223372036854775807"),
        ("", "100"),
    ] {
        assert!(matches!(map(text, size), Problem::Sparse(_)), "{text}");
    }
    assert!(matches!(map("0,x", "100"), Problem::Pax(_)));
    let (head, _) = old_sparse(2);
    let malformed = Tar::default().raw(head.bytes(386, b"99999999999\0"), STORED);
    assert!(matches!(problem(malformed), Problem::Sparse(_)));
    let fields: [(&str, &[u8]); 3] = [
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.realsize", b"9"),
    ];
    for text in [
        "2\n0\n",
        "999999999999999999999\n",
        "-1\n",
        "x\n",
        &"1".repeat(600),
    ] {
        let tar = Tar::default()
            .pax(&fields)
            .add(Head::new(b'0', "f"), text.as_bytes());
        assert!(matches!(problem(tar), Problem::Sparse(_)), "{text}");
    }
}

#[test]
fn more_than_the_limits_is_refused_before_it_is_kept() {
    let limits = Limits {
        entries: 10,
        header: 1000,
        path: 100,
        extents: 3,
        strings: 200,
        size: 20_000,
    };
    let refused = |tar: Tar, what: &str| {
        let mut indexer = Indexer::new(limits);
        assert!(indexer.write_all(&tar.end()).is_err(), "{what}");
        let error = indexer.finish().unwrap_err();
        assert!(
            matches!(error.problem, Problem::Limit { .. }),
            "{what}: {error}"
        );
    };
    refused(
        (0..12).fold(Tar::default(), |tar: Tar, n| tar.file(&n.to_string(), "")),
        "entries",
    );
    refused(
        Tar::default().file("a/b/c/d/e/f/g/h/i/j/k", ""),
        "implied entries",
    );
    refused(Tar::default().pax(&[("comment", &[0; 1001])]), "header");
    refused(
        Tar::default().raw(Head::new(b'x', "x").size(10 << 30), b""),
        "a header of 10 GiB",
    );
    refused(
        Tar::default().raw(Head::new(b'L', "x").size(10 << 30), b""),
        "a name of 10 GiB",
    );
    refused(
        Tar::default().pax(&[("path", &[b'x'; 101])]).file("x", ""),
        "path",
    );
    refused(
        Tar::default()
            .pax(&[("SCHILY.xattr.user.x", &[0; 300])])
            .file("x", ""),
        "strings",
    );
    refused(Tar::default().file("x", &"x".repeat(30_000)), "size");
    let map: (&str, &[u8]) = ("GNU.sparse.map", b"0,1,2,1,4,1,6,1");
    refused(
        Tar::default()
            .pax(&[("GNU.sparse.size", b"9"), map])
            .file("f", "abcd"),
        "extents",
    );
}

#[test]
fn a_global_header_of_any_size_is_passed_over() {
    let tar = Tar::default()
        .add(Head::new(b'g', "pax_global_header"), &vec![b'x'; 3 << 20])
        .add(Head::new(b'V', "label"), b"")
        .file("f", "x");
    assert_tree(tar, &[("f", "'x'")]);
}

#[test]
fn malformed_headers_are_refused_with_the_offset_of_the_entry() {
    let first = Tar::default().file("first", "");
    for (what, head) in [
        ("size", Head::new(b'0', "f").bytes(124, b"0000009\0")),
        (
            "negative size",
            Head::new(b'0', "f").bytes(124, &[0xff; 12]),
        ),
        (
            "size beyond 2^63",
            Head::new(b'0', "f").bytes(124, b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff"),
        ),
        (
            "size of 2^63 - 1",
            Head::new(b'0', "f").bytes(124, b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff"),
        ),
        ("mode", Head::new(b'0', "f").bytes(100, b"rwxr-x\0\0")),
        ("uid -1", Head::new(b'0', "f").bytes(108, &[0xff; 8])),
        (
            "gid 2^32 - 1",
            Head::new(b'0', "f").bytes(116, &[0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]),
        ),
        ("mtime", Head::new(b'0', "f").bytes(136, b"NaN\0")),
        ("device", Head::new(b'3', "f").octal(329, 8, 4096)),
        ("type", Head::new(b'M', "f")),
        ("type", Head::new(b'N', "f")),
        ("type", Head::new(b'z', "f")),
        ("target", Head::new(b'2', "f")),
    ] {
        let error = indexed(&first.clone().raw(head, b"").end()).unwrap_err();
        assert_eq!(
            (error.offset, &error.entry[..]),
            (512, &b"f"[..]),
            "{what}: {error}"
        );
    }
    let mut sum = first.clone().file("f", "").end();
    sum[512] ^= 1;
    let error = indexed(&sum).unwrap_err();
    assert_eq!((error.problem, error.offset), (Problem::Checksum, 512));
}

#[test]
fn a_tar_that_is_cut_off_anywhere_is_refused_and_a_missing_end_is_not() {
    let whole = Tar::default()
        .pax(&[("path", b"long name")])
        .file("x", "content")
        .raw(old_sparse(1).0, &[&old_sparse(1).1[..], STORED].concat())
        .file("y", "z");
    let entries = whole.0.clone();
    let complete = [0, 2048, 3584, entries.len()];
    for length in 0..entries.len() {
        let answer = indexed(&entries[..length]);
        let fine = complete.contains(&length);
        assert_eq!(answer.is_ok(), fine, "{length}: {answer:?}");
    }
    for zeros in [0, 512, 1024, 10240] {
        let ended = [&entries[..], &vec![0; zeros]].concat();
        assert_eq!(indexed(&ended).unwrap().inodes(), 4, "{zeros}");
    }
}

#[test]
fn after_the_end_nothing_is_read_and_a_lone_zero_block_is_refused() {
    let mut tar = Tar::default().file("f", "").end();
    tar.extend(Tar::default().file("behind", "").end());
    tar.extend([b'x'; 100]);
    let index = indexed(&tar).unwrap();
    assert_eq!((index.inodes(), index.tar_length()), (2, tar.len() as u64));
    let mut lone = Tar::default().file("f", "").0;
    lone.extend([0; 512]);
    lone.extend(Tar::default().file("g", "").end());
    assert_eq!(indexed(&lone).unwrap_err().problem, Problem::AfterEnd);
}

#[test]
fn what_is_no_tar_is_told_from_what_is_compressed() {
    let padded = |start: &[u8]| [start, &[7; 600]].concat();
    for (bytes, expected) in [
        (b"hello".to_vec(), Problem::NotTar),
        (padded(b"hello"), Problem::NotTar),
        (padded(b"\x1f\x8b\x08"), Problem::Compressed("gzip")),
        (b"\x1f\x8b\x08".to_vec(), Problem::Compressed("gzip")),
        (padded(b"\x28\xb5\x2f\xfd"), Problem::Compressed("zstd")),
        (padded(b"BZh9"), Problem::Compressed("bzip2")),
        (padded(b"\xfd7zXZ\0"), Problem::Compressed("xz")),
    ] {
        assert_eq!(indexed(&bytes).unwrap_err().problem, expected);
    }
}

#[test]
fn an_archive_in_a_file_is_content() {
    let inner = Tar::default().file("inner", "x").end();
    let index = index(Tar::default().add(Head::new(b'0', "a.tar"), &inner));
    assert_eq!(index.inodes(), 2);
}

#[test]
fn the_index_does_not_depend_on_how_the_tar_comes_in_pieces() {
    let tar = Tar::default()
        .pax(&[("path", b"d/f"), ("SCHILY.xattr.user.x", b"y")])
        .file("x", &"content".repeat(300))
        .raw(old_sparse(1).0, &[&old_sparse(1).1[..], STORED].concat())
        .hard_link("h", "d/f")
        .end();
    let whole = indexed(&tar).unwrap();
    for piece in [1, 7, 511, 512, 513, 4096] {
        let mut indexer = Indexer::new(Limits::default());
        tar.chunks(piece)
            .for_each(|bytes| indexer.write_all(bytes).unwrap());
        assert_eq!(indexer.finish().unwrap().bytes(), whole.bytes(), "{piece}");
    }
}

#[test]
fn an_index_is_120_bytes_an_entry_besides_names_at_most() {
    let names: Vec<_> = (0..1000)
        .map(|n| format!("dir{}/file-{n}", n % 10))
        .collect();
    let tar = names
        .iter()
        .fold(Tar::default(), |tar, name| tar.file(name, ""));
    let index = index(tar);
    let names: usize = (0..1000).map(|n| format!("file-{n}").len()).sum::<usize>() + 40;
    assert!(index.bytes().len() <= names + 120 * index.names() as usize);
}

#[test]
fn an_error_names_the_entry_without_its_escape_sequences() {
    let tar = Tar::default()
        .pax(&[("path", b"a\x1b[2J/../b")])
        .file("x", "")
        .end();
    let text = indexed(&tar).unwrap_err().to_string();
    assert_eq!(
        text,
        "entry 'a\\x1b[2J/../b': its path leads out of the layer ('..') (at byte 0)"
    );
}

/// What a damaged index may answer.
fn told<T>(answer: Result<T>) {
    if let Some(error) = answer.err() {
        let expected = [
            Errno::IO,
            Errno::NOENT,
            Errno::NOTDIR,
            Errno::ISDIR,
            Errno::INVAL,
            Errno::NXIO,
        ];
        assert!(expected.contains(&error), "{error}");
    }
}

/// Asks everything of an index that may be damaged.
fn exercise(index: Index) {
    let count = index.inodes();
    let archive = Arc::new(Archive::new(
        tempfile::tempfile().unwrap().into(),
        index,
        0,
        None,
    ));
    let mut buffer = [0; 64];
    for number in (0..count.min(200)).chain([count, u32::MAX]) {
        told(archive.stat(number));
        told(archive.marks(number));
        told(archive.xattr_names(number));
        told(archive.link_target(number));
        told(archive.list(number, &mut |_| Ok(())));
        told(archive.find(number, b"f"));
        told(archive.has_whiteout(number, b"f"));
        if let Ok(file) = content(&archive, number) {
            for offset in [0, 1, 4097, u64::MAX - 1, u64::MAX] {
                told(file.read_at(&mut buffer, offset));
                told(file.read_cached_at(&mut buffer, offset));
                told(file.seek(offset, true));
                told(file.seek(offset, false));
                told(file.run_at(offset));
            }
        }
    }
}

/// One of everything, for mutation.
fn sample() -> Vec<u8> {
    let (head, block) = old_sparse(1);
    Tar::default()
        .dir("d/")
        .pax(&[
            ("path", b"d/f"),
            ("SCHILY.xattr.user.x", b"y"),
            ("mtime", b"1.5"),
            ("size", b"4"),
        ])
        .file("x", "text")
        .hard_link("h", "d/f")
        .hard_link("later", "end")
        .symlink("l", "d/f")
        .file("d/.wh.x", "")
        .long(b'L', b"some/long/name")
        .raw(head, &[&block[..], STORED].concat())
        .pax(&[
            ("GNU.sparse.size", b"5000"),
            ("GNU.sparse.map", b"1000,3,4096,2"),
        ])
        .add(Head::new(b'0', "pax-sparse"), STORED)
        .file("end", "")
        .end()
}

#[test]
fn a_damaged_tar_never_panics() {
    let sample = sample();
    let mut random = fastrand::Rng::with_seed(1);
    let mut indexes = 0;
    for _ in 0..4000 {
        let mut tar = sample.clone();
        for _ in 0..random.usize(1..6) {
            let at = random.usize(..tar.len());
            match random.u8(..4) {
                0 => tar[at] ^= 1 << random.u8(..8),
                1 => tar[at] = random.u8(..),
                2 => drop(tar.splice(at..at, std::iter::repeat_n(0, random.usize(..600)))),
                _ => drop(tar.drain(at..(at + random.usize(..600)).min(tar.len()))),
            }
            if tar.is_empty() {
                break;
            }
        }
        // Most changes would end at the checksum.
        for block in tar.chunks_exact_mut(512) {
            if &block[257..262] == b"ustar" {
                let fixed = Head(block.try_into().unwrap()).done();
                block.copy_from_slice(&fixed);
            }
        }
        if let Ok(index) = indexed(&tar) {
            indexes += 1;
            index.verify().unwrap();
            exercise(index);
        }
    }
    assert!(indexes > 100, "only {indexes} were read at all");
}

#[test]
fn a_damaged_index_never_panics_and_verifying_finds_the_damage() {
    let good = indexed(&sample()).unwrap();
    let mut random = fastrand::Rng::with_seed(2);
    for _ in 0..2000 {
        let mut bytes = good.bytes().to_vec();
        for _ in 0..random.usize(1..8) {
            let at = random.usize(128..bytes.len());
            let any = random.u8(..);
            bytes[at] = [0, 1, 0x7f, 0x80, 0xff, any][random.usize(..6)];
        }
        let changed = bytes != good.bytes();
        let index = Index::from_bytes(bytes).unwrap();
        assert_eq!(index.verify().is_err(), changed);
        exercise(index);
    }
    for length in 0..good.bytes().len() {
        assert!(Index::from_bytes(good.bytes()[..length].to_vec()).is_err());
    }
    for at in 0..128 {
        let mut bytes = good.bytes().to_vec();
        bytes[at] ^= 0x10;
        let answer = Index::from_bytes(bytes);
        assert!(answer.is_err(), "{at}");
    }
}

#[test]
fn an_index_file_is_mapped_and_answers_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("index");
    let built = indexed(&sample()).unwrap();
    std::fs::write(&path, built.bytes()).unwrap();
    let mapped = Index::open(&path).unwrap();
    assert_eq!(mapped.bytes(), built.bytes());
    assert_eq!(inode_at(&mapped, "d/f"), inode_at(&built, "d/f"));
    std::fs::write(&path, b"").unwrap();
    assert!(Index::open(&path).is_err());
}

#[test]
fn a_tar_that_became_shorter_answers_eio() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&Tar::default().file("f", &"x".repeat(2000)).end())
        .unwrap();
    let index = build_index(&file).unwrap();
    file.set_len(1024).unwrap();
    let archive = Arc::new(Archive::new(file.into(), index, 0, None));
    let content = content_of(&archive, archive.find(ROOT, b"f").unwrap());
    let mut buffer = [0; 2000];
    assert_eq!(content.read_at(&mut buffer[..512], 0), Ok(512));
    assert_eq!(content.read_at(&mut buffer, 0), Err(Errno::IO));
}

#[test]
fn the_owner_shown_is_that_of_the_tar_unless_another_is_given() {
    let tar = || Tar::default().add(Head::new(b'0', "f").octal(108, 8, 5).octal(116, 8, 6), b"");
    let archive =
        |owner| Archive::new(tempfile::tempfile().unwrap().into(), index(tar()), 3, owner);
    let owner = |archive: &Archive| {
        let attr = archive.stat(archive.find(ROOT, b"f").unwrap()).unwrap();
        (attr.uid, attr.gid)
    };
    assert_eq!(owner(&archive(None)), (5, 6));
    assert_eq!(owner(&archive(Some((1000, 100)))), (1000, 100));
}
