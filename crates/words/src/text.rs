//! Texts from outside, as lines and screens may have them.
//!
//! Owns the list of characters that a text must not bring along raw: those that common readers take for a
//! line's end (Python's `splitlines` and all that is built on it, `readline` of other languages), and those
//! that a terminal obeys. In JSON they stand escaped, so nothing is lost; on a screen they are shown. Refuses
//! nothing, and costs one look where there is nothing to escape.

use std::{borrow::Cow, fmt::Write};

use serde::Serialize;

/// Whether a reader of lines or a terminal takes the character for a command: control characters of ASCII
/// and of Latin-1, the separators of lines and paragraphs, and what turns the direction of the text around it.
pub const fn is_command(c: char) -> bool {
    matches!(
        c,
        '\0'..='\u{1f}' | '\u{7f}'..='\u{9f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    )
}

/// Whether there is surely nothing to escape. In pieces, without a branch inside of one: such a loop becomes
/// a few instructions a piece.
fn is_plain(text: &str) -> bool {
    let is_suspect = |byte: &u8| (*byte < 0x20) | (*byte == 0x7f) | (*byte == 0xc2) | (*byte == 0xe2);
    text.as_bytes().chunks(64).all(|piece| !piece.iter().fold(false, |found, byte| found | is_suspect(byte)))
}

/// JSON text on one line, whatever its reader takes for a line's end. Its meaning stays: a break between
/// tokens becomes a blank, and what stands raw in a string is escaped.
pub fn one_line(json: &str) -> Cow<'_, str> {
    escaped(
        json,
        |c| c != '\t',
        |out, c| match c {
            '\n' | '\r' => out.push(' '),
            // Writing to a string cannot fail. All of them have four digits.
            other => _ = write!(out, "\\u{:04x}", u32::from(other)),
        },
    )
}

/// A value as JSON on one line, as [`one_line`] has it.
///
/// # Errors
/// The value has no JSON form.
pub fn json_line(value: &impl Serialize) -> Result<String, serde_json::Error> {
    let json = serde_json::to_string(value)?;
    Ok(match one_line(&json) {
        Cow::Borrowed(_) => json,
        Cow::Owned(escaped) => escaped,
    })
}

/// The same over several lines, indented, for people.
///
/// # Errors
/// The value has no JSON form.
pub fn json_lines(value: &impl Serialize) -> Result<String, serde_json::Error> {
    let json = serde_json::to_string_pretty(value)?;
    Ok(json.split('\n').map(one_line).collect::<Vec<_>>().join("\n"))
}

/// Text for a screen: what a terminal would obey is shown as an escape, line ends and tabs stay.
pub fn visible(text: &str) -> Cow<'_, str> {
    escaped(text, |c| !matches!(c, '\n' | '\t'), show)
}

/// Text for one line of a screen, a table's cell or a log: line ends and tabs are shown too.
pub fn visible_line(text: &str) -> Cow<'_, str> {
    escaped(text, |_| true, show)
}

fn show(out: &mut String, c: char) {
    out.extend(c.escape_default());
}

/// A text with those of its commands replaced that `counts`.
fn escaped(text: &str, counts: impl Fn(char) -> bool, replace: impl Fn(&mut String, char)) -> Cow<'_, str> {
    let is_meant = |c: char| is_command(c) && counts(c);
    let first = if is_plain(text) { None } else { text.find(is_meant) };
    let Some(first) = first else { return Cow::Borrowed(text) };
    let (plain, rest) = text.split_at(first);
    let mut out = String::with_capacity(text.len() + 32);
    out.push_str(plain);
    for c in rest.chars() {
        if is_meant(c) { replace(&mut out, c) } else { out.push(c) }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `str.splitlines` of Python splits at.
    const LINE_ENDS: [char; 10] =
        ['\n', '\r', '\u{b}', '\u{c}', '\u{1c}', '\u{1d}', '\u{1e}', '\u{85}', '\u{2028}', '\u{2029}'];

    #[test]
    fn every_character_is_read_back_from_json_on_one_line() {
        for c in '\0'..=char::MAX {
            let text = format!("a{c}b");
            let json = json_line(&text).unwrap();
            assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
            assert!(!json.contains(is_command), "{json:?}");
        }
        assert!(LINE_ENDS.into_iter().all(is_command));
    }

    #[test]
    fn line_ends_between_tokens_become_blanks_and_tabs_stay() {
        assert_eq!(one_line("{\r\n\t\"a\":\n1}"), "{  \t\"a\": 1}");
        assert!(matches!(one_line("{\"a\": \"é – 漢字 \u{a0}\"}"), Cow::Borrowed(_)));
    }

    #[test]
    fn json_over_several_lines_has_no_other_line_ends() {
        let value = serde_json::json!({"a": LINE_ENDS.iter().collect::<String>(), "b": ["\u{202e}"]});
        let json = json_lines(&value).unwrap();
        assert_eq!(serde_json::from_str::<serde_json::Value>(&json).unwrap(), value);
        assert!(!json.contains(|c| c != '\n' && is_command(c)), "{json:?}");
        assert_eq!(json.lines().count(), 6);
    }

    #[test]
    fn a_screen_shows_what_it_would_obey() {
        let hostile = "\u{1b}[2J\u{9b}31m\r\u{8}\u{202e}evil\u{2066}\u{85}\u{2028}";
        let shown = "\\u{1b}[2J\\u{9b}31m\\r\\u{8}\\u{202e}evil\\u{2066}\\u{85}\\u{2028}";
        assert_eq!(visible(hostile), shown);
        assert_eq!(visible("a\tb\nc é"), "a\tb\nc é");
        assert_eq!(visible_line("a\tb\nc"), "a\\tb\\nc");
    }

    #[test]
    fn a_command_is_found_wherever_it_stands() {
        for at in 0..200 {
            let text = format!("{}\u{2028}{}", "x".repeat(at), "y".repeat(200 - at));
            assert_eq!(one_line(&text), text.replace('\u{2028}', "\\u2028"));
        }
    }
}
