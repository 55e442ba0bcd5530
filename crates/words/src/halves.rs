//! Surrogate halves: the lone halves that come from a worker that cuts text by UTF-16 index.
//!
//! A character above U+FFFF is two UTF-16 units, a surrogate pair, and JSON escapes each unit on its own. Text that
//! was cut inside a pair is valid for such a worker, but has no form in UTF-8. Pure. Keeps I7: a half without its
//! partner becomes U+FFFD, and two halves that meet in neighbouring deltas become their character.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

/// Replaces a half without its partner.
pub const REPLACEMENT: char = char::REPLACEMENT_CHARACTER;
/// The length of `\uXXXX`, in bytes.
const ESCAPE: usize = 6;

/// The surrogate halves at the ends of a text. The text itself has [`REPLACEMENT`] in their places.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cut {
    /// A low surrogate at the beginning.
    pub low: Option<u16>,
    /// A high surrogate at the end.
    pub high: Option<u16>,
}

/// A line of JSON with an escaped U+FFFD in place of every lone half. The length does not change.
pub fn mended(line: &[u8]) -> Cow<'_, [u8]> {
    let alone = alone(line);
    if alone.is_empty() {
        return Cow::Borrowed(line);
    }
    let mut line = line.to_vec();
    for (at, _) in alone {
        line[at..at + ESCAPE].copy_from_slice(b"\\ufffd");
    }
    Cow::Owned(line)
}

impl Cut {
    /// The cut ends of the field `text` in a message. `line` is the line of JSON as received.
    pub fn of(line: &[u8]) -> Cut {
        #[derive(Deserialize)]
        struct Piece<'a> {
            #[serde(borrow)]
            text: &'a RawValue,
        }
        if !may_be_cut(line) {
            return Cut::default();
        }
        let Ok(Piece { text }) = serde_json::from_slice(line) else { return Cut::default() };
        let text = text.get().as_bytes();
        let alone = alone(text);
        let at = |place: Option<usize>, is_high: bool| {
            let found = alone.iter().find(|(at, unit)| Some(*at) == place && is_high_half(*unit) == is_high);
            found.map(|(_, unit)| *unit)
        };
        // Relative to the quotes around the text.
        Cut { low: at(Some(1), false), high: at(text.len().checked_sub(ESCAPE + 1), true) }
    }

    /// The text without its cut ends.
    pub fn within<'a>(&self, text: &'a str) -> &'a str {
        let text = self.low.and_then(|_| text.strip_prefix(REPLACEMENT)).unwrap_or(text);
        self.high.and_then(|_| text.strip_suffix(REPLACEMENT)).unwrap_or(text)
    }
}

/// The character of a surrogate pair.
pub fn join(high: u16, low: u16) -> char {
    char::decode_utf16([high, low]).next().and_then(Result::ok).unwrap_or(REPLACEMENT)
}

/// Whether JSON text has a lone half anywhere.
pub fn has_one_alone(json: &[u8]) -> bool {
    !alone(json).is_empty()
}

/// Whether a line may contain a surrogate: a cheap scan that is enough for nearly every line.
fn may_be_cut(line: &[u8]) -> bool {
    line.windows(3).any(|three| three[0] == b'\\' && three[1] == b'u' && matches!(three[2], b'd' | b'D'))
}

/// The lone halves in JSON text: the offset and the UTF-16 unit of each.
fn alone(json: &[u8]) -> Vec<(usize, u16)> {
    let mut alone = Vec::new();
    if !may_be_cut(json) {
        return alone;
    }
    // The last high surrogate, while nothing has followed it.
    let mut waiting: Option<(usize, u16)> = None;
    let mut at = 0;
    while let Some(next) = json[at..].iter().position(|byte| *byte == b'\\').map(|n| at + n) {
        if next > at {
            alone.extend(waiting.take());
        }
        let Some(unit) = unit(&json[next..]) else {
            // Another escape, of two bytes. An invalid escape is left to the parser.
            alone.extend(waiting.take());
            at = (next + 2).min(json.len());
            continue;
        };
        at = next + ESCAPE;
        if is_low_half(unit) && waiting.take().is_some() {
            continue;
        }
        alone.extend(waiting.take());
        if is_high_half(unit) {
            waiting = Some((next, unit));
        } else if is_low_half(unit) {
            alone.push((next, unit));
        }
    }
    alone.extend(waiting);
    alone
}

/// The UTF-16 unit of the escape at the start of `json`; `None` if there is none.
fn unit(json: &[u8]) -> Option<u16> {
    let digits = json.get(..ESCAPE)?.strip_prefix(b"\\u")?;
    let is_hex = digits.iter().all(u8::is_ascii_hexdigit);
    let digits = std::str::from_utf8(digits).ok().filter(|_| is_hex)?;
    u16::from_str_radix(digits, 16).ok()
}

const fn is_high_half(unit: u16) -> bool {
    matches!(unit, 0xd800..=0xdbff)
}

const fn is_low_half(unit: u16) -> bool {
    matches!(unit, 0xdc00..=0xdfff)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mended(json: &str) -> String {
        String::from_utf8(super::mended(json.as_bytes()).into_owned()).unwrap()
    }

    #[test]
    fn only_a_half_that_stands_alone_is_replaced() {
        for (came, read) in [
            (r#"["a"]"#, r#"["a"]"#),
            (r#"["\ud83c\uDF89"]"#, r#"["\ud83c\uDF89"]"#),
            (r#"["\ud83c"]"#, r#"["\ufffd"]"#),
            (r#"["\udf89"]"#, r#"["\ufffd"]"#),
            (r#"["\ud83c","\udf89"]"#, r#"["\ufffd","\ufffd"]"#),
            (r#"["\ud83cx\udf89"]"#, r#"["\ufffdx\ufffd"]"#),
            (r#"["\ud83c\n\udf89"]"#, r#"["\ufffd\n\ufffd"]"#),
            (r#"["\ud83c\ud83c\udf89\udf89"]"#, r#"["\ufffd\ud83c\udf89\ufffd"]"#),
            (r#"["\\ud83c \\\ud83c"]"#, r#"["\\ud83c \\\ufffd"]"#),
            (r#"["\ud83"#, r#"["\ud83"#),
            (r#"["\ud83c\"#, r#"["\ufffd\"#),
            (r#"{"\udf89":"\u00df"}"#, r#"{"\ufffd":"\u00df"}"#),
        ] {
            assert_eq!(mended(came), read, "{came}");
        }
    }

    #[test]
    fn the_ends_of_a_text_say_which_halves_they_are() {
        let cut = |text: &str| {
            let cut = Cut::of(format!(r#"{{"x":"\ud83c","text": "{text}" }}"#).as_bytes());
            (cut.low, cut.high)
        };
        assert_eq!(cut(r"a"), (None, None));
        assert_eq!(cut(r"a\ud83c"), (None, Some(0xd83c)));
        assert_eq!(cut(r"\udf89a"), (Some(0xdf89), None));
        assert_eq!(cut(r"\uDF89"), (Some(0xdf89), None));
        assert_eq!(cut(r"\ud83c"), (None, Some(0xd83c)));
        assert_eq!(cut(r"\udf89\ud83c"), (Some(0xdf89), Some(0xd83c)));
        assert_eq!(cut(r"\ud83c\udf89"), (None, None));
        assert_eq!(cut(r"\ud83ca\udf89"), (None, None), "neither is where its other half could come");
        assert_eq!(cut(r"\\ud83c"), (None, None));
        assert_eq!(cut(""), (None, None));
        assert_eq!(Cut::of(br#"{"text":["\ud83c"]}"#), Cut::default());
        assert_eq!(join(0xd83c, 0xdf89), '🎉');
    }
}
