-- History: conversations and their turns. A turn's row is not touched between the moment a worker
-- receives it and its last word.
-- Words that come from a list are not checked against it, here and in `inflight`: Postgres reads a check's text anew for
-- each statement, and the lists took a twentieth of a turn. The program has no other words, and `verify` looks for any.
create table conversations (
  id uuid primary key,
  agent text not null,
  next_ordinal bigint not null default 1,
  -- The replica whose worker served last, and a count that changes whenever another worker takes
  -- over: a warm worker may serve only where both match.
  holder uuid,
  generation bigint not null default 0,
  created_at timestamptz not null default clock_timestamp(),
  deleted_at timestamptz
) with (fillfactor = 80);
create index conversations_by_agent on conversations (agent, id);

create table turns (
  id uuid primary key,
  conversation_id uuid not null references conversations (id),
  ordinal bigint not null,
  agent text not null,
  agent_revision int not null,
  status text not null default 'queued',
  attempt int not null default 0,
  -- JSON texts, written once and handed on as they are.
  input text not null,
  metadata text,
  retry_of uuid,
  traceparent text not null,
  created_at timestamptz not null default clock_timestamp(),
  started_at timestamptz,
  finished_at timestamptz,
  last_seq int,
  constraint turns_one_ordinal_each unique (conversation_id, ordinal),
  constraint turns_finished_iff_terminal check (
    (status <> 'queued' and status <> 'running') = (finished_at is not null and last_seq is not null))
) with (fillfactor = 80);
create index turns_by_agent on turns (agent, id);
-- No index knows the status, not even a partial one: so a last word's update of the row touches none of them.
