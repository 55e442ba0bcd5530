//! What a worker has said in one turn: messages in; events and the last word out.
//!
//! Pure. Keeps I7: every message becomes an event, an end, or a named violation. A worker that completes without
//! having said anything has failed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    event::{Kind, NewEvent},
    failure::Code,
    halves::{self, Cut},
    host::protocol::messages::Message,
    json::Raw,
    turn::LastWord,
};

/// The stop reason if the worker names none.
const STOP_REASON: &str = "end_turn";

const ASKS_MAX: usize = 1000;

/// The state of one turn's answer.
#[derive(Debug, Default)]
pub struct Transcript {
    /// The answer so far: deltas and contents, concatenated.
    text: String,
    /// Bytes of all events so far, of any kind.
    bytes: u64,
    /// First half of a character split between two deltas. The log stores it with the delta it ended, so that
    /// another replica can resume the turn and join the halves.
    half: Option<u16>,
    /// Whether the client received anything that counts as an answer.
    has_spoken: bool,
    /// Each question's id, and whether it still waits for an answer. Ids are never reused: an answer to the first
    /// question would pass for an answer to the second.
    asks: BTreeMap<String, bool>,
}

/// What one message means for the turn.
#[derive(Debug, PartialEq)]
pub enum Meaning {
    /// An event to append.
    Event(NewEvent),
    /// Nothing for the log: a `beat`, or a repeated `ready`.
    Alive,
    /// The turn's end, as the worker reports it.
    End(LastWord),
    /// An end in failure, with the worker's message or the gateway's.
    Failed {
        /// The failure's code.
        code: Code,
        /// Text for a person.
        message: String,
        /// The worker's own word on whether a retry may help.
        retryable: Option<bool>,
    },
    /// The worker reports that it stopped the turn.
    Cancelled,
}

impl Transcript {
    /// Takes in one message. `output_max`: bytes one turn may send.
    pub fn hear(&mut self, message: Message, output_max: u64) -> Meaning {
        let event = match message {
            Message::Ready | Message::Beat => return Meaning::Alive,
            Message::Cancelled => return Meaning::Cancelled,
            Message::Complete { text, usage, stop_reason } => return self.complete(text, usage, stop_reason),
            Message::Error { message, retryable, .. } => {
                return Meaning::Failed { code: Code::AgentError, message, retryable };
            }
            Message::Delta { text, cut } => self.say_piece(&text, cut),
            Message::Content { text } => {
                self.say(&text);
                NewEvent::new(Kind::Content, &json!({ "text": text }))
            }
            Message::Ephemeral { text } => NewEvent::new(Kind::Ephemeral, &json!({ "text": text })),
            Message::Status { state, waiting_on, budget_s } => {
                let mut fields = json!({ "state": state });
                set_if_any(&mut fields, "waiting_on", waiting_on.map(Value::from));
                set_if_any(&mut fields, "budget_s", budget_s.map(Value::from));
                NewEvent::new(Kind::Status, &fields)
            }
            Message::Ask { ask_id, prompt, options } => match self.ask(ask_id, prompt, options) {
                Ok(event) => event,
                Err(why) => return violation(why),
            },
            Message::Custom { name, data } => {
                self.has_spoken = true;
                NewEvent::new(Kind::Custom, &CustomFields { data: &data, name: &name })
            }
        };
        self.bytes += event.data.len() as u64;
        if self.bytes > output_max {
            return violation("The worker sent more than this agent may send in one turn.");
        }
        Meaning::Event(event)
    }

    /// Takes in an event from the log: an earlier message, or an answer.
    pub fn recall(&mut self, kind: Kind, data: &str) {
        let Recalled { text, ask_id, half } = serde_json::from_str(data).unwrap_or_default();
        match kind {
            Kind::Answer => {
                self.take_ask(&ask_id);
                return;
            }
            Kind::Delta | Kind::Content => {
                self.say(&text);
                if kind == Kind::Delta && (!text.is_empty() || half.is_some()) {
                    self.half = half.and_then(|half| u16::from_str_radix(&half, 16).ok());
                }
            }
            Kind::Ask => {
                self.has_spoken = true;
                self.asks.insert(ask_id, true);
            }
            Kind::Custom | Kind::Foreign(_) => self.has_spoken = true,
            _ => {}
        }
        self.bytes += data.len() as u64;
    }

    /// Closes a question. Returns whether the question was waiting for an answer.
    pub fn take_ask(&mut self, ask_id: &str) -> bool {
        self.asks.get_mut(ask_id).is_some_and(std::mem::take)
    }

    /// Whether the user owes an answer.
    pub fn is_asking(&self) -> bool {
        self.asks.values().any(|is_open| *is_open)
    }

    /// A half character left over at the end of the turn, as a last delta. The answer's text already includes it.
    pub fn take_half(&mut self) -> Option<NewEvent> {
        self.half.take().map(|_| NewEvent::new(Kind::Delta, &json!({ "text": halves::REPLACEMENT })))
    }

    fn say(&mut self, text: &str) {
        self.has_spoken |= !text.is_empty();
        self.text.push_str(text);
    }

    /// Adds a delta, whose first character may have begun in the delta before. An empty delta may come between two
    /// halves.
    fn say_piece(&mut self, text: &str, cut: Cut) -> NewEvent {
        if text.is_empty() {
            return NewEvent::new(Kind::Delta, &json!({ "text": "" }));
        }
        let mut said = String::with_capacity(text.len() + 4);
        match (self.half.take(), cut.low) {
            (Some(high), Some(low)) => said.push(halves::join(high, low)),
            (Some(_), None) | (None, Some(_)) => said.push(halves::REPLACEMENT),
            (None, None) => {}
        }
        said.push_str(cut.within(text));
        self.say(&said);
        self.half = cut.high;
        match self.half {
            Some(half) => NewEvent::new(Kind::Delta, &json!({ "text": said, "half": format!("{half:04x}") })),
            None => NewEvent::new(Kind::Delta, &json!({ "text": said })),
        }
    }

    fn ask(
        &mut self,
        ask_id: Option<String>,
        prompt: String,
        options: Option<Raw>,
    ) -> Result<NewEvent, &'static str> {
        if self.asks.len() >= ASKS_MAX {
            return Err("The worker asked too many questions in one turn.");
        }
        let ask_id = ask_id.unwrap_or_else(|| format!("ask_{}", self.asks.len() + 1));
        let is_allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_.:".contains(&b);
        if !(1..=100).contains(&ask_id.len()) || !ask_id.bytes().all(is_allowed) {
            return Err("The worker sent a question whose id is not 1 to 100 plain characters.");
        }
        if self.asks.contains_key(&ask_id) {
            return Err("The worker asked two questions under one id.");
        }
        let fields = AskFields { ask_id: &ask_id, options: options.as_ref(), prompt: &prompt };
        let event = NewEvent::new(Kind::Ask, &fields);
        self.has_spoken = true;
        self.asks.insert(ask_id, true);
        Ok(event)
    }

    fn complete(&mut self, text: Option<String>, usage: Option<Raw>, stop_reason: Option<String>) -> Meaning {
        if self.half.is_some() {
            self.say(halves::REPLACEMENT.encode_utf8(&mut [0; 4]));
        }
        let text = text.filter(|text| !text.is_empty());
        if !self.has_spoken && text.is_none() {
            let message = Code::EmptyReply.message().to_owned();
            return Meaning::Failed { code: Code::EmptyReply, message, retryable: None };
        }
        let text = text.unwrap_or_else(|| std::mem::take(&mut self.text));
        let stop_reason = stop_reason.unwrap_or_else(|| STOP_REASON.to_owned());
        let fields = CompletedFields { stop_reason: &stop_reason, text: &text, usage: usage.as_ref() };
        let NewEvent { kind, data } = NewEvent::new(Kind::Completed, &fields);
        Meaning::End(LastWord { kind, data, label: "".into() })
    }
}

/// Field structs for events that pass JSON from the worker through unchanged.
#[derive(Serialize)]
struct CustomFields<'a> {
    data: &'a Raw,
    name: &'a str,
}

#[derive(Serialize)]
struct AskFields<'a> {
    ask_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    options: Option<&'a Raw>,
    prompt: &'a str,
}

#[derive(Serialize)]
struct CompletedFields<'a> {
    stop_reason: &'a str,
    text: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<&'a Raw>,
}

/// The fields of an event that a replay needs.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Recalled {
    text: String,
    ask_id: String,
    half: Option<String>,
}

fn set_if_any(fields: &mut Value, name: &str, value: Option<Value>) {
    if let Some(value) = value {
        fields[name] = value;
    }
}

fn violation(message: &str) -> Meaning {
    Meaning::Failed { code: Code::WorkerProtocol, message: message.to_owned(), retryable: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delta(text: &str) -> Message {
        Message::Delta { text: text.to_owned(), cut: Cut::default() }
    }

    fn complete(text: Option<&str>) -> Message {
        Message::Complete { text: text.map(str::to_owned), usage: None, stop_reason: None }
    }

    #[test]
    fn the_answer_is_what_was_said_unless_the_worker_says_it_whole() {
        let mut said = Transcript::default();
        said.hear(delta("a"), 1000);
        said.hear(Message::Content { text: "b".to_owned() }, 1000);
        said.hear(Message::Ephemeral { text: "c".to_owned() }, 1000);
        let Meaning::End(word) = said.hear(complete(None), 1000) else { panic!("no end") };
        assert_eq!(word.data, r#"{"stop_reason":"end_turn","text":"ab"}"#);

        let mut said = Transcript::default();
        said.hear(delta("a"), 1000);
        let Meaning::End(word) = said.hear(complete(Some("whole")), 1000) else { panic!("no end") };
        assert!(word.data.contains(r#""text":"whole""#));
    }

    #[test]
    fn a_silent_success_is_a_failure() {
        for silence in [
            vec![],
            vec![delta("")],
            vec![Message::Ephemeral { text: "psst".to_owned() }],
            vec![Message::Beat],
        ] {
            let mut said = Transcript::default();
            for message in silence {
                said.hear(message, 1000);
            }
            let end = said.hear(complete(None), 1000);
            assert!(matches!(end, Meaning::Failed { code: Code::EmptyReply, .. }), "{end:?}");
        }
    }

    #[test]
    fn too_much_is_a_violation() {
        let mut said = Transcript::default();
        assert!(matches!(said.hear(delta("x"), 100), Meaning::Event(_)));
        let end = said.hear(delta(&"x".repeat(100)), 100);
        assert!(matches!(end, Meaning::Failed { code: Code::WorkerProtocol, .. }));
    }

    #[test]
    fn what_is_recalled_from_the_log_is_what_was_heard() {
        let (mut heard, mut recalled) = (Transcript::default(), Transcript::default());
        let ask = Message::Ask { ask_id: None, prompt: "?".to_owned(), options: None };
        let content = Message::Content { text: "b".to_owned() };
        let custom = Message::Custom { name: "n".to_owned(), data: Raw::null() };
        let half =
            Message::Delta { text: "b\u{fffd}".to_owned(), cut: Cut { low: None, high: Some(0xd83c) } };
        for message in
            [delta("a"), half, delta(""), content, Message::Ephemeral { text: "c".to_owned() }, custom, ask]
        {
            let Meaning::Event(event) = heard.hear(message, 1000) else { panic!("no event") };
            recalled.recall(event.kind, &event.data);
        }
        assert_eq!(format!("{heard:?}"), format!("{recalled:?}"));
        heard.take_ask("ask_1");
        recalled.recall(Kind::Answer, r#"{"ask_id":"ask_1","answer":"yes"}"#);
        assert_eq!(format!("{heard:?}"), format!("{recalled:?}"));
    }

    #[test]
    fn a_question_takes_one_answer() {
        let mut said = Transcript::default();
        let ask = |id: Option<&str>| Message::Ask {
            ask_id: id.map(str::to_owned),
            prompt: "?".to_owned(),
            options: None,
        };
        assert!(matches!(said.hear(ask(None), 1000), Meaning::Event(_)));
        assert!(said.is_asking());
        assert!(matches!(said.hear(ask(Some("ask_1")), 1000), Meaning::Failed { .. }));
        assert!(said.take_ask("ask_1") && !said.take_ask("ask_1") && !said.is_asking());
        assert!(matches!(said.hear(ask(Some("no id\n")), 1000), Meaning::Failed { .. }));
    }
}
