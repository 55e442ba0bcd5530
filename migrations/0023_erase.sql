-- A deleted conversation goes with all that was said in it.

create index conversations_deleted on conversations (id) where deleted_at is not null;

-- Removes up to `p_limit` ended turns of deleted conversations with all that is kept of them, and conversations that no turn
-- is left of: of the conversation, or of any where it is null. How many rows of both; what is in flight is left for
-- another time, and what somebody else has locked. A key of an erased turn goes by its age.
create function lw_erase_v1(p_conversation uuid, p_limit int) returns int language plpgsql as $$
declare
  v_conversations uuid[];
  v_turns uuid[];
  v_count int;
begin
  select array_agg(l.id) into v_conversations from (
    select c.id from conversations c
     where c.deleted_at is not null and (p_conversation is null or c.id = p_conversation)
     order by c.id limit 100 for update skip locked) l;
  if v_conversations is null then
    return 0;
  end if;
  select array_agg(l.id order by l.id) into v_turns from (
    select t.id from turns t
     where t.conversation_id = any (v_conversations) and t.finished_at is not null
       and not exists (select from inflight i where i.turn_id = t.id)
     limit p_limit) l;
  if v_turns is not null then
    delete from turn_events e
     where e.turn_id = any (v_turns) and e.turn_id between v_turns[1] and v_turns[cardinality(v_turns)];
    delete from not_completed n where n.turn_id = any (v_turns);
    delete from commands c where c.turn_id = any (v_turns);
    delete from remote_claims o where o.turn_id = any (v_turns);
    delete from turns t where t.id = any (v_turns);
  end if;
  delete from conversations c
   where c.id = any (v_conversations)
     and (select count(*) from (select from turns t where t.conversation_id = c.id limit 1) t) = 0;
  get diagnostics v_count = row_count;
  return v_count + coalesce(cardinality(v_turns), 0);
end $$;

select lw_place_v1('lw_erase_v1');
