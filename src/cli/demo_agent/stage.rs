//! The demo agent's two pipes, and its memory.
//!
//! Owns reading orders, saying messages and waiting. Keeps one rule: whoever waits hears `cancel`,
//! `shutdown` and the end of stdin at once.

use std::{
    collections::{BTreeMap, VecDeque},
    io::{self, BufRead, Write},
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    time::{Duration, Instant},
};

use serde::Deserialize;
use serde_json::{Value, json};

/// How many texts of one conversation are remembered.
const MEMORY_TEXTS_MAX: usize = 1000;
/// How many orders wait while a turn is under way.
const ORDERS_MAX: usize = 64;

/// The pipes to the host.
pub struct Stage {
    orders: Receiver<Order>,
    waiting: VecDeque<Turn>,
    answers: VecDeque<Value>,
    memory: BTreeMap<String, Vec<Said>>,
    /// What the turn under way has said so far.
    saying: String,
}

/// What the host wants.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Order {
    /// Run a turn.
    Turn(Turn),
    /// The user's answer to a question.
    Answer {
        /// The turn that asked.
        turn_id: String,
        /// What the user said.
        answer: Value,
    },
    /// Stop this turn.
    Cancel {
        /// Which.
        turn_id: String,
    },
    /// Leave; the end of stdin says the same.
    Shutdown,
    /// Nothing this agent knows.
    #[serde(other)]
    Unknown,
}

/// A turn to run.
#[derive(Deserialize)]
pub struct Turn {
    /// `turn_…`
    pub turn_id: String,
    /// `conv_…`
    #[serde(default)]
    pub conversation_id: String,
    /// What the user said.
    #[serde(default)]
    pub input: Input,
    /// What was said before, where this process cannot know it; oldest first.
    #[serde(default)]
    pub history: Vec<Said>,
}

/// What the user said.
#[derive(Deserialize, Default)]
pub struct Input {
    /// The message.
    #[serde(default)]
    pub text: String,
    /// What came with it.
    #[serde(default)]
    pub attachments: Vec<Value>,
}

/// One text of a conversation.
#[derive(Deserialize, Clone)]
pub struct Said {
    /// `user` or `assistant`.
    pub role: String,
    /// What they said.
    pub text: String,
}

/// Why a turn under way ends early.
#[derive(Debug)]
pub enum Stop {
    /// The host cancelled it.
    Cancelled,
    /// The host wants the process to leave, or is gone.
    Leave,
}

impl From<io::Error> for Stop {
    /// A host that reads no more is a host that is gone.
    fn from(_: io::Error) -> Self {
        Stop::Leave
    }
}

impl Stage {
    /// Starts reading stdin.
    pub fn open() -> Self {
        let (sender, orders) = sync_channel(ORDERS_MAX);
        std::thread::spawn(move || read_orders(&sender));
        let (waiting, answers) = (VecDeque::new(), VecDeque::new());
        Stage { orders, waiting, answers, memory: BTreeMap::new(), saying: String::new() }
    }

    /// Writes one message as one line.
    pub fn say(&mut self, message: &Value) -> Result<(), Stop> {
        self.write(message.to_string().as_bytes())
    }

    /// Says a piece of the turn's answer.
    pub fn delta(&mut self, turn: &Turn, text: &str) -> Result<(), Stop> {
        self.saying.push_str(text);
        self.say(&json!({"type": "delta", "turn_id": turn.turn_id, "text": text}))
    }

    /// Says a message of the turn whose only field beside the usual ones is `text`.
    pub fn text(&mut self, turn: &Turn, kind: &str, text: &str) -> Result<(), Stop> {
        if kind == "content" {
            self.saying.push_str(text);
        }
        self.say(&json!({"type": kind, "turn_id": turn.turn_id, "text": text}))
    }

    /// Says that the turn is done.
    pub fn complete(&mut self, turn: &Turn) -> Result<(), Stop> {
        self.say(&json!({"type": "complete", "turn_id": turn.turn_id}))
    }

    /// Writes one line as it is, whatever it is.
    pub fn write(&mut self, line: &[u8]) -> Result<(), Stop> {
        let mut out = io::stdout().lock();
        out.write_all(line)?;
        out.write_all(b"\n")?;
        Ok(out.flush()?)
    }

    /// Waits, unless the turn is cancelled or the process should leave.
    pub fn wait(&mut self, turn: &Turn, span: Duration) -> Result<(), Stop> {
        let until = Instant::now() + span;
        loop {
            match self.orders.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(order) => self.heed(turn, order)?,
                Err(RecvTimeoutError::Timeout) => return Ok(()),
                Err(RecvTimeoutError::Disconnected) => return Err(Stop::Leave),
            }
        }
    }

    /// Waits for the user's answer.
    pub fn answer(&mut self, turn: &Turn) -> Result<Value, Stop> {
        loop {
            if let Some(answer) = self.answers.pop_front() {
                return Ok(answer);
            }
            let order = self.orders.recv().map_err(|_| Stop::Leave)?;
            self.heed(turn, order)?;
        }
    }

    /// What an order means while `turn` is under way.
    fn heed(&mut self, turn: &Turn, order: Order) -> Result<(), Stop> {
        match order {
            Order::Turn(next) => self.waiting.push_back(next),
            Order::Answer { turn_id, answer } if turn_id == turn.turn_id => self.answers.push_back(answer),
            Order::Cancel { turn_id } if turn_id == turn.turn_id => return Err(Stop::Cancelled),
            Order::Cancel { turn_id } => self.waiting.retain(|waiting| waiting.turn_id != turn_id),
            Order::Shutdown => return Err(Stop::Leave),
            Order::Answer { .. } | Order::Unknown => {}
        }
        Ok(())
    }

    /// The next turn to run, with what its `history` says now remembered; `None` to leave.
    pub fn next_turn(&mut self) -> Option<Turn> {
        loop {
            let turn = match self.waiting.pop_front() {
                Some(turn) => turn,
                None => match self.next_order() {
                    Order::Turn(turn) => turn,
                    Order::Shutdown => return None,
                    Order::Answer { .. } | Order::Cancel { .. } | Order::Unknown => continue,
                },
            };
            self.answers.clear();
            self.saying.clear();
            let known = self.memory.entry(turn.conversation_id.clone()).or_default();
            if known.is_empty() {
                known.extend(turn.history.iter().cloned());
            }
            return Some(turn);
        }
    }

    /// The next order; the end of stdin is a shutdown.
    pub fn next_order(&mut self) -> Order {
        self.orders.recv().unwrap_or(Order::Shutdown)
    }

    /// Keeps what a turn said, for the next one of its conversation.
    pub fn remember(&mut self, turn: &Turn) {
        let known = self.memory.entry(turn.conversation_id.clone()).or_default();
        known.push(Said { role: "user".into(), text: turn.input.text.clone() });
        if !self.saying.is_empty() {
            known.push(Said { role: "assistant".into(), text: std::mem::take(&mut self.saying) });
        }
        let surplus = known.len().saturating_sub(MEMORY_TEXTS_MAX);
        known.drain(..surplus);
    }

    /// What this agent knows of the turn's conversation, oldest first.
    pub fn recall(&self, turn: &Turn) -> &[Said] {
        self.memory.get(&turn.conversation_id).map_or(&[], Vec::as_slice)
    }
}

/// Reads orders until stdin ends; the closed queue then tells the other thread.
fn read_orders(orders: &SyncSender<Order>) {
    for line in io::stdin().lock().lines() {
        let Ok(line) = line else { return };
        match serde_json::from_str(&line) {
            Ok(order) => {
                if orders.send(order).is_err() {
                    return;
                }
            }
            Err(why) => eprintln!("demo agent: not an order: {why}"),
        }
    }
}
