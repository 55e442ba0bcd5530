//! Watches a turn for the person at the terminal.
//!
//! Owns the meaning of Ctrl-C and of typed lines while a turn runs, and the turn's exit code.

use std::{
    io::{BufRead, IsTerminal},
    pin::pin,
    time::Duration,
};

use anyhow::Context as _;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc::{Receiver, Sender, channel},
};

use super::{CANCELLED, COMPLETED, FAILED, UNREACHABLE, USAGE, transcript::TranscriptView};

use lastword_client::{
    follow::{Follow, FollowFrom, FollowStep, FollowedEvent, Lost},
    gateway::{CallError, GatewayClient, segment},
};

/// The person's input: typed lines and Ctrl-C.
pub struct Keyboard {
    /// Whether stdin is a terminal.
    pub is_terminal: bool,
    /// Opened at the first wait for a line: until then stdin is left alone.
    lines: Option<Receiver<StdinLine>>,
    interrupts: Signal,
}

/// A line of stdin.
type StdinLine = std::io::Result<String>;

impl Keyboard {
    /// This process's stdin and SIGINT, which from now on does not end the process.
    pub fn open() -> anyhow::Result<Self> {
        let interrupts = signal(SignalKind::interrupt()).context("cannot listen for Ctrl-C")?;
        Ok(Keyboard { is_terminal: std::io::stdin().is_terminal(), lines: None, interrupts })
    }

    /// The next line (`None` at the end of stdin), or `Err` for Ctrl-C.
    pub async fn line_or_interrupt(&mut self) -> Result<Option<StdinLine>, ()> {
        tokio::select! {
            line = next_line(&mut self.lines) => Ok(line),
            _ = self.interrupts.recv() => Err(()),
        }
    }
}

/// The next line. Cancel-safe.
async fn next_line(lines: &mut Option<Receiver<StdinLine>>) -> Option<StdinLine> {
    let lines = lines.get_or_insert_with(|| {
        let (sender, lines) = channel(1);
        // On a thread: a read of stdin cannot be cancelled, and must not block the runtime.
        std::thread::spawn(move || read_lines(&sender));
        lines
    });
    lines.recv().await
}

fn read_lines(sender: &Sender<StdinLine>) {
    for line in std::io::stdin().lock().lines() {
        let is_broken = line.is_err();
        if sender.blocking_send(line).is_err() || is_broken {
            return;
        }
    }
}

/// What Ctrl-C means.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Interrupt {
    /// Cancels the turn; the second one leaves.
    Cancels,
    /// Leaves; the turn goes on.
    Leaves,
}

/// How to watch a turn.
pub struct WatchOptions<'a> {
    /// The gateway of the turn.
    pub gateway: &'a GatewayClient,
    /// Where the turn is printed.
    pub transcript: &'a mut TranscriptView,
    /// The person's input.
    pub keyboard: &'a mut Keyboard,
    /// How long to wait without an event.
    pub idle: Duration,
    /// What Ctrl-C means.
    pub interrupt: Interrupt,
}

/// How watching ended.
pub struct WatchEnd {
    /// The exit code.
    pub code: u8,
    /// The turn's conversation, if known.
    pub conversation_id: Option<String>,
}

/// An input of the person, or a step of the stream.
enum News {
    Heard(Result<FollowStep, Lost>),
    Line(Option<StdinLine>),
    Interrupt,
}

/// What is known of the turn so far.
#[derive(Default)]
struct Known {
    turn_id: Option<String>,
    conversation_id: Option<String>,
    ask_id: Option<String>,
    interrupts: u32,
    is_stdin_over: bool,
}

impl WatchOptions<'_> {
    /// Watches `start` to its last word, or until the person or the connection gives up.
    pub async fn run(mut self, start: FollowFrom) -> anyhow::Result<WatchEnd> {
        let mut known = Known::default();
        if let FollowFrom::Log { turn_id, .. } = &start {
            known.turn_id = Some(turn_id.clone());
        }
        let mut follow = Follow::new(self.gateway, start, self.idle, self.keyboard.is_terminal);
        let code = loop {
            // Pinned: a typed line or Ctrl-C must not drop a request in flight.
            let mut next = pin!(follow.next());
            let heard = loop {
                let may_type = self.keyboard.is_terminal && known.ask_id.is_some() && !known.is_stdin_over;
                let news = tokio::select! {
                    heard = &mut next => News::Heard(heard),
                    line = next_line(&mut self.keyboard.lines), if may_type => News::Line(line),
                    _ = self.keyboard.interrupts.recv() => News::Interrupt,
                };
                match news {
                    News::Heard(heard) => break Some(heard),
                    News::Line(line) => self.answer(&mut known, line.transpose()?).await?,
                    News::Interrupt if self.interrupted(&mut known).await? => {}
                    News::Interrupt => break None,
                }
            };
            let Some(heard) = heard else { break CANCELLED };
            if let Some(code) = self.heard(&mut known, heard).await? {
                break code;
            }
        };
        Ok(WatchEnd { code, conversation_id: known.conversation_id })
    }

    /// Handles a step of the stream. Returns the exit code if it was the last.
    async fn heard(
        &mut self,
        known: &mut Known,
        heard: Result<FollowStep, Lost>,
    ) -> anyhow::Result<Option<u8>> {
        match heard {
            Ok(FollowStep::Event(event)) => {
                self.transcript.event(&event).context("cannot print the answer")?;
                let is_first = known.turn_id.replace(event.turn_id.clone()).is_none();
                known.note(&event);
                if event.is_terminal() {
                    return Ok(Some(exit_code(&event.kind)));
                }
                if is_first && known.interrupts > 0 && !self.cancel(known).await? {
                    return Ok(Some(CANCELLED));
                }
                Ok(None)
            }
            Ok(FollowStep::Connected) => Ok(None),
            Ok(FollowStep::Reset) => {
                known.ask_id = None;
                self.transcript.note("[the gateway lost a part of this turn; from the start:]")?;
                Ok(None)
            }
            Ok(FollowStep::Outage(why)) => {
                self.transcript.note(&format!("[{why}; going on]"))?;
                Ok(None)
            }
            Ok(FollowStep::End) => Ok(Some(self.ended_before(known).await?)),
            Err(why) => {
                self.transcript.line(&format!("error: {why}"))?;
                Ok(Some(if matches!(why, Lost::Refused(_)) { USAGE } else { UNREACHABLE }))
            }
        }
    }

    /// Prints the end of a turn whose last word lies before the cursor, so was not received.
    async fn ended_before(&mut self, known: &Known) -> anyhow::Result<u8> {
        let path = format!("/v1/turns/{}", segment(known.turn_id.as_deref().unwrap_or_default()));
        let turn = self.gateway.get(&path).await?;
        let status = turn.get("status").and_then(Value::as_str).unwrap_or_default();
        if let Some(error) = turn.get("error").filter(|error| error.is_object()) {
            self.transcript.failure(error)?;
        }
        Ok(exit_code(status))
    }

    /// Handles Ctrl-C. Returns whether to wait for the last word.
    async fn interrupted(&mut self, known: &mut Known) -> anyhow::Result<bool> {
        known.interrupts += 1;
        if known.interrupts > 1 || self.interrupt == Interrupt::Leaves {
            return Ok(false);
        }
        self.transcript.note("[cancelling; Ctrl-C again to leave]")?;
        match known.turn_id {
            Some(_) => self.cancel(known).await,
            // Whether there is a turn is not known yet; the first event tells, and the turn is then cancelled.
            None => Ok(true),
        }
    }

    /// Requests the cancel; a second Ctrl-C does not wait for the answer.
    async fn cancel(&mut self, known: &Known) -> anyhow::Result<bool> {
        let path = format!("/v1/turns/{}/cancel", segment(known.turn_id.as_deref().unwrap_or_default()));
        let body = json!({});
        tokio::select! {
            done = self.gateway.call(Method::POST, &path, Some(&body)) => self.report(done)?,
            _ = self.keyboard.interrupts.recv() => return Ok(false),
        }
        Ok(true)
    }

    /// Handles a line typed while a question is open.
    async fn answer(&mut self, known: &mut Known, line: Option<String>) -> anyhow::Result<()> {
        let Some(line) = line else {
            known.is_stdin_over = true;
            return Ok(());
        };
        let Some(ask_id) = known.ask_id.take() else { return Ok(()) };
        let path = format!("/v1/turns/{}/answers", segment(known.turn_id.as_deref().unwrap_or_default()));
        let body = json!({"ask_id": ask_id, "answer": line});
        let done = self.gateway.call(Method::POST, &path, Some(&body)).await;
        self.report(done)
    }

    fn report(&mut self, done: Result<Value, CallError>) -> anyhow::Result<()> {
        if let Err(why) = done {
            self.transcript.line(&format!("error: {why}"))?;
        }
        Ok(())
    }
}

impl Known {
    fn note(&mut self, event: &FollowedEvent) {
        match event.kind.as_str() {
            "accepted" => self.conversation_id = Some(event.text("conversation_id").to_owned()),
            "ask" => self.ask_id = Some(event.text("ask_id").to_owned()),
            _ => self.ask_id = None,
        }
    }
}

/// The exit code of a last word.
fn exit_code(last_word: &str) -> u8 {
    match last_word {
        "completed" => COMPLETED,
        "cancelled" => CANCELLED,
        _ => FAILED,
    }
}
