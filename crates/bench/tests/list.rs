//! The program itself, as far as it needs neither Postgres nor a gateway.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::process::Command;

fn bench(words: &[&str]) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_lastword-bench")).args(words).output().unwrap()
}

#[test]
fn the_measures_are_listed_with_their_targets() {
    let done = bench(&["--list"]);
    let said = String::from_utf8(done.stdout).unwrap();
    assert!(done.status.success(), "{}", done.status);
    for measure in ["accept-same", "event-other", "durable-few", "wal"] {
        assert!(said.lines().any(|line| line.starts_with(measure)), "{measure} is missing:\n{said}");
    }
}

#[test]
fn a_token_among_the_arguments_is_refused() {
    let done = bench(&["--url", "http://127.0.0.1:1", "--agent", "a", "--token=s3cret"]);
    let why = String::from_utf8(done.stderr).unwrap();
    assert_eq!(done.status.code(), Some(2), "{why}");
    assert!(why.contains("--token-file") && !why.contains("s3cret"), "{why}");
}
