-- History: conversations and their turns. A turn's row is not touched between the moment a worker
-- receives it and its last word.
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
  constraint turns_status_is_known check (status in ('queued', 'running', 'completed', 'failed', 'cancelled')),
  constraint turns_finished_iff_terminal check (
    (status in ('completed', 'failed', 'cancelled')) = (finished_at is not null and last_seq is not null))
) with (fillfactor = 80);
create index turns_by_agent on turns (agent, id);
create index turns_failed on turns (id) where status = 'failed';
