//! Partitions of the event log: made ahead, dropped whole, and left alone by whoever needs only one of them.
//!
//! Never dropped past the oldest turn in flight. DDL gives up after 100 ms of waiting for its lock:
//! queueing behind a long reader would stop every append behind it.

use chrono::{Days, NaiveDate};
use uuid::Uuid;

use crate::store::{error::StoreError, handle::Store, warn_of};

/// How many days ahead partitions are made.
const DAYS_AHEAD: u64 = 2;

/// The first and the last of these ids. A statement that is told them opens the days in between and no others: which
/// they are is known when it begins, while the ids themselves come up row by row, when all days are open already.
pub(in crate::store) fn ends(ids: &[Uuid]) -> (Uuid, Uuid) {
    let ends = ids.iter().min().zip(ids.iter().max());
    ends.map(|(first, last)| (*first, *last)).unwrap_or_default()
}

impl Store {
    /// Makes what is missing from today to two days ahead. Returns how many it made.
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
            made += u32::from(is_new.inspect_err(|why| warn_of!(why, %day, "no partition made"))?);
        }
        Ok(made)
    }

    /// Drops partitions of days before `keep_from` that no turn in flight needs. Returns their names.
    pub async fn drop_partitions(&self, keep_from: NaiveDate) -> Result<Vec<String>, StoreError> {
        let mut lease = self.lease().await?;
        lease
            .run("drop_partitions", |c| {
                sqlx::query_scalar!(
                    r#"select o_name as "name!" from lastword.lw_partitions_drop_v1($1)"#,
                    keep_from
                )
                .fetch_all(c)
            })
            .await
    }
}
