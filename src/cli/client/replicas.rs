//! `lastword replicas`: list.

use std::process::ExitCode;

use clap::Subcommand;

use super::{
    address::Address,
    table::{self, Column, Output, PageArgs},
};

const COLUMNS: &[Column] = &[
    ("ID", "id"),
    ("STATE", "state"),
    ("NAME", "name"),
    ("URL", "url"),
    ("PID", "pid"),
    ("TURNS", "turns"),
    ("VERSION", "version"),
    ("STARTED", "started_at"),
    ("BEAT", "beat_at"),
];

/// Flags of `lastword replicas`.
#[derive(clap::Args)]
pub struct ReplicasArgs {
    #[command(flatten)]
    address: Address,
    #[command(subcommand)]
    command: ReplicasCommand,
}

#[derive(Subcommand)]
enum ReplicasCommand {
    /// All replicas
    List {
        #[command(flatten)]
        page: PageArgs,
        /// Output format
        #[arg(long, value_enum, default_value_t)]
        output: Output,
    },
}

/// Runs `lastword replicas`.
pub async fn run(args: ReplicasArgs) -> anyhow::Result<ExitCode> {
    let ReplicasCommand::List { page, output } = args.command;
    let gateway = args.address.gateway()?;
    table::list(output, COLUMNS, &gateway.get(&page.path("/v1/replicas", &[])).await?)?;
    Ok(ExitCode::SUCCESS)
}
