-- Turns whose last word is `failed` or `cancelled`, for the lists that ask for them. A table of its own: an index on
-- `turns` that knows the status, even a partial one, would make each last word write every index of the row anew. So what
-- completes costs nothing here.
create table not_completed (
  turn_id uuid primary key,
  status text not null,
  agent text not null,
  conversation_id uuid not null,
  ordinal bigint not null
);
create index not_completed_by_status on not_completed (status, turn_id);
create index not_completed_by_agent on not_completed (agent, status, turn_id);
create index not_completed_by_conversation on not_completed (conversation_id, status, ordinal);

-- Waits for last words that are under way by the function as it was, and holds up others for as long: the next migration
-- must see all of theirs.
lock table inflight in share row exclusive mode;

-- As before, and notes what did not complete.
create or replace function lw_end_v1(
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
  if p_kinds && array['failed', 'cancelled'] then
    insert into not_completed (turn_id, status, agent, conversation_id, ordinal)
    select t.id, t.status, t.agent, t.conversation_id, t.ordinal from turns t
     where t.id = any (p_turns) and t.status <> 'completed'
        on conflict (turn_id) do nothing;
  end if;
  return v_seqs;
end $$;
