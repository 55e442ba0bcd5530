//! A worker's message, written again: for a host that passes on over HTTP what a process said on its pipe.
//!
//! Pure. Keeps I7 across the host: what is read back is what was said. Left out is what concerns the process
//! alone (`ready`, `beat`), and the turn, which the address names.

use serde_json::{Map, Value, json};

use super::{halves::Cut, wire::Message};

/// The message as one line with its newline; `None` where there is nothing to pass on.
pub fn relay(message: &Message) -> Option<Vec<u8>> {
    let object = match message {
        Message::Ready | Message::Beat => return None,
        Message::Delta { text, cut } => return Some(delta(text, *cut)),
        Message::Content { text } => json!({ "type": "content", "text": text }),
        Message::Ephemeral { text } => json!({ "type": "ephemeral", "text": text }),
        Message::Status { state, waiting_on, budget_s } => {
            json!({ "type": "status", "state": state, "waiting_on": waiting_on, "budget_s": budget_s })
        }
        Message::Ask { ask_id, prompt, options } => {
            json!({ "type": "ask", "ask_id": ask_id, "prompt": prompt, "options": options })
        }
        Message::Custom { name, data } => json!({ "type": "custom", "name": name, "data": data }),
        Message::Complete { text, usage, stop_reason } => {
            json!({ "type": "complete", "text": text, "usage": usage, "stop_reason": stop_reason })
        }
        Message::Error { code, message, retryable } => {
            json!({ "type": "error", "code": code, "message": message, "retryable": retryable })
        }
        Message::Cancelled => json!({ "type": "cancelled" }),
    };
    Some(line(object))
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
pub fn gone(code: crate::failure::Code, message: &str, detail: Option<&str>) -> Vec<u8> {
    line(json!({ "type": "gone", "code": code.as_str(), "message": message, "detail": detail }))
}

/// A field that is null counts as left out, and takes room.
fn line(object: Value) -> Vec<u8> {
    let fields: Map<String, Value> = match object {
        Value::Object(fields) => fields.into_iter().filter(|(_, value)| !value.is_null()).collect(),
        _ => Map::new(),
    };
    let mut line = Value::Object(fields).to_string().into_bytes();
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::{halves::mended, wire::FromWorker};

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
            r#"{"type":"something_else","x":1.0}"#,
            r#"{"type":"complete"}"#,
            r#"{"type":"complete","text":"t","usage":{"tokens":3},"stop_reason":"r"}"#,
            r#"{"type":"error","message":"m","retryable":false}"#,
            r#"{"type":"cancelled"}"#,
        ] {
            let read = |text: &[u8]| {
                let object = serde_json::from_slice(&mended(text)).unwrap();
                FromWorker::from_object(object).unwrap().cut_as(text)
            };
            let message = read(said.as_bytes()).message;
            let line = relay(&message).unwrap();
            assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
            assert_eq!(read(&line).message, message, "{said}");
        }
        assert_eq!((relay(&Message::Ready), relay(&Message::Beat)), (None, None));
    }
}
