//! The bytes of an event stream (`text/event-stream`), written by hand.
//!
//! Keeps the promise that worker text can never forge a frame. Every frame has exactly one `data:` line, whatever the
//! log contains: an event's JSON has no raw line end, not even one of those that only some readers recognise beside
//! CR and LF. A frame is a pure function of an event and its position, so every replica renders the same bytes.
//! Another dialect would be another such function.

use std::{
    fmt::{Display, Write},
    time::Duration,
};

use crate::{event::SharedEvent, id::TurnId};

/// The media type of an event stream.
pub const MEDIA_TYPE: &str = "text/event-stream";
/// Keeps a quiet stream open; readers ignore it.
pub const KEEP_ALIVE: &str = ": keep-alive\n\n";
/// Tells a reader to reconnect with its cursor. Has no id, so the cursor does not change.
pub const RECONNECT: &str = "event: reconnect\ndata: {}\n\n";

/// The whole content of a stream that cannot be served now: the reason, and when to reconnect, with jitter. Has no
/// id, so the cursor does not change.
pub fn put_off(code: &str, after: Duration) -> String {
    let pause = after + Duration::from_millis(rand::random_range(500..2000));
    format!("retry: {}\n\nevent: reconnect\ndata: {{\"code\":\"{code}\"}}\n\n", pause.as_millis())
}

/// Tells a reader to discard everything from this stream, because other events may now have the same ids. Has no id
/// of its own; the log follows from its start.
pub fn reset(turn: TurnId) -> String {
    format!("event: reset\ndata: {{\"turn_id\":\"{turn}\",\"reason\":\"log_rewound\"}}\n\n")
}

/// Appends one event to `out` as a frame. `id` is its position, with which a reader reconnects.
pub fn frame(out: &mut String, id: impl Display, event: &SharedEvent) {
    // Writing to a string cannot fail.
    let _ = write!(out, "event: {}\nid: {id}\ndata: {}\n\n", event.kind.as_str(), event.json());
}

/// The client's reconnect delay: random per stream, so that clients do not reconnect all at once.
pub fn retry() -> String {
    let pause = Duration::from_millis(rand::random_range(500..2000));
    format!("retry: {}\n\n", pause.as_millis())
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;
    use crate::event::{Event, Kind};

    fn rendered(data: &str) -> String {
        let turn_id = TurnId(uuid::Uuid::from_u128(1));
        let at = DateTime::UNIX_EPOCH;
        let event = Event { turn_id, seq: 7, kind: Kind::Delta, attempt: 1, data: data.to_owned(), at };
        let mut out = String::new();
        frame(&mut out, event.seq, &event.into());
        out
    }

    #[test]
    fn a_frame_has_a_kind_an_id_and_one_line_of_data() {
        let frame = rendered(r#"{"text":"hello"}"#);
        assert_eq!(
            frame,
            "event: delta\nid: 7\ndata: {\"turn_id\":\"turn_00000000000000000000000000000001\",\"seq\":7,\
             \"kind\":\"delta\",\"at\":\"1970-01-01T00:00:00.000000Z\",\"attempt\":1,\"text\":\"hello\"}\n\n"
        );
    }

    #[test]
    fn stored_line_ends_never_make_a_second_frame() {
        for data in [
            "{\"text\":\"a\"\n\n}",
            "{\r\n\"text\":\"a\"}",
            "{\"text\":\"a\r\revent: completed\ndata: {}\n\n\"}",
        ] {
            let frame = rendered(data);
            assert_eq!(frame.matches(['\n', '\r']).count(), 4, "{frame:?}");
            assert!(frame.ends_with("\n\n") && !frame[..frame.len() - 2].contains("\n\n"), "{frame:?}");
        }
    }

    #[test]
    fn other_line_ends_of_unicode_stand_escaped() {
        // The format splits at CR and LF only; readers built on `splitlines` also split at these.
        let frame = rendered("{\"text\":\"a\u{2028}b\u{85}c\"}");
        assert!(frame.contains(r"a\u2028b\u0085c"), "{frame:?}");
    }
}
