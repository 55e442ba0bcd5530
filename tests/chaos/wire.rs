//! The wire protocol of Postgres, as far as needed to know what was committed.
//!
//! Owns one connection's framing and its memory: named statements, portals, and requests without an answer yet. Changes
//! no byte. Refuses to guess: traffic that it cannot parse (TLS) passes unread, and an answer that is held until its
//! end is delivered whole or not at all.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

/// What of a message is kept to be read; names and the texts of statements are at its start.
const KEPT_MAX: usize = 256 * 1024;
/// An answer beyond this is no write's; it passes.
const WITHHELD_MAX: usize = 1024 * 1024;
/// The codes in place of a protocol version.
const SSL_REQUEST: u32 = 80_877_103;
const GSS_REQUEST: u32 = 80_877_104;

/// Which commits are to go unheard, and how many.
#[derive(Debug, Default)]
pub struct Armed {
    /// Requests still to be cut.
    pub left: u32,
    /// A part of the statement's text.
    pub pattern: String,
    /// Requests that were cut.
    pub done: u64,
}

/// What to do with bytes of the server's.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// Give these to the client; often all that came, sometimes none yet.
    Pass(Vec<u8>),
    /// The commit happened; the client must not hear of it.
    Cut,
}

/// One connection's talk.
#[derive(Debug, Default)]
pub struct Talk {
    requests: Messages,
    answers: Messages,
    is_started: bool,
    /// The server's next byte answers the client's wish for encryption.
    is_encryption_asked: bool,
    is_opaque: bool,
    statements: HashMap<Vec<u8>, Arc<str>>,
    portals: HashMap<Vec<u8>, Arc<str>>,
    /// Requests whose `ReadyForQuery` is to come; true where it is one to be cut.
    pending: VecDeque<bool>,
    is_marked: bool,
    outcome: Outcome,
    withheld: Vec<u8>,
}

/// How the request at hand went so far.
#[derive(Debug, Default)]
struct Outcome {
    is_complete: bool,
    has_failed: bool,
}

impl Talk {
    /// Reads bytes of the client's on their way; marks a request that is to be cut.
    pub fn request(&mut self, bytes: &[u8], armed: &mut Armed) {
        let mut rest = bytes;
        while !rest.is_empty() && !self.is_opaque {
            let has_tag = self.is_started;
            let (taken, message) = self.requests.take(rest, has_tag);
            rest = &rest[taken..];
            if let Some(message) = message {
                self.note(&message, armed);
            }
        }
    }

    fn note(&mut self, message: &Message, armed: &mut Armed) {
        let mut body = message.body.as_slice();
        match message.tag {
            None => match number(body) {
                SSL_REQUEST | GSS_REQUEST => self.is_encryption_asked = true,
                _ => {
                    self.is_started = true;
                    // The welcome ends as an answer does.
                    self.pending.push_back(false);
                }
            },
            Some(b'P') => {
                let (name, text) = (text(&mut body), text(&mut body));
                self.statements.insert(name, String::from_utf8_lossy(&text).into());
            }
            Some(b'B') => {
                let (portal, statement) = (text(&mut body), text(&mut body));
                if let Some(text) = self.statements.get(&statement) {
                    self.portals.insert(portal, text.clone());
                }
            }
            Some(b'E') => {
                if let Some(text) = self.portals.get(&text(&mut body)).cloned() {
                    self.mark(&text, armed);
                }
            }
            Some(b'C') if body.first() == Some(&b'S') => {
                body = &body[1..];
                self.statements.remove(&text(&mut body));
            }
            Some(b'Q') => {
                let text = text(&mut body);
                self.mark(&String::from_utf8_lossy(&text), armed);
                self.pending.push_back(std::mem::take(&mut self.is_marked));
            }
            Some(b'S' | b'F') => self.pending.push_back(std::mem::take(&mut self.is_marked)),
            Some(_) => {}
        }
    }

    fn mark(&mut self, text: &str, armed: &mut Armed) {
        if !self.is_marked && armed.left > 0 && text.contains(&armed.pattern) {
            armed.left -= 1;
            self.is_marked = true;
        }
    }

    /// The connection is over: what was marked and has not been answered is still to be cut elsewhere.
    pub fn end(&mut self, armed: &mut Armed) {
        let unanswered = self.pending.drain(..).filter(|&is_marked| is_marked).count();
        armed.left += u32::from(std::mem::take(&mut self.is_marked)) + u32::try_from(unanswered).unwrap_or(0);
    }

    /// Reads bytes of the server's; tells what of them may pass.
    pub fn answer(&mut self, bytes: &[u8], armed: &mut Armed) -> Answer {
        let mut out = Vec::with_capacity(bytes.len());
        let mut rest = bytes;
        if self.is_encryption_asked && !rest.is_empty() {
            self.is_encryption_asked = false;
            self.is_opaque = rest[0] != b'N';
            out.push(rest[0]);
            rest = &rest[1..];
        }
        while !rest.is_empty() && !self.is_opaque {
            let is_withheld = self.pending.front() == Some(&true);
            let (taken, message) = self.answers.take(rest, true);
            let kept = if is_withheld { &mut self.withheld } else { &mut out };
            kept.extend_from_slice(&rest[..taken]);
            rest = &rest[taken..];
            if self.withheld.len() > WITHHELD_MAX
                && let Some(front) = self.pending.front_mut()
            {
                *front = false;
                armed.left += 1;
                out.append(&mut self.withheld);
            }
            if let Some(message) = message
                && self.hear(&message, armed, &mut out)
            {
                return Answer::Cut;
            }
        }
        out.extend_from_slice(rest);
        Answer::Pass(out)
    }

    /// Takes in one whole message; true when it is the end of a commit to be cut.
    fn hear(&mut self, message: &Message, armed: &mut Armed, out: &mut Vec<u8>) -> bool {
        match message.tag {
            Some(b'C') => self.outcome.is_complete = true,
            Some(b'E') => self.outcome.has_failed = true,
            Some(b'Z') => {
                let outcome = std::mem::take(&mut self.outcome);
                if self.pending.pop_front() == Some(true) {
                    // `I`: no transaction is open, so what completed has been committed.
                    if outcome.is_complete && !outcome.has_failed && message.body == b"I" {
                        armed.done += 1;
                        return true;
                    }
                    armed.left += 1;
                    out.append(&mut self.withheld);
                }
            }
            _ => {}
        }
        false
    }
}

/// A message, or the start of a long one.
#[derive(Debug)]
struct Message {
    /// `None` for what a client says before it is let in.
    tag: Option<u8>,
    body: Vec<u8>,
}

/// Cuts bytes into messages, however they were cut into pieces on their way.
#[derive(Debug, Default)]
struct Messages {
    head: Vec<u8>,
    body: Vec<u8>,
    /// Bytes of the body that are still to come; known once the head is whole.
    left: usize,
}

impl Messages {
    /// Takes bytes up to the end of the message at hand; how many, and the message where it ended.
    fn take(&mut self, bytes: &[u8], has_tag: bool) -> (usize, Option<Message>) {
        let head_len = if has_tag { 5 } else { 4 };
        let mut taken = (head_len - self.head.len().min(head_len)).min(bytes.len());
        if taken > 0 {
            self.head.extend_from_slice(&bytes[..taken]);
            if self.head.len() < head_len {
                return (taken, None);
            }
            // It counts itself, not the tag.
            self.left = number(&self.head[head_len - 4..]).saturating_sub(4) as usize;
        }
        let body = &bytes[taken..];
        let more = self.left.min(body.len());
        let kept = more.min(KEPT_MAX.saturating_sub(self.body.len()));
        self.body.extend_from_slice(&body[..kept]);
        self.left -= more;
        taken += more;
        if self.left > 0 {
            return (taken, None);
        }
        let tag = has_tag.then(|| self.head[0]);
        self.head.clear();
        (taken, Some(Message { tag, body: std::mem::take(&mut self.body) }))
    }
}

/// The number in the first four bytes; less than four count as if zeros stood before them.
fn number(bytes: &[u8]) -> u32 {
    bytes.iter().take(4).fold(0, |number, &byte| number << 8 | u32::from(byte))
}

/// The text up to a zero byte, which it takes off.
fn text(body: &mut &[u8]) -> Vec<u8> {
    let end = body.iter().position(|&byte| byte == 0).unwrap_or(body.len());
    let text = body[..end].to_vec();
    *body = &body[(end + 1).min(body.len())..];
    text
}
