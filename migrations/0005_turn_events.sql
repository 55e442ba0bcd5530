-- The log. Partitioned by the turn's id, whose first 48 bits are its time, so that old days are
-- dropped whole. No default partition: a stray row in it would block its range for ever.
create table turn_events (
  turn_id uuid not null,
  seq int not null,
  -- Not checked against a list, as in `turns`; here the list took a tenth of an accept.
  kind text not null,
  attempt int not null default 0,
  data text not null,
  at timestamptz not null default clock_timestamp(),
  primary key (turn_id, seq)
) partition by range (turn_id);
-- Keeper of I2: a second last word is an error.
create unique index turn_events_one_last_word on turn_events (turn_id)
  where kind in ('completed', 'failed', 'cancelled');

-- The smallest UUIDv7 of a moment.
create function lw_first_id(p_at timestamptz) returns uuid
language sql immutable as $$
  select (lpad(to_hex((extract(epoch from p_at) * 1000)::bigint), 12, '0') || '00000000000000000000')::uuid
$$;

-- Makes the partition of a day (UTC); false where it exists already. Gives up soon: making a
-- partition locks the whole log for a moment, and everything would queue behind it while it waits.
create function lw_partition_make_v1(p_day date) returns boolean
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
  execute format('create table %I partition of turn_events for values from (%L) to (%L)',
    v_name, lw_first_id(v_from), lw_first_id(v_from + interval '1 day'));
  return true;
end $$;

-- The partitions and the day each one holds.
create view lw_partitions as
  select c.oid::regclass::text as name, to_date(right(c.relname, 8), 'YYYYMMDD') as day
    from pg_inherits i join pg_class c on c.oid = i.inhrelid
   where i.inhparent = 'turn_events'::regclass;

-- Yesterday too: a turn accepted just before midnight still writes after it.
select lw_partition_make_v1((now() at time zone 'UTC')::date + n) from generate_series(-1, 2) n;

-- Drops days before `p_keep_from`, oldest first, never one that a turn in flight may still write.
create function lw_partitions_drop_v1(p_keep_from date) returns table (o_name text)
language plpgsql set lock_timeout = '100ms' as $$
declare
  v_oldest uuid := (select min(i.turn_id::text)::uuid from inflight i);
begin
  for o_name in
    select p.name from lw_partitions p
     where p.day < p_keep_from
       and (v_oldest is null or lw_first_id((p.day + 1)::timestamp at time zone 'UTC') <= v_oldest)
     order by p.day
     limit 31
  loop
    execute format('drop table %s', o_name);
    return next;
  end loop;
end $$;
