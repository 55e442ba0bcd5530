//! The history that a worker is told: what was said in its conversation before the turn, as far as there is room.
//!
//! Pure. Keeps I7 for the past: what was said is told with how its turn ended, the newest turn always, and what is left out
//! is said. Refuses to guess: what does not read is an error, since an agent that begins anew without a word is worse.

mod shortened;

use serde::{Deserialize, Serialize};

use self::shortened::shortened;
use crate::{
    agent::History,
    event::Kind,
    frame,
    host::protocol::messages::{Omitted, PastQuestion, Said},
    json::Raw,
    store::past::PastTurn,
    text,
    turn::Status,
};

/// What one turn may take where not all fit, as parts of all: what is longer is shortened, so that older turns are told too.
const TURN_PARTS: (u64, u64) = (3, 4);
/// What names and ids beside input and history take of a worker's line, in bytes.
const ENVELOPE: usize = 1024;
/// Tries to make a history shorter; the first that are needed bring it near its room.
const TRIES_MAX: u32 = 64;

/// A history, and what it lacks.
#[derive(Debug, Clone, Default, PartialEq)]
pub(in crate::worker) struct ToldHistory {
    pub(in crate::worker) said: Vec<Said>,
    pub(in crate::worker) omitted: Option<Omitted>,
}

impl ToldHistory {
    /// What the turn of this ordinal is told of an agent that remembers by itself.
    pub(in crate::worker) fn nothing(ordinal: i64) -> ToldHistory {
        within(&[], ordinal, 0)
    }
}

/// A row of the past does not read.
#[derive(Debug, thiserror::Error)]
#[error("turn {turn} of the conversation does not read: {why}")]
pub(in crate::worker) struct UnreadTurn {
    turn: i64,
    why: serde_json::Error,
}

/// What the turn of this `ordinal` and `input` is told of `past`, which is the newest first.
pub(in crate::worker) fn told(
    past: &[PastTurn],
    ordinal: i64,
    input: &str,
    limits: History,
) -> Result<ToldHistory, UnreadTurn> {
    let mut spoken = Vec::with_capacity(past.len());
    for turn in past {
        spoken.push(Spoken::of(turn).map_err(|why| UnreadTurn { turn: turn.ordinal, why })?);
    }
    let room = frame::BYTES_MAX.saturating_sub(text::one_line(input).len() + ENVELOPE);
    let all: u64 = spoken.iter().map(Spoken::bytes).sum();
    let mut bytes = limits.bytes.0.min(all.max(1));
    for _ in 0..TRIES_MAX {
        let told = within(&spoken, ordinal, bytes);
        // As a part of a line everything may be longer than its text: what is escaped takes up to six times as much.
        let size = text::json_line(&told.said).map_or(usize::MAX, |line| line.len());
        if size <= room {
            return Ok(told);
        }
        bytes = bytes
            .saturating_sub(bytes / 64 + 1)
            .min((u128::from(bytes) * room as u128 / size as u128) as u64);
    }
    Ok(ToldHistory::nothing(ordinal))
}

fn within(spoken: &[Spoken<'_>], ordinal: i64, bytes: u64) -> ToldHistory {
    let all: u64 = spoken.iter().map(Spoken::bytes).sum();
    let turn_max = if all > bytes && spoken.len() > 1 { bytes / TURN_PARTS.1 * TURN_PARTS.0 } else { bytes };
    let (mut left, mut shortened, mut turns) = (bytes, 0, Vec::new());
    for (n, turn) in spoken.iter().enumerate().take_while(|_| bytes > 0) {
        let takes = turn.bytes().min(turn_max);
        // The newest is told in any case.
        if n > 0 && takes > left {
            break;
        }
        left = left.saturating_sub(takes);
        let told = turn.within(takes);
        shortened += u32::from(told.iter().any(|said| said.shortened));
        turns.push(told);
    }
    let before = u64::try_from(ordinal - 1).unwrap_or(0);
    let omitted = Omitted { turns: before.saturating_sub(turns.len() as u64), shortened };
    turns.reverse();
    ToldHistory {
        said: turns.into_iter().flatten().collect(),
        omitted: Some(omitted).filter(Omitted::is_any),
    }
}

/// What was said in one turn.
struct Spoken<'a> {
    turn: &'a PastTurn,
    question: String,
    attachments: Option<Raw>,
    answer: String,
    asks: Vec<PastQuestion>,
    code: Option<String>,
    by: Option<String>,
}

/// The fields of an input, of an event and of a last word that a history is made of.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Fields {
    text: String,
    attachments: Option<Raw>,
    error: Option<HistoryFault>,
    by: Option<String>,
    ask_id: String,
    prompt: String,
    options: Option<Raw>,
    answer: Option<Raw>,
}

#[derive(Deserialize)]
struct HistoryFault {
    code: String,
}

impl<'a> Spoken<'a> {
    fn of(turn: &'a PastTurn) -> Result<Spoken<'a>, serde_json::Error> {
        let input: Fields = serde_json::from_str(&turn.input)?;
        let mut spoken = Spoken {
            turn,
            question: input.text,
            attachments: input.attachments,
            answer: String::new(),
            asks: Vec::new(),
            code: None,
            by: None,
        };
        for (kind, data) in &turn.said {
            let fields: Fields = serde_json::from_str(data)?;
            match kind {
                Kind::Delta | Kind::Content => spoken.answer.push_str(&fields.text),
                Kind::Ask => {
                    let Fields { ask_id, prompt, options, .. } = fields;
                    spoken.asks.push(PastQuestion { ask_id, prompt, options, answer: None });
                }
                Kind::Answer => {
                    let asked = spoken.asks.iter_mut().find(|asked| asked.ask_id == fields.ask_id);
                    asked.into_iter().for_each(|asked| asked.answer = fields.answer.clone());
                }
                _ => {}
            }
        }
        if let Some(word) = &turn.last_word {
            let word: Fields = serde_json::from_str(word)?;
            if turn.status == Status::Completed {
                spoken.answer = word.text;
            }
            spoken.code = word.error.map(|error| error.code);
            spoken.by = word.by;
        }
        Ok(spoken)
    }

    /// What of it was said, in bytes.
    fn bytes(&self) -> u64 {
        (self.question.len() + self.answer.len()) as u64 + self.attachments_bytes() + self.asks_bytes()
    }

    fn attachments_bytes(&self) -> u64 {
        self.attachments.as_ref().map_or(0, bytes_of)
    }

    fn asks_bytes(&self) -> u64 {
        if self.asks.is_empty() { 0 } else { bytes_of(&self.asks) }
    }

    /// It in as many bytes: texts first, shortened where they must be; what has no room beside them is left out.
    fn within(&self, bytes: u64) -> Vec<Said> {
        let (question, answer) = (self.question.len() as u64, self.answer.len() as u64);
        // The shorter text leaves the other what it does not take.
        let for_question = question.min((bytes / 2).max(bytes.saturating_sub(answer)));
        let for_answer = answer.min(bytes - for_question.min(bytes));
        let mut left = bytes - (for_question + for_answer).min(bytes);
        let mut has_room = |wanted: u64| {
            let has_room = wanted <= left;
            left -= if has_room { wanted } else { 0 };
            has_room
        };
        let asks = if has_room(self.asks_bytes()) { self.asks.clone() } else { Vec::new() };
        let attachments = self.attachments.clone().filter(|_| has_room(self.attachments_bytes()));
        let lacks = asks.len() < self.asks.len() || attachments.is_some() != self.attachments.is_some();
        let said = |role: &str, text: &str, max: u64| Said {
            role: role.to_owned(),
            shortened: text.len() as u64 > max,
            text: shortened(text, max),
            turn_id: self.turn.id,
            status: self.turn.status,
            code: self.code.clone(),
            by: self.by.clone(),
            attachments: None,
            asks: Vec::new(),
        };
        let mut user = said("user", &self.question, for_question);
        user.shortened |= lacks;
        (user.attachments, user.asks) = (attachments, asks);
        let mut both = vec![user];
        if !self.answer.is_empty() {
            both.push(said("assistant", &self.answer, for_answer));
        }
        both
    }
}

fn bytes_of(value: &impl Serialize) -> u64 {
    serde_json::to_string(value).map_or(0, |json| json.len() as u64)
}

#[cfg(test)]
mod tests;
