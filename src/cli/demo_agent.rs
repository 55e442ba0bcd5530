//! `lastword demo-agent`: a worker on the native stdio protocol that misbehaves on request.
//!
//! Owns the loop over orders and running turns. A real worker, not a mock: tests and `lastword dev` run it like
//! any program, with one turn at a time or, as a shared worker, with many. All turns run in one task, so their
//! lines never mix; a separate thread reads stdin, so a running turn learns of a cancel at once.

mod acts;
pub mod pace;
mod stage;

use std::{collections::BTreeMap, fs::File, io, io::Write, process::ExitCode, time::Duration};

use anyhow::Context as _;
use futures_util::{StreamExt, stream::FuturesUnordered};
use serde_json::json;
use tokio::sync::mpsc;

use stage::{AgentMemory, Cue, StageOrder, StageOrders, StageTurn, Stop, TurnStage};

/// Orders that may wait for one turn.
const CUES_MAX: usize = 16;

/// Flags of `lastword demo-agent`; what it does is said in the messages that it gets.
#[derive(clap::Args)]
#[command(after_help = acts::HELP)]
pub struct DemoAgentArgs {
    #[arg(long, help = pace::HELP)]
    pace: bool,
}

/// Serves turns until `shutdown` or the end of stdin.
pub async fn run(args: DemoAgentArgs) -> anyhow::Result<ExitCode> {
    if args.pace {
        pace::run()?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut orders = StageOrders::open();
    match Startup::from_env()? {
        Startup::At(delay) => tokio::time::sleep(delay).await,
        Startup::Exit(code) => {
            eprintln!("demo agent: leaving before it was ready, as asked");
            return Ok(ExitCode::from(code));
        }
        Startup::Never => {
            while !matches!(orders.next().await, StageOrder::Shutdown) {}
            return Ok(ExitCode::SUCCESS);
        }
    }
    let mut receipts = Receipts::from_env()?;
    if stage::say(&json!({"type": "ready"})).is_ok() {
        serve(&mut orders, &mut receipts).await?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs all turns concurrently until told to leave.
async fn serve(orders: &mut StageOrders, receipts: &mut Receipts) -> anyhow::Result<()> {
    let memory = AgentMemory::default();
    let mut cues: BTreeMap<String, mpsc::Sender<Cue>> = BTreeMap::new();
    let mut turns = FuturesUnordered::new();
    loop {
        tokio::select! {
            order = orders.next() => match order {
                StageOrder::Turn(turn) => {
                    receipts.note(&turn.turn_id).context("DEMO_RECEIPTS")?;
                    let (sender, heard) = mpsc::channel(CUES_MAX);
                    cues.insert(turn.turn_id.clone(), sender);
                    turns.push(play(&memory, turn, heard));
                }
                StageOrder::Answer { turn_id, answer } => cue(&cues, &turn_id, Cue::Answer(answer)),
                StageOrder::Cancel { turn_id } => cue(&cues, &turn_id, Cue::Cancel),
                StageOrder::Shutdown => break,
                StageOrder::Unknown => {}
            },
            Some((turn_id, played)) = turns.next() => {
                cues.remove(&turn_id);
                if played.is_err() {
                    break;
                }
            }
        }
    }
    // A frozen turn never ends, and keeps the process alive.
    while memory.is_frozen() {
        turns.next().await;
    }
    Ok(())
}

fn cue(cues: &BTreeMap<String, mpsc::Sender<Cue>>, turn_id: &str, cue: Cue) {
    if let Some(turn) = cues.get(turn_id) {
        let _ = turn.try_send(cue);
    }
}

/// Runs one turn to its end. Returns its id, and whether the process may go on.
async fn play(
    memory: &AgentMemory,
    turn: StageTurn,
    cues: mpsc::Receiver<Cue>,
) -> (String, Result<(), Stop>) {
    let mut stage = TurnStage::new(memory, &turn, cues);
    let played = match acts::perform(&mut stage, &turn).await {
        Err(Stop::Cancelled) => stage::say(&json!({"type": "cancelled", "turn_id": turn.turn_id})),
        played => played,
    };
    stage.remember(&turn);
    (turn.turn_id, played)
}

/// The behaviour at start: `DEMO_STARTUP` is `exit0`, `exit1`, `never` or `slow:MS`.
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

/// A file (`DEMO_RECEIPTS`) that lists each turn received, one id a line. Workers may share it: it proves whether
/// a turn was given to two workers, whatever the turn's log says.
struct Receipts(Option<File>);

impl Receipts {
    fn from_env() -> anyhow::Result<Self> {
        let Some(path) = std::env::var_os("DEMO_RECEIPTS") else { return Ok(Receipts(None)) };
        Ok(Receipts(Some(File::options().append(true).create(true).open(path).context("DEMO_RECEIPTS")?)))
    }

    fn note(&mut self, turn_id: &str) -> io::Result<()> {
        // One write, so that lines of two workers never mix.
        self.0.as_mut().map_or(Ok(()), |file| file.write_all(format!("{turn_id}\n").as_bytes()))
    }
}
