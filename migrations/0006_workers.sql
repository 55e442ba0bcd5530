-- What runs turns. Written when a worker starts, gets ready and ends; which turn it runs is told by
-- the in-flight row.
create table workers (
  id uuid primary key,
  replica_id uuid not null,
  agent text not null,
  agent_revision int not null,
  runtime text not null,
  -- None of a shared worker, which serves many.
  conversation_id uuid,
  pid int,
  state text not null default 'starting',
  started_at timestamptz not null default clock_timestamp(),
  ended_at timestamptz,
  -- For operators: how it ended, and the end of its stderr.
  exit text,
  stderr_tail text,
  is_stop_asked boolean not null default false,
  constraint workers_state_is_known check (state in ('starting', 'ready', 'ended')),
  constraint workers_ended_iff_ended_at check ((state = 'ended') = (ended_at is not null))
);
create index workers_alive on workers (replica_id) where state <> 'ended';
create index workers_by_end on workers (ended_at) where state = 'ended';
