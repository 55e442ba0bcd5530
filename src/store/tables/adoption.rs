//! Adoption: moves turns to the replica that their remote worker now calls.
//!
//! Keeps I5 although a move changes the holder without a new epoch: `lw_remote_adopt_v4` decides and commits the move
//! behind the in-flight row's lock, and the new holder reads its starting point behind the same lock. When a replica
//! dies all turns of a host move at once, so one statement moves many.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::remote_turns::Proof;
use crate::{
    agent::READS,
    id::{ConversationId, TurnId, WorkerId},
    store::{
        error::StoreError,
        handle::Store,
        records::{
            assignment::Assignment,
            claim::{Claim, Phase},
            word::{InflightPhase, MoveVerdict, Stored},
        },
    },
    turn::CancelledBy,
    word::Open,
};

/// A turn to be moved to this replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Move {
    /// The turn.
    pub turn: TurnId,
    /// The epoch of the attempt.
    pub epoch: i32,
    /// What entitles the caller.
    pub proof: Proof,
}

/// The result of a move.
#[derive(Debug, Clone)]
pub enum Adoption {
    /// This replica now holds the turn.
    Adopted(Box<Adopted>),
    /// No such turn was offered to this caller.
    Unknown,
    /// The turn has had its last word.
    Ended,
    /// The turn has a newer epoch, or is queued again.
    Stale,
    /// This replica takes on no turns, or cannot read the turn's agent.
    Elsewhere,
}

/// A turn that was moved to this replica.
#[derive(Debug, Clone)]
pub struct Adopted {
    /// As if this replica had claimed the turn; `last_seq` is the newest event's.
    pub claim: Claim,
    /// The turn's worker.
    pub worker: WorkerId,
    /// SHA-256 of the turn's token.
    pub token_hash: [u8; 32],
    /// Whether the worker has taken the turn.
    pub is_running: bool,
    /// Milliseconds until the current clock lapses.
    pub left_ms: i64,
    /// When the worker took the turn.
    pub started_at: Option<DateTime<Utc>>,
    /// Who asked for the cancel, if anybody. The worker may have been told already.
    pub cancelled_by: Option<Open<CancelledBy>>,
}

impl Store {
    /// Moves these turns to this replica, in one commit; one result each, in the order of `moves`. No turn may be named
    /// twice. A repeat is harmless. If another session has locked a row, only that turn's result is an error.
    pub async fn adopt(&self, moves: &[Move]) -> Result<Vec<Result<Adoption, StoreError>>, StoreError> {
        match self.move_here(moves, false).await {
            Err(why) if why.is_held() && moves.len() > 1 => self.move_here(moves, true).await,
            moved => moved,
        }
    }

    async fn move_here(
        &self,
        moves: &[Move],
        passes_over_locked: bool,
    ) -> Result<Vec<Result<Adoption, StoreError>>, StoreError> {
        let turns: Vec<Uuid> = moves.iter().map(|it| it.turn.0).collect();
        let epochs: Vec<i32> = moves.iter().map(|it| it.epoch).collect();
        let mut workers: Vec<Option<Uuid>> = Vec::with_capacity(moves.len());
        let mut hashes: Vec<Option<Vec<u8>>> = Vec::with_capacity(moves.len());
        for it in moves {
            let (worker, hash) = match it.proof {
                Proof::Worker(worker) => (Some(worker.0), None),
                Proof::Token(hash) => (None, Some(hash.to_vec())),
            };
            workers.push(worker);
            hashes.push(hash);
        }
        let query = sqlx::query_as!(
            AdoptionRow,
            r#"
            select a.o_verdict as "verdict!: Stored<Open<MoveVerdict>>", a.o_worker as worker, a.o_hash as hash,
                   a.o_conversation as conversation, a.o_phase as "phase: Stored<Open<InflightPhase>>", a.o_last_seq as last_seq,
                   a.o_generation as generation, a.o_cap_left_ms as cap_left_ms, a.o_left_ms as left_ms,
                   a.o_started_at as started_at, a.o_cancelled_by as "cancelled_by: Stored<Open<CancelledBy>>", t.agent as "agent?",
                   t.agent_revision as "agent_revision?", t.ordinal as "ordinal?", t.input as "input?",
                   t.traceparent as "traceparent?"
              from lastword.lw_remote_adopt_v4($1, $2, $3, $4, $5, $6, $7) a
              left join lateral (
                select * from lastword.turns t
                 where t.id = ($1::uuid[])[a.o_place] and a.o_verdict = 'adopted' limit 1) t on true
             order by a.o_place
            "#,
            &turns,
            &epochs,
            self.replica().0,
            &workers as &[Option<Uuid>],
            &hashes as &[Option<Vec<u8>>],
            passes_over_locked,
            READS,
        );
        let rows = self.fetch_all("adopt", query).await?;
        let adoptions: Vec<_> = moves.iter().zip(rows).map(|(it, row)| row.read(it)).collect();
        let mut has_moved = false;
        for adoption in adoptions.iter().flatten() {
            if let Adoption::Adopted(adopted) = adoption {
                let Claim { turn, epoch, last_seq, .. } = adopted.claim;
                self.seen_commits().saw(turn, epoch, last_seq);
                has_moved = true;
            }
        }
        if has_moved {
            // Former holders notice and let go; this replica reads the turns' orders.
            self.wake().orders_left();
        }
        Ok(adoptions)
    }
}

/// The statement's answer for one turn.
struct AdoptionRow {
    verdict: Stored<Open<MoveVerdict>>,
    worker: Option<Uuid>,
    hash: Option<Vec<u8>>,
    conversation: Option<Uuid>,
    phase: Option<Stored<Open<InflightPhase>>>,
    last_seq: Option<i32>,
    generation: Option<i64>,
    cap_left_ms: Option<i64>,
    left_ms: Option<i64>,
    started_at: Option<DateTime<Utc>>,
    cancelled_by: Option<Stored<Open<CancelledBy>>>,
    agent: Option<String>,
    agent_revision: Option<i32>,
    ordinal: Option<i64>,
    input: Option<String>,
    traceparent: Option<String>,
}

impl AdoptionRow {
    fn read(self, asked: &Move) -> Result<Adoption, StoreError> {
        match self.verdict.0 {
            Open::Known(MoveVerdict::Ended) => Ok(Adoption::Ended),
            Open::Known(MoveVerdict::Stale) => Ok(Adoption::Stale),
            // A newer release's verdict: another replica may understand it.
            Open::Known(MoveVerdict::Elsewhere) | Open::Foreign(_) => Ok(Adoption::Elsewhere),
            Open::Known(MoveVerdict::Locked) => {
                Err(StoreError::Held { op: "adopt", why: format!("the row of {}", asked.turn) })
            }
            Open::Known(MoveVerdict::Adopted) => {
                let adopted = self.adopted(asked);
                let adopted =
                    adopted.ok_or_else(|| StoreError::unreadable("adopt", "a row without its fields"));
                Ok(Adoption::Adopted(Box::new(adopted?)))
            }
            Open::Known(MoveVerdict::Unknown) => Ok(Adoption::Unknown),
        }
    }

    fn adopted(self, asked: &Move) -> Option<Adopted> {
        let assignment = Assignment {
            agent: self.agent?,
            agent_revision: self.agent_revision?,
            ordinal: self.ordinal?,
            input: self.input?,
            traceparent: self.traceparent?,
        };
        let worker = WorkerId(self.worker?);
        let is_running = self.phase?.0 == InflightPhase::Running;
        let claim = Claim {
            turn: asked.turn,
            conversation: ConversationId(self.conversation?),
            epoch: asked.epoch,
            last_seq: self.last_seq?,
            generation: self.generation?,
            cap_left_ms: self.cap_left_ms?,
            waited_ms: 0,
            phase: if is_running { Phase::Running(worker) } else { Phase::Starting },
            assignment,
        };
        let token_hash = self.hash?.try_into().ok()?;
        let (left_ms, started_at, cancelled_by) =
            (self.left_ms?, self.started_at, self.cancelled_by.map(|by| by.0));
        Some(Adopted { claim, worker, token_hash, is_running, left_ms, started_at, cancelled_by })
    }
}
