//! A parser for frames of an event stream.
//!
//! Owns as much of the format as a measuring client needs, and copies as little as possible: the client's own load must
//! not be measured. Refuses a log with a gap: a stream that loses events is fast for the wrong reason.

use anyhow::{Context as _, ensure};

use lastword::{cli::demo_agent::pace::STAMP_DIGITS, event::Kind};

/// One event, in the bytes that it came in.
#[derive(Debug, Clone, Copy)]
pub struct Frame<'a> {
    /// What it says.
    pub kind: Kind,
    /// Its JSON.
    pub data: &'a [u8],
}

impl Frame<'_> {
    /// The moment that the measuring worker wrote into its piece.
    pub fn stamp(&self) -> Option<u64> {
        u64::from_str_radix(self.text("text")?.get(..STAMP_DIGITS)?, 16).ok()
    }

    /// One of its texts, where it has no escapes.
    pub fn text(&self, field: &str) -> Option<&str> {
        let rest = after(self.data, format!("\"{field}\":").as_bytes())?;
        // Postgres writes a blank there, this program none.
        let rest = rest.strip_prefix(b" ").unwrap_or(rest).strip_prefix(b"\"")?;
        let end = rest.iter().position(|byte| *byte == b'"')?;
        std::str::from_utf8(&rest[..end]).ok()
    }
}

/// What has come of a stream, and not been told as frames yet.
#[derive(Debug, Default)]
pub struct Frames {
    rest: Vec<u8>,
    /// How much of the rest is known to hold no end of a frame.
    scanned: usize,
    /// The `seq` of the newest event.
    seq: Option<i64>,
}

impl Frames {
    /// Takes in bytes and tells each frame that is whole by now.
    pub fn feed(&mut self, bytes: &[u8], mut see: impl FnMut(Frame<'_>)) -> anyhow::Result<()> {
        self.rest.extend_from_slice(bytes);
        let mut begin = 0;
        let mut at = self.scanned.saturating_sub(1);
        while let Some(end) = self.rest.get(at..).and_then(|rest| find(rest, b"\n\n")).map(|found| at + found)
        {
            if let Some((frame, seq)) = read(&self.rest[begin..end])? {
                let wanted = self.seq.map_or(seq, |before| before + 1);
                ensure!(seq == wanted, "event {seq} came instead of event {wanted}");
                self.seq = Some(seq);
                see(frame);
            }
            begin = end + 2;
            at = begin;
        }
        self.rest.drain(..begin);
        self.scanned = self.rest.len();
        Ok(())
    }
}

/// A frame and its `seq`; `None` for a comment or a `retry`.
fn read(text: &[u8]) -> anyhow::Result<Option<(Frame<'_>, i64)>> {
    let (mut kind, mut id, mut data) = (None, None, None);
    for line in text.split(|byte| *byte == b'\n') {
        match line.iter().position(|byte| *byte == b':').map(|colon| line.split_at(colon)) {
            Some((b"event", value)) => kind = Some(std::str::from_utf8(value.get(2..).unwrap_or_default())?),
            Some((b"id", value)) => id = Some(std::str::from_utf8(value.get(2..).unwrap_or_default())?),
            Some((b"data", value)) => data = value.get(2..),
            _ => {}
        }
    }
    let Some(kind) = kind else { return Ok(None) };
    ensure!(kind != "reconnect" && kind != "reset", "the stream said `{kind}`");
    let seq = id.context("an event without an id")?.parse().context("an id that is no `seq`")?;
    let frame = Frame { kind: kind.parse()?, data: data.context("an event without data")? };
    Ok(Some((frame, seq)))
}

fn after<'a>(text: &'a [u8], what: &[u8]) -> Option<&'a [u8]> {
    find(text, what).map(|at| &text[at + what.len()..])
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(frames: &mut Frames, bytes: &[u8]) -> anyhow::Result<Vec<String>> {
        let mut seen = Vec::new();
        frames.feed(bytes, |frame| seen.push(frame.kind.to_string()))?;
        Ok(seen)
    }

    #[test]
    fn frames_come_whole_however_the_bytes_are_cut() {
        let text = b"retry: 900\n\n: keep-alive\n\nevent: accepted\nid: 0\ndata: {}\n\nevent: delta\nid: 1\ndata: {}\n\n";
        for cut in 0..text.len() {
            let mut frames = Frames::default();
            let mut seen = kinds(&mut frames, &text[..cut]).unwrap();
            seen.extend(kinds(&mut frames, &text[cut..]).unwrap());
            assert_eq!(seen, ["accepted", "delta"], "cut at {cut}");
        }
    }

    #[test]
    fn a_gap_is_no_result() {
        let frame = |seq| format!("event: delta\nid: {seq}\ndata: {{}}\n\n");
        let mut frames = Frames::default();
        assert!(kinds(&mut frames, frame(4).as_bytes()).is_ok(), "a cursor may begin anywhere");
        let why = kinds(&mut frames, frame(6).as_bytes()).unwrap_err().to_string();
        assert_eq!(why, "event 6 came instead of event 5");
        assert!(kinds(&mut Frames::default(), b"event: reconnect\ndata: {}\n\n").is_err());
    }

    #[test]
    fn the_workers_moment_is_read_from_its_piece() {
        let data = br#"{"turn_id":"turn_1","seq":2,"kind":"delta","text":"00000000000000ff....","worker_id": "wrk_1","n":3}"#;
        let frame = Frame { kind: Kind::Delta, data };
        assert_eq!(
            (frame.stamp(), frame.text("worker_id"), frame.text("agent"), frame.text("n")),
            (Some(255), Some("wrk_1"), None, None)
        );
        assert_eq!(Frame { kind: Kind::Delta, data: br#"{"text":"Hello"}"# }.stamp(), None);
    }
}
