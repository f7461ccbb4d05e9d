//! Delta debugging: removes lines from a failing script while it goes on failing.

use std::time::{Duration, Instant};

use super::run::{Failure, Setting, run};
use super::script::Step;

/// The indices of a small subset of `steps` that still fails, and its failure.
pub(crate) fn shrink(
    steps: &[Step],
    failure: Failure,
    setting: &Setting,
    budget: Duration,
) -> (Vec<usize>, Failure) {
    let deadline = Instant::now() + budget;
    let end = failure.step.map_or(steps.len(), |step| step + 1);
    let mut kept: Vec<usize> = (0..end).collect();
    let mut failure = failure;
    let mut chunk = (kept.len() / 2).max(1);
    loop {
        let before = kept.len();
        let mut at = 0;
        while at < kept.len() {
            if Instant::now() > deadline {
                return (kept, failure);
            }
            let mut fewer = kept.clone();
            fewer.drain(at..(at + chunk).min(kept.len()));
            let script: Vec<Step> = fewer.iter().map(|index| steps[*index].clone()).collect();
            match run(&script, setting) {
                Ok(()) => at += chunk,
                Err(again) => {
                    if let Some(step) = again.step {
                        fewer.truncate(step + 1);
                    }
                    (kept, failure) = (fewer, again);
                }
            }
        }
        if chunk == 1 && kept.len() == before {
            return (kept, failure);
        }
        chunk = (chunk / 2).max(1);
    }
}
