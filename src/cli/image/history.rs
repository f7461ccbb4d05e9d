//! `plyfs history`.

use clap::Args;
use serde_json::{Value, json};

use super::units;
use super::{ReadArgs, StoreArgs};
use crate::cli::exit::Failure;
use crate::image::Image;
use crate::image::config::Step;
use crate::image::digest::is_hidden;
use crate::image::store::Store;
use crate::image::time;

/// Show how an image was made, newest step first
#[derive(Debug, Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent switches of the command line"
)]
pub(in crate::cli) struct HistoryArgs {
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    read: ReadArgs,
    /// A name, an id, or the path of an archive or layout
    #[arg(value_name = "IMAGE")]
    image: String,
    /// Only ids
    #[arg(short, long)]
    quiet: bool,
    /// Do not cut commands and ids
    #[arg(long)]
    no_trunc: bool,
    /// Sizes and ages for people; --human=false gives bytes and dates
    #[arg(short = 'H', long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1,
          default_missing_value = "true", require_equals = true)]
    human: bool,
    /// `json`, `table TEMPLATE` or TEMPLATE, as docker has it
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// The same as --format json
    #[arg(long)]
    json: bool,
}

/// Columns of a command, as docker cuts it.
const COMMAND_WIDTH: usize = 45;

pub(super) fn run(args: &HistoryArgs) -> Result<(), Failure> {
    let store = args.store.open()?;
    let image = args.read.resolve(&store, &args.image)?;
    let steps = image.config.steps(image.layers.len());
    // Steps above what `IMAGE~N` leaves are not of this image.
    let steps = if image.is_whole() {
        &steps[..]
    } else {
        up_to_last_layer(&steps)
    };
    let values = steps.iter().rev().enumerate();
    let values = values.map(|(number, step)| value(&store, &image, step, number == 0, args));
    let values = values.collect::<Result<Vec<_>, _>>()?;
    let created = if args.human {
        "{{.CreatedSince}}"
    } else {
        "{{.CreatedAt}}"
    };
    let default = if args.quiet {
        "{{.ID}}".to_owned()
    } else {
        format!(
            "table {{{{.ID}}}}\\t{created}\\t{{{{.CreatedBy}}}}\\t{{{{.Size}}}}\\t{{{{.Comment}}}}"
        )
    };
    let format = if args.json {
        Some("json")
    } else {
        args.format.as_deref()
    };
    super::show(&values, format.unwrap_or(&default), "IMAGE")
}

fn up_to_last_layer(steps: &[Step]) -> &[Step] {
    let end = steps
        .iter()
        .rposition(|step| step.layer.is_some())
        .map_or(0, |last| last + 1);
    &steps[..end]
}

/// With docker's keys.
fn value(
    store: &Store,
    image: &Image,
    step: &Step,
    newest: bool,
    args: &HistoryArgs,
) -> Result<Value, Failure> {
    let history = step.history.clone().unwrap_or_default();
    let layer = step.layer.and_then(|layer| image.layers.get(layer));
    let size = layer.map_or(Ok(0), |layer| store.layer_size(layer.diff_id))?;
    let created = time::parse(&history.created);
    let command = match &step.history {
        Some(history) => one_line(&history.created_by),
        None => "<unknown>".into(),
    };
    let id = match (newest, args.no_trunc) {
        (false, _) => "<missing>".into(),
        (true, true) => image.id().to_string(),
        (true, false) => image.id().0.short(),
    };
    let mut value = json!({
        "Comment": one_line(&history.comment),
        "CreatedAt": super::time_shown(created),
        "CreatedBy": if args.no_trunc { command } else { cut(&command) },
        "CreatedSince": super::age_shown(created),
        "ID": id,
        "Size": if args.human { units::size(size) } else { size.to_string() },
    });
    if let Some(layer) = layer {
        value["DiffID"] = layer.diff_id.to_string().into();
    }
    Ok(value)
}

/// As docker does with tabs; line ends and what a terminal would interpret go the same way.
fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| if is_hidden(c) { ' ' } else { c })
        .collect()
}

fn cut(command: &str) -> String {
    if command.chars().count() <= COMMAND_WIDTH {
        return command.to_owned();
    }
    command
        .chars()
        .take(COMMAND_WIDTH - 1)
        .chain(['…'])
        .collect()
}
