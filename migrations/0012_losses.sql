-- How many holders of a turn were lost while it was theirs. A replica of the release before counts as well, since
-- it calls the same function.
alter table inflight add column replicas_lost smallint not null default 0;

-- The close pass of any replica: what nobody holds and is overdue, what is held by somebody gone,
-- and of `p_overdue` (left overdue by a living holder for long enough) what still is. `p_words`
-- maps a failure's code to its {message, retryable}. A turn whose second holder is lost is not run again, whatever
-- else would let it: it may be what they died of. One that was given back, or left by a drain, was not lost.
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
  if v_ids is null then
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
