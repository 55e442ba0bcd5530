-- The obligations: a row from acceptance to the last word, and only its deletion may write the last
-- word. Tiny and hot, apart from history, so that a long transaction elsewhere costs little. No
-- index on a column that an append moves.
create table inflight (
  turn_id uuid primary key,
  conversation_id uuid not null,
  ordinal bigint not null,
  agent text not null,
  agent_revision int not null,
  runtime text not null,
  phase text not null default 'queued',
  -- The fencing number: every write for a worker names it. Each claim adds one.
  epoch int not null default 0,
  replica uuid,
  worker uuid,
  -- The newest event's seq as of the last change of phase; appends do not move it.
  last_seq int not null default 0,
  -- Which clock `deadline` stands for.
  clock text not null default 'queue',
  deadline timestamptz not null,
  cap_at timestamptz not null,
  accepted_at timestamptz not null default clock_timestamp(),
  head_at timestamptz,
  claimed_at timestamptz,
  started_at timestamptz,
  cancelled_by text,
  queue_ms bigint not null,
  startup_ms bigint not null,
  progress_ms bigint not null,
  cap_ms bigint not null,
  is_retry_safe boolean not null default false,
  constraint inflight_deadline_within_cap check (deadline <= cap_at),
  constraint inflight_held_iff_claimed check ((phase = 'queued') = (replica is null)),
  constraint inflight_queue_clock_iff_queued check ((phase = 'queued') = (clock = 'queue'))
) with (
  fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000,
  autovacuum_vacuum_cost_delay = 0
);
create index inflight_line on inflight (conversation_id, ordinal);
create index inflight_queued on inflight (turn_id) where phase = 'queued';
-- Keeper of I9: one turn of a conversation is with a worker, or on its way to one, at a time.
-- Written so that no statement's own condition implies it: for a table that was empty when a plan was made,
-- Postgres would look for a single turn by reading all of this index.
create unique index inflight_one_claimed on inflight (conversation_id) where coalesce(phase, 'queued') <> 'queued';

-- The same key gives the same turn, on whichever replica.
create table idempotency (
  key text primary key,
  turn_id uuid not null,
  body_hash text not null,
  created_at timestamptz not null default clock_timestamp()
);
create index idempotency_by_age on idempotency (created_at);

-- Orders to a turn's holder. An answer's row stays when it is taken: it keeps answers single.
create table commands (
  id bigint generated always as identity primary key,
  turn_id uuid not null,
  kind text not null,
  ask_id text,
  answer text,
  created_at timestamptz not null default clock_timestamp(),
  taken_at timestamptz,
  constraint commands_kind_is_known check (kind in ('cancel', 'answer')),
  constraint commands_answer_iff_asked check ((kind = 'answer') = (ask_id is not null and answer is not null)),
  constraint commands_one_answer_an_ask unique (turn_id, ask_id)
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
create index commands_waiting on commands (turn_id) where taken_at is null;
create index commands_by_age on commands (created_at);
