//! The HTTP API: what a caller without a token, or with a made-up one, can cost or do.

use std::time::Duration;

use lastword::token::{self, Purpose};
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, timeout},
};

use crate::support::{Cluster, PATIENCE, Plan, eventually};

const CLIENT: &str = "client-token-of-a-test";
const WORKERS: &str = "worker-token-of-a-test";
/// What is announced and never sent: what a worker may send at most, and anybody else.
const ANNOUNCED: usize = 2 * 1024 * 1024;
const ANNOUNCED_BY_CLIENT: usize = 1024 * 1024;
/// An answer that waits for the body would take longer.
const AT_ONCE: Duration = Duration::from_secs(20);

/// Replicas whose every route needs a token.
async fn closed(replicas: usize) -> Cluster {
    let env =
        [("LASTWORD_DEV", "0"), ("LASTWORD_CLIENT_TOKENS", CLIENT), ("LASTWORD_WORKER_TOKENS", WORKERS)];
    let env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let cluster = Cluster::with(Plan { replicas, env, ..Plan::default() }).await;
    cluster.put_agent("far", json!({"runtime": "remote"})).await;
    for i in 0..replicas {
        // A replica is ready a moment before it takes on turns.
        eventually("the replica lets workers in", async || {
            let (status, _) = call(&cluster, i, "register", WORKERS, json!({"agent": "far"})).await;
            (status == StatusCode::OK).then_some(())
        })
        .await;
    }
    cluster
}

/// What a route of workers answers.
async fn call(cluster: &Cluster, i: usize, route: &str, token: &str, body: Value) -> (StatusCode, Value) {
    let http = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
    let mut asked = http.post(format!("{}/v1/worker/{route}", cluster.url(i))).bearer_auth(token);
    if !body.is_null() {
        asked = asked.json(&body);
    }
    let answer = asked.send().await.unwrap();
    let status = answer.status();
    (status, serde_json::from_str(&answer.text().await.unwrap()).unwrap_or(Value::Null))
}

/// A connection to replica `i`.
async fn connect(cluster: &Cluster, i: usize) -> TcpStream {
    let url = cluster.url(i);
    TcpStream::connect(url.strip_prefix("http://").unwrap()).await.unwrap()
}

/// Sends the head of a request whose body does not follow.
async fn announce(cluster: &Cluster, method: &str, path: &str, token: Option<&str>) -> TcpStream {
    let mut stream = connect(cluster, 0).await;
    let length = if token == Some(CLIENT) { ANNOUNCED_BY_CLIENT } else { ANNOUNCED };
    let token = token.map(|token| format!("authorization: Bearer {token}\r\n")).unwrap_or_default();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\n{token}content-type: application/json\r\n\
         content-length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

/// The status of the answer that comes without any further word.
async fn status(stream: &mut TcpStream) -> u16 {
    let mut answer = Vec::new();
    while !answer.windows(4).any(|end| end == b"\r\n\r\n") {
        let mut piece = [0; 4096];
        let read = timeout(AT_ONCE, stream.read(&mut piece)).await.expect("it waits for the body").unwrap();
        assert!(read > 0, "closed without an answer");
        answer.extend_from_slice(&piece[..read]);
    }
    String::from_utf8(answer).unwrap().split(' ').nth(1).unwrap().parse().unwrap()
}

/// Every route that takes a method of these, its parameters filled in.
async fn routes(cluster: &Cluster, methods: &[&str]) -> Vec<(String, String)> {
    let document = cluster.get(0, "/openapi.json").await;
    let mut routes = Vec::new();
    for (path, operations) in document["paths"].as_object().unwrap() {
        let nobody = "0".repeat(32);
        let id = match path.split('/').nth(2).unwrap_or_default() {
            "conversations" => format!("conv_{nobody}"),
            "workers" => format!("wrk_{nobody}"),
            _ => format!("turn_{nobody}"),
        };
        let asked = path.replace("{id}", &id).replace("{name}", "nobody");
        for method in operations.as_object().unwrap().keys().filter(|it| methods.contains(&it.as_str())) {
            routes.push((method.to_uppercase(), asked.clone()));
        }
    }
    assert!(routes.len() > 5, "{routes:?}");
    routes
}

/// A replica on loopback whose client routes are open, and whose operators have no token at all.
async fn open() -> Cluster {
    let env = [("LASTWORD_DEV", "0"), ("LASTWORD_OPERATOR_TOKENS", "")];
    let env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    Cluster::with(Plan { replicas: 1, env, ..Plan::default() }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn open_routes_answer_neither_pages_of_other_sites_nor_what_a_proxy_passes_on() {
    let cluster = open().await;
    let http = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
    // A request that needs no preflight: any page may have a browser send it.
    let sent_by = async |headers: &[(&'static str, &str)]| {
        let mut asked = http.post(format!("{}/v1/conversations", cluster.url(0)));
        asked = asked.header("content-type", "text/plain").body(r#"{"agent": "nobody"}"#);
        for (name, value) in headers {
            asked = asked.header(*name, *value);
        }
        asked.send().await.unwrap().status().as_u16()
    };
    let local = ("origin", "http://localhost:3000");
    assert_eq!((sent_by(&[]).await, sent_by(&[local]).await), (415, 415), "these are let in, and read");
    for header in [
        ("host", "rebound.example"),
        ("origin", "http://evil.example"),
        ("origin", "null"),
        ("sec-fetch-site", "cross-site"),
        ("x-forwarded-for", "203.0.113.9"),
        ("forwarded", "for=203.0.113.9"),
        ("via", "1.1 proxy"),
    ] {
        assert_eq!(sent_by(&[header]).await, 403, "{header:?}");
    }
    for (path, status) in [("/v1/turns", 403), ("/metrics", 403), ("/", 403), ("/livez", 200)] {
        let asked = http.get(format!("{}{path}", cluster.url(0))).header("host", "rebound.example");
        assert_eq!(asked.send().await.unwrap().status(), status, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn operator_tokens_alone_are_refused_at_the_start() {
    let cluster = open().await;
    let said = refusal(&cluster, &[("LASTWORD_OPERATOR_TOKENS", "operator-token-of-a-test")]).await;
    assert!(said.contains("client_tokens is empty beside operator_tokens"), "{said}");
    assert!(said.contains("--insecure"), "it names the remedy: {said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn short_tokens_are_refused_beyond_loopback() {
    let cluster = open().await;
    for (variable, key) in [
        ("LASTWORD_CLIENT_TOKENS", "client_tokens"),
        ("LASTWORD_OPERATOR_TOKENS", "operator_tokens"),
        ("LASTWORD_WORKER_TOKENS", "worker_tokens"),
    ] {
        let long = ["LASTWORD_CLIENT_TOKENS", "LASTWORD_OPERATOR_TOKENS"].map(|name| (name, CLIENT));
        let env = [long[0], long[1], ("LASTWORD_LISTEN", "0.0.0.0:0"), (variable, "sesame-of-x")];
        let said = refusal(&cluster, &env).await;
        assert!(said.contains(&format!("{key} has a token of fewer than 16 characters")), "{said}");
        assert!(!said.contains("sesame"), "it is shown: {said}");
    }
}

/// What `serve` says that does not start as it is told.
async fn refusal(cluster: &Cluster, env: &[(&str, &str)]) -> String {
    let mut serve = cluster.command("serve");
    serve.env("LASTWORD_LISTEN", "127.0.0.1:0").envs(env.iter().copied());
    let serve = tokio::process::Command::from(serve).kill_on_drop(true).output();
    let ended = timeout(AT_ONCE, serve).await.expect("it serves").unwrap();
    assert!(!ended.status.success());
    String::from_utf8(ended.stderr).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_body_is_read_before_the_token_is_known() {
    let cluster = closed(1).await;
    let mut last = token::mint(Purpose::Worker);
    last.truncate(52);
    let tokens = [
        None,
        Some("x"),
        Some(last.as_str()),
        Some(&token::mint(Purpose::Worker)),
        Some(&token::mint(Purpose::Turn)),
        Some(&token::digits(&[7; 32])),
    ];
    let asked = routes(&cluster, &["post", "put", "patch", "delete"]).await;
    let asked = asked.iter().map(async |(method, path)| {
        let path = if path.ends_with("/messages") { format!("{path}?epoch=1&n=1") } else { path.clone() };
        let refused = tokens.map(async |token| {
            let mut stream = announce(&cluster, method, &path, token).await;
            let status = status(&mut stream).await;
            // Made-up ones in such a number are guesses.
            let is_refused = status == 401 || (token.is_some() && status == 429);
            assert!(is_refused, "{status}: {method} {path} with {token:?}");
        });
        futures_util::future::join_all(refused).await;
        // Whoever has one is waited for.
        let mut stream = announce(&cluster, method, &path, Some(CLIENT)).await;
        let is_client = ["/v1/turns", "/v1/conversations"].iter().any(|route| path.starts_with(route));
        if is_client && method != "DELETE" {
            let early = timeout(Duration::from_millis(50), stream.read(&mut [0; 1])).await;
            assert!(early.is_err(), "{method} {path}: {early:?}");
        } else {
            assert!([401, 403, 429].contains(&status(&mut stream).await), "{method} {path}");
        }
    });
    futures_util::future::join_all(asked).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_made_up_token_ends_nobodys_turn() {
    let cluster = closed(1).await;
    cluster.demo_agent("demo", json!({})).await;
    let turn = cluster.post(0, "demo", "/slow 50").await;
    cluster.until(0, &turn, "delta", PATIENCE).await;

    // Whoever knows its id, and makes the rest up.
    for token in ["x", WORKERS, CLIENT, &token::mint(Purpose::Turn), &token::digits(&[7; 32])] {
        let (status, answer) =
            call(&cluster, 0, &format!("turns/{}/messages?epoch=1&n=1", turn.id), token, Value::Null).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{token}: {answer}");
    }
    // A worker that is let in, and names what it was never offered.
    let (status, worker) = call(&cluster, 0, "register", WORKERS, json!({"agent": "far"})).await;
    assert_eq!(status, StatusCode::OK, "{worker}");
    let worker = worker["worker_id"].clone();
    let named = json!([{"turn_id": turn.id, "epoch": 1}]);
    let (status, beat) =
        call(&cluster, 0, "beat", WORKERS, json!({"worker_id": worker, "turns": named})).await;
    assert_eq!((status, &beat["over"][0]["code"]), (StatusCode::OK, &json!("epoch_stale")), "{beat}");

    let events = cluster.watch(0, &turn).await;
    assert_eq!(events.last().unwrap().kind, "completed", "{:?}", events.last());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_made_up_tokens_keeps_no_worker_out() {
    let cluster = closed(2).await;
    let http = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
    let flood = async {
        let attacks = (0..40).map(async |n| {
            for _ in 0..10 {
                let purpose = if n % 2 == 0 { Purpose::Worker } else { Purpose::Turn };
                let messages = format!("turns/turn_{:032x}/messages?epoch=1&n=1", rand::random::<u128>());
                let (route, body) = match purpose {
                    Purpose::Worker => ("register", json!({"agent": "far"}).to_string()),
                    Purpose::Turn => (messages.as_str(), String::new()),
                };
                let asked = http.post(format!("{}/v1/worker/{route}", cluster.url(0)));
                let asked =
                    asked.bearer_auth(token::mint(purpose)).header("content-type", "application/json");
                let status = asked.body(body).send().await.unwrap().status().as_u16();
                assert!([401, 429, 503].contains(&status), "{status}");
            }
        });
        futures_util::future::join_all(attacks).await;
    };
    let honest = async {
        for _ in 0..5 {
            // Made at this moment, by whoever has the database: no replica has heard of it.
            let token = grant(&cluster, "far").await;
            let began = Instant::now();
            let (status, answer) = call(&cluster, 0, "register", &token, json!({"agent": "far"})).await;
            assert_eq!(status, StatusCode::OK, "{answer}");
            assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
        }
    };
    tokio::join!(flood, honest);
}

/// A token as a replica mints it.
async fn grant(cluster: &Cluster, agent: &str) -> String {
    use sqlx::Connection as _;
    let url = cluster.postgres().url();
    let mut conn = sqlx::PgConnection::connect(&url).await.unwrap();
    let token = token::mint(Purpose::Worker);
    sqlx::query("insert into worker_tokens (hash, agent) values (sha256($1), $2)")
        .bind(token.as_bytes())
        .bind(agent)
        .execute(&mut conn)
        .await
        .unwrap();
    token
}

/// What `/metrics` says of a name and its labels.
async fn metric(cluster: &Cluster, name: &str) -> f64 {
    let http = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
    let page = http.get(format!("{}/metrics", cluster.url(0))).send().await.unwrap().text().await.unwrap();
    let line = page.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("0");
    line.trim().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn guessing_is_slow_and_noted_and_a_good_token_is_never_slowed() {
    let cluster = closed(1).await;
    let http = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
    let ask = async |token: &str| {
        let began = Instant::now();
        let asked = http.get(format!("{}/v1/turns", cluster.url(0))).bearer_auth(token);
        let answer = asked.send().await.unwrap();
        let after = answer.headers().get("retry-after").is_some();
        (answer.status().as_u16(), after, began.elapsed())
    };
    // One after the other: each takes longer than the one before.
    let mut slowest = Duration::ZERO;
    for n in 0..15 {
        let (status, _, took) = ask(&format!("guess-{n}")).await;
        assert_eq!(status, 401);
        slowest = slowest.max(took);
    }
    assert!(slowest >= Duration::from_millis(800), "{slowest:?}");
    // Many side by side: some are not even kept waiting.
    let guesses = (0..40).map(async |n| ask(&format!("another-{n}")).await);
    let good = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        ask(CLIENT).await
    };
    let (guesses, (status, _, took)) = tokio::join!(futures_util::future::join_all(guesses), good);
    assert!(status == 200 && took < Duration::from_secs(2), "{status} after {took:?}");
    assert!(
        guesses.iter().all(|&(status, after, _)| status == 401 || (status == 429 && after)),
        "{guesses:?}"
    );
    assert!(guesses.iter().any(|&(status, ..)| status == 429), "{guesses:?}");
    assert!(metric(&cluster, "lastword_auth_failures_total").await >= 55.0);
    // The line comes with the minute, or with the drain.
    cluster.terminate(0);
    assert!(cluster.wait_exit(0).await.success());
    let log = cluster.log(0);
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("unknown tokens")).collect();
    assert!(
        matches!(lines[..], [line] if line.contains("failures=55") && line.contains("127.0.0.1")),
        "{lines:?}"
    );
    assert!(!log.contains("another-"), "a token is in the log");
}

/// A body that is half sent, and stands still there.
async fn half_sent(cluster: &Cluster, bytes: usize) -> TcpStream {
    let mut stream = announce(cluster, "POST", "/v1/turns", Some(CLIENT)).await;
    // What the replica does not read any more stands in nobody's way.
    let _ = timeout(Duration::from_secs(2), stream.write_all(&vec![b' '; bytes])).await;
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn half_sent_bodies_are_bounded_and_keep_nobody_waiting() {
    let cluster = Cluster::with(Plan {
        replicas: 1,
        env: [("LASTWORD_DEV", "0"), ("LASTWORD_CLIENT_TOKENS", CLIENT), ("LASTWORD_BODIES_MAX", "4MiB")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec(),
        ..Plan::default()
    })
    .await;
    cluster.demo_agent("demo", json!({})).await;
    let mut attack = futures_util::future::join_all((0..40).map(|_| half_sent(&cluster, 700 * 1024))).await;
    let max = metric(&cluster, r#"lastword_bound_max{bound="body_bytes"}"#).await;
    assert_eq!(max, 4.0 * 1024.0 * 1024.0);
    let used = metric(&cluster, r#"lastword_bound_used{bound="body_bytes"}"#).await;
    assert!(used <= max, "{used} of {max}");
    // Of forty bodies four have room. What is small is served beside them; what is large is, or is told to
    // come back.
    let turn = cluster.post(0, "demo", "hello").await;
    assert_eq!(cluster.watch(0, &turn).await.last().unwrap().kind, "completed");
    let large = json!({"agent": "demo", "input": "x".repeat(900 * 1024)});
    let (at_first, answer) = cluster.ask(0, reqwest::Method::POST, "/v1/turns", Some(large.clone())).await;
    let is_refused = at_first == StatusCode::SERVICE_UNAVAILABLE
        && answer["code"] == "bodies_full"
        && answer["retry_after_s"].as_u64().unwrap() > 0;
    assert!(at_first == StatusCode::ACCEPTED || is_refused, "{at_first}: {answer}");
    // Those that stand still are given up, each after ten seconds, and then there is room.
    let mut answers = Vec::new();
    for stream in &mut attack {
        answers.push(status(stream).await);
    }
    let had_no_room = answers.iter().filter(|&&status| status == 503).count();
    let stood_still = answers.iter().filter(|&&status| status == 408).count();
    assert!(had_no_room >= 30 && had_no_room + stood_still == 40, "{answers:?}");
    let (status, answer) = cluster.ask(0, reqwest::Method::POST, "/v1/turns", Some(large)).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_stands_in_no_log() {
    let env = [("LASTWORD_DEV", "0"), ("LASTWORD_CLIENT_TOKENS", CLIENT), ("LASTWORD_LOG", "trace")];
    let env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let cluster = Cluster::with(Plan { replicas: 1, env, ..Plan::default() }).await;
    cluster.demo_agent("demo", json!({})).await;
    let turn = cluster.post(0, "demo", "hello").await;
    let http = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
    let path = format!("{}/v1/turns/{}", cluster.url(0), turn.id);
    let made = http.post(format!("{path}/ticket")).bearer_auth(CLIENT).send().await.unwrap();
    let made: Value = made.json().await.unwrap();
    let ticket = made["ticket"].as_str().unwrap();
    let asked = http.get(format!("{path}/events?ticket={ticket}")).header("accept", "text/event-stream");
    assert!(asked.send().await.unwrap().text().await.unwrap().contains("event: completed"));
    // Where it opens nothing, and where it is no parameter.
    for (path, status) in [
        (format!("{path}/events?ticket={ticket}x"), 401),
        (format!("{path}?ticket={ticket}"), 401),
        (format!("{}/nowhere?ticket={ticket}", cluster.url(0)), 404),
    ] {
        assert_eq!(http.get(path).send().await.unwrap().status(), status);
    }
    let metrics = http.get(format!("{}/metrics", cluster.url(0))).send().await.unwrap().text().await.unwrap();
    let log = cluster.log(0);
    assert!(log.contains("DEBUG") && log.contains(&turn.id), "it logs all that there is");
    let told = &ticket[12..];
    assert!(!log.contains(told) && !metrics.contains(told), "a ticket is told");
}
