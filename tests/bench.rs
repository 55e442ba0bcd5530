//! `lastword bench` takes the measures that are asked for, and says when it cannot.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on has failed")]

#[path = "support/mod.rs"]
mod support;

use std::{
    path::Path,
    process::{Command, Output},
};

use serde_json::{Value, json};
use support::{Cluster, OPERATOR, program};

/// A `bench` that writes its findings to `json`, and is told nothing by this process' environment.
fn bench(words: &[&str], json: &Path) -> Command {
    let mut command = Command::new(program());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("LASTWORD_") && name != "LASTWORD_POSTGRES_BIN" {
            command.env_remove(name);
        }
    }
    command.arg("bench").args(words).arg("--json").arg(json);
    command
}

fn findings(done: &Output, json: &Path) -> Value {
    let (said, why) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{}\n{said}\n{why}", done.status);
    serde_json::from_str(&std::fs::read_to_string(json).unwrap()).unwrap()
}

/// The figures of a measure: its name, and its middle value or why there is none.
fn figures(measure: &Value) -> Vec<(String, Result<f64, String>)> {
    let text = |value: &Value| value.as_str().unwrap_or("no reason").to_owned();
    let of = |figure: &Value| {
        let median = figure["median"].as_f64();
        (text(&figure["name"]), median.ok_or_else(|| text(&figure["not_measured"])))
    };
    measure["figures"].as_array().unwrap().iter().map(of).collect()
}

#[test]
fn a_short_run_has_a_number_for_everything_that_it_was_asked_for() {
    let place = tempfile::tempdir().unwrap();
    let json = place.path().join("findings.json");
    let asked = ["accept-same", "turns", "drain", "durable-few", "idle", "wal"];
    let mut words = vec!["--short", "--history=100", "--held", "--only"];
    words.extend(asked);
    let found = findings(&bench(&words, &json).output().unwrap(), &json);

    let measures = found["measures"].as_array().unwrap();
    let names: Vec<_> = measures.iter().map(|measure| measure["name"].as_str().unwrap()).collect();
    assert_eq!(names, asked);
    let counts_statements =
        found["facts"]["postgres shared_preload_libraries"].as_str().unwrap().contains("pg_stat_statements");
    for measure in measures {
        assert_eq!(measure["failures"], json!([]), "{measure}");
        for (name, value) in figures(measure) {
            match value {
                Ok(value) => assert!(value > 0.0, "{name}: {measure}"),
                Err(why) => assert!(!counts_statements && why.contains("pg_stat_statements"), "{measure}"),
            }
        }
    }
    for limit in ["round-trip", "commit", "wake-up", "rows", "http"] {
        assert!(found["limits"][limit]["median"].as_f64().unwrap() > 0.0, "{limit}");
    }
    for changed in ["a history of 100 turns", "a transaction held open"] {
        let turns = &found["compared"][changed]["turns"]["figures"]["turns"];
        assert!(turns["ratio"].as_f64().unwrap() > 0.0, "{changed}: {}", found["compared"]);
    }
    // Speed is not judged by so little.
    let verdict = |measure: &Value, n: usize| measure["figures"][n]["verdict"].as_str().unwrap().to_owned();
    assert_eq!(verdict(&measures[0], 0), "not-judged");
    assert_eq!(found["facts"]["postgres fsync"], "on");
    assert_eq!(found["facts"]["postgres synchronous_commit"], "on");
}

#[tokio::test]
async fn what_cannot_be_seen_from_outside_is_not_measured_and_never_zero() {
    let cluster = Cluster::start(2).await;
    cluster.demo_agent("demo", json!({})).await;
    let place = tempfile::tempdir().unwrap();
    let json = place.path().join("findings.json");
    let urls = format!("{},{}", cluster.url(0), cluster.url(1));
    let words =
        ["--short", "--url", &urls, "--agent", "demo", "--only", "accepted,first-event,turns,lag,wal"];
    let done = bench(&words, &json).env("LASTWORD_TOKEN", OPERATOR).output().unwrap();
    let found = findings(&done, &json);
    for measure in found["measures"].as_array().unwrap() {
        for (name, value) in figures(measure) {
            assert_eq!(value.is_err(), measure["name"] == "wal", "{name}: {measure}");
        }
    }
    assert_eq!(found["measures"][4]["not_measured"], "needs an installation of its own");
    assert_eq!(found["measures"][4]["figures"][0]["median"], Value::Null);
    let limits: Vec<_> = found["limits"].as_object().unwrap().keys().collect();
    assert_eq!(limits, ["http", "http-rested"]);
}
