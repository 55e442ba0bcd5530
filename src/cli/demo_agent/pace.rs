//! The demo agent for measurements: many turns at once, each piece stamped with its time.
//!
//! Owns the script of a measured turn, and the stamp from which a reader computes latency: the steady clock that
//! all processes of a machine share. One thread reads and writes, since a hand-over between threads would be
//! measured too. A piece that was due while the pipe was full carries its due time, so back-pressure counts as
//! latency.

use std::{
    io::{self, Write as _},
    os::fd::AsFd as _,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    unistd,
};

use serde::Deserialize;

use crate::clock::steady_ns;

/// What a measured turn may ask for.
pub const HELP: &str = "\
With --pace the agent serves many turns at once, and stamps each piece with its time:
  /pace COUNT RATE BYTES [SECONDS]
                        COUNT pieces of BYTES bytes, RATE a second; with RATE 0 all at once;
                        the first after SECONDS
  /pour SECONDS BYTES   pieces as fast as they go
  /hold SECONDS         one piece, then nothing for SECONDS
  anything else         one piece";

/// Hexadecimal digits of the stamp at the start of each piece.
pub const STAMP_DIGITS: usize = 16;
/// Pieces of one turn in one write, so that a fast turn does not delay the others.
const CHUNK_PIECES: u64 = 64;

/// The script of a turn, from its message.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Script {
    /// The number of pieces; `None`: until the time is over.
    count: Option<u64>,
    /// Nanoseconds between pieces; zero: no pause.
    interval_ns: u64,
    /// Nanoseconds before the first piece.
    delay_ns: u64,
    /// Bytes of a piece.
    bytes: usize,
    /// The turn lasts at least this many nanoseconds.
    lasts_ns: u64,
}

impl Script {
    fn read(text: &str) -> Script {
        let mut words = text.split_whitespace();
        let command = words.next().unwrap_or_default();
        let mut number = |default: f64| words.next().and_then(|word| word.parse().ok()).unwrap_or(default);
        let one = Script { count: Some(1), interval_ns: 0, delay_ns: 0, bytes: 20, lasts_ns: 0 };
        match command {
            "/pace" => Script {
                count: Some(number(1.0) as u64),
                interval_ns: Some(number(0.0))
                    .filter(|rate| *rate > 0.0)
                    .map_or(0, |rate| (1e9 / rate) as u64),
                bytes: (number(20.0) as usize).max(STAMP_DIGITS),
                delay_ns: (number(0.0) * 1e9) as u64,
                ..one
            },
            "/pour" => Script {
                count: None,
                lasts_ns: (number(1.0) * 1e9) as u64,
                bytes: (number(20.0) as usize).max(STAMP_DIGITS),
                ..one
            },
            "/hold" => Script { lasts_ns: (number(1.0) * 1e9) as u64, ..one },
            _ => one,
        }
    }
}

/// The orders of the host that matter here.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum PaceOrder {
    Turn {
        turn_id: String,
        #[serde(default)]
        input: PaceInput,
    },
    Cancel {
        turn_id: String,
    },
    Shutdown,
    #[serde(other)]
    Other,
}

#[derive(Deserialize, Default)]
struct PaceInput {
    #[serde(default)]
    text: String,
}

/// A running turn.
struct PacedTurn {
    turn_id: String,
    script: Script,
    began: u64,
    said: u64,
}

impl PacedTurn {
    /// When the next piece is due; `now` or earlier: at once.
    fn due(&self) -> u64 {
        match self.script.count {
            Some(count) if self.said >= count => self.began + self.script.lasts_ns,
            Some(_) => self.began + self.script.delay_ns + self.said * self.script.interval_ns,
            None => 0,
        }
    }

    /// Writes the pieces that are due, at most a chunk. Returns true at the turn's end. `held_until`: when the
    /// pipe accepted the last write.
    fn speak(&mut self, now: u64, held_until: u64, out: &mut Vec<u8>) -> io::Result<bool> {
        for _ in 0..CHUNK_PIECES {
            let (due, is_over) = (self.due(), self.began + self.script.lasts_ns <= now);
            if due > now {
                return Ok(false);
            }
            if self.script.count.map_or(is_over, |count| self.said >= count) {
                writeln!(out, r#"{{"type":"complete","turn_id":"{}"}}"#, self.turn_id)?;
                return Ok(true);
            }
            let is_paced = self.script.interval_ns > 0;
            let stamp = if is_paced && held_until > due { due } else { now };
            let (turn, width) = (&self.turn_id, self.script.bytes - STAMP_DIGITS);
            writeln!(out, r#"{{"type":"delta","turn_id":"{turn}","text":"{stamp:016x}{:.<width$}"}}"#, "")?;
            self.said += 1;
        }
        Ok(false)
    }
}

/// Serves turns until `shutdown` or the end of stdin.
pub fn run() -> io::Result<()> {
    let (stdin, mut stdout) = (io::stdin(), io::stdout().lock());
    let mut pacer = Pacer { out: b"{\"type\":\"ready\"}\n".to_vec(), ..Pacer::default() };
    let mut chunk = vec![0; 64 * 1024];
    loop {
        if !pacer.out.is_empty() {
            stdout.write_all(&pacer.out)?;
            stdout.flush()?;
            pacer.out.clear();
            pacer.held_until = steady_ns();
        }
        if is_readable(&stdin, pacer.wait())? {
            // Bypasses the standard library's buffer: data in that buffer would not wake a poll.
            let taken = match unistd::read(&stdin, &mut chunk) {
                Ok(taken) => taken,
                Err(Errno::EINTR) => continue,
                Err(why) => return Err(why.into()),
            };
            if taken == 0 || !pacer.take(&chunk[..taken])? {
                return Ok(());
            }
        }
        pacer.speak()?;
    }
}

/// Waits for input until `at` on the steady clock; `None`: without limit.
fn is_readable(stdin: &io::Stdin, at: Option<u64>) -> io::Result<bool> {
    let left_ms = at.map(|at| at.saturating_sub(steady_ns()).div_ceil(1_000_000));
    let timeout = match left_ms {
        None => PollTimeout::NONE,
        Some(ms) => i32::try_from(ms).ok().and_then(|ms| ms.try_into().ok()).unwrap_or(PollTimeout::MAX),
    };
    match poll(&mut [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)], timeout) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::EINTR) => Ok(false),
        Err(why) => Err(why.into()),
    }
}

/// All running turns, the unread part of the next order, and the bytes to write.
#[derive(Default)]
struct Pacer {
    jobs: Vec<PacedTurn>,
    unread: Vec<u8>,
    out: Vec<u8>,
    held_until: u64,
}

impl Pacer {
    /// When the next piece of any turn is due; `None`: wait for an order.
    fn wait(&self) -> Option<u64> {
        self.jobs.iter().map(PacedTurn::due).min()
    }

    /// Writes what is due, turn by turn.
    fn speak(&mut self) -> io::Result<()> {
        let (now, held_until, out) = (steady_ns(), self.held_until, &mut self.out);
        let mut broken = None;
        self.jobs.retain_mut(|job| match job.speak(now, held_until, out) {
            Ok(has_ended) => !has_ended,
            Err(why) => {
                broken = Some(why);
                false
            }
        });
        broken.map_or(Ok(()), Err)
    }

    /// Reads bytes of orders. Returns false when told to leave.
    fn take(&mut self, bytes: &[u8]) -> io::Result<bool> {
        let now = steady_ns();
        self.unread.extend_from_slice(bytes);
        let unread = std::mem::take(&mut self.unread);
        let mut rest = &unread[..];
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let (line, after) = rest.split_at(end);
            rest = &after[1..];
            match serde_json::from_slice(line) {
                Ok(PaceOrder::Turn { turn_id, input }) => {
                    self.jobs.push(PacedTurn {
                        turn_id,
                        script: Script::read(&input.text),
                        began: now,
                        said: 0,
                    });
                }
                Ok(PaceOrder::Cancel { turn_id }) => {
                    self.jobs.retain(|job| job.turn_id != turn_id);
                    writeln!(self.out, r#"{{"type":"cancelled","turn_id":"{turn_id}"}}"#)?;
                }
                Ok(PaceOrder::Shutdown) => return Ok(false),
                Ok(PaceOrder::Other) => {}
                Err(why) => eprintln!("demo agent: not an order: {why}"),
            }
        }
        self.unread = rest.to_vec();
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The output of a turn with this message at `now`, one line a piece.
    fn said(text: &str, began: u64, now: u64, held_until: u64) -> (Vec<String>, bool) {
        let mut job = PacedTurn { turn_id: "turn_1".to_owned(), script: Script::read(text), began, said: 0 };
        let mut out = Vec::new();
        let has_ended = job.speak(now, held_until, &mut out).unwrap();
        (String::from_utf8(out).unwrap().lines().map(str::to_owned).collect(), has_ended)
    }

    #[test]
    fn a_piece_has_its_moment_and_its_length() {
        let (lines, has_ended) = said("/pace 2 0 20", 7, 255, 0);
        assert!(has_ended);
        assert_eq!(lines[0], r#"{"type":"delta","turn_id":"turn_1","text":"00000000000000ff...."}"#);
        assert_eq!((lines.len(), lines[2].as_str()), (3, r#"{"type":"complete","turn_id":"turn_1"}"#));
    }

    #[test]
    fn a_piece_that_a_full_pipe_held_back_is_stamped_with_when_it_was_due() {
        let stamps = |held_until| {
            let (lines, _) = said("/pace 3 1000 16", 1_000_000, 4_000_000, held_until);
            let stamp = |line: &String| u64::from_str_radix(line.split('"').nth(11)?, 16).ok();
            lines.iter().filter_map(stamp).collect::<Vec<_>>()
        };
        assert_eq!(stamps(3_500_000), [1_000_000, 2_000_000, 3_000_000]);
        // The agent merely woke late.
        assert_eq!(stamps(0), [4_000_000, 4_000_000, 4_000_000]);
    }

    #[test]
    fn a_turn_that_is_held_says_one_piece_and_ends_when_its_time_is_over() {
        let mut job =
            PacedTurn { turn_id: "t".to_owned(), script: Script::read("/hold 2"), began: 0, said: 0 };
        let mut out = Vec::new();
        assert!(!job.speak(1, 0, &mut out).unwrap());
        assert_eq!((job.said, job.due()), (1, 2_000_000_000));
        assert!(job.speak(2_000_000_000, 0, &mut out).unwrap());
    }

    #[test]
    fn a_script_is_read_in_its_order() {
        let paced = Script::read("/pace 30 10 40 1.5");
        let wanted = Script {
            count: Some(30),
            interval_ns: 100_000_000,
            delay_ns: 1_500_000_000,
            bytes: 40,
            lasts_ns: 0,
        };
        assert_eq!(paced, wanted);
        assert_eq!(
            Script::read("/pour 2 5"),
            Script { count: None, interval_ns: 0, delay_ns: 0, bytes: 16, lasts_ns: 2_000_000_000 }
        );
        assert_eq!(Script::read("hello"), Script::read("/pace 1 0 20"));
    }

    #[test]
    fn orders_may_come_in_pieces() {
        let mut pacer = Pacer::default();
        let order = r#"{"type":"turn","turn_id":"turn_9","input":{"text":"hello"}}"#;
        assert!(pacer.take(&order.as_bytes()[..20]).unwrap());
        assert!(pacer.jobs.is_empty());
        assert!(pacer.take(&[&order.as_bytes()[20..], b"\n"].concat()).unwrap());
        assert_eq!(pacer.jobs.len(), 1);
        assert!(pacer.take(b"{\"type\":\"cancel\",\"turn_id\":\"turn_9\"}\n").unwrap());
        assert!(pacer.jobs.is_empty() && !pacer.out.is_empty());
        assert!(!pacer.take(b"{\"type\":\"shutdown\"}\n").unwrap());
    }
}
