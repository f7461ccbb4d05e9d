//! The only place that writes to stdout and stderr.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};

use super::exit::{Failure, why};

/// Writes `text` to stdout. A reader that went away (`plyfs mounts | head -1`) is not an error.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    print_bytes(text.as_bytes())
}

/// As [`print()`], for names of files, which need not be text.
pub(super) fn print_bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    let result = stdout.write_all(bytes).and_then(|()| stdout.flush());
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result
            .map_err(|error| Failure::other(format!("cannot write to stdout: {}", why(&error)))),
    }
}

/// Writes bytes to stdout.
pub(super) fn write(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    let result = stdout.write_all(bytes).and_then(|()| stdout.flush());
    result.map_err(|error| Failure::other(format!("cannot write to stdout: {}", why(&error))))
}

/// Stdout, for much.
pub(super) fn bytes() -> impl Write {
    io::stdout().lock()
}

/// A name from a layer as it is shown: for a terminal without what would steer it, else as it is.
pub(super) fn for_terminal(name: &[u8]) -> Cow<'_, [u8]> {
    let steers = |byte: &u8| byte.is_ascii_control();
    if !io::stdout().is_terminal() || !name.iter().any(steers) {
        return name.into();
    }
    let mut plain = Vec::with_capacity(name.len());
    for byte in name {
        if steers(byte) {
            plain.extend(byte.escape_ascii());
        } else {
            plain.push(*byte);
        }
    }
    plain.into()
}

/// A sentence without what would steer a terminal: it may repeat what somebody gave.
pub(super) fn one_line(sentence: &str) -> String {
    sentence.trim_end().replace(char::is_control, " ")
}

/// Writes one line to stderr in the form every message has.
pub(super) fn complain(sentence: &str) {
    let line = format!("plyfs: {}\n", one_line(sentence));
    // When stderr is gone there is nobody left to tell.
    _ = io::stderr().lock().write_all(line.as_bytes());
}

/// Columns padded to their widest cell; the last one is not padded.
pub(super) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = header.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let header = header.iter().map(ToString::to_string).collect();
    for row in std::iter::once(&header).chain(rows) {
        let mut line = String::new();
        for (cell, &width) in row.iter().zip(&widths) {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', width - cell.chars().count() + 2));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Columns as docker pads them: at least 10 wide, three blanks between, the last one as it is.
pub(super) fn docker_table(header: &[String], rows: &[Vec<String>]) -> String {
    const LEAST: usize = 10;
    const GAP: usize = 3;
    let width = |column: usize| {
        let all = std::iter::once(header).chain(rows.iter().map(Vec::as_slice));
        let cells = all.filter_map(|row| row.get(column));
        let longest = cells.map(|cell| cell.chars().count()).max();
        LEAST.max(longest.unwrap_or_default() + GAP)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let mut text = String::new();
    for row in std::iter::once(header).chain(rows.iter().map(Vec::as_slice)) {
        for (column, cell) in row.iter().enumerate() {
            text.push_str(cell);
            if column + 1 < row.len() {
                let width = widths.get(column).copied().unwrap_or_default();
                text.extend(std::iter::repeat_n(
                    ' ',
                    width.saturating_sub(cell.chars().count()),
                ));
            }
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::table;

    #[test]
    fn table_pads_every_column_to_its_widest_cell() {
        let rows = vec![
            vec!["/long/path".into(), "1".into()],
            vec!["/p".into(), "22".into()],
        ];
        assert_eq!(
            table(&["MOUNT", "N"], &rows),
            "MOUNT       N\n/long/path  1\n/p          22\n"
        );
    }
}
