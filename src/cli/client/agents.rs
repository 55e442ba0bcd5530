//! `lastword agents`: list, show, delete.

use std::process::ExitCode;

use clap::Subcommand;
use reqwest::Method;

use super::{
    address::Address,
    table::{self, Column, Output, PageArgs},
};

use lastword_client::gateway::segment;

const COLUMNS: &[Column] = &[
    ("NAME", "name"),
    ("REVISION", "revision"),
    ("RUNTIME", "runtime|spec/runtime"),
    ("UPDATED", "updated_at"),
];

/// Flags of `lastword agents`.
#[derive(clap::Args)]
pub struct AgentsArgs {
    #[command(flatten)]
    address: Address,
    #[command(subcommand)]
    command: AgentsCommand,
}

#[derive(Subcommand)]
enum AgentsCommand {
    /// All agents
    List {
        #[command(flatten)]
        page: PageArgs,
        /// Output format
        #[arg(long, value_enum, default_value_t)]
        output: Output,
    },
    /// One agent
    Show {
        /// Name of the agent
        name: String,
        /// Output format
        #[arg(long, value_enum, default_value_t)]
        output: Output,
    },
    /// Delete one agent
    Delete {
        /// Name of the agent
        name: String,
    },
}

/// Runs `lastword agents`.
pub async fn run(args: AgentsArgs) -> anyhow::Result<ExitCode> {
    let gateway = args.address.gateway()?;
    match args.command {
        AgentsCommand::List { page, output } => {
            table::list(output, COLUMNS, &gateway.get(&page.path("/v1/agents", &[])).await?)?;
        }
        AgentsCommand::Show { name, output } => {
            table::one(output, &gateway.get(&format!("/v1/agents/{}", segment(&name))).await?)?;
        }
        AgentsCommand::Delete { name } => {
            gateway.call(Method::DELETE, &format!("/v1/agents/{}", segment(&name)), None).await?;
            note!("Deleted {name}");
        }
    }
    Ok(ExitCode::SUCCESS)
}
