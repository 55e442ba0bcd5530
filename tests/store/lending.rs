//! The connection pool: never more than allowed, the last returned first, and no closed connection.

use futures_util::future::join_all;
use lastword::store::beat::BeatSession;
use sqlx::Connection as _;

use crate::{
    cases,
    cases::all,
    ground::{Ground, Server},
};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_lent() {
    let server = Server::start().await;
    all(cases![&server;
        many_statements_share_a_few_connections,
        one_that_was_ended_fails_one_statement_at_most,
        a_store_that_is_closed_lends_no_more,
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_takes_long_holds_nobody_up_while_connections_are_given_back() {
    let server = Server::start().await;
    let ground = server.ground().await;
    let store = ground.open();
    store.probe().await.unwrap();
    ground.run("alter system set pre_auth_delay = '60s'").await.unwrap();
    ground.run("select pg_reload_conf()").await.unwrap();
    crate::ground::until("logins hang", async || {
        let login = sqlx::PgConnection::connect(&ground.url);
        tokio::time::timeout(std::time::Duration::from_millis(200), login).await.err()
    })
    .await;
    for asked in join_all((0..200).map(|_| store.probe())).await {
        asked.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_come_in_where_each_login_takes_two_seconds() {
    let server = Server::start().await;
    let ground = server.ground().await;
    let store = ground.open();
    ground.run("alter system set pre_auth_delay = '2s'").await.unwrap();
    ground.run("select pg_reload_conf()").await.unwrap();
    crate::ground::until("logins take long", async || {
        let login = sqlx::PgConnection::connect(&ground.url);
        tokio::time::timeout(std::time::Duration::from_millis(200), login).await.err()
    })
    .await;
    // The first ones find out that there is no TLS, which takes a connection more.
    let statements = join_all((0..20).map(|_| async {
        crate::ground::until("a statement", async || store.probe().await.ok()).await;
    }));
    let beat = crate::ground::until("the beat", async || BeatSession::open(&store).await.ok());
    tokio::join!(statements, beat);
}

/// The backends of a store's statements.
async fn backends(ground: &Ground, name: &str) -> String {
    ground
        .ask(&format!(
            "select coalesce(string_agg(pid::text, ' ' order by pid), '') from pg_stat_activity
              where application_name = '{name}'"
        ))
        .await
}

async fn many_statements_share_a_few_connections(server: &Server) {
    let ground = server.ground().await;
    let store = ground.open();
    for asked in join_all((0..200).map(|_| store.probe())).await {
        asked.unwrap();
    }
    let all = backends(&ground, store.application_name()).await;
    assert!((1..=8).contains(&all.split(' ').count()), "{all}");
    let store = ground.open();
    store.probe().await.unwrap();
    let one = backends(&ground, store.application_name()).await;
    for _ in 0..50 {
        store.probe().await.unwrap();
    }
    assert_eq!(backends(&ground, store.application_name()).await, one, "one was made though another rested");
}

async fn one_that_was_ended_fails_one_statement_at_most(server: &Server) {
    let ground = server.ground().await;
    let store = ground.open();
    store.probe().await.unwrap();
    let before = backends(&ground, store.application_name()).await;
    let gone = format!("select pg_terminate_backend({before}, 5000)::text");
    assert_eq!(ground.ask(&gone).await, "true");
    // Whether it is asked before it is lent depends on how long it has rested.
    let _ = store.probe().await;
    store.probe().await.unwrap();
    assert_ne!(backends(&ground, store.application_name()).await, before);
}

async fn a_store_that_is_closed_lends_no_more(server: &Server) {
    let ground = server.ground().await;
    let store = ground.open();
    store.probe().await.unwrap();
    store.close().await;
    assert!(store.probe().await.unwrap_err().is_away());
    let name = store.application_name();
    crate::ground::until("its backends are gone", async || {
        backends(&ground, name).await.is_empty().then_some(())
    })
    .await;
}
