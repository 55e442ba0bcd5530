//! Commands that a reader can type on one machine are run, as the pages have them, against a `lastword dev`.
//!
//! What needs a cluster, a checkout to build or hours is not run: [`super::commands`] looks at it.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::TcpListener,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
};

use lastword_devkit::child;
use nix::sys::signal::Signal;
use regex::Regex;
use serde_json::Value;

use super::reading::{blocks, called, commands, pages};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// What lines of a page are made of, where they can be run here.
const PROGRAMS: [&str; 6] = ["lastword", "curl", "echo", "cat", "sleep", "sh"];
/// Commands that go on until they are stopped, measure for long, or want an agent that no page has made by then.
const NOT_RUN: [&str; 5] = ["dev", "serve", "work", "bench", "worker-tokens"];

#[test]
fn the_commands_of_the_pages_do_what_the_pages_say() {
    let dev = Dev::start();
    let mut run = Vec::new();
    let mut turn = None::<String>;
    for page in pages(Path::new(ROOT)) {
        for line in blocks(&page.text, "sh").iter().flat_map(|block| lines(block)) {
            let Some(line) = runnable(&line) else { continue };
            let line = match &turn {
                Some(id) => line.replace("TURN_ID", id),
                None => line,
            };
            let (has_succeeded, said) = dev.run(&line);
            assert!(is_as_shown(&line, has_succeeded, &said), "{}: {line}\n{said}", page.path.display());
            turn = first_turn(&said).or(turn);
            run.push(format!("{}: {line}", page.path.display()));
        }
    }
    assert!(run.len() > 20, "only these were run: {run:#?}");
}

#[test]
fn a_line_that_fails_or_says_something_else_is_noticed() {
    let curl = "curl -N http://127.0.0.1:8080/v1/turns";
    let chat = "lastword chat x   # Agent error: … stopped (3).";
    for (line, has_succeeded, said, is_right) in [
        ("lastword verify", true, "holds", true),
        ("lastword verify", false, "broken", false),
        (curl, true, "event: completed", true),
        (curl, true, r#"{"code":"unauthorized"}"#, false),
        (chat, false, "Agent error: it stopped (3).", true),
        (chat, true, "Hello!", false),
    ] {
        assert_eq!(is_as_shown(line, has_succeeded, said), is_right, "{line}: {said}");
    }
}

/// Whether a line did what its page shows: a success, the last word of a stream, or the error in its comment.
fn is_as_shown(line: &str, has_succeeded: bool, said: &str) -> bool {
    let error = line.find("# Agent error").map(|at| &line[at + 2..]);
    let has_ended = !line.starts_with("curl") || said.contains("event: completed");
    match error {
        Some(error) => !has_succeeded && error.split('…').all(|part| said.contains(part.trim())),
        None => has_succeeded && has_ended,
    }
}

/// The lines of a block, each with what it is continued by.
fn lines(block: &str) -> Vec<String> {
    block.replace("\\\n", " ").lines().map(str::to_owned).collect()
}

/// A line as it can be run here; one for a pod's container as its inner command.
fn runnable(line: &str) -> Option<String> {
    let commands = commands(line);
    let calls: Vec<_> = commands.iter().filter_map(|command| called(command)).collect();
    let can_run = |(program, arguments): &(&str, &[String])| {
        // What stands in brackets came as one word.
        let program = program.split([' ', ';']).next().unwrap();
        PROGRAMS.contains(&program) && !arguments.first().is_some_and(|word| NOT_RUN.contains(&word.as_str()))
    };
    if calls.is_empty() || !calls.iter().all(can_run) {
        return None;
    }
    match commands.first()?.first()?.as_str() {
        "kubectl" => Some(format!("lastword {}", calls.first()?.1.join(" "))),
        _ => Some(line.to_owned()),
    }
}

fn first_turn(said: &str) -> Option<String> {
    let id = Regex::new("turn_[0-9a-f]{32}").unwrap();
    id.find(said).map(|found| found.as_str().to_owned())
}

/// A `lastword dev` in a directory that looks like a checkout in which it was built.
struct Dev {
    process: Child,
    /// Kept open: a closed one would break the pipe that it still writes to.
    _stdout: BufReader<ChildStdout>,
    place: tempfile::TempDir,
    port: u16,
}

impl Dev {
    fn start() -> Dev {
        // The user that Postgres runs as must reach it.
        let everybodys = fs::Permissions::from_mode(0o755);
        let place =
            tempfile::Builder::new().prefix("lastword-docs").permissions(everybodys).tempdir().unwrap();
        let program = place.path().join("target/debug/lastword");
        fs::create_dir_all(program.parent().unwrap()).unwrap();
        symlink(env!("CARGO_BIN_EXE_lastword"), &program).unwrap();
        lay_examples(place.path());

        let port = two_free_ports();
        let mut command = Command::new(&program);
        command.args(["dev", "--data", ".lastword", "--port", &port.to_string()]);
        command.current_dir(place.path()).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut process = child::spawn(command, Signal::SIGTERM).unwrap();
        let mut stdout = BufReader::new(process.stdout.take().unwrap());
        let mut said = String::new();
        while !said.contains("chat --agent demo") {
            assert!(stdout.read_line(&mut said).unwrap() > 0, "`dev` ended early, having said: {said}");
        }
        Dev { process, _stdout: stdout, place, port }
    }

    /// Whether a line succeeded, and what it said.
    fn run(&self, line: &str) -> (bool, String) {
        let data = self.place.path().join(".lastword");
        let state: Value = serde_json::from_slice(&fs::read(data.join("dev.json")).unwrap()).unwrap();
        let here = |port: u16| format!("127.0.0.1:{port}");
        let line = line
            .replace(&here(8080), &here(self.port))
            .replace(&here(8081), &here(self.port + 1))
            .replace("/etc/lastword/auth/operator-tokens", ".lastword/operator.token");
        let mut shell = Command::new("bash");
        for (name, _) in
            std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("LASTWORD_"))
        {
            shell.env_remove(name);
        }
        let path = std::env::var("PATH").unwrap();
        shell.env("PATH", format!("{}:{path}", self.place.path().join("target/debug").display()));
        shell.env("DATABASE_URL", state["database_url"].as_str().unwrap());
        shell.env("LASTWORD_URL", state["urls"][0].as_str().unwrap());
        shell.env("TOKEN", fs::read_to_string(data.join("operator.token")).unwrap().trim());
        shell.args(["-euo", "pipefail", "-c", &format!("{{ {line}\n}} 2>&1")]);
        let done = shell.current_dir(self.place.path()).stdin(Stdio::null()).output().unwrap();
        (done.status.success(), String::from_utf8_lossy(&done.stdout).into_owned())
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = child::send(&self.process, Signal::SIGTERM);
        let _ = self.process.wait();
    }
}

/// The examples, and the README's file of agents, with a real path where theirs say `/path/to`.
fn lay_examples(place: &Path) {
    let root = Path::new(ROOT);
    symlink(root.join("examples"), place.join("workers")).unwrap();
    let path = place.join("workers").display().to_string();
    fs::create_dir(place.join("examples")).unwrap();
    symlink(root.join("examples/worker.sh"), place.join("examples/worker.sh")).unwrap();
    let agents = fs::read_to_string(root.join("examples/agents.toml")).unwrap();
    fs::write(place.join("examples/agents.toml"), agents.replace("/path/to/examples", &path)).unwrap();
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    fs::write(place.join("agents.toml"), blocks(&readme, "toml")[0].replace("/path/to", &path)).unwrap();
}

fn two_free_ports() -> u16 {
    let is_free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    (0..100)
        .map(|_| rand::random_range(20_000..28_000))
        .find(|port| is_free(*port) && is_free(port + 1))
        .unwrap()
}
