//! Halves of characters: what a worker sends that cuts its text by UTF-16 index.
//!
//! A character beyond the first 65,536 is two units of UTF-16, and JSON writes each as an escape. Text that was cut between
//! them is valid for its worker, and for no reader of UTF-8. Pure. Keeps I7: a half that stays alone becomes U+FFFD, and
//! the two that meet in neighbouring deltas become their character.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

/// What stands for a half that stays alone.
pub const REPLACEMENT: char = char::REPLACEMENT_CHARACTER;
/// `\uXXXX`, in bytes.
const ESCAPE: usize = 6;

/// Which ends of a text are halves of characters. In the text itself [`REPLACEMENT`] stands in their places.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cut {
    /// The second half of a character, at the beginning.
    pub low: Option<u16>,
    /// The first half of one, at the end.
    pub high: Option<u16>,
}

/// A line of JSON with an escaped U+FFFD for every half that stands alone. As long as before.
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
    /// How the `text` of a message is cut, which is a line of JSON as it came.
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
        // Between its quotes.
        Cut { low: at(Some(1), false), high: at(text.len().checked_sub(ESCAPE + 1), true) }
    }

    /// What of the text is whole.
    pub fn within<'a>(&self, text: &'a str) -> &'a str {
        let text = self.low.and_then(|_| text.strip_prefix(REPLACEMENT)).unwrap_or(text);
        self.high.and_then(|_| text.strip_suffix(REPLACEMENT)).unwrap_or(text)
    }
}

/// The character of two halves.
pub fn join(high: u16, low: u16) -> char {
    char::decode_utf16([high, low]).next().and_then(Result::ok).unwrap_or(REPLACEMENT)
}

/// Whether a half stands alone somewhere in JSON text.
pub fn has_one_alone(json: &[u8]) -> bool {
    !alone(json).is_empty()
}

/// Whether there may be a half in a line: one look, which nearly every line is done with.
fn may_be_cut(line: &[u8]) -> bool {
    line.windows(3).any(|three| three[0] == b'\\' && three[1] == b'u' && matches!(three[2], b'd' | b'D'))
}

/// The halves in JSON text that have no other half beside them: where each is, and its unit of UTF-16.
fn alone(json: &[u8]) -> Vec<(usize, u16)> {
    let mut alone = Vec::new();
    if !may_be_cut(json) {
        return alone;
    }
    // The first half that was read last, where nothing has come after it.
    let mut waiting: Option<(usize, u16)> = None;
    let mut at = 0;
    while let Some(next) = json[at..].iter().position(|byte| *byte == b'\\').map(|n| at + n) {
        if next > at {
            alone.extend(waiting.take());
        }
        let Some(unit) = unit(&json[next..]) else {
            // Another escape, of two bytes; of what is none the parser tells.
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

/// The unit of UTF-16 that an escape at the beginning stands for.
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
