-- The ids of remote workers move to their column. By itself, and in the order of the ids: what accepts and claims wait for
-- is a row, not the table, and nobody waits in a circle.
with held as (
  select c.id, w.id as worker from conversations c join workers w on w.id = c.holder
   order by c.id for no key update of c)
update conversations c set holder = null, holder_worker = held.worker from held where held.id = c.id;
