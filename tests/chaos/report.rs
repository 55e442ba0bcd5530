//! The report: a line for each drill while drills run, and the table at the end.

use std::{fmt::Write as _, path::Path, process::Command, time::Duration};

use lastword_devkit::postgres::Binaries;

use crate::{
    checker::Findings,
    drills::{Drill, Row},
};

/// Complaints shown for one drill.
const COMPLAINTS_MAX: usize = 12;

/// A drill that is over.
pub struct Done {
    pub drill: Drill,
    pub row: Row,
    pub took: Duration,
}

impl Done {
    /// Whether everything held and the figure is met.
    pub fn is_good(&self) -> bool {
        self.row.is_met && self.row.findings.is_clean()
    }

    /// Whether everything held, whatever the figure.
    pub fn is_clean(&self) -> bool {
        self.row.findings.is_clean()
    }

    fn verdict(&self) -> &'static str {
        match (self.row.findings.is_clean(), self.row.is_met) {
            _ if !self.row.is_run => "not run",
            (true, true) => "held",
            (true, false) => "missed",
            (false, _) => "BROKEN",
        }
    }
}

impl Row {
    /// Of a drill that did not come to its end.
    pub fn broken(why: String) -> Row {
        let findings = Findings { complaints: vec![why], ..Findings::default() };
        Row { count: 0, figure: String::new(), is_met: false, is_run: true, findings }
    }
}

/// One drill's end, as it comes.
pub fn print_one(done: &Done) {
    println!(
        "{:7} {:16} {:5} × in {:4} s  [faults {:08x}]  {}",
        done.verdict(),
        done.drill.name,
        done.row.count,
        done.took.as_secs(),
        done.row.findings.schedule >> 32,
        done.row.figure
    );
    for complaint in done.row.findings.complaints.iter().take(COMPLAINTS_MAX) {
        println!("        {complaint}");
    }
    let more = done.row.findings.complaints.len().saturating_sub(COMPLAINTS_MAX);
    if more > 0 {
        println!("        … and {more} more");
    }
}

/// All of what it complains of, in a file.
pub fn keep_complaints(done: &Done, path: &Path) {
    if !done.row.findings.is_clean() {
        std::fs::write(path, done.row.findings.complaints.join("\n")).expect("a place for complaints");
    }
}

/// The table and the sums.
pub fn print(done: &[Done], took: Duration) {
    let mut sum = Findings::default();
    for done in done {
        sum.add(done.row.findings.clone());
    }
    println!("\n{}", table(done));
    println!("{}", counts(&sum));
    let held = done.iter().filter(|done| done.is_good()).count();
    let absent = done.iter().filter(|done| !done.row.is_run).count();
    println!("{held} of {} drills held, {absent} not run, in {} s", done.len(), took.as_secs());
}

/// The counts that must be nought, and those that must not.
fn counts(sum: &Findings) -> String {
    format!(
        "attempted {}, acknowledged {}, completed {}, failed {}, cancelled {}, recovered {} · \
         lost {}, duplicated {}, reordered {}, false deaths {}, wrong {}",
        sum.attempted,
        sum.acknowledged,
        sum.completed,
        sum.failed,
        sum.cancelled,
        sum.recovered,
        sum.lost,
        sum.duplicated,
        sum.reordered,
        sum.unexpected,
        sum.wrong
    )
}

fn table(done: &[Done]) -> String {
    let mut text = String::from("| fault | times | bound | measured | verdict |\n|---|---:|---|---|---|\n");
    for done in done {
        let Drill { fault, bound, .. } = done.drill;
        let Row { count, figure, .. } = &done.row;
        let _ = writeln!(text, "| {fault} | {count} | {bound} | {figure} | {} |", done.verdict());
    }
    text
}

/// The report for the repository.
pub fn markdown(done: &[Done], seed: u64) -> String {
    let mut sum = Findings::default();
    for done in done {
        sum.add(done.row.findings.clone());
    }
    format!("Seed {seed}. {}.\n\n{}\n{}.\n", surroundings(), table(done), counts(&sum))
}

/// What it ran on.
pub fn surroundings() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let said = |program: &str, args: &[&str]| {
        let out = Command::new(program).args(args).output().ok();
        out.map(|out| String::from_utf8_lossy(&out.stdout).trim().to_owned()).unwrap_or_default()
    };
    let postgres = Binaries::find(None).expect("Postgres").postgres();
    let postgres = said(&postgres.to_string_lossy(), &["--version"]);
    let commit = said("git", &["rev-parse", "--short", "HEAD"]);
    let date = chrono::Utc::now().format("%Y-%m-%d");
    format!("{date}, commit {commit}, {cores} cores, {postgres}")
}
