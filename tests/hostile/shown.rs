//! Hostile texts: text of a worker or a client never becomes a line, an event or an order of its own.
//!
//! The readers here are Python's: `str.splitlines`, on which HTTP libraries build their readers of events, treats ten
//! characters as a line end.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use serde_json::{Value, json};

use crate::support::{Cluster, OPERATOR, PATIENCE, Plan, eventually, program};

/// What `str.splitlines` splits at, and what a terminal obeys.
const COMMANDS: &str = "\n\r\u{b}\u{c}\u{1c}\u{1d}\u{1e}\u{85}\u{2028}\u{2029}\
    \u{1b}\u{7}\u{8}\u{7f}\u{80}\u{90}\u{9b}\u{9d}\u{9f}\u{202a}\u{202d}\u{202e}\u{2066}\u{2069}";

/// Says the same hostile text in every way, and how many lines of it a reader of lines sees in what it is told.
const WORKER: &str = r#"
import json, sys
def say(kind, **fields):
    line = json.dumps({'type': kind, **fields}, ensure_ascii=False) + '\n'
    sys.stdout.buffer.write(line.encode())
    sys.stdout.buffer.flush()
say('ready')
while line := sys.stdin.buffer.readline():
    line = line.decode()
    told = json.loads(line)
    if told['type'] == 'shutdown': break
    if told['type'] != 'turn': continue
    text = told['input']['text']
    print('stderr of a worker:', text, file=sys.stderr, flush=True)
    for c in text:
        say('delta', text='a' + c + 'event: completed' + c + 'data: {}' + c + c + 'b')
    say('status', state=text, waiting_on=text)
    say('custom', name=text, data={text: [text]})
    say('content', text=text)
    say('told', lines=len(line.splitlines()))
    say('complete', text=text, stop_reason=text)
"#;

/// Reads an event stream as libraries that are built on `splitlines` do: a list of `[event, data]`.
const READER: &str = r"
import json, sys
sys.stdin.reconfigure(encoding='utf-8', newline='')
events, event, data = [], None, []
for line in sys.stdin.read().splitlines():
    if line == '':
        if event: events.append([event, '\n'.join(data)])
        event, data = None, []
    elif line.startswith('event: '): event = line[7:]
    elif line.startswith('data: '): data.append(line[6:])
print(json.dumps(events))
";

/// Reads lines of JSON: a list of what stands on each.
const LINES: &str = r"
import json, sys
sys.stdin.reconfigure(encoding='utf-8', newline='')
print(json.dumps([json.loads(line) for line in sys.stdin.read().splitlines()]))
";

/// What a Python program makes of a text on its stdin.
fn python(script: &str, stdin: &str) -> Value {
    let mut child = Command::new("python3")
        .args(["-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
    let done = child.wait_with_output().unwrap();
    assert!(done.status.success(), "{}\nof {stdin:?}", String::from_utf8_lossy(&done.stderr));
    serde_json::from_slice(&done.stdout).unwrap()
}

/// A text that is obeyed by nobody who reads it raw.
fn assert_tame(what: &str, text: &str) {
    let is_command = |c: char| c != '\n' && COMMANDS.contains(c);
    assert!(!text.contains(is_command), "{what}: {text:?}");
}

/// An agent that says hostile texts, a turn of it that has ended, and the replica's URL.
async fn hostile_turn(cluster: &Cluster) -> (Value, String) {
    let spec = json!({"runtime": "process", "command": ["python3", "-c", WORKER]});
    cluster.put_agent("hostile", spec).await;
    let turn = cluster.post(0, "hostile", COMMANDS).await;
    let events = cluster.watch_all(&turn).await;
    assert_eq!(events.last().unwrap().kind, "completed", "{:?}", events.last());
    (turn.json, cluster.url(0))
}

/// The body of an answer, also of a refusal.
async fn text_whatever(url: &str) -> String {
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    http.get(url).bearer_auth(OPERATOR).timeout(PATIENCE).send().await.unwrap().text().await.unwrap()
}

async fn text_of(url: &str, accept: &str) -> String {
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let asked = http.get(url).header("accept", accept).bearer_auth(OPERATOR).timeout(PATIENCE);
    let answer = asked.send().await.unwrap();
    assert!(answer.status().is_success(), "{url}: {}", answer.status());
    answer.text().await.unwrap()
}

/// The whole stream of a conversation up to its first last word; it has no end.
async fn thread_of(url: &str) -> String {
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let asked = http.get(url).header("accept", "text/event-stream").bearer_auth(OPERATOR).timeout(PATIENCE);
    let mut answer = asked.send().await.unwrap();
    let mut bytes = Vec::new();
    while !String::from_utf8_lossy(&bytes).contains("\nevent: completed\n") || !bytes.ends_with(b"\n\n") {
        bytes.extend(answer.chunk().await.unwrap().expect("a conversation's stream has no end"));
    }
    String::from_utf8(bytes).unwrap()
}

/// Fails unless these are the events of the hostile turn, each one whole.
fn assert_told(read: &Value) {
    let objects: Vec<Value> = match read[0].is_array() {
        // From a stream: the frame's name is the kind of the event in it.
        true => {
            let frames = read.as_array().unwrap().iter();
            let parsed = frames.map(|frame| {
                let object: Value = serde_json::from_str(frame[1].as_str().unwrap()).unwrap();
                assert_eq!(frame[0], object["kind"], "{frame}");
                object
            });
            parsed.collect()
        }
        false => read.as_array().unwrap().clone(),
    };
    for (n, object) in objects.iter().enumerate() {
        assert_eq!(object["seq"], n, "{object}");
    }
    let of = |kind: &str| objects.iter().filter(|object| object["kind"] == kind).collect::<Vec<_>>();
    assert_eq!(of("completed").len(), 1, "forged, or lost");
    assert_eq!(of("completed")[0]["text"], COMMANDS);
    let deltas: String = of("delta").iter().map(|delta| delta["text"].as_str().unwrap()).collect();
    let wanted = COMMANDS.chars().map(|c| format!("a{c}event: completed{c}data: {{}}{c}{c}b"));
    assert_eq!(deltas, wanted.collect::<String>());
    assert_eq!(of("content")[0]["text"], COMMANDS);
    assert_eq!(of("status")[0]["state"], COMMANDS);
    let customs = of("custom");
    assert_eq!(customs[0]["name"], COMMANDS);
    assert_eq!(customs[0]["data"], json!({ COMMANDS: [COMMANDS] }));
    assert_eq!(customs[1]["data"]["lines"], 1, "the turn was more than one line to its worker");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_text_becomes_an_event_a_line_or_an_order_on_any_way() {
    let log = [("LASTWORD_LOG", "lastword=debug"), ("LASTWORD_LOG_FORMAT", "json")];
    let env = log.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let cluster = Cluster::with(Plan { replicas: 1, env, ..Plan::default() }).await;
    let (turn, url) = hostile_turn(&cluster).await;
    let (id, conversation) = (turn["id"].as_str().unwrap(), turn["conversation_id"].as_str().unwrap());

    for (what, stream) in [
        ("a turn's stream", text_of(&format!("{url}/v1/turns/{id}/events"), "text/event-stream").await),
        ("a conversation's", thread_of(&format!("{url}/v1/conversations/{conversation}/events")).await),
    ] {
        assert_tame(what, &stream);
        assert_told(&python(READER, &stream));
    }
    for path in [
        format!("/v1/turns/{id}/events?limit=1000"),
        format!("/v1/conversations/{conversation}/events?limit=1000"),
        format!("/v1/turns/{id}"),
        "/v1/turns".to_owned(),
    ] {
        let body = text_of(&format!("{url}{path}"), "application/json").await;
        assert_tame(&path, &body);
        let lines = python(LINES, &body);
        assert_eq!(lines.as_array().map(Vec::len), Some(1), "{path}");
        if path.contains("/events") {
            assert_told(&lines[0]["events"]);
        }
    }
    let refused = text_whatever(&format!("{url}/v1/turns?%E2%80%A8%1B%C2%9B=1")).await;
    assert!(refused.contains("invalid_request"), "{refused}");
    assert_tame("a refusal", &refused);

    for args in [&["turns", "tail", id, "--output", "json"][..], &["turns", "show", id, "--output", "json"]] {
        let said = client(&cluster, args);
        assert_tame(args[1], &said);
        if args[1] == "tail" {
            assert_told(&python(LINES, &said));
        } else {
            assert_eq!(serde_json::from_str::<Value>(&said).unwrap()["id"], id);
        }
    }

    let logged = eventually("the worker's stderr is logged", async || {
        Some(cluster.log(0)).filter(|log| log.contains("stderr of a worker") && log.contains("2029"))
    });
    let logged = logged.await;
    let whole = logged.rsplit_once('\n').map_or("", |(whole, _)| whole);
    assert_tame("the log", whole);
    python(LINES, whole);
}

/// What a command of a client says on stdout.
fn client(cluster: &Cluster, args: &[&str]) -> String {
    let mut command = cluster.command(args[0]);
    command.args(&args[1..]).env("LASTWORD_URL", cluster.url(0)).env("LASTWORD_TOKEN", OPERATOR);
    let done = command.output().unwrap();
    assert!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

/// Runs its arguments on a terminal of their own, which a pipe is not.
const ON_A_TERMINAL: &str =
    "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))";

/// What a client's command shows on a terminal, colours apart.
fn on_a_terminal(cluster: &Cluster, args: &[&str]) -> String {
    let lastword = cluster.command(args[0]);
    let mut command = Command::new("python3");
    command.args(["-c", ON_A_TERMINAL]).arg(lastword.get_program()).args(args);
    command.current_dir(cluster.data_dir().parent().unwrap()).env("NO_COLOR", "1").stdin(Stdio::null());
    command.env("LASTWORD_URL", cluster.url(0)).env("LASTWORD_TOKEN", OPERATOR);
    let done = command.output().unwrap();
    String::from_utf8(done.stdout).unwrap().replace("\r\n", "\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_text_steers_a_terminal() {
    let env = vec![("LASTWORD_LOG".to_owned(), "lastword=debug".to_owned())];
    let cluster = Cluster::with(Plan { replicas: 1, env, ..Plan::default() }).await;
    let (turn, _) = hostile_turn(&cluster).await;
    let id = turn["id"].as_str().unwrap();
    let failing = json!({"runtime": "process", "command": ["sh", "-c", format!("printf '%s' '{COMMANDS}' >&2; exit 3")]});
    cluster.put_agent("failing", failing).await;
    let failed = cluster.post(0, "failing", "hello").await;
    cluster.watch_all(&failed).await;

    for args in [
        &["turns", "tail", id][..],
        &["turns", "show", id],
        &["turns", "show", id, "--output", "json"],
        &["turns", "list"],
        &["turns", "tail", &failed.id],
        &["turns", "show", &failed.id],
        &["agents", "show", "failing"],
        &["workers", "list"],
        &["turns", "show", "no\u{1b}[2J\u{9b}such\u{202e}turn"],
    ] {
        let shown = on_a_terminal(&cluster, args);
        assert!(!shown.is_empty(), "{args:?} showed nothing");
        assert_tame(&args.join(" "), &shown);
    }
    // The answer, piped, is what the agent said.
    let said = client(&cluster, &["turns", "tail", id]);
    assert!(said.contains(COMMANDS), "{said:?}");
    // A row of a table is one line, whatever stands in its cells.
    let shown = client(&cluster, &["turns", "show", id]);
    assert!(shown.lines().all(|line| line.starts_with(|c: char| c.is_ascii_lowercase())), "{shown:?}");

    let log = eventually("the worker's stderr is logged", async || {
        Some(cluster.log(0)).filter(|log| log.contains("stderr of a worker") && log.contains("\\u{2029}"))
    });
    assert_tame("the log", &log.await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_sees_of_an_agent_what_bounds_its_turns() {
    const CLIENT: &str = "client-token-of-a-test";
    let env = vec![("LASTWORD_CLIENT_TOKENS".to_owned(), CLIENT.to_owned())];
    let cluster = Cluster::with(Plan { replicas: 1, env, ..Plan::default() }).await;
    let spec = json!({
        "runtime": "process", "command": ["sh", "-c", "s3cret-command"], "env": {"KEY": "s3cret-env"},
        "idle_ttl": "1m", "timeouts": {"progress": "7s"},
        "guards": [
            {"kind": "max_chars", "limit": 20, "notice": "Please be brief."},
            {"kind": "deny_regex", "pattern": "s3cret-pattern", "notice": "Not that."},
        ],
    });
    cluster.put_agent("guarded", spec.clone()).await;
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let view = async |token: &str, path: &str| -> String {
        let asked = http.get(format!("{}{path}", cluster.url(0))).bearer_auth(token).timeout(PATIENCE);
        asked.send().await.unwrap().error_for_status().unwrap().text().await.unwrap()
    };
    for path in ["/v1/agents/guarded", "/v1/agents"] {
        let shown = view(CLIENT, path).await;
        assert!(!shown.contains("s3cret") && !shown.contains("command") && !shown.contains("env"), "{shown}");
        let told = ["process", "conversation", "7s", "1m", "Please be brief.", "deny_regex", "Not that."];
        assert!(told.iter().all(|part| shown.contains(part)), "{shown}");
        for secret in ["s3cret-command", "s3cret-env", "s3cret-pattern"] {
            assert!(view(OPERATOR, path).await.contains(secret), "an operator does not see {secret}");
        }
    }
    // What an operator reads can be put again, and is the same.
    let read: Value = serde_json::from_str(&view(OPERATOR, "/v1/agents/guarded").await).unwrap();
    cluster.put_agent("guarded", read["spec"].clone()).await;
    let again: Value = serde_json::from_str(&view(OPERATOR, "/v1/agents/guarded").await).unwrap();
    assert_eq!((&again["revision"], &again["spec"]), (&read["revision"], &read["spec"]));
}

#[test]
fn secrets_are_neither_arguments_nor_shown() {
    let run = |args: &[&str], env: &[(&str, &str)]| {
        let mut command = Command::new(program());
        for (name, _) in std::env::vars_os() {
            let is_ours = name.to_string_lossy().starts_with("LASTWORD_") || name == "DATABASE_URL";
            if is_ours {
                command.env_remove(name);
            }
        }
        let done = command.args(args).envs(env.iter().copied()).stdin(Stdio::null()).output().unwrap();
        let said = [done.stdout, done.stderr].concat();
        (done.status.code(), String::from_utf8(said).unwrap())
    };
    for args in [
        &["turns", "list", "--token", "s3cret"][..],
        &["bench", "--url", "http://one", "--agent", "a", "--token=s3cret"],
        &["serve", "--database-url", "postgres://me:s3cret@127.0.0.1:1/x"],
        &["doctor", "--database-url=postgres://me:s3cret@127.0.0.1:1/x"],
        &["chat", "--url", "http://me:s3cret@127.0.0.1:1", "hello"],
    ] {
        let (code, said) = run(args, &[]);
        assert_eq!(code, Some(2), "{args:?}: {said}");
        assert!(said.contains("every user of this machine") && !said.contains("s3cret"), "{said}");
    }
    let token = "0123456789abcdef0123456789abcdefs3cret";
    for env in [
        &[("DATABASE_URL", "postgres://me:s3cret@db/app"), ("LASTWORD_LOG", "password=s3cret")][..],
        &[("DATABASE_URL", "host=db password=s3cret"), ("LASTWORD_DATA_DIR", token)],
        &[("DATABASE_URL", "postgres://db/app"), ("LASTWORD_DRAIN", token)],
        &[("DATABASE_URL", "postgres://db/app"), ("LASTWORD_LISTEN", "postgres://me:s3cret@db/app")],
        &[("DATABASE_URL", "postgres://db/app"), ("LASTWORD_CLIENT_TOKENS_FILE", token)],
    ] {
        let (_, said) = run(&["config", "print"], env);
        assert!(!said.contains("s3cret"), "{env:?}: {said}");
        assert!(said.contains("***") || said.contains("LASTWORD_LISTEN: "), "{env:?}: {said}");
    }
    // Nobody answers there; the error says where, without the password.
    let (_, said) = run(&["turns", "list"], &[("LASTWORD_URL", "http://me:s3cret@127.0.0.1:1")]);
    assert!(said.contains("127.0.0.1:1") && !said.contains("s3cret"), "{said}");
}
