-- What is older than `retain` goes, rows and all: turns that have ended, with whatever else is kept of them, and
-- conversations that none is left of. Days of the log are dropped whole where `retain` is counted in days; of a shorter
-- one the rows of the log go with their turns. See docs/decisions/0029.

-- Space that is free again is found soon: by default a fifth of a table is dead before it is looked for.
alter table turns set (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 5000);
alter table conversations set (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 5000);
alter table idempotency set (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 5000);
alter table not_completed set (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 5000);
alter table workers set (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 5000);
alter table remote_claims set (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 5000);
do $$
declare
  v_name text;
begin
  for v_name in select name from lw_partitions loop
    execute format('alter table %s set (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 20000)',
      v_name);
  end loop;
end $$;

create or replace function lw_partition_make_v1(p_day date) returns boolean
language plpgsql set lock_timeout = '100ms' as $$
declare
  v_name text := 'turn_events_' || to_char(p_day, 'YYYYMMDD');
  v_from timestamptz := p_day::timestamp at time zone 'UTC';
begin
  -- Replicas make partitions at the same time; the second waits, then sees the first's.
  perform pg_advisory_xact_lock(7234598102933);
  if to_regclass(v_name) is not null then
    return false;
  end if;
  execute format('create table %I partition of turn_events for values from (%L) to (%L)
    with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 20000)',
    v_name, lw_first_id(v_from), lw_first_id(v_from + interval '1 day'));
  return true;
end $$;

-- Removes ended turns between two ids, oldest first, about `p_rows` rows in all, and one turn at least where there is
-- one. Skips what is in flight, and what somebody else has locked. One replica at a time: `o_last` is null where another
-- is at it, or where nothing is left.
create function lw_sweep_turns_v1(p_after uuid, p_before uuid, p_rows int,
  out o_last uuid, out o_turns int, out o_events int, out o_conversations int)
language plpgsql as $$
declare
  v_turns uuid[];
  v_conversations uuid[];
begin
  o_turns := 0;
  o_events := 0;
  o_conversations := 0;
  if not pg_try_advisory_xact_lock(7234598102934) then
    return;
  end if;
  select array_agg(b.id order by b.id), array_agg(distinct b.conversation_id) into v_turns, v_conversations
    from (
      select t.id, t.conversation_id, sum(t.last_seq + 2) over (order by t.id) - (t.last_seq + 2) as rows_before
        from (
          select t.id, t.conversation_id, t.last_seq from turns t
           where t.id > p_after and t.id < p_before and t.finished_at is not null
           order by t.id limit greatest(p_rows / 5, 1)) t) b
   where b.rows_before < p_rows;
  if v_turns is null then
    return;
  end if;
  o_last := v_turns[cardinality(v_turns)];
  delete from turn_events e where e.turn_id = any (v_turns) and e.turn_id between v_turns[1] and o_last;
  get diagnostics o_events = row_count;
  delete from not_completed n where n.turn_id = any (v_turns);
  delete from commands c where c.turn_id = any (v_turns);
  delete from remote_claims o where o.turn_id = any (v_turns);
  delete from turns t where t.id = any (v_turns);
  get diagnostics o_turns = row_count;
  o_conversations := lw_sweep_conversations_v1(v_conversations, p_before);
end $$;

-- Removes those of these conversations that are older than an id and that no turn is left of. Whoever accepts a turn
-- locks its conversation first: one that is locked is left for another time, and what is held here is asked again.
create function lw_sweep_conversations_v1(p_conversations uuid[], p_before uuid) returns int
language plpgsql as $$
declare
  v_held uuid[];
  v_count int;
begin
  select array_agg(h.id) into v_held from (
    select c.id from conversations c
     where c.id = any (p_conversations) and c.id < p_before
     order by c.id for update skip locked) h;
  delete from conversations c
   where c.id = any (v_held)
     and (select count(*) from (select from turns t where t.conversation_id = c.id limit 1) t) = 0;
  get diagnostics v_count = row_count;
  return v_count;
end $$;

-- Looks at conversations between two ids for such that no turn was ever accepted in, or that were locked when their last
-- turn went. `o_last`: the last one that it looked at, null where none is left.
create function lw_sweep_empty_v1(p_after uuid, p_before uuid, p_limit int, out o_last uuid, out o_conversations int)
language plpgsql as $$
declare
  v_ids uuid[] := array(
    select c.id from conversations c where c.id > p_after and c.id < p_before order by c.id limit p_limit);
begin
  o_conversations := 0;
  if cardinality(v_ids) > 0 then
    o_last := v_ids[cardinality(v_ids)];
    o_conversations := lw_sweep_conversations_v1(v_ids, p_before);
  end if;
end $$;

-- A table that was empty when a plan was made is found by any index that knows the id, and then read whole by that: so
-- the index by agent is one that only a list's own condition implies. A table that is large already stays as it is:
-- building an index holds up whoever writes, and it is not empty. docs/OPERATING.md tells how to do it there.
do $$
begin
  if pg_relation_size('turns') < 64 * 1024 * 1024 then
    drop index turns_by_agent;
    create index turns_by_agent on turns (agent, id) where coalesce(agent, '') <> '';
  end if;
  if pg_relation_size('conversations') < 64 * 1024 * 1024 then
    drop index conversations_by_agent;
    create index conversations_by_agent on conversations (agent, id) where coalesce(agent, '') <> '';
  end if;
end $$;
