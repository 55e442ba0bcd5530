//! The native protocol's messages: what is said to a worker and what it says back.
//!
//! Owns their JSON forms. Refuses a known message with a missing or mistyped field, naming the
//! field; it never guesses. Keeps I7's first half: a type it does not know is kept whole as a
//! custom message. Unknown fields of a known type are ignored: the type says which fields count,
//! and a worker that wants more to be kept sends it as `custom` or under a type of its own.

mod object;
mod said;

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::value::RawValue;

use self::object::bad;
pub use self::{
    object::{BadField, Object},
    said::{Omitted, PastQuestion, Said},
};

use lastword_words::{
    frame::unmarked,
    halves::Cut,
    id::{ConversationId, TurnId},
    json::Raw,
    text,
};

/// One line to a worker.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToWorker {
    /// Run this turn.
    Turn {
        /// The turn.
        turn_id: TurnId,
        /// Its conversation.
        conversation_id: ConversationId,
        /// From 1.
        attempt: i32,
        /// `{text, attachments?}`.
        input: Box<RawValue>,
        /// What was said before, oldest first, in a conversation that already has some: with the first
        /// turn that a process serves in it, and with each one that a shared worker serves.
        #[serde(skip_serializing_if = "Option::is_none")]
        history: Option<Vec<Said>>,
        /// What of it is not told, where that is anything.
        #[serde(skip_serializing_if = "Option::is_none")]
        history_omitted: Option<Omitted>,
        /// When the turn's cap lapses.
        deadline: DateTime<Utc>,
        /// The W3C trace context to go on with.
        #[serde(skip_serializing_if = "Option::is_none")]
        traceparent: Option<String>,
    },
    /// The user's answer to an `ask`.
    Answer {
        /// The turn that asked.
        turn_id: TurnId,
        /// Its question.
        ask_id: String,
        /// As the client gave it.
        answer: Raw,
    },
    /// Stop this turn and say `cancelled`.
    Cancel {
        /// The turn.
        turn_id: TurnId,
    },
    /// Leave; SIGTERM follows.
    Shutdown,
}

impl ToWorker {
    /// The message as one line, its newline included.
    pub fn to_line(&self) -> Result<Vec<u8>, serde_json::Error> {
        // A client's own JSON is passed on as it was written, and may have line breaks between its tokens.
        let mut line = text::json_line(self)?.into_bytes();
        line.push(b'\n');
        Ok(line)
    }
}

/// One line from a worker.
#[derive(Debug, Clone, PartialEq)]
pub struct FromWorker {
    /// The turn it names; a worker that serves one turn at a time may leave it out, a shared one only
    /// in `ready` and `beat`.
    pub turn_id: Option<TurnId>,
    /// What it says.
    pub message: Message,
}

/// What a worker says.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// It can take a turn.
    Ready,
    /// A piece of the answer.
    Delta {
        /// The piece.
        text: String,
        /// Which ends of it are halves of characters.
        cut: Cut,
    },
    /// A whole neutral message.
    Content {
        /// The message.
        text: String,
    },
    /// For the moment, not part of the answer.
    Ephemeral {
        /// The text.
        text: String,
    },
    /// What it is doing or waiting for.
    Status {
        /// What it is doing.
        state: String,
        /// `model`, `tool:NAME` or `approval`.
        waiting_on: Option<String>,
        /// Seconds without progress that it asks for; finite, not negative.
        budget_s: Option<f64>,
    },
    /// A question to the user.
    Ask {
        /// The worker's own name for it.
        ask_id: Option<String>,
        /// The question.
        prompt: String,
        /// What may be answered, as the worker sent it.
        options: Option<Raw>,
    },
    /// Anything else, whole.
    Custom {
        /// The worker's name for it: of a type that is not known, the type.
        name: String,
        /// What it sent: of a type that is not known, the whole object.
        data: Raw,
    },
    /// It is alive; says nothing about progress.
    Beat,
    /// The answer is complete.
    Complete {
        /// The whole answer; without it the deltas are the answer.
        text: Option<String>,
        /// What it used, as the worker sent it.
        usage: Option<Raw>,
        /// Why it stopped.
        stop_reason: Option<String>,
    },
    /// The turn failed.
    Error {
        /// The worker's own code.
        code: Option<String>,
        /// Text for a person.
        message: String,
        /// Whether asking again may help.
        retryable: Option<bool>,
    },
    /// It stopped the turn, as it was asked to.
    Cancelled,
}

impl FromWorker {
    /// Reads a message from its object.
    pub fn from_object(fields: &Object<'_>) -> Result<Self, BadField> {
        let no_id = bad("turn_id", "a turn's id");
        let turn_id = fields.text_if_any("turn_id").map_err(|_| no_id.clone())?;
        let turn_id = turn_id.map(|text| text.parse().map_err(|_| no_id)).transpose()?;
        let message = match fields.text("type")?.as_str() {
            "ready" => Message::Ready,
            "delta" => Message::Delta { text: fields.text("text")?, cut: Cut::default() },
            "content" => Message::Content { text: fields.text("text")? },
            "ephemeral" => Message::Ephemeral { text: fields.text("text")? },
            "status" => Message::Status {
                state: fields.text("state")?,
                waiting_on: fields.text_if_any("waiting_on")?,
                budget_s: fields.seconds_if_any("budget_s")?,
            },
            "ask" => Message::Ask {
                ask_id: fields.text_if_any("ask_id")?,
                prompt: fields.text("prompt")?,
                options: fields.raw("options"),
            },
            "custom" => Message::Custom {
                name: fields.text("name")?,
                data: fields.raw("data").unwrap_or(Raw::null()),
            },
            "beat" => Message::Beat,
            "complete" => Message::Complete {
                text: fields.text_if_any("text")?,
                usage: fields.raw("usage"),
                stop_reason: fields.text_if_any("stop_reason")?,
            },
            "error" => Message::Error {
                code: fields.text_if_any("code")?,
                message: fields.text("message")?,
                retryable: fields.bool_if_any("retryable")?,
            },
            "cancelled" => Message::Cancelled,
            unknown => Message::Custom { name: unknown.to_owned(), data: fields.whole() },
        };
        Ok(FromWorker { turn_id, message })
    }

    /// The same with the halves of characters that the line had at the ends of a delta's text.
    #[must_use]
    pub fn cut_as(mut self, line: &[u8]) -> Self {
        if let Message::Delta { cut, .. } = &mut self.message {
            *cut = Cut::of(unmarked(line));
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use uuid::Uuid;

    use super::*;
    use lastword_words::turn::Status;

    fn read(value: Value) -> Result<FromWorker, BadField> {
        FromWorker::from_object(&Object::of(&value.to_string()).unwrap())
    }

    #[test]
    fn a_turn_is_one_line_even_when_its_input_was_written_over_many() {
        let input = RawValue::from_string("{\r\n \"text\": \"a\\nb\"\n}".to_owned()).unwrap();
        let turn = ToWorker::Turn {
            turn_id: TurnId(Uuid::from_u128(1)),
            conversation_id: ConversationId(Uuid::from_u128(2)),
            attempt: 1,
            input,
            history: Some(vec![Said {
                role: "user".into(),
                text: "hi".into(),
                turn_id: TurnId(Uuid::from_u128(3)),
                status: Status::Completed,
                code: None,
                by: None,
                attachments: None,
                asks: Vec::new(),
                shortened: false,
            }]),
            history_omitted: Some(Omitted { turns: 2, shortened: 0 }),
            deadline: DateTime::UNIX_EPOCH,
            traceparent: None,
        };
        let line = turn.to_line().unwrap();
        assert_eq!(line.iter().filter(|b| matches!(b, b'\n' | b'\r')).count(), 1);
        let read: Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(
            read,
            json!({
                "type": "turn", "turn_id": "turn_00000000000000000000000000000001",
                "conversation_id": "conv_00000000000000000000000000000002", "attempt": 1,
                "input": {"text": "a\nb"}, "history": [{
                    "role": "user", "text": "hi", "turn_id": "turn_00000000000000000000000000000003",
                    "status": "completed",
                }],
                "history_omitted": {"turns": 2, "shortened": 0},
                "deadline": "1970-01-01T00:00:00Z",
            })
        );
    }

    #[test]
    fn shutdown_is_only_its_type() {
        assert_eq!(ToWorker::Shutdown.to_line().unwrap(), b"{\"type\":\"shutdown\"}\n");
    }

    #[test]
    fn a_type_that_is_not_known_is_kept_whole() {
        let whole = json!({"type": "mood", "text": 7, "turn_id": "turn_00000000000000000000000000000001"});
        let heard = read(whole.clone()).unwrap();
        let data = Raw::of(whole.to_string()).unwrap();
        assert_eq!(heard.message, Message::Custom { name: "mood".into(), data });
        assert_eq!(heard.turn_id, Some(TurnId(Uuid::from_u128(1))));
    }

    #[test]
    fn a_mistyped_field_is_named() {
        for (value, field) in [
            (json!({}), "type"),
            (json!({"type": 1}), "type"),
            (json!({"type": "delta"}), "text"),
            (json!({"type": "delta", "text": null}), "text"),
            (json!({"type": "content", "text": ["a"]}), "text"),
            (json!({"type": "ready", "turn_id": "conv_1"}), "turn_id"),
            (json!({"type": "status", "state": "x", "budget_s": -1}), "budget_s"),
            (json!({"type": "status", "state": "x", "budget_s": "9"}), "budget_s"),
            (json!({"type": "status", "waiting_on": "model"}), "state"),
            (json!({"type": "ask"}), "prompt"),
            (json!({"type": "custom", "data": 1}), "name"),
            (json!({"type": "complete", "text": 1}), "text"),
            (json!({"type": "error"}), "message"),
            (json!({"type": "error", "message": "m", "retryable": "no"}), "retryable"),
        ] {
            assert_eq!(read(value.clone()).unwrap_err().field, field, "{value}");
        }
    }

    #[test]
    fn what_is_given_on_keeps_its_digits_and_its_order() {
        let whole = r#"{"z":[1.0,1e400,-0.0,123456789012345678901],"type":"x","a":{"c":1,"b":2}}"#;
        let line = format!(" {whole} ");
        let heard = FromWorker::from_object(&Object::of(&line).unwrap()).unwrap();
        let Message::Custom { data, .. } = heard.message else { panic!() };
        assert_eq!(data.text(), whole);
    }

    #[test]
    fn extra_fields_of_a_known_type_do_no_harm() {
        let heard = read(json!({"type": "delta", "text": "a", "index": 3})).unwrap();
        let delta = Message::Delta { text: "a".into(), cut: Cut::default() };
        assert_eq!(heard, FromWorker { turn_id: None, message: delta });
    }
}
