//! A worker's stderr: the worker's log.
//!
//! Owns its last [`TAIL_BYTES_MAX`] for operators and passes every line to this replica's own log
//! at `debug`. It is read whether or not anybody listens to the worker, so that logging alone never
//! blocks one. Clients never see it unless the agent says so.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::{io::AsyncReadExt, process::ChildStderr, sync::watch};

use super::exit::{Exit, leak_timeout};

/// How much of the end is kept, in bytes.
pub const TAIL_BYTES_MAX: usize = 16 * 1024;

/// A longer line is logged in pieces, in bytes.
const LOGGED_LINE_BYTES_MAX: usize = 4 * 1024;

/// The end of a worker's stderr.
#[derive(Debug)]
pub(super) struct StderrTail {
    bytes: Arc<Mutex<VecDeque<u8>>>,
    /// Dropped by the writer at the end.
    is_open: watch::Sender<()>,
}

impl Default for StderrTail {
    fn default() -> Self {
        StderrTail { bytes: Arc::default(), is_open: watch::Sender::new(()) }
    }
}

impl StderrTail {
    /// The end of the text so far.
    pub(super) fn text(&self) -> String {
        let bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes.iter().copied().collect::<Vec<_>>()).into_owned()
    }

    /// Puts in a line that came by another way.
    pub(super) fn note(&self, line: &str) {
        keep(&self.bytes, format!("{line}\n").as_bytes());
    }

    /// Waits until there is nothing more to come.
    pub(super) async fn is_whole(&self) {
        self.is_open.closed().await;
    }

    /// The one that writes it; the tail is whole when this is dropped.
    pub(super) fn writer(&self) -> TailWriter {
        TailWriter { bytes: Arc::clone(&self.bytes), line: Vec::new(), _open: self.is_open.subscribe() }
    }
}

fn keep(tail: &Mutex<VecDeque<u8>>, chunk: &[u8]) {
    let mut bytes = tail.lock().unwrap_or_else(PoisonError::into_inner);
    bytes.extend(chunk);
    let surplus = bytes.len().saturating_sub(TAIL_BYTES_MAX);
    bytes.drain(..surplus);
}

/// Writes a [`StderrTail`].
pub(super) struct TailWriter {
    bytes: Arc<Mutex<VecDeque<u8>>>,
    /// The line that has not ended yet.
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

/// Reads `stderr` to its end, or until the worker has been gone for a while.
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
