-- Accepting turns, many in one commit. One function, since what follows the conversations' locks must be
-- decided with a snapshot taken after them: deciding in the locking statement let two turns run at once.
--
-- The caller sends no two turns of one key or of one conversation together. Everybody locks keys first,
-- then conversations, each in their own order, so that no two accepts wait for each other.
--
-- An offer says that the accepting replica has a place for the turn: what nobody else is to serve is
-- claimed in the same commit, as `starting`. With a worker that is ready it is `running` at once, and that
-- worker receives it as soon as the commit is known; where it is the conversation's own, with its
-- generation, only while no other has taken over.
--
-- Outcomes: `accepted`; `same` (the key or the id is known, `o_turn` is the turn it made; where that one is
-- held by the very caller, its claim comes with it, since the answer to an earlier try may be lost).
-- Refusals, of which nothing stays: LW404 the conversation is gone or another agent's, LW409 a turn is
-- active (its id in the detail), LW412 the agent has a newer revision, LW422 the key came with another
-- body, LW429 the conversation's or the whole queue is full (which one in the detail).
create function lw_accept_v1(
  p_replica uuid,
  p_turns uuid[], p_conversations uuid[], p_are_new boolean[], p_agents text[], p_revisions int[], p_runtimes text[],
  p_inputs text[], p_metadata text[], p_traceparents text[], p_retries_of uuid[],
  p_keys text[], p_hashes text[], p_busy text[],
  p_queue_ms bigint[], p_startup_ms bigint[], p_progress_ms bigint[], p_cap_ms bigint[], p_are_retry_safe boolean[],
  p_depths_max int[], p_queues_max int[],
  p_are_offered boolean[], p_generations bigint[], p_workers uuid[],
  p_events text[], p_starts text[]
) returns table (o_place bigint, o_turn uuid, o_outcome text, o_detail text, o_ordinal bigint, o_at timestamptz,
  o_phase text, o_epoch int, o_last_seq int, o_generation bigint, o_cap_left_ms bigint) language plpgsql as $$
declare
  v_is_claiming boolean;
  v_made int := 0;
  v_now timestamptz;
begin
  -- What looks untouched may have been run before the database went back in time, and who was judged
  -- claims nothing.
  v_is_claiming := lw_all_reconciled_v1()
    and exists (select from replicas r where r.id = p_replica and r.state = 'ready');
  -- Waits for twins whose commit is not known yet.
  if array_remove(p_keys, null) <> '{}' then
    insert into idempotency (key, turn_id, body_hash)
    select w.key, w.turn_id, w.hash from unnest(p_keys, p_turns, p_hashes) w (key, turn_id, hash)
     where w.key is not null order by w.key
        on conflict do nothing;
  end if;
  -- Waits for an earlier try of the same turn that may still be under way.
  if true = any (p_are_new) then
    insert into conversations (id, agent, next_ordinal, holder, generation)
    select w.id, w.agent, 2, case when w.is_held then p_replica end, w.is_held::int
      from (
        select *, v_is_claiming and is_offered and worker is null as is_held
          from unnest(p_conversations, p_agents, p_are_new, p_are_offered, p_workers)
            w (id, agent, is_new, is_offered, worker)) w
     where w.is_new order by w.id
        on conflict do nothing;
    get diagnostics v_made = row_count;
  end if;
  -- Those that were just made are nobody else's yet.
  if v_made < cardinality(p_turns) then
    perform 1 from conversations c where c.id = any (p_conversations) order by c.id for no key update;
  end if;
  v_now := clock_timestamp();

  return query
    with want as materialized (
      select w.*, k.turn_id as known_turn, k.body_hash as known_hash, t.id is not null as is_known, t.ordinal as known_ordinal,
             c.agent as its_agent, c.deleted_at, c.holder, c.generation as its_generation, d.depth, d.active
        from unnest(p_turns, p_conversations, p_are_new, p_agents, p_revisions, p_runtimes, p_inputs, p_metadata,
               p_traceparents, p_retries_of, p_keys, p_hashes, p_busy, p_queue_ms, p_startup_ms, p_progress_ms,
               p_cap_ms, p_are_retry_safe, p_depths_max, p_queues_max, p_are_offered, p_generations, p_workers,
               p_events, p_starts) with ordinality
          w (turn_id, conversation_id, is_new, agent, revision, runtime, input, metadata,
               traceparent, retry_of, key, hash, busy, queue_ms, startup_ms, progress_ms,
               cap_ms, is_retry_safe, depth_max, queue_max, is_offered, generation, worker, event, start, place)
        -- A limit each: looked up one by one, however few the planner takes the others for.
        left join lateral (select * from idempotency k where k.key = w.key limit 1) k on true
        left join lateral (select * from turns t where t.id = w.turn_id limit 1) t on true
        left join lateral (select * from conversations c where c.id = w.conversation_id limit 1) c on true
       cross join lateral (
         select count(*)::int as depth, (array_agg(i.turn_id order by i.ordinal))[1] as active
           from inflight i where i.conversation_id = w.conversation_id) d),
    served as materialized (
      select w.*,
             case
               when not v_is_claiming or w.depth > 0 or not w.is_offered then null
               when w.worker is not null and (w.generation is null
                 or (w.holder = p_replica and w.its_generation = w.generation)) then 'running'
               -- Whoever served the conversation last may have a warm worker: it is left to it.
               when w.holder is null or w.holder = p_replica
                 or not exists (select from replicas h where h.id = w.holder and h.state = 'ready') then 'starting'
             end as claim
        from want w),
    judged as materialized (
      select w.*,
             case when w.known_turn <> w.turn_id and w.known_hash is distinct from w.hash then 'LW422'
                  when w.known_turn <> w.turn_id or w.is_known then 'same'
                  when w.its_agent is distinct from w.agent or w.deleted_at is not null then 'LW404'
                  when (select max(a.revision) from agents a where a.name = w.agent) > w.revision then 'LW412'
                  when w.depth > 0 and w.busy = 'reject' then 'LW409'
                  -- What need not wait has no part in the queue, and need not read it.
                  when w.depth >= w.depth_max or (w.claim is null and (
                    select count(*) from (
                      select from inflight i where i.phase = 'queued'
                       limit (select max(m) from unnest(p_queues_max) m)) q) >= w.queue_max) then 'LW429'
                  else 'accepted' end as outcome
        from served w),
    moved as (
      update conversations c
         set next_ordinal = c.next_ordinal + 1,
             holder = case when j.claim = 'starting' then p_replica else c.holder end,
             -- Another worker takes over wherever no warm one matches.
             generation = c.generation + (j.claim is not distinct from 'starting'
               and not (c.holder is not distinct from p_replica and c.generation is not distinct from j.generation))::int
        from judged j
       where c.id = j.conversation_id and j.outcome = 'accepted' and not j.is_new
      returning c.id, c.next_ordinal - 1 as ordinal, c.generation),
    made as materialized (
      select j.*, coalesce(m.ordinal, 1) as ordinal, coalesce(m.generation, j.its_generation) as new_generation,
             coalesce(j.claim, 'queued') as phase,
             -- Bounded even behind others: nobody before it can take longer than its queue clock and its cap.
             v_now + case when j.claim is null then (j.depth + 1) * (j.queue_ms + j.cap_ms) else j.cap_ms end
               * interval '1 ms' as cap_at
        from judged j left join moved m on m.id = j.conversation_id
       where j.outcome = 'accepted'),
    t as (
      insert into turns (id, conversation_id, ordinal, agent, agent_revision, input, metadata, retry_of, traceparent,
        created_at, status, attempt, started_at)
      select turn_id, conversation_id, ordinal, agent, revision, input, metadata, retry_of, traceparent, v_now,
             case phase when 'running' then 'running' else 'queued' end,
             case phase when 'running' then 1 else 0 end, case phase when 'running' then v_now end
        from made),
    f as (
      insert into inflight (turn_id, conversation_id, ordinal, agent, agent_revision, runtime, phase, epoch, replica,
        worker, last_seq, clock, deadline, cap_at, accepted_at, head_at, claimed_at, started_at,
        queue_ms, startup_ms, progress_ms, cap_ms, is_retry_safe)
      select turn_id, conversation_id, ordinal, agent, revision, runtime, phase, (phase <> 'queued')::int,
             case when phase <> 'queued' then p_replica end, case phase when 'running' then worker end,
             (phase = 'running')::int,
             case phase when 'queued' then 'queue' when 'starting' then 'startup' else 'progress' end,
             least(cap_at, case
               when phase = 'starting' then v_now + startup_ms * interval '1 ms'
               when phase = 'running' then v_now + progress_ms * interval '1 ms'
               when depth = 0 then v_now + queue_ms * interval '1 ms' else cap_at end),
             cap_at, v_now, case when depth = 0 then v_now end, case when phase <> 'queued' then v_now end,
             case phase when 'running' then v_now end, queue_ms, startup_ms, progress_ms, cap_ms, is_retry_safe
        from made),
    e as (
      insert into turn_events (turn_id, seq, kind, attempt, data, at)
      select turn_id, 0, 'accepted', 0, event || ordinal || '}', v_now from made
      union all
      select turn_id, 1, 'started', 1, start, v_now from made where phase = 'running'),
    no_key as (
      delete from idempotency k using judged j
       where k.key = j.key and k.turn_id = j.turn_id and j.outcome like 'LW%'),
    no_conversation as (
      delete from conversations c using judged j
       where c.id = j.conversation_id and j.is_new
         and (j.outcome like 'LW%' or j.known_turn <> j.turn_id)),
    mine as (
      select j.place, i.phase, i.epoch, i.last_seq, i.cap_at
        from judged j
       cross join lateral (
         select * from inflight i
          where i.turn_id = j.turn_id and i.replica = p_replica and i.phase <> 'queued' limit 1) i
       where j.outcome = 'same' and coalesce(j.known_turn, j.turn_id) = j.turn_id)
    select j.place,
           case j.outcome when 'same' then coalesce(j.known_turn, j.turn_id) else j.turn_id end,
           j.outcome,
           case j.outcome when 'LW409' then j.active::text
             when 'LW429' then case when j.depth >= j.depth_max then 'conversation' else 'queue' end end,
           coalesce(m.ordinal, j.known_ordinal), v_now,
           coalesce(m.phase, mine.phase), coalesce((m.phase <> 'queued')::int, mine.epoch),
           coalesce((m.phase = 'running')::int, mine.last_seq), coalesce(m.new_generation, j.its_generation),
           (extract(epoch from coalesce(m.cap_at, mine.cap_at) - v_now) * 1000)::bigint
      from judged j
      left join made m using (place)
      left join mine using (place);
end $$;
