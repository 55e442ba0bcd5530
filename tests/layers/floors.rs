//! The layers of the code ("floors"): a file imports from its own floor or a lower one, and never from a stranger.
//!
//! Owns the table below, and checks every source file against it as text. It follows `crate::…` and `super::…` paths,
//! and refuses paths that it cannot place. Comments, strings and test code do not count.

use std::{fs, path::Path, sync::LazyLock};

use regex::Regex;

use crate::source::{line_of, source_files, without_comments_and_strings, without_tests};

/// Each floor's modules, from the ground up. A module that is missing here fails the test.
const FLOORS: [&[&str]; 7] = [
    &[
        "agent",
        "clock",
        "event",
        "failure",
        "frame",
        "halves",
        "id",
        "json",
        "principal",
        "secret",
        "text",
        "token",
        "turn",
        "units",
        "word",
        "words",
    ],
    &["config", "descriptors", "host", "task", "telemetry"],
    &["store"],
    &["rendezvous", "stream", "worker"],
    &["engine"],
    &["api", "console"],
    &["cli", "lib", "main"],
];

/// The first never imports the second, whatever their floors: they meet in the database.
const STRANGERS: [(&str, &str); 7] = [
    ("api", "engine"),
    ("api", "worker"),
    ("console", "engine"),
    ("console", "worker"),
    ("engine", "stream"),
    ("worker", "stream"),
    ("stream", "worker"),
];

/// A crate, and how the path below `src/` of a file begins that may name it.
const HOMES: [(&str, &[&str]); 6] = [
    ("sqlx", &["store/", "store.rs"]),
    ("axum", &["api/", "api.rs", "console/", "console.rs", "cli/serve"]),
    ("clap", &["cli/", "cli.rs", "main.rs"]),
    ("anyhow", &["cli/", "cli.rs", "main.rs"]),
    ("kube", &["worker/kubernetes/"]),
    ("k8s_openapi", &["worker/kubernetes/"]),
];

/// What writes a text to a terminal as it is, and the files that may: what they print is their own.
static PRINTS: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\be?print(ln)?!").unwrap());
const PRINTERS: [&str; 2] = ["cli/demo_agent", "main.rs"];

#[test]
fn every_file_imports_from_lower_floors_only() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files = source_files(&root);
    assert!(files.len() > 10, "the sources were not found below {}", root.display());
    let mut broken = Vec::new();
    for file in files {
        let path = file.strip_prefix(&root).unwrap().to_str().unwrap().replace('\\', "/");
        broken.extend(wrongs(&path, &fs::read_to_string(&file).unwrap()));
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// What is wrong in the file at `path` (below `src/`), one line each.
fn wrongs(path: &str, source: &str) -> Vec<String> {
    let here = module_path(path);
    let text = without_tests(&without_comments_and_strings(source));
    if here.last() == Some(&"tests") {
        return Vec::new();
    }
    let mut wrongs = Vec::new();
    for (at, there) in imports(&text, &here) {
        if let Some(why) = wrong_import(here[0], &there) {
            wrongs.push(format!("src/{path}:{}: {why}", line_of(&text, at)));
        }
    }
    if let Some(found) = PRINTS.find(&text)
        && !PRINTERS.iter().any(|home| path.starts_with(home))
    {
        let line = line_of(&text, found.start());
        wrongs.push(format!(
            "src/{path}:{line}: say it with cli/say.rs: what comes from outside is escaped there"
        ));
    }
    for (name, homes) in HOMES {
        let word = Regex::new(&format!(r"\b{name}\b")).unwrap();
        if !homes.iter().any(|home| path.starts_with(home))
            && let Some(found) = word.find(&text)
        {
            let line = line_of(&text, found.start());
            wrongs.push(format!("src/{path}:{line}: `{name}` stands only in {}", homes.join(", ")));
        }
    }
    wrongs
}

fn wrong_import(here: &str, there: &str) -> Option<String> {
    let floor = |module| FLOORS.iter().position(|modules| modules.contains(&module));
    let Some(mine) = floor(here) else {
        return Some(format!("`{here}` is on no floor: add it to the table"));
    };
    let Some(other) = floor(there) else {
        return Some(format!("`{there}` is on no floor: add it to the table"));
    };
    if other > mine {
        return Some(format!("`{here}` (floor {mine}) imports `{there}` (floor {other})"));
    }
    STRANGERS.contains(&(here, there)).then(|| format!("`{here}` and `{there}` are strangers"))
}

/// The modules from the crate's root to the file: `store/events.rs` is `[store, events]`.
fn module_path(path: &str) -> Vec<&str> {
    let mut parts: Vec<&str> = path.trim_end_matches(".rs").split('/').collect();
    if parts.len() > 1 && parts.last() == Some(&"mod") {
        parts.pop();
    }
    parts
}

/// Every path that starts at the crate's root, or climbs to it: where it stands, and the top-level
/// module that it names. `use crate::{a, b::{c, d}}` names `a` and `b`.
fn imports(text: &str, here: &[&str]) -> Vec<(usize, String)> {
    static ROOT: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"\b(?:crate|lastword|self\s*::\s*super|super)\b\s*::\s*(?:super\s*::\s*)*").unwrap()
    });
    let mut found = Vec::new();
    for path in ROOT.find_iter(text) {
        let climbs = path.as_str().matches("super").count();
        // The root file's own modules are the top level, so `lib` and `main` cannot climb.
        if climbs == 0 || climbs == here.len() {
            let names = first_names(&text[path.end()..]);
            found.extend(names.into_iter().map(|name| (path.start(), name)));
        }
    }
    // What begins with a capital is an item of the root file, and `self` the root: neither is a module.
    found.retain(|(_, name)| name != "self" && !name.starts_with(char::is_uppercase));
    found
}

/// The first name of a path, or of each path in the group that `text` begins with.
fn first_names(text: &str) -> Vec<String> {
    let name = |part: &str| -> String {
        let part = part.trim_start();
        part.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    let Some(group) = text.strip_prefix('{') else { return vec![name(text)] };
    let (mut names, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                names.push(name(&group[start..at]));
                start = at + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

#[test]
fn a_wrong_import_is_found_however_it_is_written() {
    for (path, source, wrong) in [
        (
            "store/turns.rs",
            "\nuse crate::engine::Reap;",
            "src/store/turns.rs:2: `store` (floor 2) imports `engine`",
        ),
        ("event.rs", "use crate::{id::TurnId, store::{a, b}};", "imports `store`"),
        ("event.rs", "use crate::{\n    id::{TurnId, x},\n    store,\n};", "imports `store`"),
        ("event.rs", "fn f() -> crate :: store::Error {}", "imports `store`"),
        ("event.rs", "use super::store;", "imports `store`"),
        ("stream/mod.rs", "use super::worker::Run;", "`stream` and `worker` are strangers"),
        ("stream/hub.rs", "use super::super::worker::Run;", "`stream` and `worker` are strangers"),
        ("worker/run.rs", "use crate::stream;", "`worker` and `stream` are strangers"),
        ("engine/reap.rs", "use crate::stream;", "`engine` and `stream` are strangers"),
        ("api/turns.rs", "use crate::{engine, id};", "`api` and `engine` are strangers"),
        ("api/turns.rs", "let w = crate::worker::new();", "`api` and `worker` are strangers"),
        ("api/turns.rs", "use crate::cellar::Wine;", "`cellar` is on no floor"),
        ("cellar.rs", "use crate::id;", "`cellar` is on no floor"),
        ("engine/reap.rs", "let s = \"//\"; use sqlx::query;", "`sqlx` stands only in store/"),
        ("engine/reap.rs", "#[derive(sqlx::FromRow)] struct A;", "`sqlx` stands only in store/"),
        ("cli/chat.rs", "use axum::Router;", "`axum` stands only in"),
        ("config.rs", "fn f() -> anyhow::Result<()> {}", "`anyhow` stands only in"),
        ("config.rs", "#[derive(clap::Args)]\nstruct A;", "`clap` stands only in"),
        ("event.rs", "#[cfg(test)]\nmod tests { fn f() { } }\nuse crate::store;", "src/event.rs:3: "),
        ("event.rs", "#[cfg(test)]\nmod tests;\nuse crate::store;", "imports `store`"),
        ("event.rs", "fn f<'a>(x: &'a str, y: char) { y == '\"'; crate::store::f(\"\") }", "imports `store`"),
        ("event.rs", "const A: &str = r#\"a \" b\"#; use crate::store;", "imports `store`"),
    ] {
        let found = wrongs(path, source);
        assert_eq!(found.len(), 1, "{path}: {source}\n{found:?}");
        assert!(found[0].contains(wrong), "{found:?}");
    }
}

#[test]
fn what_is_right_is_left_alone() {
    for (path, source) in [
        ("store/turns.rs", "use crate::{id::TurnId, telemetry::metrics}; use sqlx::query; use super::wake;"),
        ("store/mod.rs", "mod turns; use self::turns::Turns; use super::config;"),
        ("event.rs", "//! See [`crate::store`], which uses `sqlx`.\n/* crate::store */ use crate::turn;"),
        ("event.rs", "const A: &str = \"use crate::store\"; const B: &str = r#\"crate::store \"x\" sqlx\"#;"),
        ("event.rs", "#[cfg(test)]\nmod tests { use crate::store; fn f() -> anyhow::Result<()> { {} } }"),
        ("config/tests.rs", "use anyhow::Result;"),
        ("cli/serve/http.rs", "use axum::Router; use crate::{api, engine, worker, stream}; use clap::Args;"),
        ("cli/serve.rs", "use axum::Router;"),
        ("main.rs", "fn main() -> anyhow::Result<()> { lastword::cli::run() }"),
        ("engine/pass/reap.rs", "use super::super::Pass; use crate::worker;"),
        ("api/turns.rs", "use crate::{self as root, Thing, store::Store};"),
    ] {
        assert_eq!(wrongs(path, source), [""; 0], "{path}: {source}");
    }
}
