//! Other users of the machine, who can reach its loopback ports and read its list of processes.
//!
//! A superuser of a Postgres can run programs as the server's user; a client that may post turns runs agents. So every
//! Postgres that is started here requires a password, and `lastword dev` a token.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
};

use lastword_devkit::postgres::{Binaries, Options, Postgres};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};

use crate::support::{PATIENCE, children_of, eventually, is_alive, program};

/// Fails unless the server of this URL lets its own user in, and nobody who does not know the password: by its
/// port and by its socket.
async fn assert_closed(what: &str, url: &str, socket_in: Option<&Path>) {
    let mut own = PgConnection::connect(url).await.unwrap_or_else(|why| panic!("{what}: {why}"));
    own.ping().await.unwrap();
    let parsed = reqwest::Url::parse(url).unwrap();
    let password = parsed.password().unwrap_or_else(|| panic!("{what} has no password"));
    assert!(password.len() >= 32, "{what}: a password that can be guessed");
    let mut strangers = Vec::new();
    for word in ["", ":", ":postgres", ":guessed"] {
        let with = url.replace(&format!(":{password}@"), &format!("{word}@"));
        if let Some(dir) = socket_in {
            let port = parsed.port().unwrap_or(5432);
            strangers
                .push(format!("postgres://postgres{word}@localhost:{port}/postgres?host={}", dir.display()));
        }
        strangers.push(with);
    }
    for stranger in strangers {
        let came_in = PgConnection::connect(&stranger).await;
        let why =
            came_in.err().unwrap_or_else(|| panic!("{what}: a stranger came in by {stranger}")).to_string();
        assert!(why.contains("password"), "{what}: {stranger} was refused for another reason: {why}");
    }
}

#[tokio::test]
async fn no_private_postgres_lets_a_stranger_in() {
    let of_tests = Postgres::for_test().unwrap();
    assert_closed("a test's", &of_tests.url(), Some(of_tests.data())).await;
    let place = Place::new("postgres");
    for durable in [false, true] {
        let data = place.0.join(format!("data-{durable}"));
        let options = Options { durable, ..Options::new(data, Binaries::find(None).unwrap()) };
        let postgres = Postgres::start(options).unwrap();
        let what = if durable { "that of `dev`" } else { "that of `demo` and `bench`" };
        assert_closed(what, &postgres.url(), Some(postgres.data())).await;
        let secret = fs::metadata(postgres.data().join("lastword.password")).unwrap();
        assert_eq!(secret.permissions().mode() & 0o077, 0, "{what}: its password can be read");
        let pid = postgres.pid().unwrap();
        let arguments = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
        let url = reqwest::Url::parse(&postgres.url()).unwrap();
        assert!(!arguments.contains(url.password().unwrap()), "{what}: its password stands in `ps`");
    }
}

#[tokio::test]
async fn the_postgres_of_scripts_lets_no_stranger_in() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join(".ci/with-postgres");
    // Says where it is, and stays until its stdin ends.
    let mut child = Command::new(script)
        .arg("echo \"$DATABASE_URL\"; read -r _ || true")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut url = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut url).unwrap();
    let dir = PathBuf::from(url.trim().rsplit_once("host=").unwrap().1);
    assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
    assert_closed("that of scripts", url.trim(), None).await;
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    assert!(child.wait().unwrap().success());
    assert!(!dir.exists(), "its directory is left");
}

/// The same for what no test here starts: the stand-in of a cluster, the compose file, the measures.
#[test]
fn no_file_starts_a_postgres_that_trusts() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut seen, mut trusting) = (0, Vec::new());
    let mut dirs: Vec<PathBuf> =
        ["src", "tests", "deploy", ".ci", "benches", "fuzz/src", "helm"].map(|dir| root.join(dir)).to_vec();
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                dirs.push(path);
                continue;
            }
            let Ok(text) = fs::read_to_string(&path) else { continue };
            seen += usize::from(text.contains("initdb"));
            let is_here = path.ends_with(file!());
            let trusts = |line: &str| {
                let words: Vec<&str> = line.split(|c: char| !c.is_ascii_alphanumeric()).collect();
                let is_rule = words.contains(&"host") || words.contains(&"local") || words.contains(&"auth");
                // Certificates are trusted, or not, in a module of their own.
                let is_rule =
                    is_rule && !line.contains("trust every certificate") && !line.contains("Trust {");
                is_rule && words.contains(&"trust")
            };
            if !is_here {
                let lines = text.lines().filter(|line| trusts(line));
                trusting.extend(lines.map(|line| format!("{}: {line}", path.display())));
            }
        }
    }
    assert!(seen >= 5, "the scripts were not found");
    assert!(trusting.is_empty(), "{}", trusting.join("\n"));
}

#[tokio::test]
async fn nobody_without_its_token_runs_an_agent_of_dev() {
    let place = Place::new("dev");
    let dev = Dev::start(&place);
    let state: Value = serde_json::from_str(&fs::read_to_string(place.0.join("dev.json")).unwrap()).unwrap();
    let url = state["urls"][0].as_str().unwrap();
    let http = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
    let turn = json!({"agent": "demo", "input": "hello"});
    let post = || http.post(format!("{url}/v1/turns")).json(&turn);

    for (path, method) in [
        ("/v1/turns", Method::POST),
        ("/v1/turns", Method::GET),
        ("/v1/agents", Method::GET),
        ("/v1/conversations", Method::POST),
    ] {
        let asked = http.request(method.clone(), format!("{url}{path}")).json(&turn).send().await.unwrap();
        assert_eq!(asked.status(), StatusCode::UNAUTHORIZED, "{method} {path}");
    }
    let pages = http.get(url).send().await.unwrap().text().await.unwrap();

    // As the terminal says: the header from a file, so that no process shows it.
    let header = fs::read_to_string(place.0.join("client.header")).unwrap();
    let (name, value) = header.trim().split_once(": ").unwrap();
    assert_eq!(post().header(name, value).send().await.unwrap().status(), StatusCode::ACCEPTED);
    let said = dev.said.replace('\n', " ");
    assert!(said.contains("curl -N -H @") && said.contains("client.header http://127.0.0.1:"), "{said}");
    let asked = http.get(format!("{url}/v1/workers")).header(name, value).send().await.unwrap();
    assert_eq!(asked.status(), StatusCode::FORBIDDEN, "a client is no operator");

    // The console comes by a file of the user's own.
    let console = fs::read_to_string(place.0.join("console.html")).unwrap();
    let token = console.split_once("#token=").unwrap().1.split_once('"').unwrap().0;
    let asked = http.get(format!("{url}/v1/workers")).bearer_auth(token).send().await.unwrap();
    assert_eq!(asked.status(), StatusCode::OK);
    assert!(console.contains(&format!("url={url}/#token=")));

    let secrets = [token, value.trim_start_matches("Bearer "), state["database_url"].as_str().unwrap()];
    for entry in fs::read_dir(&place.0).unwrap().flatten() {
        let kind = entry.metadata().unwrap();
        assert!(kind.is_dir() || kind.permissions().mode() & 0o077 == 0, "others read {:?}", entry.path());
    }
    let mut pids = vec![i32::try_from(dev.process.id()).unwrap()];
    pids.extend(children_of(pids[0]));
    assert!(pids.len() >= 4, "{pids:?}");
    for pid in pids {
        let arguments = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        for secret in secrets {
            assert!(!arguments.contains(secret), "a secret in the arguments of {pid}");
        }
    }
    for secret in secrets {
        assert!(!pages.contains(secret) && !dev.said.contains(secret), "a secret is shown to everybody");
    }
    dev.leave().await;
}

/// A running `lastword dev`.
struct Dev {
    process: Child,
    /// Kept open: a closed one would break the pipe that it still writes to.
    _stdout: BufReader<ChildStdout>,
    said: String,
}

impl Dev {
    fn start(place: &Place) -> Dev {
        let port = (0..100).map(|_| rand::random_range(12_000..20_000)).find(|port: &u16| {
            let is_free = |port| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok();
            is_free(*port) && is_free(port + 1)
        });
        let mut command = Command::new(program());
        command.args(["dev", "--port", &port.unwrap().to_string(), "--data"]).arg(&place.0);
        // For the harness: it is no key of a configuration.
        command.env_remove("LASTWORD_CHAOS_PROGRAM");
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut stdout = BufReader::new(process.stdout.take().unwrap());
        let mut said = String::new();
        while !said.contains("chat --agent demo") {
            assert!(stdout.read_line(&mut said).unwrap() > 0, "`dev` ended early, having said: {said}");
        }
        Dev { process, _stdout: stdout, said }
    }

    async fn leave(mut self) {
        let pid = i32::try_from(self.process.id()).unwrap();
        let children = children_of(pid);
        kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
        eventually("`dev` leaves", async || self.process.try_wait().unwrap()).await;
        eventually("its processes follow", async || {
            (!children.iter().any(|child| is_alive(*child))).then_some(())
        })
        .await;
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A directory that any user may reach, removed at the end.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Place {
        let name = format!("lastword-local-{name}-{}-{:08x}", std::process::id(), rand::random::<u32>());
        let place = std::env::temp_dir().join(name);
        fs::create_dir(&place).unwrap();
        fs::set_permissions(&place, fs::Permissions::from_mode(0o711)).unwrap();
        Place(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
