//! `verify`: checks I1 to I6 and I9 over the whole database, by queries for rows that break them.
//!
//! Owns the checks; each returns the ids that break its rule. Turns whose log was dropped with its partition are not
//! judged by their log.

use crate::{
    event::Kind,
    store::{
        error::StoreError,
        handle::Store,
        pool::session::SessionPurpose,
        records::word::{InflightPhase, TurnClock},
    },
    turn::Status,
};

/// A rule, and the ids that break it.
#[derive(Debug, Clone)]
pub struct Finding {
    /// The invariant.
    pub invariant: &'static str,
    /// The rule, as a sentence.
    pub rule: &'static str,
    /// Ids that break the rule, the first 20.
    pub broken: Vec<String>,
    /// False if the rule is about stored words and a newer release has migrated this database.
    pub is_checked: bool,
}

struct VerifyRule {
    invariant: &'static str,
    rule: &'static str,
    /// Returns one text column. `$LOGGED` stands for "the log of turn t is still kept", `$KINDS` and its like for the
    /// words of this release.
    sql: &'static str,
}

const CHECKS: &[VerifyRule] = &[
    VerifyRule {
        invariant: "I1",
        rule: "an open turn has an in-flight row and an accepted event",
        sql: "select t.id::text from lastword.turns t
               where t.status in ('queued', 'running') and (
                 not exists (select from lastword.inflight i where i.turn_id = t.id)
                 or not exists (select from lastword.turn_events e where e.turn_id = t.id and e.seq = 0 and e.kind = 'accepted'))",
    },
    VerifyRule {
        invariant: "I2",
        rule: "an ended turn has no in-flight row",
        sql: "select t.id::text from lastword.turns t join lastword.inflight i on i.turn_id = t.id
               where t.status in ('completed', 'failed', 'cancelled')",
    },
    VerifyRule {
        invariant: "I2",
        rule: "an ended turn has exactly one last word, of its status, at its last_seq",
        sql: "select t.id::text from lastword.turns t
               where t.status in ('completed', 'failed', 'cancelled') and $LOGGED and (
                 select count(*) filter (where e.seq = t.last_seq and e.kind = t.status) <> 1 or count(*) <> 1
                   from lastword.turn_events e
                  where e.turn_id = t.id and e.kind in ('completed', 'failed', 'cancelled'))",
    },
    VerifyRule {
        invariant: "I2",
        rule: "a turn without a terminal status has no last word",
        sql: "select t.id::text from lastword.turns t
               where t.status in ('queued', 'running') and exists (
                 select from lastword.turn_events e
                  where e.turn_id = t.id and e.kind in ('completed', 'failed', 'cancelled'))",
    },
    VerifyRule {
        invariant: "I3",
        rule: "nothing follows the last word",
        sql: "select t.id::text from lastword.turns t
               where t.last_seq is not null and $LOGGED
                 and exists (select from lastword.turn_events e where e.turn_id = t.id and e.seq > t.last_seq)",
    },
    VerifyRule {
        invariant: "I4",
        rule: "seq counts from 0 without gaps",
        sql: "select t.id::text from lastword.turns t
               where $LOGGED and (
                 select count(*) <> coalesce(max(e.seq) + 1, 0) or coalesce(min(e.seq), -1) <> 0
                   from lastword.turn_events e where e.turn_id = t.id)",
    },
    VerifyRule {
        invariant: "I5",
        rule: "no event has an epoch above its turn's, and epochs never decrease",
        sql: "select distinct e.turn_id::text from (
                select e.turn_id, e.attempt, lag(e.attempt) over (partition by e.turn_id order by e.seq) as before
                  from lastword.turn_events e) e left join lastword.turns t on t.id = e.turn_id
               where e.attempt < e.before or e.attempt > t.attempt",
    },
    VerifyRule {
        invariant: "I6",
        rule: "an in-flight row belongs to an open turn",
        sql: "select i.turn_id::text from lastword.inflight i left join lastword.turns t on t.id = i.turn_id
               where t.id is null or t.status not in ('queued', 'running')",
    },
    VerifyRule {
        invariant: "I6",
        rule: "no in-flight row is past its deadline by more than 30 s",
        sql: "select i.turn_id::text from lastword.inflight i where i.deadline < clock_timestamp() - interval '30 s'",
    },
    VerifyRule {
        invariant: "I9",
        rule: "turns of a conversation start in the order they were accepted, one at a time",
        sql: "select b.id::text from (
                select t.id, t.started_at,
                       max(t.finished_at) over before as prior_end, bool_or(t.finished_at is null) over before as prior_open
                  from lastword.turns t
                window before as (partition by t.conversation_id order by t.ordinal
                  rows between unbounded preceding and 1 preceding)) b
               where b.started_at is not null and (b.prior_open or b.started_at < b.prior_end)",
    },
];

/// Rules about stored words, of which a newer release may have more.
const WORDS: &[VerifyRule] = &[
    VerifyRule {
        invariant: "I4",
        rule: "every event has a known kind",
        sql: "select distinct e.turn_id::text from lastword.turn_events e
               where e.kind not in ($KINDS)",
    },
    VerifyRule {
        invariant: "I2",
        rule: "every status, phase and clock is known",
        sql: "select t.id::text from lastword.turns t where t.status not in ($STATUSES)
              union all
              select i.turn_id::text from lastword.inflight i
               where i.phase not in ($PHASES) or i.clock not in ($CLOCKS)",
    },
];

const LOGGED: &str = "t.id >= (select lastword.lw_first_id(min(p.day)::timestamp at time zone 'UTC') from lastword.lw_partitions p)";

impl Store {
    /// Runs every check. The time grows with the database; there is no statement deadline.
    #[allow(clippy::disallowed_methods, reason = "inside the store")]
    pub async fn verify(&self) -> Result<Vec<Finding>, StoreError> {
        use sqlx::AssertSqlSafe;
        let mut conn = self.sessions().open("verify", SessionPurpose::Work).await?;
        let is_newer = self.is_schema_newer(&mut conn).await?;
        let words = WORDS.iter().map(|check| (check, !is_newer));
        let mut findings = Vec::with_capacity(CHECKS.len() + WORDS.len());
        for (check, is_checked) in CHECKS.iter().map(|check| (check, true)).chain(words) {
            let sql = format!("{} limit 20", spelled_out(check.sql));
            let broken: Vec<String> = match is_checked {
                true => sqlx::query_scalar(AssertSqlSafe(sql))
                    .fetch_all(&mut conn)
                    .await
                    .map_err(|why| StoreError::from_sqlx("verify", why))?,
                false => Vec::new(),
            };
            findings.push(Finding { invariant: check.invariant, rule: check.rule, broken, is_checked });
        }
        Ok(findings)
    }
}

fn spelled_out(sql: &str) -> String {
    let listed = |words: &[&str]| format!("'{}'", words.join("', '"));
    sql.replace("$LOGGED", LOGGED)
        .replace("$KINDS", &listed(&Kind::ALL.map(Kind::as_str)))
        .replace("$STATUSES", &listed(&Status::ALL.map(Status::as_str)))
        .replace("$PHASES", &listed(&InflightPhase::ALL.map(InflightPhase::as_str)))
        .replace("$CLOCKS", &listed(&TurnClock::ALL.map(TurnClock::as_str)))
}
