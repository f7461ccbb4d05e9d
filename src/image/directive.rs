//! Changes to an image's configuration in the words of a Dockerfile, as `commit --change` takes them.
//!
//! Syntax: the Dockerfile reference. Values are split at blanks; quotes and backslashes keep blanks together. Nothing
//! is substituted.

use std::str::FromStr;

use serde_json::{Map, Value, json};

use super::digest::plain;
use super::error::{Cause, ImageError, Result};

/// One change.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Directive {
    /// Environment variables.
    Env(Vec<(String, String)>),
    /// Labels.
    Label(Vec<(String, String)>),
    /// The default command.
    Cmd(Vec<String>),
    /// The program that gets the command as arguments. Resets a command that is not given together with it.
    Entrypoint(Vec<String>),
    /// Where it runs; a relative path is below the one before.
    WorkingDir(String),
    /// As whom it runs.
    User(String),
    /// Ports, each with its protocol.
    Expose(Vec<String>),
    /// Directories that are kept outside.
    Volume(Vec<String>),
    /// What ends it.
    StopSignal(String),
    /// A directive for images built on this one.
    OnBuild(String),
}

impl FromStr for Directive {
    type Err = ImageError;

    fn from_str(text: &str) -> Result<Self> {
        let refuse = |why: &str| {
            let text = plain(text);
            ImageError::new(Cause::Usage, format!("change '{text}': {why}"))
        };
        let trimmed = text.trim();
        let (word, rest) = trimmed
            .split_once(char::is_whitespace)
            .map(|(word, rest)| (word, rest.trim()))
            .ok_or_else(|| refuse("say a directive and its value, for example 'USER www'"))?;
        let words = || words(rest).ok_or_else(|| refuse("a quote is not closed"));
        let pairs = || pairs(rest).ok_or_else(|| refuse("say NAME=VALUE, or NAME VALUE"));
        Ok(match word.to_ascii_uppercase().as_str() {
            "ENV" => Self::Env(pairs()?),
            "LABEL" => Self::Label(pairs()?),
            "CMD" => Self::Cmd(command(rest)),
            "ENTRYPOINT" => Self::Entrypoint(command(rest)),
            "WORKDIR" => Self::WorkingDir(one(&words()?)),
            "USER" => Self::User(one(&words()?)),
            "EXPOSE" => {
                let ports = words()?
                    .iter()
                    .map(|port| self::port(port))
                    .collect::<Option<_>>();
                Self::Expose(ports.ok_or_else(|| refuse("a port is NUMBER or NUMBER/PROTOCOL"))?)
            }
            "VOLUME" => Self::Volume(list(rest).map_or_else(words, Ok)?),
            "STOPSIGNAL" => Self::StopSignal(one(&words()?)),
            "ONBUILD" => Self::OnBuild(rest.to_owned()),
            _ => {
                return Err(refuse(
                    "unknown directive; known are CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, ONBUILD, STOPSIGNAL, USER, \
                     VOLUME and WORKDIR",
                ));
            }
        })
    }
}

/// Applies `directives` to the `config` object of an image's configuration.
pub fn apply(directives: &[Directive], config: &mut Map<String, Value>) {
    let has_cmd = directives
        .iter()
        .any(|directive| matches!(directive, Directive::Cmd(_)));
    for directive in directives {
        match directive {
            Directive::Env(pairs) => pairs.iter().for_each(|pair| set_env(config, pair)),
            Directive::Label(pairs) => {
                let labels = object(config, "Labels");
                labels.extend(
                    pairs
                        .iter()
                        .map(|(name, value)| (name.clone(), json!(value))),
                );
            }
            Directive::Cmd(words) => set(config, "Cmd", json!(words)),
            Directive::Entrypoint(words) => {
                set(config, "Entrypoint", json!(words));
                if !has_cmd {
                    config.shift_remove("Cmd");
                }
            }
            Directive::WorkingDir(path) => {
                let before = config
                    .get("WorkingDir")
                    .and_then(Value::as_str)
                    .unwrap_or("/");
                let path = join(before, path);
                set(config, "WorkingDir", json!(path));
            }
            Directive::User(user) => set(config, "User", json!(user)),
            Directive::Expose(ports) => add_keys(config, "ExposedPorts", ports),
            Directive::Volume(paths) => add_keys(config, "Volumes", paths),
            Directive::StopSignal(signal) => set(config, "StopSignal", json!(signal)),
            Directive::OnBuild(text) => {
                let list = config.entry("OnBuild").or_insert_with(|| json!([]));
                match list {
                    Value::Array(list) => list.push(json!(text)),
                    other => *other = json!([text]),
                }
            }
        }
    }
}

fn set(config: &mut Map<String, Value>, name: &str, value: Value) {
    config.insert(name.to_owned(), value);
}

/// The object `name`, made if there is none.
fn object<'a>(config: &'a mut Map<String, Value>, name: &str) -> &'a mut Map<String, Value> {
    let value = config.entry(name).or_insert(Value::Null);
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(object) => object,
        _ => unreachable!("made an object above"),
    }
}

fn add_keys(config: &mut Map<String, Value>, name: &str, keys: &[String]) {
    object(config, name).extend(keys.iter().map(|key| (key.clone(), json!({}))));
}

fn set_env(config: &mut Map<String, Value>, (name, value): &(String, String)) {
    let line = json!(format!("{name}={value}"));
    let env = config.entry("Env").or_insert(Value::Null);
    let Value::Array(lines) = env else {
        *env = json!([line]);
        return;
    };
    let prefix = format!("{name}=");
    let known = |known: &&mut Value| {
        known
            .as_str()
            .is_some_and(|known| known.starts_with(&prefix))
    };
    match lines.iter_mut().find(known) {
        Some(known) => *known = line,
        None => lines.push(line),
    }
}

fn join(before: &str, path: &str) -> String {
    if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("{}/{path}", before.trim_end_matches('/'))
    }
}

/// `["a", "b"]`.
fn list(text: &str) -> Option<Vec<String>> {
    serde_json::from_str(text).ok()
}

/// A JSON list, or a line for the shell.
fn command(text: &str) -> Vec<String> {
    list(text).unwrap_or_else(|| ["/bin/sh", "-c", text].map(str::to_owned).to_vec())
}

fn one(words: &[String]) -> String {
    words.join(" ")
}

fn port(text: &str) -> Option<String> {
    let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let number: u16 = number.parse().ok()?;
    matches!(protocol, "tcp" | "udp" | "sctp").then(|| format!("{number}/{protocol}"))
}

/// `A=B C=D`, or `A rest of the line`.
fn pairs(text: &str) -> Option<Vec<(String, String)>> {
    let words = words(text)?;
    let first = words.first()?;
    if !first.contains('=') {
        let value = text.split_once(char::is_whitespace)?.1.trim();
        return Some(vec![(first.clone(), value.to_owned())]);
    }
    let pair = |word: &String| {
        let (name, value) = word.split_once('=')?;
        (!name.is_empty()).then(|| (name.to_owned(), value.to_owned()))
    };
    words.iter().map(pair).collect()
}

/// Words as a shell splits them; `None` if a quote is not closed.
fn words(text: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            (c, Some(open)) if c == open => quote = None,
            ('\\', quote) if quote != Some('\'') => {
                word.get_or_insert_default()
                    .push(chars.next().unwrap_or('\\'));
            }
            ('"' | '\'', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (c, None) if c.is_whitespace() => words.extend(word.take()),
            (c, _) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    quote.is_none().then_some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(config: Value, changes: &[&str]) -> Value {
        let Value::Object(mut config) = config else {
            panic!("not an object");
        };
        let directives: Vec<Directive> = changes.iter().map(|text| text.parse().unwrap()).collect();
        apply(&directives, &mut config);
        config.into()
    }

    #[test]
    fn every_directive_changes_its_field_and_no_other() {
        let config = json!({"Env": ["PATH=/bin", "A=1"], "Cmd": ["sh"], "WorkingDir": "/srv", "Healthcheck": {"x": 1}});
        let changes = [
            "ENV A=2 B=\"two words\"",
            "env C three words",
            "LABEL a.b=c",
            "CMD [\"run\", \"-v\"]",
            "ENTRYPOINT exec me",
            "WORKDIR app",
            "USER www:www",
            "EXPOSE 80 53/udp",
            "VOLUME /data /logs",
            "STOPSIGNAL SIGINT",
            "ONBUILD RUN make",
        ];
        assert_eq!(
            applied(config, &changes),
            json!({
                "Env": ["PATH=/bin", "A=2", "B=two words", "C=three words"],
                "Cmd": ["run", "-v"],
                "WorkingDir": "/srv/app",
                "Healthcheck": {"x": 1},
                "Labels": {"a.b": "c"},
                "Entrypoint": ["/bin/sh", "-c", "exec me"],
                "User": "www:www",
                "ExposedPorts": {"80/tcp": {}, "53/udp": {}},
                "Volumes": {"/data": {}, "/logs": {}},
                "StopSignal": "SIGINT",
                "OnBuild": ["RUN make"],
            })
        );
    }

    #[test]
    fn a_new_entrypoint_resets_a_command_that_is_not_given_with_it() {
        let config = json!({"Cmd": ["sh"], "Labels": null});
        assert_eq!(
            applied(config.clone(), &["ENTRYPOINT [\"/a\"]", "LABEL x=y"]),
            json!({"Labels": {"x": "y"}, "Entrypoint": ["/a"]})
        );
        assert_eq!(
            applied(config, &["CMD [\"b\"]", "ENTRYPOINT [\"/a\"]"]),
            json!({"Cmd": ["b"], "Labels": null, "Entrypoint": ["/a"]})
        );
    }

    #[test]
    fn what_is_no_directive_is_refused_by_name() {
        for (text, why) in [
            ("FROM x", "unknown directive"),
            ("USER", "for example"),
            ("ENV =x", "NAME=VALUE"),
            ("ENV A='x", "NAME=VALUE"),
            ("USER 'x", "quote"),
            ("EXPOSE http", "port"),
            ("EXPOSE 70000", "port"),
        ] {
            let error = text.parse::<Directive>().unwrap_err().to_string();
            assert!(error.contains(why) && error.contains(text), "{error}");
        }
    }
}
