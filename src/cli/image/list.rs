//! `plyfs images`.

use clap::Args;
use serde_json::{Value, json};

use super::StoreArgs;
use super::units;
use crate::cli::exit::Failure;
use crate::cli::output;
use crate::image::Image;
use crate::image::name::Name;
use crate::image::store::Store;
use crate::image::time;

/// List the images of the store
#[derive(Debug, Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent switches of the command line"
)]
pub(in crate::cli) struct ImagesArgs {
    #[command(flatten)]
    store: StoreArgs,
    /// Only those with this name, with any tag unless one is given
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// Only image ids
    #[arg(short, long)]
    quiet: bool,
    /// Do not shorten ids
    #[arg(long)]
    no_trunc: bool,
    /// Show the digests of manifests too
    #[arg(long)]
    digests: bool,
    /// `json`, `table TEMPLATE` or TEMPLATE, as docker has it
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// The same as --format json
    #[arg(long)]
    json: bool,
}

/// One line: an image under one of its names.
struct Line {
    image: Image,
    name: Option<Name>,
    /// Of the layers; `None` if some are missing.
    size: Option<u64>,
}

pub(super) fn run(args: &ImagesArgs) -> Result<(), Failure> {
    let store = args.store.open()?;
    let lines = lines(&store, args)?;
    if args.quiet {
        let mut ids: Vec<String> = lines
            .iter()
            .map(|line| line.id(args.no_trunc) + "\n")
            .collect();
        let mut seen = std::collections::HashSet::new();
        ids.retain(|id| seen.insert(id.clone()));
        return output::print(&ids.concat());
    }
    let values: Vec<Value> = lines.iter().map(|line| line.value(args)).collect();
    let default = if args.digests {
        "table {{.Repository}}\\t{{.Tag}}\\t{{.Digest}}\\t{{.ID}}\\t{{.CreatedSince}}\\t{{.Size}}"
    } else {
        "table {{.Repository}}\\t{{.Tag}}\\t{{.ID}}\\t{{.CreatedSince}}\\t{{.Size}}"
    };
    let format = if args.json {
        Some("json")
    } else {
        args.format.as_deref()
    };
    super::show(&values, format.unwrap_or(default), "IMAGE ID")
}

fn lines(store: &Store, args: &ImagesArgs) -> Result<Vec<Line>, Failure> {
    let mut lines = Vec::new();
    for referred in store.images()? {
        let size = super::image_size(store, &referred.image).ok();
        let names = referred.names.into_iter().map(Some);
        let mut names: Vec<_> = names.collect();
        if names.is_empty() {
            names.push(None);
        }
        lines.extend(names.into_iter().map(|name| Line {
            image: referred.image.clone(),
            name,
            size,
        }));
    }
    if let Some(wanted) = &args.name {
        lines.retain(|line| {
            line.name
                .as_ref()
                .is_some_and(|name| is_wanted(name, wanted))
        });
    }
    // Newest first, then by name.
    lines.sort_by_key(|line| {
        let created = time::parse(&line.image.config.created).unwrap_or(i64::MIN);
        (
            std::cmp::Reverse(created),
            line.name.is_none(),
            line.name.clone(),
        )
    });
    Ok(lines)
}

/// `alpine` means all tags of it, `alpine:3` one.
fn is_wanted(name: &Name, wanted: &str) -> bool {
    let Ok(parsed) = wanted.parse::<Name>() else {
        return false;
    };
    let same_repository = |other: &Name| name.repository() == other.repository();
    let tagged = wanted
        .rsplit_once(':')
        .is_some_and(|(_, tag)| !tag.contains('/'));
    [Some(parsed.clone()), parsed.local()]
        .iter()
        .flatten()
        .any(|other| same_repository(other) && (!tagged || name.tag() == other.tag()))
}

impl Line {
    fn id(&self, whole: bool) -> String {
        let id = self.image.id().0;
        if whole { id.to_string() } else { id.short() }
    }

    /// With docker's keys.
    fn value(&self, args: &ImagesArgs) -> Value {
        let none = || "<none>".to_owned();
        let name = self.name.as_ref();
        let created = time::parse(&self.image.config.created);
        let size = self.size.map_or_else(|| "N/A".into(), units::size);
        json!({
            "Containers": "N/A",
            "CreatedAt": created_shown(created),
            "CreatedSince": super::age_shown(created),
            "Digest": self.image.digest.to_string(),
            "ID": self.id(args.no_trunc),
            "Repository": name.map_or_else(none, |name| name.repository().to_owned()),
            "SharedSize": "N/A",
            "Size": size,
            "Tag": name.map_or_else(none, |name| name.tag().to_owned()),
            "UniqueSize": "N/A",
            "VirtualSize": size,
        })
    }
}
/// As docker shows it in this table alone: Go's text of a time.
fn created_shown(seconds: Option<i64>) -> String {
    let text = seconds.map(time::format);
    text.map_or_else(
        || "N/A".into(),
        |text| text.replace('T', " ").replace('Z', " +0000 UTC"),
    )
}
