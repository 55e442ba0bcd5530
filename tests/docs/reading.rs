//! The documents as text: pages, code blocks, code within a line, and the commands of a shell.
//!
//! `crates/bench` reads them with this file too.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// A document.
pub struct Page {
    /// From the root of the repository.
    pub path: PathBuf,
    pub text: String,
}

/// Every page below `docs/`, and those elsewhere that a person reads first.
pub fn pages(root: &Path) -> Vec<Page> {
    let mut paths: Vec<_> = ["README.md", "CONTRIBUTING.md", "SECURITY.md"].map(PathBuf::from).into();
    paths.extend(["examples/README.md", "helm/lastword/README.md"].map(PathBuf::from));
    paths.extend(below(root, Path::new("docs")));
    paths.into_iter().map(|path| Page { text: fs::read_to_string(root.join(&path)).unwrap(), path }).collect()
}

/// The pages of a directory, from the root of the repository, in order.
pub fn below(root: &Path, directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root.join(directory)).unwrap() {
        let path = directory.join(entry.unwrap().file_name());
        if root.join(&path).is_dir() {
            found.extend(below(root, &path));
        } else if path.extension().is_some_and(|end| end == "md") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The text of each block in one language.
pub fn blocks(text: &str, language: &str) -> Vec<String> {
    let fenced = text.split("```").skip(1).step_by(2);
    fenced.filter_map(|block| block.strip_prefix(language)?.strip_prefix('\n')).map(str::to_owned).collect()
}

/// What stands in the text as code within a line; one that is wrapped has a space there.
pub fn code_within_lines(text: &str) -> Vec<String> {
    let unfenced: String = text.split("```").step_by(2).collect();
    let paragraphs = unfenced.split("\n\n");
    let code = paragraphs.flat_map(|text| text.split('`').skip(1).step_by(2));
    code.map(|code| code.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

/// The commands of a shell's text, as words without quotes: what is in `$(…)` or `<(…)` stays one word.
pub fn commands(text: &str) -> Vec<Vec<String>> {
    let mut found = vec![Vec::new()];
    let mut word = None::<String>;
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '\\' => match rest.next() {
                Some('\n') | None => {}
                Some(quoted) => word.get_or_insert_default().push(quoted),
            },
            '\'' | '"' => word.get_or_insert_default().extend(rest.by_ref().take_while(|next| *next != c)),
            '(' => {
                let mut depth = 1;
                let inside = rest.by_ref().take_while(|c| {
                    depth += i32::from(*c == '(') - i32::from(*c == ')');
                    depth > 0
                });
                word.get_or_insert_default().extend(inside);
            }
            '#' if word.is_none() => while rest.next_if(|c| *c != '\n').is_some() {},
            c if c.is_whitespace() || "|&;".contains(c) => {
                found.last_mut().unwrap().extend(word.take());
                if !matches!(c, ' ' | '\t') {
                    found.push(Vec::new());
                }
            }
            c => word.get_or_insert_default().push(c),
        }
    }
    found.last_mut().unwrap().extend(word);
    found.retain(|command| !command.is_empty());
    found
}

/// The program of a command and its arguments: without variables before it, and without a `kubectl exec … --`.
pub fn called(command: &[String]) -> Option<(&str, &[String])> {
    let is_variable = |word: &&String| {
        word.split_once('=').is_some_and(|(name, _)| name.chars().all(|c| c == '_' || c.is_ascii_uppercase()))
    };
    let command = &command[command.iter().take_while(is_variable).count()..];
    let inner = command.iter().position(|word| word == "--").map(|at| &command[at + 1..]);
    let command = match command.first()?.as_str() {
        "kubectl" if command.get(1).is_some_and(|word| word == "exec") => inner?,
        _ => command,
    };
    // What is written to a file is the shell's business.
    let end = command.iter().position(|word| word.starts_with('>')).unwrap_or(command.len());
    let (program, arguments) = command[..end].split_first()?;
    Some((program.rsplit('/').next()?, arguments))
}
