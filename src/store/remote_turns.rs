//! Turns of remote workers: which wait, their claims, and the move of a hold.
//!
//! Keeps I5 and I10 where a turn changes its holder without changing its epoch: the move is decided and
//! committed behind the in-flight row's lock (`lw_remote_adopt_v1`), and what the new holder goes on from is
//! read behind it. `docs/decisions/0016` tells why.

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{
    Store, StoreError,
    assignment::Assignment,
    claim::{Claim, Phase, marks},
};
use crate::{
    id::{ConversationId, TurnId, WorkerId},
    principal::Principal,
};

/// Runtimes whose turns remote workers run.
const RUNTIMES: [&str; 1] = ["remote"];

/// A turn that a remote worker could have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Which turn.
    pub turn: TurnId,
    /// Whose.
    pub agent: String,
    /// Its conversation.
    pub conversation: ConversationId,
    /// Whoever served the conversation last: a worker, or, of an agent that was run otherwise, a replica.
    pub holder: Option<Uuid>,
    /// Since when it can be claimed.
    pub waited_ms: i64,
    /// Whether a replica holds it while it brings its worker about: for a worker of that conversation alone.
    pub is_reserved: bool,
    /// What it runs with.
    pub agent_revision: i32,
}

/// Which turn is to be claimed for which worker, and the hash of the token that comes with it.
#[derive(Debug, Clone, Copy)]
pub struct Bid {
    /// The turn.
    pub turn: TurnId,
    /// The worker.
    pub worker: WorkerId,
    /// SHA-256 of the turn's token.
    pub token_hash: [u8; 32],
}

/// Who asks for a turn to be moved here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Proof {
    /// Its worker, which was let in by its own token.
    Worker(WorkerId),
    /// Whoever has the turn's token, of which this is the SHA-256.
    Token([u8; 32]),
}

/// What became of a wish to move a turn here.
#[derive(Debug, Clone)]
pub enum Adoption {
    /// It is held here now.
    Adopted(Box<Adopted>),
    /// No such turn was offered to whoever asks.
    Unknown,
    /// It has had its last word.
    Ended,
    /// Another attempt has it, or it waits for one.
    Stale,
    /// This replica takes on nothing.
    Elsewhere,
}

/// A turn whose hold was moved here.
#[derive(Debug, Clone)]
pub struct Adopted {
    /// As a claim would tell it; `last_seq` is the newest event's.
    pub claim: Claim,
    /// Its worker.
    pub worker: WorkerId,
    /// SHA-256 of its token.
    pub token_hash: [u8; 32],
    /// Whether its worker has taken it.
    pub is_running: bool,
    /// Milliseconds until the clock that runs.
    pub left_ms: i64,
    /// When its worker took it.
    pub started_at: Option<DateTime<Utc>>,
    /// Who asked for its cancel: its worker may know by now.
    pub cancelled_by: Option<String>,
}

impl Store {
    /// Turns that workers of these agents could have, from this one on, the oldest first, 512 at most; and those of
    /// these conversations that wait for a worker of their own. The turns of `barred` are passed over.
    pub async fn remote_heads(
        &self,
        agents: &[String],
        conversations: &[ConversationId],
        from: TurnId,
        barred: &[Principal],
    ) -> Result<Vec<Head>, StoreError> {
        let runtimes = RUNTIMES.map(str::to_owned);
        let conversations: Vec<Uuid> = conversations.iter().map(|conversation| conversation.0).collect();
        let mut lease = self.lease().await?;
        let rows = lease
            .run("remote_heads", |c| {
                sqlx::query!(
                    r#"
                    (select i.turn_id as "turn!", i.agent as "agent!", i.conversation_id as "conversation!", v.holder,
                            (extract(epoch from clock_timestamp() - coalesce(i.head_at, i.accepted_at)) * 1000)::bigint
                              as "waited_ms!", false as "is_reserved!", i.agent_revision as "agent_revision!"
                       from inflight i join conversations v on v.id = i.conversation_id
                      where i.phase = 'queued' and i.turn_id >= $4 and i.runtime = any ($1) and i.agent = any ($2)
                        and ($5::bytea[] = '{}' or substring(uuid_send(i.turn_id) from 15) <> all ($5))
                        and (i.agent || '@' || i.agent_revision) <> all ($6)
                        and not exists (
                          select from inflight j where j.conversation_id = i.conversation_id and j.ordinal < i.ordinal)
                      order by i.turn_id
                      limit 512)
                    union all
                    (select i.turn_id, i.agent, i.conversation_id, v.holder, 0, true,
                            i.agent_revision
                       from inflight i join conversations v on v.id = i.conversation_id
                      where i.conversation_id = any ($3) and i.phase = 'starting' and i.runtime <> 'process'
                        and not exists (
                          select from remote_claims o where o.turn_id = i.turn_id and o.epoch = i.epoch)
                      limit 512)
                    "#,
                    &runtimes,
                    agents,
                    &conversations,
                    from.0,
                    &marks(barred),
                    &self.unserved(),
                )
                .fetch_all(c)
            })
            .await?;
        let heads = rows.into_iter().map(|row| Head {
            turn: TurnId(row.turn),
            agent: row.agent,
            conversation: ConversationId(row.conversation),
            holder: row.holder,
            waited_ms: row.waited_ms,
            is_reserved: row.is_reserved,
            agent_revision: row.agent_revision,
        });
        Ok(heads.collect())
    }

    /// Claims these turns, each for its worker. What is missing from the answer is another's by now.
    pub async fn claim_remote(&self, bids: &[Bid]) -> Result<Vec<(Claim, WorkerId)>, StoreError> {
        let turns: Vec<Uuid> = bids.iter().map(|bid| bid.turn.0).collect();
        let workers: Vec<Uuid> = bids.iter().map(|bid| bid.worker.0).collect();
        let hashes: Vec<Vec<u8>> = bids.iter().map(|bid| bid.token_hash.to_vec()).collect();
        let mut lease = self.lease().await?;
        let rows = lease
            .run("claim_remote", |c| {
                sqlx::query!(
                    r#"
                    select w.o_turn as "turn!", w.o_worker as "worker!", w.o_conversation as "conversation!",
                           w.o_epoch as "epoch!", w.o_last_seq as "last_seq!", w.o_generation as "generation!",
                           w.o_cap_left_ms as "cap_left_ms!", w.o_waited_ms as "waited_ms!",
                           t.agent, t.agent_revision, t.ordinal, t.input, t.traceparent
                      from lw_remote_claim_v1($1, $2, $3, $4) w join turns t on t.id = w.o_turn
                    "#,
                    self.replica().0,
                    &turns,
                    &workers,
                    &hashes,
                )
                .fetch_all(c)
            })
            .await?;
        let claims = rows.into_iter().map(|row| {
            let assignment = Assignment {
                agent: row.agent,
                agent_revision: row.agent_revision,
                ordinal: row.ordinal,
                input: row.input,
                traceparent: row.traceparent,
            };
            let claim = Claim {
                turn: TurnId(row.turn),
                conversation: ConversationId(row.conversation),
                epoch: row.epoch,
                last_seq: row.last_seq,
                generation: row.generation,
                cap_left_ms: row.cap_left_ms,
                waited_ms: row.waited_ms,
                phase: Phase::Starting,
                assignment,
            };
            (claim, WorkerId(row.worker))
        });
        Ok(claims.collect())
    }

    /// Of these attempts, those that were offered to whoever has this proof of them.
    pub async fn offered(
        &self,
        asked: &[(TurnId, i32, Proof)],
    ) -> Result<HashSet<(TurnId, i32, Proof)>, StoreError> {
        let turns: Vec<Uuid> = asked.iter().map(|(turn, ..)| turn.0).collect();
        let epochs: Vec<i32> = asked.iter().map(|(_, epoch, _)| *epoch).collect();
        let mut lease = self.lease().await?;
        let rows = lease
            .run("offered", |c| {
                sqlx::query!(
                    r#"
                    select o.turn_id, o.epoch, o.worker_id, o.token_hash
                      from unnest($1::uuid[], $2::int[]) w (turn_id, epoch)
                     cross join lateral (
                       select * from remote_claims o where o.turn_id = w.turn_id and o.epoch = w.epoch limit 1) o
                    "#,
                    &turns,
                    &epochs,
                )
                .fetch_all(c)
            })
            .await?;
        let proofs = rows.into_iter().flat_map(|row| {
            let worker = Some(Proof::Worker(WorkerId(row.worker_id)));
            let token = row.token_hash.try_into().ok().map(Proof::Token);
            let (turn, epoch) = (TurnId(row.turn_id), row.epoch);
            [worker, token].into_iter().flatten().map(move |proof| (turn, epoch, proof))
        });
        let proofs: HashSet<_> = proofs.collect();
        Ok(asked.iter().filter(|&it| proofs.contains(it)).copied().collect())
    }

    /// Moves a turn's hold here. Repeating it is harmless.
    pub async fn adopt(&self, turn: TurnId, epoch: i32, proof: Proof) -> Result<Adoption, StoreError> {
        let (worker, hash) = match proof {
            Proof::Worker(worker) => (Some(worker.0), None),
            Proof::Token(hash) => (None, Some(hash.to_vec())),
        };
        let mut lease = self.lease().await?;
        let row = lease
            .run("adopt", |c| {
                sqlx::query!(
                    r#"
                    select a.o_verdict as "verdict!", a.o_worker, a.o_hash, a.o_conversation, a.o_phase, a.o_last_seq,
                           a.o_generation, a.o_cap_left_ms, a.o_left_ms, a.o_started_at, a.o_cancelled_by,
                           t.agent as "agent?", t.agent_revision as "agent_revision?", t.ordinal as "ordinal?",
                           t.input as "input?", t.traceparent as "traceparent?"
                      from lw_remote_adopt_v1($1, $2, $3, $4, $5) a left join turns t on t.id = $1
                    "#,
                    turn.0,
                    epoch,
                    self.replica().0,
                    worker,
                    hash,
                )
                .fetch_one(c)
            })
            .await?;
        let adopted = match row.verdict.as_str() {
            "ended" => return Ok(Adoption::Ended),
            "stale" => return Ok(Adoption::Stale),
            "elsewhere" => return Ok(Adoption::Elsewhere),
            "adopted" => (|| {
                let assignment = Assignment {
                    agent: row.agent?,
                    agent_revision: row.agent_revision?,
                    ordinal: row.ordinal?,
                    input: row.input?,
                    traceparent: row.traceparent?,
                };
                let worker = WorkerId(row.o_worker?);
                let is_running = row.o_phase? == "running";
                let claim = Claim {
                    turn,
                    conversation: ConversationId(row.o_conversation?),
                    epoch,
                    last_seq: row.o_last_seq?,
                    generation: row.o_generation?,
                    cap_left_ms: row.o_cap_left_ms?,
                    waited_ms: 0,
                    phase: if is_running { Phase::Running(worker) } else { Phase::Starting },
                    assignment,
                };
                let token_hash = row.o_hash?.try_into().ok()?;
                let (left_ms, started_at) = (row.o_left_ms?, row.o_started_at);
                let cancelled_by = row.o_cancelled_by;
                Some(Adopted { claim, worker, token_hash, is_running, left_ms, started_at, cancelled_by })
            })(),
            _ => return Ok(Adoption::Unknown),
        };
        let adopted = adopted.ok_or_else(|| StoreError::unreadable("adopt", "a row without its fields"))?;
        self.witness().saw(turn, epoch, adopted.claim.last_seq);
        // The former holder looks, and lets go; orders for the turn are read here.
        self.wake().orders_left();
        Ok(Adoption::Adopted(Box::new(adopted)))
    }

    /// Of these claims, those that this replica holds no more.
    pub async fn strayed(&self, claims: &[(TurnId, i32)]) -> Result<Vec<(TurnId, i32)>, StoreError> {
        let turns: Vec<Uuid> = claims.iter().map(|(turn, _)| turn.0).collect();
        let epochs: Vec<i32> = claims.iter().map(|(_, epoch)| *epoch).collect();
        let mut lease = self.lease().await?;
        let rows = lease
            .run("strayed", |c| {
                sqlx::query!(
                    r#"
                    select w.turn_id as "turn!", w.epoch as "epoch!"
                      from unnest($1::uuid[], $2::int[]) w (turn_id, epoch)
                     where (select count(*) from (
                       select from inflight i
                        where i.turn_id = w.turn_id and i.epoch = w.epoch and i.replica = $3
                        limit 1) mine) = 0
                    "#,
                    &turns,
                    &epochs,
                    self.replica().0,
                )
                .fetch_all(c)
            })
            .await?;
        Ok(rows.into_iter().map(|row| (TurnId(row.turn), row.epoch)).collect())
    }

    /// Marks an order as carried out, where this replica still holds the turn: the order must not be lost to
    /// whoever holds it now.
    pub async fn take_command_of(&self, id: i64, turn: TurnId, epoch: i32) -> Result<bool, StoreError> {
        let mut lease = self.lease().await?;
        let done = lease
            .run("take_command_of", |c| {
                sqlx::query!(
                    "
                    with held as materialized (
                      select from inflight
                       where turn_id = $2 and epoch = $3 and replica = $4
                         -- Waits for a move that is under way.
                         for key share)
                    update commands set taken_at = clock_timestamp() where id = $1 and exists (select from held)
                    ",
                    id,
                    turn.0,
                    epoch,
                    self.replica().0,
                )
                .execute(c)
            })
            .await?;
        Ok(done.rows_affected() == 1)
    }
}
