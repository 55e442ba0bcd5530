-- The holders' events, many turns at once (`p_said_*`, each at its place after its turn's `base`): fenced by the
-- epoch and by the event at `base`, which the writer has seen committed. An identical repeat is harmless. A turn
-- missing from the answer is not the caller's any more. `p_first`, `p_last`: the ends of `p_turns`, so that no day
-- is opened but theirs. `o_base_…`: the event at `base`; `o_at`: the moment of what was written, null where it stood
-- there already.
--
-- A write is whole or not there, so one that finds something behind its `base` is a repeat. It is looked for behind the
-- lock, by a statement of its own: the locking one may have waited for the very try that it repeats. Not `on conflict`,
-- which logs each row twice.
--
-- A turn that comes alone, as most do while nobody is in a hurry, goes by steps of its own: what gathers many takes
-- three times as long to start as one takes.
create function lw_append_v1(
  p_turns uuid[], p_epochs int[], p_bases int[], p_clocks text[], p_budgets_ms bigint[], p_replica uuid,
  p_first uuid, p_last uuid,
  p_said_turns uuid[], p_said_epochs int[], p_said_places int[], p_said_kinds text[], p_said_data text[])
returns table (
  o_turn uuid, o_epoch int, o_at timestamptz, o_base_at timestamptz, o_base_attempt int, o_base_kind text)
language plpgsql as $$
declare
  v_at timestamptz;
  v_are_repeats boolean[];
  v_turns uuid[];
  v_epochs int[];
  v_bases int[];
  v_base_ats timestamptz[];
  v_base_attempts int[];
  v_base_kinds text[];
  -- Deadlines to be written, and the clocks that they are of.
  v_late uuid[];
  v_untils timestamptz[];
  v_clocks text[];
  -- Of a turn that comes alone.
  v_until timestamptz;
  v_is_late boolean;
  v_is_repeat boolean;
begin
  if cardinality(p_turns) = 1 then
    select e.at, e.attempt, e.kind, u.until,
           p_clocks[1] <> i.clock or (i.deadline < u.until - least(3000, p_budgets_ms[1] / 10) * interval '1 ms'
             and i.deadline < i.cap_at)
      into o_base_at, o_base_attempt, o_base_kind, v_until, v_is_late
      from inflight i
     cross join lateral (
       select e.at, e.attempt, e.kind from turn_events e where e.turn_id = p_turns[1] and e.seq = p_bases[1] limit 1) e
     cross join lateral (select clock_timestamp() + p_budgets_ms[1] * interval '1 ms' as until) u
     where i.turn_id = p_turns[1] and i.epoch = p_epochs[1] and i.replica = p_replica and i.phase = 'running'
       for no key update of i;
    if not found then
      return;
    end if;
    v_at := clock_timestamp();
    insert into turn_events (turn_id, seq, kind, attempt, data, at)
    select p_turns[1], p_bases[1] + p_said_places[n], p_said_kinds[n], p_epochs[1], p_said_data[n], v_at
      from generate_series(1, cardinality(p_said_places)) n
     where not exists (select from turn_events e where e.turn_id = p_turns[1] and e.seq = p_bases[1] + 1);
    v_is_repeat := not found;
    if v_is_late then
      update inflight i set deadline = least(i.cap_at, v_until), clock = p_clocks[1] where i.turn_id = p_turns[1];
    end if;
    o_turn := p_turns[1];
    o_epoch := p_epochs[1];
    o_at := case when not v_is_repeat then v_at end;
    return next;
    return;
  end if;

  -- The fence. A lock, not an update: updating the row at each append would cost its throughput whenever a long
  -- transaction holds vacuum back. So the deadline in the row lags, by at most 3 s or a tenth of a short clock.
  select array_agg(l.turn_id), array_agg(l.epoch), array_agg(l.base), array_agg(l.at), array_agg(l.attempt),
         array_agg(l.kind), array_agg(l.turn_id) filter (where l.is_late), array_agg(l.until) filter (where l.is_late),
         array_agg(l.clock) filter (where l.is_late)
    into v_turns, v_epochs, v_bases, v_base_ats, v_base_attempts, v_base_kinds, v_late, v_untils, v_clocks
    from (
      select w.turn_id, w.epoch, w.base, w.clock, e.at, e.attempt, e.kind, u.until,
             w.clock <> i.clock or (i.deadline < u.until - least(3000, w.budget_ms / 10) * interval '1 ms'
               and i.deadline < i.cap_at) as is_late
        from (
          select * from unnest(p_turns, p_epochs, p_bases, p_clocks, p_budgets_ms)
              w (turn_id, epoch, base, clock, budget_ms)
           order by turn_id) w
       cross join lateral (
         select i.cap_at, i.deadline, i.clock from inflight i
          where i.turn_id = w.turn_id and i.epoch = w.epoch and i.replica = p_replica and i.phase = 'running'
          limit 1 for no key update) i
       cross join lateral (
         select e.at, e.attempt, e.kind from turn_events e
          where e.turn_id = w.turn_id and e.seq = w.base and e.turn_id between p_first and p_last limit 1) e
       cross join lateral (select clock_timestamp() + w.budget_ms * interval '1 ms' as until) u) l;
  if v_turns is null then
    return;
  end if;
  v_at := clock_timestamp();
  -- Counted, with a limit: of an `exists` Postgres would make one list for all, and read the whole day for it.
  v_are_repeats := array(
    select (
      select count(*) from (
        select from turn_events e
         where e.turn_id = v_turns[n] and e.seq = v_bases[n] + 1 and e.turn_id between p_first and p_last limit 1) e) > 0
      from generate_series(1, cardinality(v_turns)) n order by n);
  insert into turn_events (turn_id, seq, kind, attempt, data, at)
  select p_said_turns[n], v_bases[h.place] + p_said_places[n], p_said_kinds[n], p_said_epochs[n], p_said_data[n], v_at
    from generate_series(1, cardinality(p_said_turns)) n
   cross join lateral (select width_bucket(p_said_turns[n], v_turns) as place offset 0) h
   where v_turns[h.place] = p_said_turns[n] and v_epochs[h.place] = p_said_epochs[n] and not v_are_repeats[h.place];
  if v_late is not null then
    update inflight i
       set deadline = least(i.cap_at, v_untils[width_bucket(i.turn_id, v_late)]),
           clock = v_clocks[width_bucket(i.turn_id, v_late)]
     where i.turn_id = any (v_late);
  end if;
  return query
    select v_turns[n], v_epochs[n], case when not v_are_repeats[n] then v_at end, v_base_ats[n],
           v_base_attempts[n], v_base_kinds[n]
      from generate_series(1, cardinality(v_turns)) n;
end $$;
