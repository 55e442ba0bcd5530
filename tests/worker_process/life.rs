//! No process is left behind, whichever process dies first and however.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    time::Duration,
};

use lastword::{
    host::{
        process::{Heard, Launch, Process},
        protocol::messages::{Message, ToWorker},
    },
    units::Size,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::time::{Instant, interval, timeout};

use super::bench::*;

#[tokio::test]
async fn a_worker_that_exits_takes_its_hidden_children_along() {
    for bench in Bench::both() {
        let mut worker = bench.sh(&format!("{HIDE} hide; hide; read -r line; exit 5")).await;
        let hidden = [pid_said(&mut worker).await, pid_said(&mut worker).await];
        assert!(hidden.iter().all(|pid| is_alive(*pid)));
        worker.send(&ToWorker::Shutdown).unwrap();
        let (_, exit) = rest(&mut worker).await;
        assert_eq!(exit.code, Some(5));
        // Not until: their end comes before the word of it.
        assert!(!hidden.iter().any(|pid| is_alive(*pid)));
    }
}

#[tokio::test]
async fn a_kill_and_a_drop_leave_nothing() {
    for bench in Bench::both() {
        for is_dropped in [false, true] {
            let mut worker = bench.sh(&format!("trap '' TERM; {HIDE} hide; while :; do sleep 1; done")).await;
            let pids = [worker.pid(), pid_said(&mut worker).await, parent(worker.pid()).as_raw()];
            let renewer = worker.renewer();
            if is_dropped {
                drop(worker);
                renewer.renew(true);
            } else {
                worker.kill();
                assert_eq!(within(worker.ended()).await.describe(), "signal SIGKILL");
            }
            until("all are gone", || !pids.iter().any(|pid| is_alive(*pid))).await;
        }
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
    for bench in Bench::both() {
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
}

#[tokio::test]
async fn a_worker_outlives_neither_a_dead_nor_a_frozen_replica() {
    // The guard sees a death at once, long before silence would tell; a frozen one is only silent.
    let (never, soon) = (PATIENCE * 2, Duration::from_secs(2));
    for (signal, silence_max) in [(Signal::SIGKILL, never), (Signal::SIGTERM, never), (Signal::SIGSTOP, soon)]
    {
        let (mut replica, pids) = Replica::start(silence_max);
        until("it lives on while its replica does", || pids.iter().all(|pid| is_alive(*pid))).await;
        kill(Pid::from_raw(replica.0.id() as i32), signal).unwrap();
        until("its tree is gone", || !pids.iter().any(|pid| is_alive(*pid))).await;
        replica.0.kill().unwrap();
    }
}

/// Another process that plays the replica: this test binary, at [`a_replica`].
pub struct Replica(pub Child);

impl Replica {
    /// Starts one, and returns the processes of its worker's tree with it.
    pub fn start(silence_max: Duration) -> (Self, Vec<i32>) {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "life::a_replica", "--ignored", "--nocapture", "--test-threads=1"])
            .env("SILENCE_MAX_MS", silence_max.as_millis().to_string())
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
    let silence_max = std::env::var("SILENCE_MAX_MS").ok().and_then(|text| text.parse().ok());
    let silence_max = silence_max.map_or(PATIENCE, Duration::from_millis);
    let launch = Launch { silence_max, ..bench.launch(&["sh", "-c", &script]) };
    let mut worker = bench.start(launch).await;
    let hidden = pid_said(&mut worker).await;
    println!("tree: {} {hidden} {}", worker.pid(), parent(worker.pid()));
    let renewer = worker.renewer();
    let mut beat = interval(Duration::from_millis(100));
    let _ = timeout(PATIENCE, async {
        loop {
            beat.tick().await;
            renewer.renew(true);
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
        renewer.renew(true);
    }
    let (_, exit) = rest(&mut worker).await;
    assert!(exit.silence && exit.signal == Some(Signal::SIGKILL as i32), "{exit:?}");
}

#[tokio::test]
async fn the_death_of_the_guard_is_the_death_of_the_worker() {
    for bench in Bench::both() {
        let mut worker =
            bench.sh(&format!("trap '' TERM; {HIDE} hide; sleep 1000 & while :; do sleep 1; done")).await;
        assert!(is_alive(pid_said(&mut worker).await));
        kill(parent(worker.pid()), Signal::SIGKILL).unwrap();
        let (_, exit) = rest(&mut worker).await;
        assert_eq!(exit.describe(), "signal SIGKILL");
        until("its tree is gone", || bench.processes() == 0).await;
    }
}

#[tokio::test]
async fn a_frozen_guard_does_not_save_a_worker_that_is_dropped() {
    for bench in Bench::both() {
        let mut worker = bench.sh(&format!("{HIDE} hide; while :; do sleep 1; done")).await;
        assert!(is_alive(pid_said(&mut worker).await));
        kill(parent(worker.pid()), Signal::SIGSTOP).unwrap();
        drop(worker);
        until("its tree is gone", || bench.processes() == 0).await;
    }
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
async fn address_space_that_is_only_reserved_is_no_memory() {
    let bench = Bench::new();
    // Stacks of threads, and a heap as runtimes reserve it: gigabytes, and some megabytes of them resident.
    let script = "
import mmap, sys, threading
heap = mmap.mmap(-1, 6 << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
heap[0:4] = b'used'
done = threading.Event()
for _ in range(400): threading.Thread(target=done.wait, daemon=True).start()
print('{\"type\":\"content\",\"text\":\"%d\"}' % threading.active_count(), flush=True)
done.set()
";
    let launch = bench.launch(&["python3", "-c", script]);
    assert_eq!(launch.memory, Size::mib(1024), "the default");
    let (messages, exit) = rest(&mut bench.start(launch).await).await;
    assert!(exit.is_clean(), "{exit:?}");
    assert!(matches!(&messages[..], [Message::Content { text }] if text == "401"), "{messages:?}");
}

#[tokio::test]
async fn an_end_of_its_own_is_not_called_the_limit() {
    let bench = Bench::new();
    // It had more than its limit for a moment, and nobody ended it for that.
    let script = "kept = b'x' * 200_000_000\ndel kept\nraise SystemExit(7)";
    let launch = Launch { memory: Size::mib(96), ..bench.launch(&["python3", "-c", script]) };
    let (_, exit) = rest(&mut bench.start(launch).await).await;
    assert!(["exit code 7", "out of memory (limit 96MiB)"].contains(&exit.describe().as_str()), "{exit:?}");
    assert_eq!(exit.code == Some(7), !exit.oom, "{exit:?}");
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
    assert!(messages.iter().all(|message| matches!(message, Message::Custom { .. })), "{messages:?}");
    assert!(!messages.is_empty() && bench.processes() == 0, "a hidden one is left");
}

#[tokio::test]
async fn a_process_that_flees_by_forking_is_caught() {
    for bench in Bench::both() {
        for flight in ["pass", "os.setsid()"] {
            let script = format!("import os\nwhile True:\n  if os.fork(): os._exit(0)\n  {flight}");
            let mut worker = bench.python(&script).await;
            assert!(within(worker.ended()).await.is_clean());
            until("it is caught", || bench.processes() == 0).await;
        }
    }
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
