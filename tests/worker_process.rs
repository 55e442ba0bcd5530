//! Worker processes, with real agents and the real guard: what is said is heard, and nothing is
//! left behind, whoever dies first and however.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on has failed")]

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use lastword::{
    id::TurnId,
    task::Supervisor,
    units::Size,
    worker::{
        codec::Fault,
        process::{Exit, Heard, Launch, Process, SendError, StartError, StartErrorKind},
        wire::{Message, ToWorker},
    },
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;
use tempfile::TempDir;
use tokio::time::{Instant, interval, timeout};

/// Far above what anything here takes, so that a busy machine fails nothing.
const PATIENCE: Duration = Duration::from_secs(60);

/// A shell function that starts `sleep` where nothing but the guard could find it: in a session of
/// its own, orphaned, deaf to SIGTERM. It says its process id first.
const HIDE: &str = r#"
hide() { ( ( setsid sh -c 'trap "" TERM HUP INT; echo "{\"type\":\"pid\",\"pid\":$$}"; while :; do sleep 1; done' & ) & ); }
"#;

struct Bench {
    dir: TempDir,
    supervisor: Supervisor,
}

impl Bench {
    fn new() -> Self {
        Bench { dir: TempDir::new().unwrap(), supervisor: Supervisor::new() }
    }

    fn launch(&self, command: &[&str]) -> Launch {
        let command = command.iter().map(|word| (*word).to_owned()).collect();
        let mark = ("MARK".to_owned(), self.dir.path().display().to_string());
        Launch {
            env: BTreeMap::from([mark]),
            shim: env!("CARGO_BIN_EXE_lastword").into(),
            silence_max: PATIENCE,
            ..Launch::new(command, self.dir.path().join("workspace"))
        }
    }

    /// How many processes that descend from this bench's agents are alive.
    fn processes(&self) -> usize {
        let mark = format!("MARK={}\0", self.dir.path().display());
        let is_ours = |pid: &i32| {
            let env = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            env.windows(mark.len()).any(|part| part == mark.as_bytes())
        };
        let all = fs::read_dir("/proc").unwrap().flatten();
        all.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is_ours).count()
    }

    async fn try_start(&self, launch: Launch) -> Result<Process, StartError> {
        within(Process::start(&self.supervisor, launch)).await
    }

    async fn start(&self, launch: Launch) -> Process {
        self.try_start(launch).await.unwrap()
    }

    async fn sh(&self, script: &str) -> Process {
        self.start(self.launch(&["sh", "-c", script])).await
    }

    async fn python(&self, script: &str) -> Process {
        self.start(self.launch(&["python3", "-c", script])).await
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("it never came")
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let mut tick = interval(Duration::from_millis(10));
    let waiting = async {
        while !is_so() {
            tick.tick().await;
        }
    };
    timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// The next message's own fields, by way of a type that the protocol does not know.
async fn custom(process: &mut Process) -> serde_json::Value {
    match within(process.recv()).await {
        Heard::Message(heard) => match heard.message {
            Message::Custom { data, .. } => data,
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}; stderr: {}", process.stderr_tail()),
    }
}

async fn pid_said(process: &mut Process) -> i32 {
    custom(process).await["pid"].as_i64().unwrap() as i32
}

/// Everything up to the exit: the messages, and the exit.
async fn rest(process: &mut Process) -> (Vec<Message>, Exit) {
    let mut messages = Vec::new();
    let mut is_closed = false;
    loop {
        match within(process.recv()).await {
            Heard::Message(heard) => messages.push(heard.message),
            Heard::Protocol(error) => panic!("{error}: {}", error.excerpt),
            Heard::Closed => assert!(!std::mem::replace(&mut is_closed, true), "closed twice"),
            Heard::Exited(exit) => {
                assert!(is_closed, "an exit is told after the end of what was said");
                return (messages, exit);
            }
        }
    }
}

fn is_alive(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().any(|line| line.starts_with("State:") && !line.contains('Z') && !line.contains('X'))
}

fn parent(pid: i32) -> Pid {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap();
    Pid::from_raw(line.trim().parse().unwrap())
}

fn turn_id() -> TurnId {
    "turn_019000000000700080000000000000ab".parse().unwrap()
}

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
    "pid": os.getpid()}), flush=True)
"#;
    let mut launch = bench.launch(&["/usr/bin/env", "python3", "-c", script]);
    launch.env.insert("LOG".to_owned(), "info".to_owned());
    let mut worker = bench.start(launch).await;
    let me = custom(&mut worker).await;
    let home = fs::canonicalize(bench.dir.path().join("workspace")).unwrap();
    assert_eq!(me["cwd"], home.to_str().unwrap());
    assert_eq!((&me["env"]["LOG"], &me["env"]["TERM"]), (&json!("info"), &json!("dumb")));
    assert!(me["env"].get("CARGO_MANIFEST_DIR").is_none(), "the replica's own environment is not passed on");
    assert_eq!(me["fds"], json!([0, 1, 2]));
    assert_eq!(me["ignored"], json!(["0000000000000000"]));
    assert_eq!((&me["session"], &me["pid"]), (&json!(worker.pid()), &json!(worker.pid())));
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
    for shim in ["/no/such/guard", "/bin/true", "/bin/cat"] {
        let launch = Launch { shim: shim.into(), ..bench.launch(&["true"]) };
        assert_eq!(bench.try_start(launch).await.unwrap_err().kind, StartErrorKind::Other);
    }
}

#[tokio::test]
async fn an_exit_says_code_or_signal_and_the_end_of_stderr() {
    let bench = Bench::new();
    for (script, said) in [
        ("echo broken >&2; exit 3", "exit code 3"),
        ("echo broken >&2; kill -KILL $$", "signal SIGKILL"),
        ("echo broken >&2; kill -SEGV $$", "signal SIGSEGV"),
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
    let texts: Vec<_> = (0..400).map(|i| Message::Delta { text: i.to_string() }).collect();
    assert_eq!(messages[..400], texts);
    assert!(matches!(messages[400..], [Message::Complete { .. }]));
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
async fn a_worker_that_exits_takes_its_hidden_children_along() {
    let bench = Bench::new();
    let mut worker = bench.sh(&format!("{HIDE} hide; hide; read -r line; exit 5")).await;
    let hidden = [pid_said(&mut worker).await, pid_said(&mut worker).await];
    assert!(hidden.iter().all(|pid| is_alive(*pid)));
    worker.send(&ToWorker::Shutdown).unwrap();
    let (_, exit) = rest(&mut worker).await;
    assert_eq!(exit.code, Some(5));
    // Not until: their end comes before the word of it.
    assert!(!hidden.iter().any(|pid| is_alive(*pid)));
}

#[tokio::test]
async fn a_kill_and_a_drop_leave_nothing() {
    let bench = Bench::new();
    for is_dropped in [false, true] {
        let mut worker = bench.sh(&format!("trap '' TERM; {HIDE} hide; while :; do sleep 1; done")).await;
        let pids = [worker.pid(), pid_said(&mut worker).await, parent(worker.pid()).as_raw()];
        let renewer = worker.renewer();
        if is_dropped {
            drop(worker);
            renewer.renew();
        } else {
            worker.kill();
            assert_eq!(within(worker.ended()).await.describe(), "signal SIGKILL");
        }
        until("all are gone", || !pids.iter().any(|pid| is_alive(*pid))).await;
    }
}

#[tokio::test]
async fn a_stop_is_heard_and_may_be_answered() {
    let bench = Bench::new();
    let mut worker = bench
        .sh(r#"trap 'echo "{\"type\":\"cancelled\"}"; exit 0' TERM; echo '{"type":"ready"}'
               while :; do sleep 0.05; done"#)
        .await;
    assert!(matches!(within(worker.recv()).await, Heard::Message(_)));
    worker.stop();
    let (messages, exit) = rest(&mut worker).await;
    assert_eq!(messages, [Message::Cancelled]);
    assert!(exit.is_clean());
}

#[tokio::test]
async fn a_stop_that_is_ignored_becomes_a_kill_after_the_grace() {
    let bench = Bench::new();
    let grace = Duration::from_millis(700);
    let script = format!("trap '' TERM; {HIDE} hide; while :; do sleep 1; done");
    let launch = Launch { stop_grace: grace, ..bench.launch(&["sh", "-c", &script]) };
    let mut worker = bench.start(launch).await;
    let hidden = pid_said(&mut worker).await;
    let asked_at = Instant::now();
    worker.stop();
    worker.stop();
    let exit = within(worker.ended()).await;
    assert_eq!(exit.describe(), "signal SIGKILL");
    assert!(asked_at.elapsed() >= grace, "{:?}", asked_at.elapsed());
    assert!(!is_alive(hidden));
}

#[tokio::test]
async fn a_worker_outlives_neither_a_dead_nor_a_frozen_replica() {
    for signal in [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGSTOP] {
        let (mut replica, pids) = Replica::start();
        until("it lives on while its replica does", || pids.iter().all(|pid| is_alive(*pid))).await;
        kill(Pid::from_raw(replica.0.id() as i32), signal).unwrap();
        until("its tree is gone", || !pids.iter().any(|pid| is_alive(*pid))).await;
        replica.0.kill().unwrap();
    }
}

/// Another process that plays the replica: this test binary, at [`a_replica`].
struct Replica(Child);

impl Replica {
    /// Starts one, and returns the processes of its worker's tree with it.
    fn start() -> (Self, Vec<i32>) {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_replica", "--ignored", "--nocapture", "--test-threads=1"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let said = lines.map_while(Result::ok).find_map(|line| Some(line.split_once("tree: ")?.1.to_owned()));
        let pids = said.unwrap().split(' ').map(|pid| pid.parse().unwrap()).collect();
        (Replica(child), pids)
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
#[ignore = "not a test: the replica that another test kills"]
async fn a_replica() {
    let bench = Bench::new();
    let script = format!("{HIDE} hide; while :; do sleep 1; done");
    let silence_max = Duration::from_secs(2);
    let launch = Launch { silence_max, ..bench.launch(&["sh", "-c", &script]) };
    let mut worker = bench.start(launch).await;
    let hidden = pid_said(&mut worker).await;
    println!("tree: {} {hidden} {}", worker.pid(), parent(worker.pid()));
    let renewer = worker.renewer();
    let mut beat = interval(Duration::from_millis(100));
    let _ = timeout(PATIENCE, async {
        loop {
            beat.tick().await;
            renewer.renew();
        }
    })
    .await;
}

#[tokio::test]
async fn silence_ends_a_worker_and_renewals_keep_it() {
    let bench = Bench::new();
    let script = "while :; do echo '{\"type\":\"beat\"}'; sleep 0.1; done";
    let silence_max = Duration::from_millis(1500);
    let launch = Launch { silence_max, ..bench.launch(&["sh", "-c", script]) };
    let mut worker = bench.start(launch).await;
    let renewer = worker.renewer();
    let started_at = Instant::now();
    while started_at.elapsed() < silence_max * 2 {
        assert!(matches!(within(worker.recv()).await, Heard::Message(_)));
        renewer.renew();
    }
    let (_, exit) = rest(&mut worker).await;
    assert!(exit.silence && exit.signal == Some(Signal::SIGKILL as i32), "{exit:?}");
}

#[tokio::test]
async fn the_death_of_the_guard_is_the_death_of_the_worker() {
    let bench = Bench::new();
    let mut worker =
        bench.sh(&format!("trap '' TERM; {HIDE} hide; sleep 1000 & while :; do sleep 1; done")).await;
    assert!(is_alive(pid_said(&mut worker).await));
    kill(parent(worker.pid()), Signal::SIGKILL).unwrap();
    let (_, exit) = rest(&mut worker).await;
    assert_eq!(exit.describe(), "signal SIGKILL");
    until("its tree is gone", || bench.processes() == 0).await;
}

#[tokio::test]
async fn a_frozen_guard_does_not_save_a_worker_that_is_dropped() {
    let bench = Bench::new();
    let mut worker = bench.sh(&format!("{HIDE} hide; while :; do sleep 1; done")).await;
    assert!(is_alive(pid_said(&mut worker).await));
    kill(parent(worker.pid()), Signal::SIGSTOP).unwrap();
    drop(worker);
    until("its tree is gone", || bench.processes() == 0).await;
}

#[tokio::test]
async fn a_tree_over_its_memory_is_ended_and_said_so() {
    let bench = Bench::new();
    let slowly = "import os, time\nif os.fork() == 0:\n  time.sleep(1000)\nkept = []\n\
                  while True:\n  kept.append(b'x' * 4_000_000); time.sleep(0.01)";
    let at_once = "kept = []\nwhile True:\n  kept.append(b'x' * 1_000_000)";
    for script in [slowly, at_once] {
        let memory = Size::mib(96);
        let mut worker = bench.start(Launch { memory, ..bench.launch(&["python3", "-c", script]) }).await;
        let (_, exit) = rest(&mut worker).await;
        assert_eq!(exit.describe(), "out of memory (limit 96MiB)", "{exit:?}");
    }
}

#[tokio::test]
async fn memory_that_forked_processes_share_is_counted_once() {
    let bench = Bench::new();
    let script = "import os, time, sys\nkept = b'x' * 60_000_000\n\
                  for _ in range(4):\n  if os.fork() == 0:\n    time.sleep(1000)\n\
                  time.sleep(1.6)\nprint('{\"type\":\"complete\"}')";
    let launch = Launch { memory: Size::mib(160), ..bench.launch(&["python3", "-c", script]) };
    let (messages, exit) = rest(&mut bench.start(launch).await).await;
    assert!(exit.is_clean(), "{exit:?}");
    assert!(matches!(messages[..], [Message::Complete { .. }]));
}

#[tokio::test]
async fn a_tree_of_too_many_processes_is_ended_and_said_so() {
    let bench = Bench::new();
    let script = format!("{HIDE} for i in 1 2 3 4 5 6; do hide; done; while :; do sleep 1; done");
    let launch = Launch { processes: 8, ..bench.launch(&["sh", "-c", &script]) };
    let mut worker = bench.start(launch).await;
    let (messages, exit) = rest(&mut worker).await;
    assert_eq!(exit.describe(), "too many processes (limit 8)", "{exit:?}");
    for message in messages {
        let Message::Custom { data, .. } = message else { panic!("{message:?}") };
        assert!(!is_alive(data["pid"].as_i64().unwrap() as i32));
    }
}

#[tokio::test]
async fn a_process_that_flees_by_forking_is_caught() {
    let bench = Bench::new();
    for flight in ["pass", "os.setsid()"] {
        let script = format!("import os\nwhile True:\n  if os.fork(): os._exit(0)\n  {flight}");
        let mut worker = bench.python(&script).await;
        assert!(within(worker.ended()).await.is_clean());
        until("it is caught", || bench.processes() == 0).await;
    }
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
        let Message::Delta { text } = message else { panic!("{message:?}") };
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
        answer: json!("x".repeat(size)),
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

#[tokio::test]
async fn a_start_that_nobody_waits_for_leaves_nothing() {
    let bench = Bench::new();
    for patience_us in [0, 500, 1000, 2000, 4000, 8000, 16_000] {
        let launch = bench.launch(&["sh", "-c", "while :; do sleep 1; done"]);
        let starting = Process::start(&bench.supervisor, launch);
        drop(timeout(Duration::from_micros(patience_us), starting).await);
    }
    let (_, exit) = rest(&mut bench.sh("exit 0").await).await;
    assert!(exit.is_clean());
    until("nothing is left", || bench.processes() == 0).await;
}
