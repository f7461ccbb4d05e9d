//! Man pages and shell completions, from the same definitions that parse.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;

use super::exit::{self, Exit, Failure, why};
use super::{options, output};

/// Writes a man page for the program and one for each subcommand into `dir`.
pub(super) fn man(command: Command, dir: &Path) -> Result<u8, Failure> {
    fs::create_dir_all(dir)
        .and_then(|()| pages(command, dir))
        .map_err(|error| {
            Failure::other(format!(
                "cannot write to {}: {}",
                dir.display(),
                why(&error)
            ))
        })?;
    Ok(Exit::Ok as u8)
}

fn pages(mut command: Command, dir: &Path) -> io::Result<()> {
    // Gives the subcommands their full names.
    command.build();
    let subcommands = command
        .get_subcommands()
        .filter(|subcommand| !subcommand.is_hide_set());
    for command in std::iter::once(&command).chain(subcommands) {
        let page = Man::new(command.clone());
        let mut text = Vec::new();
        page.render_title(&mut text)?;
        page.render_name_section(&mut text)?;
        synopsis(&mut text, command)?;
        page.render_description_section(&mut text)?;
        page.render_options_section(&mut text)?;
        if command.get_name() == "mount" {
            list(&mut text, "MOUNT OPTIONS", options::HELP)?;
        }
        if command
            .get_subcommands()
            .any(|subcommand| !subcommand.is_hide_set())
        {
            page.render_subcommands_section(&mut text)?;
        }
        list(&mut text, "EXIT STATUS", exit::TABLE)?;
        fs::write(dir.join(page.get_filename()), text)?;
    }
    Ok(())
}

/// How the command is called. That of `clap_mangen` leaves out what options take.
fn synopsis(page: &mut Vec<u8>, command: &Command) -> io::Result<()> {
    let name = command.get_bin_name().unwrap_or(command.get_name());
    writeln!(page, ".SH SYNOPSIS\n\\fB{}\\fR", plain(name))?;
    let (positionals, options): (Vec<_>, Vec<_>) = command
        .get_arguments()
        .filter(|arg| !arg.is_hide_set())
        .partition(|arg| arg.is_positional());
    for arg in options.into_iter().chain(positionals) {
        let long = arg.get_long().map(|long| format!("--{long}"));
        let flag = long.or_else(|| arg.get_short().map(|short| format!("-{short}")));
        let takes_value = arg.is_positional() || arg.get_action().takes_values();
        let values = arg.get_value_names().filter(|_| takes_value);
        let value = values.map(|names| format!("\\fI{}\\fR", plain(&names[0])));
        let flag = flag.map(|flag| format!("\\fB{}\\fR", plain(&flag)));
        let last = arg.is_last_set().then(|| plain("--"));
        let words: Vec<String> = [last, flag, value].into_iter().flatten().collect();
        let words = words.join(" ");
        if arg.is_required_set() {
            writeln!(page, "{words}")?;
        } else {
            writeln!(page, "[{words}]")?;
        }
    }
    if command.has_subcommands() {
        writeln!(page, "\\fICOMMAND\\fR ...")?;
    }
    Ok(())
}

/// A section of terms and what they mean.
fn list(page: &mut Vec<u8>, title: &str, terms: &[(&str, &str)]) -> io::Result<()> {
    writeln!(page, ".SH \"{title}\"")?;
    for (term, meaning) in terms {
        writeln!(page, ".TP\n\\fB{}\\fR\n{}", plain(term), plain(meaning))?;
    }
    Ok(())
}

/// `text` with nothing in it that roff would interpret.
fn plain(text: &str) -> String {
    // A line must not begin with a control character; `\&` prints nothing.
    format!(
        "\\&{}",
        text.replace('\\', "\\e")
            .replace('-', "\\-")
            .replace('\'', "\\(aq")
    )
}

/// Prints the completion script for `shell`.
pub(super) fn completions(mut command: Command, shell: Shell) -> Result<u8, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "plyfs", &mut script);
    output::print(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Ok as u8)
}
