-- Two releases side by side: a replica gives back what it does not understand, and that is no attempt.

-- How many claims of the turn were declined. Nobody's worker knew of them.
alter table inflight add column declined int not null default 0;

-- The holder understands less of the turn's agent than the release that wrote it. The turn waits on where it stood: its
-- queue clock is not begun anew, so that a turn which no replica understands ends by it.
create function lw_decline_v1(p_turn uuid, p_epoch int, p_replica uuid) returns boolean
language plpgsql as $$
begin
  update inflight i
     set phase = 'queued', replica = null, worker = null, clock = 'queue', claimed_at = null, started_at = null,
         declined = i.declined + 1,
         deadline = least(i.cap_at, coalesce(i.head_at, i.accepted_at) + i.queue_ms * interval '1 ms')
   where i.turn_id = p_turn and i.epoch = p_epoch and i.replica = p_replica and i.phase = 'starting'
     and i.cancelled_by is null;
  return found;
end $$;

-- As before; what a worker said in words of a newer release was said too, and a declined claim is no attempt.
create or replace function lw_may_rerun_v1(p_row inflight, p_is_untouched boolean default false) returns boolean
language sql as $$
  select p_row.cancelled_by is null
     and p_row.epoch - p_row.declined < 3
     and clock_timestamp() < p_row.cap_at
     and (p_row.phase = 'starting'
       or p_is_untouched
       or (p_row.phase = 'running' and p_row.is_retry_safe and not exists (
         select from turn_events e where e.turn_id = p_row.turn_id
            and e.kind not in ('accepted', 'started', 'ephemeral', 'status', 'answer', 'custom'))))
$$;
