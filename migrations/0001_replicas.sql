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
  started_at timestamptz not null default clock_timestamp(),
  gone_at timestamptz,
  constraint replicas_state_is_known check (state in ('ready', 'draining', 'lost', 'left')),
  constraint replicas_gone_iff_lost_or_left check ((state in ('lost', 'left')) = (gone_at is not null))
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);
