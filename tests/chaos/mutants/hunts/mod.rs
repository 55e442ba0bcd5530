//! The hunts: for each mutant the shortest sequence of real faults that reveals its broken rule.
//!
//! The finding of a hunt is the name of the check that failed. Any other fault in the run, such as a stream with a gap
//! or a `verify` that is not clean, is a finding as well, in its own words.

mod replicas;
mod turns;

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
};

use futures_util::{FutureExt, future::LocalBoxFuture};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::patches::Mutant;
use crate::support::{Cluster, Plan, eventually};

/// What a hunt comes to: whether the check that it is for holds.
type Holds<'a> = LocalBoxFuture<'a, bool>;

/// Hunts one mutant on a fresh cluster; what was found.
pub async fn hunt(mutant: &Mutant) -> Option<String> {
    let (plan, hunt) = hunt_for(mutant.name);
    let cluster = Cluster::with(plan).await;
    let holds = AssertUnwindSafe(hunt(&cluster)).catch_unwind().await;
    // The end of a cluster finds what is broken in its tables, and waits for processes.
    let end = tokio::task::block_in_place(|| catch_unwind(AssertUnwindSafe(|| drop(cluster))));
    match (holds, end) {
        (Ok(false), _) => Some(mutant.check.to_owned()),
        (Err(why), _) | (Ok(true), Err(why)) => Some(words_of(why.as_ref())),
        (Ok(true), Ok(())) => None,
    }
}

fn hunt_for(name: &str) -> (Plan, fn(&Cluster) -> Holds<'_>) {
    let of = |replicas: usize| Plan { replicas, ..Plan::default() };
    match name {
        "no_epoch_check" => (of(2), |cluster| Box::pin(replicas::zombie(cluster))),
        "verdict_by_the_clock" | "verdict_without_a_lock_seen" => {
            (of(2), |cluster| Box::pin(replicas::away_for_a_moment(cluster)))
        }
        "one_close_pass" => (of(2), |cluster| Box::pin(replicas::late_claim(cluster))),
        "one_page_closed" => (of(1), |cluster| Box::pin(replicas::many_due(cluster))),
        "kept_obligation" => (of(1), |cluster| Box::pin(turns::ended(cluster))),
        "accept_before_its_lock" => (of(2), |cluster| Box::pin(turns::two_that_may_not_wait(cluster))),
        "shown_before_stored" => (of(1), |cluster| Box::pin(turns::reader_of_a_blocked_log(cluster))),
        "notify_alone" => {
            let deaf = ("LASTWORD_DOORBELL".to_owned(), "off".to_owned());
            let plan = Plan { env: vec![deaf], ..of(2) };
            (plan, |cluster| Box::pin(turns::readers_without_a_doorbell(cluster)))
        }
        "beat_is_progress" => (of(2), |cluster| Box::pin(turns::only_beats(cluster))),
        "byte_before_running" => (of(1), |cluster| Box::pin(turns::blocked_start(cluster))),
        other => panic!("nobody hunts {other}"),
    }
}

/// What a panic said; of a `verify` only what is broken.
fn words_of(why: &(dyn Any + Send)) -> String {
    let text = why.downcast_ref::<String>().map(String::as_str).or(why.downcast_ref::<&str>().copied());
    let text = text.unwrap_or("a panic without words");
    let broken: Vec<&str> = text.lines().filter(|line| line.starts_with("BROKEN")).collect();
    if broken.is_empty() { text.replace('\n', " / ") } else { format!("verify: {}", broken.join(" / ")) }
}

/// A session of Postgres beside the replicas': to look, and to hold locks.
struct Session(PgConnection);

impl Session {
    async fn open(cluster: &Cluster) -> Session {
        let url = cluster.postgres().url();
        Session(PgConnection::connect(&url).await.unwrap())
    }

    async fn run(&mut self, sql: &str) -> u64 {
        sqlx::query(AssertSqlSafe(sql)).execute(&mut self.0).await.unwrap().rows_affected()
    }

    /// The first column of the first row as text, empty where there is none.
    async fn ask(&mut self, sql: &str) -> String {
        let asked = format!("select ({sql})::text");
        let row: Option<String> =
            sqlx::query_scalar(AssertSqlSafe(asked)).fetch_one(&mut self.0).await.unwrap();
        row.unwrap_or_default()
    }

    async fn count(&mut self, sql: &str) -> i64 {
        self.ask(&format!("select count(*) from {sql}")).await.parse().unwrap()
    }

    /// Waits until so many statements like this one wait for a lock.
    async fn blocked(&mut self, like: &str, wanted: i64) {
        let waiting = format!(
            "pg_stat_activity where wait_event_type = 'Lock' and application_name like 'lastword%' and query like '%{like}%'"
        );
        eventually("statements that wait for a lock", async || {
            (self.count(&waiting).await >= wanted).then_some(())
        })
        .await;
    }

    /// Waits until this is true.
    async fn until(&mut self, sql: &str) {
        eventually(sql, async || (self.ask(sql).await == "true").then_some(())).await;
    }
}

/// The id as Postgres has it, without its prefix.
fn uuid(id: &str) -> &str {
    id.split_once('_').unwrap().1
}
