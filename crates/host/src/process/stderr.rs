//! A worker's stderr, which is its log.
//!
//! Owns the last [`TAIL_BYTES_MAX`] for operators, and passes every line to this replica's log at `debug`. Read
//! even while nobody reads the worker's stdout, so that logging never blocks a worker. Clients see it only if the
//! agent exposes errors.

use std::{collections::VecDeque, sync::Arc};

use parking_lot::Mutex;
use tokio::{io::AsyncReadExt, process::ChildStderr, sync::watch};

use super::exit::{Exit, leak_timeout};

/// Bytes kept of the end.
pub const TAIL_BYTES_MAX: usize = 16 * 1024;

/// A longer line is logged in pieces of this many bytes.
const LOGGED_LINE_BYTES_MAX: usize = 4 * 1024;

/// The end of a worker's stderr.
#[derive(Debug)]
pub(super) struct StderrTail {
    bytes: Arc<Mutex<VecDeque<u8>>>,
    /// Closed when the writer is dropped.
    is_open: watch::Sender<()>,
}

impl Default for StderrTail {
    fn default() -> Self {
        StderrTail { bytes: Arc::default(), is_open: watch::Sender::new(()) }
    }
}

impl StderrTail {
    pub(super) fn text(&self) -> String {
        let bytes = self.bytes.lock();
        String::from_utf8_lossy(&bytes.iter().copied().collect::<Vec<_>>()).into_owned()
    }

    /// Adds a line from another source.
    pub(super) fn note(&self, line: &str) {
        keep(&self.bytes, format!("{line}\n").as_bytes());
    }

    /// Waits until nothing more will come.
    pub(super) async fn is_whole(&self) {
        self.is_open.closed().await;
    }

    /// The tail's writer; the tail is complete when it is dropped.
    pub(super) fn writer(&self) -> TailWriter {
        TailWriter { bytes: Arc::clone(&self.bytes), line: Vec::new(), _open: self.is_open.subscribe() }
    }
}

fn keep(tail: &Mutex<VecDeque<u8>>, chunk: &[u8]) {
    let mut bytes = tail.lock();
    bytes.extend(chunk);
    let surplus = bytes.len().saturating_sub(TAIL_BYTES_MAX);
    bytes.drain(..surplus);
}

pub(super) struct TailWriter {
    bytes: Arc<Mutex<VecDeque<u8>>>,
    /// The unfinished last line.
    line: Vec<u8>,
    _open: watch::Receiver<()>,
}

impl TailWriter {
    fn push(&mut self, chunk: &[u8], mut log: impl FnMut(&str)) {
        keep(&self.bytes, chunk);
        for piece in chunk.split_inclusive(|b| *b == b'\n') {
            self.line.extend_from_slice(piece);
            if piece.ends_with(b"\n") || self.line.len() >= LOGGED_LINE_BYTES_MAX {
                self.flush(&mut log);
            }
        }
    }

    fn flush(&mut self, mut log: impl FnMut(&str)) {
        let line = String::from_utf8_lossy(self.line.trim_ascii_end()).into_owned();
        if !line.is_empty() {
            log(&line);
        }
        self.line.clear();
    }
}

/// Reads `stderr` to its end, or until the worker has been gone for [`leak_timeout`].
pub(super) async fn drain(
    mut stderr: ChildStderr,
    mut tail: TailWriter,
    pid: i32,
    mut exit: watch::Receiver<Option<Exit>>,
) {
    let log = |line: &str| tracing::debug!(pid, line, "worker stderr");
    let mut chunk = [0; 4096];
    let mut leak_ends = None;
    loop {
        tokio::select! {
            biased;
            () = leak_timeout(&mut exit, &mut leak_ends) => break,
            read = stderr.read(&mut chunk) => match read {
                Ok(0) | Err(_) => break,
                Ok(n) => tail.push(&chunk[..n], log),
            },
        }
    }
    tail.flush(log);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_kept_and_every_line_is_logged() {
        let tail = StderrTail::default();
        let mut writer = tail.writer();
        let mut logged = Vec::new();
        writer.push(b"first\nsec", |line| logged.push(line.to_owned()));
        writer.push(b"ond\n\n", |line| logged.push(line.to_owned()));
        writer.push(&[b'x'; TAIL_BYTES_MAX], |line| logged.push(line.to_owned()));
        writer.push(b"\xffend", |_| panic!("an unfinished line"));
        assert_eq!(logged[..2], ["first", "second"]);
        assert_eq!(logged.len(), 3, "a line without an end is logged in pieces, not kept");
        let text = tail.text();
        assert!(text.starts_with('x') && text.ends_with("x\u{fffd}end"));
    }
}
