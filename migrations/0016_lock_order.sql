-- One order of locks: whoever locks several rows of one kind does so in the order of their ids, and kinds come in the
-- order keys (`idempotency`), in-flight rows, conversations. What is behind an in-flight row's lock (its turn, its log,
-- its orders, its offer) needs none of its own. Accepting a turn locks no in-flight row: those that it writes are new,
-- and nobody else's. `docs/PROTOCOL.md` tells why.

-- As before, but that conversations are locked in the order of their ids before they are written: an accept that holds
-- one of them and waits for another must not wait for this claim, and this claim for it.
create or replace function lw_remote_claim_v1(p_replica uuid, p_turns uuid[], p_workers uuid[], p_hashes bytea[])
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
  perform 1 from conversations c
   where c.id = any (array(select i.conversation_id from inflight i where i.turn_id = any (v_ids)))
   order by c.id for no key update;
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

-- Whoever knows why the workers of a conversation ended finds them without a look at all others.
create index workers_of_conversation on workers (conversation_id) where runtime = 'remote' and state <> 'ended';
