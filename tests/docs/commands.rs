//! Commands on the pages: the command line takes each of ours, and targets, suites and scripts exist.

use std::{fs, path::Path, sync::LazyLock};

use clap::error::ErrorKind;
use regex::Regex;

use super::reading::{Page, blocks, called, code_within_lines, commands, pages};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

#[test]
fn the_command_line_takes_every_command_of_a_block() {
    let mut count = 0;
    let wrong = each_of_a_block(|program, arguments| {
        count += usize::from(program == "lastword");
        refused(program, arguments, Said::Whole)
    });
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(count > 20, "only {count} commands were found");
}

#[test]
fn the_command_line_knows_every_command_that_a_sentence_names() {
    let mut count = 0;
    let mut wrong = Vec::new();
    for (page, words) in of_sentences() {
        let Some((program @ "lastword", arguments)) = called(&words) else { continue };
        count += 1;
        wrong
            .extend(refused(program, arguments, Said::InPart).map(|why| format!("{page}: {words:?}: {why}")));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(count > 20, "only {count} commands were found");
}

#[test]
fn what_make_and_cargo_and_a_shell_are_told_to_run_exists() {
    let mut wrong = each_of_a_block(missing);
    for (page, words) in of_sentences() {
        let Some((program, arguments)) = called(&words) else { continue };
        wrong.extend(missing(program, arguments).map(|why| format!("{page}: {words:?}: {why}")));
    }
    let scripts = pages(Path::new(ROOT)).into_iter().flat_map(|page| {
        let scripts = blocks(&page.text, "sh").into_iter().flat_map(|block| commands(&block));
        scripts.map(move |command| (page.path.clone(), command[0].clone()))
    });
    for (page, script) in scripts {
        if script.starts_with(".ci/") || script.starts_with("deploy/") {
            let is_there = Path::new(ROOT).join(&script).is_file();
            wrong.extend((!is_there).then(|| format!("{}: no {script}", page.display())));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_command_that_is_wrong_is_refused() {
    for (line, is_right) in [
        ("lastword turns list --overdue", true),
        ("LASTWORD_TOKEN=$TOKEN kubectl exec POD -c lastword -- lastword verify --output json > found", true),
        ("target/debug/lastword turns list --overdu", false),
        ("lastword turn list", false),
        ("lastword work --agent a", false),
        ("make test", true),
        ("make tests", false),
        ("cargo test --test store", true),
        ("cargo test --test stores", false),
    ] {
        let command = &commands(line)[0];
        let (program, arguments) = called(command).unwrap();
        let why = refused(program, arguments, Said::Whole).or_else(|| missing(program, arguments));
        assert_eq!(why.is_none(), is_right, "{line}: {why:?}");
    }
}

#[test]
fn a_shells_text_is_read_as_its_commands() {
    let text =
        "A=1 one 'two three' \\\n  four # five\nsix <(seven | eight) \"nine's\" | ten && eleven; twelve &\n";
    let words: Vec<_> = commands(text).into_iter().map(|words| words.join(",")).collect();
    assert_eq!(words, ["A=1,one,two three,four", "six,<seven | eight,nine's", "ten", "eleven", "twelve"]);
}

/// What is wrong with commands of blocks, with their pages.
fn each_of_a_block(mut wrong_with: impl FnMut(&str, &[String]) -> Option<String>) -> Vec<String> {
    let mut wrong = Vec::new();
    for Page { path, text } in pages(Path::new(ROOT)) {
        for command in blocks(&text, "sh").iter().flat_map(|block| commands(block)) {
            let Some((program, arguments)) = called(&command) else { continue };
            let why = wrong_with(program, arguments);
            wrong.extend(why.map(|why| format!("{}: {command:?}: {why}", path.display())));
        }
    }
    wrong
}

/// Code within lines as the words of a command: what is optional counts as said, what is left out does not count.
fn of_sentences() -> Vec<(String, Vec<String>)> {
    let mut found = Vec::new();
    for Page { path, text } in pages(Path::new(ROOT)) {
        for code in code_within_lines(&text) {
            let code = code.replace(['[', ']', '…'], "");
            let said = commands(&code).into_iter().filter(|words| words.len() > 1);
            found.extend(said.map(|words| (path.display().to_string(), words)));
        }
    }
    found
}

/// How much of a command a page says.
#[derive(PartialEq)]
enum Said {
    Whole,
    /// A sentence leaves out what its reader knows, and has words like `ID` in the place of values.
    InPart,
}

impl Said {
    fn excuses(&self, why: &clap::Error, arguments: &[String]) -> bool {
        use ErrorKind::{
            DisplayHelpOnMissingArgumentOrSubcommand, InvalidValue, MissingRequiredArgument,
            MissingSubcommand, ValueValidation,
        };
        let is_place = |word: &String| word.chars().all(|c| c.is_ascii_uppercase());
        let lacks_a_value = arguments.last().is_some_and(|word| word.starts_with("--"));
        *self == Said::InPart
            && match why.kind() {
                MissingRequiredArgument | MissingSubcommand | DisplayHelpOnMissingArgumentOrSubcommand => {
                    true
                }
                InvalidValue | ValueValidation => lacks_a_value || arguments.iter().any(is_place),
                _ => false,
            }
    }
}

/// Why `lastword` would not take these arguments.
fn refused(program: &str, arguments: &[String], said: Said) -> Option<String> {
    if program != "lastword" {
        return None;
    }
    // The program calls itself by words that no person types.
    if let Some(word) = arguments.first().filter(|word| word.starts_with("__")) {
        let is_known = include_str!("../../src/main.rs").contains(&format!("\"{word}\""));
        return (!is_known).then(|| format!("no {word} in main.rs"));
    }
    let words = ["lastword"].into_iter().chain(arguments.iter().map(String::as_str));
    let why = lastword::cli::tree().try_get_matches_from(words).err()?;
    (!said.excuses(&why, arguments)).then(|| why.to_string())
}

/// The target or the suite that is not there.
fn missing(program: &str, arguments: &[String]) -> Option<String> {
    static TARGETS: LazyLock<Vec<String>> = LazyLock::new(|| {
        let makefile = fs::read_to_string(Path::new(ROOT).join("Makefile")).unwrap();
        let targets = Regex::new(r"(?m)^([a-z0-9-]+):").unwrap();
        targets.captures_iter(&makefile).map(|found| found[1].to_owned()).collect()
    });
    match program {
        "make" => {
            let mut asked = arguments.iter().filter(|word| !word.contains('=') && !word.starts_with('-'));
            asked.find(|word| !TARGETS.contains(word)).map(|word| format!("no target {word}"))
        }
        "cargo" => {
            let suite = arguments.iter().skip_while(|word| *word != "--test").nth(1)?;
            let is_there = ["tests/{}.rs", "tests/{}/main.rs"]
                .iter()
                .any(|file| Path::new(ROOT).join(file.replace("{}", suite)).is_file());
            (!is_there).then(|| format!("no suite {suite}"))
        }
        _ => None,
    }
}
