//! `lastword worker-tokens`: create, list, revoke.

use std::process::ExitCode;

use clap::Subcommand;
use reqwest::Method;
use serde_json::json;

use super::{
    address::Address,
    table::{self, Column, Output, PageArgs},
};

use crate::units::Span;
use lastword_client::gateway::segment;

const COLUMNS: &[Column] = &[
    ("ID", "id"),
    ("AGENT", "agent"),
    ("CONVERSATION", "conversation_id"),
    ("CREATED", "created_at"),
    ("EXPIRES", "expires_at"),
];

/// Flags of `lastword worker-tokens`.
#[derive(clap::Args)]
pub struct WorkerTokensArgs {
    #[command(flatten)]
    address: Address,
    #[command(subcommand)]
    command: WorkerTokensCommand,
}

#[derive(Subcommand)]
enum WorkerTokensCommand {
    /// Mint a token that lets an agent's workers in; it is shown once
    Create {
        /// Whose turns its workers may run
        #[arg(long, value_name = "NAME")]
        agent: String,
        /// The only conversation that they may serve
        #[arg(long, value_name = "ID")]
        conversation: Option<String>,
        /// For how long, such as 90d; without it until it is revoked
        #[arg(long, value_name = "SPAN")]
        expires: Option<Span>,
        /// In which form
        #[arg(long, value_enum, default_value_t)]
        output: Output,
    },
    /// The tokens that let workers in, without their secrets
    List {
        #[command(flatten)]
        page: PageArgs,
        /// In which form
        #[arg(long, value_enum, default_value_t)]
        output: Output,
    },
    /// Revoke one; what its workers run ends
    Revoke {
        /// wtk_…
        id: String,
    },
}

/// Runs `lastword worker-tokens`.
pub async fn run(args: WorkerTokensArgs) -> anyhow::Result<ExitCode> {
    let gateway = args.address.gateway()?;
    match args.command {
        WorkerTokensCommand::Create { agent, conversation, expires, output } => {
            let expires = expires.map(|span| span.to_string());
            let body = json!({ "agent": agent, "conversation_id": conversation, "expires": expires });
            let minted = gateway.call(Method::POST, "/v1/worker-tokens", Some(&body)).await?;
            match (output, minted["token"].as_str()) {
                // The secret alone, so that it can be redirected to a file.
                (Output::Table, Some(token)) => {
                    say!("{token}");
                    let until = minted["expires_at"].as_str().unwrap_or("it is revoked");
                    note!(
                        "{} lets workers of {agent} in until {until}",
                        minted["id"].as_str().unwrap_or("-")
                    );
                }
                _ => table::one(Output::Json, &minted)?,
            }
        }
        WorkerTokensCommand::List { page, output } => {
            table::list(output, COLUMNS, &gateway.get(&page.path("/v1/worker-tokens", &[])).await?)?;
        }
        WorkerTokensCommand::Revoke { id } => {
            gateway.call(Method::DELETE, &format!("/v1/worker-tokens/{}", segment(&id)), None).await?;
            note!("Revoked {id}");
        }
    }
    Ok(ExitCode::SUCCESS)
}
