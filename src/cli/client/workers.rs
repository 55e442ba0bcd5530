//! `lastword workers`: list, stop.

use std::process::ExitCode;

use clap::Subcommand;
use reqwest::Method;
use serde_json::json;

use super::{
    address::Address,
    table::{self, Column, Output, PageArgs},
};

use lastword_client::gateway::segment;

const COLUMNS: &[Column] = &[
    ("ID", "id"),
    ("STATE", "state"),
    ("AGENT", "agent"),
    ("RUNTIME", "runtime"),
    ("CONVERSATION", "conversation_id"),
    ("TURN", "turn_id"),
    ("TURNS", "turns"),
    ("REPLICA", "replica_id"),
    ("PID", "pid"),
    ("POD", "pod"),
    ("STARTED", "started_at"),
];

/// Flags of `lastword workers`.
#[derive(clap::Args)]
pub struct WorkersArgs {
    #[command(flatten)]
    address: Address,
    #[command(subcommand)]
    command: WorkersCommand,
}

#[derive(Subcommand)]
enum WorkersCommand {
    /// All workers
    List {
        #[command(flatten)]
        page: PageArgs,
        /// Output format
        #[arg(long, value_enum, default_value_t)]
        output: Output,
    },
    /// Stop one worker; every turn that it runs is cancelled
    Stop {
        /// Id of the worker, wrk_…
        id: String,
    },
}

/// Runs `lastword workers`.
pub async fn run(args: WorkersArgs) -> anyhow::Result<ExitCode> {
    let gateway = args.address.gateway()?;
    match args.command {
        WorkersCommand::List { page, output } => {
            table::list(output, COLUMNS, &gateway.get(&page.path("/v1/workers", &[])).await?)?;
        }
        WorkersCommand::Stop { id } => {
            let path = format!("/v1/workers/{}/stop", segment(&id));
            gateway.call(Method::POST, &path, Some(&json!({}))).await?;
            note!("Stopping {id}");
        }
    }
    Ok(ExitCode::SUCCESS)
}
