//! Frames: the first byte picks the kind of an event, the rest is what its row holds, which may be no
//! JSON at all.
//!
//! Owns: whatever stands in a log, an event is one frame, of its own kind and id, and a reader of its
//! own finds exactly the event in it; and a client's JSON is one line to a worker, whatever its own
//! line ends are.

use chrono::DateTime;
use eventsource_stream::Eventsource;
use futures_util::{FutureExt, StreamExt, stream};
use lastword::{
    event::{Event, Kind, is_too_deep},
    host::protocol::messages::ToWorker,
    id::{ConversationId, TurnId},
    json::Raw,
    stream::{Position, render},
};
use serde_json::{Map, Value, value::RawValue};
use uuid::Uuid;

const TURN: TurnId = TurnId(Uuid::from_u128(1));
/// Fields that every event has; a kind's own never have these names.
const COMMON: [&str; 5] = ["turn_id", "seq", "kind", "at", "attempt"];

/// Checks one input.
pub fn check(bytes: &[u8]) {
    let Some((&first, rest)) = bytes.split_first() else { return };
    let Ok(data) = std::str::from_utf8(rest) else { return };
    let kind = Kind::ALL[usize::from(first) % Kind::ALL.len()];
    let logged = [(kind, data.to_owned()), (Kind::Completed, r#"{"text":""}"#.to_owned())];
    check_stream(&logged);
    if let Ok(fields) = serde_json::from_str::<Map<String, Value>>(data)
        && !is_too_deep(rest)
        && COMMON.iter().all(|name| !fields.contains_key(*name))
    {
        check_log(&logged);
    }
    check_to_worker(data);
}

/// A log whose rows are the objects that they must be reads back field by field.
pub fn check_log(logged: &[(Kind, String)]) {
    for ((kind, data), frame) in logged.iter().zip(check_stream(logged)) {
        let told: Map<String, Value> =
            serde_json::from_str(&frame).unwrap_or_else(|why| panic!("{why}: {frame}"));
        let mut whole: Map<String, Value> = serde_json::from_str(data).unwrap();
        assert_eq!(told["kind"], kind.as_str());
        for name in COMMON {
            whole.insert(name.to_owned(), told[name].clone());
        }
        assert_eq!(told, whole);
    }
}

/// Renders the log as a stream and reads it with another's reader: as many frames as events, each
/// with its own kind and id. Gives each frame's data.
fn check_stream(logged: &[(Kind, String)]) -> Vec<String> {
    let mut text = render::retry();
    let mut places = Vec::new();
    for (seq, (kind, data)) in logged.iter().enumerate() {
        let seq = i32::try_from(seq).unwrap();
        let event = Event {
            turn_id: TURN,
            seq,
            kind: *kind,
            attempt: 1,
            data: data.clone(),
            at: DateTime::UNIX_EPOCH,
        };
        let place = Position { ordinal: 7, seq };
        assert_eq!(place.to_string().parse(), Ok(place));
        render::frame(&mut text, place, &event.into());
        text.push_str(render::KEEP_ALIVE);
        places.push((kind.as_str(), place.to_string()));
    }
    text.push_str(render::RECONNECT);
    let body = stream::iter([Ok::<_, std::convert::Infallible>(text.clone())]);
    let heard: Vec<_> = body.eventsource().map(Result::unwrap).collect().now_or_never().unwrap();
    let Some((reconnect, heard)) = heard.split_last() else { panic!("no frame in {text:?}") };
    assert_eq!((reconnect.event.as_str(), reconnect.data.as_str()), ("reconnect", "{}"));
    let found: Vec<_> = heard.iter().map(|frame| (frame.event.as_str(), frame.id.clone())).collect();
    assert_eq!(found, places, "{text:?}");
    let told: Vec<String> = heard.iter().map(|frame| frame.data.clone()).collect();
    assert!(told.iter().all(|data| !data.contains(['\n', '\r'])));
    told
}

/// What a client sent reaches its worker as one line that means the same.
fn check_to_worker(json: &str) {
    if is_too_deep(json.as_bytes()) {
        return;
    }
    let Ok(input) = RawValue::from_string(json.to_owned()) else { return };
    let Ok(meant) = serde_json::from_str::<Value>(json) else { return };
    let turn = ToWorker::Turn {
        turn_id: TURN,
        conversation_id: ConversationId(TURN.0),
        attempt: 1,
        input,
        history: None,
        history_omitted: None,
        deadline: DateTime::UNIX_EPOCH,
        traceparent: None,
    };
    let answer = Raw::of(json.to_owned()).unwrap();
    let answer = ToWorker::Answer { turn_id: TURN, ask_id: "a".to_owned(), answer };
    for (message, field) in [(turn, "input"), (answer, "answer")] {
        let line = message.to_line().unwrap();
        assert_eq!(line.iter().position(|byte| *byte == b'\n'), Some(line.len() - 1));
        assert!(!line.contains(&b'\r'));
        let read: Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(read[field], meant);
    }
}
