//! Messages arrive in order, and neither side can make the other's memory grow.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use lastword::host::{
    process::{Heard, Launch, SendError, StartErrorKind},
    protocol::{
        codec::Fault,
        messages::{Message, ToWorker},
    },
};
use serde_json::json;
use tokio::time::Instant;

use super::bench::*;

#[tokio::test]
async fn a_worker_hears_and_is_heard() {
    let bench = Bench::new();
    let mut worker = bench
        .sh(r#"while read -r line; do echo "{\"type\":\"echo\",\"line\":$line}"; done; echo "bye" >&2"#)
        .await;
    for message in [ToWorker::Cancel { turn_id: turn_id() }, ToWorker::Shutdown] {
        worker.send(&message).unwrap();
        let sent: serde_json::Value = serde_json::from_slice(&message.to_line().unwrap()).unwrap();
        assert_eq!(custom(&mut worker).await["line"], sent);
    }
    assert!(is_alive(worker.pid()));
}

#[tokio::test]
async fn an_agent_gets_a_clean_environment_and_three_descriptors() {
    let bench = Bench::new();
    let script = r#"
import json, os
print(json.dumps({"type": "me", "env": dict(os.environ), "cwd": os.getcwd(), "session": os.getsid(0),
    "fds": sorted(int(fd) for fd in os.listdir("/proc/self/fd") if os.path.exists("/proc/self/fd/" + fd)),
    "ignored": [l.split()[1] for l in open("/proc/self/status") if l.startswith("SigBlk")],
    "pid": os.getpid(), "processes": [pid for pid in os.listdir("/proc") if pid.isdigit()]}), flush=True)
input()
"#;
    let mut launch = bench.launch(&["/usr/bin/env", "python3", "-c", script]);
    launch.env.insert("LOG".to_owned(), "info".to_owned());
    let mut worker = bench.start(launch).await;
    let me = custom(&mut worker).await;
    let home = fs::canonicalize(bench.dir.path().join("workspace")).unwrap();
    assert_eq!(me["cwd"], home.to_str().unwrap());
    assert_eq!((&me["env"]["LOG"], &me["env"]["TERM"]), (&json!("info"), &json!("dumb")));
    assert_eq!(me["env"]["PYTHONUNBUFFERED"], "1");
    assert!(me["env"].get("CARGO_MANIFEST_DIR").is_none(), "the replica's own environment is not passed on");
    assert_eq!(me["fds"], json!([0, 1, 2]));
    assert_eq!(me["ignored"], json!(["0000000000000000"]));
    assert_eq!(me["session"], me["pid"]);
    let namespace = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/pid")).unwrap();
    if namespace(worker.pid() as u32) == namespace(std::process::id()) {
        assert_eq!(me["pid"], json!(worker.pid()));
    } else {
        assert_eq!((&me["pid"], &me["processes"]), (&json!(2), &json!(["1", "2"])), "it sees others");
    }
    assert_eq!(fs::metadata(&home).unwrap().permissions().mode() & 0o777, 0o700);
}

#[tokio::test]
async fn a_program_that_cannot_run_is_refused_by_kind() {
    let bench = Bench::new();
    let refused = async |command: &[&str]| bench.try_start(bench.launch(command)).await.unwrap_err();
    let plain = bench.dir.path().join("plain");
    fs::write(&plain, "#!/bin/sh\n").unwrap();
    let orphan = bench.dir.path().join("orphan");
    fs::write(&orphan, "#!/no/such/interpreter\n").unwrap();
    fs::set_permissions(&orphan, fs::Permissions::from_mode(0o755)).unwrap();

    let missing = refused(&["no-such-program"]).await;
    assert_eq!(missing.kind, StartErrorKind::NotFound);
    assert!(missing.detail.contains("no-such-program") && !missing.message.contains("no-such-program"));
    assert_eq!(refused(&["./relative"]).await.kind, StartErrorKind::NotFound);
    assert_eq!(refused(&[orphan.to_str().unwrap()]).await.kind, StartErrorKind::NotFound);
    assert_eq!(refused(&[plain.to_str().unwrap()]).await.kind, StartErrorKind::NotExecutable);
    assert_eq!(refused(&["/"]).await.kind, StartErrorKind::NotExecutable);
    assert_eq!(refused(&[]).await.kind, StartErrorKind::Other);
    assert_eq!(refused(&["sh", "nul\0"]).await.kind, StartErrorKind::Other);
}

#[tokio::test]
async fn a_workspace_that_cannot_be_made_is_refused() {
    let bench = Bench::new();
    let file = bench.dir.path().join("file");
    fs::write(&file, "").unwrap();
    for workspace in [file.join("below"), file.clone()] {
        let launch = Launch { workspace, ..bench.launch(&["true"]) };
        assert_eq!(bench.try_start(launch).await.unwrap_err().kind, StartErrorKind::Workspace);
    }
}

#[tokio::test]
async fn a_missing_guard_is_refused() {
    let bench = Bench::new();
    for guard in ["/no/such/guard", "/bin/true", "/bin/cat"] {
        let launch = Launch { guard: guard.into(), ..bench.launch(&["true"]) };
        let refused = bench.try_start(launch).await.unwrap_err();
        assert_eq!(refused.kind, StartErrorKind::Other);
        assert_eq!(refused.detail.contains("the guard said: "), guard == "/bin/cat", "{}", refused.detail);
    }
}

#[tokio::test]
async fn an_exit_says_code_or_signal_and_the_end_of_stderr() {
    let bench = Bench::new();
    for (script, said) in [
        ("echo broken >&2; exit 3", "exit code 3"),
        ("echo broken >&2; kill -KILL $$", "signal SIGKILL"),
        ("echo broken >&2; kill -SEGV $$", "signal SIGSEGV"),
        ("echo broken >&2; kill -35 $$", "signal 35"),
        ("echo broken >&2", "exit code 0"),
    ] {
        let mut worker = bench.sh(script).await;
        let (messages, exit) = rest(&mut worker).await;
        assert_eq!((exit.describe().as_str(), messages.len()), (said, 0));
        assert_eq!(worker.stderr_tail(), "broken\n");
        assert_eq!(within(worker.recv()).await, Heard::Exited(exit), "it stays gone");
        let sent = || worker.send(&ToWorker::Shutdown) == Err(SendError::Closed);
        until("a message to a dead worker is refused", sent).await;
    }
}

#[tokio::test]
async fn the_last_words_are_heard_before_the_death() {
    let bench = Bench::new();
    let script = "i=0; while [ $i -lt 400 ]; do echo '{\"type\":\"delta\",\"text\":\"'$i'\"}'; \
                  i=$((i+1)); done; printf '{\"type\":\"complete\"}'; kill -KILL $$";
    let mut worker = bench.sh(script).await;
    // Even where the death is known long before anybody listens.
    let exit = within(worker.ended()).await;
    let (messages, again) = rest(&mut worker).await;
    assert_eq!(exit, again);
    let texts: Vec<_> =
        (0..400).map(|i| Message::Delta { text: i.to_string(), cut: Default::default() }).collect();
    assert_eq!(messages[..400], texts);
    assert!(matches!(messages[400..], [Message::Complete { .. }]));
}

#[tokio::test]
async fn a_listener_slower_than_any_leak_still_hears_it_all() {
    let bench = Bench::new();
    let mut worker = bench.sh("for i in $(seq 50); do echo '{\"type\":\"beat\"}'; done").await;
    within(worker.ended()).await;
    for _ in 0..10 {
        assert!(matches!(within(worker.recv()).await, Heard::Message(_)));
    }
    let paused_at = Instant::now();
    until("a leak would have been given up", || paused_at.elapsed() > Duration::from_millis(2200)).await;
    let (messages, _) = rest(&mut worker).await;
    assert_eq!(messages.len(), 40);
}

#[tokio::test]
async fn a_line_cut_off_by_death_is_a_death_and_no_protocol_error() {
    let bench = Bench::new();
    let mut worker = bench.sh(r#"printf '{"type":"delta","te'; exit 7"#).await;
    let (messages, exit) = rest(&mut worker).await;
    assert_eq!((messages.len(), exit.code), (0, Some(7)));
}

#[tokio::test]
async fn a_line_that_is_no_message_does_not_hide_the_next() {
    let bench = Bench::new();
    let mut worker = bench.sh(r#"echo 'Loading model...'; echo '{"type":"ready"}'"#).await;
    assert!(matches!(within(worker.recv()).await, Heard::Protocol(error) if error.fault == Fault::NotJson));
    assert!(matches!(within(worker.recv()).await, Heard::Message(m) if m.message == Message::Ready));
}

#[tokio::test]
async fn a_flood_that_nobody_reads_waits_and_then_goes_on() {
    const LINES: usize = 20_000;
    let bench = Bench::new();
    let script = format!(
        "import sys, os, mmap\n\
         f = open('written', 'wb+'); f.write(b'0' * 8); f.flush(); seen = mmap.mmap(f.fileno(), 8)\n\
         pad = 'x' * 1000\n\
         for i in range({LINES}):\n\
         \x20 os.write(1, ('{{\"type\":\"delta\",\"text\":\"%d %s\"}}\\n' % (i, pad)).encode())\n\
         \x20 seen[:] = b'%08d' % (i + 1)"
    );
    let mut worker = bench.python(&script).await;
    let path = bench.dir.path().join("workspace/written");
    let (mut before, mut unchanged) = (0, 0);
    until("it waits for its reader", || {
        let now = written(&path);
        unchanged = if now > 0 && now == before { unchanged + 1 } else { 0 };
        before = now;
        unchanged > 40
    })
    .await;
    assert!(before < 200, "{before} lines of 1 kB went into a pipe of 64 KiB that nobody reads");
    let (messages, exit) = rest(&mut worker).await;
    assert!(exit.is_clean(), "{exit:?}");
    assert_eq!(messages.len(), LINES);
    for (i, message) in messages.iter().enumerate() {
        let Message::Delta { text, .. } = message else { panic!("{message:?}") };
        assert_eq!(text.split(' ').next(), Some(i.to_string().as_str()));
    }
}

fn written(path: &Path) -> usize {
    fs::read_to_string(path).ok().and_then(|text| text.parse().ok()).unwrap_or(0)
}

#[tokio::test]
async fn a_worker_that_does_not_read_is_told_of_and_can_still_be_ended() {
    let bench = Bench::new();
    let mut worker = bench.sh("while :; do sleep 1; done").await;
    let answer = |size| ToWorker::Answer {
        turn_id: turn_id(),
        ask_id: "ask".to_owned(),
        answer: lastword::json::Raw::of(json!("x".repeat(size)).to_string()).unwrap(),
    };
    assert_eq!(worker.send(&answer(1024 * 1024)), Err(SendError::TooLong));
    until("its queue is full", || worker.send(&answer(100_000)) == Err(SendError::Stuck)).await;
    worker.kill();
    assert_eq!(within(worker.ended()).await.describe(), "signal SIGKILL");
}

#[tokio::test]
async fn a_descriptor_that_leaked_does_not_hold_the_exit_back() {
    let bench = Bench::new();
    let mut worker = bench.sh("echo '{\"type\":\"ready\"}'; read -r line").await;
    assert!(matches!(within(worker.recv()).await, Heard::Message(_)));
    let open = |fd| fs::File::options().write(true).open(format!("/proc/{}/fd/{fd}", worker.pid())).unwrap();
    let leaked = [open(1), open(2)];
    worker.kill();
    assert_eq!(rest(&mut worker).await.1.describe(), "signal SIGKILL");
    drop(leaked);
}
