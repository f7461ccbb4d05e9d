//! Random sequences of operations against kernel overlayfs.
//!
//! Layers and operations are made from a seed and executed on plyfs and on kernel overlayfs over the same
//! lower layers and equal uppers. The outcome of each operation is compared at once, whole trees now and
//! then, at the end also after a remount and with each upper mounted by the other. A failure is shrunk to
//! a short script, which `PLYFS_MODEL_SEED` and `PLYFS_MODEL_KEEP` as printed replay.
//!
//! `PLYFS_MODEL_RUNS` and `PLYFS_MODEL_STEPS` make it longer; `PLYFS_MODEL_SHRINK` is the time for shrinking
//! in seconds; `PLYFS_MODEL_LEFT=kernel` compares the kernel with itself, which checks this test;
//! `PLYFS_MODEL_OPTIONS` are further options for plyfs.
//! What is not compared, and why, is written at [`snapshot::attributes`].

use std::fmt::Write as _;
use std::time::Duration;

use crate::support::run::{base_dir, is_root, requires};

pub(crate) mod exec;
pub(crate) mod generate;
pub(crate) mod layers;
pub(crate) mod mounts;
pub(crate) mod run;
pub(crate) mod script;
mod shrink;
pub(crate) mod snapshot;

use mounts::Engine;
use run::{Failure, Setting, run};
use script::Step;

#[test]
fn random_operations_give_what_kernel_overlayfs_gives() {
    requires!(
        is_root(),
        "the kernel needs root for redirect_dir and index"
    );
    explore(false);
}

#[test]
fn random_operations_give_what_kernel_overlayfs_gives_with_metacopy() {
    requires!(is_root(), "the kernel needs root for metacopy");
    explore(true);
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable}={text}: say a number")),
    )
}

fn explore(metacopy: bool) {
    let length = number("PLYFS_MODEL_STEPS").map_or(250, |n| usize::try_from(n).unwrap());
    let given = number("PLYFS_MODEL_SEED");
    let runs = if given.is_some() {
        1
    } else {
        number("PLYFS_MODEL_RUNS").unwrap_or(8)
    };
    let setting = Setting {
        left: Engine::from_env("PLYFS_MODEL_LEFT"),
        metacopy,
        every: 25,
        dir: base_dir(),
    };
    for _ in 0..runs {
        let seed = given.unwrap_or_else(|| fastrand::u64(..1_000_000_000));
        println!("PLYFS_MODEL_SEED={seed} PLYFS_MODEL_STEPS={length} metacopy={metacopy}");
        let all = generate::script(seed, length);
        let chosen = chosen(all.len());
        let steps: Vec<Step> = chosen.iter().map(|index| all[*index].clone()).collect();
        if let Err(failure) = run(&steps, &setting) {
            report(seed, length, (&chosen, &steps), failure, &setting);
        }
    }
}

/// The lines to execute: all, or those that `PLYFS_MODEL_KEEP` lists.
fn chosen(len: usize) -> Vec<usize> {
    match std::env::var("PLYFS_MODEL_KEEP") {
        Err(_) => (0..len).collect(),
        Ok(list) => list.split(',').map(|n| n.parse().unwrap()).collect(),
    }
}

/// Prints the failing script, shrinks it, prints the short one and fails the test.
fn report(
    seed: u64,
    length: usize,
    script: (&[usize], &[Step]),
    failure: Failure,
    setting: &Setting,
) -> ! {
    let (chosen, steps) = script;
    println!("{}\n{}", failure.what, listing(steps, failure.step));
    let budget = Duration::from_secs(number("PLYFS_MODEL_SHRINK").unwrap_or(60));
    let (kept, shrunk) = shrink::shrink(steps, failure, setting, budget);
    let numbers: Vec<String> = kept
        .iter()
        .map(|index| chosen[*index].to_string())
        .collect();
    let short: Vec<Step> = kept.iter().map(|index| steps[*index].clone()).collect();
    panic!(
        "{:?} (-) and the kernel (+), metacopy={}: {}\nshortest script found:\n{}replay:\n  \
         PLYFS_MODEL_SEED={seed} PLYFS_MODEL_STEPS={length} PLYFS_MODEL_KEEP={}",
        setting.left,
        setting.metacopy,
        shrunk.what,
        listing(&short, shrunk.step),
        numbers.join(",")
    );
}

fn listing(steps: &[Step], failed: Option<usize>) -> String {
    let mut text = String::new();
    for (number, step) in steps
        .iter()
        .enumerate()
        .take(failed.map_or(steps.len(), |step| step + 1))
    {
        writeln!(text, "{number:5} {step}").unwrap();
    }
    text
}
