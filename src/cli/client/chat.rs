//! `lastword chat`: one message, or a conversation line by line.

use std::process::ExitCode;

use serde_json::{Value, json};

use super::{
    CANCELLED, COMPLETED, UNREACHABLE,
    address::Address,
    transcript::TranscriptView,
    watch::{Interrupt, Keyboard, WatchEnd, WatchOptions},
};

use crate::units::Span;
use lastword_client::{
    follow::FollowFrom,
    gateway::{GatewayClient, segment},
};

/// The agent that `lastword dev` creates.
const DEFAULT_AGENT: &str = "demo";

/// Flags of `lastword chat`.
#[derive(clap::Args)]
#[command(after_help = "\
What the agent says goes to stdout, everything else to stderr.
Exit codes: 0 completed, 1 failed, 2 usage, 3 gateway unreachable or stream not resumable, 130 cancelled.")]
pub struct ChatArgs {
    #[command(flatten)]
    address: Address,
    /// Agent to talk to [default: the conversation's, else demo]
    #[arg(long)]
    agent: Option<String>,
    /// Continue this conversation
    #[arg(long, value_name = "ID")]
    conversation: Option<String>,
    /// Give up after this long without an event
    #[arg(long, default_value = "6m", value_name = "SPAN")]
    idle: Span,
    /// Message to send [default: each line of stdin is a message]
    message: Option<String>,
}

/// Runs `lastword chat`.
pub async fn run(args: ChatArgs) -> anyhow::Result<ExitCode> {
    let gateway = args.address.gateway()?;
    let agent = match (args.agent, &args.conversation) {
        (Some(agent), _) => agent,
        (None, Some(id)) => agent_of(&gateway, id).await?,
        (None, None) => DEFAULT_AGENT.to_owned(),
    };
    let mut chat = Chat {
        gateway: &gateway,
        transcript: TranscriptView::stdio(false),
        keyboard: Keyboard::open()?,
        conversation: args.conversation,
        agent,
        idle: args.idle,
    };
    let code = match &args.message {
        Some(message) => chat.say(message).await?,
        None => chat.talk().await?,
    };
    Ok(ExitCode::from(code))
}

/// The agent of a conversation.
async fn agent_of(gateway: &GatewayClient, conversation_id: &str) -> anyhow::Result<String> {
    let conversation = gateway.get(&format!("/v1/conversations/{}", segment(conversation_id))).await?;
    Ok(conversation.get("agent").and_then(Value::as_str).unwrap_or(DEFAULT_AGENT).to_owned())
}

struct Chat<'g> {
    gateway: &'g GatewayClient,
    transcript: TranscriptView,
    keyboard: Keyboard,
    conversation: Option<String>,
    agent: String,
    idle: Span,
}

impl Chat<'_> {
    /// Sends each line of stdin as a turn of one conversation. Returns the last turn's exit code. Stops at an
    /// error that would fail every further turn too.
    async fn talk(&mut self) -> anyhow::Result<u8> {
        let mut code = COMPLETED;
        loop {
            if self.keyboard.is_terminal {
                self.transcript.prompt()?;
            }
            let line = match self.keyboard.line_or_interrupt().await {
                Ok(line) => line.transpose()?,
                Err(()) => return Ok(CANCELLED),
            };
            let Some(line) = line else { return Ok(code) };
            if line.trim().is_empty() {
                continue;
            }
            code = self.say(&line).await?;
            if code == UNREACHABLE {
                return Ok(code);
            }
        }
    }

    /// Runs one turn to its end. Returns its exit code.
    async fn say(&mut self, message: &str) -> anyhow::Result<u8> {
        let watch = WatchOptions {
            gateway: self.gateway,
            transcript: &mut self.transcript,
            keyboard: &mut self.keyboard,
            idle: self.idle.0,
            interrupt: Interrupt::Cancels,
        };
        let mut body = json!({"agent": self.agent, "input": message, "stream": true});
        if let Some(id) = &self.conversation {
            body["conversation_id"] = Value::from(id.as_str());
        }
        let key = format!("chat-{:032x}", rand::random::<u128>());
        let WatchEnd { code, conversation_id } = watch.run(FollowFrom::NewTurn { body, key }).await?;
        self.conversation = conversation_id.or(self.conversation.take());
        Ok(code)
    }
}
