//! `lastword chat` and the other client commands against a gateway that cuts, repeats and drops connections.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics")]

mod scripted;

use std::{
    io::{BufRead, Read, Write},
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use scripted::{PATIENCE, Play, Scripted, Stream, TURN, finish, frame, lastword, outcome, run};
use serde_json::{Value, json};

fn play(play: impl Fn(&mut Stream) + Send + Sync + 'static) -> Play {
    Box::new(move |stream, _| play(stream))
}

/// `accepted`, `started`, and one piece: the log up to `seq` 2.
fn begin(stream: &mut Stream) -> &mut Stream {
    stream
        .open()
        .event(0, "accepted", json!({"conversation_id": "conv_1", "agent": "demo", "ordinal": 1}))
        .event(1, "started", json!({"attempt": 1, "worker_id": "wrk_1"}))
        .event(2, "delta", json!({"text": "one "}))
}

/// The rest of the log, from `seq` 3 on.
fn go_on(stream: &mut Stream) {
    stream
        .raw(":\n\n")
        .event(3, "delta", json!({"text": "two "}))
        .event(4, "delta", json!({"text": "three"}))
        .event(5, "completed", json!({"text": "one two three", "stop_reason": "end"}))
        .end();
}

fn the_rest() -> Scripted {
    Scripted::start(vec![play(|stream| go_on(stream.open()))])
}

#[test]
fn a_body_cut_in_the_middle_of_an_event_goes_on_at_the_next_url() {
    let dying = Scripted::start(vec![play(|stream| {
        let whole = frame(3, "delta", json!({"text": "two "}));
        begin(stream).raw(&whole[..whole.len() - 1]);
    })]);
    // The survivor repeats what was heard: the client must see by itself that it was.
    let survivor = Scripted::start(vec![play(|stream| go_on(begin(stream)))]);
    let (code, out, err) = run(&[&dying, &survivor], &["chat", "hi"]);
    assert_eq!((code, out.as_str()), (0, "one two three\n"), "{err}");
    let resumed = &survivor.seen()[0];
    assert_eq!(resumed.line, format!("GET /v1/turns/{TURN}/events"));
    assert_eq!(resumed.header("last-event-id"), "2");
    assert_eq!(dying.seen().len(), 1);
}

#[test]
fn a_clean_end_without_a_last_word_is_no_success() {
    let leaving = Scripted::start(vec![play(|stream| begin(stream).end())]);
    let survivor = the_rest();
    let (code, out, err) = run(&[&leaving, &survivor], &["chat", "hi"]);
    assert_eq!((code, out.as_str()), (0, "one two three\n"), "{err}");
    assert_eq!(survivor.seen()[0].header("last-event-id"), "2");
}

#[test]
fn a_reconnect_is_heeded_and_its_body_left() {
    let leaving = Scripted::start(vec![play(|stream| {
        begin(stream).raw("event: reconnect\ndata: {}\n\n").keep_alive();
    })]);
    let survivor = the_rest();
    let (code, out, err) = run(&[&leaving, &survivor], &["chat", "hi", "--idle", "20s"]);
    assert_eq!((code, out.as_str()), (0, "one two three\n"), "{err}");
    assert!(err.contains("[the replica closes its streams; going on]"), "{err}");
}

#[test]
fn an_event_that_would_leave_a_gap_is_fetched_again() {
    let gappy = Scripted::start(vec![play(|stream| {
        begin(stream).event(4, "delta", json!({"text": "three"})).keep_alive();
    })]);
    let sound = the_rest();
    let (code, out, err) = run(&[&gappy, &sound], &["chat", "hi"]);
    assert_eq!((code, out.as_str()), (0, "one two three\n"), "{err}");
}

#[test]
fn before_the_first_event_the_same_request_is_repeated_under_the_same_key() {
    let silent = Scripted::start(vec![play(|_| {})]);
    let cut = Scripted::start(vec![play(|stream| {
        stream.open();
    })]);
    let busy = Scripted::start(vec![play(|stream| stream.json("503 Service Unavailable", &json!({})))]);
    let well = Scripted::start(vec![play(|stream| go_on(begin(stream)))]);
    let servers = [&silent, &cut, &busy, &well];
    let mut chat = lastword(&servers, &["chat", "--agent", "a", "hi"]);
    let (code, out, err) = outcome(&chat.env("LASTWORD_TOKEN", "mine").output().unwrap());
    assert_eq!((code, out.as_str()), (0, "one two three\n"), "{err}");
    let first = &silent.seen()[0];
    assert!(first.header("idempotency-key").len() > 20);
    for server in servers {
        let request = &server.seen()[0];
        assert_eq!(request.line, "POST /v1/turns");
        assert_eq!(request.header("idempotency-key"), first.header("idempotency-key"));
        assert_eq!(request.header("authorization"), "Bearer mine");
        assert_eq!(request.header("accept"), "text/event-stream");
        assert_eq!(request.body, json!({"agent": "a", "input": "hi", "stream": true}));
    }
}

#[test]
fn keep_alives_never_refill_the_idle_budget() {
    let quiet = Scripted::start(vec![play(|stream| begin(stream).keep_alive())]);
    let begun = Instant::now();
    let (code, out, err) = run(&[&quiet], &["chat", "hi", "--idle", "400ms"]);
    assert_eq!((code, out.as_str()), (3, "one "), "{err}");
    assert!(begun.elapsed() < PATIENCE / 2);
    assert!(err.contains(&format!("lastword turns tail {TURN} --after 2")), "{err}");
}

#[test]
fn an_announced_budget_stretches_the_idle_budget() {
    let working = Scripted::start(vec![Box::new(|stream, server| {
        let status = json!({"state": "busy", "waiting_on": "tool:x", "budget_s": 20});
        begin(stream).event(3, "status", status);
        // Longer than the idle budget; the second client's coming says when it is over.
        let _ = server.waits_for("POST /v1/go-on");
        stream.event(4, "completed", json!({"text": "one two"})).end();
    })]);
    let child = lastword(&[&working], &["chat", "hi", "--idle", "100ms"]).spawn().unwrap();
    assert!(working.waits_for("POST /v1/turns"));
    let (_never, timer) = std::sync::mpsc::sync_channel::<()>(1);
    let _ = timer.recv_timeout(Duration::from_millis(500));
    poke(&working);
    let (code, out, err) = finish(child);
    assert_eq!((code, out.as_str()), (0, "one two\n"), "{err}");
    assert!(err.contains("[busy, waiting on tool:x]"), "{err}");
}

/// A request that only the script waits for.
fn poke(server: &Scripted) {
    let address = server.url().strip_prefix("http://").unwrap();
    let mut socket = std::net::TcpStream::connect(address).unwrap();
    socket.write_all(b"POST /v1/go-on HTTP/1.1\r\n\r\n").unwrap();
    assert!(server.waits_for("POST /v1/go-on"));
}

#[test]
fn a_failed_turn_says_so_and_leaves_with_1() {
    let error = json!({"code": "worker_exited", "message": "It stopped.", "safe_to_retry": false});
    let server = Scripted::start(vec![play(move |stream| {
        begin(stream).event(3, "failed", json!({"error": error})).end();
    })]);
    let (code, out, err) = run(&[&server], &["chat", "hi"]);
    assert_eq!((code, out.as_str()), (1, "one \n"));
    assert!(err.lines().any(|line| line == "Agent error: It stopped."), "{err}");
}

#[test]
fn what_is_said_goes_to_stdout_and_the_rest_to_stderr() {
    let server = Scripted::start(vec![play(|stream| {
        begin(stream)
            .event(3, "content", json!({"text": "A notice."}))
            .event(4, "ephemeral", json!({"text": "moment"}))
            .event(5, "custom", json!({"name": "sparkle", "data": {"n": 1}}))
            .event(6, "ask", json!({"ask_id": "ask_1", "prompt": "Go on?", "options": ["yes", "no"]}))
            .event(7, "answer", json!({"ask_id": "ask_1", "answer": "yes"}))
            .event(8, "delta", json!({"text": "\u{1b}[2Jtwo\n"}))
            .event(9, "completed", json!({"text": "one \u{1b}[2Jtwo\nand more"}))
            .end();
    })]);
    let (code, out, err) = run(&[&server], &["chat", "hi"]);
    assert_eq!((code, out.as_str()), (0, "one \nA notice.\n\u{1b}[2Jtwo\nand more\n"));
    let asides = "(moment)\n[sparkle] {\"n\":1}\n? Go on? [yes / no]\n[answered: yes]\n";
    assert!(err.ends_with(asides), "{err}");
}

#[test]
fn an_answer_that_comes_only_with_the_last_word_is_printed() {
    let server = Scripted::start(vec![play(|stream| {
        let accepted = json!({"conversation_id": "conv_1"});
        stream.open().event(0, "accepted", accepted).event(1, "completed", json!({"text": "all"})).end();
    })]);
    assert_eq!(run(&[&server], &["chat", "hi"]).1, "all\n");
}

#[test]
fn a_refusal_is_a_usage_error_and_a_lost_log_is_3() {
    let problem = json!({"status": 404, "code": "agent_not_found", "detail": "There is no agent `x`."});
    let server = Scripted::start(vec![play(move |stream| stream.json("404 Not Found", &problem))]);
    let (code, out, err) = run(&[&server], &["chat", "--agent", "x", "hi"]);
    assert_eq!(
        (code, out.as_str(), err.as_str()),
        (2, "", "error: There is no agent `x`. (agent_not_found)\n")
    );
    assert_eq!(run(&[&server], &["agents", "show", "x"]).0, 1);
    let gone = json!({"code": "events_expired", "detail": "Retained no longer."});
    let server = Scripted::start(vec![
        play(|stream| {
            begin(stream);
        }),
        play(move |stream| stream.json("410 Gone", &gone)),
    ]);
    let (code, _, err) = run(&[&server], &["chat", "hi"]);
    assert_eq!(code, 3);
    assert!(err.contains("cannot be resumed: Retained no longer. (events_expired)"), "{err}");
}

#[test]
fn where_nothing_listens_it_leaves_with_3_and_says_where_it_looked() {
    for args in [&["chat", "hi", "--idle", "300ms"][..], &["turns", "list"]] {
        let mut command = lastword(&[], args);
        let output = command.args(["--url", "http://127.0.0.1:9"]).output().unwrap();
        let (code, _, err) = scripted::outcome(&output);
        assert_eq!(code, 3);
        assert!(err.contains("cannot reach the gateway at http://127.0.0.1:9"), "{err}");
    }
    assert_eq!(run(&[], &["chat", "--idle", "soon"]).0, 2);
    assert_eq!(run(&[], &["chat", "hi", "--url", "nonsense"]).0, 2);
    assert_eq!(run(&[], &["chat", "hi", "--data", "/nowhere"]).0, 2);
}

#[test]
fn a_busy_gateway_is_asked_again_when_it_said() {
    let busy = json!({"code": "overloaded", "detail": "Too many turns wait."});
    let server = Scripted::start(vec![
        play(move |stream| stream.json("429 Too Many Requests\r\nretry-after: 1", &busy)),
        play(|stream| go_on(begin(stream))),
    ]);
    let begun = Instant::now();
    let (code, out, err) = run(&[&server], &["chat", "hi"]);
    assert_eq!((code, out.as_str()), (0, "one two three\n"), "{err}");
    assert!(err.starts_with("[Too many turns wait. (overloaded); going on]"), "{err}");
    assert!(begun.elapsed() >= Duration::from_secs(1));
}

#[test]
fn a_stream_that_only_says_when_to_come_back_is_asked_for_again_then() {
    let server = Scripted::start(vec![
        play(|stream| {
            begin(stream);
        }),
        play(|stream| stream.put_off(2)),
        play(|stream| go_on(stream.open())),
    ]);
    let begun = Instant::now();
    let (code, out, err) = run(&[&server], &["chat", "hi"]);
    assert_eq!((code, out.as_str()), (0, "one two three\n"), "{err}");
    assert!(err.contains("[the replica cannot serve this stream just now; going on]"), "{err}");
    assert!(begun.elapsed() >= Duration::from_secs(2));
}

/// Runs its arguments on a terminal of their own, which a pipe is not.
const ON_A_TERMINAL: &str =
    "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))";

#[test]
fn a_question_is_answered_at_the_terminal_and_may_take_its_time() {
    let server = Scripted::start(vec![
        Box::new(|stream, server| {
            let question = json!({"ask_id": "ask_1", "prompt": "Which?", "options": ["red", "blue"]});
            begin(stream).event(3, "delta", json!({"text": "\u{1b}[2J"})).event(4, "ask", question);
            assert!(server.waits_for("/answers"));
            let answer = &server.seen()[1].body["answer"];
            stream.event(5, "answer", json!({"ask_id": "ask_1", "answer": answer}));
            stream
                .event(6, "delta", json!({"text": "done"}))
                .event(7, "completed", json!({"text": ""}))
                .end();
        }),
        play(|stream| stream.json("202 Accepted", &json!({}))),
    ]);
    let mut command = std::process::Command::new("python3");
    let chat = ["-c", ON_A_TERMINAL, env!("CARGO_BIN_EXE_lastword"), "chat", "hi", "--idle", "300ms"];
    command.args(chat).args(["--url", server.url()]).env_remove("NO_COLOR");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut screen = std::io::BufReader::new(child.stdout.take().unwrap());
    let mut shown = String::new();
    while !shown.contains("Which?") {
        assert_ne!(screen.read_line(&mut shown).unwrap(), 0, "{shown}");
    }
    // Longer than the idle budget, which a question stops.
    let (_never, timer) = std::sync::mpsc::sync_channel::<()>(1);
    let _ = timer.recv_timeout(Duration::from_millis(600));
    child.stdin.as_mut().unwrap().write_all(b"blue\n").unwrap();
    screen.read_to_string(&mut shown).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0), "{shown}");
    assert_eq!(server.seen()[1].body, json!({"ask_id": "ask_1", "answer": "blue"}));
    assert!(shown.contains("? Which? [red / blue]") && shown.contains("[answered: blue]"), "{shown}");
    assert!(!shown.contains("\u{1b}[2J") && shown.contains("done"), "{shown:?}");
}

fn interrupt(child: &Child) {
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
}

#[test]
fn an_interrupt_cancels_the_turn_and_waits_for_its_last_word() {
    let server = Scripted::start(vec![
        Box::new(|stream, server| {
            begin(stream);
            assert!(server.waits_for("/cancel"));
            stream.event(3, "cancelled", json!({"by": "client"})).end();
        }),
        play(|stream| stream.json("202 Accepted", &json!({"status": "running"}))),
    ]);
    let mut child = lastword(&[&server], &["chat", "hi"]).spawn().unwrap();
    wait_for_first_byte(&mut child);
    interrupt(&child);
    let (code, _, err) = finish(child);
    assert_eq!(code, 130, "{err}");
    assert_eq!(server.seen()[1].line, format!("POST /v1/turns/{TURN}/cancel"));
    assert!(err.ends_with("Cancelled by client.\n"), "{err}");
}

#[test]
fn a_second_interrupt_leaves_at_once() {
    let server = Scripted::start(vec![
        play(|stream| begin(stream).keep_alive()),
        play(|stream| stream.json("202 Accepted", &json!({"status": "running"}))),
    ]);
    let mut child = lastword(&[&server], &["chat", "hi"]).spawn().unwrap();
    wait_for_first_byte(&mut child);
    interrupt(&child);
    assert!(server.waits_for("/cancel"));
    interrupt(&child);
    assert_eq!(finish(child).0, 130);
}

/// Waits until the answer has begun: from there on the client knows its turn.
fn wait_for_first_byte(child: &mut Child) {
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 1]).unwrap();
}

#[test]
fn every_line_of_stdin_is_a_turn_of_one_conversation() {
    let server = Scripted::start(vec![play(|stream| go_on(begin(stream)))]);
    let mut child = lastword(&[&server], &["chat"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"first\n\nsecond").unwrap();
    let (code, out, err) = finish(child);
    assert_eq!((code, out.as_str()), (0, "one two three\none two three\n"), "{err}");
    let bodies: Vec<Value> = server.seen().iter().map(|request| request.body.clone()).collect();
    assert_eq!(bodies.len(), 2);
    assert_eq!((&bodies[0]["input"], &bodies[0]["conversation_id"]), (&json!("first"), &Value::Null));
    assert_eq!((&bodies[1]["input"], &bodies[1]["conversation_id"]), (&json!("second"), &json!("conv_1")));
    let keys: Vec<_> = server.seen().iter().map(|r| r.header("idempotency-key").to_owned()).collect();
    assert_ne!(keys[0], keys[1]);
}

#[test]
fn a_tail_at_the_last_word_tells_how_the_turn_ended() {
    let turn = json!({"id": TURN, "status": "failed", "error": {"code": "internal", "message": "Oh."}});
    let server = Scripted::start(vec![
        play(|stream| stream.json("204 No Content", &Value::Null)),
        play(move |stream| stream.json("200 OK", &turn)),
    ]);
    let (code, out, err) = run(&[&server], &["turns", "tail", TURN, "--after", "5"]);
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.starts_with("Agent error: Oh.\n"), "{err}");
    assert_eq!(server.seen()[0].header("last-event-id"), "5");
}

#[test]
fn a_tail_as_json_is_one_event_a_line() {
    let server = Scripted::start(vec![play(|stream| go_on(begin(stream)))]);
    let (code, out, _) = run(&[&server], &["turns", "tail", TURN, "--output", "json"]);
    let seqs: Vec<i64> = out
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["seq"].as_i64().unwrap())
        .collect();
    assert_eq!((code, seqs), (0, vec![0, 1, 2, 3, 4, 5]));
}

#[test]
fn lists_are_tables_for_people_and_json_for_programs() {
    let turns = json!({"items": [{"id": "turn_1", "status": "failed", "agent": "demo", "ordinal": 3,
        "conversation_id": "conv_1", "created_at": "T", "error": {"code": "internal"}}], "next": "abc"});
    let answer = turns.clone();
    let server = Scripted::start(vec![play(move |stream| stream.json("200 OK", &answer))]);
    let (code, out, err) = run(&[&server], &["turns", "list", "--status", "failed", "--agent", "demo"]);
    assert_eq!(code, 0, "{err}");
    assert_eq!(
        out,
        "ID      STATUS  AGENT  N  CONVERSATION  CREATED  ERROR\n\
         turn_1  failed  demo   3  conv_1        T        internal\n"
    );
    assert!(err.contains("--cursor abc"));
    assert_eq!(server.seen()[0].line, "GET /v1/turns?limit=50&agent=demo&status=failed");
    let (_, out, _) = run(&[&server], &["turns", "list", "--output", "json"]);
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap(), turns);
}

#[test]
fn apply_puts_what_the_file_says_and_nothing_when_it_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("agents.toml");
    let spec = "[agents.a]\nruntime = 'process'\ncommand = ['sh']\n[agents.b]\nruntime = 'process'\n";
    let server = Scripted::start(vec![play(|stream| stream.json("200 OK", &json!({"revision": 4})))]);
    std::fs::write(&file, format!("{spec}comand = ['sh']\n")).unwrap();
    let path = file.to_str().unwrap();
    let (code, _, err) = run(&[&server], &["apply", "-f", path]);
    assert_eq!(code, 2);
    assert!(err.contains(path) && err.contains("line 6") && err.contains("`comand`"), "{err}");
    assert_eq!(server.seen().len(), 0);
    std::fs::write(&file, format!("{spec}command = ['sh']\n")).unwrap();
    let (code, _, err) = run(&[&server], &["apply", "-f", path]);
    assert_eq!(code, 0, "{err}");
    assert!(err.contains("a: revision 4\n") && err.contains("b: revision 4\n"), "{err}");
    assert_eq!(server.seen()[1].line, "PUT /v1/agents/b");
    assert_eq!(server.seen()[1].body, json!({"runtime": "process", "command": ["sh"]}));
}
