-- An installation has a schema of its own, and its functions find their tables there whatever a session's search_path
-- is (docs/decisions/0031).

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
      when v_lock.key ~ '^\d' then format('hashtextextended(%L, 0)', current_schema() || v_lock.name)
      else format('%L', current_schema() || v_lock.name) end);
  end loop;
end $$;

-- Has a function name the schema of what it uses. A setting of the function would do as well, and cost 4 µs at each call;
-- only those that make and drop partitions have one: partitions are named by themselves.
create function lw_place_v1(p_function text) returns void language plpgsql as $place$
declare
  v_schema text := quote_ident(current_schema());
  v_tables text := '(agents|commands|conversations|idempotency|inflight|lw_partitions|not_completed|remote_claims|'
    || 'replicas|rewound|turn_events|turns|worker_tokens|worker_tokens_ended|workers)\M';
  v_function record;
  v_text text;
begin
  for v_function in
    select p.oid, p.proname from pg_proc p
     where p.pronamespace = current_schema()::regnamespace and p.proname = p_function
  loop
    if v_function.proname in ('lw_partition_make_v1', 'lw_partitions_drop_v1') then
      execute format('alter function %s set search_path = %I, pg_temp', v_function.oid::regprocedure, current_schema());
    else
      v_text := pg_get_functiondef(v_function.oid);
      v_text := regexp_replace(v_text, '\m(from|join|into|update)\s+' || v_tables, '\1 ' || v_schema || '.\2', 'g');
      v_text := regexp_replace(v_text, '\m(v_\w+)\s+' || v_tables, '\1 ' || v_schema || '.\2', 'g');
      v_text := regexp_replace(v_text, '(?<![\w.])(lw_\w+\s*\()', v_schema || '.\1', 'g');
      execute v_text;
    end if;
  end loop;
end $place$;

do $$
begin
  perform lw_place_v1(p.proname) from (
    select distinct p.proname::text from pg_proc p
     where p.pronamespace = current_schema()::regnamespace and p.proname like 'lw\_%' and p.proname <> 'lw_place_v1') p;
end $$;
