//! Tables for people.

use std::time::Duration;

use anstyle::{AnsiColor, Style};

use crate::sink::text::push_escaped;

/// What a command prints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// A table whose columns are as wide as their widest cell; the last is not padded.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Vec<(String, Style)>>,
}

impl Table {
    /// A table with these headings.
    #[must_use]
    pub fn new(headings: &[&str]) -> Self {
        let style = Style::new().bold();
        Self { rows: vec![headings.iter().map(|heading| ((*heading).to_owned(), style)).collect()] }
    }

    /// Adds a row; the first cell has `style`. Cells are escaped: names are chosen by others.
    pub fn row(&mut self, style: Style, cells: impl IntoIterator<Item = String>) {
        let escaped = cells.into_iter().enumerate().map(|(column, cell)| {
            let mut out = String::new();
            push_escaped(&mut out, &cell);
            (out, if column == 0 { style } else { Style::new() })
        });
        self.rows.push(escaped.collect());
    }

    /// Appends the table's lines.
    pub fn write(&self, out: &mut String, color: bool) {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|(cell, _)| cell.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<_> = (0..columns).map(width).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (column, (cell, style)) in row.iter().enumerate() {
                let style = if color { *style } else { Style::new() };
                line.push_str(&format!("{style}{cell}{style:#}"));
                if column + 1 < row.len() {
                    let missing = widths[column] - cell.chars().count() + 2;
                    line.extend(std::iter::repeat_n(' ', missing));
                }
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
    }
}

/// The style of a state of health.
#[must_use]
pub fn state_style(state: &str) -> Style {
    match state {
        "unhealthy" => AnsiColor::Red.on_default().bold(),
        "degraded" => AnsiColor::Yellow.on_default(),
        "unknown" => AnsiColor::Magenta.on_default(),
        _ => AnsiColor::Green.on_default(),
    }
}

/// A length of time in whole seconds with its two largest units, such as `3h 2m`.
#[must_use]
pub fn age(length: Duration) -> String {
    let text = humantime::format_duration(Duration::from_secs(length.as_secs())).to_string();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_cells_cannot_steer_the_terminal() {
        let mut table = Table::new(&["A", "LONG", "C"]);
        table.row(Style::new(), ["wide cell".to_owned(), "\u{1b}[2J".to_owned(), "x".to_owned()]);
        let mut out = String::new();
        table.write(&mut out, false);
        assert_eq!(out, "A          LONG       C\nwide cell  \\u{1b}[2J  x\n");
    }

    #[test]
    fn ages_are_short() {
        assert_eq!(age(Duration::from_millis(11_045_999)), "3h 4m");
        assert_eq!(age(Duration::from_millis(999)), "0s");
    }
}
