//! Every `sslmode` against every kind of server, compared with `psql` and the same URL.

use lastword_devkit::postgres::StopMode;
use serde_json::{Value, json};

use crate::{
    certificates::{ALL, Certificates},
    server::{Came, Server, doctor, lastword, psql},
    support::{OPERATOR, PATIENCE, eventually, program, replica::Replica},
};

const MODES: [&str; 7] = ["", "disable", "allow", "prefer", "require", "verify-ca", "verify-full"];
const EVERY_WAY: &str = "host all app 127.0.0.1/32 scram-sha-256";

/// Asks both with each mode, and each of these trusted certificates; both come in, or neither does. Says what was
/// said where neither did.
fn compare(
    server: &Server,
    certificates: &Certificates,
    roots: &[&str],
    more: &str,
) -> Vec<(String, String)> {
    let home = tempfile::tempdir().unwrap();
    let mut refusals = Vec::new();
    for mode in MODES {
        for root in roots {
            let mut parameters: Vec<String> = Vec::new();
            if !mode.is_empty() {
                parameters.push(format!("sslmode={mode}"));
            }
            if !root.is_empty() {
                parameters.push(format!("sslrootcert={}", certificates.file(root).display()));
            }
            parameters.extend((!more.is_empty()).then(|| more.to_owned()));
            let url = server.url("one", &format!("?{}", parameters.join("&")));
            let (theirs, ours) = (psql(&url, home.path()), doctor(&url, home.path()));
            match (theirs, ours) {
                (Came::In, Came::In) => {}
                (Came::Not(_), Came::Not(said)) => refusals.push((format!("{mode} {root}"), said)),
                (theirs, ours) => panic!("{mode} {root}: psql {theirs:?}, lastword {ours:?}"),
            }
        }
    }
    refusals
}

/// Those of these modes and roots, for these causes, and no others.
fn assert_refusals(refusals: &[(String, String)], wanted: &[(&str, &str)]) {
    let names: Vec<&str> = refusals.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, wanted.iter().map(|(name, _)| *name).collect::<Vec<_>>(), "{refusals:#?}");
    for ((name, said), (_, cause)) in refusals.iter().zip(wanted) {
        assert!(said.contains(cause), "{name}: {said}");
        assert!(!said.contains("one@"), "{said}");
    }
}

async fn speaking(name: &str) -> (Server, Certificates) {
    let (server, certificates) = (Server::start().await, Certificates::make());
    server.speak_tls(&certificates, name, EVERY_WAY).await;
    (server, certificates)
}

const UNTRUSTED: &str = "not from a CA that is trusted here";

#[tokio::test]
async fn a_postgres_without_tls() {
    let (server, certificates) = (Server::start().await, Certificates::make());
    let refusals = compare(&server, &certificates, &["", "ca.crt"], "");
    let cause = "does not offer TLS";
    assert_refusals(
        &refusals,
        &[
            ("require ", cause),
            ("require ca.crt", cause),
            ("verify-ca ", "needs the certificate of the CA"),
            ("verify-ca ca.crt", cause),
            ("verify-full ", cause),
            ("verify-full ca.crt", cause),
        ],
    );
}

#[tokio::test]
async fn a_certificate_of_a_private_ca() {
    let (server, certificates) = speaking("good").await;
    // Of several CAs in one file each counts.
    let both =
        ["self-signed.crt", "ca.crt"].map(|name| std::fs::read_to_string(certificates.file(name)).unwrap());
    std::fs::write(certificates.file("both.crt"), both.concat()).unwrap();
    let refusals =
        compare(&server, &certificates, &["", "ca.crt", "both.crt", "self-signed.crt", "absent.crt"], "");
    assert_refusals(
        &refusals,
        &[
            ("require self-signed.crt", UNTRUSTED),
            ("verify-ca ", "needs the certificate of the CA"),
            ("verify-ca self-signed.crt", UNTRUSTED),
            ("verify-ca absent.crt", "TLS parameter"),
            ("verify-full ", UNTRUSTED),
            ("verify-full self-signed.crt", UNTRUSTED),
            ("verify-full absent.crt", "TLS parameter"),
        ],
    );
}

#[tokio::test]
async fn a_certificate_of_another_host() {
    let (server, certificates) = speaking("wrong-host").await;
    let refusals = compare(&server, &certificates, &["", "ca.crt"], "");
    assert_refusals(
        &refusals,
        &[
            ("verify-ca ", "needs the certificate of the CA"),
            ("verify-full ", UNTRUSTED),
            ("verify-full ca.crt", "for another host"),
        ],
    );
}

#[tokio::test]
async fn a_certificate_that_is_self_signed() {
    let (server, certificates) = speaking("self-signed").await;
    let refusals = compare(&server, &certificates, &["", "self-signed.crt", "ca.crt"], "");
    assert_refusals(
        &refusals,
        &[
            ("require ca.crt", UNTRUSTED),
            ("verify-ca ", "needs the certificate of the CA"),
            ("verify-ca ca.crt", UNTRUSTED),
            ("verify-full ", UNTRUSTED),
            ("verify-full ca.crt", UNTRUSTED),
        ],
    );
}

#[tokio::test]
async fn a_certificate_of_version_1() {
    let (server, certificates) = speaking("version-1").await;
    let refusals = compare(&server, &certificates, &["", "ca.crt", "self-signed.crt"], "");
    assert_refusals(
        &refusals,
        &[
            ("require self-signed.crt", UNTRUSTED),
            ("verify-ca ", "needs the certificate of the CA"),
            ("verify-ca self-signed.crt", UNTRUSTED),
            ("verify-full ", UNTRUSTED),
            ("verify-full self-signed.crt", UNTRUSTED),
        ],
    );
}

#[tokio::test]
async fn a_certificate_that_has_expired() {
    let (server, certificates) = speaking("expired").await;
    let refusals = compare(&server, &certificates, &["", "ca.crt"], "");
    let cause = "has expired";
    assert_refusals(
        &refusals,
        &[
            ("require ca.crt", cause),
            ("verify-ca ", "needs the certificate of the CA"),
            ("verify-ca ca.crt", cause),
            ("verify-full ", cause),
            ("verify-full ca.crt", cause),
        ],
    );
}

#[tokio::test]
async fn a_server_that_asks_for_a_client_certificate() {
    let (server, certificates) = (Server::start().await, Certificates::make());
    let doors = "hostssl all app 127.0.0.1/32 scram-sha-256 clientcert=verify-ca";
    server.speak_tls(&certificates, "good", doors).await;
    let without = compare(&server, &certificates, &["ca.crt"], "");
    assert_eq!(without.len(), MODES.len(), "{without:#?}");
    for (name, said) in &without {
        assert!(said.contains("does not let this user in from here"), "{name}: {said}");
    }
    // The client's own certificate is of version 1, as the manual's way makes it.
    let identity = |name: &str| {
        let file = |end: &str| certificates.file(&format!("{name}.{end}")).display().to_string();
        format!("sslcert={}&sslkey={}", file("crt"), file("key"))
    };
    let with = compare(&server, &certificates, &["ca.crt"], &identity("client"));
    assert_refusals(&with, &[("disable ca.crt", "does not let this user in from here")]);
    let strange = compare(&server, &certificates, &["ca.crt"], &identity("self-signed"));
    assert_eq!(strange.len(), MODES.len(), "{strange:#?}");
}

#[tokio::test]
async fn a_server_that_lets_in_by_one_way_alone() {
    let (server, certificates) = (Server::start().await, Certificates::make());
    server.speak_tls(&certificates, "good", "hostssl all app 127.0.0.1/32 scram-sha-256").await;
    let with = compare(&server, &certificates, &["ca.crt"], "");
    assert_refusals(&with, &[("disable ca.crt", "does not let this user in from here")]);
    // With a CA that it is not from, TLS fails, and without TLS there is no way: the first cause is told.
    let with = compare(&server, &certificates, &["self-signed.crt"], "");
    assert_eq!(with.len(), MODES.len(), "{with:#?}");
    let prefer = with.iter().find(|(name, _)| name.starts_with("prefer")).unwrap();
    assert!(prefer.1.contains(UNTRUSTED), "{prefer:?}");

    server.speak_tls(&certificates, "good", "hostnossl all app 127.0.0.1/32 scram-sha-256").await;
    let without = compare(&server, &certificates, &["ca.crt"], "");
    let refused: Vec<&str> = without.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(refused, ["require ca.crt", "verify-ca ca.crt", "verify-full ca.crt"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_behind_tls_works_and_comes_back() {
    let (mut server, certificates) = speaking("version-1").await;
    let home = tempfile::tempdir().unwrap();
    let root = certificates.file("ca.crt");
    let url = server.url("one", &format!("?sslmode=verify-full&sslrootcert={}", root.display()));
    let mut serve = lastword(&["serve"], &url, home.path());
    serve.env("LASTWORD_DEV", "1").env("LASTWORD_OPERATOR_TOKENS", OPERATOR);
    let replica = Replica::start(serve, home.path().join("log"));
    let http = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
    let ready = async || {
        let answer = http.get(replica.url() + "/readyz").send().await.ok()?;
        let (is_ready, view) = (answer.status() == 200, answer.json::<Value>().await.ok()?);
        // The doorbell, too, goes through TLS.
        (is_ready && view["doorbell"]["round_trip_ms"].is_number()).then_some(())
    };
    eventually("ready", ready).await;
    let spec = json!({"runtime": "process", "command": [program(), "demo-agent"]});
    let put =
        http.put(replica.url() + "/v1/agents/demo").bearer_auth(OPERATOR).json(&spec).send().await.unwrap();
    assert!(put.status().is_success(), "{put:?}");
    let turn = async |text: &str| {
        let post = http.post(replica.url() + "/v1/turns").bearer_auth(OPERATOR).header("Prefer", "wait=30");
        let done = post.json(&json!({"agent": "demo", "input": text})).send().await.unwrap();
        done.json::<Value>().await.unwrap()["status"].as_str().map(str::to_owned)
    };
    assert_eq!(turn("/echo hi").await.as_deref(), Some("completed"));
    let plain = "select count(*)::text from pg_stat_ssl join pg_stat_activity using (pid) where usename = 'app' and not ssl";
    let ours = "select count(*)::text from pg_stat_ssl join pg_stat_activity using (pid) where usename = 'app' and ssl";
    assert_eq!(server.ask(plain).await, "0");
    assert!(server.ask(ours).await.parse::<u32>().unwrap() >= 3);
    tokio::task::block_in_place(|| server.postgres.restart(StopMode::Fast)).unwrap();
    eventually("it is back", async || replica.log().contains("Postgres is back after ").then_some(())).await;
    eventually("ready", ready).await;
    // More than a TLS record holds, both ways.
    assert_eq!(turn(&format!("/echo {}", "long ".repeat(50_000))).await.as_deref(), Some("completed"));
    assert_eq!(server.ask(plain).await, "0");
}

/// Said here so that a kind that is added to the certificates is not left out of the table.
#[test]
fn every_kind_of_certificate_has_its_test() {
    let source = include_str!("tls.rs");
    for name in ALL {
        assert!(source.contains(&format!("speaking(\"{name}\")")), "{name}");
    }
}
