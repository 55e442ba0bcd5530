//! `lastword conversations`: list, show, delete.

use std::process::ExitCode;

use clap::Subcommand;
use reqwest::Method;
use serde_json::json;

use super::{
    address::Address,
    table::{self, Column, Output, PageArgs},
    turns,
};

use lastword_client::gateway::segment;

const COLUMNS: &[Column] = &[("ID", "id"), ("AGENT", "agent"), ("CREATED", "created_at")];

/// Flags of `lastword conversations`.
#[derive(clap::Args)]
pub struct ConversationsArgs {
    #[command(flatten)]
    address: Address,
    #[command(subcommand)]
    command: ConversationsCommand,
}

#[derive(Subcommand)]
enum ConversationsCommand {
    /// The newest conversations
    List {
        /// Only conversations with this agent
        #[arg(long)]
        agent: Option<String>,
        #[command(flatten)]
        page: PageArgs,
        /// Output format
        #[arg(long, value_enum, default_value_t)]
        output: Output,
    },
    /// One conversation and its turns
    Show {
        /// Id of the conversation, conv_…
        id: String,
        #[command(flatten)]
        page: PageArgs,
        /// Output format
        #[arg(long, value_enum, default_value_t)]
        output: Output,
    },
    /// Delete one conversation; its open turns are cancelled
    Delete {
        /// Id of the conversation, conv_…
        id: String,
    },
}

/// Runs `lastword conversations`.
pub async fn run(args: ConversationsArgs) -> anyhow::Result<ExitCode> {
    let gateway = args.address.gateway()?;
    match args.command {
        ConversationsCommand::List { agent, page, output } => {
            let path = page.path("/v1/conversations", &[("agent", agent.as_deref())]);
            table::list(output, COLUMNS, &gateway.get(&path).await?)?;
        }
        ConversationsCommand::Show { id, page, output } => {
            let path = format!("/v1/conversations/{}", segment(&id));
            let conversation = gateway.get(&path).await?;
            let turns = gateway.get(&page.path(&format!("{path}/turns"), &[])).await?;
            match output {
                Output::Json => {
                    table::one(output, &json!({"conversation": conversation, "turns": turns}))?;
                }
                Output::Table => {
                    table::one(output, &conversation)?;
                    say!();
                    table::list(output, turns::COLUMNS, &turns)?;
                }
            }
        }
        ConversationsCommand::Delete { id } => {
            let path = format!("/v1/conversations/{}", segment(&id));
            gateway.call(Method::DELETE, &path, None).await?;
            note!("Deleted {id}");
        }
    }
    Ok(ExitCode::SUCCESS)
}
