//! `plyfs stats`: the counters of a live mount.
//!
//! The daemon answers with JSON; what is shown here follows from its shape alone, so a daemon may count
//! what it likes: a number is a line, an object of numbers a section, an object of objects a table.

use std::io::{self, IsTerminal};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use serde_json::{Map, Value};

use super::exit::{Exit, Failure};
use super::{output, umount, virtual_xattr};
use crate::layer;

/// Where the daemon shows its counters.
const XATTR: &str = "user.plyfs.stats";

const INTERVAL: Duration = Duration::from_secs(1);

/// Prints the counters of the mount at `path`, with `watch` every second and with rates.
pub(super) fn run(path: &Path, json: bool, watch: bool) -> Result<u8, Failure> {
    let mountpoint = umount::find(path)?;
    let mut earlier: Option<(Value, Instant)> = None;
    loop {
        let text = read(&mountpoint)?;
        let now = Instant::now();
        let shown = if json {
            String::from_utf8_lossy(text.trim_ascii_end()).replace('\n', " ") + "\n"
        } else {
            let stats = serde_json::from_slice(&text).map_err(|error| {
                Failure::other(format!("the daemon's statistics are malformed: {error}"))
            })?;
            let page = Page {
                earlier: earlier
                    .as_ref()
                    .map(|(stats, then)| (stats, now.duration_since(*then))),
            };
            let clear = if watch && io::stdout().is_terminal() {
                "\x1b[H\x1b[J"
            } else {
                ""
            };
            let shown = format!("{clear}{}", page.render(&stats));
            earlier = Some((stats, now));
            shown
        };
        output::print(&shown)?;
        if !watch {
            return Ok(Exit::Ok as u8);
        }
        thread::sleep(INTERVAL);
    }
}

fn read(mountpoint: &Path) -> Result<Vec<u8>, Failure> {
    let place = mountpoint.display();
    virtual_xattr::ask(mountpoint, XATTR)
        .answer()
        .map_err(|error| match error {
            Errno::NODATA | Errno::NOTSUP => {
                Failure::other(format!("the daemon of {place} offers no statistics"))
            }
            Errno::NOTCONN | Errno::CONNABORTED => Failure::new(
                Exit::NotPlyfs,
                format!("the daemon of {place} is gone; 'plyfs umount {place}' clears it away"),
            ),
            error => Failure::other(format!(
                "cannot ask {place} for statistics: {}",
                layer::describe(error)
            )),
        })
}

/// One printing of the counters, and the one before it.
struct Page<'a> {
    earlier: Option<(&'a Value, Duration)>,
}

impl Page<'_> {
    fn render(&self, stats: &Value) -> String {
        let Value::Object(stats) = stats else {
            return format!("{stats}\n");
        };
        let (sections, lines): (Map<_, _>, Map<_, _>) = stats
            .clone()
            .into_iter()
            .partition(|(_, value)| value.is_object());
        let mut text = self.section("", &lines);
        for (name, section) in &sections {
            let Value::Object(section) = section else {
                continue;
            };
            if !text.is_empty() {
                text.push('\n');
            }
            if !section.is_empty() && section.values().all(Value::is_object) {
                text.push_str(&self.table(name, section));
            } else {
                text.extend([&name.to_uppercase(), ":\n", &self.section(name, section)]);
            }
        }
        text
    }

    /// One line for each value.
    fn section(&self, parent: &str, values: &Map<String, Value>) -> String {
        if values.is_empty() {
            return String::new();
        }
        let mut header = vec!["NAME", "VALUE"];
        header.extend(self.earlier.map(|_| "PER SECOND"));
        let rows: Vec<Vec<String>> = values
            .iter()
            .map(|(name, value)| {
                let mut row = vec![name.clone(), plain(value)];
                let path = [parent, name];
                row.extend(self.earlier.map(|_| self.rate(&path, value)));
                row
            })
            .collect();
        output::table(&header, &rows)
    }

    /// One row for each object, one column for each name any of them has.
    fn table(&self, title: &str, rows: &Map<String, Value>) -> String {
        let mut columns: Vec<&str> = Vec::new();
        for row in rows.values().filter_map(Value::as_object) {
            for name in row.keys().filter(|name| *name != COUNT) {
                if !columns.contains(&name.as_str()) {
                    columns.push(name);
                }
            }
        }
        let counted = rows.values().any(|row| row.get(COUNT).is_some());
        if counted {
            columns.insert(0, COUNT);
        }
        let mut header = vec![title.to_uppercase()];
        header.extend(columns.iter().map(|name| name.to_uppercase()));
        let rates = counted && self.earlier.is_some();
        header.extend(rates.then(|| "PER SECOND".to_owned()));
        let rows: Vec<Vec<String>> = rows
            .iter()
            .map(|(name, row)| {
                let cell = |column: &&str| row.get(*column).map_or("-".to_owned(), plain);
                let mut cells = vec![name.clone()];
                cells.extend(columns.iter().map(cell));
                let count = row.get(COUNT).unwrap_or(&Value::Null);
                cells.extend(rates.then(|| self.rate(&[title, name, COUNT], count)));
                cells
            })
            .collect();
        output::table(
            &header.iter().map(String::as_str).collect::<Vec<_>>(),
            &rows,
        )
    }

    /// How fast the number at `path` grows.
    fn rate(&self, path: &[&str], value: &Value) -> String {
        let earlier = self.earlier.and_then(|(earlier, elapsed)| {
            let mut names = path.iter().filter(|name| !name.is_empty());
            let before = names
                .try_fold(earlier, |value, name| value.get(name))?
                .as_f64()?;
            Some((value.as_f64()? - before) / elapsed.as_secs_f64())
        });
        earlier.map_or("-".to_owned(), |rate| format!("{rate:.1}"))
    }
}

/// The column that gets a rate.
const COUNT: &str = "count";

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(plain).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn numbers_are_lines_objects_sections_and_objects_of_objects_tables() {
        let stats = json!({
            "uptime": 5,
            "cache": { "nodes": 7, "kind": "lru" },
            "requests": { "lookup": { "count": 3, "p50_us": 1.5 }, "read": { "count": 4 } },
        });
        let text = Page { earlier: None }.render(&stats);
        assert_eq!(
            text,
            "NAME    VALUE\nuptime  5\n\n\
             CACHE:\nNAME   VALUE\nnodes  7\nkind   lru\n\n\
             REQUESTS  COUNT  P50_US\nlookup    3      1.5\nread      4      -\n"
        );
    }

    #[test]
    fn watching_shows_how_fast_numbers_grow() {
        let before = json!({ "bytes": 100, "requests": { "read": { "count": 10 } } });
        let after =
            json!({ "bytes": 300, "requests": { "read": { "count": 15 }, "new": { "count": 1 } } });
        let text = Page {
            earlier: Some((&before, Duration::from_secs(2))),
        }
        .render(&after);
        assert_eq!(
            text,
            "NAME   VALUE  PER SECOND\nbytes  300    100.0\n\n\
             REQUESTS  COUNT  PER SECOND\nread      15     2.5\nnew       1      -\n"
        );
    }
}
