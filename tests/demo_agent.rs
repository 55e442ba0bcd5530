//! The demo agent and the example workers, as a host sees them: a process and two pipes.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on panics")]

use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::process::ExitStatusExt,
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, sync_channel},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(20);
const TURN: &str = "turn_0190000000007000800000000000000a";

/// A worker under test; killed when the test is over.
struct Worker {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<Vec<u8>>,
}

impl Worker {
    fn start(mut command: Command) -> Self {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = sync_channel(10_000);
        std::thread::spawn(move || {
            loop {
                let mut line = Vec::new();
                if out.read_until(b'\n', &mut line).unwrap_or(0) == 0 || sender.send(line).is_err() {
                    return;
                }
            }
        });
        Worker { stdin: child.stdin.take(), child, lines }
    }

    fn demo() -> Self {
        let mut worker = Worker::start(demo());
        assert_eq!(worker.hear(), json!({"type": "ready"}));
        worker
    }

    fn tell(&mut self, order: &Value) {
        writeln!(self.stdin.as_mut().unwrap(), "{order}").unwrap();
    }

    fn turn(&mut self, text: &str) {
        self.turn_of(TURN, text);
    }

    fn turn_of(&mut self, turn: &str, text: &str) {
        self.tell(&json!({"type": "turn", "turn_id": turn, "conversation_id": "conv_1", "attempt": 1,
            "input": {"text": text}, "deadline": "2026-01-01T00:00:00Z"}));
    }

    fn line(&mut self) -> Vec<u8> {
        self.lines.recv_timeout(PATIENCE).expect("the worker says something in time")
    }

    fn hear(&mut self) -> Value {
        let line = self.line();
        serde_json::from_slice(&line).unwrap_or_else(|_| panic!("{:?}", String::from_utf8_lossy(&line)))
    }

    /// Messages up to and including the one of this type.
    fn hear_until(&mut self, kind: &str) -> Vec<Value> {
        let mut heard = Vec::new();
        loop {
            heard.push(self.hear());
            if heard.last().unwrap()["type"] == kind {
                return heard;
            }
        }
    }

    /// The answer to one message: its deltas, whole, after which it completed.
    fn answer(&mut self, text: &str) -> String {
        self.turn(text);
        let heard = self.hear_until("complete");
        assert!(heard.iter().all(|message| message["turn_id"] == TURN), "{heard:?}");
        deltas(&heard)
    }

    fn exit(&mut self) -> ExitStatus {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < until, "the worker leaves in time");
            std::thread::yield_now();
        }
    }

    fn is_quiet(&self, span: Duration) -> bool {
        matches!(self.lines.recv_timeout(span), Err(RecvTimeoutError::Timeout))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn demo() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lastword"));
    command.arg("demo-agent").env_remove("DEMO_STARTUP");
    command
}

fn deltas(messages: &[Value]) -> String {
    messages.iter().filter(|m| m["type"] == "delta").map(|m| m["text"].as_str().unwrap()).collect()
}

#[test]
fn a_friendly_answer_is_streamed_word_by_word() {
    let mut worker = Worker::demo();
    worker.turn("good morning");
    let heard = worker.hear_until("complete");
    assert_eq!(deltas(&heard), "Hello! You said: good morning");
    assert_eq!(heard.len(), 6);
    assert!(worker.answer("/help").contains("/flood N"));
}

#[test]
fn it_recalls_its_history_and_what_it_saw_itself() {
    let mut worker = Worker::demo();
    worker.tell(&json!({"type": "turn", "turn_id": TURN, "conversation_id": "conv_1", "attempt": 1,
        "input": {"text": "/notice third"},
        "history": [{"role": "user", "text": "first"}, {"role": "assistant", "text": "second"}]}));
    worker.hear_until("complete");
    let known = worker.answer("/recall");
    assert_eq!(known, "1. user: first\n2. assistant: second\n3. user: /notice third\n4. assistant: third");
    worker.tell(&json!({"type": "turn", "turn_id": TURN, "conversation_id": "conv_2", "attempt": 1,
        "input": {"text": "/recall"}}));
    assert_eq!(deltas(&worker.hear_until("complete")), "I know nothing of this conversation yet.");
}

#[test]
fn every_kind_of_message_can_be_had() {
    let mut worker = Worker::demo();
    for (text, kind, field, value) in [
        ("/notice a b", "content", "text", "a b"),
        ("/ephemeral a", "ephemeral", "text", "a"),
        ("/status busy", "status", "state", "busy"),
        ("/unknown", "sparkle", "colour", "gold"),
        ("/emoji", "delta", "text", "Grüße, 世界! "),
        ("/nul", "delta", "text", "before\u{0}after"),
    ] {
        worker.turn(text);
        let heard = worker.hear_until("complete");
        assert_eq!(heard[0]["type"], kind, "{text}");
        assert_eq!(heard[0][field], value, "{text}");
    }
    worker.turn("/silent");
    assert_eq!(worker.hear_until("complete").len(), 1);
    worker.turn("/error no luck");
    assert_eq!(worker.hear(), json!({"type": "error", "turn_id": TURN, "message": "no luck"}));
    assert_eq!(worker.answer("/flood 300").split_whitespace().count(), 300);
    assert_eq!(worker.answer("/slow 2"), "word1 word2 ");
}

#[test]
fn a_question_waits_for_its_answer() {
    let mut worker = Worker::demo();
    worker.turn("/ask Which colour?");
    let question = worker.hear();
    assert_eq!((&question["type"], &question["prompt"]), (&json!("ask"), &json!("Which colour?")));
    worker.tell(&json!({"type": "answer", "turn_id": TURN, "ask_id": question["ask_id"], "answer": "blue"}));
    assert_eq!(deltas(&worker.hear_until("complete")), "You answered: blue");
}

#[test]
fn turns_run_side_by_side_and_hear_what_is_meant_for_them() {
    let mut worker = Worker::demo();
    let asks = ["turn_a", "turn_b", "turn_c"].map(|turn| {
        worker.turn_of(turn, "/ask Which?");
        let ask = worker.hear();
        assert_eq!((&ask["type"], &ask["turn_id"]), (&json!("ask"), &json!(turn)));
        turn
    });
    worker.tell(&json!({"type": "cancel", "turn_id": asks[1]}));
    assert_eq!(worker.hear(), json!({"type": "cancelled", "turn_id": asks[1]}));
    for turn in [asks[2], asks[0]] {
        worker.tell(&json!({"type": "answer", "turn_id": turn, "ask_id": "ask_1", "answer": turn}));
        let heard = worker.hear_until("complete");
        assert!(heard.iter().all(|message| message["turn_id"] == turn), "{heard:?}");
        assert_eq!(deltas(&heard), format!("You answered: {turn}"));
    }
}

#[test]
fn turns_that_talk_at_once_do_not_mix_their_lines() {
    const PIECES: usize = 5000;
    let mut worker = Worker::demo();
    let turns = ["turn_a", "turn_b"];
    for turn in turns {
        worker.turn_of(turn, &format!("/flood {PIECES}"));
    }
    let (mut heard, mut ended) = (Vec::new(), Vec::new());
    while ended.len() < turns.len() {
        let message = worker.hear();
        match message["type"].as_str().unwrap() {
            "complete" => ended.push(heard.len()),
            _ => heard.push(message),
        }
    }
    for turn in turns {
        let own: Vec<Value> = heard.iter().filter(|message| message["turn_id"] == turn).cloned().collect();
        let wanted: String = (1..=PIECES).map(|n| format!("{n} ")).collect();
        assert_eq!(deltas(&own), wanted);
    }
    assert!(ended[0] > PIECES + 64, "the second waited for the first: {ended:?}");
}

#[test]
fn lines_that_are_not_the_protocol_are_sent_as_they_are() {
    let mut worker = Worker::demo();
    let mut first = |text: &str| {
        worker.turn(text);
        let line = worker.line();
        worker.hear_until("complete");
        line
    };
    assert!(serde_json::from_slice::<Value>(&first("/garbage")).is_err());
    assert!(std::str::from_utf8(&first("/badutf8")).is_err());
    assert!(first("/rawnul").contains(&0));
    assert!(first("/longline").len() > 2 * 1024 * 1024);
    let stray: Value = serde_json::from_slice(&first("/wrongturn")).unwrap();
    assert_ne!(stray["turn_id"], TURN);
    let for_nobody: Value = serde_json::from_slice(&first("/noturn")).unwrap();
    assert_eq!(for_nobody["turn_id"], Value::Null);
    let without_text: Value = serde_json::from_slice(&first("/badfield")).unwrap();
    assert_eq!((&without_text["turn_id"], &without_text["text"]), (&json!(TURN), &Value::Null));
    let mut worker = Worker::demo();
    worker.turn("/twoends");
    worker.hear_until("complete");
    assert_eq!(worker.hear()["type"], "complete");
    worker.turn("/afterend");
    worker.hear_until("complete");
    assert_eq!(worker.hear()["type"], "delta");
}

#[test]
fn a_crash_has_its_exit_code_and_a_kill_its_signal() {
    for (text, code) in [("/crash", 1), ("/crash 7", 7)] {
        let mut worker = Worker::demo();
        worker.turn(text);
        assert_eq!(worker.hear()["type"], "delta");
        assert_eq!(worker.exit().code(), Some(code));
    }
    let mut worker = Worker::demo();
    worker.turn("/kill");
    assert_eq!(worker.hear()["type"], "delta");
    assert_eq!(worker.exit().signal(), Some(9));
}

#[test]
fn a_hanging_turn_beats_and_hears_a_cancel() {
    let mut worker = Worker::demo();
    worker.turn("/hang");
    assert_eq!(worker.hear()["type"], "beat");
    assert_eq!(worker.hear()["type"], "beat");
    worker.tell(&json!({"type": "cancel", "turn_id": TURN}));
    let last = worker.hear_until("cancelled").pop().unwrap();
    assert_eq!(last, json!({"type": "cancelled", "turn_id": TURN}));
    assert_eq!(worker.answer("hi"), "Hello! You said: hi");
}

#[test]
fn shutdown_and_the_end_of_stdin_end_it_in_the_middle_of_a_turn() {
    let mut worker = Worker::demo();
    worker.turn("/hang");
    worker.hear();
    worker.tell(&json!({"type": "shutdown"}));
    assert_eq!(worker.exit().code(), Some(0));
    let mut worker = Worker::demo();
    worker.turn("/hang");
    worker.hear();
    worker.stdin = None;
    assert_eq!(worker.exit().code(), Some(0));
}

#[test]
fn a_frozen_worker_is_deaf_to_all_but_a_kill() {
    let mut worker = Worker::demo();
    let pid = nix::unistd::Pid::from_raw(worker.child.id() as i32);
    worker.turn("/freeze");
    // The signal must find it frozen: it is once SIGTERM is among the signals that it catches.
    let until = Instant::now() + PATIENCE;
    while !catches_sigterm(pid.as_raw()) {
        assert!(Instant::now() < until, "it freezes in time");
        std::thread::yield_now();
    }
    worker.tell(&json!({"type": "cancel", "turn_id": TURN}));
    worker.tell(&json!({"type": "shutdown"}));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    worker.stdin = None;
    assert!(worker.is_quiet(Duration::from_millis(500)));
    assert!(worker.child.try_wait().unwrap().is_none());
}

/// Whether the process has a handler for SIGTERM, by the kernel's own books.
fn catches_sigterm(pid: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap().trim();
    u64::from_str_radix(caught, 16).unwrap() & (1 << 14) != 0
}

#[test]
fn an_orphan_outlives_the_worker() {
    let mut worker = Worker::demo();
    let orphan: i32 = worker.answer("/orphan").parse().unwrap();
    worker.tell(&json!({"type": "shutdown"}));
    assert_eq!(worker.exit().code(), Some(0));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(orphan), nix::sys::signal::Signal::SIGKILL).unwrap();
}

#[test]
fn startup_goes_as_the_environment_says() {
    for (way, code) in [("exit0", 0), ("exit1", 1)] {
        let mut command = demo();
        command.env("DEMO_STARTUP", way);
        let mut worker = Worker::start(command);
        assert_eq!(worker.exit().code(), Some(code), "{way}");
        assert_eq!(worker.lines.recv_timeout(PATIENCE), Err(RecvTimeoutError::Disconnected));
    }
    let mut command = demo();
    command.env("DEMO_STARTUP", "slow:300");
    let begun = Instant::now();
    assert_eq!(Worker::start(command).hear()["type"], "ready");
    assert!(begun.elapsed() >= Duration::from_millis(300));
    let mut command = demo();
    command.env("DEMO_STARTUP", "never");
    let mut worker = Worker::start(command);
    assert!(worker.is_quiet(Duration::from_millis(300)));
    worker.stdin = None;
    assert_eq!(worker.exit().code(), Some(0));
}

fn example(program: &str, file: &str) -> Command {
    let path = format!("{}/examples/{file}", env!("CARGO_MANIFEST_DIR"));
    let lines = std::fs::read_to_string(&path).unwrap().lines().count();
    assert!(lines < 40, "{file} has {lines} lines");
    let mut command = Command::new(program);
    command.arg(path);
    command
}

#[test]
fn the_example_workers_answer_and_stop_when_told() {
    for (program, file) in [("python3", "worker.py"), ("sh", "worker.sh")] {
        let mut worker = Worker::start(example(program, file));
        assert_eq!(worker.hear()["type"], "ready", "{file} needs {program}");
        for text in ["hello", r#"say "text":"\hi\" ü 🦀"#, r#"{"input":{"text":"x"},"turn_id":"turn_y"}"#]
        {
            assert_eq!(worker.answer(text).trim_end(), format!("You said: {text}"), "{file}");
        }
        worker.turn("a b c d e f g h i j k l m n o p q r s t");
        assert_eq!(worker.hear()["type"], "delta");
        worker.tell(&json!({"type": "cancel", "turn_id": TURN}));
        let heard = worker.hear_until("cancelled");
        assert_eq!(heard.last().unwrap()["turn_id"], TURN, "{file}");
        assert_eq!(worker.answer("again").trim_end(), "You said: again", "{file}");
        worker.tell(&json!({"type": "shutdown"}));
        assert_eq!(worker.exit().code(), Some(0), "{file}");
    }
}

#[test]
fn the_example_workers_leave_with_their_host() {
    for (program, file) in [("python3", "worker.py"), ("sh", "worker.sh")] {
        let mut worker = Worker::start(example(program, file));
        worker.hear();
        worker.stdin = None;
        assert_eq!(worker.exit().code(), Some(0), "{file}");
    }
}

#[test]
fn the_example_agents_are_ones_that_apply_takes() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/agents.toml");
    // Nothing listens on that port: the file is checked first, so 3 means that it was found sound.
    let mut child = Command::new(env!("CARGO_BIN_EXE_lastword"))
        .args(["apply", "-f", path, "--url", "http://127.0.0.1:9"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(3), "{said}");
}
