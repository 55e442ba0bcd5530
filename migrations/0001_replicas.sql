-- Which history of the database this is: every promotion of a standby begins a new timeline, a restart
-- does not. 0 where Postgres does not tell (some hosted ones): then no promotion is seen here.
-- Found out once a session, since every accept and every claim asks: a server that is no standby keeps its timeline
-- until it is started again, and no session lives through that.
create function lw_timeline_v1() returns int
language plpgsql as $$
declare
  v_known text := current_setting('lastword.timeline', true);
  v_timeline int := 0;
begin
  if v_known <> '' then
    return v_known::int;
  end if;
  if pg_is_in_recovery() then
    return 0;
  end if;
  begin
    v_timeline := ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int;
  exception
    when object_not_in_prerequisite_state then
      return 0;
    when feature_not_supported or insufficient_privilege then
      null;
  end;
  perform set_config('lastword.timeline', v_timeline::text, false);
  return v_timeline;
end $$;

-- Presence: one row a boot. Small and hot: a beat every half second, so nothing is indexed but the
-- id (every beat stays a heap-only update) and half of each page is kept free for it.
create table replicas (
  id uuid primary key,
  url text not null,
  pid int not null,
  version text not null,
  -- What its backends call themselves, so that a judge can tell whether any is left.
  application_name text not null,
  state text not null default 'ready',
  beat_n bigint not null default 0,
  beat_at timestamptz not null default clock_timestamp(),
  lock_key bigint not null,
  -- The timeline on which it has compared what it had seen with what is there. It rides in the row, so
  -- a database that went back in time takes it back as well.
  timeline int not null default lw_timeline_v1(),
  started_at timestamptz not null default clock_timestamp(),
  gone_at timestamptz,
  constraint replicas_state_is_known check (state in ('ready', 'draining', 'lost', 'left')),
  constraint replicas_gone_iff_lost_or_left check ((state in ('lost', 'left')) = (gone_at is not null))
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);

-- Whether every replica at work has compared on the present timeline. Until then a turn that looks
-- untouched may be one that a replica has run: nothing is claimed.
create function lw_all_reconciled_v1() returns boolean
language plpgsql as $$
declare
  v_timeline int := lw_timeline_v1();
begin
  return not exists (
    select from replicas r where r.state in ('ready', 'draining') and r.timeline <> v_timeline);
end $$;

-- Whether a replica may claim: it is ready, and all is reconciled. One look at a table that every accept reads.
create function lw_may_claim_v1(p_replica uuid) returns boolean
language plpgsql as $$
declare
  v_timeline int := lw_timeline_v1();
begin
  return coalesce((
    select bool_or(r.id = p_replica and r.state = 'ready') and bool_and(r.timeline = v_timeline)
      from replicas r where r.state in ('ready', 'draining')), false);
end $$;
