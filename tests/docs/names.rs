//! Names on the pages: variables, keys, files, sections and bounds mean something.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::LazyLock,
};

use lastword::config::{Config, ConfigError, Overrides, Surroundings};
use regex::Regex;

use super::reading::{Page, code_within_lines, pages};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

#[test]
fn every_variable_that_is_named_is_one_of_ours() {
    let mut names = all(r"\b(LASTWORD_[A-Z0-9_]*[A-Z0-9])\b");
    // An example of what a cluster sets by itself, and the gateway overlooks.
    assert!(names.remove("LASTWORD_PORT"));
    assert!(names.len() > 10, "{names:?}");
    let unknown: Vec<_> = names.iter().filter(|name| !is_variable(name)).collect();
    assert!(unknown.is_empty(), "{unknown:#?}");
    assert!(!is_variable("LASTWORD_TURN_MAX"));
}

#[test]
fn every_setting_that_is_named_is_a_key() {
    let names = all(r"\bsettings\.([a-z_]{3,})");
    assert!(names.len() > 10, "{names:?}");
    let unknown: Vec<_> = names.iter().filter(|name| !is_key(name)).collect();
    assert!(unknown.is_empty(), "{unknown:#?}");
    assert!(!is_key("turn_max"));
}

#[test]
fn every_file_that_is_named_is_there() {
    let mut wrong = Vec::new();
    let mut count = 0;
    for Page { path, text } in pages(Path::new(ROOT)) {
        for code in code_within_lines(&text).into_iter().filter(|code| is_file_name(code)) {
            count += 1;
            wrong.extend((!is_there(&path, &code)).then(|| format!("{}: {code}", path.display())));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(count > 100, "only {count} files are named");
}

#[test]
fn a_file_that_is_not_there_is_missed() {
    for (name, is_right) in [
        ("docs/OPERATING.md", true),
        ("WORKERS.md", true),
        ("row-locked.md", true),
        ("docs/decisions/0012", true),
        ("decisions/0999", false),
        ("runbooks/row-lock.md", false),
        ("src/store/table.rs", false),
        ("tests/docs.rs", false),
    ] {
        assert!(is_file_name(name), "{name}");
        assert_eq!(is_there(Path::new("docs/runbooks/a.md"), name), is_right, "{name}");
    }
}

#[test]
fn every_section_that_is_named_is_on_its_page() {
    let named = Regex::new(r#"`(?:docs/)?([A-Z]+\.md)`,\s"([^"]+)""#).unwrap();
    let mut wrong = Vec::new();
    let mut count = 0;
    for Page { path, text } in pages(Path::new(ROOT)) {
        for section in named.captures_iter(&text) {
            count += 1;
            let page = fs::read_to_string(Path::new(ROOT).join("docs").join(&section[1])).unwrap();
            let heading = section[2].split_whitespace().collect::<Vec<_>>().join(" ");
            let is_there = page.lines().any(|line| line.trim_start_matches('#').trim() == heading);
            wrong.extend((!is_there).then(|| format!("{}: {}, {heading}", path.display(), &section[1])));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(count > 1, "only {count} sections are named");
}

#[test]
fn each_bound_has_one_line_of_its_runbook() {
    let page = fs::read_to_string(Path::new(ROOT).join("docs/runbooks/bound-near.md")).unwrap();
    let lines = Regex::new(r"(?m)^\| `([a-z_]+)` \|").unwrap();
    let mut told: Vec<_> = lines.captures_iter(&page).map(|line| line[1].to_owned()).collect();
    told.sort();
    let noted = Regex::new(r#"\b(?:bound|note)\("([a-z_]+)", "#).unwrap();
    let mut there = BTreeSet::new();
    for file in sources(&Path::new(ROOT).join("src")) {
        let text = fs::read_to_string(file).unwrap();
        there.extend(noted.captures_iter(&text).map(|found| found[1].to_owned()));
    }
    assert_eq!(told, there.into_iter().collect::<Vec<_>>());
}

/// What a pattern's group finds on all pages.
fn all(pattern: &str) -> BTreeSet<String> {
    let pattern = Regex::new(pattern).unwrap();
    let found = |page: &Page| pattern.captures_iter(&page.text).map(|found| found[1].to_owned()).collect();
    pages(Path::new(ROOT)).iter().flat_map(|page| -> Vec<String> { found(page) }).collect()
}

/// Whether a replica takes a variable, or another program of ours does.
fn is_variable(name: &str) -> bool {
    let around = Surroundings::new([(name.into(), "x".into())], "/nonexistent").unwrap();
    !matches!(Config::read(Overrides::default(), &around), Err(ConfigError::Unknown { .. }))
        || lastword::cli::tree().get_subcommands().any(|command| {
            command.get_arguments().any(|argument| argument.get_env().is_some_and(|env| env == name))
        })
}

/// Whether the file of a replica's configuration has a key.
fn is_key(name: &str) -> bool {
    let place = tempfile::tempdir().unwrap();
    fs::write(place.path().join("lastword.toml"), format!("{name} = 1\n")).unwrap();
    let around = Surroundings::new([], place.path()).unwrap();
    !matches!(Config::read(Overrides::default(), &around), Err(ConfigError::Unknown { .. }))
}

fn is_file_name(code: &str) -> bool {
    static FILES: LazyLock<Regex> = LazyLock::new(|| {
        let places =
            r"(docs|src|tests|crates|helm|deploy|examples|benches|migrations|fuzz|runbooks|decisions|\.ci)/";
        Regex::new(&format!(r"^({places}[\w./-]*|[\w./-]+\.md)$")).unwrap()
    });
    FILES.is_match(code)
}

/// From the root, from the page's own place, or from where such files are; a decision by its number.
fn is_there(page: &Path, name: &str) -> bool {
    let places = ["", "docs", "docs/runbooks", "helm/lastword"].map(PathBuf::from);
    let own = page.parent().unwrap().to_owned();
    places.into_iter().chain([own]).any(|place| {
        let path = Path::new(ROOT).join(place).join(name);
        let begins = |entry: fs::DirEntry| {
            let (entry, number) = (entry.file_name(), path.file_name().unwrap_or_default());
            entry.to_string_lossy().starts_with(&format!("{}-", number.to_string_lossy()))
        };
        let is_decision = || {
            name.contains("decisions/")
                && path.parent().unwrap().read_dir().is_ok_and(|all| all.flatten().any(begins))
        };
        path.exists() || is_decision()
    })
}

fn sources(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] }).collect()
}
