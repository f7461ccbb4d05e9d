//! How the command ends: the documented exit codes, and the one sentence that goes with a failure.

use std::fmt;

pub(super) use crate::image::error::why;
use crate::layer::error::{Cause, SetupError};

/// Exit codes. They are a contract with scripts: a number never changes its meaning.
///
/// `mount ... -- CMD` ends with CMD's own code instead, or 128+N if signal N ended it; 126 and 127 say,
/// as shells do, that CMD could not be started or was not found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Exit {
    /// Done; for `mount`: mounted and answering.
    Ok = 0,
    /// Something that has no code of its own; the sentence says what.
    Failure = 1,
    /// The command line: an unknown, malformed or contradicting argument or option.
    Usage = 2,
    /// A lower layer is missing, unreadable or not a directory.
    Lower = 3,
    /// The upper or work directory cannot be used.
    Upper = 4,
    /// In use: the upper or workdir by another mount, or the mount to be unmounted by a process.
    InUse = 5,
    /// The mountpoint is missing or not a directory.
    Mountpoint = 6,
    /// FUSE is not available: no `/dev/fuse`, no fusermount3, or no permission.
    Fuse = 7,
    /// The path is not a plyfs mount.
    NotPlyfs = 8,
    /// There is no such image, file or layer.
    NotFound = 9,
    /// An archive, an image, the store or an upper is damaged or not what it says it is.
    Malformed = 10,
}

impl Exit {
    const ALL: [Self; 11] = [
        Self::Ok,
        Self::Failure,
        Self::Usage,
        Self::Lower,
        Self::Upper,
        Self::InUse,
        Self::Mountpoint,
        Self::Fuse,
        Self::NotPlyfs,
        Self::NotFound,
        Self::Malformed,
    ];

    /// The meaning of a code that another process of ours ended with.
    pub(super) fn from_code(code: i32) -> Self {
        Self::ALL
            .into_iter()
            .find(|exit| *exit as i32 == code)
            .unwrap_or(Self::Failure)
    }
}

/// The table of the README and of `--help`.
pub const TABLE: &[(&str, &str)] = &[
    ("0", "done; for mount: mounted and answering"),
    ("1", "any other failure; the sentence on stderr says which"),
    (
        "2",
        "unknown, malformed or contradicting argument or option",
    ),
    (
        "3",
        "a lower layer is missing, unreadable or not a directory",
    ),
    ("4", "the upper or work directory cannot be used"),
    (
        "5",
        "in use: the upper by another mount, or the mount by a process",
    ),
    ("6", "the mountpoint is missing or not a directory"),
    (
        "7",
        "FUSE is not available: /dev/fuse, fusermount3 or permission",
    ),
    ("8", "not a plyfs mount"),
    ("9", "no such image, layer or file"),
    (
        "10",
        "an archive, image, upper or the store is damaged or malformed",
    ),
    ("126", "CMD cannot be executed"),
    ("127", "CMD was not found"),
    ("128+N", "CMD was ended by signal N"),
];

/// [`TABLE`] as a paragraph of `--help`.
pub(super) fn help() -> String {
    let lines = TABLE
        .iter()
        .map(|(code, meaning)| format!("  {code:<6} {meaning}\n"));
    std::iter::once("Exit codes:\n".to_owned())
        .chain(lines)
        .collect()
}

/// Why the command failed: printed as `plyfs: <sentence>`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Failure {
    pub(super) exit: Exit,
    pub(super) sentence: String,
}

impl Failure {
    pub(super) fn new(exit: Exit, sentence: impl Into<String>) -> Self {
        Self {
            exit,
            sentence: sentence.into(),
        }
    }

    pub(super) fn usage(sentence: impl Into<String>) -> Self {
        Self::new(Exit::Usage, sentence)
    }

    /// A failure without a code of its own.
    pub(super) fn other(sentence: impl Into<String>) -> Self {
        Self::new(Exit::Failure, sentence)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}

impl From<SetupError> for Failure {
    fn from(error: SetupError) -> Self {
        let exit = match error.cause() {
            Cause::Usage => Exit::Usage,
            Cause::Lower => Exit::Lower,
            Cause::Upper => Exit::Upper,
            Cause::InUse => Exit::InUse,
            Cause::Mountpoint => Exit::Mountpoint,
            Cause::Fuse => Exit::Fuse,
            Cause::System => Exit::Failure,
        };
        Self::new(exit, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::{Exit, TABLE};

    #[test]
    fn every_exit_code_is_in_the_documented_table() {
        let documented: Vec<&str> = TABLE.iter().map(|(code, _)| *code).collect();
        for exit in Exit::ALL {
            let code = (exit as u8).to_string();
            assert!(
                documented.contains(&code.as_str()),
                "{exit:?} = {code} is not documented"
            );
            assert_eq!(Exit::from_code(exit as i32), exit);
        }
    }
}
