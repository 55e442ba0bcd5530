-- An installation has a schema of its own (docs/decisions/0031).

-- Locks that two installations in one database do not share: the schema is a part of their keys.
do $$
declare
  v_lock record;
begin
  for v_lock in
    select p.oid, l.key, l.name
      from (values ('lw_agent_put_v1', '''agent ''', ' agent '),
                   ('lw_partition_make_v1', '7234598102933', ' partitions'),
                   ('lw_sweep_turns_v1', '7234598102934', ' sweep')) l (function, key, name)
      join pg_proc p on p.proname = l.function and p.pronamespace = current_schema()::regnamespace
  loop
    execute replace(pg_get_functiondef(v_lock.oid), v_lock.key, case
      when v_lock.key ~ '^\d' then format('hashtextextended(current_schema() || %L, 0)', v_lock.name)
      else format('current_schema() || %L', v_lock.name) end);
  end loop;
end $$;

-- Functions find their tables whatever a session's search_path is. Those that name neither a table nor a function are
-- left: with a setting the planner could not see through them.
do $$
declare
  v_function regprocedure;
begin
  for v_function in
    select p.oid::regprocedure from pg_proc p
     where p.pronamespace = current_schema()::regnamespace and p.proname like 'lw\_%'
       and p.proname not in ('lw_first_id', 'lw_is_left_v1', 'lw_timeline_v1')
  loop
    execute format('alter function %s set search_path = %I, pg_temp', v_function, current_schema());
  end loop;
end $$;
