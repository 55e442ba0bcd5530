//! The schema: many replicas that start at once, releases side by side, partitions that come and go.

use chrono::Days;
use futures_util::future::join_all;
use lastword::{
    event::Kind,
    id::TurnId,
    store::{StoreError, accept::NewTurn, group_commit::Written},
};

use crate::{
    cases,
    cases::all,
    ground::{Server, fresh},
};

#[tokio::test(flavor = "multi_thread")]
async fn what_the_schema_allows() {
    let server = Server::start().await;
    let cases = cases![&server;
        eight_replicas_migrate_at_once,
        an_older_release_starts_on_a_newer_schema_and_a_newer_one_asks_for_its_own,
        a_day_is_dropped_only_when_no_turn_of_it_is_open,
        missing_days_are_made_by_several_replicas_at_once,
    ];
    all(cases).await;
}

async fn eight_replicas_migrate_at_once(server: &Server) {
    let ground = server.bare_ground().await;
    let stores: Vec<_> = (0..8).map(|_| ground.open()).collect();
    assert!(!stores[0].is_migrated().await.unwrap());
    for migrated in join_all(stores.iter().map(|store| store.migrate())).await {
        migrated.unwrap();
    }
    assert!(stores[0].is_migrated().await.unwrap());
    ground.replica().await.running().await;
    ground.assert_whole().await;
}

async fn an_older_release_starts_on_a_newer_schema_and_a_newer_one_asks_for_its_own(server: &Server) {
    let ground = server.ground().await;
    let store = ground.open();
    ground
        .run(
            "insert into lw_migrations (version, description, success, checksum, execution_time)
             values (99990101, 'of a later release', true, '\\x00', 1)",
        )
        .await
        .unwrap();
    store.migrate().await.unwrap();
    assert!(store.is_migrated().await.unwrap());
    ground.replica().await.running().await;

    ground
        .run("delete from lw_migrations where version = (select max(version) from lw_migrations where version < 99990101)")
        .await
        .unwrap();
    assert!(!store.is_migrated().await.unwrap(), "a migration of this release is missing");
}

async fn a_day_is_dropped_only_when_no_turn_of_it_is_open(server: &Server) {
    let ground = server.ground().await;
    let replica = ground.replica().await;
    let store = &replica.store;
    let today = store.clock().now().date_naive();
    let long_ago = today - Days::new(5);
    ground.run(&format!("select lw_partition_make_v1('{long_ago}')")).await.unwrap();
    let first: uuid::Uuid = ground.ask(&format!("lw_first_id('{long_ago} 12:00Z')")).await.parse().unwrap();
    let old = NewTurn { id: TurnId(first), ..fresh(store) };
    store.accept(&old).await.unwrap();
    let claim = replica.claim_of(old.id).await;
    let seq = replica.start(&claim).await.unwrap();

    assert_eq!(store.drop_partitions(today).await.unwrap(), [""; 0], "an open turn lost its log");
    assert_eq!(replica.append(&claim, seq, Kind::Delta).await, Written::Done(seq + 1));
    assert_eq!(replica.finish(&claim, seq + 1).await, Written::Done(seq + 2));
    // Yesterday is kept by the migration's own partitions.
    let dropped = store.drop_partitions(today).await.unwrap();
    assert!(dropped.contains(&format!("turn_events_{}", long_ago.format("%Y%m%d"))), "{dropped:?}");

    assert!(store.read_after(old.id, -1, 10).await.unwrap().is_empty());
    assert_eq!(replica.append(&claim, seq + 1, Kind::Delta).await, Written::LeaseLost);
    let turn = store.turn(old.id).await.unwrap().unwrap();
    assert_eq!((turn.status.as_str(), turn.text), ("completed", None));
    let late = NewTurn { id: TurnId(uuid::Uuid::from_u128(first.as_u128() + 1)), ..fresh(store) };
    match store.accept(&late).await {
        Err(StoreError::Broken { code, .. }) => assert_eq!(code.as_deref(), Some("23514")),
        other => panic!("a turn without a place for its log: {other:?}"),
    }
    ground.assert_whole().await;
}

async fn missing_days_are_made_by_several_replicas_at_once(server: &Server) {
    let ground = server.ground().await;
    let stores = [ground.open(), ground.open(), ground.open()];
    let today = stores[0].clock().now().date_naive();
    for ahead in 1..=2 {
        let day = today + Days::new(ahead);
        ground.run(&format!("drop table turn_events_{}", day.format("%Y%m%d"))).await.unwrap();
    }
    let made = join_all(stores.iter().map(|store| store.make_partitions())).await;
    let made: Vec<u32> = made.into_iter().map(Result::unwrap).collect();
    assert_eq!(made.iter().sum::<u32>(), 2, "{made:?}");
    assert_eq!(stores[0].make_partitions().await.unwrap(), 0);
}
