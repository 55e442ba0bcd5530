//! Prints lists and single resources: a table for people, JSON for programs.
//!
//! Owns layout and colours (on a terminal only). JSON is what the gateway sent. Control characters are escaped in
//! both.

use std::io::{self, IsTerminal, Write};

use serde_json::Value;

use crate::text;
use lastword_client::gateway::segment;

/// Output format.
#[derive(Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

/// The flags of a list.
#[derive(clap::Args)]
pub struct PageArgs {
    /// Maximum number of entries
    #[arg(long, default_value_t = 50)]
    limit: u32,
    /// Continue after an earlier page, at the cursor that it printed
    #[arg(long)]
    cursor: Option<String>,
}

impl PageArgs {
    /// The path with this page and the given filters.
    pub fn path(&self, path: &str, filters: &[(&str, Option<&str>)]) -> String {
        let mut path = format!("{path}?limit={}", self.limit);
        for (name, value) in filters.iter().chain(&[("cursor", self.cursor.as_deref())]) {
            if let Some(value) = value {
                path.push_str(&format!("&{name}={}", segment(value)));
            }
        }
        path
    }
}

/// A column: its heading, and its field as a JSON pointer without the first slash. Several pointers may be
/// separated by `|`; the first present one counts.
pub type Column = (&'static str, &'static str);

/// Prints a list: `{"items": […], "next": CURSOR|null}`.
pub fn list(output: Output, columns: &[Column], body: &Value) -> io::Result<()> {
    if output == Output::Json {
        return json(body);
    }
    let items = body.get("items").or(Some(body)).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let mut rows = vec![columns.iter().map(|(heading, _)| (*heading).to_owned()).collect::<Vec<_>>()];
    rows.extend(items.iter().map(|item| columns.iter().map(|(_, field)| cell(item, field)).collect()));
    print_rows(&rows, true)?;
    if let Some(next) = body.get("next").and_then(Value::as_str) {
        note!("There is more: --cursor {next}");
    }
    Ok(())
}

/// Prints one resource, a field a line.
pub fn one(output: Output, body: &Value) -> io::Result<()> {
    match (output, body.as_object()) {
        (Output::Table, Some(fields)) => {
            let known = fields.iter().filter(|(_, value)| !value.is_null());
            let rows: Vec<_> = known
                .map(|(name, _)| vec![text::visible_line(name).into_owned(), cell(body, name)])
                .collect();
            print_rows(&rows, false)
        }
        _ => json(body),
    }
}

fn json(body: &Value) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{}", text::json_lines(body)?)
}

fn cell(item: &Value, field: &str) -> String {
    let found = field.split('|').filter_map(|one| item.pointer(&format!("/{one}")));
    match found.into_iter().find(|value| !value.is_null()) {
        None => "-".to_owned(),
        // A line end in a cell would start a false row.
        Some(Value::String(cell)) => text::visible_line(cell).into_owned(),
        Some(other) => text::visible_line(&other.to_string()).into_owned(),
    }
}

fn print_rows(rows: &[Vec<String>], has_heading: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let is_screen = out.is_terminal();
    let is_coloured = is_screen && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty());
    let text = layout(rows, |row, cell, text| match is_coloured {
        true => coloured(row == 0 && has_heading, cell, text),
        false => text.to_owned(),
    });
    out.write_all(text.as_bytes())
}

/// Rows as lines, columns two spaces apart; `paint` is applied to each padded cell.
fn layout(rows: &[Vec<String>], paint: impl Fn(usize, &str, &str) -> String) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for (n, row) in rows.iter().enumerate() {
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let is_last = column + 1 == row.len();
            let padded = if is_last { cell.clone() } else { format!("{cell:<width$}  ") };
            text.push_str(&paint(n, cell, &padded));
        }
        text.push('\n');
    }
    text
}

fn coloured(is_heading: bool, cell: &str, text: &str) -> String {
    let code = match cell {
        _ if is_heading => "1",
        "completed" | "ready" => "32",
        "failed" | "lost" => "31",
        "running" | "queued" | "starting" | "draining" => "33",
        "cancelled" | "left" | "-" => "2",
        _ => return text.to_owned(),
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_missing_fields_are_a_dash() {
        let item = serde_json::json!({"id": "turn_1", "error": {"code": "internal"}, "text": null});
        assert_eq!(cell(&item, "text|error/code"), "internal");
        assert_eq!(cell(&item, "text"), "-");
        let rows = [vec!["ID".to_owned(), "X".to_owned()], vec!["turn_1".to_owned(), "é".to_owned()]];
        assert_eq!(layout(&rows, |_, _, text| text.to_owned()), "ID      X\nturn_1  é\n");
    }

    #[test]
    fn a_page_keeps_its_filters() {
        let page = PageArgs { limit: 2, cursor: Some("a b".to_owned()) };
        let path = page.path("/v1/turns", &[("agent", Some("demo")), ("status", None)]);
        assert_eq!(path, "/v1/turns?limit=2&agent=demo&cursor=a%20b");
    }
}
