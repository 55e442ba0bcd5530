//! Connections: never more than allowed, the same one again and again, and none that was ended.

use futures_util::future::join_all;

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
    for _ in 0..50 {
        store.probe().await.unwrap();
    }
    assert_eq!(backends(&ground, store.application_name()).await, all, "one was made though others rested");
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
