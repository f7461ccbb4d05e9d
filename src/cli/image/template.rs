//! `--format`: the part of Go's templates that people use with docker.
//!
//! `{{.Field}}`, `{{.A.B}}`, `{{json .A}}`, `{{index .A "key"}}`, `{{len .A}}`, `{{join .A ","}}`; `\t` and `\n`. A
//! leading `table ` makes columns with headings.

use serde_json::Value;

use crate::cli::exit::Failure;

/// A parsed template.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Template(Vec<Piece>);

#[derive(Debug, Eq, PartialEq)]
enum Piece {
    Text(String),
    Field(Vec<String>),
    Json(Vec<String>),
    Length(Vec<String>),
    Index(Vec<String>, String),
    Join(Vec<String>, String),
}

impl Template {
    pub(super) fn parse(text: &str) -> Result<Self, Failure> {
        let refused = |what: &str| {
            Failure::usage(format!(
                "the format '{text}' {what}; known are {{{{.Field}}}}, {{{{json .Field}}}}, {{{{index .Field \"key\"}}}}, \
                 {{{{len .Field}}}} and {{{{join .Field \",\"}}}}"
            ))
        };
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("{{") {
            let (action, behind) = after
                .split_once("}}")
                .ok_or_else(|| refused("has no '}}'"))?;
            pieces.push(Piece::Text(unescaped(before)));
            pieces.push(piece(action).ok_or_else(|| refused(&format!("has '{{{{{action}}}}}'")))?);
            rest = behind;
        }
        pieces.push(Piece::Text(unescaped(rest)));
        Ok(Self(pieces))
    }

    /// The text for `value`; a field that it does not have is an error.
    pub(super) fn render(&self, value: &Value) -> Result<String, Failure> {
        self.0.iter().map(|piece| piece.render(value)).collect()
    }

    /// The headings of a table: the names of the fields, in capitals; `id` for the one called ID.
    pub(super) fn heading(&self, id: &str) -> String {
        let word = |field: &Vec<String>| {
            field
                .last()
                .map(|name| heading(name, id))
                .unwrap_or_default()
        };
        let pieces = self.0.iter().map(|piece| match piece {
            Piece::Text(text) => text.clone(),
            Piece::Field(field)
            | Piece::Json(field)
            | Piece::Length(field)
            | Piece::Index(field, _)
            | Piece::Join(field, _) => word(field),
        });
        pieces.collect()
    }
}

/// `CreatedBy` is shown as `CREATED BY`; docker has names of its own for some.
fn heading(field: &str, id: &str) -> String {
    match field {
        "ID" => return id.into(),
        "CreatedSince" => return "CREATED".into(),
        _ => {}
    }
    let mut words = String::new();
    for c in field.chars() {
        if c.is_uppercase() && !words.is_empty() {
            words.push(' ');
        }
        words.extend(c.to_uppercase());
    }
    words
}

fn unescaped(text: &str) -> String {
    text.replace("\\t", "\t").replace("\\n", "\n")
}

fn piece(action: &str) -> Option<Piece> {
    let action = action.trim();
    let (function, argument) = action.split_once(' ').unwrap_or(("", action));
    let (argument, text) = match argument.trim().split_once(' ') {
        Some((field, text)) => (field, text.trim().strip_prefix('"')?.strip_suffix('"')?),
        None => (argument.trim(), ""),
    };
    let names = argument
        .strip_prefix('.')?
        .split('.')
        .filter(|name| !name.is_empty());
    let field = names.map(str::to_owned).collect();
    match function {
        "" => Some(Piece::Field(field)),
        "json" => Some(Piece::Json(field)),
        "len" => Some(Piece::Length(field)),
        "index" => Some(Piece::Index(field, text.to_owned())),
        "join" => Some(Piece::Join(field, unescaped(text))),
        _ => None,
    }
}

impl Piece {
    fn render(&self, value: &Value) -> Result<String, Failure> {
        Ok(match self {
            Self::Text(text) => text.clone(),
            Self::Field(field) => shown(find(value, field)?),
            Self::Json(field) => find(value, field)?.to_string(),
            Self::Length(field) => match find(value, field)? {
                Value::Array(items) => items.len().to_string(),
                Value::Object(items) => items.len().to_string(),
                other => shown(other).len().to_string(),
            },
            Self::Index(field, key) => {
                let of = find(value, field)?;
                let position = key.parse::<usize>().ok();
                of.get(key)
                    .or_else(|| of.get(position?))
                    .map(shown)
                    .unwrap_or_default()
            }
            Self::Join(field, separator) => {
                let items = find(value, field)?
                    .as_array()
                    .map(Vec::as_slice)
                    .unwrap_or_default();
                items.iter().map(shown).collect::<Vec<_>>().join(separator)
            }
        })
    }
}

fn find<'a>(value: &'a Value, field: &[String]) -> Result<&'a Value, Failure> {
    field.iter().try_fold(value, |value, name| {
        value.get(name).ok_or_else(|| {
            let known = value
                .as_object()
                .into_iter()
                .flat_map(|fields| fields.keys());
            let known: Vec<_> = known.map(String::as_str).collect();
            Failure::usage(format!(
                "there is no field '{name}'; there are: {}",
                known.join(", ")
            ))
        })
    })
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_and_functions_are_rendered() {
        let value = json!({"A": {"B": "b", "l": ["x", "y"]}, "N": 7, "E": null});
        for (template, text) in [
            ("{{.A.B}}-{{ .N }}", "b-7"),
            (r"a\t{{.N}}\n", "a\t7\n"),
            ("{{json .A}}", r#"{"B":"b","l":["x","y"]}"#),
            (
                r#"{{index .A "B"}} {{len .A.l}} {{join .A.l ","}}"#,
                "b 2 x,y",
            ),
            ("{{.E}}", ""),
        ] {
            assert_eq!(
                Template::parse(template).unwrap().render(&value).unwrap(),
                text
            );
        }
        assert_eq!(
            Template::parse("{{json .}}")
                .unwrap()
                .render(&json!(1))
                .unwrap(),
            "1"
        );
    }

    #[test]
    fn what_is_not_known_is_said() {
        for template in ["{{", "{{range .A}}", "{{if .A}}", "{{.A | json}}", "{{A}}"] {
            Template::parse(template).unwrap_err();
        }
        let error = Template::parse("{{.Nix}}")
            .unwrap()
            .render(&json!({"A": 1}));
        assert_eq!(
            error.unwrap_err().sentence,
            "there is no field 'Nix'; there are: A"
        );
    }

    #[test]
    fn headings_are_words_in_capitals() {
        let template = Template::parse(r"{{.ID}}\t{{.CreatedBy}}").unwrap();
        assert_eq!(template.heading("IMAGE ID"), "IMAGE ID\tCREATED BY");
    }
}
