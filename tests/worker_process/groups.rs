//! The kernel bounds a worker's memory, if a replica may create control groups.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use lastword::{
    host::{
        process::{Heard, Launch, cgroup},
        protocol::messages::{Message, ToWorker},
    },
    units::Size,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{bench::*, life::Replica};

/// Whether groups can be made here; says so where not.
fn has_groups() -> bool {
    let probed = cgroup::probe();
    if let Err(why) = &probed {
        eprintln!("skipped: no control groups here: {why}");
    }
    probed.is_ok()
}

/// The group of a worker, as a directory.
fn group_of(pid: i32) -> PathBuf {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let mut paths = groups.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    let path = paths.rfind(|path| path.contains("/lastword-") && !path.ends_with("/lastword-replica"));
    let path =
        path.unwrap_or_else(|| panic!("{pid} is in no group of a worker: {groups}")).trim_start_matches('/');
    let mounts = ["/sys/fs/cgroup/memory", "/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new);
    let dir = mounts.iter().map(|mount| mount.join(path)).find(|dir| dir.is_dir());
    dir.unwrap_or_else(|| panic!("{path} is nowhere"))
}

#[tokio::test]
async fn a_worker_that_outruns_every_look_is_ended_by_the_kernel() {
    if !has_groups() {
        return;
    }
    // It takes three times its limit and gives that back, all while nobody looks: an idle worker is looked at every 5 s.
    let begin = "import os, sys, time\nprint('{\"type\":\"ready\"}', flush=True)\nsys.stdin.readline()\n";
    let alone = "kept = b'x' * 300_000_000\ndel kept\nraise SystemExit(7)";
    let by_child = "child = os.fork()\nif child == 0:\n  kept = b'x' * 300_000_000\n  os._exit(0)\nos.waitpid(child, 0)\n";
    // Its parent has an answer for that, or would go on.
    let and_leaves = &format!("{by_child}raise SystemExit(7)");
    let and_stays = &format!("{by_child}while True: time.sleep(1)");
    for bench in Bench::both() {
        for script in [alone, and_leaves, and_stays] {
            let script = &format!("{begin}{script}");
            let memory = Size::mib(96);
            let launch = Launch { memory, ..bench.launch(&["python3", "-c", script]) };
            let mut worker = bench.start(launch).await;
            let heard = within(worker.recv()).await;
            assert!(matches!(&heard, Heard::Message(said) if said.message == Message::Ready), "{heard:?}");
            worker.renewer().renew(false);
            worker.send(&ToWorker::Shutdown).unwrap();
            let (_, exit) = rest(&mut worker).await;
            assert_eq!(exit.describe(), "out of memory (limit 96MiB)", "{exit:?}");
            assert!(bench.processes() == 0, "something of it lives");
        }
    }
}

#[tokio::test]
async fn without_a_group_a_worker_is_looked_at_as_before() {
    let bench = Bench::new();
    let script = "kept = []\nwhile True:\n  kept.append(b'x' * 1_000_000)";
    let launch = Launch { memory: Size::mib(96), cgroup: false, ..bench.launch(&["python3", "-c", script]) };
    let mut worker = bench.start(launch).await;
    let groups = fs::read_to_string(format!("/proc/{}/cgroup", worker.pid())).unwrap_or_default();
    assert!(!groups.contains("/lastword-") || groups.contains("/lastword-replica"), "{groups}");
    let (_, exit) = rest(&mut worker).await;
    assert_eq!(exit.describe(), "out of memory (limit 96MiB)", "{exit:?}");
}

#[tokio::test]
async fn a_java_runtime_starts_under_the_default_limit() {
    let bench = Bench::new();
    // Says how much heap it would take, which it makes out of its group's limit where there is one.
    let launch = bench.launch(&["java", "-XshowSettings:vm", "-version"]);
    assert_eq!(launch.memory, Size::mib(1024), "the default");
    match bench.try_start(launch).await {
        Ok(mut worker) => {
            let exit = within(worker.ended()).await;
            assert!(exit.is_clean(), "{exit:?}: {}", worker.stderr_tail());
        }
        Err(why) => eprintln!("skipped: {why}"),
    }
}

#[tokio::test]
async fn a_group_goes_with_its_worker() {
    if !has_groups() {
        return;
    }
    for bench in Bench::both() {
        // Ended by itself, by a kill, by a drop, and by the death of its guard.
        for way in 0..4 {
            let mut worker = bench.sh(&format!("{HIDE} hide; read -r line")).await;
            let hidden = pid_said(&mut worker).await;
            let group = group_of(worker.pid());
            assert_eq!(group_of(hidden), group, "what it starts is in there too");
            assert!(group.join("cgroup.procs").exists());
            match way {
                0 => worker.send(&ToWorker::Shutdown).unwrap(),
                1 => worker.kill(),
                2 => drop(worker),
                _ => kill(parent(worker.pid()), Signal::SIGKILL).unwrap(),
            }
            until("its group is gone", || !group.exists()).await;
        }
    }
}

#[tokio::test]
async fn a_killed_replica_leaves_no_group_and_the_next_one_removes_what_its_guards_could_not() {
    if !has_groups() {
        return;
    }
    let (mut replica, pids) = Replica::start(PATIENCE * 2);
    let group = group_of(pids[0]);
    replica.0.kill().unwrap();
    until("guards remove groups", || !group.exists() && !group.parent().unwrap().exists()).await;

    let (mut replica, pids) = Replica::start(PATIENCE * 2);
    let group = group_of(pids[0]);
    let guard = Pid::from_raw(pids[2]);
    // Neither sees the other's end.
    kill(guard, Signal::SIGSTOP).unwrap();
    replica.0.kill().unwrap();
    kill(guard, Signal::SIGKILL).unwrap();
    let members = || fs::read_to_string(group.join("cgroup.procs")).unwrap();
    // Without a namespace what hid lives on, and so does its group.
    for pid in pids {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    until("all are gone", || members().is_empty()).await;
    assert!(group.exists(), "nobody was there to remove it");
    let (_next, _) = Replica::start(Duration::from_secs(60));
    until("it is swept away", || !group.exists() && !group.parent().unwrap().exists()).await;
}

#[tokio::test]
async fn a_worker_whose_group_cannot_be_made_starts_without() {
    let Some(own) = own_group() else { return };
    let replica = format!(
        "read -r go; exec {} --exact groups::a_replica_without_groups --ignored --nocapture",
        std::env::current_exe().unwrap().display()
    );
    let mut child = Command::new("sh").args(["-c", &replica]).stdin(Stdio::piped()).spawn().unwrap();
    let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
    let start = stat.rsplit_once(") ").unwrap().1.split(' ').nth(19).unwrap();
    let home = own.join(format!("lastword-{}-{start}", child.id()));
    // Number 0 is for the try at the start. All the others are taken.
    let taken: Vec<_> = (1..5).map(|number| home.join(number.to_string())).collect();
    taken.iter().for_each(|dir| fs::create_dir_all(dir).unwrap());
    drop(child.stdin.take());
    let status = child.wait().unwrap();
    taken.iter().for_each(|dir| fs::remove_dir(dir).unwrap());
    fs::remove_dir(&home).unwrap();
    assert!(status.success());
}

#[tokio::test]
#[ignore = "not a test: the replica of another test, for which no group can be made"]
async fn a_replica_without_groups() {
    let bench = Bench::new();
    let greedy = "kept = []\nwhile True:\n  kept.append(b'x' * 1_000_000)";
    let launch = Launch { memory: Size::mib(96), ..bench.launch(&["python3", "-c", greedy]) };
    let mut worker = bench.start(launch).await;
    let groups = fs::read_to_string(format!("/proc/{}/cgroup", worker.pid())).unwrap_or_default();
    assert!(!groups.contains("/lastword-"), "{groups}");
    let (_, exit) = rest(&mut worker).await;
    assert_eq!(exit.describe(), "out of memory (limit 96MiB)", "looked at");
}

/// This process's own group, below which others can be made beside it: one of version 1. Says so where there is none.
fn own_group() -> Option<PathBuf> {
    if cgroup::probe() != Ok(1) {
        eprintln!("skipped: no groups of version 1 here, and others would have to be divided");
        return None;
    }
    let own = fs::read_to_string("/proc/self/cgroup").unwrap();
    let own = own.lines().find_map(|line| line.split_once(":memory:")).unwrap().1.trim_start_matches('/');
    Some(Path::new("/sys/fs/cgroup/memory").join(own))
}

#[tokio::test]
async fn a_limit_above_the_workers_is_not_called_theirs_and_costs_no_other_worker() {
    let Some(own) = own_group() else { return };
    let around = own.join(format!("around-{}", std::process::id()));
    fs::create_dir(&around).unwrap();
    fs::write(around.join("memory.limit_in_bytes"), (300 << 20).to_string()).unwrap();
    let inside = format!(
        "echo 0 > {}/cgroup.procs; exec {} --exact groups::a_replica_in_a_small_group --ignored --nocapture",
        around.display(),
        std::env::current_exe().unwrap().display()
    );
    let done = Command::new("sh").args(["-c", &inside]).output().unwrap();
    until("nothing is left in there", || fs::remove_dir(&around).is_ok()).await;
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

#[tokio::test]
#[ignore = "not a test: the replica that another test has in a small group"]
async fn a_replica_in_a_small_group() {
    let bench = Bench::new();
    let mut modest = bench.sh("read -r line; exit 4").await;
    let greedy = "kept = []\nwhile True:\n  kept.append(b'x' * 1_000_000)";
    let (_, exit) = rest(&mut bench.python(greedy).await).await;
    assert_eq!(exit.describe(), "signal SIGKILL", "its own limit is far");
    // As long as a guard may take to look again.
    tokio::time::sleep(Duration::from_millis(700)).await;
    modest.send(&ToWorker::Shutdown).unwrap();
    let (_, exit) = rest(&mut modest).await;
    assert_eq!(exit.describe(), "exit code 4");
}
