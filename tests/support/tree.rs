//! Directory trees as text: one line per object, `PATH KIND ATTRIBUTES`.
//!
//! ```text
//! d/ 0700 owner=0:0 opaque          a directory, with its mode, owner and a mark
//! d/f 0644 'text\n' user.a='x'      a regular file, its content and an extended attribute
//! d/big pattern=100000              a long regular file (see [`pattern`]); also hole=LENGTH
//! d/l -> target                     a symbolic link
//! d/h = d/f                         another name of d/f
//! d/p fifo                          also socket, char=1:3, block=8:0, whiteout
//! ```
//!
//! `opaque=either` accepts a directory with or without the mark: where nothing lies below the mark
//! changes nothing, and the kernel sets it only in some modes.
//!
//! Lines end with a newline or `;`. Parent directories are implied. Kind, content, marks and
//! extended attributes are always compared; mode, owner, nlink and mtime where the text gives them.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// What one line of a tree says. `None` means: not stated.
#[derive(Clone, Debug, Default)]
pub struct Entry {
    /// Path relative to the root of the tree; `.` is the root.
    pub path: Vec<u8>,
    pub kind: Kind,
    pub mode: Option<u32>,
    pub owner: Option<(u32, u32)>,
    pub nlink: Option<u64>,
    pub mtime: Option<(i64, u32)>,
    pub xattrs: BTreeMap<String, Vec<u8>>,
    pub opaque: Option<String>,
    pub redirect: Option<Vec<u8>>,
    pub metacopy: bool,
}

/// The type of an object and what belongs to it.
#[derive(Clone, Debug, Default)]
pub enum Kind {
    #[default]
    Dir,
    File(Content),
    Symlink(Vec<u8>),
    Fifo,
    Socket,
    Char(u32, u32),
    Block(u32, u32),
    /// In the form named by the text (`device`, `aufs` or `xattr`).
    Whiteout(String),
    /// Another name of the given path.
    Link(Vec<u8>),
}

/// The bytes of a regular file.
#[derive(Clone, Debug)]
pub enum Content {
    Bytes(Vec<u8>),
    /// The first bytes of [`pattern`].
    Pattern(u64),
    Hole(u64),
    Unreadable,
}

/// Bytes that differ from page to page: the content of `pattern=LENGTH` from `offset` on.
pub fn pattern(offset: u64, length: usize) -> Vec<u8> {
    (offset..offset + length as u64)
        .map(|i| ((i * 7 + i / 251 * 13 + i / 4096) % 251) as u8)
        .collect()
}

/// One line for each item.
pub fn lines<T>(items: impl IntoIterator<Item = T>, line: impl Fn(T) -> String) -> String {
    items.into_iter().map(line).collect::<Vec<_>>().concat()
}

impl Content {
    /// The bytes themselves; empty for [`Content::Unreadable`].
    pub fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Bytes(bytes) => bytes.clone(),
            Self::Pattern(length) => pattern(0, usize::try_from(*length).unwrap()),
            Self::Hole(length) => vec![0; usize::try_from(*length).unwrap()],
            Self::Unreadable => Vec::new(),
        }
    }

    fn text(&self) -> String {
        if matches!(self, Self::Unreadable) {
            return "unreadable".to_owned();
        }
        let bytes = self.bytes();
        if bytes.len() <= 200 {
            quoted(&bytes)
        } else if bytes == pattern(0, bytes.len()) {
            format!("pattern={}", bytes.len())
        } else if bytes.iter().all(|&byte| byte == 0) {
            format!("zeros={}", bytes.len())
        } else {
            let sum = bytes
                .iter()
                .fold(0_u64, |sum, &b| sum.rotate_left(5) ^ u64::from(b));
            format!("length={} sum={sum:x}", bytes.len())
        }
    }
}

impl Entry {
    /// The line of this entry with those optional attributes that `like` states.
    pub fn line(&self, like: &Self) -> String {
        let mut line = escaped(&self.path);
        match &self.kind {
            Kind::Dir if self.path != b"." => line.push('/'),
            Kind::Dir => {}
            Kind::File(_) if self.metacopy => line.push_str(" metacopy"),
            Kind::File(content) => put(&mut line, &content.text()),
            Kind::Symlink(target) => put(&mut line, &format!("-> {}", escaped(target))),
            Kind::Fifo => line.push_str(" fifo"),
            Kind::Socket => line.push_str(" socket"),
            Kind::Char(major, minor) => put(&mut line, &format!("char={major}:{minor}")),
            Kind::Block(major, minor) => put(&mut line, &format!("block={major}:{minor}")),
            Kind::Whiteout(_) => line.push_str(" whiteout"),
            Kind::Link(other) => put(&mut line, &format!("= {}", escaped(other))),
        }
        if matches!(self.kind, Kind::Whiteout(_)) {
            return line;
        }
        if let (Some(mode), Some(_)) = (self.mode, like.mode) {
            put(&mut line, &format!("{mode:04o}"));
        }
        if let (Some((uid, gid)), Some(_)) = (self.owner, like.owner) {
            put(&mut line, &format!("owner={uid}:{gid}"));
        }
        if let (Some(nlink), Some(_)) = (self.nlink, like.nlink) {
            put(&mut line, &format!("nlink={nlink}"));
        }
        if let (Some((seconds, nanos)), Some(_)) = (self.mtime, like.mtime) {
            put(&mut line, &format!("mtime={seconds}.{nanos:09}"));
        }
        if self.opaque.is_some() {
            put(&mut line, "opaque");
        }
        if let Some(redirect) = &self.redirect {
            put(&mut line, &format!("redirect={}", escaped(redirect)));
        }
        for (name, value) in &self.xattrs {
            put(&mut line, &format!("{name}={}", quoted(value)));
        }
        line
    }
}

fn put(line: &mut String, token: &str) {
    line.push(' ');
    line.push_str(token);
}

fn escaped(bytes: &[u8]) -> String {
    let mut text = String::new();
    for &byte in bytes {
        match byte {
            b'\\' | b'\'' | b';' | 0..=b' ' | 0x7f.. => write!(text, "\\x{byte:02x}").unwrap(),
            _ => text.push(char::from(byte)),
        }
    }
    text
}

fn quoted(bytes: &[u8]) -> String {
    let mut text = String::from("'");
    for &byte in bytes {
        match byte {
            b'\n' => text.push_str("\\n"),
            b'\\' | b'\'' | 0..b' ' | 0x7f.. => write!(text, "\\x{byte:02x}").unwrap(),
            _ => text.push(char::from(byte)),
        }
    }
    text.push('\'');
    text
}

/// Compares two sorted trees; the error is a line diff, `-` expected, `+` found.
pub fn compare(expected: &[Entry], found: &[Entry]) -> Result<(), String> {
    let by_path = |entries: &[Entry]| -> BTreeMap<Vec<u8>, Entry> {
        entries
            .iter()
            .map(|entry| (entry.path.clone(), entry.clone()))
            .collect()
    };
    let (expected, found) = (by_path(expected), by_path(found));
    let mut paths: Vec<_> = expected.keys().chain(found.keys()).collect();
    paths.sort();
    paths.dedup();
    let (mut diff, mut equal) = (String::new(), true);
    let all = Entry {
        mode: Some(0),
        ..Entry::default()
    };
    for path in paths {
        let (want, have) = (expected.get(path), found.get(path));
        let want_line = want.map(|entry| entry.line(entry));
        let have_line = have.map(|entry| {
            let mut entry = entry.clone();
            if want.is_some_and(|want| want.opaque.as_deref() == Some("either")) {
                entry.opaque = Some(String::new());
            }
            entry.line(want.unwrap_or(&all))
        });
        if want_line == have_line {
            writeln!(diff, "  {}", want_line.unwrap_or_default()).unwrap();
            continue;
        }
        equal = false;
        for (sign, line) in [('-', want_line), ('+', have_line)] {
            if let Some(line) = line {
                writeln!(diff, "{sign} {line}").unwrap();
            }
        }
    }
    if equal { Ok(()) } else { Err(diff) }
}

/// Reads a tree from its text.
pub fn parse(text: &str) -> Vec<Entry> {
    let mut entries: BTreeMap<Vec<u8>, Entry> = BTreeMap::new();
    let mut order = Vec::new();
    for tokens in tokenize(text) {
        let entry = parse_line(&tokens);
        let mut implied = Vec::new();
        for (end, _) in entry
            .path
            .iter()
            .enumerate()
            .filter(|(_, byte)| **byte == b'/')
        {
            implied.push(Entry {
                path: entry.path[..end].to_vec(),
                ..Entry::default()
            });
        }
        for entry in implied.into_iter().chain([entry]) {
            if entries
                .get(&entry.path)
                .is_none_or(|_| !matches!(entry.kind, Kind::Dir))
            {
                order.push(entry.path.clone());
                entries.insert(entry.path.clone(), entry);
            } else if entry.mode.is_some() || entry.opaque.is_some() {
                entries.insert(entry.path.clone(), entry);
            }
        }
    }
    order
        .into_iter()
        .map(|path| entries.remove(&path).expect("a path twice"))
        .collect()
}

/// Lines of tokens; the flag of a token says that it was quoted.
fn tokenize(text: &str) -> Vec<Vec<(Vec<u8>, bool)>> {
    let (mut lines, mut line, mut token) = (Vec::new(), Vec::new(), Vec::new());
    let (mut quote, mut was_quoted) = (false, false);
    let mut bytes = text.bytes().chain([b'\n']);
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => match bytes.next().expect("an escape") {
                b'n' => token.push(b'\n'),
                b'x' => {
                    let digits = [bytes.next().unwrap(), bytes.next().unwrap()];
                    let digits = std::str::from_utf8(&digits).unwrap();
                    token.push(u8::from_str_radix(digits, 16).expect("\\xHH"));
                }
                other => token.push(other),
            },
            b'\'' => {
                quote = !quote;
                was_quoted |= token.is_empty();
                if !quote && was_quoted && token.is_empty() {
                    line.push((Vec::new(), true));
                    was_quoted = false;
                }
            }
            b' ' | b'\n' | b';' if !quote => {
                if !token.is_empty() {
                    line.push((std::mem::take(&mut token), was_quoted));
                    was_quoted = false;
                }
                if byte != b' ' && !line.is_empty() {
                    lines.push(std::mem::take(&mut line));
                }
            }
            _ => token.push(byte),
        }
    }
    lines
}

fn parse_line(tokens: &[(Vec<u8>, bool)]) -> Entry {
    let mut path = tokens[0].0.clone();
    let is_dir = path.ends_with(b"/") || path == b".";
    if path.ends_with(b"/") {
        path.pop();
    }
    let mut entry = Entry {
        path,
        ..Entry::default()
    };
    let mut kind = if is_dir {
        Kind::Dir
    } else {
        Kind::File(Content::Bytes(Vec::new()))
    };
    let mut tokens = tokens[1..].iter();
    while let Some((token, is_quoted)) = tokens.next() {
        if *is_quoted {
            kind = Kind::File(Content::Bytes(token.clone()));
            continue;
        }
        let (name, value) = match token.iter().position(|byte| *byte == b'=') {
            Some(at) if at > 0 => (&token[..at], token[at + 1..].to_vec()),
            _ => (&token[..], Vec::new()),
        };
        let name = std::str::from_utf8(name).unwrap();
        let text = || String::from_utf8(value.clone()).unwrap();
        match name {
            "->" => kind = Kind::Symlink(tokens.next().expect("a target").0.clone()),
            "=" => kind = Kind::Link(tokens.next().expect("a path").0.clone()),
            "fifo" => kind = Kind::Fifo,
            "socket" => kind = Kind::Socket,
            "char" => kind = pair(&text(), ':', Kind::Char),
            "block" => kind = pair(&text(), ':', Kind::Block),
            "whiteout" => kind = Kind::Whiteout(text()),
            "pattern" => kind = Kind::File(Content::Pattern(text().parse().unwrap())),
            "hole" => kind = Kind::File(Content::Hole(text().parse().unwrap())),
            "unreadable" => kind = Kind::File(Content::Unreadable),
            "opaque" => entry.opaque = Some(text()),
            "redirect" => entry.redirect = Some(value),
            "metacopy" => entry.metacopy = true,
            "owner" => entry.owner = Some(pair(&text(), ':', |uid, gid| (uid, gid))),
            "nlink" => entry.nlink = Some(text().parse().unwrap()),
            "mtime" => {
                let (seconds, nanos) = text().split_once('.').map_or((text(), 0), |(s, n)| {
                    (s.to_owned(), format!("{n:0<9}").parse().unwrap())
                });
                entry.mtime = Some((seconds.parse().unwrap(), nanos));
            }
            "acl" | "default" => {
                entry.xattrs.insert(name.to_owned(), value);
            }
            name if name.starts_with(|c: char| c.is_ascii_digit()) => {
                entry.mode = Some(u32::from_str_radix(name, 8).expect("an octal mode"));
            }
            name if name.contains('.') => {
                entry.xattrs.insert(name.to_owned(), value);
            }
            name => panic!("{name}: not a word of the tree format"),
        }
    }
    entry.kind = kind;
    entry
}

fn pair<T>(text: &str, separator: char, make: impl FnOnce(u32, u32) -> T) -> T {
    let (first, second) = text.split_once(separator).expect("A:B");
    make(first.parse().unwrap(), second.parse().unwrap())
}
