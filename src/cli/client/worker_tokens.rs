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
    /// Create a token for an agent's remote workers; the token is shown once
    Create {
        /// Agent whose turns the workers may run
        #[arg(long, value_name = "NAME")]
        agent: String,
        /// Only conversation that the workers may serve
        #[arg(long, value_name = "ID")]
        conversation: Option<String>,
        /// Lifetime of the token, such as 90d [default: until revoked]
        #[arg(long, value_name = "SPAN")]
        expires: Option<Span>,
        /// Output format
        #[arg(long, value_enum, default_value_t)]
        output: Output,
    },
    /// All worker tokens, without their secrets
    List {
        #[command(flatten)]
        page: PageArgs,
        /// Output format
        #[arg(long, value_enum, default_value_t)]
        output: Output,
    },
    /// Revoke one token; turns of its workers end
    Revoke {
        /// Id of the token, wtk_…
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
                        "{} is valid for workers of {agent} until {until}",
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
