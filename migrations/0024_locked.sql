-- What somebody else has locked holds up its own turn alone.

-- As before, but that a turn whose row in `turns` is locked is left for the next pass: its last word would wait, and the
-- last words of all others with it.
create or replace function lw_close_v1(p_overdue uuid[], p_words jsonb, p_limit int)
returns table (o_turn uuid, o_kind text, o_code text, o_agent text) language plpgsql as $$
declare
  v_ids uuid[];
  v_rerun uuid[];
  v_conversations uuid[];
  v_timeline int := lw_timeline_v1();
  -- A queued turn may be one that a replica has run before the database went back in time.
  v_is_reconciled boolean := lw_all_reconciled_v1();
begin
  select array_agg(l.turn_id), array_agg(l.conversation_id) into v_ids, v_conversations from (
    select i.turn_id, i.conversation_id
      from inflight i left join replicas r on r.id = i.replica
     where (i.phase = 'queued' and i.deadline <= clock_timestamp() and v_is_reconciled)
        or lw_is_left_v1(i, r)
        or (i.turn_id = any (p_overdue) and i.deadline <= clock_timestamp())
     order by i.turn_id
     limit p_limit
       for update of i skip locked) l;
  if v_ids is null then
    return;
  end if;
  -- Decided again now that the rows are held: the locking statement judged rows that it had waited for
  -- by a replica of before, and would kill a turn that somebody alive has claimed since.
  select array_agg(i.turn_id order by i.turn_id), array_agg(i.conversation_id) into v_ids, v_conversations
    from inflight i left join replicas r on r.id = i.replica
   where i.turn_id = any (v_ids) and (
     (i.phase = 'queued' and i.deadline <= clock_timestamp() and v_is_reconciled)
     or lw_is_left_v1(i, r)
     or (i.turn_id = any (p_overdue) and i.deadline <= clock_timestamp()));
  v_ids := array(select t.id from turns t where t.id = any (v_ids) order by t.id for no key update skip locked);
  if v_ids = '{}' then
    return;
  end if;

  select coalesce(array_agg(i.turn_id), '{}') into v_rerun
    from inflight i left join replicas r on r.id = i.replica
   where i.turn_id = any (v_ids) and lw_is_left_v1(i, r)
     -- A holder that was lost together with commits may have run what looks like a mere start.
     and coalesce(r.timeline = v_timeline, true)
     and (r.state is distinct from 'lost' or i.replicas_lost = 0)
     and lw_may_rerun_v1(i);
  update inflight i
     set replicas_lost = i.replicas_lost + 1
   where i.turn_id = any (v_rerun)
     and exists (select from replicas r where r.id = i.replica and r.state = 'lost');
  perform lw_requeue_v1(v_rerun);
  return query
    select i.turn_id, 'queued'::text, 'replica_lost'::text, i.agent
      from inflight i where i.turn_id = any (v_rerun);

  return query
    with word as materialized (
      select i.turn_id, i.agent, i.epoch, i.started_at, i.is_retry_safe, i.cancelled_by,
             i.phase <> 'queued' and r.timeline <> v_timeline as is_unreconciled,
             case when i.cancelled_by is not null then 'cancelled' else 'failed' end as kind,
             case when i.phase = 'queued' then 'queue_timeout'
                  when r.id is null or r.state in ('lost', 'left') then 'replica_lost'
                  when i.deadline >= i.cap_at then 'turn_timeout'
                  when i.clock = 'startup' then 'worker_startup_failed'
                  when i.clock = 'answer' then 'answer_timeout'
                  else 'worker_unresponsive' end as code,
             (select max(e.at) from turn_events e
               where e.turn_id = i.turn_id and e.kind not in ('accepted', 'started')) as last_progress_at,
             split_part(t.traceparent, '-', 2) as trace_id
        from inflight i left join replicas r on r.id = i.replica join turns t on t.id = i.turn_id
       where i.turn_id = any (v_ids) and i.turn_id <> all (v_rerun)),
    told as materialized (
      select w.turn_id, w.agent, w.kind, w.code, coalesce(w.is_unreconciled, false) as is_unreconciled,
             case when w.kind = 'cancelled' then jsonb_build_object('by', w.cancelled_by)
             else jsonb_build_object('error', jsonb_build_object(
               'code', w.code,
               'message', p_words -> w.code -> 'message',
               'retryable', p_words -> w.code -> 'retryable',
               'safe_to_retry', w.is_retry_safe or (w.started_at is null and w.is_unreconciled is not true),
               'attempt', w.epoch,
               'started_at', to_char(w.started_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
               'last_progress_at', to_char(w.last_progress_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
               'trace_id', w.trace_id)) end::text as data
        from word w),
    ended as materialized (
      select a.turns, lw_end_v1(a.turns, a.kinds, a.data) as seqs
        from (
          select array_agg(turn_id) as turns, array_agg(kind) as kinds, array_agg(data) as data
            from (select * from told order by turn_id) t) a
       where a.turns is not null),
    -- Nobody is left who could tell whether something else stood here before.
    marked as (
      insert into rewound (turn_id, seq, how, events_lost, timeline)
      select t.turn_id, x.seqs[array_position(x.turns, t.turn_id)], 'unknown', 0, v_timeline
        from told t cross join ended x
       where t.is_unreconciled
          on conflict (turn_id) do nothing)
    select t.turn_id, t.kind, t.code, t.agent from told t cross join ended;
  perform lw_promote_v1(v_conversations);
end $$;

-- As before, but that it waits for locked in-flight rows for half a second: the turns of a lost replica have 2.5 s. With
-- `p_passes_over` it waits for none, and gives those one more verdict: `locked`. The release before calls
-- `lw_remote_adopt_v2`.
create function lw_remote_adopt_v3(
  p_turns uuid[], p_epochs int[], p_replica uuid, p_workers uuid[], p_hashes bytea[], p_passes_over boolean)
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
     where v_may_claim and v_workers[n] is not null and i.turn_id <> all (v_locked) and i.epoch = p_epochs[n] and i.phase <> 'queued'
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
                when not v_may_claim then 'elsewhere'
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

select lw_place_v1('lw_close_v1');
select lw_place_v1('lw_remote_adopt_v3');
