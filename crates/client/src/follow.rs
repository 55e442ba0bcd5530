//! Follows one turn to its last word, on whichever replica answers.
//!
//! Owns the cursor and the retries. A body that ends before the terminal event counts as broken, even if it ended
//! cleanly; the next URL is then asked for events after the last `seq` received.
//!
//! ```text
//! (no turn id) POST, same Idempotency-Key ──first event──► GET …/events, Last-Event-ID ──► End
//!        └──────────── broken: next URL ────────┘  └── broken: next URL ──┘
//! ```
//!
//! If the database lost commits, the log is read again from its start, after a [`FollowStep::Reset`].
//!
//! Keeps: no event is returned twice, none is skipped. Only events refill the idle budget: a keep-alive proves a
//! connection, not a turn.

use std::{
    pin::Pin,
    time::{Duration, Instant},
};

use eventsource_stream::Eventsource;
use futures_util::{Stream, StreamExt};
use reqwest::{Method, Response, StatusCode, header};
use serde_json::Value;
use tokio::time::{sleep, timeout};

use crate::gateway::{CallError, GatewayClient, ProblemAnswer, cause, problem, segment};
use lastword_words::{event::Kind, json};

/// Timeout until a replica begins its answer; then the next replica is tried.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Shorter limit while no replica has answered at all and none can have accepted the turn.
const NOBODY_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest pause between two tries.
const PAUSE_MAX: Duration = Duration::from_secs(3);
/// How long a question may wait for the person at the terminal; the server's answer clock is shorter.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// Upper bound of announced budgets and `Retry-After`.
const TRUST_MAX: Duration = Duration::from_secs(24 * 3600);

type FrameStream = Pin<Box<dyn Stream<Item = Result<eventsource_stream::Event, String>> + Send>>;

/// Where to begin.
pub enum FollowFrom {
    /// A new turn: the body of `POST /v1/turns`, and the key that makes a retry safe.
    NewTurn {
        /// The request.
        body: Value,
        /// `Idempotency-Key`
        key: String,
    },
    /// An existing turn, after this `seq`.
    Log {
        /// `turn_…`
        turn_id: String,
        /// The last event already known.
        after: Option<i64>,
    },
}

/// One event of the turn.
#[derive(Debug, Clone)]
pub struct FollowedEvent {
    /// `turn_…`
    pub turn_id: String,
    /// The kind's name; unknown kinds of newer gateways are passed through.
    pub kind: String,
    /// The whole event.
    pub body: Value,
}

impl FollowedEvent {
    /// A text field of the event; empty if absent.
    pub fn text(&self, field: &str) -> &str {
        self.body.get(field).and_then(Value::as_str).unwrap_or_default()
    }

    /// Whether this is the last word.
    pub fn is_terminal(&self) -> bool {
        self.kind.parse().is_ok_and(Kind::is_terminal)
    }
}

/// What a stream's frame means.
enum FrameMeaning {
    /// The next event.
    Event(FollowedEvent),
    /// An event that was received before.
    Known,
    /// The log starts over.
    Reset,
}

/// What [`Follow::next`] returns.
pub enum FollowStep {
    /// The next event.
    Event(FollowedEvent),
    /// The connection broke, for this reason; the next call retries.
    Outage(String),
    /// Events received so far are void: the log is read again from its start.
    Reset,
    /// Connected.
    Connected,
    /// Nothing follows the cursor: the last word was received, or lies before it.
    End,
}

/// Why following ended without a last word.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    /// The gateway refused the turn, or to show it.
    #[error("{0}")]
    Refused(ProblemAnswer),
    /// The stream was open before, but cannot be resumed.
    #[error("the stream cannot be resumed: {0}")]
    NotResumable(ProblemAnswer),
    /// No replica answers.
    #[error("{0}")]
    Unreachable(CallError),
    /// No event for this long.
    #[error("no event for {0:?}{1}")]
    Idle(Duration, String),
}

/// A reader of one turn's log.
pub struct Follow<'g> {
    gateway: &'g GatewayClient,
    start: FollowFrom,
    turn_id: Option<String>,
    seq: Option<i64>,
    frames: Option<FrameStream>,
    /// The next URL to try, modulo their number.
    replica: usize,
    /// Tries since the last event.
    tries: u32,
    /// What happened at the last try.
    why: String,
    /// The end of the gateway's `Retry-After`.
    not_before: Option<Instant>,
    /// When the last event was received.
    heard_at: Instant,
    idle: Duration,
    /// How long the turn has announced to be quiet.
    announced: Duration,
    /// A question to the person at this terminal is open.
    is_asking: bool,
    answers_here: bool,
    has_connected: bool,
    /// A request may have reached a replica.
    may_be_accepted: bool,
    has_ended: bool,
}

impl<'g> Follow<'g> {
    /// Follows `start`; gives up `idle` after the last event. With `answers_here` an open question stops that
    /// clock, since the person who answers sits at this terminal.
    pub fn new(gateway: &'g GatewayClient, start: FollowFrom, idle: Duration, answers_here: bool) -> Self {
        let (turn_id, seq) = match &start {
            FollowFrom::NewTurn { .. } => (None, None),
            FollowFrom::Log { turn_id, after } => (Some(turn_id.clone()), *after),
        };
        Follow {
            gateway,
            start,
            turn_id,
            seq,
            frames: None,
            replica: 0,
            tries: 0,
            why: String::new(),
            not_before: None,
            heard_at: Instant::now(),
            idle,
            announced: Duration::ZERO,
            is_asking: false,
            answers_here,
            has_connected: false,
            may_be_accepted: false,
            has_ended: false,
        }
    }

    /// The next step. Nothing follows an `Err` or [`FollowStep::End`].
    pub async fn next(&mut self) -> Result<FollowStep, Lost> {
        if self.has_ended {
            return Ok(FollowStep::End);
        }
        let left = self.budget().saturating_sub(self.heard_at.elapsed());
        match timeout(left, self.hear()).await {
            Ok(heard) => heard,
            Err(_) => Err(self.give_up()),
        }
    }

    /// How long after the last event to give up.
    fn budget(&self) -> Duration {
        match self.is_asking && self.answers_here && self.frames.is_some() {
            true => ANSWER_WAIT_MAX,
            false => self.idle.max(self.announced),
        }
    }

    async fn hear(&mut self) -> Result<FollowStep, Lost> {
        loop {
            let Some(frames) = &mut self.frames else {
                sleep(self.pause()).await;
                match self.connect().await? {
                    Some(heard) => return Ok(heard),
                    None => continue,
                }
            };
            let taken = match frames.next().await {
                Some(Ok(frame)) => self.take(&frame),
                Some(Err(why)) => Err(why),
                None => Err("the stream ended before the last word".to_owned()),
            };
            match taken {
                Ok(FrameMeaning::Event(event)) => return Ok(FollowStep::Event(event)),
                Ok(FrameMeaning::Reset) => return Ok(self.reset()),
                Ok(FrameMeaning::Known) => {}
                Err(why) => return Ok(self.outage(why)),
            }
        }
    }

    /// Reads one frame, or returns the reason to try another replica.
    fn take(&mut self, frame: &eventsource_stream::Event) -> Result<FrameMeaning, String> {
        match frame.event.as_str() {
            "reconnect" => return Err("the replica closes its streams".to_owned()),
            "reset" => return Ok(FrameMeaning::Reset),
            _ => {}
        }
        let body = json::read(&frame.data).map_err(|why| format!("not an event: {why}"))?;
        let seq = body.get("seq").and_then(Value::as_i64).ok_or("an event without `seq`")?;
        let turn_id = body.get("turn_id").and_then(Value::as_str).ok_or("an event without `turn_id`")?;
        if self.turn_id.as_deref().is_some_and(|known| known != turn_id) {
            return Err(format!("an event of another turn, {turn_id}"));
        }
        let wanted = self.seq.map_or(0, |seq| seq + 1);
        if seq < wanted {
            return Ok(FrameMeaning::Known);
        }
        if seq > wanted {
            return Err(format!("event {seq} came instead of event {wanted}"));
        }
        let turn_id = turn_id.to_owned();
        let event = FollowedEvent { turn_id: turn_id.clone(), kind: frame.event.clone(), body };
        self.turn_id = Some(turn_id);
        self.seq = Some(seq);
        self.tries = 0;
        self.heard_at = Instant::now();
        self.announced = announced(&event);
        self.is_asking = event.kind == Kind::Ask.as_str();
        self.has_ended = event.is_terminal();
        Ok(FrameMeaning::Event(event))
    }

    /// Forgets the events received; the log is read from its start.
    fn reset(&mut self) -> FollowStep {
        self.seq = None;
        self.is_asking = false;
        self.heard_at = Instant::now();
        FollowStep::Reset
    }

    fn outage(&mut self, why: String) -> FollowStep {
        if self.is_asking && self.answers_here {
            // The clock stood still while the question was open; it runs again from here.
            self.heard_at = Instant::now();
        }
        self.frames = None;
        self.tries += 1;
        self.why.clone_from(&why);
        FollowStep::Outage(why)
    }

    /// The pause before the next try. Grows with each round over all URLs, since the next URL usually works.
    /// Always has jitter.
    fn pause(&self) -> Duration {
        if self.tries == 0 {
            return Duration::ZERO;
        }
        let rounds = self.tries as usize / self.gateway.urls().len().max(1);
        let longest = Duration::from_millis(100 << rounds.min(5)).min(PAUSE_MAX);
        let asked = self.not_before.map_or(Duration::ZERO, |at| at.saturating_duration_since(Instant::now()));
        longest.mul_f64(rand::random_range(0.25..1.0)).max(asked)
    }

    /// One try at one replica; `None` means try again.
    async fn connect(&mut self) -> Result<Option<FollowStep>, Lost> {
        let request = match (&self.turn_id, &self.start) {
            (Some(turn_id), _) | (None, FollowFrom::Log { turn_id, .. }) => {
                let path = format!("/v1/turns/{}/events", segment(turn_id));
                let request = self.gateway.request(self.replica, Method::GET, &path);
                match self.seq {
                    Some(seq) => request.header("last-event-id", seq.to_string()),
                    None => request,
                }
            }
            (None, FollowFrom::NewTurn { body, key }) => self
                .gateway
                .request(self.replica, Method::POST, "/v1/turns")
                .header("idempotency-key", key)
                .json(body),
        };
        self.replica += 1;
        self.tries += 1;
        let answered = timeout(ANSWER_TIMEOUT, request.header(header::ACCEPT, "text/event-stream").send());
        match answered.await {
            Ok(Ok(response)) => self.open(response).await,
            Ok(Err(why)) => self.missed(cause(&why), !why.is_connect()),
            Err(_) => self.missed("the gateway accepted the connection and does not answer".to_owned(), true),
        }
    }

    /// Handles a response: the stream, its end, or a refusal.
    async fn open(&mut self, response: Response) -> Result<Option<FollowStep>, Lost> {
        self.may_be_accepted = true;
        let kind = response.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        let is_stream = kind.is_some_and(|kind| kind.starts_with("text/event-stream"));
        match response.status() {
            StatusCode::NO_CONTENT => {
                self.has_ended = true;
                Ok(Some(FollowStep::End))
            }
            status if status.is_success() && is_stream => {
                if let Some(problem) = ProblemAnswer::put_off(response.headers()) {
                    return Ok(self.put_off(&problem));
                }
                let frames = response.bytes_stream().eventsource();
                self.frames = Some(Box::pin(frames.map(|frame| frame.map_err(|why| broken(&why)))));
                self.has_connected = true;
                Ok(Some(FollowStep::Connected))
            }
            status if status.is_success() => {
                self.missed("the answer is not an event stream".to_owned(), true)
            }
            _ => match problem(response).await {
                problem if problem.is_transient() => Ok(self.put_off(&problem)),
                // The cursor came from this gateway, so its event was lost or replaced.
                problem if self.seq.is_some() && problem.is_rewound() => Ok(Some(self.reset())),
                problem if self.has_connected => Err(Lost::NotResumable(problem)),
                problem => Err(Lost::Refused(problem)),
            },
        }
    }

    /// Handles "not now": reports it once and retries. `Retry-After` counts only if it holds for all replicas.
    fn put_off(&mut self, problem: &ProblemAnswer) -> Option<FollowStep> {
        if problem.status == 429 || self.gateway.urls().len() == 1 {
            self.not_before = problem.retry_after.map(|after| Instant::now() + after.min(TRUST_MAX));
        }
        let why = problem.to_string();
        let is_news = why != self.why;
        self.why.clone_from(&why);
        is_news.then_some(FollowStep::Outage(why))
    }

    fn missed(&mut self, why: String, may_be_accepted: bool) -> Result<Option<FollowStep>, Lost> {
        self.why = why;
        self.may_be_accepted |= may_be_accepted;
        let was_round = self.tries as usize >= self.gateway.urls().len();
        if !self.may_be_accepted && was_round && self.heard_at.elapsed() > NOBODY_TIMEOUT {
            return Err(self.give_up());
        }
        Ok(None)
    }

    /// Why following ends here, and how to resume by hand.
    fn give_up(&self) -> Lost {
        if self.frames.is_none() {
            return Lost::Unreachable(self.gateway.unreachable(&self.why));
        }
        let hint = self.turn_id.as_deref().map(|turn| match self.seq {
            Some(seq) => format!("; to go on: lastword turns tail {turn} --after {seq}"),
            None => format!("; to go on: lastword turns tail {turn}"),
        });
        Lost::Idle(self.idle.max(self.announced), hint.unwrap_or_default())
    }
}

/// How long a turn that waits for a tool has announced to be quiet.
fn announced(event: &FollowedEvent) -> Duration {
    let seconds = event.body.get("budget_s").and_then(Value::as_f64).unwrap_or(0.0);
    Duration::try_from_secs_f64(seconds).unwrap_or_default().min(TRUST_MAX)
}

fn broken(why: &eventsource_stream::EventStreamError<reqwest::Error>) -> String {
    match why {
        eventsource_stream::EventStreamError::Transport(why) => cause(why),
        other => other.to_string(),
    }
}
