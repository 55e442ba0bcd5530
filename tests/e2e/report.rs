//! The report: a line for each figure as it arrives, and the table at the end.

use std::{fmt::Write as _, time::Duration};

/// One figure of a step.
#[derive(Debug)]
pub struct Row {
    /// What was done.
    pub step: String,
    /// What it may be.
    pub bound: String,
    /// What it was.
    pub measured: String,
    /// Whether it held.
    pub is_good: bool,
}

impl Row {
    /// A figure and its verdict.
    pub fn new(step: &str, bound: impl Into<String>, measured: impl Into<String>, is_good: bool) -> Row {
        Row { step: step.to_owned(), bound: bound.into(), measured: measured.into(), is_good }
    }

    /// Of a step that did not come to its end.
    pub fn broken(step: &str, why: String) -> Row {
        Row::new(step, "comes to its end", why, false)
    }
}

/// All rows.
#[derive(Debug, Default)]
pub struct Report(Vec<Row>);

impl Report {
    /// Adds a row and prints it at once.
    pub fn add(&mut self, row: Row) {
        println!("{:6} {}: {} (bound: {})", verdict(&row), row.step, row.measured, row.bound);
        self.0.push(row);
    }

    /// Whether there is a row and every one held.
    pub fn is_good(&self) -> bool {
        !self.0.is_empty() && self.0.iter().all(|row| row.is_good)
    }

    /// Prints the table and the sum.
    pub fn print(&self, took: Duration) {
        let mut table = String::from("| step | bound | measured | verdict |\n|---|---|---|---|\n");
        for row in &self.0 {
            let measured = row.measured.replace('\n', " ");
            let _ = writeln!(table, "| {} | {} | {measured} | {} |", row.step, row.bound, verdict(row));
        }
        let held = self.0.iter().filter(|row| row.is_good).count();
        println!("\n{table}\n{held} of {} held, in {:.0} s", self.0.len(), took.as_secs_f64());
    }
}

fn verdict(row: &Row) -> &'static str {
    if row.is_good { "held" } else { "BROKEN" }
}

/// Lengths of time in a few words: how many, the middle one, the 99th of a hundred, the longest.
pub fn spread(times: &[Duration]) -> String {
    let mut sorted = times.to_vec();
    sorted.sort();
    let Some(max) = sorted.last() else { return "none".to_owned() };
    let at = |share: f64| {
        let rank = (sorted.len() as f64 * share).ceil() as usize;
        sorted[rank.clamp(1, sorted.len()) - 1].as_millis()
    };
    format!("{} times, p50 {} ms, p99 {} ms, max {} ms", sorted.len(), at(0.5), at(0.99), max.as_millis())
}
