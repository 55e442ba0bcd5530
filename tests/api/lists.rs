//! Lists of turns and conversations: each filter, and pages.

use lastword::event::Kind;
use serde_json::{Value, json};

use super::world::World;

/// The ids on all pages of a list.
async fn listed(world: &World, query: &str) -> Vec<String> {
    let (mut ids, mut cursor) = (Vec::new(), String::new());
    loop {
        let page: Value =
            world.get(&format!("/v1/turns?limit=2&{query}{cursor}")).await.json().await.unwrap();
        let items = page["items"].as_array().unwrap_or_else(|| panic!("{query}: {page}"));
        assert!(items.len() <= 2, "{page}");
        ids.extend(items.iter().map(|turn| turn["id"].as_str().unwrap().to_owned()));
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return ids,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_filter_of_turns_finds_its_own_and_all_of_them() {
    let world = World::start().await;
    let (mut by_status, mut conversations): (Vec<(String, &str)>, Vec<String>) = Default::default();
    for _ in 0..3 {
        for end in ["completed", "failed", "cancelled", "running", "queued"] {
            let turn = world.make_turn(json!({})).await;
            let id = turn["id"].as_str().unwrap().to_owned();
            match end {
                "completed" => world.run_next().await.complete("done").await,
                "failed" => {
                    world
                        .run_next()
                        .await
                        .end(Kind::Failed, r#"{"error":{"code":"agent_error"}}"#.into())
                        .await
                }
                "cancelled" => drop(world.post(&format!("/v1/turns/{id}/cancel"), &json!({})).await),
                "running" => _ = world.run_next().await,
                _ => {}
            }
            by_status.push((id, end));
            conversations.push(turn["conversation_id"].as_str().unwrap().to_owned());
            if end == "queued" {
                // It waits no more, so that it is not what is run next.
                let id = &by_status.last().unwrap().0;
                let turn: lastword::id::TurnId = id.parse().unwrap();
                sql(&world, &format!("update inflight set runtime = 'parked' where turn_id = '{}'", turn.0))
                    .await;
            }
        }
    }
    by_status.reverse();
    for status in ["completed", "failed", "cancelled", "running", "queued"] {
        let wanted: Vec<_> =
            by_status.iter().filter(|(_, is)| *is == status).map(|(id, _)| id.clone()).collect();
        assert_eq!(wanted.len(), 3);
        assert_eq!(listed(&world, &format!("status={status}")).await, wanted, "{status}");
        assert_eq!(
            listed(&world, &format!("status={status}&agent=demo")).await,
            wanted,
            "{status} of an agent"
        );
        assert_eq!(listed(&world, &format!("status={status}&agent=other")).await, [""; 0], "{status}");
        assert_eq!(listed(&world, &format!("status={status}&overdue=true")).await, [""; 0], "{status}");
    }
    let all: Vec<_> = by_status.iter().map(|(id, _)| id.clone()).collect();
    assert_eq!(listed(&world, "").await, all);
    assert_eq!(listed(&world, "agent=demo").await, all);
    conversations.reverse();
    for ((id, status), conversation) in by_status.iter().zip(&conversations) {
        let found = listed(&world, &format!("conversation_id={conversation}")).await;
        assert_eq!(found, std::slice::from_ref(id));
        let found = listed(&world, &format!("conversation_id={conversation}&status={status}")).await;
        assert_eq!(found, std::slice::from_ref(id), "{status}");
        let other = if *status == "failed" { "cancelled" } else { "failed" };
        let none = listed(&world, &format!("conversation_id={conversation}&status={other}")).await;
        assert_eq!(none, [""; 0], "{status} is not {other}");
    }
    sql(&world, "update inflight set deadline = clock_timestamp() where phase = 'running'").await;
    let running: Vec<_> =
        by_status.iter().filter(|(_, is)| *is == "running").map(|(id, _)| id.clone()).collect();
    assert_eq!(listed(&world, "overdue=true").await, running);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversations_turns_are_listed_in_its_order_whatever_their_ids_say() {
    let world = World::start().await;
    let first = world.make_turn(json!({})).await;
    let conversation = first["conversation_id"].as_str().unwrap();
    let mut wanted = vec![first["id"].as_str().unwrap().to_owned()];
    for _ in 0..4 {
        let turn = world.make_turn(json!({"conversation_id": conversation})).await;
        wanted.push(turn["id"].as_str().unwrap().to_owned());
    }
    wanted.reverse();
    assert_eq!(listed(&world, &format!("conversation_id={conversation}")).await, wanted);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_conversations_is_full_however_many_were_deleted() {
    let world = World::start().await;
    sql(
        &world,
        "insert into conversations (id, agent, deleted_at)
         select lpad(to_hex(n), 32, '0')::uuid, 'demo', case when n % 50 > 0 then now() end
           from generate_series(1, 500) n",
    )
    .await;
    for query in ["", "&agent=demo"] {
        let page: Value = world.get(&format!("/v1/conversations?limit=6{query}")).await.json().await.unwrap();
        assert_eq!(page["items"].as_array().unwrap().len(), 6, "{page}");
        let next = page["next"].as_str().unwrap();
        let page: Value =
            world.get(&format!("/v1/conversations?limit=6{query}&cursor={next}")).await.json().await.unwrap();
        assert_eq!((page["items"].as_array().unwrap().len(), &page["next"]), (4, &Value::Null), "{page}");
    }
}

async fn sql(world: &World, statement: &str) {
    use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
    let mut conn = PgConnection::connect(&world.database_url).await.unwrap();
    conn.execute(AssertSqlSafe(statement.to_owned())).await.unwrap();
}
