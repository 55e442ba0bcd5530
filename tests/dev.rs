//! `lastword dev` starts everything, restarts what dies, and leaves nothing behind.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

const WAIT_MAX: Duration = Duration::from_secs(60);

#[test]
fn what_dies_is_brought_back_and_an_interrupt_leaves_nothing_behind() {
    let place = Place::new("back");
    let mut dev = Dev::start(&place);
    let before = dev.state();

    end(pid_of(&before, 0), Signal::SIGKILL);
    eventually("the replica is back", || {
        let now = dev.state();
        pid_of(&now, 0) != pid_of(&before, 0) && TcpStream::connect(("127.0.0.1", dev.port)).is_ok()
    });
    assert_eq!(pid_of(&dev.state(), 1), pid_of(&before, 1), "the other replica was disturbed");

    let processes = processes_of(&dev.state());
    assert!(dev.leave_at(Signal::SIGINT).success());
    for pid in processes {
        assert!(!is_alive(pid), "process {pid} outlived `dev`");
    }
    assert!(!place.0.join("dev.json").exists(), "dev.json still says that it runs");
}

#[test]
fn a_second_dev_in_the_same_directory_is_refused_politely() {
    let place = Place::new("second");
    let _dev = Dev::start(&place);
    let second = command(&place, two_free_ports()).output().unwrap();
    assert!(!second.status.success());
    let said = String::from_utf8_lossy(&second.stderr);
    assert!(said.contains("already runs in"), "{said}");
}

#[test]
fn it_comes_up_again_after_everything_was_killed() {
    let place = Place::new("again");
    let mut dev = Dev::start(&place);
    let token = fs::read_to_string(place.0.join("operator.token")).unwrap();
    for pid in processes_of(&dev.state()) {
        end(pid, Signal::SIGKILL);
    }
    dev.process.wait().unwrap();

    let mut again = Dev::start_on(&place, dev.port);
    assert_eq!(fs::read_to_string(place.0.join("operator.token")).unwrap(), token);
    assert!(again.leave_at(Signal::SIGTERM).success());
}

#[test]
fn a_dev_that_is_killed_takes_its_processes_along() {
    let place = Place::new("along");
    let mut dev = Dev::start(&place);
    let processes = processes_of(&dev.state());
    dev.process.kill().unwrap();
    dev.process.wait().unwrap();
    for pid in processes {
        eventually("its processes follow", || !is_alive(pid));
    }
}

/// A running `lastword dev`; a failed test ends it by the kill of its process.
struct Dev {
    process: Child,
    /// Kept open: a closed one would break the pipe that it still writes to.
    _stdout: BufReader<ChildStdout>,
    dir: PathBuf,
    port: u16,
}

impl Dev {
    fn start(place: &Place) -> Dev {
        Dev::start_on(place, two_free_ports())
    }

    fn start_on(place: &Place, port: u16) -> Dev {
        let mut process = command(place, port).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdout = BufReader::new(process.stdout.take().unwrap());
        let mut said = String::new();
        while !said.contains("chat --agent demo") {
            assert!(stdout.read_line(&mut said).unwrap() > 0, "`dev` ended early, having said: {said}");
        }
        Dev { process, _stdout: stdout, dir: place.0.clone(), port }
    }

    fn state(&self) -> Value {
        serde_json::from_str(&fs::read_to_string(self.dir.join("dev.json")).unwrap()).unwrap()
    }

    fn leave_at(&mut self, signal: Signal) -> ExitStatus {
        end(self.process.id(), signal);
        let mut left = None;
        eventually("`dev` leaves", || {
            left = self.process.try_wait().unwrap();
            left.is_some()
        });
        left.unwrap()
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let processes =
            if self.process.try_wait().unwrap().is_none() { processes_of(&self.state()) } else { vec![] };
        let _ = self.process.kill();
        let _ = self.process.wait();
        // The directory is about to be removed under them.
        if !std::thread::panicking() {
            eventually("its processes follow", || !processes.iter().any(|pid| is_alive(*pid)));
        }
    }
}

fn command(place: &Place, port: u16) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lastword"));
    command.args(["dev", "--port", &port.to_string(), "--data"]).arg(&place.0);
    command
}

fn pid_of(state: &Value, replica: usize) -> u32 {
    state["replicas"][replica]["pid"].as_u64().map_or(0, |pid| u32::try_from(pid).unwrap())
}

fn processes_of(state: &Value) -> Vec<u32> {
    let pids = [
        &state["pid"],
        &state["postgres"]["pid"],
        &state["replicas"][0]["pid"],
        &state["replicas"][1]["pid"],
    ];
    pids.iter().filter_map(|pid| pid.as_u64()).map(|pid| u32::try_from(pid).unwrap()).collect()
}

fn end(pid: u32, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
}

/// A process that has ended but was not waited for counts as gone.
fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}

fn two_free_ports() -> u16 {
    let is_free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    (0..100)
        .map(|_| rand::random_range(12_000..20_000))
        .find(|port| is_free(*port) && is_free(port + 1))
        .unwrap()
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + WAIT_MAX;
    while !holds() {
        assert!(Instant::now() < until, "never happened: {what}");
        #[allow(clippy::disallowed_methods, reason = "between two looks at a process")]
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A directory that any user may reach, removed at the end.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Place {
        let name = format!("lastword-dev-{name}-{}-{:08x}", std::process::id(), rand::random::<u32>());
        Place(Path::new(&std::env::temp_dir()).join(name))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
