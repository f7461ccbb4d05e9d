//! Where log lines go. Silent by default: warnings to stderr while somebody looks at it.

use std::backtrace::Backtrace;
use std::fmt;
use std::fs::File;
use std::io;
use std::path::Path;

use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, layer};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use super::exit::{Failure, why};

/// Sets up logging for a process that serves a mount: warnings to stderr, `debug` everything to stderr,
/// `file` appended to instead of stderr. The background process closes stderr once it is mounted.
pub(super) fn start(debug: bool, file: Option<&Path>) -> Result<(), Failure> {
    let (ours, fusers) = match (debug, file) {
        (true, _) => (LevelFilter::DEBUG, LevelFilter::DEBUG),
        (false, Some(_)) => (LevelFilter::INFO, LevelFilter::WARN),
        // It warns of every request that it knows and we leave to its default.
        (false, None) => (LevelFilter::WARN, LevelFilter::ERROR),
    };
    let registry = tracing_subscriber::registry().with(
        Targets::new()
            .with_default(ours)
            .with_target("fuser", fusers),
    );
    let lines = layer().with_ansi(false);
    let started = match file {
        Some(path) => registry.with(lines.with_writer(open(path)?)).try_init(),
        None if debug => registry.with(lines.with_writer(io::stderr)).try_init(),
        None => registry
            .with(lines.event_format(Sentence).with_writer(io::stderr))
            .try_init(),
    };
    started.map_err(|error| Failure::other(format!("cannot start logging: {error}")))?;
    std::panic::set_hook(Box::new(|panic| {
        let trace = Backtrace::force_capture();
        tracing::error!("a bug in plyfs, please report it with these lines: {panic}\n{trace}");
    }));
    Ok(())
}

fn open(path: &Path) -> Result<File, Failure> {
    File::options()
        .create(true)
        .append(true)
        .open(path)
        .map_err(|error| {
            Failure::other(format!(
                "cannot write the log {}: {}",
                path.display(),
                why(&error)
            ))
        })
}

/// Warnings for a person look like our other messages: `plyfs: <sentence>`.
struct Sentence;

impl<S, N> FormatEvent<S, N> for Sentence
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        write!(writer, "plyfs: ")?;
        context.format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}
