//! `lastword demo-agent`: a worker on the native stdio protocol that misbehaves on request.
//!
//! Owns the loop over turns and what the agent remembers of its conversations. It is a real worker,
//! not a mock: the gateway's tests and `lastword dev` run it as any other program. One thread reads
//! stdin and hands orders over a bounded queue, so a turn under way hears of a cancel at once.

mod acts;
mod stage;

use std::{process::ExitCode, time::Duration};

use anyhow::Context as _;
use serde_json::json;

use stage::{Order, Stage, Stop};

/// Flags of `lastword demo-agent`; what it does is said in the messages that it gets.
#[derive(clap::Args)]
#[command(after_help = acts::HELP)]
pub struct Args {}

/// Serves turns until `shutdown` or the end of stdin.
pub async fn run(_args: Args) -> anyhow::Result<ExitCode> {
    let mut stage = Stage::open();
    match Startup::from_env()? {
        Startup::At(delay) => tokio::time::sleep(delay).await,
        Startup::Exit(code) => {
            eprintln!("demo agent: leaving before it was ready, as asked");
            return Ok(ExitCode::from(code));
        }
        Startup::Never => return Ok(never_ready(&mut stage)),
    }
    if stage.say(&json!({"type": "ready"})).is_err() {
        return Ok(ExitCode::SUCCESS);
    }
    while let Some(turn) = stage.next_turn() {
        match acts::perform(&mut stage, &turn) {
            Ok(()) => {}
            Err(Stop::Cancelled) => {
                if stage.say(&json!({"type": "cancelled", "turn_id": turn.turn_id})).is_err() {
                    break;
                }
            }
            Err(Stop::Leave) => break,
        }
        stage.remember(&turn);
    }
    Ok(ExitCode::SUCCESS)
}

/// How it comes up: `DEMO_STARTUP` is `exit0`, `exit1`, `never` or `slow:MS`.
enum Startup {
    At(Duration),
    Exit(u8),
    Never,
}

impl Startup {
    fn from_env() -> anyhow::Result<Self> {
        let Ok(way) = std::env::var("DEMO_STARTUP") else { return Ok(Startup::At(Duration::ZERO)) };
        Ok(match way.as_str() {
            "" => Startup::At(Duration::ZERO),
            "exit0" => Startup::Exit(0),
            "exit1" => Startup::Exit(1),
            "never" => Startup::Never,
            other => {
                let ms = other.strip_prefix("slow:").and_then(|ms| ms.parse().ok());
                let ms = ms.with_context(|| {
                    format!("DEMO_STARTUP: `{other}` is none of exit0, exit1, never, slow:MS")
                })?;
                Startup::At(Duration::from_millis(ms))
            }
        })
    }
}

/// Says nothing; leaves when it is told to.
fn never_ready(stage: &mut Stage) -> ExitCode {
    while !matches!(stage.next_order(), Order::Shutdown) {}
    ExitCode::SUCCESS
}
