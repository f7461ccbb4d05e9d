//! The grammar of `-o`: comma-separated `name` or `name=value`.
//!
//! A backslash takes the next character literally (`\,` `\:` `\\`), as in kernel overlayfs. A value
//! that starts with a double quote runs to the closing quote, so `context="a:b,c"` is one option, as in
//! mount(8). Bytes, not text: paths need not be UTF-8.

use std::borrow::Cow;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::str::FromStr;

/// One option as written.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Opt {
    name: String,
    /// Without the quotes, escapes still in place; `None` when there is no `=`.
    value: Option<Vec<u8>>,
    quoted: bool,
}

/// Splits one `-o` argument. Empty options (`a,,b`) are skipped, as mount(8) and the kernel do.
pub(super) fn split(text: &[u8]) -> Result<Vec<Opt>, String> {
    let mut options = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (option, after) = next(rest)?;
        if !(option.name.is_empty() && option.value.is_none()) {
            options.push(option);
        }
        rest = after;
    }
    Ok(options)
}

/// The first option of `text` and what follows its comma.
fn next(text: &[u8]) -> Result<(Opt, &[u8]), String> {
    let name_end = text
        .iter()
        .position(|&b| b == b',' || b == b'=')
        .unwrap_or(text.len());
    let name = String::from_utf8_lossy(&text[..name_end]).into_owned();
    if text.get(name_end) != Some(&b'=') {
        let after = text.get(name_end + 1..).unwrap_or_default();
        return Ok((
            Opt {
                name,
                value: None,
                quoted: false,
            },
            after,
        ));
    }
    if name.is_empty() {
        return Err(format!(
            "an option has no name in '{}'",
            String::from_utf8_lossy(text)
        ));
    }
    let start = name_end + 1;
    let quoted = text.get(start) == Some(&b'"');
    let (value, after) = if quoted {
        quoted_value(&text[start + 1..]).map_err(|what| format!("option '{name}': {what}"))?
    } else {
        let end = unescaped(&text[start..], b',')
            .ok_or_else(|| format!("option '{name}' ends in a lone backslash"))?;
        (
            &text[start..start + end],
            text.get(start + end + 1..).unwrap_or_default(),
        )
    };
    Ok((
        Opt {
            name,
            value: Some(value.to_vec()),
            quoted,
        },
        after,
    ))
}

/// The value up to its closing quote, and what follows the comma behind that.
fn quoted_value(text: &[u8]) -> Result<(&[u8], &[u8]), &'static str> {
    let end = unescaped(text, b'"')
        .filter(|&end| end < text.len())
        .ok_or("the quote is not closed")?;
    match text.get(end + 1) {
        None => Ok((&text[..end], &[])),
        Some(b',') => Ok((&text[..end], &text[end + 2..])),
        Some(_) => Err("there is text behind the closing quote"),
    }
}

/// Where `stop` first stands unescaped, or the length; `None` if a backslash escapes nothing.
fn unescaped(text: &[u8], stop: u8) -> Option<usize> {
    let mut at = 0;
    while at < text.len() && text[at] != stop {
        at += if text[at] == b'\\' { 2 } else { 1 };
    }
    (at <= text.len()).then_some(at)
}

/// Removes the backslashes of escapes.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut bytes = text.iter();
    while let Some(&byte) = bytes.next() {
        let literal = if byte == b'\\' {
            bytes.next()
        } else {
            Some(&byte)
        };
        plain.extend(literal);
    }
    plain
}

impl Opt {
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// As written: `name`, `name=value` or `name="value"`.
    pub(super) fn as_written(&self) -> String {
        match &self.value {
            None => self.name.clone(),
            Some(value) => {
                let quote = if self.quoted { "\"" } else { "" };
                format!(
                    "{}={quote}{}{quote}",
                    self.name,
                    String::from_utf8_lossy(value)
                )
            }
        }
    }

    pub(super) fn has_value(&self) -> bool {
        self.value.is_some()
    }

    /// An option that takes no value.
    pub(super) fn flag(&self) -> Result<(), String> {
        match self.value {
            None => Ok(()),
            Some(_) => Err(format!("option '{}' takes no value", self.name)),
        }
    }

    fn value(&self) -> Result<&[u8], String> {
        match &self.value {
            Some(value) if !value.is_empty() => Ok(value),
            _ => Err(format!(
                "option '{}' needs a value: {}=VALUE",
                self.name, self.name
            )),
        }
    }

    /// The value as text, for messages and for comparing with words.
    pub(super) fn text(&self) -> Result<Cow<'_, str>, String> {
        self.value().map(String::from_utf8_lossy)
    }

    pub(super) fn path(&self) -> Result<PathBuf, String> {
        self.value()
            .map(|value| PathBuf::from(OsString::from_vec(unescape(value))))
    }

    /// A `:`-separated list of paths, none of them empty.
    pub(super) fn paths(&self) -> Result<Vec<PathBuf>, String> {
        let mut rest = self.value()?;
        let mut paths = Vec::new();
        loop {
            let end = unescaped(rest, b':')
                .ok_or_else(|| format!("option '{}' ends in a lone backslash", self.name))?;
            if end == 0 {
                return Err(self.empty_component(paths.is_empty(), rest));
            }
            paths.push(PathBuf::from(OsString::from_vec(unescape(&rest[..end]))));
            match rest.get(end + 1..) {
                Some(after) => rest = after,
                None => return Ok(paths),
            }
        }
    }

    fn empty_component(&self, first: bool, rest: &[u8]) -> String {
        if first || rest.is_empty() {
            format!("option '{}' has an empty path in its list", self.name)
        } else {
            format!(
                "option '{}' contains '::', which asks for data-only layers; they are not supported",
                self.name
            )
        }
    }

    /// One of the given words.
    pub(super) fn choice<T: Copy>(&self, words: &[(&str, T)]) -> Result<T, String> {
        let text = self.text()?;
        let found = words
            .iter()
            .find(|(word, _)| *word == text)
            .map(|(_, meaning)| *meaning);
        found.ok_or_else(|| {
            let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            format!(
                "option '{}' must be one of {}, not '{text}'",
                self.name,
                words.join(", ")
            )
        })
    }

    pub(super) fn on_off(&self) -> Result<bool, String> {
        self.choice(&[("on", true), ("off", false)])
    }

    pub(super) fn zero_one(&self) -> Result<bool, String> {
        self.choice(&[("0", false), ("1", true)])
    }

    pub(super) fn number<T: FromStr>(&self) -> Result<T, String> {
        let text = self.text()?;
        text.parse()
            .map_err(|_| format!("option '{}' needs a number, not '{text}'", self.name))
    }
}

/// The word of `known` nearest to `word`, if it is near enough to be what was meant.
pub(super) fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let limit = word.chars().count().div_ceil(2).max(2);
    known
        .map(|candidate| (distance(word, candidate), candidate))
        .min()
        .filter(|(distance, _)| *distance <= limit)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Opt {
        let mut options = split(text.as_bytes()).unwrap();
        assert_eq!(options.len(), 1, "{options:?}");
        options.remove(0)
    }

    fn paths(text: &str) -> Result<Vec<PathBuf>, String> {
        one(text).paths()
    }

    #[test]
    fn options_are_separated_by_commas_and_empty_ones_skipped() {
        let options = split(b",ro,,upperdir=/u,").unwrap();
        assert_eq!(
            options.iter().map(Opt::name).collect::<Vec<_>>(),
            ["ro", "upperdir"]
        );
        assert_eq!(options[0].flag(), Ok(()));
        assert_eq!(options[1].path().unwrap(), PathBuf::from("/u"));
    }

    #[test]
    fn an_escaped_comma_stays_in_the_value() {
        let options = split(br"upperdir=/a\,b,ro").unwrap();
        assert_eq!(options[0].path().unwrap(), PathBuf::from("/a,b"));
        assert_eq!(options[1].name(), "ro");
    }

    #[test]
    fn an_escaped_colon_stays_in_the_path() {
        assert_eq!(
            paths(r"lowerdir=/a\:b:/c").unwrap(),
            [PathBuf::from("/a:b"), PathBuf::from("/c")]
        );
    }

    #[test]
    fn an_escaped_backslash_does_not_escape_what_follows() {
        assert_eq!(
            paths(r"lowerdir=/a\\:/c").unwrap(),
            [PathBuf::from(r"/a\"), PathBuf::from("/c")]
        );
    }

    #[test]
    fn a_lone_backslash_at_the_end_is_refused() {
        let error = split(br"upperdir=/a\").unwrap_err();
        assert_eq!(error, "option 'upperdir' ends in a lone backslash");
    }

    #[test]
    fn quotes_around_a_value_keep_its_commas() {
        let options = split(br#"context="system_u:object_r:x_t:s0:c1,c2",ro"#).unwrap();
        assert_eq!(options[0].text().unwrap(), "system_u:object_r:x_t:s0:c1,c2");
        assert_eq!(
            options[0].as_written(),
            r#"context="system_u:object_r:x_t:s0:c1,c2""#
        );
        assert_eq!(options[1].name(), "ro");
    }

    #[test]
    fn a_quote_inside_a_value_is_an_ordinary_character() {
        assert_eq!(
            one(r#"upperdir=/a"b"#).path().unwrap(),
            PathBuf::from(r#"/a"b"#)
        );
    }

    #[test]
    fn an_unclosed_quote_is_refused() {
        let error = split(br#"context="a,b"#).unwrap_err();
        assert_eq!(error, "option 'context': the quote is not closed");
    }

    #[test]
    fn text_behind_a_closing_quote_is_refused() {
        let error = split(br#"context="a"b,ro"#).unwrap_err();
        assert_eq!(
            error,
            "option 'context': there is text behind the closing quote"
        );
    }

    #[test]
    fn an_option_without_a_name_is_refused() {
        assert_eq!(split(b"=x").unwrap_err(), "an option has no name in '=x'");
    }

    #[test]
    fn data_only_layers_are_refused_with_a_sentence() {
        let error = paths("lowerdir=/a:/b::/c").unwrap_err();
        assert!(error.contains("data-only layers"), "{error}");
    }

    #[test]
    fn empty_layer_paths_are_refused() {
        for text in ["lowerdir=:/a", "lowerdir=/a:", "lowerdir=::/a"] {
            let error = paths(text).unwrap_err();
            assert_eq!(
                error, "option 'lowerdir' has an empty path in its list",
                "{text}"
            );
        }
        assert!(paths("lowerdir=").unwrap_err().contains("needs a value"));
    }

    #[test]
    fn paths_need_not_be_utf_8() {
        use std::os::unix::ffi::OsStrExt;
        let options = split(b"upperdir=/\xff\xfe").unwrap();
        assert_eq!(
            options[0].path().unwrap().as_os_str().as_bytes(),
            b"/\xff\xfe"
        );
    }

    #[test]
    fn the_nearest_word_is_suggested_only_when_it_is_near() {
        let known = || ["lowerdir", "upperdir", "workdir", "ro"].into_iter();
        assert_eq!(nearest("lowredir", known()), Some("lowerdir"));
        assert_eq!(nearest("updir", known()), Some("upperdir"));
        assert_eq!(nearest("frobnicate", known()), None);
    }
}
