//! A scripted gateway: one script for each incoming request, then it cuts the connection.
//!
//! It does not replace the gateway. It plays the failures of networks, proxies and dying replicas that a real gateway
//! cannot be made to play on request.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    process::{Child, Command, Output, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

/// Longer than anything here should take.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// The turn of all scripts.
pub const TURN: &str = "turn_0190000000007000800000000000000a";

/// One request that came in.
#[derive(Debug, Clone)]
pub struct Request {
    /// Method and path.
    pub line: String,
    headers: Vec<(String, String)>,
    /// The body as JSON; null where there was none.
    pub body: Value,
}

impl Request {
    /// A header; empty where it was not sent.
    pub fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }
}

/// What is done with one request.
pub type Play = Box<dyn Fn(&mut Stream, &Scripted) + Send + Sync>;

/// The server; it plays `plays[n]` at the n-th request, and the last one ever after.
#[derive(Clone)]
pub struct Scripted {
    url: String,
    seen: Arc<Mutex<Vec<Request>>>,
}

impl Scripted {
    /// Starts it on a free port of this machine.
    pub fn start(plays: Vec<Play>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = Scripted { url, seen: Arc::default() };
        let (played, plays) = (server.clone(), Arc::new(plays));
        std::thread::spawn(move || {
            for socket in listener.incoming() {
                let (server, plays) = (played.clone(), plays.clone());
                std::thread::spawn(move || server.serve(socket.unwrap(), &plays));
            }
        });
        server
    }

    fn serve(&self, socket: TcpStream, plays: &[Play]) {
        let Some(request) = read(&socket) else { return };
        let n = {
            let mut seen = self.seen.lock().unwrap();
            seen.push(request);
            seen.len() - 1
        };
        let mut stream = Stream { socket };
        plays[n.min(plays.len() - 1)](&mut stream, self);
    }

    /// Where it listens.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// All requests so far.
    pub fn seen(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }

    /// Waits until a request's line holds `part`; `false` when the time is over.
    pub fn waits_for(&self, part: &str) -> bool {
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            if self.seen().iter().any(|request| request.line.contains(part)) {
                return true;
            }
            std::thread::yield_now();
        }
        false
    }
}

/// The way back to the client. Dropped before [`Stream::end`], the body is cut.
pub struct Stream {
    socket: TcpStream,
}

impl Stream {
    /// A whole JSON response.
    pub fn json(&mut self, status: &str, body: &Value) {
        let (kind, body) = ("application/problem+json", body.to_string());
        let head = format!("HTTP/1.1 {status}\r\ncontent-type: {kind}\r\nconnection: close\r\n");
        let _ = write!(self.socket, "{head}content-length: {}\r\n\r\n{body}", body.len());
    }

    /// The head of an event stream.
    pub fn open(&mut self) -> &mut Self {
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n";
        let _ = write!(self.socket, "{head}transfer-encoding: chunked\r\n\r\n");
        self
    }

    /// A stream that says only when to come back.
    pub fn put_off(&mut self, seconds: u64) {
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n";
        let _ = write!(self.socket, "{head}retry-after: {seconds}\r\ntransfer-encoding: chunked\r\n\r\n");
        self.raw("retry: 1500\n\nevent: reconnect\ndata: {\"code\":\"share_exceeded\"}\n\n");
    }

    /// Bytes of the stream, as one chunk.
    pub fn raw(&mut self, text: &str) -> &mut Self {
        let _ = write!(self.socket, "{:x}\r\n{text}\r\n", text.len());
        self
    }

    /// One event.
    pub fn event(&mut self, seq: i64, kind: &str, fields: Value) -> &mut Self {
        self.raw(&frame(seq, kind, fields))
    }

    /// The clean end of the body.
    pub fn end(&mut self) {
        let _ = self.socket.write_all(b"0\r\n\r\n");
    }

    /// Keep-alives until the client goes away.
    pub fn keep_alive(&mut self) {
        let until = Instant::now() + PATIENCE;
        let (_never, timer) = std::sync::mpsc::sync_channel::<()>(1);
        while Instant::now() < until && self.socket.write_all(b"3\r\n:\n\n\r\n").is_ok() {
            let _ = timer.recv_timeout(Duration::from_millis(50));
        }
    }
}

/// An event as the gateway frames it.
pub fn frame(seq: i64, kind: &str, mut fields: Value) -> String {
    let own = json!({"turn_id": TURN, "seq": seq, "kind": kind, "at": "2026-01-01T00:00:00Z", "attempt": 1});
    for (name, value) in own.as_object().unwrap() {
        fields[name] = value.clone();
    }
    format!("event: {kind}\nid: {seq}\ndata: {fields}\n\n")
}

fn read(socket: &TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(socket);
    let mut next = || {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        Some(line.trim_end().to_owned())
    };
    let line = next()?.rsplit_once(' ')?.0.to_owned();
    let mut headers = Vec::new();
    while let Some((name, value)) = next()?.split_once(": ") {
        headers.push((name.to_ascii_lowercase(), value.to_owned()));
    }
    let mut request = Request { line, headers, body: Value::Null };
    let mut body = vec![0; request.header("content-length").parse().unwrap_or(0)];
    reader.read_exact(&mut body).ok()?;
    request.body = serde_json::from_slice(&body).unwrap_or_default();
    Some(request)
}

/// `lastword` with these arguments, against these servers.
pub fn lastword(servers: &[&Scripted], args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lastword"));
    command.args(args);
    for server in servers {
        command.args(["--url", server.url()]);
    }
    command.env_remove("LASTWORD_URL").env_remove("LASTWORD_TOKEN");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// How a run ended: exit code, stdout, stderr.
pub fn outcome(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

/// Waits for a run to end.
pub fn finish(child: Child) -> (i32, String, String) {
    outcome(&child.wait_with_output().unwrap())
}

/// Runs it to its end.
pub fn run(servers: &[&Scripted], args: &[&str]) -> (i32, String, String) {
    outcome(&lastword(servers, args).output().unwrap())
}
