//! Events: the rows of a turn's append-only log, and their one JSON form.
//!
//! Owns the event kinds and the JSON object that every reader sees. The store keeps the order of the log: no gaps in
//! `seq`, and nothing after a terminal event (I2, I3, I4).

mod foreign;
mod last_words;

use std::{
    ops::Deref,
    sync::{Arc, OnceLock},
};

use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;
use serde_json::value::RawValue;

pub use last_words::LastWords;

use crate::{id::TurnId, text};

/// How deep JSON from outside may be nested, in levels. Common parsers, ours among them, stop at 128 levels, and a
/// received message or body is sent out a few levels deeper: inside an event's field, inside a page of events.
pub const NESTING_MAX: usize = 100;

/// Whether JSON text is nested deeper than [`NESTING_MAX`]. The result means nothing for text that is not JSON.
pub fn is_too_deep(json: &[u8]) -> bool {
    let (mut depth, mut is_string, mut is_escaped) = (0_usize, false, false);
    for byte in json {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_string => is_escaped = true,
            b'"' => is_string = !is_string,
            _ if is_string => {}
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > NESTING_MAX {
            return true;
        }
    }
    false
}

crate::words! {
    /// What an event says.
    pub enum Kind in "turn_events.kind" {
        /// `seq` 0: the turn and its obligation are durable.
        Accepted = "accepted",
        /// A worker is about to receive the turn; written once per attempt.
        Started = "started",
        /// A piece of the answer.
        Delta = "delta",
        /// A whole neutral message: a notice, a buffered answer.
        Content = "content",
        /// A temporary notice, not part of the answer.
        Ephemeral = "ephemeral",
        /// What the worker is doing or waiting for.
        Status = "status",
        /// A question to the user.
        Ask = "ask",
        /// The user's answer to an [`Kind::Ask`].
        Answer = "answer",
        /// Any other message from a worker, whole.
        Custom = "custom",
        /// Terminal: the whole answer.
        Completed = "completed",
        /// Terminal: what went wrong.
        Failed = "failed",
        /// Terminal: the turn was cancelled, and by whom.
        Cancelled = "cancelled",
        .. /// A kind that a newer release wrote, by its name. Never a last word: every release has the same three.
        Foreign = foreign::kept,
    }
}

impl Kind {
    /// Whether this is a last word.
    pub const fn is_terminal(self) -> bool {
        matches!(self, Kind::Completed | Kind::Failed | Kind::Cancelled)
    }
}

/// An event that is not in the log yet.
#[derive(Debug, Clone, PartialEq)]
pub struct NewEvent {
    /// The kind of event.
    pub kind: Kind,
    /// The kind's own fields: the text of one JSON object.
    pub data: String,
}

impl NewEvent {
    /// An event with these fields. `fields` must serialize to a JSON object.
    pub fn new(kind: Kind, fields: &impl Serialize) -> Self {
        let data = serde_json::to_string(fields).unwrap_or_default();
        debug_assert!(data.starts_with('{'));
        NewEvent { kind, data }
    }
}

/// One row of a turn's log.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// The turn whose log this is.
    pub turn_id: TurnId,
    /// Place in the log, from 0 without gaps.
    pub seq: i32,
    /// The kind of event.
    pub kind: Kind,
    /// The attempt that wrote it; 0 before the first.
    pub attempt: i32,
    /// The kind's own fields: the text of one JSON object, as it was written.
    pub data: String,
    /// When it was written, by the database's clock.
    pub at: DateTime<Utc>,
}

impl Event {
    /// The event as every reader sees it: one line with one JSON object of `turn_id`, `seq`, `kind`, `at`, `attempt`
    /// and the kind's fields. The text of the fields is kept, except for characters that line readers take for a line
    /// end or that terminals obey: those are escaped, so worker text can never forge a frame.
    pub fn to_json(&self) -> String {
        let mut out = format!(
            r#"{{"turn_id":"{}","seq":{},"kind":"{}","at":"{}","attempt":{}"#,
            self.turn_id,
            self.seq,
            self.kind,
            self.at.to_rfc3339_opts(SecondsFormat::Micros, true),
            self.attempt,
        );
        let fields = self.data.trim().strip_prefix('{').unwrap_or("}").trim_start();
        if fields != "}" {
            out.push(',');
        }
        out.push_str(&text::one_line(fields));
        out
    }
}

/// An event with many readers: a clone copies a pointer, and the JSON is made once, on first use.
#[derive(Debug, Clone)]
pub struct SharedEvent(Arc<(Event, OnceLock<Box<str>>)>);

impl SharedEvent {
    /// [`Event::to_json`], cached.
    pub fn json(&self) -> &str {
        let (event, json) = &*self.0;
        json.get_or_init(|| event.to_json().into())
    }
}

impl From<Event> for SharedEvent {
    fn from(event: Event) -> Self {
        SharedEvent(Arc::new((event, OnceLock::new())))
    }
}

impl Deref for SharedEvent {
    type Target = Event;

    fn deref(&self) -> &Event {
        &self.0.0
    }
}

impl PartialEq for SharedEvent {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Serialize for SharedEvent {
    fn serialize<S: serde::Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        let json: &RawValue = serde_json::from_str(self.json()).map_err(serde::ser::Error::custom)?;
        json.serialize(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::word::Word as _;

    fn event(data: &str) -> Event {
        Event {
            turn_id: TurnId(uuid::Uuid::from_u128(1)),
            seq: 3,
            kind: Kind::Delta,
            attempt: 1,
            data: data.to_owned(),
            at: DateTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn a_kind_of_a_newer_release_keeps_its_name_and_is_no_last_word() {
        let kind = Kind::of_stored("reasoning").unwrap();
        assert_eq!(
            (kind, kind.as_str(), kind.is_terminal()),
            (Kind::Foreign("reasoning"), "reasoning", false)
        );
        assert_eq!(Kind::of_stored("delta").unwrap(), Kind::Delta);
        assert!(Kind::of_stored("a\nevent: completed").is_err());
    }

    #[test]
    fn only_brackets_outside_of_strings_nest() {
        let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert!(!is_too_deep(nested(NESTING_MAX).as_bytes()));
        assert!(is_too_deep(nested(NESTING_MAX + 1).as_bytes()));
        assert!(!is_too_deep(serde_json::json!({ "\\\"": nested(500) }).to_string().as_bytes()));
        assert!(!is_too_deep(format!("[{}]", vec!["{}"; 500].join(",")).as_bytes()));
    }

    #[test]
    fn an_event_is_one_flat_object() {
        let whole: serde_json::Value =
            serde_json::from_str(&event(r#"{"text":"a\u0000b"}"#).to_json()).unwrap();
        assert_eq!(whole["seq"], 3);
        assert_eq!(whole["text"], "a\u{0}b");
        assert_eq!(whole["at"], "1970-01-01T00:00:00.000000Z");
    }

    #[test]
    fn what_is_shared_is_written_once() {
        let one = SharedEvent::from(event(r#"{"text":"a"}"#));
        let other = one.clone();
        assert_eq!(one.json(), event(r#"{"text":"a"}"#).to_json());
        assert!(std::ptr::eq(one.json(), other.json()));
        let equal = SharedEvent::from(Event::clone(&one));
        assert!(one == equal && !std::ptr::eq(one.json(), equal.json()));
    }

    #[test]
    fn an_event_without_fields_is_still_an_object() {
        let whole: serde_json::Value = serde_json::from_str(&event("{}").to_json()).unwrap();
        assert_eq!(whole["kind"], "delta");
    }
}
