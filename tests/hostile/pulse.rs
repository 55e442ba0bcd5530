//! The pulse of replicas: the longest silence of each during an attack.

use std::{pin::pin, time::Duration};

use sqlx::{Connection, PgConnection};

use crate::support::Cluster;

const LOOK_EVERY: Duration = Duration::from_millis(50);
/// By the database's clock.
const SILENCE: &str =
    "select coalesce(max(extract(epoch from clock_timestamp() - beat_at)), 0)::float8 from replicas";

/// What `attack` comes to, and the longest time that any replica was without a beat meanwhile.
pub async fn longest_silence<T>(cluster: &Cluster, attack: impl Future<Output = T>) -> (Duration, T) {
    let url = cluster.postgres().url();
    let mut conn = PgConnection::connect(&url).await.unwrap();
    let (mut attack, mut longest) = (pin!(attack), 0_f64);
    loop {
        tokio::select! {
            done = &mut attack => return (Duration::from_secs_f64(longest), done),
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        let silent: f64 = sqlx::query_scalar(SILENCE).fetch_one(&mut conn).await.unwrap();
        longest = longest.max(silent);
    }
}
