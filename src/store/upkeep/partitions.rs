//! Partitions of the event log, one per day: made ahead, dropped whole, and pruned from statements that need few of
//! them.
//!
//! Refuses to drop a partition that a turn in flight needs. DDL waits at most 100 ms for its lock: while it queued
//! behind a long reader, every append would queue behind it.

use chrono::{Days, NaiveDate};
use uuid::Uuid;

use crate::store::{error::StoreError, handle::Store, warn_of};

/// How many days ahead partitions are made.
const DAYS_AHEAD: u64 = 2;

/// The smallest and the largest of these ids. A statement with these bounds prunes other partitions when it starts. The
/// ids themselves would prune nothing: they arrive row by row, after all partitions were opened.
pub(in crate::store) fn ends(ids: &[Uuid]) -> (Uuid, Uuid) {
    let ends = ids.iter().min().zip(ids.iter().max());
    ends.map(|(first, last)| (*first, *last)).unwrap_or_default()
}

impl Store {
    /// Makes the missing partitions from today to two days ahead. Returns how many it made.
    pub async fn make_partitions(&self) -> Result<u32, StoreError> {
        let today = self.clock().now().date_naive();
        let mut lease = self.lease().await?;
        let there: Vec<NaiveDate> = lease
            .run("partitions", |c| {
                sqlx::query_scalar!(r#"select day as "day!" from lastword.lw_partitions limit 10000"#)
                    .fetch_all(c)
            })
            .await?;
        let mut made = 0;
        for ahead in 0..=DAYS_AHEAD {
            let day = today + Days::new(ahead);
            if there.contains(&day) {
                continue;
            }
            let is_new = lease
                .run("make_partition", |c| {
                    sqlx::query_scalar!(r#"select lastword.lw_partition_make_v1($1) as "is_new!""#, day)
                        .fetch_one(c)
                })
                .await;
            made +=
                u32::from(is_new.inspect_err(|why| warn_of!(why, %day, "a partition could not be made"))?);
        }
        Ok(made)
    }

    /// Drops partitions of days before `keep_from`, except those that a turn in flight needs. Returns their names.
    pub async fn drop_partitions(&self, keep_from: NaiveDate) -> Result<Vec<String>, StoreError> {
        let query = sqlx::query_scalar!(
            r#"select o_name as "name!" from lastword.lw_partitions_drop_v1($1)"#,
            keep_from
        );
        self.fetch_all("drop_partitions", query).await
    }
}
