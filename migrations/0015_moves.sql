-- Moves of many turns at once: a replica's death moves all that a host of workers has, within the 2.5 s that
-- `lw_is_left_v1` leaves for it.

-- Moves the holds of these turns, each named once, to the replica that their workers call, with the same epochs: from
-- here on the former holder's fence is closed. Each by its turn's token, or by its worker's id where the worker itself
-- was let in. `o_place`: the turn's place in `p_turns`. Verdicts: `adopted`; `unknown` (no such offer to whoever asks),
-- `ended`, `stale` (another attempt), `elsewhere` (this replica takes on nothing).
create function lw_remote_adopt_v2(p_turns uuid[], p_epochs int[], p_replica uuid, p_workers uuid[], p_hashes bytea[])
returns table (o_place bigint, o_verdict text, o_worker uuid, o_hash bytea, o_conversation uuid, o_phase text,
  o_last_seq int, o_generation bigint, o_cap_left_ms bigint, o_left_ms bigint, o_started_at timestamptz,
  o_cancelled_by text)
language plpgsql as $$
declare
  v_workers uuid[];
  v_hashes bytea[];
  v_offered uuid[];
  v_may_claim boolean;
  v_now timestamptz;
  v_moved uuid[];
  v_first uuid;
  v_last uuid;
begin
  -- Null where there is no such offer to whoever asks.
  select array_agg(o.worker_id order by n), array_agg(o.token_hash order by n),
         array_agg(p_turns[n]) filter (where o.worker_id is not null)
    into v_workers, v_hashes, v_offered
    from generate_series(1, cardinality(p_turns)) n
    left join lateral (
      select o.worker_id, o.token_hash from remote_claims o
       where o.turn_id = p_turns[n] and o.epoch = p_epochs[n]
         and (p_workers[n] is null or o.worker_id = p_workers[n])
         and (p_hashes[n] is null or o.token_hash = p_hashes[n])
       limit 1) o on true;
  perform 1 from inflight i where i.turn_id = any (v_offered) order by i.turn_id for update;
  v_may_claim := lw_may_claim_v1(p_replica);
  v_now := clock_timestamp();
  -- Decided now that the rows are held.
  v_moved := array(
    select i.turn_id
      from generate_series(1, cardinality(p_turns)) n
     cross join lateral (select * from inflight i where i.turn_id = p_turns[n] limit 1) i
     where v_may_claim and v_workers[n] is not null and i.epoch = p_epochs[n] and i.phase <> 'queued'
     order by i.turn_id);
  v_first := v_moved[1];
  v_last := v_moved[cardinality(v_moved)];
  -- Time for what the workers had to keep while nobody could be reached.
  update inflight i
     set replica = p_replica,
         deadline = greatest(i.deadline, least(i.cap_at, v_now + interval '5 s'))
   where i.turn_id = any (v_moved);
  -- Whether the former holder came to tell the worker is not known. Telling it again is harmless.
  update commands c set taken_at = null where c.turn_id = any (v_moved) and c.taken_at is not null;
  return query
    select n::bigint,
           case when v_workers[n] is null then 'unknown'
                when i.turn_id is null then 'ended'
                when i.epoch <> p_epochs[n] or i.phase = 'queued' then 'stale'
                when not v_may_claim then 'elsewhere'
                else 'adopted' end,
           v_workers[n], v_hashes[n], i.conversation_id, i.phase,
           (select max(e.seq) from turn_events e where e.turn_id = i.turn_id and e.turn_id between v_first and v_last),
           (select c.generation from conversations c where c.id = i.conversation_id),
           (extract(epoch from i.cap_at - v_now) * 1000)::bigint,
           (extract(epoch from i.deadline - v_now) * 1000)::bigint,
           i.started_at, i.cancelled_by
      from generate_series(1, cardinality(p_turns)) n
      left join lateral (select * from inflight i where i.turn_id = p_turns[n] limit 1) i on true;
end $$;
