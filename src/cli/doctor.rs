//! `lastword doctor`: finds what would make the gateway slow or wrong, with a remedy for each finding.

use std::process::ExitCode;

use super::database::DatabaseArgs;
use crate::{
    config::Config,
    host::process::{cgroup, namespace, user::User},
    store::doctor::{Check, Severity},
    text,
};

/// Checks Postgres and this machine for problems, with a remedy for each.
#[derive(Debug, clap::Args)]
pub struct DoctorArgs {
    #[command(flatten)]
    database: DatabaseArgs,
    /// Output format
    #[arg(long, default_value = "text", value_parser = ["text", "json"])]
    output: String,
}

/// Prints a line for each check; exits with 1 if a check found a fault.
///
/// # Errors
/// No database is named, or its URL is invalid. An unreachable Postgres is a finding.
pub async fn run(args: DoctorArgs) -> anyhow::Result<ExitCode> {
    let config = args.database.config()?;
    let mut checks = args.database.store()?.examine(&config).await;
    checks.extend(workers(&config));
    if args.output == "json" {
        let items: Vec<_> = checks.iter().map(to_json).collect();
        say!("{}", text::json_line(&serde_json::json!({ "exams": items }))?);
    } else {
        for check in &checks {
            say!("{:<5} {}: {}", word(check.severity), check.name, check.finding);
            if let Some(remedy) = &check.remedy {
                say!("      → {remedy}");
            }
        }
    }
    let has_fault = checks.iter().any(|check| check.severity == Severity::Fault);
    Ok(if has_fault { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Checks how this replica's workers are isolated from it, and end with it.
fn workers(config: &Config) -> [Check; 3] {
    let fine = |name, finding| Check { name, severity: Severity::Fine, finding, remedy: None };
    let namespaces = match namespace::probe() {
        Ok(()) if config.worker_namespaces => "each worker has one of its own".to_owned(),
        Ok(()) => "switched off by worker_namespaces; processes left by a killed guard pass to the replica"
            .to_owned(),
        Err(why) => format!("none here ({why}); processes left by a killed guard pass to the replica"),
    };
    let cgroups = match cgroup::probe() {
        Ok(version) if config.worker_cgroups => format!("each worker has one of its own (version {version})"),
        Ok(_) => "switched off by worker_cgroups; workers' memory is polled".to_owned(),
        Err(why) => format!("none here ({why}); workers' memory is polled"),
    };
    let found = config
        .worker_user
        .as_deref()
        .map(|text| User::find(text).and_then(|user| User::may_become().map(|()| user)));
    let user = match found {
        Some(Ok(user)) => fine("worker user", format!("workers run as {user}")),
        Some(Err(why)) => Check {
            name: "worker user",
            severity: Severity::Fault,
            finding: format!("worker_user {why}"),
            remedy: Some("`serve` does not start with this worker_user on this machine"),
        },
        None => fine(
            "worker user",
            "workers run as the gateway's own user; set worker_user to change that".to_owned(),
        ),
    };
    [fine("worker namespaces", namespaces), fine("worker cgroups", cgroups), user]
}

fn to_json(check: &Check) -> serde_json::Value {
    serde_json::json!({
        "name": check.name,
        "verdict": word(check.severity),
        "finding": check.finding,
        "remedy": check.remedy,
    })
}

fn word(severity: Severity) -> &'static str {
    match severity {
        Severity::Fine => "ok",
        Severity::Warning => "warn",
        Severity::Fault => "FAULT",
    }
}
