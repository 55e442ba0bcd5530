//! Lock order: rows of one kind by their ids; keys, then in-flight rows, then conversations, then turns.

use std::{fs, path::Path};

use futures_util::future::join_all;
use lastword::{
    id::WorkerId,
    store::{accept::NewTurn, remote_turns::Bid},
};
use regex::Regex;
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::{
    cases,
    cases::all,
    ground::{Ground, Replica, Server, fresh, next_in, until},
};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_locked() {
    let server = Server::start().await;
    let cases = cases![&server;
        every_statement_locks_in_one_order,
        a_remote_claim_and_an_accept_wait_for_each_other_in_one_direction,
        a_claim_and_an_accept_wait_for_each_other_in_one_direction,
        claims_and_accepts_of_the_same_conversations_end_each_other_never,
    ];
    all(cases).await;
}

/// A text of ours that Postgres carries out: a function, or a statement of the source.
struct Text {
    name: String,
    /// In lower case, one blank between words, no comments, no schema.
    sql: String,
}

fn text(name: &str, sql: &str) -> Text {
    let lines = sql.lines().map(|line| line.split("--").next().unwrap());
    let sql = lines.flat_map(str::split_whitespace).collect::<Vec<_>>().join(" ").to_lowercase();
    Text { name: name.to_owned(), sql: sql.replace("lastword.", "") }
}

/// Every function of the schema, and every statement of the source.
async fn texts(ground: &Ground) -> Vec<Text> {
    let functions = "select p.proname::text, pg_get_functiondef(p.oid) from pg_proc p
      where p.pronamespace = 'lastword'::regnamespace and p.proname like 'lw\\_%'";
    let functions: Vec<(String, String)> = sqlx::query_as(functions).fetch_all(&ground.sql).await.unwrap();
    assert!(functions.len() > 10, "{functions:?}");
    let mut all: Vec<Text> = functions.iter().map(|(name, sql)| text(name, sql)).collect();
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".sqlx")).unwrap() {
        let query: Value = serde_json::from_str(&fs::read_to_string(entry.unwrap().path()).unwrap()).unwrap();
        let sql = query["query"].as_str().unwrap();
        all.push(text(sql.trim(), sql));
    }
    all
}

/// How a locking clause says its order: by name, or of one row alone, or of one row after another of a list.
const ORDERED: &str = r"order by|(turn_id|id) = (\$\d+|p_turn\b|p_turns\[1\]|p_id\b)|limit 1 *$";
/// Goes by the index of conversations, and so in the order of their ids: `plans` pins that.
const BY_INDEX: &str = "where v.id = any (array (select conversation_id from fit where is_taken_over))";

/// What belongs to the very select that ends here, without what stands in parentheses.
fn own(before: &str) -> String {
    let mut depth = 0;
    let own = before.chars().rev().take_while(|&it| {
        depth += i32::from(it == ')') - i32::from(it == '(');
        depth >= 0 && (depth > 0 || it != ';')
    });
    let (mut depth, mut text) = (0, String::new());
    for it in own {
        depth += i32::from(it == ')');
        if depth == 0 {
            text.insert(0, it);
        }
        depth -= i32::from(it == '(');
    }
    text
}

async fn every_statement_locks_in_one_order(server: &Server) {
    let ground = server.ground().await;
    let regex = |text: &str| Regex::new(text).unwrap();
    let lock = regex(r" for (no key update|update|key share|share)\b");
    let (kind, ordered) =
        (regex(r"from (inflight|conversations|turns|idempotency|worker_tokens|workers)\b"), regex(ORDERED));
    let write = regex(r"(update|delete from) (inflight|conversations|idempotency)\b");
    let of_one = regex(r"^[^;]*? where (\w\.)?id = (\$\d+|p_\w+)( |$)");
    let mut locks = 0;
    for Text { name, sql } in texts(&ground).await {
        // Where each kind is locked, by a clause or by a change.
        let mut places: Vec<(usize, String)> = Vec::new();
        for clause in lock.find_iter(&sql) {
            let own = own(&sql[..clause.start()]);
            let kind = kind.captures(&own).unwrap_or_else(|| panic!("{name} locks what? {own}"));
            assert!(ordered.is_match(&own), "{name} locks rows in no order: {own}");
            if own.ends_with("limit 1") {
                let list = &sql[..clause.start() - own.len()];
                assert!(list.contains("order by"), "{name} locks the rows of a list in no order: {own}");
            }
            places.push((clause.start(), kind[1].to_owned()));
            locks += 1;
        }
        for change in write.captures_iter(&sql) {
            let (at, kind) = (change.get(0).unwrap().start(), change[2].to_owned());
            let rest = &sql[at..];
            // The masses of a measurement are nobody else's.
            let is_alone =
                of_one.is_match(rest) || rest.contains(BY_INDEX) || rest.contains("from gone where");
            let is_locked = places.iter().any(|(_, locked)| *locked == kind);
            assert!(kind != "conversations" || is_alone || is_locked, "{name} writes in no order: {rest}");
            places.push((at, kind));
        }
        places.sort();
        let first = |of: &str| places.iter().find(|(_, kind)| kind == of).map(|(at, _)| *at);
        if let (Some(inflight), Some(conversations)) = (first("inflight"), first("conversations")) {
            assert!(inflight < conversations, "{name} locks conversations before in-flight rows");
        }
    }
    assert!(locks >= 12, "only {locks} locking clauses were found");
}

/// Two conversations that are there, the one with the smaller id first.
async fn conversations(replica: &Replica) -> [NewTurn; 2] {
    let firsts = [fresh(&replica.store), fresh(&replica.store)];
    for first in &firsts {
        replica.store.accept(first).await.unwrap();
    }
    let claims = replica.claim(10).await;
    for claim in &claims {
        let seq = replica.start(claim).await.unwrap();
        replica.finish(claim, seq).await;
    }
    assert_eq!(claims.len(), 2);
    let mut nexts = firsts.map(|first| next_in(&replica.store, first.conversation));
    nexts.sort_by_key(|next| next.conversation);
    nexts
}

/// Holds the first conversation, as an accept of both does that has come so far.
async fn begin_as_an_accept(ground: &Ground, nexts: &[NewTurn; 2]) -> PgConnection {
    let mut accept = PgConnection::connect(&ground.url).await.unwrap();
    sqlx::raw_sql("begin").execute(&mut accept).await.unwrap();
    lock(&mut accept, &nexts[0]).await.unwrap();
    accept
}

async fn lock(conn: &mut PgConnection, next: &NewTurn) -> Result<(), sqlx::Error> {
    let id = next.conversation.0;
    let lock = format!("select from conversations where id = '{id}' for no key update");
    sqlx::raw_sql(AssertSqlSafe(lock)).execute(conn).await.map(drop)
}

/// Goes on to the second as soon as somebody waits for the first.
async fn go_on_as_an_accept(ground: &Ground, mut accept: PgConnection, nexts: &[NewTurn; 2]) {
    until("the claim waits for the accept", async || {
        let waiting = "select count(*) from pg_stat_activity
                        where datname = current_database() and wait_event_type = 'Lock'";
        (ground.ask(waiting).await != "0").then_some(())
    })
    .await;
    lock(&mut accept, &nexts[1]).await.expect("the claim holds what the accept waits for");
    sqlx::raw_sql("commit").execute(&mut accept).await.unwrap();
}

async fn a_remote_claim_and_an_accept_wait_for_each_other_in_one_direction(server: &Server) {
    let ground = server.ground().await;
    let replica = ground.replica().await;
    let nexts = conversations(&replica).await;
    let worker = WorkerId(replica.store.clock().mint());
    let mut bids = Vec::new();
    for next in &nexts {
        replica.store.accept(next).await.unwrap();
        bids.push(Bid { turn: next.id, worker, token_hash: [1; 32] });
    }
    // In the other order.
    bids.reverse();
    let accept = begin_as_an_accept(&ground, &nexts).await;
    let going_on = go_on_as_an_accept(&ground, accept, &nexts);
    let (claims, ()) = tokio::join!(replica.store.claim_remote(&bids), going_on);
    assert_eq!(claims.unwrap().len(), 2);
}

async fn a_claim_and_an_accept_wait_for_each_other_in_one_direction(server: &Server) {
    let ground = server.ground().await;
    let (former, replica) = (ground.replica().await, ground.replica().await);
    let nexts = conversations(&former).await;
    // The later conversation's turn is claimed first.
    for next in nexts.iter().rev() {
        let next = next_in(&replica.store, next.conversation);
        replica.store.accept(&next).await.unwrap();
    }
    ground.lose(former.store.replica()).await;
    let accept = begin_as_an_accept(&ground, &nexts).await;
    let going_on = go_on_as_an_accept(&ground, accept, &nexts);
    let (claims, ()) = tokio::join!(replica.claim(10), going_on);
    assert_eq!(claims.len(), 2);
}

async fn claims_and_accepts_of_the_same_conversations_end_each_other_never(server: &Server) {
    const CONVERSATIONS: usize = 30;
    let ground = server.ground().await;
    let (one, other) = (ground.replica().await, ground.replica().await);
    let firsts: Vec<NewTurn> = (0..CONVERSATIONS).map(|_| fresh(&one.store)).collect();
    join_all(firsts.iter().map(|first| one.store.accept(first))).await;
    let worker = WorkerId(other.store.clock().mint());
    for round in 0..10 {
        let nexts: Vec<NewTurn> =
            firsts.iter().map(|first| next_in(&one.store, first.conversation)).collect();
        let news: Vec<_> = nexts.iter().map(|next| (next, None)).collect();
        let mut bids: Vec<Bid> =
            firsts.iter().map(|first| Bid { turn: first.id, worker, token_hash: [1; 32] }).collect();
        if round % 2 == 0 {
            bids.reverse();
        }
        let (accepted, claimed) = tokio::join!(one.store.accept_all(&news), other.store.claim_remote(&bids));
        assert!(accepted.unwrap().iter().all(Result::is_ok));
        for (claim, _) in claimed.unwrap() {
            assert!(other.store.release(claim.turn, claim.epoch, true).await.unwrap());
        }
        ground.run("update inflight set epoch = 0").await.unwrap();
        ground.run("delete from remote_claims").await.unwrap();
    }
}
