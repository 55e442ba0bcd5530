//! A worker's message, written again: for a host that passes on over HTTP what a process said on its pipe.
//!
//! Pure. Keeps I7 across the host: what is read back is what was said. Left out is what concerns the process
//! alone (`ready`, `beat`), and the turn, which the address names.

use serde::Serialize;
use serde_json::Value;

use super::messages::Message;
use lastword_words::{halves::Cut, json::Raw, text};

/// The message as one line with its newline; `None` where there is nothing to pass on.
pub fn relay(message: &Message) -> Option<Vec<u8>> {
    let left_out = RelayedFields::default();
    Some(line(&match message {
        Message::Ready | Message::Beat => return None,
        Message::Delta { text, cut } => return Some(delta(text, *cut)),
        Message::Content { text } => RelayedFields { r#type: "content", text: Some(text), ..left_out },
        Message::Ephemeral { text } => RelayedFields { r#type: "ephemeral", text: Some(text), ..left_out },
        Message::Status { state, waiting_on, budget_s } => {
            let waiting_on = waiting_on.as_deref();
            RelayedFields {
                r#type: "status",
                state: Some(state),
                waiting_on,
                budget_s: *budget_s,
                ..left_out
            }
        }
        Message::Ask { ask_id, prompt, options } => {
            let (ask_id, options) = (ask_id.as_deref(), options.as_ref());
            RelayedFields { r#type: "ask", ask_id, prompt: Some(prompt), options, ..left_out }
        }
        Message::Custom { name, data } => {
            RelayedFields { r#type: "custom", name: Some(name), data: Some(data), ..left_out }
        }
        Message::Complete { text, usage, stop_reason } => {
            let (text, stop_reason) = (text.as_deref(), stop_reason.as_deref());
            RelayedFields { r#type: "complete", text, usage: usage.as_ref(), stop_reason, ..left_out }
        }
        Message::Error { code, message, retryable } => {
            let (code, retryable) = (code.as_deref(), *retryable);
            RelayedFields { r#type: "error", code, message: Some(message), retryable, ..left_out }
        }
        Message::Cancelled => RelayedFields { r#type: "cancelled", ..left_out },
    }))
}

/// The fields of every message. What is null counts as left out, and takes room.
#[derive(Default, Serialize)]
struct RelayedFields<'a> {
    r#type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    waiting_on: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    budget_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ask_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    options: Option<&'a Raw>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a Raw>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<&'a Raw>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retryable: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a str>,
}

/// A delta with the halves of characters that it came with: the gateway joins them.
fn delta(text: &str, cut: Cut) -> Vec<u8> {
    let whole = cut.within(text);
    let mut line = br#"{"text":""#.to_vec();
    let escape = |half: Option<u16>| half.map(|half| format!("\\u{half:04x}")).unwrap_or_default();
    line.extend_from_slice(escape(cut.low).as_bytes());
    // Between its quotes.
    let quoted = Value::from(whole).to_string();
    line.extend_from_slice(&quoted.as_bytes()[1..quoted.len() - 1]);
    line.extend_from_slice(escape(cut.high).as_bytes());
    line.extend_from_slice(b"\",\"type\":\"delta\"}\n");
    line
}

/// Whether nothing of the turn follows this message.
pub fn is_end(message: &Message) -> bool {
    matches!(message, Message::Complete { .. } | Message::Error { .. } | Message::Cancelled)
}

/// What a host says when its worker is gone, as one line with its newline. `detail` is for operators.
pub fn gone(code: lastword_words::failure::Code, message: &str, detail: Option<&str>) -> Vec<u8> {
    let (code, message) = (Some(code.as_str()), Some(message));
    line(&RelayedFields { r#type: "gone", code, message, detail, ..RelayedFields::default() })
}

fn line(fields: &RelayedFields<'_>) -> Vec<u8> {
    // What is given on as it came may have line breaks between its tokens. Such a struct always has a form.
    let mut line = text::json_line(fields).unwrap_or_default().into_bytes();
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::messages::{FromWorker, Object};
    use lastword_words::halves::mended;

    #[test]
    fn what_is_passed_on_reads_as_what_was_said() {
        for said in [
            r#"{"type":"delta","text":"a\u0000\n\"é"}"#,
            r#"{"type":"delta","text":"\udf89a\ud83c"}"#,
            r#"{"type":"delta","text":"\ud83c"}"#,
            r#"{"type":"content","text":""}"#,
            r#"{"type":"ephemeral","text":"x"}"#,
            r#"{"type":"status","state":"s","waiting_on":"tool:x","budget_s":1.25}"#,
            r#"{"type":"status","state":"s"}"#,
            r#"{"type":"ask","prompt":"?","options":["a",1]}"#,
            r#"{"type":"custom","name":"n","data":{"deep":[null]}}"#,
            r#"{"type":"custom","name":"n"}"#,
            r#"{"type":"something_else","x":1.0,"a":1e400}"#,
            r#"{"type":"complete"}"#,
            r#"{"type":"complete","text":"t","usage":{"tokens":3},"stop_reason":"r"}"#,
            r#"{"type":"error","message":"m","retryable":false}"#,
            r#"{"type":"cancelled"}"#,
        ] {
            let read = |text: &[u8]| {
                let mended = mended(text);
                let object = Object::of(std::str::from_utf8(&mended).unwrap()).unwrap();
                FromWorker::from_object(&object).unwrap().cut_as(text)
            };
            let message = read(said.as_bytes()).message;
            let line = relay(&message).unwrap();
            assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
            assert_eq!(read(&line).message, message, "{said}");
        }
        assert_eq!((relay(&Message::Ready), relay(&Message::Beat)), (None, None));
    }
}
