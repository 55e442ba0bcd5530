//! Stored words: the lists of this release are those of the schema, and a newer release's word breaks no read that can
//! do without.

use lastword::{
    agent::{History, Runtime},
    event::Kind,
    failure::Code,
    id::WorkerId,
    store::{
        StoreError,
        adoption::{Adoption, Move},
        claim::Phase,
        commands::Order,
        remote_turns::{Bid, Proof},
        seen_commits::SeenCommit,
        turns::TurnFilter,
        word::{
            AcceptRefusal, Acceptance, Cancellation, InflightPhase, Loss, MoveVerdict, OrderKind,
            ReplicaStatus, TurnClock, WaitLimit, WorkerState,
        },
        workers::NewWorker,
    },
    turn::{CancelledBy, Status},
    word::Open,
};

use crate::{
    cases,
    cases::all,
    ground::{Ground, Server, fresh, last_word, refusal},
};

#[tokio::test(flavor = "multi_thread")]
async fn what_words_mean() {
    let server = Server::start().await;
    let cases = cases![&server;
        the_lists_are_those_of_the_schema,
        a_turn_shows_a_status_of_a_newer_release_and_a_history_refuses_it,
        an_event_of_no_kind_fails_its_own_page,
        a_phase_of_a_newer_release_is_neither_queued_nor_running,
        a_canceller_of_a_newer_release_is_passed_on_and_an_order_is_left_alone,
        a_newer_releases_states_are_shown,
        a_newer_releases_answers_are_taken_for_nothing_else,
    ];
    all(cases).await;
}

#[test]
fn every_list_reads_back_its_words() {
    macro_rules! check {
        ($($list:ident),+) => {$(
            for word in $list::ALL {
                assert_eq!(word.as_str().parse(), Ok(word));
                assert_eq!(Open::<$list>::of(word.as_str()), Open::Known(word));
            }
            assert!("a b".parse::<$list>().is_err());
        )+};
    }
    check!(AcceptRefusal, Acceptance, Cancellation, InflightPhase, Loss, MoveVerdict, OrderKind);
    check!(ReplicaStatus, TurnClock, WaitLimit, WorkerState);
}

async fn the_lists_are_those_of_the_schema(server: &Server) {
    let ground = server.ground().await;
    for (constraint, words) in [
        ("replicas_state_is_known", ReplicaStatus::ALL.map(ReplicaStatus::as_str).join(" ")),
        ("workers_state_is_known", WorkerState::ALL.map(WorkerState::as_str).join(" ")),
        ("commands_kind_is_known", OrderKind::ALL.map(OrderKind::as_str).join(" ")),
        ("rewound_how_is_known", Loss::ALL.map(Loss::as_str).join(" ")),
    ] {
        let allowed = format!(
            "select string_agg(w.word[1], ' ' order by w.place) from pg_constraint c
              cross join regexp_matches(pg_get_constraintdef(c.oid), '''(.*?)''', 'g') with ordinality w (word, place)
              where c.conname = '{constraint}'"
        );
        assert_eq!(ground.ask(&allowed).await, words, "{constraint}");
    }
    let source = async |function: &str| {
        ground.ask(&format!("select prosrc from pg_proc where proname = '{function}'")).await
    };
    let accept = source("lw_accept_v1").await;
    for (source, words) in [
        (&accept, Acceptance::ALL.map(Acceptance::as_str).to_vec()),
        (&accept, AcceptRefusal::ALL.map(AcceptRefusal::as_str).to_vec()),
        (&accept, WaitLimit::ALL.map(WaitLimit::as_str).to_vec()),
        (&accept, InflightPhase::ALL.map(InflightPhase::as_str).to_vec()),
        (&source("lw_cancel_v1").await, Cancellation::ALL.map(Cancellation::as_str).to_vec()),
        (&source("lw_remote_adopt_v4").await, MoveVerdict::ALL.map(MoveVerdict::as_str).to_vec()),
    ] {
        for word in words {
            assert!(source.contains(&format!("'{word}'")), "no `{word}` in:\n{source}");
        }
    }
    for refusal in accept.split('\'').filter(|text| text.starts_with("LW") && *text != "LW%") {
        assert!(refusal.parse::<AcceptRefusal>().is_ok(), "{refusal}");
    }
    let close = source("lw_close_v1").await;
    let codes = close.split('\'').skip(1).step_by(2).filter(|text| {
        text.ends_with("_timeout") || text.starts_with("worker_") || text.starts_with("replica_")
    });
    assert!(codes.clone().count() > 5, "{close}");
    codes.for_each(|code| assert!(code.parse::<Code>().is_ok(), "{code}"));
}

/// Another word in a turn's row, as a newer release may write it.
async fn write(ground: &Ground, table: &str, change: &str, id: uuid::Uuid) {
    let key = if table == "turns" { "id" } else { "turn_id" };
    assert_eq!(ground.run(&format!("update {table} set {change} where {key} = '{id}'")).await.unwrap(), 1);
}

async fn a_turn_shows_a_status_of_a_newer_release_and_a_history_refuses_it(server: &Server) {
    let ground = server.ground().await;
    let replica = ground.replica().await;
    let (claim, seq) = replica.running().await;
    replica.finish(&claim, seq).await;
    write(&ground, "turns", "status = 'paused'", claim.turn.0).await;
    let turn = replica.store.turn(claim.turn).await.unwrap().unwrap();
    assert_eq!(turn.status, Open::Foreign("paused".to_owned()));
    assert_eq!(serde_json::to_value(&turn).unwrap()["status"], "paused");
    for (status, count) in [(None, 1), (Some(Status::Completed), 0)] {
        let filter = TurnFilter { status, limit: 10, ..TurnFilter::default() };
        assert_eq!(replica.store.turns(&filter).await.unwrap().items.len(), count);
    }
    let past = replica.store.past(claim.conversation, 9, History::default()).await;
    assert_broken(past, "turns.status: unknown word `paused`");
}

/// The error names the table, the column and the word, and is no reason to try again.
fn assert_broken<T: std::fmt::Debug>(read: Result<T, StoreError>, wanted: &str) {
    let why = read.unwrap_err();
    assert!(matches!(&why, StoreError::Broken { .. }) && why.to_string().contains(wanted), "{why}");
}

async fn an_event_of_no_kind_fails_its_own_page(server: &Server) {
    let ground = server.ground().await;
    let replica = ground.replica().await;
    let [(newer, _), (broken, seq)] = [replica.running().await, replica.running().await];
    replica.append(&newer, 1, Kind::Delta).await;
    replica.append(&broken, seq, Kind::Delta).await;
    for (turn, kind) in [(newer.turn, "reasoning"), (broken.turn, "a b")] {
        let change =
            format!("update turn_events set kind = '{kind}' where kind = 'delta' and turn_id = '{}'", turn.0);
        assert_eq!(ground.run(&change).await.unwrap(), 1);
    }
    let pages = replica.store.read_beginnings(&[newer.turn, broken.turn]).await.unwrap();
    let [newer, broken]: [_; 2] = pages.try_into().unwrap();
    assert_eq!(newer.unwrap().last().unwrap().kind, Kind::Foreign("reasoning"));
    assert_broken(broken, "turn_events.kind: unknown word `a b`");
}

async fn a_phase_of_a_newer_release_is_neither_queued_nor_running(server: &Server) {
    let ground = server.ground().await;
    let replica = ground.replica().await;
    let (new, worker) = (fresh(&replica.store), WorkerId(replica.store.clock().mint()));
    replica.store.accept(&new).await.unwrap();
    let bid = Bid { turn: new.id, worker, token_hash: [1; 32] };
    replica.store.claim_remote(&[bid]).await.unwrap();
    write(&ground, "inflight", "phase = 'napping'", new.id.0).await;
    let again = replica.store.accept(&new).await.unwrap();
    assert!(again.is_repeat && again.claim.unwrap().phase == Phase::Forsaken);
    let here = Move { turn: new.id, epoch: 1, proof: Proof::Worker(worker) };
    let moved = replica.store.adopt(&[here]).await.unwrap().remove(0).unwrap();
    assert!(matches!(&moved, Adoption::Adopted(it) if it.claim.phase == Phase::Starting), "{moved:?}");
}

async fn a_canceller_of_a_newer_release_is_passed_on_and_an_order_is_left_alone(server: &Server) {
    let ground = server.ground().await;
    let replica = ground.replica().await;
    let (claim, _) = replica.running().await;
    replica.store.cancel(&[claim.turn], CancelledBy::Client).await.unwrap();
    write(&ground, "inflight", "cancelled_by = 'robot'", claim.turn.0).await;
    ground.run("alter table commands drop constraint commands_kind_is_known").await.unwrap();
    let pause = format!("insert into commands (turn_id, kind) values ('{}', 'pause')", claim.turn.0);
    ground.run(&pause).await.unwrap();
    let orders = replica.store.commands(&[claim.turn]).await.unwrap();
    let orders: Vec<Order> = orders.into_iter().map(|command| command.order).collect();
    assert_eq!(orders, [Order::Cancel { by: Open::Foreign("robot".to_owned()) }]);
}

async fn a_newer_releases_states_are_shown(server: &Server) {
    let ground = server.ground().await;
    let store = ground.replica().await.store;
    let id = WorkerId(store.clock().mint());
    let (agent, runtime) = ("demo".to_owned(), Runtime::Process);
    let new = NewWorker { id, agent, agent_revision: 1, runtime, conversation: None, pid: 7 };
    store.worker_started(&new).await.unwrap();
    let worker = store.worker(id).await.unwrap().unwrap();
    assert!(worker.state == WorkerState::Starting && worker.runtime == Runtime::Process);
    for change in [
        "alter table workers drop constraint workers_state_is_known",
        "update workers set state = 'napping', runtime = 'wasm', end_code = 'worker_bored'",
        "alter table replicas drop constraint replicas_state_is_known",
        "update replicas set state = 'napping'",
    ] {
        ground.run(change).await.unwrap();
    }
    let worker = store.worker(id).await.unwrap().unwrap();
    assert_eq!((worker.state.as_str(), worker.runtime.as_str()), ("napping", "wasm"));
    let reports = store.exit_reports(&[id]).await.unwrap();
    assert_eq!(reports[0].1.code, Code::WorkerExited);
    let replicas = store.replicas(None, 10).await.unwrap();
    assert_eq!(replicas[0].state, Open::Foreign("napping".to_owned()));
}

/// A function that says another word, as a newer release may have replaced it.
async fn replace(ground: &Ground, function: &str, word: &str, newer: &str) {
    let replace = format!(
        "do $do$ begin
           execute (select replace(pg_get_functiondef(oid), '''{word}''', '''{newer}''')
                      from pg_proc where proname = '{function}');
         end $do$"
    );
    ground.run(&replace).await.unwrap();
}

async fn a_newer_releases_answers_are_taken_for_nothing_else(server: &Server) {
    let ground = server.ground().await;
    let replica = ground.replica().await;
    let store = &replica.store;
    let (running, _) = replica.running().await;
    let (mut stranger, known) = (fresh(store), replica.accept().await);
    stranger.is_new_conversation = false;
    for (function, word, newer) in [
        ("lw_accept_v1", "LW404", "LW499"),
        ("lw_accept_v1", "same", "merged"),
        ("lw_cancel_v1", "asked", "begged"),
        ("lw_remote_adopt_v4", "unknown", "misplaced"),
        ("lw_close_v1", "queue_timeout", "queue_tired"),
        ("lw_reconcile_v1", "vanished", "evaporated"),
    ] {
        replace(&ground, function, word, newer).await;
    }
    assert_eq!(refusal(store.accept(&stranger).await).0, "LW499");
    // Whether such a turn is stored is not known, so nobody is told that.
    let why = store.accept(&known).await.unwrap_err().to_string();
    assert!(why.contains("lw_accept_v1.o_outcome: unknown word `merged`"), "{why}");
    assert_eq!(store.cancel(&[running.turn], CancelledBy::Client).await.unwrap(), [(running.turn, false)]);
    let here = Move { turn: running.turn, epoch: 1, proof: Proof::Token([1; 32]) };
    let moved = store.adopt(&[here]).await.unwrap().remove(0).unwrap();
    assert!(matches!(moved, Adoption::Elsewhere), "{moved:?}");
    ground.lapse(known.id).await;
    let closed = store.close_due(&[], 10).await.unwrap();
    assert_eq!((closed[0].last_word(), closed[0].code.as_str()), (Some(Kind::Failed), "queue_tired"));
    assert_eq!(last_word(store, known.id).await.1["error"]["code"], "queue_tired");
    ground.run("alter table rewound drop constraint rewound_how_is_known").await.unwrap();
    let seen = SeenCommit { turn: fresh(store).id, epoch: 1, seq: Some(2), end: None };
    assert_eq!(store.reconcile(&[seen]).await.unwrap()[0].how, Open::Foreign("evaporated".to_owned()));
}
