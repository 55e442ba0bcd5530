-- A conversation's replica and its remote worker have a column each (docs/decisions/0038).

-- The remote worker that served the conversation last, where `holder` is null; `holder` is the replica whose worker did.
-- A claim of the release before sets `holder` alone: what is left here then means nothing.
alter table conversations add column holder_worker uuid;

-- As in 0016, but that the worker has a column of its own.
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
         set holder = null, holder_worker = fit.worker,
             generation = c.generation + (c.holder is not null or c.holder_worker is distinct from fit.worker)::int
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

select lw_place_v1('lw_remote_claim_v1');
