//! Blockers: foreign sessions that hold a lock which a write here waits for.
//!
//! Owns the queries for blockers, and the log lines about them: at most one a minute per session. Queries only once
//! a lock has been met. Waits for no row: the holder of a row lock is found by its transaction id. How long foreign
//! transactions have been open is left out if Postgres hides it from this role.

use std::{collections::BTreeMap, time::Duration};

use uuid::Uuid;

use crate::{
    id::{ConversationId, TurnId},
    store::{error::StoreError, handle::Store, live::blockers_told::ROWS_MAX},
};

/// A session that others wait for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocker {
    /// The process id of the session's backend.
    pub pid: i32,
    /// The session's `application_name`; empty if it has none.
    pub application: String,
    /// How long the session's transaction has been open; `None` if Postgres hides it from this role.
    pub open_for: Option<Duration>,
}

/// A turn or conversation that waits for a blocker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocked {
    /// The turn; `None` if a new turn cannot enter its conversation.
    pub turn: Option<TurnId>,
    /// The conversation.
    pub conversation: ConversationId,
    /// The session; `None` if it is unknown, or the row is free by now.
    pub blocker: Option<Blocker>,
}

impl Store {
    /// Logs who has locked rows of these turns, if a line is due.
    pub(in crate::store) async fn tell_who_locked(&self, turns: impl IntoIterator<Item = TurnId>) {
        let due = self.blockers_told().due(turns.into_iter().map(|turn| turn.0));
        if !due.is_empty() {
            self.tell(&self.blocked(&due, &[]).await.unwrap_or_default());
        }
    }

    /// Logs who keeps a turn from starting, by a row lock or a table lock, if a line is due.
    pub async fn tell_who_keeps_back(&self, turn: TurnId) {
        let due = self.blockers_told().due([turn.0].into_iter());
        if !due.is_empty() {
            self.tell_one_or_a_table(self.blocked(&due, &[]).await).await;
        }
    }

    /// Logs who keeps new turns out of these conversations, by a row lock or a table lock, if a line is due.
    pub async fn tell_who_keeps_out(&self, conversations: impl IntoIterator<Item = ConversationId>) {
        let due = self.blockers_told().due(conversations.into_iter().map(|conversation| conversation.0));
        if !due.is_empty() {
            self.tell_one_or_a_table(self.blocked(&[], &due).await).await;
        }
    }

    async fn tell_one_or_a_table(&self, blocked: Result<Vec<Blocked>, StoreError>) {
        let mut blocked = blocked.unwrap_or_default();
        // If no row is locked the wait was for a table.
        blocked.retain(|one| one.blocker.is_some());
        self.tell(&blocked);
        if blocked.is_empty() {
            self.tell_who_locked_a_table().await;
        }
    }

    fn tell(&self, blocked: &[Blocked]) {
        for group in by_blocker(blocked) {
            if self.blockers_told().may_tell(group.pid()) {
                group.warn("another database session has locked a row of this turn; other turns go on");
            }
        }
    }

    /// Logs who has locked a whole table of this installation, if a line is due.
    pub async fn tell_who_locked_a_table(&self) {
        if self.blockers_told().due([Uuid::nil()].into_iter()).is_empty() {
            return;
        }
        let found = self.table_blockers().await.unwrap_or_else(|why| {
            tracing::debug!(%why, "the session that has locked a table could not be found");
            Vec::new()
        });
        for (tables, blocker) in found {
            if self.blockers_told().may_tell(Some(blocker.pid)) {
                tracing::warn!(
                    ?tables,
                    blocker_pid = blocker.pid,
                    blocker_application = blocker.application,
                    blocker_open_s = blocker.open_for.map(|time| time.as_secs()),
                    "another database session has locked a table; all writes to the table wait"
                );
            }
        }
    }

    /// Those of these turns that wait for a foreign session, ordered by id. Empty if Postgres does not answer.
    pub async fn waits(&self, turns: &[TurnId]) -> Vec<Blocked> {
        let look = async {
            let locked = self.locked(turns).await?;
            let locked: Vec<Uuid> = locked.into_iter().map(|turn| turn.0).take(ROWS_MAX).collect();
            self.blocked(&locked, &[]).await
        };
        look.await.unwrap_or_default()
    }

    /// Who has locked a row of these turns, or these conversations.
    async fn blocked(&self, turns: &[Uuid], conversations: &[Uuid]) -> Result<Vec<Blocked>, StoreError> {
        let query = sqlx::query!(
            r#"
            with held as materialized (
              select i.turn_id, i.conversation_id, x.holder
                from lastword.inflight i
                join lastword.turns t on t.id = i.turn_id
                join lastword.conversations c on c.id = i.conversation_id
               -- The transaction that locked the row last.
               cross join lateral (values (i.xmax), (t.xmax), (c.xmax)) x (holder)
               where i.turn_id = any ($1::uuid[])
              union all
              select null, c.id, c.xmax from lastword.conversations c where c.id = any ($2::uuid[])),
            -- A row that several have locked names none of them: then whoever our sessions wait for, where
            -- that is one alone.
            awaited as (
              select min(b.pid) as pid
                from pg_stat_activity w
               cross join lateral unnest(pg_blocking_pids(w.pid)) b (pid)
                join pg_stat_activity a on a.pid = b.pid
               where w.application_name = $3 and w.wait_event_type = 'Lock'
                 and a.application_name not like 'lastword %'
              having count(distinct b.pid) = 1),
            -- A replica's statement holds one row while it waits for another: the session that it waits for comes
            -- first.
            found as (
              select distinct on (h.turn_id, h.conversation_id) h.turn_id, h.conversation_id, a.pid as any_pid,
                     case when a.application_name not like 'lastword %' then a.pid end as pid
                from held h
                left join pg_locks l
                  on l.locktype = 'transactionid' and l.transactionid = h.holder and l.granted
                left join pg_stat_activity a on a.pid = l.pid
               order by h.turn_id, h.conversation_id, a.application_name like 'lastword %', a.pid)
            select f.turn_id as "turn?", f.conversation_id as "conversation!", a.pid as "pid?",
                   coalesce(a.application_name, '') as "application!",
                   extract(epoch from clock_timestamp() - a.xact_start)::float8 as open_s
              from found f
              left join pg_stat_activity a on a.pid = coalesce(f.pid, (select pid from awaited), f.any_pid)
             order by f.turn_id, f.conversation_id
            "#,
            turns,
            conversations,
            self.application_name(),
        );
        let rows = self.fetch_all("blocked", query).await?;
        let blocked = rows.into_iter().map(|row| Blocked {
            turn: row.turn.map(TurnId),
            conversation: ConversationId(row.conversation),
            blocker: row.pid.map(|pid| blocker(pid, row.application, row.open_s)),
        });
        Ok(blocked.collect())
    }

    /// Sessions that have locked whole tables against writers, up to 4, each with the names of up to 3 tables.
    async fn table_blockers(&self) -> Result<Vec<(Vec<String>, Blocker)>, StoreError> {
        let mut lease = self.lease().await?;
        let rows = lease
            .run("table_blockers", |c| {
                let schema = c.schema.name().to_owned();
                async move {
                    sqlx::query!(
                        r#"
                        select l.pid as "pid!", max(a.application_name) as application,
                               (array_agg(t.relname::text order by t.relispartition, t.relname))[1:3] as "tables!",
                               max(extract(epoch from clock_timestamp() - a.xact_start))::float8 as open_s
                          from pg_locks l
                          join pg_class t on t.oid = l.relation
                          left join pg_stat_activity a on a.pid = l.pid
                         where l.locktype = 'relation' and l.granted and l.pid <> pg_backend_pid()
                           and l.mode in ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
                           and l.database = (select oid from pg_database where datname = current_database())
                           and t.relnamespace = to_regnamespace($1) and t.relkind in ('r', 'p')
                         group by l.pid
                         order by l.pid
                         limit 4
                        "#,
                        schema,
                    )
                    .fetch_all(c)
                    .await
                }
            })
            .await?;
        let named = rows
            .into_iter()
            .map(|row| (row.tables, blocker(row.pid, row.application.unwrap_or_default(), row.open_s)));
        Ok(named.collect())
    }
}

fn blocker(pid: i32, application: String, open_s: Option<f64>) -> Blocker {
    let open_for = open_s.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    Blocker { pid, application, open_for }
}

/// Everything that waits for one session.
#[derive(Debug)]
pub struct WaitingFor<'a> {
    first: &'a Blocked,
    waiting: usize,
}

/// Groups by the session that is waited for.
pub fn by_blocker(blocked: &[Blocked]) -> Vec<WaitingFor<'_>> {
    let mut groups: BTreeMap<Option<i32>, WaitingFor<'_>> = BTreeMap::new();
    for one in blocked {
        let pid = one.blocker.as_ref().map(|blocker| blocker.pid);
        groups.entry(pid).or_insert(WaitingFor { first: one, waiting: 0 }).waiting += 1;
    }
    groups.into_values().collect()
}

impl WaitingFor<'_> {
    fn pid(&self) -> Option<i32> {
        self.first.blocker.as_ref().map(|blocker| blocker.pid)
    }

    /// Logs `what` as a warning, with the first turn, its conversation, how many wait, and the session.
    pub fn warn(&self, what: &'static str) {
        let blocker = self.first.blocker.as_ref();
        tracing::warn!(
            turn_id = self.first.turn.map(tracing::field::display),
            conversation_id = %self.first.conversation,
            waiting = self.waiting,
            blocker_pid = blocker.map(|blocker| blocker.pid),
            blocker_application = blocker.map(|blocker| blocker.application.as_str()),
            blocker_open_s = blocker.and_then(|blocker| blocker.open_for).map(|time| time.as_secs()),
            "{what}"
        );
    }
}
