//! Why a tar cannot be a layer, or an index not be used.

use std::fmt;

/// What is wrong, and with which entry.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct IndexError {
    /// What is wrong.
    pub problem: Problem,
    /// Name of the entry as it is in the tar, empty if none had begun.
    pub entry: Vec<u8>,
    /// Offset in the tar at which the entry begins.
    pub offset: u64,
}

/// The kinds of [`IndexError`].
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Problem {
    /// No tar at all: the first block is no header.
    NotTar,
    /// The tar is compressed, by what is named.
    Compressed(&'static str),
    /// It ends within a header, a file, or its padding.
    Truncated,
    /// A header's checksum is wrong.
    Checksum,
    /// A header field is malformed.
    Field(&'static str),
    /// A PAX record is malformed.
    Pax(&'static str),
    /// A sparse map is malformed or contradicts the size.
    Sparse(&'static str),
    /// A type that cannot be in a layer.
    Type(u8),
    /// A name that cannot be in a layer.
    Name(&'static str),
    /// A hard link that leads nowhere it may.
    Link {
        /// Where it leads to.
        target: Vec<u8>,
        /// Why that is wrong.
        reason: &'static str,
    },
    /// Blocks other than the end follow the first end block.
    AfterEnd,
    /// More than [`Limits`](super::Limits) allows.
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// How much is allowed.
        limit: u64,
    },
    /// The index file is no index, of another version, or damaged.
    Index(&'static str),
    /// Reading failed.
    Io(String),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotTar => f.write_str("this is no tar archive"),
            Self::Compressed(by) => {
                write!(f, "the archive is compressed with {by}")
            }
            Self::Truncated => f.write_str("the archive ends in the middle of an entry"),
            Self::Checksum => f.write_str("the header's checksum is wrong"),
            Self::Field(field) => write!(f, "the header's {field} is malformed or out of range"),
            Self::Pax(what) => write!(f, "malformed PAX header: {what}"),
            Self::Sparse(what) => write!(f, "malformed sparse file: {what}"),
            Self::Type(kind) => {
                let kind = kind.escape_ascii();
                write!(f, "entries of type '{kind}' cannot be in a layer")
            }
            Self::Name(why) => f.write_str(why),
            Self::Link { target, reason } => {
                write!(f, "hard link to '{}': {reason}", target.escape_ascii())
            }
            Self::AfterEnd => f.write_str("there is something between the two end blocks"),
            Self::Limit { what, limit } => write!(f, "{what}: more than the limit of {limit}"),
            Self::Index(what) => write!(f, "the index {what}"),
            Self::Io(error) => write!(f, "cannot be read: {error}"),
        }
    }
}

impl fmt::Display for IndexError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.entry.is_empty() {
            // A hostile name can be long and can hold escape sequences.
            let (shown, rest) = self.entry.split_at(self.entry.len().min(200));
            let dots = if rest.is_empty() { "" } else { "..." };
            write!(f, "entry '{}{dots}': ", shown.escape_ascii())?;
        }
        self.problem.fmt(f)?;
        match self.problem {
            Problem::Index(_) | Problem::Io(_) | Problem::Compressed(_) | Problem::NotTar => Ok(()),
            _ => write!(f, " (at byte {})", self.offset),
        }
    }
}

impl std::error::Error for IndexError {}

impl IndexError {
    /// About no entry.
    pub(super) fn general(problem: Problem) -> Self {
        Self {
            problem,
            entry: Vec::new(),
            offset: 0,
        }
    }
}
