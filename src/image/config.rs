//! The image config: how to run an image, which layers it has, how it was made.
//!
//! Formats: OCI image specification `config.md`; docker's image JSON is the same with more fields. Only what is shown
//! or decided by is parsed, leniently: any optional field may be `null`. The bytes are kept by the store, and a
//! changed config is made from the [`serde_json::Value`] of the old one, so that unknown fields survive.

use serde::Deserialize;
use serde_json::Value;

use super::digest::DiffId;
use super::error::{ImageError, Result};
use super::manifest::{nullable, parse};

/// A config, parsed.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Config {
    /// RFC 3339; may be empty.
    #[serde(default, deserialize_with = "nullable")]
    pub created: String,
    /// Who made it.
    #[serde(default, deserialize_with = "nullable")]
    pub author: String,
    /// `amd64`, ...
    #[serde(default, deserialize_with = "nullable")]
    pub architecture: String,
    /// `v8`, ...
    #[serde(default, deserialize_with = "nullable")]
    pub variant: String,
    /// `linux`, ...
    #[serde(default, deserialize_with = "nullable")]
    pub os: String,
    /// Of Windows images.
    #[serde(default, rename = "os.version", deserialize_with = "nullable")]
    pub os_version: String,
    /// Docker's: said at commit.
    #[serde(default, deserialize_with = "nullable")]
    pub comment: String,
    /// Docker's: what made the image.
    #[serde(default, deserialize_with = "nullable")]
    pub docker_version: String,
    /// How to run it: `User`, `Env`, `Cmd`, ...; an object or null.
    #[serde(default, deserialize_with = "nullable")]
    pub config: Value,
    /// The layers.
    #[serde(default, deserialize_with = "nullable")]
    pub rootfs: Rootfs,
    /// Oldest first; may have fewer entries than there are layers.
    #[serde(default, deserialize_with = "nullable")]
    pub history: Vec<History>,
}

/// The layers of an image.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Rootfs {
    /// Base first.
    #[serde(default, deserialize_with = "nullable")]
    pub diff_ids: Vec<DiffId>,
}

/// One step that made the image.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
pub struct History {
    /// RFC 3339; may be empty.
    #[serde(default, deserialize_with = "nullable")]
    pub created: String,
    /// The command.
    #[serde(default, deserialize_with = "nullable")]
    pub created_by: String,
    /// Who.
    #[serde(default, deserialize_with = "nullable")]
    pub author: String,
    /// Why.
    #[serde(default, deserialize_with = "nullable")]
    pub comment: String,
    /// The step made no layer.
    #[serde(default, deserialize_with = "nullable")]
    pub empty_layer: bool,
}

/// One line of an image's history.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Step {
    /// Index of the layer it made, base = 0.
    pub layer: Option<usize>,
    /// What the config says of it; `None` for a layer without an entry.
    pub history: Option<History>,
}

impl Config {
    /// Reads a config.
    pub fn parse(json: &[u8]) -> Result<Self> {
        let config: Self = parse(json, "image config")?;
        if !(config.config.is_null() || config.config.is_object()) {
            return Err(ImageError::malformed(
                "not a valid image config: 'config' is not an object",
            ));
        }
        Ok(config)
    }

    /// History and layers side by side, oldest first, for an image of `layers` layers.
    ///
    /// They are aligned from the base. Layers without an entry follow as steps without history; entries beyond the
    /// last layer make none.
    pub fn steps(&self, layers: usize) -> Vec<Step> {
        let mut next = 0;
        let mut steps: Vec<Step> = self
            .history
            .iter()
            .map(|history| {
                let layer = (!history.empty_layer && next < layers).then_some(next);
                next += usize::from(layer.is_some());
                Step {
                    layer,
                    history: Some(history.clone()),
                }
            })
            .collect();
        steps.extend((next..layers).map(|layer| Step {
            layer: Some(layer),
            history: None,
        }));
        steps
    }

    /// The text of a field of `config`, such as `User`.
    pub fn text(&self, field: &str) -> &str {
        self.config
            .get(field)
            .and_then(Value::as_str)
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn optional_fields_may_be_null() {
        let config = Config::parse(
            br#"{"created":null,"architecture":"amd64","os":"linux","config":null,"history":null,
                 "rootfs":{"type":"layers","diff_ids":null},"invented":{"a":1}}"#,
        )
        .unwrap();
        assert_eq!(config.architecture, "amd64");
        assert!(config.history.is_empty() && config.rootfs.diff_ids.is_empty());
    }

    #[test]
    fn what_is_no_config_is_refused() {
        for json in [
            "",
            "[]",
            "{",
            r#"{"os":1}"#,
            r#"{"config":[]}"#,
            r#"{"os":"a","os":"b"}"#,
        ] {
            let error = Config::parse(json.as_bytes()).expect_err(json);
            assert!(
                error.to_string().contains("not a valid image config"),
                "{error}"
            );
        }
        let deep = format!("{{\"config\":{}", "[".repeat(100_000));
        Config::parse(deep.as_bytes()).unwrap_err();
    }

    fn history(empty: &[bool]) -> Config {
        let history = empty.iter().map(|&empty_layer| History {
            empty_layer,
            ..History::default()
        });
        Config {
            history: history.collect(),
            ..Config::default()
        }
    }

    fn layers(config: &Config, layers: usize) -> Vec<(Option<usize>, bool)> {
        let steps = config.steps(layers);
        steps
            .iter()
            .map(|step| (step.layer, step.history.is_some()))
            .collect()
    }

    #[test]
    fn history_is_aligned_with_layers_from_the_base() {
        let config = history(&[false, true, false]);
        assert_eq!(
            layers(&config, 2),
            [(Some(0), true), (None, true), (Some(1), true)]
        );
        assert_eq!(
            layers(&config, 3),
            [
                (Some(0), true),
                (None, true),
                (Some(1), true),
                (Some(2), false)
            ]
        );
        assert_eq!(
            layers(&config, 1),
            [(Some(0), true), (None, true), (None, true)]
        );
        assert_eq!(
            layers(&Config::default(), 2),
            [(Some(0), false), (Some(1), false)]
        );
    }
}
