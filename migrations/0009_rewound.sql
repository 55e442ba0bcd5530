-- A database that went back in time: a standby that lacked the newest commits was promoted. What the
-- replicas remember is compared with what is there, and what differs is closed, marked and counted.
create table rewound (
  turn_id uuid primary key,
  -- From here on other events may have stood in its log: a cursor here or above proves nothing.
  seq int not null,
  -- closed: it went on elsewhere, and was ended here. changed: it has ended, but otherwise.
  -- vanished: its acceptance was lost. unknown: its holder was lost too.
  how text not null,
  -- Events that a replica has seen and that are not there.
  events_lost int not null,
  timeline int not null,
  at timestamptz not null default clock_timestamp(),
  constraint rewound_how_is_known check (how in ('closed', 'changed', 'vanished', 'unknown'))
);
create index rewound_by_age on rewound (at);

-- Compares what a replica has seen committed (of each turn: the epoch, the newest `seq` where it is
-- known, the kind of its last word where it has seen one) with what is there. A turn that is behind it
-- gets `p_word` as its last word: a worker has received it, so it must not run again. Tells only what
-- nobody has told before.
create function lw_reconcile_v1(
  p_turns uuid[], p_epochs int[], p_seqs int[], p_kinds text[], p_message text
) returns table (o_turn uuid, o_how text, o_events_lost int) language plpgsql as $$
declare
  v_timeline int := lw_timeline_v1();
  v_behind uuid[];
  v_conversations uuid[];
begin
  -- Healthy turns are not locked: they go on meanwhile.
  select array_agg(l.turn_id) into v_behind from (
    select i.turn_id
      from (
        select * from unnest(p_turns, p_epochs, p_seqs, p_kinds) w (turn_id, epoch, seq, kind) order by turn_id) w
     cross join lateral (
       select i.turn_id from inflight i
        where i.turn_id = w.turn_id and (w.kind is not null or i.epoch < w.epoch
          or not exists (select from turn_events e where e.turn_id = w.turn_id and e.seq = w.seq))
        limit 1 for update) i) l;
  -- Decided again now that the rows are held: another may have closed what this one waited for.
  if v_behind is not null then
    select array_agg(i.turn_id), array_agg(i.conversation_id) into v_behind, v_conversations
      from unnest(p_turns, p_epochs, p_seqs, p_kinds) w (turn_id, epoch, seq, kind)
     cross join lateral (select * from inflight i where i.turn_id = w.turn_id limit 1) i
     where i.turn_id = any (v_behind) and (w.kind is not null or i.epoch < w.epoch
       or not exists (select from turn_events e where e.turn_id = w.turn_id and e.seq = w.seq));
  end if;
  if v_behind is not null then
    return query
      with word as materialized (
        select i.turn_id, greatest(w.seq - m.seq, 0) as events_lost,
               jsonb_build_object('error', jsonb_build_object(
                 'code', 'internal', 'message', p_message, 'retryable', true,
                 'safe_to_retry', i.is_retry_safe,
                 'attempt', greatest(i.epoch, w.epoch),
                 'started_at', to_char(i.started_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
                 'last_progress_at', null,
                 'trace_id', split_part(t.traceparent, '-', 2)))::text as data
          from unnest(p_turns, p_epochs, p_seqs) w (turn_id, epoch, seq)
         cross join lateral (select * from inflight i where i.turn_id = w.turn_id limit 1) i
          join turns t on t.id = i.turn_id
         cross join lateral (select max(e.seq) as seq from turn_events e where e.turn_id = i.turn_id) m
         where i.turn_id = any (v_behind)),
      ended as materialized (
        select a.turns, lw_end_v1(a.turns, array_fill('failed'::text, array[a.n]), a.data) as seqs
          from (
            select array_agg(turn_id) as turns, array_agg(data) as data, count(*)::int as n
              from (select * from word order by turn_id) w) a
         where a.turns is not null),
      marked as (
        insert into rewound as r (turn_id, seq, how, events_lost, timeline)
        select word.turn_id, x.seqs[array_position(x.turns, word.turn_id)], 'closed',
               coalesce(word.events_lost, 0), v_timeline
          from word cross join ended x
            on conflict (turn_id) do update
           set seq = least(r.seq, excluded.seq), how = 'closed', events_lost = excluded.events_lost,
               timeline = excluded.timeline, at = clock_timestamp()
        returning r.turn_id, r.how, r.events_lost)
      select turn_id, how, events_lost from marked;
    perform lw_promote_v1(v_conversations);
  end if;

  return query
    with gone as (
      select w.turn_id, w.seq, w.kind, t.id, t.last_seq
        from unnest(p_turns, p_seqs, p_kinds) w (turn_id, seq, kind)
        left join turns t on t.id = w.turn_id
       where t.id is null
          -- Nothing but the terminal event's own place is known to differ.
          or (t.last_seq is not null and w.kind is not null
              and (t.status <> w.kind or t.last_seq <> coalesce(w.seq, t.last_seq)))
          or (t.last_seq is not null and w.kind is null and t.last_seq < w.seq)),
    marked as (
      insert into rewound as r (turn_id, seq, how, events_lost, timeline)
      select turn_id, coalesce(last_seq, 0), case when id is null then 'vanished' else 'changed' end,
             greatest(coalesce(seq, 0) - coalesce(last_seq, -1), 0), v_timeline
        from gone
          on conflict (turn_id) do nothing
      returning r.turn_id, r.how, r.events_lost)
    select turn_id, how, events_lost from marked;
end $$;
