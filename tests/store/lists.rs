//! Lists: the pages that a list reads do not grow with the tables, and turns that failed before the lists existed are
//! included.

use lastword::{store::turns::TurnFilter, turn::Status};
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::{
    ground::{Ground, Server},
    plans::prepare,
};

/// Ended turns of conversations of five, one in a hundred failed, and the first conversation's own thousands. An agent
/// that nobody talks to any more had the first sixty, one in ten of which failed.
async fn fill(ground: &Ground, from: i64, to: i64) {
    let id = "lpad(to_hex(n), 32, '0')::uuid";
    let conversation =
        "case when n % 2 = 0 then lpad('1', 32, '0')::uuid else lpad(to_hex(n / 10 + 2), 32, '0')::uuid end";
    for statement in [
        format!(
            "insert into conversations (id, agent, next_ordinal, deleted_at)
             select distinct {conversation}, case when n <= 60 and n % 2 = 1 then 'old' else 'demo' end, 1000000, null::timestamptz from generate_series({from}, {to}) n
                 on conflict do nothing"
        ),
        format!(
            "insert into turns (id, conversation_id, ordinal, agent, agent_revision, status, input, traceparent,
               finished_at, last_seq)
             select {id}, {conversation}, n, case when n <= 60 then 'old' when n % 3 = 0 then 'rare' else 'demo' end, 1,
                    case n % case when n <= 60 then 10 else 100 end when 0 then 'failed' else 'completed' end, '{{}}', 'x', now(), 2
               from generate_series({from}, {to}) n"
        ),
        "insert into not_completed (turn_id, status, agent, conversation_id, ordinal)
         select id, status, agent, conversation_id, ordinal from turns where status = 'failed'
             on conflict do nothing"
            .to_owned(),
        "analyze".to_owned(),
    ] {
        ground.run(&statement).await.unwrap();
    }
}

/// The pages that each list's first page reads.
async fn pages(conn: &mut PgConnection) -> Vec<(&'static str, i64)> {
    let top = "'ffffffff-ffff-ffff-ffff-ffffffffffff'";
    let first = "'00000000-0000-0000-0000-000000000001'";
    let lists = [
        ("list_turns", format!("{top}, 51")),
        ("list_turns_of_agent", format!("'demo', {top}, 51")),
        ("list_turns_of_agent", format!("'old', {top}, 51")),
        ("list_conversations_of_agent", format!("'old', {top}, 4")),
        ("list_not_completed_of_agent", format!("'old', 'failed', {top}, 51")),
        ("list_not_completed", format!("'cancelled', {top}, 51")),
        ("list_turns_of_conversation", format!("{first}, null, 51")),
        ("list_not_completed", format!("'failed', {top}, 51")),
        ("list_not_completed_of_agent", format!("'rare', 'failed', {top}, 51")),
        ("list_not_completed_of_conversation", format!("{first}, 'failed', null, null, 51")),
        ("list_conversations", format!("{top}, 51")),
        ("list_conversations_of_agent", format!("'demo', {top}, 51")),
        ("list_in_flight", format!("{top}, null, null, true, null, 51")),
    ];
    let mut pages = Vec::new();
    for (name, arguments) in lists {
        let explain = format!("explain (analyze, buffers, format json) execute {name} ({arguments})");
        let plan: Value =
            sqlx::query_scalar(AssertSqlSafe(explain)).persistent(false).fetch_one(&mut *conn).await.unwrap();
        let read =
            ["Shared Hit Blocks", "Shared Read Blocks"].map(|it| plan[0]["Plan"][it].as_i64().unwrap());
        let found = plan[0]["Plan"]["Actual Rows"].as_f64().unwrap();
        let is_empty = name == "list_in_flight" || arguments.contains("cancelled");
        assert_eq!(found > 3.0, !is_empty, "{name} ({arguments}) found {found}");
        pages.push((name, read.into_iter().sum()));
    }
    pages
}

/// While its worker has not stopped yet as well: the turn is erased after its end.
#[tokio::test(flavor = "multi_thread")]
async fn turns_of_a_deleted_conversation_are_not_listed() {
    let server = Server::start().await;
    let ground = server.ground().await;
    let replica = ground.replica().await;
    let (running, _) = replica.running().await;
    let (claim, seq) = replica.running().await;
    replica.finish(&claim, seq).await;
    let listed = async |status: Option<Status>| {
        let filter = TurnFilter {
            status,
            agent: None,
            conversation: None,
            is_overdue: false,
            before: None,
            limit: 10,
        };
        replica.store.turns(&filter).await.unwrap().items.len()
    };
    let all = [None, Some(Status::Running), Some(Status::Completed)];
    for (status, count) in all.into_iter().zip([2, 1, 1]) {
        assert_eq!(listed(status).await, count, "{status:?}");
    }
    let deleted = [running.conversation, claim.conversation].map(|it| format!("'{}'", it.0)).join(", ");
    ground
        .run(&format!("update conversations set deleted_at = now() where id in ({deleted})"))
        .await
        .unwrap();
    for status in all {
        assert_eq!(listed(status).await, 0, "{status:?}");
    }
}

#[tokio::test]
async fn no_list_reads_more_for_a_longer_past() {
    let server = Server::start().await;
    let ground = server.ground().await;
    fill(&ground, 1, 6000).await;
    let mut conn = PgConnection::connect(&ground.url).await.unwrap();
    prepare(&mut conn).await;
    // The first time the catalog is read as well.
    pages(&mut conn).await;
    let short = pages(&mut conn).await;
    fill(&ground, 6001, 60_000).await;
    let long = pages(&mut conn).await;
    for ((name, short), (_, long)) in short.into_iter().zip(long) {
        assert!(long <= short + short / 2 + 20, "{name}: {short} pages of 6,000 turns, {long} of 60,000");
    }
}

#[tokio::test]
async fn what_had_failed_before_there_was_a_list_is_in_it() {
    let server = Server::start().await;
    let ground = server.ground().await;
    fill(&ground, 1, 1000).await;
    ground.run("delete from not_completed where ordinal > 100").await.unwrap();
    ground.run(include_str!("../../migrations/0019_not_completed_before.sql")).await.unwrap();
    let counted =
        "select count(*) || ' ' || count(*) filter (where n.status = t.status and n.ordinal = t.ordinal)
                     from not_completed n join turns t on t.id = n.turn_id";
    assert_eq!(ground.ask(counted).await, "16 16");
}
