//! Why a stack of layers or a mount could not be set up.
//!
//! A running filesystem answers with an errno. Setting one up is different: the person in front of the
//! terminal needs to know which directory is wrong and what to do, so these errors are sentences, and
//! their [`Cause`] decides the exit code.

use std::fmt;

/// What kind of thing is wrong. The command line maps each to one documented exit code.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Cause {
    /// An option is unknown, malformed or contradicts another.
    Usage,
    /// A lower layer is missing, unreadable, or not a directory.
    Lower,
    /// The upper or work directory cannot be used.
    Upper,
    /// The upper or work directory belongs to a mount that is alive, or was left volatile.
    InUse,
    /// The mountpoint is missing, not a directory, or inside the upper.
    Mountpoint,
    /// FUSE is not available: no /dev/fuse, no fusermount3, or the mount was refused.
    Fuse,
    /// Anything else the system refused.
    System,
}

/// One sentence that names what is wrong and what to do, and its [`Cause`].
#[derive(Clone, Debug)]
pub struct SetupError {
    cause: Cause,
    sentence: String,
}

impl SetupError {
    /// A new error; `sentence` has no trailing newline or full stop.
    pub fn new(cause: Cause, sentence: impl Into<String>) -> Self {
        Self {
            cause,
            sentence: sentence.into(),
        }
    }

    /// What kind of thing is wrong.
    pub fn cause(&self) -> Cause {
        self.cause
    }
}

impl fmt::Display for SetupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}

impl std::error::Error for SetupError {}
