-- What had ended before there was a table for it. Reads all turns once, and holds up nobody who writes.
insert into not_completed (turn_id, status, agent, conversation_id, ordinal)
select id, status, agent, conversation_id, ordinal from turns where status in ('failed', 'cancelled')
    on conflict (turn_id) do nothing;
