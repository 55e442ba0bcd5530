//! `lastword replicas`: list.

use std::process::ExitCode;

use clap::Subcommand;

use super::{
    address::Address,
    table::{self, Column, Output, Page},
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
pub struct Args {
    #[command(flatten)]
    address: Address,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// All replicas
    List {
        #[command(flatten)]
        page: Page,
        /// In which form
        #[arg(long, value_enum, default_value_t)]
        output: Output,
    },
}

/// Runs it.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let Command::List { page, output } = args.command;
    let gateway = args.address.gateway()?;
    table::list(output, COLUMNS, &gateway.get(&page.path("/v1/replicas", &[])).await?)?;
    Ok(ExitCode::SUCCESS)
}
