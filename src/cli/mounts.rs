//! `plyfs mounts`: what is mounted, of which layers, with which options.

use rustix::io::Errno;
use serde::Serialize;

use super::description::{self, Description};
use super::exit::{Exit, Failure, why};
use super::mountinfo::{self, Mount};
use super::{output, virtual_xattr};

/// One mount, as `--json` prints it.
#[derive(Debug, Serialize)]
struct Entry {
    mountpoint: String,
    state: State,
    #[serde(flatten)]
    description: Option<Description>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    /// Alive and says what it is.
    Mounted,
    /// The daemon is gone: "Transport endpoint is not connected".
    Dead,
    /// Mounted by another user, for that user only.
    Private,
    /// Alive, but does not say what it is.
    Unknown,
    /// Does not answer in time.
    Stuck,
}

impl State {
    fn word(self) -> &'static str {
        match self {
            Self::Mounted => "mounted",
            Self::Dead => "dead",
            Self::Private => "private",
            Self::Unknown => "unknown",
            Self::Stuck => "stuck",
        }
    }

    fn of_error(error: Errno) -> Self {
        match error {
            Errno::NOTCONN | Errno::CONNABORTED => Self::Dead,
            Errno::ACCESS | Errno::PERM => Self::Private,
            Errno::TIMEDOUT => Self::Stuck,
            _ => Self::Unknown,
        }
    }
}

impl Entry {
    fn new(mount: &Mount, said: Result<Vec<u8>, Errno>) -> Self {
        let (state, description) = match said {
            Err(error) => (State::of_error(error), None),
            Ok(text) => match serde_json::from_slice::<Description>(&text) {
                Ok(mut description) => {
                    // The kernel knows better after a `mount -o remount,ro`.
                    description.read_only |= mount.read_only;
                    (State::Mounted, Some(description))
                }
                Err(_) => (State::Unknown, None),
            },
        };
        Self {
            mountpoint: mount.mountpoint.display().to_string(),
            state,
            description,
        }
    }

    fn row(&self) -> Vec<String> {
        let none = || "-".to_owned();
        let mut row = vec![self.mountpoint.clone(), self.state.word().to_owned()];
        match &self.description {
            None => row.extend(std::iter::repeat_n(none(), 5)),
            Some(about) => row.extend([
                about.pid.to_string(),
                if about.read_only { "ro" } else { "rw" }.to_owned(),
                match (&about.upper, about.ephemeral) {
                    (_, true) => "(ephemeral)".to_owned(),
                    (upper, false) => upper.clone().unwrap_or_else(none),
                },
                match &about.image {
                    Some(image) => image.name.clone(),
                    None => layers(about),
                },
                if about.options.is_empty() {
                    none()
                } else {
                    about.options.join(",")
                },
            ]),
        }
        row
    }
}

/// The topmost layers; all of them are in the JSON.
fn layers(about: &Description) -> String {
    const SHOWN: usize = 3;
    let shown = about.lowers.iter().take(SHOWN).cloned().collect::<Vec<_>>();
    let more = about.lower_count.saturating_sub(shown.len());
    match more {
        0 => shown.join(":"),
        _ => format!("{}:(and {more} more)", shown.join(":")),
    }
}

/// Prints all plyfs mounts of this mount namespace.
pub(super) fn run(json: bool) -> Result<u8, Failure> {
    let mounts = mountinfo::all().map_err(|error| {
        Failure::other(format!("cannot read /proc/self/mountinfo: {}", why(&error)))
    })?;
    // All are asked at once: those that do not answer are waited for together.
    let asked = mounts.iter().filter(|mount| mount.is_plyfs()).map(|mount| {
        (
            mount,
            virtual_xattr::ask(&mount.mountpoint, description::XATTR),
        )
    });
    let asked: Vec<_> = asked.collect();
    let entries: Vec<Entry> = asked
        .into_iter()
        .map(|(mount, said)| Entry::new(mount, said.answer()))
        .collect();
    let text = if json {
        let text = serde_json::to_string_pretty(&entries);
        text.map_err(|error| Failure::other(format!("cannot write JSON: {error}")))? + "\n"
    } else if entries.is_empty() {
        String::new()
    } else {
        let rows: Vec<Vec<String>> = entries.iter().map(Entry::row).collect();
        output::table(
            &[
                "MOUNTPOINT",
                "STATE",
                "PID",
                "ACCESS",
                "UPPER",
                "LOWERS",
                "OPTIONS",
            ],
            &rows,
        )
    };
    output::print(&text)?;
    Ok(Exit::Ok as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_high_stack_shows_its_top_and_a_count() {
        let lowers = (0..5).map(|n| format!("/{n}")).collect();
        let about = Description {
            lowers,
            lower_count: 500,
            ..Description::default()
        };
        assert_eq!(layers(&about), "/0:/1:/2:(and 497 more)");
        let about = Description {
            lowers: vec!["/a".into()],
            lower_count: 1,
            ..about
        };
        assert_eq!(layers(&about), "/a");
    }

    #[test]
    fn a_mount_that_says_nothing_still_has_all_columns() {
        let entry = Entry {
            mountpoint: "/m".into(),
            state: State::Dead,
            description: None,
        };
        assert_eq!(entry.row(), ["/m", "dead", "-", "-", "-", "-", "-"]);
        let json = serde_json::to_string(&entry).unwrap();
        assert_eq!(json, r#"{"mountpoint":"/m","state":"dead"}"#);
    }

    #[test]
    fn a_read_write_mount_shows_upper_layers_and_options() {
        let description = Description {
            pid: 12,
            lowers: vec!["/l".into()],
            lower_count: 1,
            upper: Some("/u".into()),
            options: vec!["metacopy=on".into(), "ro".into()],
            ..Description::default()
        };
        let entry = Entry {
            mountpoint: "/m".into(),
            state: State::Mounted,
            description: Some(description),
        };
        assert_eq!(
            entry.row(),
            ["/m", "mounted", "12", "rw", "/u", "/l", "metacopy=on,ro"]
        );
    }
}
