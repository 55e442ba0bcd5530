//! Events as a client sees them, and the checks that every list of them must pass.
//!
//! Checks I2 to I4: `seq` without gaps, `id` equal to `seq`, one last word, nothing after it, and a body that ends
//! cleanly only after it.

use std::{pin::Pin, time::Duration};

use futures_util::{Stream, StreamExt};
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

/// One event.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Place in its turn's log.
    pub seq: i64,
    /// What it says.
    pub kind: String,
    /// The whole object.
    pub data: Value,
}

impl Event {
    /// Of its object.
    pub fn new(data: Value) -> Event {
        let seq = data["seq"].as_i64().expect("an event has a seq");
        let kind = data["kind"].as_str().expect("an event has a kind").to_owned();
        Event { seq, kind, data }
    }

    /// Whether it is a last word.
    pub fn is_terminal(&self) -> bool {
        ["completed", "failed", "cancelled"].contains(&self.kind.as_str())
    }

    /// A text of its own, empty where it has none.
    pub fn text(&self) -> &str {
        self.data["text"].as_str().unwrap_or_default()
    }

    /// The code of a failure, empty where it is none.
    pub fn code(&self) -> &str {
        self.data["error"]["code"].as_str().unwrap_or_default()
    }

    /// The message of a failure, empty where it is none.
    pub fn message(&self) -> &str {
        self.data["error"]["message"].as_str().unwrap_or_default()
    }
}

/// The kinds of these events, in order.
pub fn kinds(events: &[Event]) -> Vec<&str> {
    events.iter().map(|event| event.kind.as_str()).collect()
}

/// What the deltas said, joined.
pub fn said(events: &[Event]) -> String {
    events.iter().filter(|event| event.kind == "delta").map(Event::text).collect()
}

/// Fails unless this is the rest of a whole log from `first` on.
pub fn check_log(events: &[Event], first: i64) {
    let seqs: Vec<i64> = events.iter().map(|event| event.seq).collect();
    let wanted: Vec<i64> = (first..).take(seqs.len()).collect();
    assert_eq!(seqs, wanted, "seq has gaps, repeats or another order");
    let ends: Vec<usize> = (0..events.len()).filter(|&n| events[n].is_terminal()).collect();
    assert_eq!(
        ends,
        [events.len().wrapping_sub(1)],
        "not exactly one last word at the end: {:?}",
        kinds(events)
    );
}

/// What a stream brought next.
#[derive(Debug)]
pub enum Next {
    /// An event.
    Event(Event),
    /// The replica lets go; come back with the cursor.
    Reconnect,
    /// What was told does not stand any more; the log comes again from its start.
    Reset,
    /// The body ended cleanly.
    Ended,
    /// The connection broke.
    Cut(String),
}

type Body = Pin<Box<dyn Stream<Item = reqwest::Result<bytes::Bytes>> + Send>>;

/// A turn's event stream, raw.
pub struct EventStream {
    body: Body,
    unread: Vec<u8>,
    turn: String,
    next_seq: i64,
    has_ended: bool,
    /// The kind of the newest event.
    newest: String,
}

impl EventStream {
    /// Of an answer that should bring `turn`'s events after `after`.
    pub fn new(answer: reqwest::Response, turn: &str, after: i64) -> EventStream {
        assert_eq!(answer.status(), 200, "no stream of {turn}");
        let kind = answer.headers()["content-type"].to_str().unwrap();
        assert!(kind.starts_with("text/event-stream"), "{kind}");
        let body = Box::pin(answer.bytes_stream());
        EventStream {
            body,
            unread: Vec::new(),
            turn: turn.to_owned(),
            next_seq: after + 1,
            has_ended: false,
            newest: String::new(),
        }
    }

    /// The newest `seq` that it brought: what to come back with.
    pub fn cursor(&self) -> i64 {
        self.next_seq - 1
    }

    /// What comes next within `at_most`.
    pub async fn next(&mut self, at_most: Duration) -> Next {
        let until = Instant::now() + at_most;
        loop {
            while let Some(frame) = self.take_frame() {
                if let Some(next) = self.read(&frame) {
                    return next;
                }
            }
            let piece = timeout_at(until, self.body.next()).await;
            match piece.unwrap_or_else(|_| {
                panic!("{} says nothing for {at_most:?} after `{}` {}", self.turn, self.newest, self.cursor())
            }) {
                Some(Ok(bytes)) => self.unread.extend_from_slice(&bytes),
                Some(Err(why)) => return Next::Cut(format!("{why:?}")),
                None => {
                    assert!(self.unread.is_empty(), "the body ended within a frame");
                    assert!(self.has_ended, "the body of {} ended cleanly before its last word", self.turn);
                    return Next::Ended;
                }
            }
        }
    }

    /// The next event; anything else fails.
    pub async fn next_event(&mut self, at_most: Duration) -> Event {
        match self.next(at_most).await {
            Next::Event(event) => event,
            other => panic!("{} brought no event but {other:?}", self.turn),
        }
    }

    /// The next event of this kind, whatever comes before it.
    pub async fn until(&mut self, kind: &str, at_most: Duration) -> Event {
        let until = Instant::now() + at_most;
        loop {
            let event = self.next_event(until.saturating_duration_since(Instant::now())).await;
            if event.kind == kind {
                return event;
            }
            assert!(!event.is_terminal(), "{} ended before a `{kind}`: {}", self.turn, event.data);
        }
    }

    /// Everything up to the last word and the clean end that follows it.
    pub async fn until_terminal(&mut self, at_most: Duration) -> Vec<Event> {
        let until = Instant::now() + at_most;
        let first = self.next_seq;
        let mut events = Vec::new();
        loop {
            match self.next(until.saturating_duration_since(Instant::now())).await {
                Next::Event(event) => events.push(event),
                Next::Ended => break,
                other => panic!("{} was cut: {other:?} after {:?}", self.turn, kinds(&events)),
            }
        }
        check_log(&events, first);
        events
    }

    fn take_frame(&mut self) -> Option<String> {
        let end = self.unread.windows(2).position(|two| two == b"\n\n")?;
        let frame: Vec<u8> = self.unread.drain(..end + 2).collect();
        Some(String::from_utf8(frame).expect("a stream is UTF-8"))
    }

    /// What a frame means; `None` for one that only keeps the stream alive.
    fn read(&mut self, frame: &str) -> Option<Next> {
        let field = |name: &str| frame.lines().find_map(|line| line.strip_prefix(name));
        let data = field("data: ")?;
        if field("event: ") == Some("reconnect") {
            assert_eq!(field("id: "), None, "a reconnect moves the cursor");
            return Some(Next::Reconnect);
        }
        if field("event: ") == Some("reset") {
            assert_eq!(field("id: "), None, "a reset moves the cursor");
            self.next_seq = 0;
            return Some(Next::Reset);
        }
        let event = Event::new(serde_json::from_str(data).expect("data is JSON"));
        assert!(!self.has_ended, "{} after the last word", event.data);
        assert_eq!(event.seq, self.next_seq, "a gap, a repeat or another order: {}", event.data);
        assert_eq!(field("id: ").map(str::to_owned), Some(event.seq.to_string()), "{frame}");
        assert_eq!(field("event: "), Some(event.kind.as_str()), "{frame}");
        assert_eq!(event.data["turn_id"], self.turn.as_str(), "{frame}");
        self.next_seq += 1;
        self.has_ended = event.is_terminal();
        self.newest.clone_from(&event.kind);
        Some(Next::Event(event))
    }
}
