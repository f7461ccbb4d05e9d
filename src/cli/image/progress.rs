//! Layers as they come in, on a terminal.

use std::collections::HashMap;
use std::io::{self, IsTerminal};
use std::sync::Mutex;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::image::ingest::Event;

/// One bar per layer, on stderr; none if that is no terminal.
#[derive(Debug)]
pub(super) struct Bars {
    shown: Option<MultiProgress>,
    bars: Mutex<HashMap<usize, ProgressBar>>,
}

impl Bars {
    pub(super) fn new(quiet: bool) -> Self {
        let wanted = !quiet && io::stderr().is_terminal();
        Self {
            shown: wanted.then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr())),
            bars: Mutex::default(),
        }
    }

    /// Shows what happens.
    pub(super) fn show(&self, event: Event<'_>) {
        let Some(shown) = &self.shown else { return };
        let Ok(mut bars) = self.bars.lock() else {
            return;
        };
        match event {
            Event::Begin { number, name, size } => {
                let bar = shown.add(ProgressBar::new(size).with_style(style(
                    "{msg:12}: Loading layer [{bar:40}] {decimal_bytes}/{decimal_total_bytes}",
                )));
                bar.set_message(name.to_owned());
                bars.insert(number, bar);
            }
            Event::Present { name, .. } => {
                let bar =
                    shown.add(ProgressBar::new(1).with_style(style("{msg:12}: Already present")));
                bar.set_message(name.to_owned());
                bar.abandon();
            }
            Event::Read { number, bytes } => {
                if let Some(bar) = bars.get(&number) {
                    bar.inc(bytes);
                }
            }
            Event::Done { number } => {
                if let Some(bar) = bars.remove(&number) {
                    bar.set_style(style("{msg:12}: Loaded {decimal_total_bytes}"));
                    bar.abandon();
                }
            }
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template);
    style.map_or_else(
        |_| ProgressStyle::default_bar(),
        |style| style.progress_chars("=> "),
    )
}
