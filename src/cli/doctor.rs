//! `lastword doctor`: looks for what would make the gateway slow or wrong, with a remedy for each.

use std::process::ExitCode;

use super::database::DatabaseArgs;
use crate::store::doctor::{Exam, Verdict};

/// Looks for what would make the gateway slow or wrong, with a remedy for each.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    database: DatabaseArgs,
    /// `text` or `json`
    #[arg(long, default_value = "text", value_parser = ["text", "json"])]
    output: String,
}

/// Prints a line an exam; exits with 1 when one found a fault.
///
/// # Errors
/// No database is named, or its URL cannot be read. A Postgres that is away is a finding.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let config = args.database.config()?;
    let exams = args.database.store()?.examine(&config).await;
    if args.output == "json" {
        let items: Vec<_> = exams.iter().map(to_json).collect();
        println!("{}", serde_json::json!({ "exams": items }));
    } else {
        for exam in &exams {
            println!("{:<5} {}: {}", word(exam.verdict), exam.name, exam.finding);
            if let Some(remedy) = &exam.remedy {
                println!("      → {remedy}");
            }
        }
    }
    let has_fault = exams.iter().any(|exam| exam.verdict == Verdict::Fault);
    Ok(if has_fault { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn to_json(exam: &Exam) -> serde_json::Value {
    serde_json::json!({
        "name": exam.name,
        "verdict": word(exam.verdict),
        "finding": exam.finding,
        "remedy": exam.remedy,
    })
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Well => "ok",
        Verdict::Warning => "warn",
        Verdict::Fault => "FAULT",
    }
}
