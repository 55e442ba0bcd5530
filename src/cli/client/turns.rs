//! `lastword turns`: list, show, tail, cancel.

use std::process::ExitCode;

use clap::Subcommand;
use reqwest::Method;
use serde_json::json;

use super::{
    address::Address,
    table::{self, Column, Output, PageArgs},
    transcript::TranscriptView,
    watch::{Interrupt, Keyboard, WatchOptions},
};

use crate::{turn::Status, units::Span};
use lastword_client::{
    follow::FollowFrom,
    gateway::{GatewayClient, segment},
};

/// The columns of a list of turns.
pub const COLUMNS: &[Column] = &[
    ("ID", "id"),
    ("STATUS", "status"),
    ("AGENT", "agent"),
    ("N", "ordinal"),
    ("CONVERSATION", "conversation_id"),
    ("CREATED", "created_at"),
    ("ERROR", "error/code"),
];

/// Flags of `lastword turns`.
#[derive(clap::Args)]
pub struct TurnsArgs {
    #[command(flatten)]
    address: Address,
    #[command(subcommand)]
    command: TurnsCommand,
}

#[derive(Subcommand)]
enum TurnsCommand {
    /// The newest turns
    List(ListArgs),
    /// One turn
    Show {
        /// Id of the turn, turn_…
        id: String,
        /// Output format
        #[arg(long, value_enum, default_value_t)]
        output: Output,
    },
    /// Follow one turn to its last word
    Tail(TailArgs),
    /// Cancel one turn
    Cancel {
        /// Id of the turn, turn_…
        id: String,
    },
}

#[derive(clap::Args)]
struct ListArgs {
    /// Only turns of this agent
    #[arg(long)]
    agent: Option<String>,
    /// Only turns in this status: queued, running, completed, failed, cancelled
    #[arg(long)]
    status: Option<Status>,
    /// Only turns of this conversation
    #[arg(long, value_name = "ID")]
    conversation: Option<String>,
    /// Only turns past their deadline
    #[arg(long)]
    overdue: bool,
    #[command(flatten)]
    page: PageArgs,
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

#[derive(clap::Args)]
struct TailArgs {
    /// Id of the turn, turn_…
    id: String,
    /// Only events after this `seq`
    #[arg(long, value_name = "SEQ")]
    after: Option<i64>,
    /// Give up after this long without an event
    #[arg(long, default_value = "6m", value_name = "SPAN")]
    idle: Span,
    /// Output format: text, or one line of JSON per event
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// Runs `lastword turns`.
pub async fn run(args: TurnsArgs) -> anyhow::Result<ExitCode> {
    let gateway = args.address.gateway()?;
    match args.command {
        TurnsCommand::List(list) => {
            let path = list.page.path(
                "/v1/turns",
                &[
                    ("agent", list.agent.as_deref()),
                    ("status", list.status.map(Status::as_str)),
                    ("conversation_id", list.conversation.as_deref()),
                    ("overdue", list.overdue.then_some("true")),
                ],
            );
            table::list(list.output, COLUMNS, &gateway.get(&path).await?)?;
        }
        TurnsCommand::Show { id, output } => {
            table::one(output, &gateway.get(&format!("/v1/turns/{}", segment(&id))).await?)?;
        }
        TurnsCommand::Tail(wanted) => return tail(&gateway, wanted).await,
        TurnsCommand::Cancel { id } => {
            let path = format!("/v1/turns/{}/cancel", segment(&id));
            let turn = gateway.call(Method::POST, &path, Some(&json!({}))).await?;
            let status = turn.get("status").and_then(|status| status.as_str()).unwrap_or("unknown");
            match status.parse::<Status>().is_ok_and(Status::is_terminal) {
                true => note!("The turn had already ended: {status}"),
                false => note!("Cancelling {id}"),
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Exits like `chat`, except that Ctrl-C does not cancel the turn.
async fn tail(gateway: &GatewayClient, wanted: TailArgs) -> anyhow::Result<ExitCode> {
    let watch = WatchOptions {
        gateway,
        transcript: &mut TranscriptView::stdio(wanted.output == Output::Json),
        keyboard: &mut Keyboard::open()?,
        idle: wanted.idle.0,
        interrupt: Interrupt::Leaves,
    };
    let ended = watch.run(FollowFrom::Log { turn_id: wanted.id, after: wanted.after }).await?;
    Ok(ExitCode::from(ended.code))
}
