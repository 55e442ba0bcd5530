//! The turns in the database, read by SQL that names tables, never the product's functions.

use std::collections::HashMap;

use sqlx::{PgConnection, Row};
use uuid::Uuid;

use crate::{history::Sight, observer::digest};

/// A turn as the database has it.
pub struct Stored {
    pub nonce: String,
    pub status: String,
    pub conversation: Uuid,
    pub ordinal: i64,
    pub events: Vec<(Sight, String)>,
    /// The process ids of its worker (of a remote one's host, which calls itself by it) and of that worker's
    /// replica.
    pub worker_pid: Option<i32>,
    pub replica_pid: Option<i32>,
}

/// Everything that is there.
pub async fn read_database(admin: &mut PgConnection) -> anyhow::Result<HashMap<Uuid, Stored>> {
    let mut stored = HashMap::new();
    let turns = sqlx::query(
        "select id, conversation_id, ordinal, status, metadata::jsonb ->> 'nonce' as nonce from turns",
    );
    for row in turns.fetch_all(&mut *admin).await? {
        let turn = Stored {
            nonce: row.get::<Option<String>, _>("nonce").unwrap_or_default(),
            status: row.get("status"),
            conversation: row.get("conversation_id"),
            ordinal: row.get("ordinal"),
            events: Vec::new(),
            worker_pid: None,
            replica_pid: None,
        };
        stored.insert(row.get::<Uuid, _>("id"), turn);
    }
    let mut pids = HashMap::new();
    let workers = sqlx::query(
        "select w.id, coalesce(w.pid, split_part(w.name, ':', 2)::int) as pid, r.pid as replica_pid
           from workers w left join replicas r on r.id = w.replica_id",
    );
    for row in workers.fetch_all(&mut *admin).await? {
        let pair: (Option<i32>, Option<i32>) = (row.get("pid"), row.get("replica_pid"));
        pids.insert(format!("wrk_{}", row.get::<Uuid, _>("id").simple()), pair);
    }
    let events = sqlx::query("select turn_id, seq, kind, data from turn_events order by turn_id, seq");
    for row in events.fetch_all(&mut *admin).await? {
        let data: String = row.get("data");
        let value: serde_json::Value = serde_json::from_str(&data)?;
        let kind: String = row.get("kind");
        let seq = i64::from(row.get::<i32, _>("seq"));
        let turn: Uuid = row.get("turn_id");
        let Some(stored) = stored.get_mut(&turn) else { anyhow::bail!("events of no turn: {turn}") };
        if kind == "started"
            && let Some(&(worker, replica)) =
                value["worker_id"].as_str().and_then(|id| pids.get(&id.replace('-', "")))
        {
            (stored.worker_pid, stored.replica_pid) = (worker, replica);
        }
        let code = value["error"]["code"].as_str().unwrap_or_default().to_owned();
        stored.events.push((Sight { seq, kind, digest: digest(&value) }, code));
    }
    Ok(stored)
}
