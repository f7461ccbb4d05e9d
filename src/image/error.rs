//! What can be wrong with an image, an archive or the store: one sentence that names it.

use std::fmt;
use std::io;

use rustix::io::Errno;

use crate::layer;

/// What kind of thing is wrong. The command line maps each to one documented exit code.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Cause {
    /// The request itself: a name that is none, a number that is out of range.
    Usage,
    /// No such image, layer or file.
    NotFound,
    /// What was given or what is stored is damaged, or is not what it says it is.
    Malformed,
    /// Something else uses it.
    InUse,
    /// The system refused.
    System,
    /// Given up, because something else went wrong.
    Stopped,
}

/// One sentence, without a trailing newline or full stop, and its [`Cause`].
#[derive(Clone, Debug)]
pub struct ImageError {
    cause: Cause,
    sentence: String,
}

impl ImageError {
    /// A new error.
    pub fn new(cause: Cause, sentence: impl Into<String>) -> Self {
        Self {
            cause,
            sentence: sentence.into(),
        }
    }

    /// What was given or stored is not as it must be.
    pub fn malformed(sentence: impl Into<String>) -> Self {
        Self::new(Cause::Malformed, sentence)
    }

    /// There is no such thing.
    pub fn not_found(sentence: impl Into<String>) -> Self {
        Self::new(Cause::NotFound, sentence)
    }

    /// The system's answer to `what`, for example `cannot write layers/…`.
    pub fn system(what: impl fmt::Display, error: &io::Error) -> Self {
        Self::new(Cause::System, format!("{what}: {}", why(error)))
    }

    /// What kind of thing is wrong.
    pub fn cause(&self) -> Cause {
        self.cause
    }

    /// The same error with where it happened in front.
    #[must_use]
    pub fn within(self, place: impl fmt::Display) -> Self {
        Self {
            sentence: format!("{place}: {}", self.sentence),
            ..self
        }
    }
}

/// The system's words for `error`, as they appear behind a colon.
pub fn why(error: &io::Error) -> String {
    let text = error.to_string();
    // The crate tempfile adds a path, which our sentences have already, and leaves the error in its text alone.
    let hidden = || {
        let (_, rest) = text.split_once(" (os error ")?;
        let number = rest.split(')').next()?.parse().ok()?;
        Some(Errno::from_raw_os_error(number))
    };
    let errno = Errno::from_io_error(error).or_else(hidden);
    errno.map_or_else(|| text.clone(), layer::describe)
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}

impl std::error::Error for ImageError {}

/// The result of everything here.
pub type Result<T> = std::result::Result<T, ImageError>;

/// Gives errors of the system the sentence they need.
pub(super) trait Context<T> {
    /// `what` says what was tried, for example `cannot read /a/b`.
    fn context<D: fmt::Display>(self, what: impl FnOnce() -> D) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn context<D: fmt::Display>(self, what: impl FnOnce() -> D) -> Result<T> {
        self.map_err(|error| ImageError::system(what(), &error.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_told_in_the_systems_words_whoever_wrapped_them() {
        let plain = io::Error::from_raw_os_error(28);
        assert_eq!(why(&plain), "no space left on device");
        let missing = tempfile::NamedTempFile::new_in("/missing/directory").unwrap_err();
        assert_eq!(why(&missing), "no such file or directory");
        assert_eq!(why(&io::Error::other("of our own")), "of our own");
    }
}
