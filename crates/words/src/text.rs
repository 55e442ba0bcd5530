//! Texts from outside, made safe for lines and terminals.
//!
//! Owns the list of characters that a text must not contain raw: characters that common readers take for a line end
//! (Python's `splitlines` and everything built on it, `readline` in other languages), and characters that a terminal
//! obeys. In JSON they are escaped, so nothing is lost; on a terminal they are shown as escapes. A text without any
//! of them costs one scan and no copy.

use std::{borrow::Cow, fmt::Write};

use serde::Serialize;

/// Whether a line reader or a terminal takes the character for a command: ASCII and Latin-1 control characters, line
/// and paragraph separators, and characters that change the text direction.
pub const fn is_command(c: char) -> bool {
    matches!(
        c,
        '\0'..='\u{1f}' | '\u{7f}'..='\u{9f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    )
}

/// Whether the text certainly has nothing to escape. Works in chunks of 64 bytes without branches, so the compiler
/// vectorises the loop.
fn is_plain(text: &str) -> bool {
    let is_suspect = |byte: &u8| (*byte < 0x20) | (*byte == 0x7f) | (*byte == 0xc2) | (*byte == 0xe2);
    text.as_bytes().chunks(64).all(|piece| !piece.iter().fold(false, |found, byte| found | is_suspect(byte)))
}

/// JSON text without a character that ends a line, or that a terminal obeys, in any reader. The meaning does not change:
/// a line break between tokens becomes a space, and such a character inside a string is escaped.
pub fn one_line(json: &str) -> Cow<'_, str> {
    escaped(
        json,
        |c| c != '\t',
        |out, c| match c {
            '\n' | '\r' => out.push(' '),
            // Writing to a string cannot fail. All these characters have four hex digits.
            other => _ = write!(out, "\\u{:04x}", u32::from(other)),
        },
    )
}

/// A value as JSON on one line, see [`one_line`].
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

/// A value as indented JSON over several lines, for people.
///
/// # Errors
/// The value has no JSON form.
pub fn json_lines(value: &impl Serialize) -> Result<String, serde_json::Error> {
    let json = serde_json::to_string_pretty(value)?;
    Ok(json.split('\n').map(one_line).collect::<Vec<_>>().join("\n"))
}

/// Text for a terminal: commands are shown as escapes; line feeds and tabs stay.
pub fn visible(text: &str) -> Cow<'_, str> {
    escaped(text, |c| !matches!(c, '\n' | '\t'), show)
}

/// Text for one line of a terminal, a table cell or a log: line feeds and tabs are shown as escapes, too.
pub fn visible_line(text: &str) -> Cow<'_, str> {
    escaped(text, |_| true, show)
}

fn show(out: &mut String, c: char) {
    out.extend(c.escape_default());
}

/// The text, with `replace` applied to those command characters for which `counts` is true.
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

    /// Every character at which Python's `str.splitlines` splits.
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
