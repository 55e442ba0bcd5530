-- Accepting a turn. One function, since what follows the conversation's lock must be decided with a
-- snapshot taken after it: deciding in the locking statement let two turns run at once.
--
-- Outcomes: accepted, same (the key or the id is known: `o_turn` is the turn it made).
-- Refusals are SQLSTATEs, so that nothing of them stays: LW404 the conversation is gone or another
-- agent's, LW409 a turn is active (its id in the detail), LW422 the key came with another body,
-- LW429 the conversation's or the whole queue is full (which one in the detail).
create function lw_accept_v1(
  p_turn uuid, p_conversation uuid, p_is_new boolean, p_agent text, p_revision int, p_runtime text,
  p_input text, p_metadata text, p_traceparent text, p_retry_of uuid,
  p_key text, p_hash text, p_busy text,
  p_queue_ms bigint, p_startup_ms bigint, p_progress_ms bigint, p_cap_ms bigint, p_is_retry_safe boolean,
  p_depth_max int, p_queue_max int, p_event jsonb,
  out o_turn uuid, out o_outcome text, out o_ordinal bigint
) language plpgsql as $$
declare
  v_hash text;
  v_active uuid;
  v_depth int;
  v_now timestamptz;
  v_cap timestamptz;
begin
  if p_key is not null then
    -- Waits for a twin whose commit is not known yet.
    insert into idempotency (key, turn_id, body_hash) values (p_key, p_turn, p_hash) on conflict do nothing;
    if not found then
      select i.turn_id, i.body_hash into o_turn, v_hash from idempotency i where i.key = p_key;
      if v_hash is distinct from p_hash then
        raise exception 'key reused' using errcode = 'LW422';
      end if;
      select t.ordinal into o_ordinal from turns t where t.id = o_turn;
      o_outcome := 'same';
      return;
    end if;
  end if;
  if p_is_new then
    -- Waits for an earlier try of the same turn that may still be under way.
    insert into conversations (id, agent, next_ordinal) values (p_conversation, p_agent, 1) on conflict do nothing;
  else
    perform 1 from conversations c where c.id = p_conversation for no key update;
  end if;
  -- The gateway's own repeat after an unknown commit, looked for behind the conversation's lock.
  select t.id, t.ordinal into o_turn, o_ordinal from turns t where t.id = p_turn;
  if found then
    o_outcome := 'same';
    return;
  end if;
  update conversations set next_ordinal = next_ordinal + 1
   where id = p_conversation and agent = p_agent and deleted_at is null
  returning next_ordinal - 1 into o_ordinal;
  if not found then
    raise exception 'conversation gone' using errcode = 'LW404';
  end if;

  select count(*), (array_agg(i.turn_id order by i.ordinal))[1] into v_depth, v_active
    from inflight i where i.conversation_id = p_conversation;
  if v_depth > 0 and p_busy = 'reject' then
    raise exception 'turn active' using errcode = 'LW409', detail = v_active::text;
  end if;
  if v_depth >= p_depth_max then
    raise exception 'conversation full' using errcode = 'LW429', detail = 'conversation';
  end if;
  if exists (select from inflight i where i.phase = 'queued' offset p_queue_max - 1) then
    raise exception 'queue full' using errcode = 'LW429', detail = 'queue';
  end if;

  v_now := clock_timestamp();
  -- Bounded even behind others: nobody before it can take longer than its queue clock and its cap.
  v_cap := v_now + (v_depth + 1) * (p_queue_ms + p_cap_ms) * interval '1 ms';
  insert into turns (id, conversation_id, ordinal, agent, agent_revision, input, metadata, retry_of, traceparent)
  values (p_turn, p_conversation, o_ordinal, p_agent, p_revision, p_input, p_metadata, p_retry_of, p_traceparent);
  insert into inflight (turn_id, conversation_id, ordinal, agent, agent_revision, runtime, deadline, cap_at,
    head_at, queue_ms, startup_ms, progress_ms, cap_ms, is_retry_safe)
  values (p_turn, p_conversation, o_ordinal, p_agent, p_revision, p_runtime,
    case when v_depth = 0 then v_now + p_queue_ms * interval '1 ms' else v_cap end, v_cap,
    case when v_depth = 0 then v_now end, p_queue_ms, p_startup_ms, p_progress_ms, p_cap_ms, p_is_retry_safe);
  insert into turn_events (turn_id, seq, kind, attempt, data)
  values (p_turn, 0, 'accepted', 0, (p_event || jsonb_build_object('ordinal', o_ordinal))::text);
  o_turn := p_turn;
  o_outcome := 'accepted';
end $$;
