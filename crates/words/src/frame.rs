//! The frame of what the gateway and its workers say to each other: one JSON object a line, its limit, and what may stand around it.
//!
//! Owns one limit for both ways: what a client may send is what a worker can be handed. The door and the workers' side know
//! it from here.

use crate::text;

/// The longest line, without its newline, in bytes.
pub const BYTES_MAX: usize = 1024 * 1024;
/// The longest input of a turn, and answer to a question, in bytes of JSON on one line. The rest of the line is for what goes
/// with it.
pub const INPUT_BYTES_MAX: usize = BYTES_MAX - BESIDE_INPUT;
/// What is kept for names and ids, some 300 bytes, and for the newest words of a history.
const BESIDE_INPUT: usize = 16 * 1024;

/// What some platforms begin a stream of UTF-8 with.
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// Whether a worker's line carries this input, or answer: JSON text.
pub fn is_deliverable(json: &str) -> bool {
    text::one_line(json).len() <= INPUT_BYTES_MAX
}

/// A line without the mark of the byte order before it.
pub fn unmarked(line: &[u8]) -> &[u8] {
    line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(line)
}

/// Whether a line says nothing: it is blank, but for a mark of the byte order.
pub fn is_blank(line: &[u8]) -> bool {
    unmarked(line).iter().all(u8::is_ascii_whitespace)
}
