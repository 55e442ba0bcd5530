-- Agents: every revision is kept, since a turn keeps the revision it ran with. The newest revision
-- is the agent; one without a spec says that the agent was deleted.
create table agents (
  name text not null,
  revision int not null,
  spec text,
  created_at timestamptz not null default clock_timestamp(),
  primary key (name, revision),
  constraint agents_revision_counts_from_one check (revision >= 1)
);

-- Puts a revision; the same spec again is the same revision.
create function lw_agent_put_v1(p_name text, p_spec text, out o_revision int, out o_is_new boolean)
language plpgsql as $$
declare
  v_spec text;
begin
  -- One put of an agent at a time.
  perform pg_advisory_xact_lock(hashtextextended('agent ' || p_name, 0));
  select a.revision, a.spec into o_revision, v_spec
    from agents a where a.name = p_name order by a.revision desc limit 1;
  o_is_new := v_spec is distinct from p_spec or (o_revision is null and p_spec is not null);
  if o_is_new then
    o_revision := coalesce(o_revision, 0) + 1;
    insert into agents (name, revision, spec) values (p_name, o_revision, p_spec);
  end if;
  o_revision := coalesce(o_revision, 0);
end $$;
