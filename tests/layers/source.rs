//! Source files as text, with comments, strings and test code blanked.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::LazyLock,
};

use regex::Regex;

/// The text with comments and the insides of strings made blank; lines and offsets stay.
pub fn without_comments_and_strings(source: &str) -> String {
    static QUIET: LazyLock<Regex> = LazyLock::new(|| {
        let line_comment = r"//[^\n]*";
        let raw_string = r###"\bb?c?r(?:##"(?s:.*?)"##|#"(?s:.*?)"#|"[^"]*")"###;
        let string = r#""(?:[^"\\]|\\(?s:.))*["]"#;
        // Not a lifetime: those have no closing quote.
        let character = r"'(?:[^'\\\n]|\\(?:u\{[^}]*\}|x..|.))'";
        let block_comment = r"/\*(?s:.*?)\*/";
        Regex::new(&[line_comment, block_comment, raw_string, string, character].join("|")).unwrap()
    });
    QUIET.replace_all(source, |found: &regex::Captures| blank(&found[0])).into_owned()
}

/// The text with every item under `#[cfg(test)]` made blank.
pub fn without_tests(text: &str) -> String {
    const MARK: &str = "#[cfg(test)]";
    let mut text = text.to_owned();
    while let Some(start) = text.find(MARK) {
        let end = start + MARK.len() + item_length(&text[start + MARK.len()..]);
        let quiet = blank(&text[start..end]);
        text.replace_range(start..end, &quiet);
    }
    text
}

/// Up to the item's `;`, or to the end of its braces.
fn item_length(text: &str) -> usize {
    let mut depth = 0;
    for (at, c) in text.char_indices() {
        match c {
            ';' if depth == 0 => return at + 1,
            '{' => depth += 1,
            '}' if depth <= 1 => return at + 1,
            '}' => depth -= 1,
            _ => {}
        }
    }
    text.len()
}

/// As many bytes of nothing, the ends of lines kept.
fn blank(text: &str) -> String {
    text.bytes().map(|b| if b == b'\n' { '\n' } else { ' ' }).collect()
}

/// The line of a place, from 1.
pub fn line_of(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}

/// All files of Rust below a directory.
pub fn source_files(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(source_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}
