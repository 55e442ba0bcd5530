//! Lists of turns and of conversations, newest first, in pages.
//!
//! Owns which index serves which list. Each filter has a statement of its own, since a plan for all filters at once can
//! use no index. Equality is written as a range between two bounds: with an equality Postgres ignores that column in
//! the order, and then walks the primary key through all other rows if one agent has nearly all of them. The predicate
//! uses coalesce() so that the planner never picks the partial indexes by agent for single-row look-ups. Open turns
//! come from `inflight`, turns that did not complete from `not_completed`, and the most common rows (completed turns,
//! conversations not deleted) from a walk that starts at the newest row.
//!
//! Keeps every page bounded: a walk that skips many rows ends early, and the page names the start of the next one. A
//! page may therefore hold fewer items than asked for, even none, without being the last.

mod conversations;

use uuid::Uuid;

use super::turns::{TurnFilter, TurnRow};
use crate::{
    id::{ConversationId, TurnId},
    store::{error::StoreError, handle::Store, records::word::Stored, upkeep::partitions::ends},
    task::aside,
    turn::{Status, Turn},
    word::Open,
};

/// Rows that one page reads at most.
const WALKED_MAX: i64 = 10_000;
/// Growth of each step of a walk that has found too little.
const STRIDE: i64 = 8;

/// A page, and the start of the next one.
#[derive(Debug, Clone)]
pub struct Listed<T, C> {
    /// Newest first.
    pub items: Vec<T>,
    /// The next page is what comes before this id; `None` at the end.
    pub next: Option<C>,
}

/// A walk from the newest row on, until a page is full.
struct Walk<T> {
    limit: usize,
    found: Vec<(Uuid, T)>,
    before: Option<Uuid>,
    /// Rows that the next step reads.
    step: i64,
    read: i64,
    is_at_end: bool,
}

impl<T> Walk<T> {
    fn new(limit: i64, before: Option<Uuid>) -> Walk<T> {
        // One row more than the page shows tells whether there is a next page.
        let step = limit.saturating_add(1);
        let limit = usize::try_from(limit).unwrap_or_default();
        Walk { limit, found: Vec::new(), before, step, read: 0, is_at_end: false }
    }

    /// Rows to read next; `None` when the page is done.
    fn step(&self) -> Option<i64> {
        (!self.is_at_end && self.found.len() <= self.limit && self.step > 0).then_some(self.step)
    }

    /// Takes the rows of one step; `None` marks a skipped row.
    fn take(&mut self, rows: Vec<(Uuid, Option<T>)>) {
        let read = i64::try_from(rows.len()).unwrap_or(i64::MAX);
        self.is_at_end = read < self.step;
        self.read += read;
        self.step = (self.step * STRIDE).min(WALKED_MAX - self.read);
        self.before = rows.last().map(|(id, _)| *id).or(self.before);
        self.found.extend(rows.into_iter().filter_map(|(id, item)| Some((id, item?))));
    }

    fn page(mut self) -> Listed<T, Uuid> {
        let next = match self.found.len() > self.limit {
            true => self.limit.checked_sub(1).and_then(|last| self.found.get(last)).map(|(id, _)| *id),
            false => self.before.filter(|_| !self.is_at_end),
        };
        self.found.truncate(self.limit);
        Listed { items: self.found.into_iter().map(|(_, item)| item).collect(), next }
    }
}

/// A turn that a walk reads.
struct Passed {
    id: Uuid,
    status: Stored<Open<Status>>,
    agent: String,
}

impl Store {
    /// Turns, newest first: those of a conversation by ordinal, others by id.
    pub async fn turns(&self, filter: &TurnFilter) -> Result<Listed<Turn, TurnId>, StoreError> {
        let page = match filter.status {
            Some(status) if status.is_terminal() && filter.is_overdue => {
                Listed { items: Vec::new(), next: None }
            }
            Some(Status::Failed | Status::Cancelled) => self.turns_that_did_not_complete(filter).await?,
            Some(Status::Queued | Status::Running) => self.turns_in_flight(filter).await?,
            _ if filter.is_overdue => self.turns_in_flight(filter).await?,
            None | Some(Status::Completed) => self.turns_on_a_walk(filter).await?,
        };
        let mut items = self.turns_of(&page.items).await?;
        // Turns that ended between the two queries no longer match.
        items.retain(|turn| filter.status.is_none_or(|status| turn.status == status));
        Ok(Listed { items, next: page.next.map(TurnId) })
    }

    async fn turns_on_a_walk(&self, filter: &TurnFilter) -> Result<Listed<Uuid, Uuid>, StoreError> {
        let mut walk = Walk::new(filter.limit, filter.before.map(|turn| turn.0));
        while let Some(step) = walk.step() {
            let rows = match (filter.conversation, &filter.agent) {
                (Some(conversation), _) => {
                    self.passed_of_conversation(conversation, walk.before, step).await?
                }
                (None, Some(agent)) => self.passed_of_agent(agent, walk.before, step).await?,
                (None, None) => self.passed(walk.before, step).await?,
            };
            let is_wanted = |row: &Passed| {
                filter.status.is_none_or(|status| row.status.0 == status)
                    && filter.agent.as_ref().is_none_or(|agent| row.agent == *agent)
            };
            walk.take(rows.into_iter().map(|row| (row.id, is_wanted(&row).then_some(row.id))).collect());
        }
        Ok(walk.page())
    }

    async fn passed(&self, before: Option<Uuid>, limit: i64) -> Result<Vec<Passed>, StoreError> {
        let query = sqlx::query_as!(
            Passed,
            r#"
            select id, status as "status: Stored<Open<Status>>", agent from lastword.turns
             where id < $1 order by id desc limit $2
            "#,
            before.unwrap_or(Uuid::max()),
            limit
        );
        self.fetch_all("turns", query).await
    }

    async fn passed_of_agent(
        &self,
        agent: &str,
        before: Option<Uuid>,
        limit: i64,
    ) -> Result<Vec<Passed>, StoreError> {
        let query = sqlx::query_as!(
            Passed,
            r#"
            select id, status as "status: Stored<Open<Status>>", agent from lastword.turns
             where agent >= $1 and (agent, id) < ($1, $2) and coalesce(agent, '') <> ''
             order by agent desc, id desc limit $3
            "#,
            agent,
            before.unwrap_or(Uuid::max()),
            limit
        );
        self.fetch_all("turns", query).await
    }

    async fn passed_of_conversation(
        &self,
        conversation: ConversationId,
        before: Option<Uuid>,
        limit: i64,
    ) -> Result<Vec<Passed>, StoreError> {
        let query = sqlx::query_as!(
            Passed,
            r#"
            select id, status as "status: Stored<Open<Status>>", agent from lastword.turns
             where conversation_id >= $1
               and (conversation_id, ordinal) < ($1, case when $2::uuid is null then 9223372036854775807
                     else coalesce((select t.ordinal from lastword.turns t where t.id = $2), 0) end)
             order by conversation_id desc, ordinal desc limit $3
            "#,
            conversation.0,
            before,
            limit
        );
        self.fetch_all("turns", query).await
    }

    /// Turns that owe a last word. The status comes from `turns`: a turn that is queued again is still shown as
    /// `running`.
    async fn turns_in_flight(&self, filter: &TurnFilter) -> Result<Listed<Uuid, Uuid>, StoreError> {
        let query = sqlx::query_scalar!(
            "
            select i.turn_id from lastword.inflight i
             where i.turn_id < $1
               and ($2::text is null or i.agent = $2)
               and ($3::uuid is null or i.conversation_id = $3)
               and (not $4 or i.deadline <= clock_timestamp())
               and ($5::text is null
                    or (case $5 when 'running' then i.epoch > 0 else i.phase <> 'running' end
                        and (select t.status from lastword.turns t where t.id = i.turn_id) = $5))
             order by i.turn_id desc limit $6
            ",
            filter.before.map_or(Uuid::max(), |turn| turn.0),
            filter.agent,
            filter.conversation.map(|conversation| conversation.0),
            filter.is_overdue,
            filter.status.map(Status::as_str),
            filter.limit + 1,
        );
        let rows = self.fetch_all("turns_in_flight", query).await?;
        Ok(exactly(rows, filter.limit))
    }

    async fn turns_that_did_not_complete(
        &self,
        filter: &TurnFilter,
    ) -> Result<Listed<Uuid, Uuid>, StoreError> {
        let status = filter.status.map_or("", Status::as_str);
        let (before, limit) = (filter.before.map(|turn| turn.0), filter.limit + 1);
        let rows = match (filter.conversation, &filter.agent) {
            (Some(conversation), agent) => {
                self.mishaps_of_conversation(conversation, agent.as_deref(), status, before, limit).await?
            }
            (None, Some(agent)) => self.mishaps_of_agent(agent, status, before, limit).await?,
            (None, None) => self.mishaps(status, before, limit).await?,
        };
        Ok(exactly(rows, filter.limit))
    }

    async fn mishaps(&self, status: &str, before: Option<Uuid>, limit: i64) -> Result<Vec<Uuid>, StoreError> {
        let query = sqlx::query_scalar!(
            "
            select turn_id from lastword.not_completed
             where status >= $1 and (status, turn_id) < ($1, $2) order by status desc, turn_id desc limit $3
            ",
            status,
            before.unwrap_or(Uuid::max()),
            limit
        );
        self.fetch_all("turns_not_completed", query).await
    }

    async fn mishaps_of_agent(
        &self,
        agent: &str,
        status: &str,
        before: Option<Uuid>,
        limit: i64,
    ) -> Result<Vec<Uuid>, StoreError> {
        let query = sqlx::query_scalar!(
            "
            select turn_id from lastword.not_completed
             where (agent, status) >= ($1, $2) and (agent, status, turn_id) < ($1, $2, $3)
             order by agent desc, status desc, turn_id desc limit $4
            ",
            agent,
            status,
            before.unwrap_or(Uuid::max()),
            limit
        );
        self.fetch_all("turns_not_completed", query).await
    }

    async fn mishaps_of_conversation(
        &self,
        conversation: ConversationId,
        agent: Option<&str>,
        status: &str,
        before: Option<Uuid>,
        limit: i64,
    ) -> Result<Vec<Uuid>, StoreError> {
        let query = sqlx::query_scalar!(
            "
            select turn_id from lastword.not_completed
             where (conversation_id, status) >= ($1, $2)
               and (conversation_id, status, ordinal) < ($1, $2, case
                     when $3::uuid is null then 9223372036854775807
                     else coalesce((select t.ordinal from lastword.turns t where t.id = $3), 0) end)
               and ($4::text is null or agent = $4)
             order by conversation_id desc, status desc, ordinal desc limit $5
            ",
            conversation.0,
            status,
            before,
            agent,
            limit
        );
        self.fetch_all("turns_not_completed", query).await
    }

    /// These turns as clients see them, in this order, without those that no longer exist or whose conversation is deleted.
    async fn turns_of(&self, ids: &[Uuid]) -> Result<Vec<Turn>, StoreError> {
        let (first, last) = ends(ids);
        let query = sqlx::query_as!(
            TurnRow,
            r#"
            select t.id as "id!", t.conversation_id as "conversation_id!", t.agent as "agent!",
                   t.ordinal as "ordinal!", t.status as "status!: Stored<Open<Status>>", t.attempt as "attempt!",
                   t.created_at as "created_at!", t.started_at as "started_at?",
                   t.finished_at as "finished_at?", t.metadata as "metadata?", t.retry_of as "retry_of?",
                   e.data as "last_word?"
              from unnest($1::uuid[]) with ordinality w (id, place)
             cross join lateral (select * from lastword.turns t where t.id = w.id limit 1) t
             cross join lateral (
               select from lastword.conversations v where v.id = t.conversation_id and v.deleted_at is null limit 1) v
              left join lateral (
                select e.data from lastword.turn_events e
                 where e.turn_id = t.id and e.seq = t.last_seq and e.turn_id between $2 and $3
                 limit 1) e on true
             order by w.place
            "#,
            ids,
            first,
            last
        );
        let rows = self.fetch_all("turns_of", query).await?;
        let bytes = rows.iter().map(TurnRow::bytes).sum();
        aside(bytes, move || rows.into_iter().map(TurnRow::read).collect()).await
    }
}

/// A page of ids that were queried with `limit + 1`.
fn exactly(mut ids: Vec<Uuid>, limit: i64) -> Listed<Uuid, Uuid> {
    let limit = usize::try_from(limit).unwrap_or_default();
    let has_more = ids.len() > limit;
    ids.truncate(limit);
    let next = ids.last().copied().filter(|_| has_more);
    Listed { items: ids, next }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Walks over rows of which every `nth` is wanted; the number of items on each page.
    fn pages(rows: u128, nth: u128, limit: i64) -> Vec<usize> {
        let (mut pages, mut before) = (Vec::new(), None);
        loop {
            let mut walk = Walk::new(limit, before);
            while let Some(step) = walk.step() {
                let top = walk.before.map_or(rows + 1, |id| id.as_u128());
                let ids = (1..top).rev().take(usize::try_from(step).unwrap());
                walk.take(ids.map(|n| (Uuid::from_u128(n), n.is_multiple_of(nth).then_some(n))).collect());
            }
            assert!(walk.read <= WALKED_MAX, "{}", walk.read);
            let page = walk.page();
            pages.push(page.items.len());
            before = page.next;
            if before.is_none() {
                return pages;
            }
        }
    }

    #[test]
    fn a_walk_finds_everything_and_reads_so_much_a_page() {
        assert_eq!(pages(10, 1, 4), [4, 4, 2]);
        assert_eq!(pages(8, 1, 4), [4, 4]);
        assert_eq!(pages(0, 1, 4), [0]);
        assert_eq!(pages(1000, 100, 4), [4, 4, 2]);
        // One in 30,000: pages without items, which name the start of the next one.
        let rare = pages(90_000, 30_000, 50);
        assert_eq!(rare.iter().sum::<usize>(), 3);
        assert!(rare.len() >= 9 && rare.len() <= 11, "{rare:?}");
    }
}
