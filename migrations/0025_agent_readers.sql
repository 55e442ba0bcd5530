-- A release claims no turn that it cannot read (docs/decisions/0038): the reader level that an agent's revision needs, and
-- so each of its turns. A release has a level of its own (`agent::READS`), and claims what needs no more.
alter table agents add column reader_min int not null default 1;
-- Empty where all releases read all agents, so that an accept learns as much without reading a revision.
create index agents_of_newer_readers on agents (name) where reader_min > 1;

-- `p_reader_min`: null where the caller does not know what the spec needs, since it keeps fields that it cannot read:
-- then the level stays.
create function lw_agent_put_v2(
  p_name text, p_spec text, p_reader_min int, out o_revision int, out o_is_new boolean)
language plpgsql as $$
declare
  v_spec text;
  v_reader_min int;
begin
  -- One put of an agent at a time.
  perform pg_advisory_xact_lock(hashtextextended('agent ' || p_name, 0));
  select a.revision, a.spec, a.reader_min into o_revision, v_spec, v_reader_min
    from agents a where a.name = p_name order by a.revision desc limit 1;
  o_is_new := v_spec is distinct from p_spec or (o_revision is null and p_spec is not null);
  if o_is_new then
    o_revision := coalesce(o_revision, 0) + 1;
    insert into agents (name, revision, spec, reader_min)
    values (p_name, o_revision, p_spec, coalesce(p_reader_min, v_reader_min, 1));
  end if;
  o_revision := coalesce(o_revision, 0);
end $$;

-- The release before knows no levels.
create or replace function lw_agent_put_v1(p_name text, p_spec text, out o_revision int, out o_is_new boolean)
language sql as $$
  select p.o_revision, p.o_is_new from lw_agent_put_v2(p_name, p_spec, null) p
$$;

-- The lock's key has the schema in it, as before.
do $$
begin
  execute replace(pg_get_functiondef('lw_agent_put_v2'::regproc), '''agent ''', format('%L', current_schema() || ' agent '));
end $$;

select lw_place_v1('lw_agent_put_v1');
select lw_place_v1('lw_agent_put_v2');
