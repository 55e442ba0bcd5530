-- Tokens for hosts of workers, which operators mint: with an id to revoke them by, and perhaps an end. A pod's has no id.
alter table worker_tokens add column id uuid;
alter table worker_tokens add column expires_at timestamptz;
create unique index worker_tokens_by_id on worker_tokens (id) where id is not null;
create index worker_tokens_by_end on worker_tokens (expires_at) where expires_at is not null;

-- Tokens that let nobody in any more, for a day: replicas look here for those of workers that are registered.
create table worker_tokens_ended (
  hash bytea primary key,
  ended_at timestamptz not null default clock_timestamp()
);
create index worker_tokens_ended_by_age on worker_tokens_ended (ended_at);

-- Whose token made a worker: nobody else's may call as that one. Null of a worker that an older release let in.
alter table workers add column token_hash bytea;
create index workers_of_token on workers (token_hash) where token_hash is not null and state <> 'ended';

-- Ends a token, or, without an id, all that have expired; and with them the workers that they let in: whoever holds a
-- turn of one makes that its last word. How many tokens there were.
create function lw_worker_tokens_end_v1(p_id uuid, p_message text) returns int language plpgsql as $$
declare
  v_hashes bytea[];
begin
  if p_id is null then
    select array_agg(t.hash) into v_hashes from (
      select t.hash from worker_tokens t where t.expires_at <= clock_timestamp()
       order by t.hash limit 1000 for update skip locked) t;
  else
    select array_agg(t.hash) into v_hashes from (
      select t.hash from worker_tokens t where t.id = p_id for update) t;
  end if;
  if v_hashes is null then
    return 0;
  end if;
  delete from worker_tokens t where t.hash = any (v_hashes);
  insert into worker_tokens_ended (hash) select h from unnest(v_hashes) h order by h on conflict do nothing;
  perform 1 from workers w where w.token_hash = any (v_hashes) and w.state <> 'ended' order by w.id for update;
  update workers w
     set state = 'ended', ended_at = clock_timestamp(), exit = p_message, end_code = 'worker_lost'
   where w.token_hash = any (v_hashes) and w.state <> 'ended' and w.end_code is null;
  return cardinality(v_hashes);
end $$;
