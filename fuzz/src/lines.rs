//! Lines of a worker: the first byte is the length of the pieces that they arrive in, the rest is
//! what arrives. Behind a first byte `L`, a byte `0xfe`, which no UTF-8 has, stands for a long run of
//! `x`; not behind every one, since a long line takes a thousand times as long to try as a short one.
//!
//! Owns: the cut changes nothing; nothing is buffered beyond a line's limit; what is read is what a
//! JSON reader of its own finds in the line; a fault tells clients nothing, and operators no more
//! than an excerpt that steers no terminal.

use std::collections::{BTreeMap, BTreeSet};

use bytes::BytesMut;
use lastword::{
    event::NESTING_MAX,
    frame, halves,
    host::protocol::{
        codec::{Fault, LINE_BYTES_MAX, Lines, ProtocolError},
        messages::{FromWorker, Message},
    },
    json::{self, Raw},
    worker::turn::transcript::{Meaning, Transcript},
};
use serde_json::Value;
use tokio_util::codec::Decoder;

use super::frames;

type Item = Result<FromWorker, ProtocolError>;

/// The first byte behind which there are long runs.
const LONG: u8 = b'L';
/// The length of a long run; four of them are over a line's limit.
const RUN_BYTES: usize = 300_000;
/// More of them than can matter are left out.
const RUNS_MAX: usize = 8;
/// What a turn may send here, in bytes.
const OUTPUT_MAX: u64 = 2_000_000;

/// Checks one input.
pub fn check(bytes: &[u8]) {
    let Some((&piece, rest)) = bytes.split_first() else { return };
    let stream = if piece == LONG { expand(rest) } else { rest.to_vec() };
    let whole = decode(&stream, stream.len());
    if piece > 0 && stream.len() < RUN_BYTES {
        assert_eq!(decode(&stream, usize::from(piece)), whole, "the cut matters");
    } else if piece > 0 {
        assert_eq!(decode(&stream, usize::from(piece) * 4099), whole, "the cut matters");
    }
    let lines: Vec<&[u8]> = stream.split(|byte| *byte == b'\n').filter(|line| !is_blank(line)).collect();
    assert_eq!(whole.len(), lines.len(), "each line that is not blank is one item");
    for (at, (item, line)) in whole.iter().zip(&lines).enumerate() {
        match item {
            Ok(heard) => check_heard(heard, line),
            Err(fault) => check_fault(fault, line, at + 1 == lines.len()),
        }
    }
    check_turn(whole);
}

fn expand(bytes: &[u8]) -> Vec<u8> {
    let mut runs = 0;
    let mut stream = Vec::with_capacity(bytes.len());
    for byte in bytes {
        match byte {
            0xfe if runs == RUNS_MAX => {}
            0xfe => {
                runs += 1;
                stream.resize(stream.len() + RUN_BYTES, b'x');
            }
            byte => stream.push(*byte),
        }
    }
    stream
}

fn is_blank(line: &[u8]) -> bool {
    line.len() <= LINE_BYTES_MAX && frame::is_blank(line)
}

fn decode(stream: &[u8], piece: usize) -> Vec<Item> {
    let (mut lines, mut buffer, mut heard) = (Lines::default(), BytesMut::new(), Vec::new());
    for piece in stream.chunks(piece.max(1)) {
        buffer.extend_from_slice(piece);
        while let Some(item) = lines.decode(&mut buffer).unwrap() {
            heard.push(item);
        }
        assert!(buffer.len() <= LINE_BYTES_MAX, "{} bytes are kept", buffer.len());
    }
    while let Some(item) = lines.decode_eof(&mut buffer).unwrap() {
        heard.push(item);
    }
    assert!(buffer.is_empty());
    heard
}

/// What was heard stands in the line, field by field.
fn check_heard(heard: &FromWorker, line: &[u8]) {
    assert!(line.len() <= LINE_BYTES_MAX && !line.contains(&0));
    let text = object(line).unwrap();
    let value = json::read(&text).unwrap();
    let raw: BTreeMap<String, Raw> = serde_json::from_str(&text).unwrap();
    let whole = Raw::of(text).unwrap();
    assert!(depth(&value) <= NESTING_MAX);
    let text = |field: &str| value[field].as_str().map(str::to_owned);
    let given = |field: &str| value.get(field).filter(|value| !value.is_null()).cloned();
    let kept = |field: &str| raw.get(field).filter(|value| !value.is_null()).cloned();
    assert_eq!(heard.turn_id.map(|id| id.to_string()), text("turn_id"));
    let kind = text("type").unwrap();
    let expected = match kind.as_str() {
        "ready" => Message::Ready,
        "beat" => Message::Beat,
        "cancelled" => Message::Cancelled,
        "delta" => match heard.message {
            Message::Delta { cut, .. } => Message::Delta { text: text("text").unwrap(), cut },
            _ => panic!("{heard:?}"),
        },
        "content" => Message::Content { text: text("text").unwrap() },
        "ephemeral" => Message::Ephemeral { text: text("text").unwrap() },
        "status" => {
            let budget_s = given("budget_s").map(|budget| budget.as_f64().unwrap());
            assert!(budget_s.is_none_or(|seconds| seconds.is_finite() && seconds >= 0.0));
            Message::Status { state: text("state").unwrap(), waiting_on: text("waiting_on"), budget_s }
        }
        "ask" => {
            Message::Ask { ask_id: text("ask_id"), prompt: text("prompt").unwrap(), options: kept("options") }
        }
        "custom" => {
            Message::Custom { name: text("name").unwrap(), data: kept("data").unwrap_or(Raw::null()) }
        }
        "complete" => {
            Message::Complete { text: text("text"), usage: kept("usage"), stop_reason: text("stop_reason") }
        }
        "error" => Message::Error {
            code: text("code"),
            message: text("message").unwrap(),
            retryable: given("retryable").map(|claim| claim.as_bool().unwrap()),
        },
        // Whole, and under its own name.
        _ => Message::Custom { name: kind, data: whole },
    };
    assert_eq!(heard.message, expected);
}

/// The text of a line that is an object, halves of characters mended.
fn object(line: &[u8]) -> Option<String> {
    let mended = halves::mended(frame::unmarked(line));
    let text = std::str::from_utf8(&mended).ok()?;
    json::read(text).ok()?.is_object().then(|| text.trim_ascii().to_owned())
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

fn check_fault(fault: &ProtocolError, line: &[u8], is_last: bool) {
    let told = fault.to_string();
    assert!(told.starts_with("The worker s") && told.ends_with('.') && !told.contains(char::is_control));
    assert!(fault.excerpt.len() <= 200 * "\\u{1b}".len() && !fault.excerpt.contains(char::is_control));
    let is_object = object(line).is_some();
    let is_deep = fault.fault == Fault::TooDeep;
    if is_object && !is_deep && line.len() <= LINE_BYTES_MAX {
        assert!(told.contains("its `") || is_last, "{told} of {:?}", String::from_utf8_lossy(line));
    }
}

/// One turn that says all of it: every message is an event, an end or a violation (I7), and what
/// becomes of it is within its limit.
fn check_turn(items: Vec<Item>) {
    let (mut transcript, mut bytes, mut asked) = (Transcript::default(), 0, BTreeSet::new());
    let mut logged = Vec::new();
    for heard in items.into_iter().flatten() {
        let heard_kind = heard.message.clone();
        match transcript.hear(heard.message, OUTPUT_MAX) {
            Meaning::Event(event) => {
                bytes += event.data.len() as u64;
                assert!(bytes <= OUTPUT_MAX && !event.kind.is_terminal());
                if let Message::Ask { .. } = heard_kind {
                    let fields: Value = serde_json::from_str(&event.data).unwrap();
                    let ask = fields["ask_id"].as_str().unwrap().to_owned();
                    assert!(asked.insert(ask), "one id, two questions");
                    assert!(transcript.is_asking());
                }
                logged.push((event.kind, event.data));
            }
            Meaning::Alive => assert!(matches!(heard_kind, Message::Ready | Message::Beat)),
            Meaning::End(word) => {
                assert!(matches!(heard_kind, Message::Complete { .. }) && word.kind.is_terminal());
                logged.push((word.kind, word.data));
                break;
            }
            Meaning::Failed { message, .. } => {
                let is_ours = !matches!(heard_kind, Message::Error { .. });
                assert!(!is_ours || message.ends_with('.'), "{message}");
                break;
            }
            Meaning::Cancelled => {
                assert_eq!(heard_kind, Message::Cancelled);
                break;
            }
        }
    }
    for ask in &asked {
        assert!(transcript.take_ask(ask) && !transcript.take_ask(ask));
    }
    frames::check_log(&logged);
}
