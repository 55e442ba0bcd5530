//! The setting of one kind of race: a database of its own, a holder, two other replicas, and rounds.
//!
//! Owns the head starts, and the checks over the whole database after the races.

use std::{collections::HashMap, time::Duration};

use futures_util::future::join_all;
use lastword::{
    config::Config,
    id::TurnId,
    store::{
        Store,
        claim::Claim,
        group_commit::{Writer, write_on},
    },
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio_util::sync::CancellationToken;

use super::{
    Tally,
    ground::{Ground, Replica, Server},
};

/// Races in one round.
pub const ROUND: usize = 64;
/// Connections of one replica.
const POOL: u32 = 16;
/// A round's races begin spread over so long, in ms: no more at once than there are connections.
const SPREAD_MS: u64 = 24;
/// The most that one side may be ahead of the other, in ms.
const AHEAD_MS_MAX: u64 = 4;

/// A database with three replicas.
pub struct Field {
    pub ground: Ground,
    pub holder: Replica,
    pub others: [Replica; 2],
    stop: CancellationToken,
    random: StdRng,
}

/// A turn's terminal event, and what else the log has of it.
#[derive(Debug)]
pub struct Log {
    pub terminal: String,
    pub deltas: i64,
}

impl Field {
    pub async fn new(server: &Server, seed: u64, change: &str) -> Field {
        let ground = server.ground().await;
        ground.run(change).await.unwrap();
        // Test servers do not wait for their commits' flush. It counts for sessions from now on.
        let here = ground.ask("current_database()").await;
        ground.run(&format!("alter database {here} set synchronous_commit = on")).await.unwrap();
        ground.sql.close().await;
        let ground = Ground { sql: sqlx::PgPool::connect(&ground.url).await.unwrap(), url: ground.url };
        assert_eq!(ground.ask("current_setting('synchronous_commit')").await, "on");
        let stop = CancellationToken::new();
        let holder = replica(&ground, &stop).await;
        let others = [replica(&ground, &stop).await, replica(&ground, &stop).await];
        Field { ground, holder, others, stop, random: StdRng::seed_from_u64(seed) }
    }

    /// The replicas, the holder first.
    pub fn all(&self) -> [&Replica; 3] {
        [&self.holder, &self.others[0], &self.others[1]]
    }

    /// When the two sides of a race set off: at about the same moment, either one first.
    pub fn starts(&mut self) -> (Duration, Duration) {
        let at = self.random.random_range(0..SPREAD_MS * 1000);
        let mut side = || Duration::from_micros(at + self.random.random_range(0..AHEAD_MS_MAX * 1000));
        (side(), side())
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        self.random.random_range(0..limit)
    }

    /// Accepts turns, each in a conversation of its own.
    pub async fn accepted(&self, count: usize) -> Vec<TurnId> {
        join_all((0..count).map(async |n| self.all()[n % 3].accept().await.id)).await
    }

    /// Turns that the holder runs, with the seq of their newest event.
    pub async fn running(&self, count: usize) -> Vec<(Claim, i32)> {
        self.accepted(count).await;
        let claims = self.holder.claim(i64::try_from(count).unwrap()).await;
        assert_eq!(claims.len(), count);
        join_all(claims.into_iter().map(async |claim| {
            let seq = self.holder.start(&claim).await.unwrap();
            (claim, seq)
        }))
        .await
    }

    /// Makes what is in flight closable: overdue where `is_gone` is false, else held by one who is
    /// lost. The holder is told neither.
    pub async fn doom(&self, is_gone: bool) {
        if is_gone {
            self.ground.lose(self.holder.store.replica()).await;
        } else {
            let lapsed = "update inflight set deadline = clock_timestamp() - interval '1 ms'";
            self.ground.run(lapsed).await.unwrap();
        }
    }

    /// A holder that was lost comes back under another id.
    pub async fn revive(&self) {
        self.holder.store.rename_replica();
        let timeline = self.holder.store.timeline().await.unwrap();
        self.holder.store.register("http://127.0.0.1:1", timeline).await.unwrap();
    }

    /// What the log has of these turns.
    pub async fn logs(&self, turns: &[TurnId]) -> HashMap<TurnId, Log> {
        let ids: Vec<uuid::Uuid> = turns.iter().map(|turn| turn.0).collect();
        let rows: Vec<(uuid::Uuid, Option<String>, i64)> = sqlx::query_as(
            "select turn_id, string_agg(kind, ' ') filter (where kind in ('completed', 'failed', 'cancelled')),
                    count(*) filter (where kind = 'delta')
               from turn_events where turn_id = any ($1) group by turn_id",
        )
        .bind(ids)
        .fetch_all(&self.ground.sql)
        .await
        .unwrap();
        rows.into_iter()
            .map(|(turn, terminal, deltas)| {
                (TurnId(turn), Log { terminal: terminal.unwrap_or_default(), deltas })
            })
            .collect()
    }

    /// Counts what must not be in the whole database, and lets go of it.
    pub async fn close(&mut self, tally: &mut Tally) {
        let count = async |sql: &str| self.ground.ask(sql).await.parse::<i64>().unwrap();
        let wanted = i64::try_from(tally.races).unwrap();
        assert_eq!(count("select count(*) from turns").await, wanted, "turns and races differ");
        tally.left_open = count("select count(*) from inflight").await;
        tally.not_one_last_word = count(
            "select count(*) from turns t left join lateral (
               select count(*) filter (where e.kind in ('completed', 'failed', 'cancelled')) as words,
                      (array_agg(e.kind order by e.seq desc))[1] as newest
                 from turn_events e where e.turn_id = t.id) log on true
              where log.words is distinct from 1 or log.newest is distinct from t.status",
        )
        .await;
        tally.gaps = count(
            "select count(*) from turns t left join lateral (
               select array_agg(e.seq order by e.seq) as seqs, max(e.seq) as newest
                 from turn_events e where e.turn_id = t.id) log on true
              where log.seqs is distinct from array(select generate_series(0, log.newest))
                 or log.newest is distinct from t.last_seq",
        )
        .await;
        self.stop.cancel();
        for replica in self.all() {
            replica.store.close().await;
        }
        self.ground.sql.close().await;
    }
}

async fn replica(ground: &Ground, stop: &CancellationToken) -> Replica {
    let config = Config { database_url: ground.url.clone(), pool_max: POOL, ..Config::default() };
    let store = Store::open(&config).unwrap();
    let timeline = store.timeline().await.unwrap();
    store.register("http://127.0.0.1:1", timeline).await.unwrap();
    let (writer, inbox) = Writer::new();
    tokio::spawn(write_on(store.clone(), inbox, stop.clone()));
    Replica { store, writer }
}
