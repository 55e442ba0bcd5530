//! Rebuilds the state of a turn from its log, for a replica that takes over the turn: the number of worker
//! messages, the transcript, the open questions.
//!
//! Keeps I4 across a change of holder. Every event of an attempt except `started` and the user's answers is one
//! message of the worker, so counting events gives the number of the last message received.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Deserialize;

use super::{job::Job, transcript::Transcript};
use crate::{
    event::{Event, Kind, SharedEvent},
    json::Raw,
    store::{Store, StoreError, adoption::Adopted},
    turn::CancelledBy,
    word::Open,
    worker::deps::Deps,
};

const PAGE: i64 = 1000;

/// The state of a turn before this replica's part of it.
#[derive(Debug, Default)]
pub(in crate::worker) struct Replay {
    /// The newest event's `seq`.
    pub(in crate::worker) base: i32,
    /// Messages of the worker that became events.
    pub(in crate::worker) heard: u64,
    pub(in crate::worker) transcript: Transcript,
    pub(in crate::worker) has_answered: bool,
    /// Answered questions: id and answer.
    pub(in crate::worker) answers: Vec<(String, Raw)>,
    pub(in crate::worker) started_at: Option<DateTime<Utc>>,
    pub(in crate::worker) last_progress_at: Option<DateTime<Utc>>,
    /// Time until the current clock's deadline.
    pub(in crate::worker) left: Duration,
    /// Who asked for the cancel. The worker may have obeyed the cancel on the former replica and report
    /// `cancelled` before this replica has read the command.
    pub(in crate::worker) cancelled_by: Option<Open<CancelledBy>>,
}

/// The fields of an `answer` event.
#[derive(Deserialize)]
struct AnswerRecord {
    ask_id: String,
    answer: Raw,
}

impl Replay {
    /// The state right after the hand-over, with `started` at seq `base`.
    pub(in crate::worker) fn started(deps: &Deps, job: &Job, base: i32) -> Replay {
        let left = job.agent.spec.timeouts.progress.0;
        let started_at = Some(deps.store.clock().now());
        Replay { base, left, started_at, ..Replay::default() }
    }

    /// Reads the log of a turn that is now held here, after its `beginning`. No other replica can append any more.
    pub(in crate::worker) async fn read(
        store: &Store,
        adopted: &Adopted,
        beginning: Vec<SharedEvent>,
    ) -> Result<Replay, StoreError> {
        let left = Duration::from_millis(u64::try_from(adopted.left_ms).unwrap_or(0));
        let (started_at, cancelled_by) = (adopted.started_at, adopted.cancelled_by.clone());
        let mut replay = Replay { started_at, left, cancelled_by, ..Replay::default() };
        let mut events = beginning;
        loop {
            let Some(last) = events.last() else {
                return Err(StoreError::unreadable("adopt", "the log ends before its newest event"));
            };
            replay.base = last.seq;
            for event in events.iter().filter(|event| event.attempt == adopted.claim.epoch) {
                replay.recall(event);
            }
            if replay.base >= adopted.claim.last_seq {
                return Ok(replay);
            }
            events = store.read_after(adopted.claim.turn, replay.base, PAGE).await?;
        }
    }

    fn recall(&mut self, event: &Event) {
        match event.kind {
            Kind::Accepted | Kind::Started => return,
            Kind::Answer => {
                if let Ok(AnswerRecord { ask_id, answer }) = serde_json::from_str(&event.data) {
                    self.answers.push((ask_id, answer));
                }
            }
            kind => {
                self.heard += 1;
                self.has_answered |=
                    matches!(kind, Kind::Delta | Kind::Content | Kind::Ask | Kind::Foreign(_));
            }
        }
        self.last_progress_at = Some(event.at);
        self.transcript.recall(event.kind, &event.data);
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::id::TurnId;

    #[test]
    fn a_log_tells_how_many_messages_were_heard() {
        let mut replay = Replay::default();
        let said = [
            (Kind::Started, r#"{"worker_id":null}"#),
            (Kind::Delta, r#"{"text":"a"}"#),
            (Kind::Ask, r#"{"ask_id":"q1","prompt":"?"}"#),
            (Kind::Ask, r#"{"ask_id":"q2","prompt":"?"}"#),
            (Kind::Answer, r#"{"ask_id":"q1","answer":{"yes":1}}"#),
            (Kind::Status, r#"{"state":"working"}"#),
        ];
        for (seq, (kind, data)) in (1..).zip(said) {
            let (turn_id, at) = (TurnId(Uuid::nil()), DateTime::UNIX_EPOCH);
            replay.recall(&Event { turn_id, seq, kind, attempt: 1, data: data.to_owned(), at });
        }
        assert_eq!(replay.heard, 4);
        assert_eq!(replay.answers, [("q1".to_owned(), Raw::of("{\"yes\":1}".to_owned()).unwrap())]);
        assert!(replay.has_answered && replay.transcript.is_asking());
        assert!(replay.transcript.take_ask("q2") && !replay.transcript.take_ask("q1"));
    }
}
