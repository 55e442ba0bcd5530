//! The demo agent's two pipes, and its memory.
//!
//! Owns reading orders, writing messages and waiting. Keeps two rules: a waiting turn learns of its cancel at
//! once, and a line is written whole.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    io::{self, BufRead, Write},
    time::Duration,
};

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{sync::mpsc, time::timeout};

/// Conversations remembered, and texts of one conversation.
const CONVERSATIONS_MAX: usize = 1000;
const MEMORY_TEXTS_MAX: usize = 1000;
/// Orders that may wait to be read.
const ORDERS_MAX: usize = 64;

/// An order from the host.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum StageOrder {
    /// Run a turn.
    Turn(StageTurn),
    /// The user's answer to a question.
    Answer {
        /// The turn that asked.
        turn_id: String,
        /// What the user said.
        answer: Value,
    },
    /// Stop this turn.
    Cancel {
        /// The turn.
        turn_id: String,
    },
    /// Exit; the end of stdin means the same.
    Shutdown,
    /// An order this agent does not know.
    #[serde(other)]
    Unknown,
}

/// A turn to run.
#[derive(Deserialize)]
pub struct StageTurn {
    /// `turn_…`
    pub turn_id: String,
    /// `conv_…`
    #[serde(default)]
    pub conversation_id: String,
    /// What the user said.
    #[serde(default)]
    pub input: TurnInput,
    /// The conversation so far, oldest first, if the host does not expect this process to know it.
    #[serde(default)]
    pub history: Vec<SaidText>,
}

/// What the user said.
#[derive(Deserialize, Default)]
pub struct TurnInput {
    /// The message.
    #[serde(default)]
    pub text: String,
    /// The attachments.
    #[serde(default)]
    pub attachments: Vec<Value>,
}

/// One text of a conversation.
#[derive(Deserialize, Clone)]
pub struct SaidText {
    /// `user` or `assistant`.
    pub role: String,
    /// The text.
    pub text: String,
}

/// What a running turn is told.
pub enum Cue {
    /// The user's answer to its question.
    Answer(Value),
    /// Stop the turn.
    Cancel,
}

/// Why a running turn ends early.
#[derive(Debug)]
pub enum Stop {
    /// The host cancelled the turn.
    Cancelled,
    /// The host is gone.
    Leave,
}

impl From<io::Error> for Stop {
    /// A host that does not read any more is gone.
    fn from(_: io::Error) -> Self {
        Stop::Leave
    }
}

/// The queue of the host's orders.
pub struct StageOrders(mpsc::Receiver<StageOrder>);

impl StageOrders {
    /// Starts reading stdin.
    pub fn open() -> Self {
        let (sender, orders) = mpsc::channel(ORDERS_MAX);
        std::thread::spawn(move || read_orders(&sender));
        StageOrders(orders)
    }

    /// The next order; the end of stdin is a shutdown. Cancel-safe.
    pub async fn next(&mut self) -> StageOrder {
        self.0.recv().await.unwrap_or(StageOrder::Shutdown)
    }
}

/// Reads orders until stdin ends; then closes the queue, which stops the other thread.
fn read_orders(orders: &mpsc::Sender<StageOrder>) {
    for line in io::stdin().lock().lines() {
        let Ok(line) = line else { return };
        match serde_json::from_str(&line) {
            Ok(order) => {
                if orders.blocking_send(order).is_err() {
                    return;
                }
            }
            Err(why) => eprintln!("demo agent: not an order: {why}"),
        }
    }
}

/// Writes one message as one line.
pub fn say(message: &Value) -> Result<(), Stop> {
    write(message.to_string().as_bytes())
}

/// Writes one line unchanged, valid or not.
pub fn write(line: &[u8]) -> Result<(), Stop> {
    let mut out = io::stdout().lock();
    out.write_all(line)?;
    out.write_all(b"\n")?;
    Ok(out.flush()?)
}

/// The agent's memory of its conversations, and whether a turn is frozen.
#[derive(Default)]
pub struct AgentMemory {
    conversations: RefCell<BTreeMap<String, Vec<SaidText>>>,
    is_frozen: Cell<bool>,
}

impl AgentMemory {
    /// From now on the process never leaves.
    pub fn freeze(&self) {
        self.is_frozen.set(true);
    }

    /// Whether a turn is frozen.
    pub fn is_frozen(&self) -> bool {
        self.is_frozen.get()
    }
}

/// What one turn acts through.
pub struct TurnStage<'a> {
    memory: &'a AgentMemory,
    cues: mpsc::Receiver<Cue>,
    /// The turn's output so far.
    saying: String,
}

impl<'a> TurnStage<'a> {
    /// A stage for `turn`. A `history` replaces what was remembered: the host's version counts.
    pub fn new(memory: &'a AgentMemory, turn: &StageTurn, cues: mpsc::Receiver<Cue>) -> Self {
        let mut conversations = memory.conversations.borrow_mut();
        let known = conversations.entry(turn.conversation_id.clone()).or_default();
        if !turn.history.is_empty() {
            known.clone_from(&turn.history);
        }
        if conversations.len() > CONVERSATIONS_MAX {
            // Ids contain the time, so the first one is the oldest.
            conversations.pop_first();
        }
        drop(conversations);
        TurnStage { memory, cues, saying: String::new() }
    }

    /// Sends a piece of the turn's answer.
    pub fn delta(&mut self, turn: &StageTurn, text: &str) -> Result<(), Stop> {
        self.saying.push_str(text);
        say(&json!({"type": "delta", "turn_id": turn.turn_id, "text": text}))
    }

    /// Sends a message of the turn with only a `text` field.
    pub fn text(&mut self, turn: &StageTurn, kind: &str, text: &str) -> Result<(), Stop> {
        if kind == "content" {
            self.saying.push_str(text);
        }
        say(&json!({"type": kind, "turn_id": turn.turn_id, "text": text}))
    }

    /// Sends `complete`.
    pub fn complete(&mut self, turn: &StageTurn) -> Result<(), Stop> {
        say(&json!({"type": "complete", "turn_id": turn.turn_id}))
    }

    /// Waits, unless the turn is cancelled.
    pub async fn wait(&mut self, span: Duration) -> Result<(), Stop> {
        match timeout(span, self.cancelled()).await {
            Ok(()) => Err(Stop::Cancelled),
            Err(_) => Ok(()),
        }
    }

    /// Lets other turns run, unless this one is cancelled.
    pub async fn pause(&mut self) -> Result<(), Stop> {
        tokio::task::yield_now().await;
        self.wait(Duration::ZERO).await
    }

    /// Waits for the user's answer.
    pub async fn answer(&mut self) -> Result<Value, Stop> {
        match self.cues.recv().await {
            Some(Cue::Answer(answer)) => Ok(answer),
            Some(Cue::Cancel) => Err(Stop::Cancelled),
            None => Err(Stop::Leave),
        }
    }

    /// Never returns: what the turn is told from now on is not read.
    pub async fn freeze(&mut self) -> Result<(), Stop> {
        self.memory.freeze();
        std::future::pending().await
    }

    async fn cancelled(&mut self) {
        // An answer without a question is ignored.
        while !matches!(self.cues.recv().await, Some(Cue::Cancel) | None) {}
    }

    /// Remembers the turn for the next one of its conversation.
    pub fn remember(self, turn: &StageTurn) {
        let mut conversations = self.memory.conversations.borrow_mut();
        let known = conversations.entry(turn.conversation_id.clone()).or_default();
        known.push(SaidText { role: "user".into(), text: turn.input.text.clone() });
        if !self.saying.is_empty() {
            known.push(SaidText { role: "assistant".into(), text: self.saying });
        }
        let surplus = known.len().saturating_sub(MEMORY_TEXTS_MAX);
        known.drain(..surplus);
    }

    /// What this agent remembers of the turn's conversation, oldest first.
    pub fn recall(&self, turn: &StageTurn) -> Vec<SaidText> {
        self.memory.conversations.borrow().get(&turn.conversation_id).cloned().unwrap_or_default()
    }
}
