//! `plyfs check`: marks in an upper that a union would misread.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use super::exit::{Exit, Failure};
use super::output;
use crate::layer::at_rest::AtRest;
use crate::layer::at_rest::check::{Problem, Report, check};

/// Verify the marks of an upper that is not mounted
///
/// Names each path whose marks are malformed, misplaced, not believed or contradict each other, and what to do. Nothing
/// is changed. Exit code 0 if all is well, 10 if not.
#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// The workdir of the upper: what a crash left in it is told, too
    #[arg(long, value_name = "DIR")]
    work: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// The upper
    #[arg(value_name = "UPPER")]
    upper: PathBuf,
}

/// Prints what is wrong.
pub(super) fn run(args: &CheckArgs) -> Result<u8, Failure> {
    let upper = AtRest::open(&args.upper, args.work.as_deref())?;
    let report = check(&upper)?;
    if args.json {
        output::print(&format!("{}\n", in_json(&upper, &report)))?;
    } else {
        let lines: Vec<u8> = report.problems.iter().flat_map(line).collect();
        output::print_bytes(&lines)?;
    }
    let path = upper.path.display();
    match report.problems.len() {
        0 => {
            if !args.json {
                output::print(&format!("{path}: {} objects, no problem\n", report.objects))?;
            }
            Ok(Exit::Ok as u8)
        }
        1 => Err(Failure::new(
            Exit::Malformed,
            format!("{path} has a problem: do what its line says"),
        )),
        count => Err(Failure::new(
            Exit::Malformed,
            format!("{path} has {count} problems: do what their lines say"),
        )),
    }
}

fn line(problem: &Problem) -> Vec<u8> {
    let mut line = output::for_terminal(&problem.path).into_owned();
    line.extend_from_slice(format!(": {}: {}\n", problem.what, problem.advice).as_bytes());
    line
}

fn in_json(upper: &AtRest, report: &Report) -> Value {
    let problems = report.problems.iter().map(|problem| {
        json!({
            "path": String::from_utf8_lossy(&problem.path),
            "kind": problem.kind,
            "problem": problem.what,
            "advice": problem.advice,
        })
    });
    json!({
        "upper": upper.path.display().to_string(),
        "objects": report.objects,
        "problems": problems.collect::<Vec<_>>(),
    })
}
