//! Names of images, as docker and podman spell them: `[HOST[:PORT]/]PATH[:TAG]`.
//!
//! Grammar: distribution's `reference` package. A name is kept in its familiar form, without `docker.io/library/` and
//! with the tag written out, so that `alpine`, `alpine:latest` and `docker.io/library/alpine:latest` are one name.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::digest::plain;
use super::error::{Cause, ImageError, Result};

/// The tag of a name that has none.
const DEFAULT_TAG: &str = "latest";
/// Longest repository, as distribution has it.
const REPOSITORY_MAX: usize = 255;
const TAG_MAX: usize = 128;

/// A valid name: a repository and a tag.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Name {
    repository: String,
    tag: String,
}

impl Name {
    /// Everything before the tag, in the familiar form.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// What is behind the last colon.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// `repository:tag`, if both are valid.
    pub fn new(repository: &str, tag: &str) -> Option<Self> {
        let repository = familiar(repository);
        let valid = repository.len() <= REPOSITORY_MAX && is_repository(repository) && is_tag(tag);
        valid.then(|| Self {
            repository: repository.to_owned(),
            tag: tag.to_owned(),
        })
    }

    /// The full form that other programs write into archives: `docker.io/library/alpine:latest`.
    pub fn full(&self) -> String {
        match self.repository.split_once('/') {
            Some((host, _)) if is_host(host) => self.to_string(),
            Some(_) => format!("docker.io/{self}"),
            None => format!("docker.io/library/{self}"),
        }
    }

    /// The same name in the registry `localhost`, where podman and buildah put what was built here; `None` if it
    /// names a registry.
    pub fn local(&self) -> Option<Self> {
        let host = self.repository.split_once('/').map(|(host, _)| host);
        (!host.is_some_and(is_host)).then(|| Self {
            repository: format!("localhost/{}", self.repository),
            tag: self.tag.clone(),
        })
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.repository, self.tag)
    }
}

impl FromStr for Name {
    type Err = ImageError;

    fn from_str(text: &str) -> Result<Self> {
        let (repository, tag) = match text.rsplit_once(':') {
            // A slash behind the colon: it was a port.
            Some((repository, tag)) if !tag.contains('/') => (repository, tag),
            _ => (text, DEFAULT_TAG),
        };
        Self::new(repository, tag).ok_or_else(|| {
            ImageError::new(
                Cause::Usage,
                format!(
                    "'{}' is not a name for an image; say NAME or NAME:TAG in lower case",
                    plain(text)
                ),
            )
        })
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

fn familiar(repository: &str) -> &str {
    let hub = ["docker.io/", "index.docker.io/"];
    let rest = hub.iter().find_map(|host| repository.strip_prefix(host));
    rest.map_or(repository, |rest| match rest.strip_prefix("library/") {
        Some(official) if !official.contains('/') => official,
        _ => rest,
    })
}

/// Whether the first component of a repository names a registry.
fn is_host(word: &str) -> bool {
    word.contains(['.', ':'])
        || word == "localhost"
        || word.contains(|c: char| c.is_ascii_uppercase())
}

fn is_repository(repository: &str) -> bool {
    let path = match repository.split_once('/') {
        Some((host, path)) if is_host(host) => {
            if !is_valid_host(host) {
                return false;
            }
            path
        }
        _ => repository,
    };
    path.split('/').all(is_component)
}

fn is_valid_host(host: &str) -> bool {
    let (name, port) = host.split_once(':').unwrap_or((host, "0"));
    let named = name.split('.').all(|label| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    });
    named && !port.is_empty() && port.chars().all(|c| c.is_ascii_digit())
}

/// Letters and digits in words, separated by one dot, one or two underscores, or dashes.
fn is_component(component: &str) -> bool {
    let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    component.starts_with(is_word)
        && component.ends_with(is_word)
        && component.split(is_word).all(|separator| {
            matches!(separator, "" | "." | "_" | "__") || separator.chars().all(|c| c == '-')
        })
}

fn is_tag(tag: &str) -> bool {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    tag.len() <= TAG_MAX
        && tag.starts_with(is_word)
        && tag.chars().all(|c| is_word(c) || c == '.' || c == '-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_spellings_of_a_name_are_one() {
        for (text, name) in [
            ("alpine", "alpine:latest"),
            ("docker.io/library/alpine", "alpine:latest"),
            ("index.docker.io/library/alpine:3.20", "alpine:3.20"),
            ("docker.io/me/app:v1", "me/app:v1"),
            ("localhost/app", "localhost/app:latest"),
            ("localhost:5000/a/b", "localhost:5000/a/b:latest"),
            ("quay.io/a/b__c-d.e:V_1", "quay.io/a/b__c-d.e:V_1"),
            ("Registry/a:1", "Registry/a:1"),
        ] {
            assert_eq!(text.parse::<Name>().unwrap().to_string(), name);
        }
    }

    #[test]
    fn the_full_form_names_the_registry() {
        let full = |text: &str| text.parse::<Name>().unwrap().full();
        assert_eq!(full("alpine"), "docker.io/library/alpine:latest");
        assert_eq!(full("me/app:1"), "docker.io/me/app:1");
        assert_eq!(full("localhost/app:1"), "localhost/app:1");
    }

    #[test]
    fn what_cannot_be_a_name_is_refused_in_one_clean_line() {
        let long = "a".repeat(10 * 1024);
        for text in [
            "",
            ":",
            "a:",
            ":a",
            "A",
            "a b",
            "../a",
            "a/../b",
            "/a",
            "a/",
            "a//b",
            "-a",
            "a-",
            "a..b",
            "a___b",
            "a:b:c",
            "a:-",
            "\u{1b}[31ma",
            "a\nb",
            "a:\u{1b}[0m",
            "é",
            &long,
            "a@sha256:00",
            "h_.x/a",
            "host:x/a",
        ] {
            let error = text.parse::<Name>().expect_err(text).to_string();
            assert!(error.contains("is not a name for an image"), "{error}");
            assert!(
                error.len() < 400 && !error.contains(|c: char| c.is_control()),
                "{error:?}"
            );
        }
    }
}
