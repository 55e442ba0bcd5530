-- A release claims no turn that it cannot read (docs/decisions/0038): each turn has its agent's reader level.

alter table inflight add column reader_min int not null default 1;

-- As in 0007, which says what the parameters and outcomes mean; a turn has its agent's level, and a claim for a replica
-- clears the conversation's remote worker.
create or replace function lw_accept_v1(
  p_replica uuid,
  p_turns uuid[], p_conversations uuid[], p_are_new boolean[], p_agents text[], p_revisions int[], p_runtimes text[],
  p_inputs text[], p_metadata text[], p_traceparents text[], p_retries_of uuid[],
  p_keys text[], p_hashes text[], p_busy text[],
  p_queue_ms bigint[], p_startup_ms bigint[], p_progress_ms bigint[], p_cap_ms bigint[], p_are_retry_safe boolean[],
  p_depths_max int[], p_queues_max int[], p_count_from uuid,
  p_are_offered boolean[], p_generations bigint[], p_workers uuid[],
  p_events text[], p_starts text[]
) returns table (o_place bigint, o_turn uuid, o_outcome text, o_detail text, o_ordinal bigint, o_at timestamptz,
  o_phase text, o_epoch int, o_last_seq int, o_generation bigint, o_cap_left_ms bigint, o_counted int) language plpgsql as $$
declare
  v_count int := cardinality(p_turns);
  v_made int := 0;
  v_now timestamptz;
  v_timeline int := lw_timeline_v1();
  v_ready uuid[];
  v_is_claiming boolean;
  -- What is there already: conversations, in order, with what the lock has found; and whatever may stand in the way.
  v_ids uuid[];
  v_agents text[];
  v_nexts bigint[];
  v_holders uuid[];
  v_generations_then bigint[];
  v_busy uuid[];
  v_known uuid[];
  v_are_stale boolean[];
  -- Null while every release reads all of these agents.
  v_readers int[];
  v_answers uuid[];
  v_hashes text[];
  v_queued int;
  -- Of each turn, at its place: what is decided, and what follows from that.
  v_place int;
  v_phase text;
  v_depth int;
  v_outcomes text[];
  v_phases text[];
  v_ordinals bigint[];
  v_generations bigint[];
  v_depths int[];
  v_caps timestamptz[];
  v_moved uuid[];
  -- Null while all are accepted.
  v_details text[];
  v_epochs int[];
  v_seqs int[];
begin
  -- What looks untouched may have been run before the database went back in time, and who was judged
  -- claims nothing.
  select array_agg(r.id) filter (where r.state = 'ready'), bool_and(r.timeline = v_timeline)
    into v_ready, v_is_claiming
    from replicas r where r.state in ('ready', 'draining');
  v_is_claiming := coalesce(v_is_claiming and p_replica = any (v_ready), false);
  -- Waits for twins whose commit is not known yet.
  if array_remove(p_keys, null) <> '{}' then
    insert into idempotency (key, turn_id, body_hash)
    select p_keys[n], p_turns[n], p_hashes[n] from generate_series(1, v_count) n
     where p_keys[n] is not null order by p_keys[n]
        on conflict do nothing;
    select array_agg(k.turn_id), array_agg(k.body_hash) into v_answers, v_hashes
      from (select n from generate_series(1, v_count) n order by n) w
      left join lateral (select * from idempotency k where k.key = p_keys[n] limit 1) k on true;
  end if;
  -- Waits for an earlier try of the same turn that may still be under way.
  if true = any (p_are_new) then
    insert into conversations (id, agent, next_ordinal, holder, generation)
    select p_conversations[n], p_agents[n], 2, case when h.is_held then p_replica end, h.is_held::int
      from generate_series(1, v_count) n
     cross join lateral (select v_is_claiming and p_are_offered[n] and p_workers[n] is null as is_held) h
     where p_are_new[n] order by p_conversations[n]
        on conflict do nothing;
    get diagnostics v_made = row_count;
  end if;
  -- Those that were just made are nobody else's yet, and nothing is before their turns.
  if v_made < v_count then
    select array_agg(c.id), array_agg(case when c.deleted_at is null then c.agent end), array_agg(c.next_ordinal),
           array_agg(c.holder), array_agg(c.generation)
      into v_ids, v_agents, v_nexts, v_holders, v_generations_then
      from (
        select * from conversations c where c.id = any (p_conversations) order by c.id for no key update) c;
    -- From here on nothing is added to these conversations by anybody else.
    v_busy := array(select i.conversation_id from inflight i where i.conversation_id = any (p_conversations));
    v_known := array(select t.id from turns t where t.id = any (p_turns));
  end if;
  if exists (select from agents a where a.name = any (p_agents) and a.revision > any (p_revisions)) then
    v_are_stale := array(
      select exists (select from agents a where a.name = p_agents[n] and a.revision > p_revisions[n])
        from generate_series(1, v_count) n order by n);
  end if;
  if exists (select from agents a where a.name = any (p_agents) and a.reader_min > 1) then
    v_readers := array(
      select (select a.reader_min from agents a where a.name = p_agents[n] and a.revision = p_revisions[n])
        from generate_series(1, v_count) n order by n);
  end if;
  v_now := clock_timestamp();

  -- First decided, turn by turn, and then written: one statement that decides all of it, and carries every column
  -- through each step, takes longer to start than this takes for many turns.
  for n in 1..v_count loop
    v_place := width_bucket(p_conversations[n], v_ids);
    v_depth := coalesce(cardinality(array_positions(v_busy, p_conversations[n])), 0);
    v_phase := case
      when not v_is_claiming or v_depth > 0 or not p_are_offered[n] then 'queued'
      when p_workers[n] is not null and (p_generations[n] is null
        or (v_holders[v_place] = p_replica and v_generations_then[v_place] = p_generations[n])) then 'running'
      -- Whoever served the conversation last may have a warm worker: it is left to it.
      when v_holders[v_place] is null or v_holders[v_place] = p_replica
        or v_holders[v_place] <> all (v_ready) then 'starting'
      else 'queued' end;
    v_outcomes[n] := case
      when v_answers[n] <> p_turns[n] and v_hashes[n] is distinct from p_hashes[n] then 'LW422'
      when v_answers[n] <> p_turns[n] or p_turns[n] = any (v_known) then 'same'
      when v_made < v_count and (v_ids[v_place] is distinct from p_conversations[n]
        or v_agents[v_place] is distinct from p_agents[n]) then 'LW404'
      when v_are_stale[n] then 'LW412'
      when v_depth > 0 and p_busy[n] = 'reject' then 'LW409'
      when v_depth >= p_depths_max[n] then 'LW429'
      else 'accepted' end;
    v_phases[n] := v_phase;
    v_depths[n] := v_depth;
    v_ordinals[n] := case when p_are_new[n] then 1 else v_nexts[v_place] end;
    v_generations[n] := case
      when p_are_new[n] and v_outcomes[n] = 'accepted' then (v_phase = 'starting')::int
      -- Another worker takes over wherever no warm one matches.
      when v_phase = 'starting' and v_outcomes[n] = 'accepted' and not (v_holders[v_place] is not distinct from p_replica
        and v_generations_then[v_place] is not distinct from p_generations[n]) then v_generations_then[v_place] + 1
      else v_generations_then[v_place] end;
    -- Bounded even behind others: nobody before it can take longer than its queue clock and its cap.
    v_caps[n] := v_now + interval '1 ms'
      * case v_phase when 'queued' then (v_depth + 1) * (p_queue_ms[n] + p_cap_ms[n]) else p_cap_ms[n] end;
  end loop;
  -- What need not wait has no part in the queue, and need not read it.
  if p_count_from is not null and 'queued' = any (v_phases) then
    v_queued := (
      select count(*) from (
        select from inflight i where i.phase = 'queued' and i.turn_id >= p_count_from
         limit (select max(m) from unnest(p_queues_max) m)) q);
    v_outcomes := array(
      select case when v_outcomes[n] = 'accepted' and v_phases[n] = 'queued' and v_queued >= p_queues_max[n]
               then 'LW429' else v_outcomes[n] end
        from generate_series(1, v_count) n order by n);
  end if;

  if v_made < v_count then
    v_moved := array(
      select p_conversations[n] from generate_series(1, v_count) n where v_outcomes[n] = 'accepted' and not p_are_new[n]);
    -- They are sorted, so a place in them is found by a binary search.
    update conversations c
       set next_ordinal = c.next_ordinal + 1,
           holder = case when v_phases[width_bucket(c.id, p_conversations)] = 'starting' then p_replica else c.holder end,
           holder_worker = case when v_phases[width_bucket(c.id, p_conversations)] <> 'starting' then c.holder_worker end,
           generation = v_generations[width_bucket(c.id, p_conversations)]
     where c.id = any (v_moved);
  end if;
  insert into turns (id, conversation_id, ordinal, agent, agent_revision, input, metadata, retry_of, traceparent,
    created_at, status, attempt, started_at)
  select p_turns[n], p_conversations[n], v_ordinals[n], p_agents[n], p_revisions[n], p_inputs[n], p_metadata[n],
         p_retries_of[n], p_traceparents[n], v_now, case v_phases[n] when 'running' then 'running' else 'queued' end,
         (v_phases[n] = 'running')::int, case v_phases[n] when 'running' then v_now end
    from generate_series(1, v_count) n
   where v_outcomes[n] = 'accepted';
  insert into inflight (turn_id, conversation_id, ordinal, agent, agent_revision, runtime, phase, epoch, replica,
    worker, last_seq, clock, deadline, cap_at, accepted_at, head_at, claimed_at, started_at,
    queue_ms, startup_ms, progress_ms, cap_ms, is_retry_safe, reader_min)
  select p_turns[n], p_conversations[n], v_ordinals[n], p_agents[n], p_revisions[n], p_runtimes[n], v_phases[n],
         (v_phases[n] <> 'queued')::int, case when v_phases[n] <> 'queued' then p_replica end,
         case v_phases[n] when 'running' then p_workers[n] end, (v_phases[n] = 'running')::int,
         case v_phases[n] when 'queued' then 'queue' when 'starting' then 'startup' else 'progress' end,
         least(v_caps[n], case
           when v_phases[n] = 'starting' then v_now + p_startup_ms[n] * interval '1 ms'
           when v_phases[n] = 'running' then v_now + p_progress_ms[n] * interval '1 ms'
           when v_depths[n] = 0 then v_now + p_queue_ms[n] * interval '1 ms' else v_caps[n] end),
         v_caps[n], v_now, case when v_depths[n] = 0 then v_now end, case when v_phases[n] <> 'queued' then v_now end,
         case v_phases[n] when 'running' then v_now end,
         p_queue_ms[n], p_startup_ms[n], p_progress_ms[n], p_cap_ms[n], p_are_retry_safe[n],
         coalesce(v_readers[n], 1)
    from generate_series(1, v_count) n
   where v_outcomes[n] = 'accepted';
  insert into turn_events (turn_id, seq, kind, attempt, data, at)
  select p_turns[n], seq, case seq when 0 then 'accepted' else 'started' end, seq,
         case seq when 0 then p_events[n] || v_ordinals[n] || '}' else p_starts[n] end, v_now
    from generate_series(1, v_count) n, generate_series(0, 1) seq
   where v_outcomes[n] = 'accepted' and (seq = 0 or v_phases[n] = 'running');

  if 'accepted' <> any (v_outcomes) then
    delete from idempotency k
     where k.turn_id = any (p_turns) and k.key = any (array(
       select p_keys[n] from generate_series(1, v_count) n where v_outcomes[n] like 'LW%'));
    delete from conversations c
     where c.id = any (array(
       select p_conversations[n] from generate_series(1, v_count) n
        where p_are_new[n] and (v_outcomes[n] like 'LW%' or v_answers[n] <> p_turns[n])));
    select array_agg(case v_outcomes[n]
             when 'LW409' then (
               select i.turn_id::text from inflight i
                where i.conversation_id = p_conversations[n] order by i.ordinal limit 1)
             when 'LW429' then case when v_depths[n] >= p_depths_max[n] then 'conversation' else 'queue' end end),
           array_agg(t.ordinal), array_agg(m.phase), array_agg(m.epoch), array_agg(m.last_seq), array_agg(m.cap_at)
      into v_details, v_ordinals, v_phases, v_epochs, v_seqs, v_caps
      from (select n from generate_series(1, v_count) n order by n) w
      left join lateral (select t.ordinal from turns t where t.id = p_turns[n] limit 1) t on true
      left join lateral (
        select i.phase, i.epoch, i.last_seq, i.cap_at from inflight i
         where i.turn_id = p_turns[n] and (i.replica = p_replica or v_outcomes[n] = 'accepted') limit 1) m on true;
  end if;
  return query
    select n::bigint, case v_outcomes[n] when 'same' then coalesce(v_answers[n], p_turns[n]) else p_turns[n] end,
           v_outcomes[n], v_details[n],
           v_ordinals[n], v_now, v_phases[n], coalesce(v_epochs[n], (v_phases[n] <> 'queued')::int),
           coalesce(v_seqs[n], (v_phases[n] = 'running')::int), v_generations[n],
           (extract(epoch from v_caps[n] - v_now) * 1000)::bigint, v_queued
      from generate_series(1, v_count) n;
end $$;

-- As `lw_remote_adopt_v3` of 0024, which the release before calls; what this release cannot read stays where it is:
-- `elsewhere`.
create function lw_remote_adopt_v4(
  p_turns uuid[], p_epochs int[], p_replica uuid, p_workers uuid[], p_hashes bytea[], p_passes_over boolean,
  p_reads int)
returns table (o_place bigint, o_verdict text, o_worker uuid, o_hash bytea, o_conversation uuid, o_phase text,
  o_last_seq int, o_generation bigint, o_cap_left_ms bigint, o_left_ms bigint, o_started_at timestamptz,
  o_cancelled_by text)
language plpgsql as $$
declare
  v_workers uuid[];
  v_hashes bytea[];
  v_offered uuid[];
  v_ours uuid[];
  v_locked uuid[] := '{}';
  v_may_claim boolean;
  v_now timestamptz;
  v_moved uuid[];
  v_first uuid;
  v_last uuid;
begin
  -- Null where there is no such offer to whoever asks.
  select array_agg(o.worker_id order by n), array_agg(o.token_hash order by n),
         array_agg(p_turns[n]) filter (where o.worker_id is not null)
    into v_workers, v_hashes, v_offered
    from generate_series(1, cardinality(p_turns)) n
    left join lateral (
      select o.worker_id, o.token_hash from remote_claims o
       where o.turn_id = p_turns[n] and o.epoch = p_epochs[n]
         and (p_workers[n] is null or o.worker_id = p_workers[n])
         and (p_hashes[n] is null or o.token_hash = p_hashes[n])
       limit 1) o on true;
  if p_passes_over then
    v_ours := array(
      select i.turn_id from inflight i where i.turn_id = any (v_offered) order by i.turn_id for update skip locked);
    v_locked := array(
      select i.turn_id from inflight i where i.turn_id = any (v_offered) and i.turn_id <> all (v_ours));
  else
    perform set_config('lock_timeout', '500ms', true);
    perform 1 from inflight i where i.turn_id = any (v_offered) order by i.turn_id for update;
  end if;
  v_may_claim := lw_may_claim_v1(p_replica);
  v_now := clock_timestamp();
  -- Decided now that the rows are held.
  v_moved := array(
    select i.turn_id
      from generate_series(1, cardinality(p_turns)) n
     cross join lateral (select * from inflight i where i.turn_id = p_turns[n] limit 1) i
     where v_may_claim and v_workers[n] is not null and i.turn_id <> all (v_locked)
       and i.epoch = p_epochs[n] and i.phase <> 'queued' and i.reader_min <= p_reads
     order by i.turn_id);
  v_first := v_moved[1];
  v_last := v_moved[cardinality(v_moved)];
  -- Time for what the workers had to keep while nobody could be reached.
  update inflight i
     set replica = p_replica,
         deadline = greatest(i.deadline, least(i.cap_at, v_now + interval '5 s'))
   where i.turn_id = any (v_moved);
  -- Whether the former holder came to tell the worker is not known. Telling it again is harmless.
  update commands c set taken_at = null where c.turn_id = any (v_moved) and c.taken_at is not null;
  return query
    select n::bigint,
           case when v_workers[n] is null then 'unknown'
                when i.turn_id = any (v_locked) then 'locked'
                when i.turn_id is null then 'ended'
                when i.epoch <> p_epochs[n] or i.phase = 'queued' then 'stale'
                when not v_may_claim or i.reader_min > p_reads then 'elsewhere'
                else 'adopted' end,
           v_workers[n], v_hashes[n], i.conversation_id, i.phase,
           (select max(e.seq) from turn_events e where e.turn_id = i.turn_id and e.turn_id between v_first and v_last),
           (select c.generation from conversations c where c.id = i.conversation_id),
           (extract(epoch from i.cap_at - v_now) * 1000)::bigint,
           (extract(epoch from i.deadline - v_now) * 1000)::bigint,
           i.started_at, i.cancelled_by
      from generate_series(1, cardinality(p_turns)) n
      left join lateral (select * from inflight i where i.turn_id = p_turns[n] limit 1) i on true;
end $$;

select lw_place_v1('lw_accept_v1');
select lw_place_v1('lw_remote_adopt_v4');
