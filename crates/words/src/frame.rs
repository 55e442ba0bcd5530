//! Frames between the gateway and its workers: one JSON object per line, the length limit, and the bytes allowed
//! around the object.
//!
//! Owns one limit for both directions: an input that a client may send must fit into the line to a worker. The API
//! and the workers' side both take the limit from here.

use crate::text;

/// The longest line, without its newline, in bytes.
pub const BYTES_MAX: usize = 1024 * 1024;
/// The longest input of a turn, and the longest answer to a question, in bytes of JSON on one line. The rest of the
/// line is for the fields beside the input.
pub const INPUT_BYTES_MAX: usize = BYTES_MAX - BESIDE_INPUT;
/// Reserved for names and ids (about 300 bytes), and for the newest part of the history.
const BESIDE_INPUT: usize = 16 * 1024;

/// The UTF-8 byte order mark, which some platforms write at the start of a stream.
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// Whether an input or an answer (JSON text) fits into a worker's line.
pub fn is_deliverable(json: &str) -> bool {
    text::one_line(json).len() <= INPUT_BYTES_MAX
}

/// The line without a leading byte order mark.
pub fn unmarked(line: &[u8]) -> &[u8] {
    line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(line)
}

/// Whether a line is blank, apart from a byte order mark.
pub fn is_blank(line: &[u8]) -> bool {
    unmarked(line).iter().all(u8::is_ascii_whitespace)
}
