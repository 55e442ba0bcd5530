//! Turns of remote workers: which are claimable, their claims, and moves to another holder.
//!
//! Keeps I10: a claim stores the hash of its turn's token, so that only the worker that was offered the turn can take
//! it. How a turn moves is in [`super::adoption`]; the reasons are in `docs/decisions/0016`.

use std::collections::HashSet;

use uuid::Uuid;

use super::claim::marks;
use crate::{
    agent::{READS, Runtime},
    id::{ConversationId, TurnId, WorkerId},
    principal::Principal,
    store::{
        error::StoreError,
        handle::Store,
        live::queue_hints::FRONT,
        records::{
            assignment::Assignment,
            claim::{Claim, Phase},
            word::Stored,
        },
    },
};

/// Runtimes whose queued turns remote workers take.
const RUNTIMES: [Stored<Runtime>; 1] = [Stored(Runtime::Remote)];

/// A turn that a remote worker could take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The turn.
    pub turn: TurnId,
    /// The turn's agent.
    pub agent: String,
    /// The turn's conversation.
    pub conversation: ConversationId,
    /// The remote worker that served the conversation last.
    pub holder: Option<WorkerId>,
    /// Milliseconds since the turn became claimable.
    pub waited_ms: i64,
    /// Whether a replica holds the turn while it starts a worker: only for a worker of this conversation.
    pub is_reserved: bool,
    /// The agent's revision of the turn.
    pub agent_revision: i32,
}

/// A turn to be claimed for a worker.
#[derive(Debug, Clone, Copy)]
pub struct Bid {
    /// The turn.
    pub turn: TurnId,
    /// The worker.
    pub worker: WorkerId,
    /// SHA-256 of the turn's token.
    pub token_hash: [u8; 32],
}

/// What entitles a caller to have a turn moved here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Proof {
    /// The turn's worker, authenticated by its own token.
    Worker(WorkerId),
    /// The turn's token, as its SHA-256.
    Token([u8; 32]),
}

impl Store {
    /// Turns that workers of any conversation could take: those of these agents, from `from` on, oldest first, 512 at
    /// most. And turns for workers of these conversations, anywhere in the queue. Skipped are turns of `barred`
    /// principals, and turns whose agent needs a higher reader level than this release has.
    pub async fn remote_heads(
        &self,
        agents: &[String],
        conversations: &[ConversationId],
        from: TurnId,
        barred: &[Principal],
    ) -> Result<Vec<Head>, StoreError> {
        let passed_over = self.passed_over().await;
        let conversations: Vec<Uuid> = conversations.iter().map(|conversation| conversation.0).collect();
        let query = sqlx::query!(
            r#"
            (select i.turn_id as "turn!", i.agent as "agent!", i.conversation_id as "conversation!",
                    case when v.holder is null then v.holder_worker end as holder,
                    (extract(epoch from clock_timestamp() - coalesce(i.head_at, i.accepted_at)) * 1000)::bigint
                      as "waited_ms!", false as "is_reserved!", i.agent_revision as "agent_revision!"
               from lastword.inflight i join lastword.conversations v on v.id = i.conversation_id
              where i.phase = 'queued' and i.turn_id >= $4 and i.runtime = any ($1) and i.agent = any ($2)
                and ($5::bytea[] = '{}' or substring(uuid_send(i.turn_id) from 15) <> all ($5))
                and (i.agent || '@' || i.agent_revision) <> all ($6)
                and i.reader_min <= $8
                and i.conversation_id <> all ($3)
                and i.conversation_id <> all ($7)
                and not exists (
                  select from lastword.inflight j where j.conversation_id = i.conversation_id and j.ordinal < i.ordinal)
              order by i.turn_id
              limit 512)
            union all
            -- By their conversations, each the first of its line.
            (select i.turn_id, i.agent, i.conversation_id, case when v.holder is null then v.holder_worker end,
                    case i.phase when 'queued'
                      then (extract(epoch from clock_timestamp() - coalesce(i.head_at, i.accepted_at)) * 1000)::bigint
                      else 0 end, i.phase <> 'queued', i.agent_revision
               from unnest($3::uuid[]) w (id)
              cross join lateral (
                select * from lastword.inflight i where i.conversation_id = w.id order by i.ordinal limit 1) i
               join lastword.conversations v on v.id = i.conversation_id
              where i.conversation_id <> all ($7) and i.reader_min <= $8 and (
                (i.phase = 'queued' and i.runtime = any ($1)
                  and ($5::bytea[] = '{}' or substring(uuid_send(i.turn_id) from 15) <> all ($5))
                  and (i.agent || '@' || i.agent_revision) <> all ($6))
                 or (i.phase = 'starting' and i.runtime <> 'process' and not exists (
                   select from lastword.remote_claims o where o.turn_id = i.turn_id and o.epoch = i.epoch))))
            "#,
            &RUNTIMES as &[Stored<Runtime>],
            agents,
            &conversations,
            from.0,
            &marks(barred),
            &self.agent_cache().unserved(),
            &passed_over,
            READS,
        );
        let rows = self.fetch_all("remote_heads", query).await?;
        let heads = rows.into_iter().map(|row| Head {
            turn: TurnId(row.turn),
            agent: row.agent,
            conversation: ConversationId(row.conversation),
            holder: row.holder.map(WorkerId),
            waited_ms: row.waited_ms,
            is_reserved: row.is_reserved,
            agent_revision: row.agent_revision,
        });
        Ok(heads.collect())
    }

    /// Claims these turns, each for its worker. A turn that is missing from the answer was claimed by another replica.
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
                      from lastword.lw_remote_claim_v1($1, $2, $3, $4) w join lastword.turns t on t.id = w.o_turn
                    "#,
                    self.replica().0,
                    &turns,
                    &workers,
                    &hashes,
                )
                .fetch_all(c)
            })
            .await;
        drop(lease);
        let first = bids.iter().map(|bid| bid.turn).min();
        let rows = self.note_if_locked(rows, first.unwrap_or(FRONT)).await?;
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

    /// Those of these attempts that were offered to the holder of the proof.
    pub async fn offered(
        &self,
        asked: &[(TurnId, i32, Proof)],
    ) -> Result<HashSet<(TurnId, i32, Proof)>, StoreError> {
        let turns: Vec<Uuid> = asked.iter().map(|(turn, ..)| turn.0).collect();
        let epochs: Vec<i32> = asked.iter().map(|(_, epoch, _)| *epoch).collect();
        let query = sqlx::query!(
            r#"
            select o.turn_id, o.epoch, o.worker_id, o.token_hash
              from unnest($1::uuid[], $2::int[]) w (turn_id, epoch)
             cross join lateral (
               select * from lastword.remote_claims o where o.turn_id = w.turn_id and o.epoch = w.epoch limit 1) o
            "#,
            &turns,
            &epochs,
        );
        let rows = self.fetch_all("offered", query).await?;
        let proofs = rows.into_iter().flat_map(|row| {
            let worker = Some(Proof::Worker(WorkerId(row.worker_id)));
            let token = row.token_hash.try_into().ok().map(Proof::Token);
            let (turn, epoch) = (TurnId(row.turn_id), row.epoch);
            [worker, token].into_iter().flatten().map(move |proof| (turn, epoch, proof))
        });
        let proofs: HashSet<_> = proofs.collect();
        Ok(asked.iter().filter(|&it| proofs.contains(it)).copied().collect())
    }

    /// Those of these claims that this replica no longer holds.
    pub async fn strayed(&self, claims: &[(TurnId, i32)]) -> Result<Vec<(TurnId, i32)>, StoreError> {
        let turns: Vec<Uuid> = claims.iter().map(|(turn, _)| turn.0).collect();
        let epochs: Vec<i32> = claims.iter().map(|(_, epoch)| *epoch).collect();
        let query = sqlx::query!(
            r#"
            select w.turn_id as "turn!", w.epoch as "epoch!"
              from unnest($1::uuid[], $2::int[]) w (turn_id, epoch)
             where (select count(*) from (
               select from lastword.inflight i
                where i.turn_id = w.turn_id and i.epoch = w.epoch and i.replica = $3
                limit 1) mine) = 0
            "#,
            &turns,
            &epochs,
            self.replica().0,
        );
        let rows = self.fetch_all("strayed", query).await?;
        Ok(rows.into_iter().map(|row| (TurnId(row.turn), row.epoch)).collect())
    }

    /// Marks an order as carried out; false if this replica no longer holds the turn. The order is then the new
    /// holder's.
    pub async fn take_command_of(&self, id: i64, turn: TurnId, epoch: i32) -> Result<bool, StoreError> {
        let query = sqlx::query!(
            "
            with held as materialized (
              select from lastword.inflight
               where turn_id = $2 and epoch = $3 and replica = $4
                 -- Waits for a move that is under way.
                 for key share)
            update lastword.commands set taken_at = clock_timestamp() where id = $1 and exists (select from held)
            ",
            id,
            turn.0,
            epoch,
            self.replica().0,
        );
        let changed = self.execute("take_command_of", query).await?;
        Ok(changed == 1)
    }
}
