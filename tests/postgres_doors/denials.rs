//! Permanent errors end a program at its start, with one message that names the cause and the remedy.

use std::{
    path::Path,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use lastword_devkit::child;
use nix::sys::signal::Signal;

use crate::{
    certificates::Certificates,
    server::{Server, lastword, text},
};

const SECRET: &str = "s3cret-of-a-test";
/// A program that goes on waiting is not waited for any longer.
const END_MAX: Duration = Duration::from_secs(40);

fn to_its_end(mut command: Command) -> Output {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = child::spawn(command, Signal::SIGKILL).unwrap();
    let until = Instant::now() + END_MAX;
    while running.try_wait().unwrap().is_none() {
        if Instant::now() > until {
            running.kill().unwrap();
            panic!("it waits: {}", text(&running.wait_with_output().unwrap()));
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
    running.wait_with_output().unwrap()
}

/// Both `migrate` and `serve` end with this cause, and say what to do.
fn assert_denied(name: &str, url: &str, cause: &str, home: &Path) {
    for arguments in [&["migrate"][..], &["serve", "--listen", "127.0.0.1:0"]] {
        let done = to_its_end(lastword(arguments, url, home));
        let said = text(&done);
        assert_eq!(done.status.code(), Some(1), "{name} {arguments:?}: {said}");
        let errors: Vec<&str> = said.lines().filter(|line| line.starts_with("error: ")).collect();
        assert!(matches!(errors[..], [error] if error.contains(cause)), "{name} {arguments:?}: {said}");
        assert!(said.contains("  → "), "{name}: {said}");
        assert!(!said.contains(SECRET) && !said.contains("panicked"), "{name}: {said}");
    }
}

#[tokio::test]
async fn who_is_not_let_in_is_told_why_and_leaves() {
    let (server, home) = (Server::start().await, tempfile::tempdir().unwrap());
    let closed = format!("create role outsider login password '{SECRET}'");
    server
        .sql(&[
            &closed,
            "create database closed",
            "revoke connect on database closed from public",
            "create database foreign_owned",
        ])
        .await;
    let at = |user: &str, database: &str| {
        format!("postgres://{user}:{SECRET}@127.0.0.1:{}/{database}", server.postgres.port())
    };
    let cases = [
        ("password", at("app", "app"), "refuses this user's password"),
        ("role", at("nobody", "app"), "refuses this user's password"),
        ("database", at("outsider", "absent"), "no database of this name"),
        ("connect", at("outsider", "closed"), "lacks a right"),
        ("create", at("outsider", "foreign_owned"), "lacks a right"),
        ("no tls", at("outsider", "app") + "?sslmode=require", "does not offer TLS"),
        ("mode", at("outsider", "app") + "?sslmode=on", "TLS parameter"),
        ("ca", at("outsider", "app") + "?sslmode=verify-ca", "needs the certificate of the CA"),
        ("root", at("outsider", "app") + "?sslmode=verify-full&sslrootcert=/nowhere", "TLS parameter"),
        ("unknown", at("outsider", "app") + "?sslcrl=/nowhere", "TLS parameter"),
        ("url", format!("postgres://app:{SECRET}@one:1,two:2/app"), "cannot be read"),
        (
            "percent",
            format!("postgres://app:{SECRET}%zz@127.0.0.1:{}/app", server.postgres.port()),
            "cannot be read",
        ),
        ("text", format!("app:{SECRET}@127.0.0.1"), "cannot be read"),
    ];
    for (name, url, cause) in cases {
        assert_denied(name, &url, cause, home.path());
    }
    let certificates = Certificates::make();
    server.speak_tls(&certificates, "expired", "host all all 127.0.0.1/32 scram-sha-256").await;
    let root = certificates.file("ca.crt");
    let url = format!("{}?sslmode=verify-ca&sslrootcert={}", at("outsider", "app"), root.display());
    assert_denied("expired", &url, "has expired", home.path());
}

#[tokio::test]
async fn a_listener_that_is_not_let_in_ends_the_start_as_well() {
    let (server, home) = (Server::start().await, tempfile::tempdir().unwrap());
    let mut serve = lastword(&["serve", "--listen", "127.0.0.1:0"], &server.url("one", ""), home.path());
    serve.env("LASTWORD_LISTENER_DATABASE_URL", server.url(SECRET, ""));
    let done = to_its_end(serve);
    let said = text(&done);
    assert_eq!(done.status.code(), Some(1), "{said}");
    assert!(said.contains("refuses this user's password") && !said.contains(SECRET), "{said}");
}

#[tokio::test]
async fn a_database_without_tables_is_one_fault_and_its_remedy_heals_it() {
    let (server, home) = (Server::start().await, tempfile::tempdir().unwrap());
    let url = server.url("one", "");
    let faults = || {
        let done = lastword(&["doctor", "--output", "json"], &url, home.path()).output().unwrap();
        let report: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
        let exams = report["exams"].as_array().unwrap().iter();
        let faults = exams.filter(|exam| exam["verdict"] == "FAULT");
        faults.map(|exam| exam["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(faults(), ["migrations"]);
    assert!(to_its_end(lastword(&["migrate"], &url, home.path())).status.success());
    assert!(faults().is_empty(), "{:?}", faults());
}
