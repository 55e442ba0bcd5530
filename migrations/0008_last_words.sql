-- Last words that are not the worker's: cancelled before a worker had it, closed by any replica.
-- Each function locks the in-flight rows first, in the order of their ids, and reads the log in a
-- later statement: its snapshot is taken while the rows are held, so the newest seq is final.
--
-- `inflight` is never joined to a list, it is asked for each row of one (`lateral`, with a limit), or for
-- those of an array alone: docs/decisions/0014.

-- Starts the queue clock of turns that have come to the head of their conversation's line. Skips
-- what is locked: the pass that calls this comes again. Returns the first of them, null where there was none.
-- In PL/pgSQL, like all that is called once a turn: functions in SQL are planned at each call.
create function lw_promote_v1(p_conversations uuid[]) returns uuid
language plpgsql as $$
declare
  v_firsts uuid[];
  v_heads uuid[];
begin
  -- Two statements: one plan for both would read the whole queue at each last word.
  if p_conversations is null then
    select array_agg(h.turn_id order by h.turn_id) into v_heads from (
      select i.turn_id
        from inflight i
       where i.phase = 'queued' and i.head_at is null
         and not exists (
           select from inflight j where j.conversation_id = i.conversation_id and j.ordinal < i.ordinal)
       order by i.turn_id
         for update of i skip locked) h;
  else
    select array_agg(first.turn_id) into v_firsts
      from (select distinct c from unnest(p_conversations) c) w
     cross join lateral (
       select l.turn_id from inflight l where l.conversation_id = w.c order by l.ordinal limit 1) first;
    select array_agg(h.turn_id order by h.turn_id) into v_heads from (
      select i.turn_id
        from inflight i
       where i.turn_id = any (v_firsts) and i.phase = 'queued' and i.head_at is null
       order by i.turn_id
         for update of i skip locked) h;
  end if;
  if v_heads is null then
    return null;
  end if;
  update inflight i
     set head_at = clock_timestamp(),
         deadline = least(i.cap_at, clock_timestamp() + i.queue_ms * interval '1 ms')
   where i.turn_id = any (v_heads);
  return v_heads[1];
end $$;

-- Writes last words for in-flight rows that the caller has locked, in the order of their ids; the `seq` of each.
-- Nothing is joined to `turns` or to the log either: a plan from an early day would read all of them.
create function lw_end_v1(
  p_turns uuid[], p_kinds text[], p_data text[], p_at timestamptz default clock_timestamp())
returns int[] language plpgsql as $$
declare
  -- Known when a plan is begun, unlike the id of a row: days outside are not even opened.
  v_first uuid := p_turns[1];
  v_last uuid := p_turns[cardinality(p_turns)];
  v_epochs int[];
  v_started timestamptz[];
  v_seqs int[];
begin
  -- Started is what a worker has received; a guard's refusal is told by none.
  select array_agg(i.epoch), array_agg(case when i.worker is not null then i.started_at end)
    into v_epochs, v_started
    from (select * from inflight i where i.turn_id = any (p_turns) order by i.turn_id) i;
  delete from inflight i where i.turn_id = any (p_turns);
  v_seqs := array(
    select (select max(e.seq) + 1 from turn_events e where e.turn_id = w.turn_id and e.turn_id between v_first and v_last)
      from unnest(p_turns) with ordinality w (turn_id, place) order by place);
  update turns t
     set status = p_kinds[width_bucket(t.id, p_turns)], attempt = v_epochs[width_bucket(t.id, p_turns)],
         started_at = v_started[width_bucket(t.id, p_turns)], finished_at = p_at,
         last_seq = v_seqs[width_bucket(t.id, p_turns)]
   where t.id = any (p_turns);
  insert into turn_events (turn_id, seq, kind, attempt, data, at)
  select p_turns[n], v_seqs[n], p_kinds[n], v_epochs[n], p_data[n], p_at from generate_series(1, cardinality(p_turns)) n;
  return v_seqs;
end $$;

-- Cancels: a queued turn ends here; the cap of one that is held comes down to the grace, and its
-- holder gets an order. Rows without an outcome have ended before.
create function lw_cancel_v1(p_turns uuid[], p_by text, p_grace_ms bigint)
returns table (o_turn uuid, o_outcome text) language plpgsql as $$
declare
  v_until timestamptz;
  v_queued uuid[];
  v_conversations uuid[];
begin
  perform 1 from inflight i where i.turn_id = any (p_turns) order by i.turn_id for update;

  select array_agg(i.turn_id order by i.turn_id), array_agg(i.conversation_id) into v_queued, v_conversations
    from inflight i where i.turn_id = any (p_turns) and i.phase = 'queued';
  if v_queued is not null then
    perform lw_end_v1(v_queued, array_fill('cancelled'::text, array[cardinality(v_queued)]),
      array_fill(jsonb_build_object('by', p_by)::text, array[cardinality(v_queued)]));
    return query select w.turn_id, 'cancelled'::text from unnest(v_queued) w (turn_id);
    perform lw_promote_v1(v_conversations);
  end if;

  v_until := clock_timestamp() + p_grace_ms * interval '1 ms';
  return query
    with held as (
      update inflight i
         set cap_at = least(i.cap_at, v_until), deadline = least(i.deadline, v_until), cancelled_by = p_by
       where i.turn_id = any (p_turns) and i.cancelled_by is null
      returning i.turn_id),
    c as (
      insert into commands (turn_id, kind) select h.turn_id, 'cancel' from held h)
    select i.turn_id, case when h.turn_id is null then 'asked before' else 'asked' end
      from inflight i left join held h using (turn_id)
     where i.turn_id = any (p_turns);
end $$;

-- Gives turns back that no worker has received, or that may be run again: queued once more, at the
-- head of their line. The caller has locked the rows.
create function lw_requeue_v1(p_turns uuid[]) returns void
language sql as $$
  update inflight i
     set phase = 'queued', replica = null, worker = null, clock = 'queue', claimed_at = null, started_at = null,
         head_at = clock_timestamp(),
         deadline = least(i.cap_at, clock_timestamp() + i.queue_ms * interval '1 ms'),
         last_seq = (select max(e.seq) from turn_events e where e.turn_id = i.turn_id)
   where i.turn_id = any (p_turns)
$$;

-- Whether a held turn may be run again (I10). Its row is locked by the caller. A question counts as
-- said: its answer must not reach another worker than the one that asked. Its holder may know that no
-- worker has received it, though it is `running`.
create function lw_may_rerun_v1(p_row inflight, p_is_untouched boolean default false) returns boolean
language sql as $$
  select p_row.cancelled_by is null
     and p_row.epoch < 3
     and clock_timestamp() < p_row.cap_at
     and (p_row.phase = 'starting'
       or p_is_untouched
       or (p_row.phase = 'running' and p_row.is_retry_safe and not exists (
         select from turn_events e where e.turn_id = p_row.turn_id and e.kind in ('delta', 'content', 'ask'))))
$$;

-- The holder gives one turn back; false where it may not be run again or is not the caller's.
create function lw_release_v1(p_turn uuid, p_epoch int, p_replica uuid, p_is_untouched boolean) returns boolean
language plpgsql as $$
declare
  v_row inflight;
begin
  select i.* into v_row from inflight i
   where i.turn_id = p_turn and i.epoch = p_epoch and i.replica = p_replica and i.phase <> 'queued' for update;
  if not found or not lw_may_rerun_v1(v_row, p_is_untouched) then
    return false;
  end if;
  perform lw_requeue_v1(array[p_turn]);
  return true;
end $$;

-- Whether nobody holds a claimed turn any more. One that a remote worker has is left for so long to whichever
-- replica the worker calls next (docs/decisions/0016); by a clock that was set back, not at all.
create function lw_is_left_v1(p_row inflight, p_holder replicas) returns boolean
language sql as $$
  select p_row.phase <> 'queued'
     and (p_holder.id is null or p_holder.state in ('lost', 'left'))
     and not coalesce(p_row.phase = 'running' and p_row.runtime <> 'process'
       and p_holder.gone_at between clock_timestamp() - interval '2500 ms' and clock_timestamp(), false)
$$;

-- The close pass of any replica: what nobody holds and is overdue, what is held by somebody gone,
-- and of `p_overdue` (left overdue by a living holder for long enough) what still is. `p_words`
-- maps a failure's code to its {message, retryable}.
create function lw_close_v1(p_overdue uuid[], p_words jsonb, p_limit int)
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
  if v_ids is null then
    return;
  end if;

  select coalesce(array_agg(i.turn_id), '{}') into v_rerun
    from inflight i left join replicas r on r.id = i.replica
   where i.turn_id = any (v_ids) and lw_is_left_v1(i, r)
     -- A holder that was lost together with commits may have run what looks like a mere start.
     and coalesce(r.timeline = v_timeline, true)
     and lw_may_rerun_v1(i);
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

-- The holder's last words, many turns at once, with what was said right before them (`p_said_*`, each at
-- its place after `base`): fenced by the epoch and by the event at `base`, which the writer has seen
-- committed. `p_first`, `p_last`: the ends of `p_turns`, so that no day is opened but theirs.
-- A turn missing from the answer is not the caller's any more. `o_next`: the first of the turns that waited
-- behind one of them and can be claimed now. `o_base_…`: the event at `base`; `o_at`: the moment
-- of all that was written, null where some of it stood there already.
create function lw_finish_v1(
  p_turns uuid[], p_epochs int[], p_bases int[], p_kinds text[], p_data text[], p_replica uuid,
  p_first uuid, p_last uuid,
  p_said_turns uuid[], p_said_epochs int[], p_said_places int[], p_said_kinds text[], p_said_data text[])
returns table (
  o_turn uuid, o_epoch int, o_seq int, o_next uuid,
  o_at timestamptz, o_base_at timestamptz, o_base_attempt int, o_base_kind text) language plpgsql as $$
declare
  v_at timestamptz := clock_timestamp();
  v_is_new boolean := true;
  v_said int;
  v_base_ats timestamptz[];
  v_base_attempts int[];
  v_base_kinds text[];
  v_turns uuid[];
  v_epochs int[];
  v_bases int[];
  v_seqs int[];
  v_next uuid;
  v_kinds text[];
  v_data text[];
  v_conversations uuid[];
begin
  select array_agg(l.turn_id), array_agg(l.epoch), array_agg(l.base), array_agg(l.kind), array_agg(l.data),
         array_agg(l.conversation_id), array_agg(l.at), array_agg(l.attempt), array_agg(l.base_kind)
    into v_turns, v_epochs, v_bases, v_kinds, v_data, v_conversations, v_base_ats, v_base_attempts, v_base_kinds
    from (
    select w.turn_id, i.conversation_id, w.epoch, w.base, w.kind, w.data, e.at, e.attempt, e.kind as base_kind
      from (
        select * from unnest(p_turns, p_epochs, p_bases, p_kinds, p_data) w (turn_id, epoch, base, kind, data)
         order by turn_id) w
     cross join lateral (
       select i.conversation_id from inflight i
        where i.turn_id = w.turn_id and i.epoch = w.epoch and i.replica = p_replica
        limit 1 for update) i
     cross join lateral (
       select e.at, e.attempt, e.kind from turn_events e
        where e.turn_id = w.turn_id and e.seq = w.base and e.turn_id between p_first and p_last limit 1) e) l;
  if v_turns is null then
    return;
  end if;
  if cardinality(p_said_turns) > 0 then
    insert into turn_events (turn_id, seq, kind, attempt, data, at)
    select p_said_turns[n], v_bases[h.place] + p_said_places[n], p_said_kinds[n], p_said_epochs[n], p_said_data[n], v_at
      from generate_series(1, cardinality(p_said_turns)) n
     cross join lateral (select width_bucket(p_said_turns[n], v_turns) as place offset 0) h
     where v_turns[h.place] = p_said_turns[n] and v_epochs[h.place] = p_said_epochs[n]
        on conflict (turn_id, seq) do nothing;
    get diagnostics v_said = row_count;
    v_is_new := v_said = cardinality(p_said_turns);
  end if;
  v_seqs := lw_end_v1(v_turns, v_kinds, v_data, v_at);
  if exists (select from inflight i where i.conversation_id = any (v_conversations)) then
    v_next := lw_promote_v1(v_conversations);
  end if;
  return query
    select v_turns[n], v_epochs[n], v_seqs[n], v_next, case when v_is_new then v_at end, v_base_ats[n],
           v_base_attempts[n], v_base_kinds[n]
      from generate_series(1, cardinality(v_turns)) n;
end $$;
