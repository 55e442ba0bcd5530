-- Remote workers: who may call, which turn was offered to whom, and the move of a turn's hold to the replica
-- that its worker calls. `docs/decisions/0016` tells why the hold moves and the epoch does not.

-- What its host calls itself; and where somebody knows why a worker ended, the reason for its turn's last word.
alter table workers add column name text;
alter table workers add column end_code text;
alter table workers add column end_detail text;

-- Tokens that were minted, each for one agent and perhaps one conversation. Hashed with SHA-256.
create table worker_tokens (
  hash bytea primary key,
  agent text not null,
  conversation_id uuid,
  created_at timestamptz not null default clock_timestamp()
);
create index worker_tokens_by_conversation on worker_tokens (conversation_id);

-- Offers: which worker was offered a turn, and the hash of the token that came with it. A row outlives its
-- turn by a day, so that a late worker is told "ended" and not "who are you".
create table remote_claims (
  turn_id uuid not null,
  epoch int not null,
  worker_id uuid not null,
  token_hash bytea not null,
  claimed_at timestamptz not null default clock_timestamp(),
  primary key (turn_id, epoch)
);
create index remote_claims_by_age on remote_claims (claimed_at);

-- Claims these turns, each for its worker, as `starting`: heads of lines, and turns that another replica
-- holds as `starting` while it brings a worker about (those keep their epoch and their clocks). What was
-- decided by an earlier look is decided again behind the locks.
create function lw_remote_claim_v1(p_replica uuid, p_turns uuid[], p_workers uuid[], p_hashes bytea[])
returns table (o_turn uuid, o_worker uuid, o_conversation uuid, o_epoch int, o_last_seq int, o_generation bigint,
  o_cap_left_ms bigint, o_waited_ms bigint) language plpgsql as $$
declare
  v_ids uuid[];
  v_now timestamptz;
begin
  if not lw_may_claim_v1(p_replica) then
    return;
  end if;
  select array_agg(l.turn_id) into v_ids from (
    select i.turn_id from inflight i where i.turn_id = any (p_turns)
     order by i.turn_id for update skip locked) l;
  if v_ids is null then
    return;
  end if;
  v_now := clock_timestamp();
  return query
    with fit as materialized (
      select i.turn_id, i.conversation_id, i.phase, i.epoch + (i.phase = 'queued')::int as epoch, i.last_seq,
             coalesce(i.head_at, i.accepted_at) as head_at, w.worker, w.hash,
             -- The cap runs from the first claim and never grows.
             case i.epoch when 0 then v_now + i.cap_ms * interval '1 ms' else i.cap_at end as cap_at
        from unnest(p_turns, p_workers, p_hashes) w (turn_id, worker, hash)
       cross join lateral (select * from inflight i where i.turn_id = w.turn_id limit 1) i
       where i.turn_id = any (v_ids) and (
         (i.phase = 'queued' and not exists (
           select from inflight j where j.conversation_id = i.conversation_id and j.ordinal < i.ordinal))
         or (i.phase = 'starting' and not exists (
           select from remote_claims o where o.turn_id = i.turn_id and o.epoch = i.epoch)))),
    offer as (
      insert into remote_claims (turn_id, epoch, worker_id, token_hash)
      select turn_id, epoch, worker, hash from fit),
    thread as (
      update conversations c
         set holder = fit.worker, generation = c.generation + (c.holder is distinct from fit.worker)::int
        from fit where c.id = fit.conversation_id
      returning c.id, c.generation),
    held as (
      update inflight i
         set phase = 'starting', epoch = i.epoch + (i.phase = 'queued')::int, replica = p_replica, clock = 'startup',
             claimed_at = v_now,
             (cap_at, deadline) = (
               select cap.at, case i.phase when 'starting' then i.deadline
                        else least(cap.at, v_now + i.startup_ms * interval '1 ms') end
                 from (select case i.epoch when 0 then v_now + i.cap_ms * interval '1 ms' else i.cap_at end) cap (at))
       where i.turn_id = any (array (select turn_id from fit)))
    select fit.turn_id, fit.worker, fit.conversation_id, fit.epoch, fit.last_seq, thread.generation,
           (extract(epoch from fit.cap_at - v_now) * 1000)::bigint,
           (extract(epoch from v_now - fit.head_at) * 1000)::bigint
      from fit join thread on thread.id = fit.conversation_id;
end $$;

-- Moves a turn's hold to the replica that its worker calls, with the same epoch: from here on the former
-- holder's fence is closed. By the turn's token, or by its worker's id where the worker itself was let in.
-- Verdicts: `adopted`; `unknown` (no such offer to whoever asks), `ended`, `stale` (another attempt),
-- `elsewhere` (this replica takes on nothing).
create function lw_remote_adopt_v1(p_turn uuid, p_epoch int, p_replica uuid, p_worker uuid, p_hash bytea,
  out o_verdict text, out o_worker uuid, out o_hash bytea, out o_conversation uuid, out o_phase text,
  out o_last_seq int, out o_generation bigint, out o_cap_left_ms bigint, out o_left_ms bigint,
  out o_started_at timestamptz, out o_cancelled_by text)
language plpgsql as $$
declare
  v_row inflight;
begin
  select o.worker_id, o.token_hash into o_worker, o_hash
    from remote_claims o where o.turn_id = p_turn and o.epoch = p_epoch;
  if not found or (p_worker is not null and o_worker <> p_worker) or (p_hash is not null and o_hash <> p_hash) then
    o_verdict := 'unknown';
    return;
  end if;
  select i.* into v_row from inflight i where i.turn_id = p_turn for update;
  if not found then
    o_verdict := 'ended';
  elsif v_row.epoch <> p_epoch or v_row.phase = 'queued' then
    o_verdict := 'stale';
  elsif not lw_may_claim_v1(p_replica) then
    o_verdict := 'elsewhere';
  else
    o_verdict := 'adopted';
    -- Time for what the worker had to keep while nobody could be reached.
    update inflight i
       set replica = p_replica,
           deadline = greatest(i.deadline, least(i.cap_at, clock_timestamp() + interval '5 s'))
     where i.turn_id = p_turn
    returning i.* into v_row;
    -- Whether the former holder came to tell the worker is not known. Telling it again is harmless.
    update commands set taken_at = null where turn_id = p_turn and taken_at is not null;
    o_conversation := v_row.conversation_id;
    o_phase := v_row.phase;
    o_started_at := v_row.started_at;
    o_cancelled_by := v_row.cancelled_by;
    o_last_seq := (select max(e.seq) from turn_events e where e.turn_id = p_turn);
    o_generation := (select c.generation from conversations c where c.id = v_row.conversation_id);
    o_cap_left_ms := (extract(epoch from v_row.cap_at - clock_timestamp()) * 1000)::bigint;
    o_left_ms := (extract(epoch from v_row.deadline - clock_timestamp()) * 1000)::bigint;
  end if;
end $$;
