//! `lastword verify`: checks I1 to I6 and I9 over the whole database.

use std::process::ExitCode;

use super::database::{DatabaseArgs, explained};
use crate::text;

/// Checks the invariants over the whole database; `newer` marks rules left out because a newer release has migrated it.
#[derive(Debug, clap::Args)]
pub struct VerifyArgs {
    #[command(flatten)]
    database: DatabaseArgs,
    /// Output format
    #[arg(long, default_value = "text", value_parser = ["text", "json"])]
    output: String,
}

/// Prints a line for each rule; exits with 1 if a rule is broken, and names the offending ids.
///
/// # Errors
/// Postgres is unreachable.
pub async fn run(args: VerifyArgs) -> anyhow::Result<ExitCode> {
    let findings = args.database.store()?.verify().await.map_err(explained)?;
    let is_clean = findings.iter().all(|finding| finding.broken.is_empty());
    if args.output == "json" {
        let items: Vec<_> = findings
            .iter()
            .map(|f| serde_json::json!({ "invariant": f.invariant, "rule": f.rule, "broken": f.broken, "checked": f.is_checked }))
            .collect();
        say!("{}", text::json_line(&serde_json::json!({ "clean": is_clean, "findings": items }))?);
    } else {
        for finding in &findings {
            let verdict = match finding {
                _ if !finding.is_checked => "newer ",
                _ if finding.broken.is_empty() => "holds ",
                _ => "BROKEN",
            };
            say!("{verdict} {} {}", finding.invariant, finding.rule);
            for id in &finding.broken {
                say!("         {id}");
            }
        }
    }
    Ok(if is_clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
