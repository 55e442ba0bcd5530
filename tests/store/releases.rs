//! Two releases side by side: what needs a newer reader is left alone, and what the older release writes stays right.

use lastword::{
    agent::{AgentSpec, READS},
    id::{ConversationId, TurnId, WorkerId},
    store::{
        Store,
        accept::NewTurn,
        adoption::{Adoption, Move},
        queue_hints::FRONT,
        remote_turns::{Bid, Proof},
        turns::Agent,
    },
};

use sqlx::AssertSqlSafe;

use crate::{
    cases,
    cases::all,
    ground::{Ground, Replica, Server, agent, fresh},
};

#[tokio::test(flavor = "multi_thread")]
async fn what_two_releases_do_to_each_other() {
    let server = Server::start().await;
    let cases = cases![&server;
        a_turn_has_the_reader_level_of_its_agents_revision,
        a_put_that_keeps_what_it_cannot_read_keeps_the_level,
        a_turn_that_needs_a_newer_reader_is_not_claimed,
        a_remote_turn_that_needs_a_newer_reader_is_neither_found_nor_moved,
        a_replica_and_a_remote_worker_take_a_conversation_from_each_other,
        what_a_claim_of_the_release_before_leaves_is_nobodys_worker,
        the_migration_gives_workers_a_column_of_their_own,
    ];
    all(cases).await;
}

/// A turn of the agent `name`, accepted here.
async fn accepted(store: &Store, name: &str, revision: i32, spec: &AgentSpec) -> NewTurn {
    let mut new = fresh(store);
    new.agent = Agent { revision, name: name.to_owned(), ..agent(|it| it.clone_from(spec)) };
    store.accept(&new).await.unwrap();
    new
}

async fn level_of(ground: &Ground, turn: TurnId) -> String {
    ground.ask(&format!("select reader_min from inflight where turn_id = '{}'", turn.0)).await
}

async fn set_level(ground: &Ground, turn: TurnId, level: i32) {
    let set = format!("update inflight set reader_min = {level} where turn_id = '{}'", turn.0);
    assert_eq!(ground.run(&set).await.unwrap(), 1);
}

/// The conversation's replica and its worker.
async fn served_by(ground: &Ground, conversation: ConversationId) -> String {
    let columns = "coalesce(holder::text, '-') || ' ' || coalesce(holder_worker::text, '-')";
    ground.ask(&format!("select {columns} from conversations where id = '{}'", conversation.0)).await
}

async fn claim_for(replica: &Replica, turn: TurnId, worker: WorkerId) -> usize {
    replica.store.claim_remote(&[Bid { turn, worker, token_hash: [0; 32] }]).await.unwrap().len()
}

async fn a_turn_has_the_reader_level_of_its_agents_revision(server: &Server) {
    let ground = server.ground().await;
    let store = ground.replica().await.store;
    let spec = agent(|_| ()).spec;
    let (first, _) = store.put_agent("levels", Some(&spec)).await.unwrap();
    let before = accepted(&store, "levels", first, &spec).await;
    ground
        .run("insert into agents (name, revision, spec, reader_min) values ('levels', 2, '{}', 7)")
        .await
        .unwrap();
    let newer = accepted(&store, "levels", 2, &spec).await;
    let other = accepted(&store, "another", 1, &spec).await;
    let levels = [before.id, newer.id, other.id].map(|turn| (turn, level_of(&ground, turn)));
    for ((_, level), expected) in levels.into_iter().zip(["1", "7", "1"]) {
        assert_eq!(level.await, expected);
    }
    ground.assert_whole().await;
}

async fn a_put_that_keeps_what_it_cannot_read_keeps_the_level(server: &Server) {
    let ground = server.ground().await;
    let store = ground.open();
    let level = async || ground.ask("select reader_min from agents order by revision desc limit 1").await;
    let known = r#"{"runtime":"process","command":["true"]}"#;
    let unknown = r#"{"runtime":"process","command":["true"],"sandbox":"strict"}"#;
    store.put_agent_text("kept", Some(known)).await.unwrap();
    assert_eq!(level().await, "1");
    ground
        .run(&format!(
            "insert into agents (name, revision, spec, reader_min) values ('kept', 2, '{unknown} ', 7)"
        ))
        .await
        .unwrap();
    store.put_agent_text("kept", Some(unknown)).await.unwrap();
    assert_eq!(level().await, "7", "only the newer release knows what `sandbox` needs");
    ground.run("select lw_agent_put_v1('kept', '{\"of\":\"the release before\"}')").await.unwrap();
    assert_eq!(level().await, "7", "the release before knows no levels");
    store.put_agent_text("kept", Some(known)).await.unwrap();
    assert_eq!(level().await, "1");
    assert_eq!(ground.ask("select count(*) from agents").await, "5");
}

async fn a_turn_that_needs_a_newer_reader_is_not_claimed(server: &Server) {
    let ground = server.ground().await;
    let replica = ground.replica().await;
    let (newer, other) = (replica.accept().await, replica.accept().await);
    set_level(&ground, newer.id, READS + 1).await;
    let claimed: Vec<_> = replica.claim(10).await.into_iter().map(|claim| claim.turn).collect();
    assert_eq!(claimed, [other.id]);
    set_level(&ground, newer.id, READS).await;
    let claimed: Vec<_> = replica.claim(10).await.into_iter().map(|claim| claim.turn).collect();
    assert_eq!(claimed, [newer.id]);
}

async fn a_remote_turn_that_needs_a_newer_reader_is_neither_found_nor_moved(server: &Server) {
    let ground = server.ground().await;
    let (former, next) = (ground.replica().await, ground.replica().await);
    let turn = accepted(&former.store, "called", 1, &AgentSpec::remote()).await;
    let called = ["called".to_owned()];
    for (agents, conversations) in [(&called[..], &[][..]), (&[][..], &[turn.conversation][..])] {
        for (level, found) in [(READS + 1, 0), (READS, 1)] {
            set_level(&ground, turn.id, level).await;
            let heads = next.store.remote_heads(agents, conversations, FRONT, &[]).await.unwrap();
            assert_eq!(heads.len(), found, "{agents:?} {conversations:?}");
        }
    }
    let worker = WorkerId(former.store.clock().mint());
    assert_eq!(claim_for(&former, turn.id, worker).await, 1);
    let moves = [Move { turn: turn.id, epoch: 1, proof: Proof::Worker(worker) }];
    set_level(&ground, turn.id, READS + 1).await;
    let adoption = next.store.adopt(&moves).await.unwrap().pop().unwrap().unwrap();
    assert!(matches!(adoption, Adoption::Elsewhere), "{adoption:?}");
    let holder = format!("select replica from inflight where turn_id = '{}'", turn.id.0);
    assert_eq!(ground.ask(&holder).await, former.store.replica().0.to_string());
    set_level(&ground, turn.id, READS).await;
    let adoption = next.store.adopt(&moves).await.unwrap().pop().unwrap().unwrap();
    assert!(matches!(adoption, Adoption::Adopted(_)), "{adoption:?}");
}

async fn a_replica_and_a_remote_worker_take_a_conversation_from_each_other(server: &Server) {
    let ground = server.ground().await;
    let replica = ground.replica().await;
    let (store, me) = (&replica.store, replica.store.replica().0);
    let worker = WorkerId(store.clock().mint());
    let first = replica.accept().await;
    let claim = replica.claim_of(first.id).await;
    assert_eq!(served_by(&ground, first.conversation).await, format!("{me} -"));
    assert!(store.release(claim.turn, claim.epoch, false).await.unwrap());
    assert_eq!(claim_for(&replica, first.id, worker).await, 1);
    assert_eq!(served_by(&ground, first.conversation).await, format!("- {}", worker.0));
    let generation = format!("select generation from conversations where id = '{}'", first.conversation.0);
    assert_eq!(ground.ask(&generation).await, "2");
    assert!(store.release(first.id, 2, false).await.unwrap());
    assert_eq!(claim_for(&replica, first.id, worker).await, 1);
    assert_eq!(ground.ask(&generation).await, "2", "the same worker");

    let second = replica.accept().await;
    assert_eq!(claim_for(&replica, second.id, worker).await, 1);
    assert!(store.release(second.id, 1, false).await.unwrap());
    replica.claim_of(second.id).await;
    assert_eq!(served_by(&ground, second.conversation).await, format!("{me} -"));
    let generation = format!("select generation from conversations where id = '{}'", second.conversation.0);
    assert_eq!(ground.ask(&generation).await, "2");
}

async fn what_a_claim_of_the_release_before_leaves_is_nobodys_worker(server: &Server) {
    let ground = server.ground().await;
    let replica = ground.replica().await;
    let store = &replica.store;
    let turn = accepted(store, "called", 1, &AgentSpec::remote()).await;
    let worker = WorkerId(store.clock().mint());
    let head = async || {
        let heads = store.remote_heads(&["called".to_owned()], &[], FRONT, &[]).await.unwrap();
        heads.into_iter().next().unwrap().holder
    };
    assert_eq!(head().await, None);
    assert_eq!(claim_for(&replica, turn.id, worker).await, 1);
    assert!(store.release(turn.id, 1, false).await.unwrap());
    assert_eq!(head().await, Some(worker));
    // Its claim sets `holder` and the generation, and knows no `holder_worker`.
    let another = store.clock().mint();
    ground
        .run(&format!("update conversations set holder = '{another}', generation = generation + 1"))
        .await
        .unwrap();
    assert_eq!(head().await, None);
    assert_eq!(claim_for(&replica, turn.id, worker).await, 1);
    assert_eq!(served_by(&ground, turn.conversation).await, format!("- {}", worker.0));
    assert_eq!(ground.ask("select generation from conversations").await, "3", "the worker took over");
}

/// As the release before left them: a worker's id in the replica's column.
async fn the_migration_gives_workers_a_column_of_their_own(server: &Server) {
    let ground = server.ground().await;
    let replica = ground.replica().await;
    let (first, second) = (replica.accept().await, replica.accept().await);
    let (worker, me) = (replica.store.clock().mint(), replica.store.replica().0);
    ground
        .run(&format!(
            "insert into workers (id, replica_id, agent, agent_revision, runtime, state)
             values ('{worker}', '{me}', 'called', 1, 'remote', 'ready')"
        ))
        .await
        .unwrap();
    for (turn, holder) in [(&first, worker), (&second, me)] {
        let id = turn.conversation.0;
        ground.run(&format!("update conversations set holder = '{holder}' where id = '{id}'")).await.unwrap();
    }
    let moves = std::fs::read_to_string("migrations/0027_holders_moved.sql").unwrap();
    sqlx::raw_sql(AssertSqlSafe(moves)).execute(&ground.sql).await.unwrap();
    assert_eq!(served_by(&ground, first.conversation).await, format!("- {worker}"));
    assert_eq!(served_by(&ground, second.conversation).await, format!("{me} -"));
}
