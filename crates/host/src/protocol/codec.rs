//! Decodes bytes from a worker into messages: one JSON object a line.
//!
//! Owns the framing: UTF-8, at most [`LINE_BYTES_MAX`] a line, `\r\n` accepted as `\n`, blank lines and a byte
//! order mark skipped, split surrogate pairs mended (`halves`). Refuses everything else with a [`ProtocolError`].
//! An error is an item, not the end of the stream: the next line can still be read, although callers normally end
//! the worker.

use std::io;

use bytes::{Buf, BytesMut};
use serde_json::error::Category;
use tokio_util::codec::Decoder;

use super::messages::{BadField, FromWorker, Object};
pub use lastword_words::frame::BYTES_MAX as LINE_BYTES_MAX;
use lastword_words::{
    event::is_too_deep,
    frame::{is_blank, unmarked},
    halves,
    id::TurnId,
    text,
};

/// Length of the excerpt of a bad line that operators see, in bytes.
const EXCERPT_BYTES_MAX: usize = 200;

/// Splits the stream into lines and parses them. An item is a message or an error.
#[derive(Debug, Default)]
pub struct Lines {
    /// Bytes of the buffer known to hold no newline.
    scanned: usize,
    /// Whether the rest of an overlong line is being discarded.
    is_skipping: bool,
}

impl Decoder for Lines {
    type Item = Result<FromWorker, ProtocolError>;
    type Error = io::Error;

    fn decode(&mut self, bytes: &mut BytesMut) -> io::Result<Option<Self::Item>> {
        while let Some(at) = bytes[self.scanned..].iter().position(|b| *b == b'\n') {
            let line = bytes.split_to(self.scanned + at);
            bytes.advance(1);
            self.scanned = 0;
            if std::mem::take(&mut self.is_skipping) {
                continue;
            }
            if let Some(item) = read_line(&line) {
                return Ok(Some(item));
            }
        }
        self.scanned = bytes.len();
        if self.is_skipping || bytes.len() > LINE_BYTES_MAX {
            let fault = (!self.is_skipping).then(|| ProtocolError::new(Fault::TooLong, bytes));
            self.is_skipping = true;
            self.scanned = 0;
            bytes.clear();
            return Ok(fault.map(Err));
        }
        Ok(None)
    }

    fn decode_eof(&mut self, bytes: &mut BytesMut) -> io::Result<Option<Self::Item>> {
        if let Some(item) = self.decode(bytes)? {
            return Ok(Some(item));
        }
        let rest = bytes.split();
        self.scanned = 0;
        // A whole object without a newline is a message. Half an object means the worker died in the middle of a
        // write: report that, not the JSON error.
        Ok(match read_line(&rest) {
            Some(Err(_)) => Some(Err(ProtocolError::new(Fault::Unfinished, &rest))),
            item => item,
        })
    }
}

/// A line that breaks the protocol. Its text is for clients and never echoes the line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{fault}")]
pub struct ProtocolError {
    /// What is wrong with the line.
    #[source]
    pub fault: Fault,
    /// The beginning of the line, for operators only; control characters are escaped.
    pub excerpt: String,
    /// The turn that the line names, if that could be read.
    pub turn_id: Option<TurnId>,
}

/// What is wrong with a line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Not JSON.
    #[error("The worker sent a line that is not valid JSON.")]
    NotJson,
    /// JSON, but not an object.
    #[error("The worker sent a line that is not a JSON object.")]
    NotAnObject,
    /// Not UTF-8.
    #[error("The worker sent a line that is not valid UTF-8.")]
    NotUtf8,
    /// Nested deeper than [`lastword_words::event::NESTING_MAX`]: readers could not parse it as an event.
    #[error("The worker sent a line that is nested too deep.")]
    TooDeep,
    /// Contains a NUL byte (an escaped one is fine).
    #[error("The worker sent a line that contains a NUL byte.")]
    RawNul,
    /// Longer than [`LINE_BYTES_MAX`].
    #[error("The worker sent a line longer than 1 MiB.")]
    TooLong,
    /// The stream ended within the line.
    #[error("The worker stopped in the middle of a message.")]
    Unfinished,
    /// A field is missing or of the wrong type.
    #[error("The worker sent a message that could not be understood: {0}.")]
    BadField(#[from] BadField),
    /// A shared worker's message without a turn.
    #[error("The worker sent a message that names no turn.")]
    NoTurn,
    /// Names a turn that the worker does not serve.
    #[error("The worker sent a message for another turn.")]
    OtherTurn,
}

impl ProtocolError {
    fn new(fault: Fault, line: &[u8]) -> Self {
        let head = &line[..line.len().min(EXCERPT_BYTES_MAX)];
        let excerpt = text::visible_line(&String::from_utf8_lossy(head)).into_owned();
        ProtocolError { fault, excerpt, turn_id: None }
    }
}

/// Parses one line; `None` if it is blank.
fn read_line(line: &[u8]) -> Option<Result<FromWorker, ProtocolError>> {
    let line = unmarked(line);
    if line.len() > LINE_BYTES_MAX {
        return Some(Err(ProtocolError::new(Fault::TooLong, line)));
    }
    if is_blank(line) {
        return None;
    }
    Some(parse(line).map_err(|fault| ProtocolError {
        turn_id: matches!(fault, Fault::BadField(_)).then(|| turn_of(line)).flatten(),
        ..ProtocolError::new(fault, line)
    }))
}

/// The turn that a bad line names. Parses the line again, which only bad lines cost.
fn turn_of(line: &[u8]) -> Option<TurnId> {
    let mended = halves::mended(line);
    let object = Object::of(std::str::from_utf8(&mended).ok()?).ok()?;
    object.text_if_any("turn_id").ok()??.parse().ok()
}

fn parse(line: &[u8]) -> Result<FromWorker, Fault> {
    Ok(parse_object(line, FromWorker::from_object)?.cut_as(line))
}

/// Parses one line of a batch, with `meaning` applied to its object.
pub fn read_with<T>(
    line: &[u8],
    meaning: impl FnOnce(&Object<'_>) -> Result<T, BadField>,
) -> Result<T, ProtocolError> {
    let read = || {
        if line.len() > LINE_BYTES_MAX {
            return Err(Fault::TooLong);
        }
        parse_object(unmarked(line), meaning)
    };
    read().map_err(|fault| ProtocolError::new(fault, line))
}

fn parse_object<T>(
    line: &[u8],
    meaning: impl FnOnce(&Object<'_>) -> Result<T, BadField>,
) -> Result<T, Fault> {
    let mended = halves::mended(line);
    let text = std::str::from_utf8(&mended).map_err(|_| Fault::NotUtf8)?;
    if text.contains('\0') {
        return Err(Fault::RawNul);
    }
    if is_too_deep(line) {
        return Err(Fault::TooDeep);
    }
    match Object::of(text) {
        Ok(object) => Ok(meaning(&object)?),
        Err(why) if why.classify() == Category::Data => Err(Fault::NotAnObject),
        Err(_) => Err(Fault::NotJson),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::messages::Message;
    use lastword_words::event::NESTING_MAX;

    type Item = Result<FromWorker, ProtocolError>;

    /// Feeds `stream` in pieces of the given lengths (the last is whatever is left), then its end.
    fn decode_in_pieces(stream: &[u8], lengths: &[usize]) -> Vec<Item> {
        let (mut lines, mut buffer, mut heard) = (Lines::default(), BytesMut::new(), Vec::new());
        let mut rest = stream;
        let mut lengths = lengths.iter().copied();
        while !rest.is_empty() {
            let (piece, later) = rest.split_at(lengths.next().unwrap_or(rest.len()).min(rest.len()));
            rest = later;
            buffer.extend_from_slice(piece);
            while let Some(item) = lines.decode(&mut buffer).unwrap() {
                heard.push(item);
            }
        }
        while let Some(item) = lines.decode_eof(&mut buffer).unwrap() {
            heard.push(item);
        }
        assert!(buffer.is_empty());
        heard
    }

    fn decode(stream: &[u8]) -> Vec<Item> {
        decode_in_pieces(stream, &[])
    }

    fn fault(stream: &[u8]) -> Fault {
        match decode(stream).as_slice() {
            [Err(error)] => error.fault.clone(),
            other => panic!("{other:?}"),
        }
    }

    fn beat() -> Item {
        Ok(FromWorker { turn_id: None, message: Message::Beat })
    }

    #[test]
    fn blank_lines_carriage_returns_and_marks_are_nothing() {
        let stream = b"\n\r\n  \n{\"type\":\"beat\"}\r\n\n{\"type\":\"beat\"}";
        assert_eq!(decode(stream), [beat(), beat()]);
        let stream = "\u{feff}{\"type\":\"beat\"}\n\u{feff}\r\n\u{feff}{\"type\":\"beat\"}";
        assert_eq!(decode(stream.as_bytes()), [beat(), beat()]);
    }

    #[test]
    fn every_fault_is_named() {
        assert_eq!(fault(b"hello\n"), Fault::NotJson);
        assert_eq!(fault(b"{\"type\":\"delta\",\"text\":\"\\ud80\"}\n"), Fault::NotJson);
        assert_eq!(fault(b"[1]\n"), Fault::NotAnObject);
        assert_eq!(fault(b"{\"type\":\"\xff\"}\n"), Fault::NotUtf8);
        assert_eq!(fault(b"{\"type\":\0}\n"), Fault::RawNul);
        assert_eq!(fault(b"{\"type\":\"delta\",\"te"), Fault::Unfinished);
        assert!(matches!(fault(b"{\"type\":\"delta\"}\n"), Fault::BadField(BadField { field: "text", .. })));
        for levels in [NESTING_MAX, 500] {
            let deep = format!("{{\"type\":\"x\",\"a\":{}{}}}\n", "[".repeat(levels), "]".repeat(levels));
            assert_eq!(fault(deep.as_bytes()), Fault::TooDeep);
        }
    }

    #[test]
    fn a_message_that_cannot_be_read_may_still_say_whose_it_is() {
        let turn = "turn_0190000000007000800000000000000a";
        let of = |line: String| decode(line.as_bytes())[0].clone().unwrap_err().turn_id;
        assert_eq!(of(format!("{{\"type\":\"delta\",\"turn_id\":\"{turn}\"}}\n")), turn.parse().ok());
        assert_eq!(of("{\"type\":\"delta\",\"turn_id\":\"conv_1\"}\n".to_owned()), None);
        assert_eq!(of(format!("{{\"turn_id\":\"{turn}\",\n")), None);
    }

    #[test]
    fn a_fault_tells_a_person_nothing_of_the_line() {
        let stream = b"{\"type\":\"delta\",\"text\":\x1b[31m secret\n";
        let [Err(error)] = &decode(stream)[..] else { panic!() };
        assert!(!error.to_string().contains("secret"));
        assert!(error.excerpt.contains("secret") && error.excerpt.contains("\\u{1b}"));
        assert!(!error.excerpt.contains('\x1b'));
    }

    #[test]
    fn a_line_may_be_as_long_as_the_limit_and_no_longer() {
        let line = |len: usize| {
            let frame = br#"{"type":"delta","text":""}"#.len();
            format!(r#"{{"type":"delta","text":"{}"}}"#, "x".repeat(len - frame))
        };
        let stream =
            [line(LINE_BYTES_MAX), line(LINE_BYTES_MAX + 1), r#"{"type":"beat"}"#.to_owned()].join("\n");
        for piece in [stream.len(), 65_536, 1_000_003] {
            let heard = decode_in_pieces(stream.as_bytes(), &vec![piece; stream.len() / piece]);
            assert!(matches!(&heard[0], Ok(FromWorker { message: Message::Delta { .. }, .. })));
            assert!(matches!(&heard[1], Err(error) if error.fault == Fault::TooLong));
            assert_eq!(heard[2..], [beat()]);
        }
    }

    #[test]
    fn a_line_without_end_is_refused_once_and_not_kept() {
        let (mut lines, mut buffer, mut refusals) = (Lines::default(), BytesMut::new(), 0);
        for _ in 0..64 {
            buffer.extend_from_slice(&[b'x'; 256 * 1024]);
            refusals += usize::from(lines.decode(&mut buffer).unwrap().is_some());
            assert!(buffer.len() <= LINE_BYTES_MAX);
        }
        assert_eq!(refusals, 1);
    }

    fn line() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            4 => ".{0,12}".prop_map(|text| {
                serde_json::json!({"type": "delta", "text": text}).to_string().into_bytes()
            }),
            1 => Just(b"{\"type\":\"beat\"}\r".to_vec()),
            1 => Just(Vec::new()),
            1 => Just(vec![b'y'; LINE_BYTES_MAX + 1]),
            1 => prop::collection::vec(any::<u8>(), 0..20),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_cut_of_the_stream_gives_the_same_messages(
            lines in prop::collection::vec(line(), 0..6),
            ends_with_newline in any::<bool>(),
            cuts in prop::collection::vec(prop_oneof![1usize..20, 1usize..2_000_000], 0..12),
        ) {
            let mut stream = lines.join(&b'\n');
            if ends_with_newline {
                stream.push(b'\n');
            }
            prop_assert_eq!(decode_in_pieces(&stream, &cuts), decode(&stream));
        }
    }
}
