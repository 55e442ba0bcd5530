//! The history: requests, answers, observed events and faults, one line each.
//!
//! Owns the file and its format: one JSON object a line, `t` in microseconds since the run began, `op` the kind of
//! record. An operation begins with `invoke` and ends with `ok`, `fail` (it certainly did not happen) or `info`
//! (unknown: a timeout, a cut connection, a 5xx). Refuses to judge: that is the checker's task, which reads only this
//! file and the database.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, BufWriter, Write},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// How an operation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It begins.
    Invoke,
    /// It happened.
    Ok,
    /// It certainly did not happen.
    Fail,
    /// Nobody knows.
    Info,
}

/// One event as an observer read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sight {
    /// Its `seq`.
    pub seq: i64,
    /// Its kind.
    pub kind: String,
    /// A digest of its fields.
    pub digest: u64,
}

/// One fact.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Fact {
    /// A turn was posted. `nonce` is in its metadata, and no other turn's.
    Post {
        f: Outcome,
        nonce: String,
        is_keyed: bool,
        script: String,
        slot: usize,
        #[serde(skip_serializing_if = "Option::is_none")]
        turn: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        why: Option<String>,
    },
    /// An observer followed a turn to its end, over as many connections as it took.
    Watch {
        f: Outcome,
        who: u8,
        turn: String,
        seen: Vec<Sight>,
        /// The failure's code, where there is one.
        code: String,
        /// What the last word said, of a turn that was completed.
        text: String,
        connects: u32,
        /// The slot that brought the last word.
        slot: usize,
        /// How many of the `seen` stand before the last explicit reset.
        reset_at: usize,
        #[serde(skip_serializing_if = "Option::is_none")]
        why: Option<String>,
    },
    /// A turn was cancelled, or a question answered.
    Order { f: Outcome, order: String, turn: String, slot: usize, why: Option<String> },
    /// Something was broken (`invoke`) or healed (`ok`). `pid` is the victim's process; `turns` are
    /// those that it takes along, where the drill knows them.
    Fault {
        f: Outcome,
        id: u64,
        name: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        slot: Option<usize>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pid: Option<i32>,
        turns: Vec<String>,
    },
    /// Something worth a figure took so long.
    Measure { name: String, us: u64 },
    /// After the last heal: an operation that a replica must serve.
    Last { f: Outcome, slot: usize, what: String, why: Option<String> },
    /// Where the run stands.
    Phase { name: String },
}

/// One line.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Line {
    /// Microseconds since the run began.
    pub t: u64,
    /// What happened.
    #[serde(flatten)]
    pub fact: Fact,
}

/// The file, while it is written.
pub struct History {
    began: Instant,
    path: PathBuf,
    file: Mutex<BufWriter<File>>,
}

impl History {
    /// A new, empty one.
    pub fn create(path: PathBuf) -> io::Result<History> {
        let file = Mutex::new(BufWriter::new(File::create(&path)?));
        Ok(History { began: Instant::now(), path, file })
    }

    /// Writes a fact down.
    pub fn note(&self, fact: Fact) {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        // The time is taken behind the lock: lines stand in the order of their times.
        let line = Line { t: self.now(), fact };
        serde_json::to_writer(&mut *file, &line).expect("a fact is JSON");
        file.write_all(b"\n").expect("the history's disk has room");
    }

    /// Where the run stands.
    pub fn phase(&self, name: &str) {
        self.note(Fact::Phase { name: name.to_owned() });
    }

    /// Microseconds since the run began.
    pub fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Everything noted so far is in the file, which stands here.
    pub fn flush(&self) -> &Path {
        self.file.lock().unwrap_or_else(PoisonError::into_inner).flush().expect("the disk has room");
        &self.path
    }
}

/// Reads a file of lines.
pub fn read(path: &Path) -> anyhow::Result<Vec<Line>> {
    let mut lines = Vec::new();
    for line in BufReader::new(File::open(path)?).lines() {
        lines.push(serde_json::from_str(&line?)?);
    }
    Ok(lines)
}
