//! Remote workers: a look-up of one reads the same number of pages, however many others there are.

use lastword::{
    failure::Code,
    id::{ConversationId, WorkerId},
    store::{
        queue_hints::{END, FRONT},
        remote_workers::{ExitReport, Registration, RemoteWorker},
    },
};

use crate::{
    cases,
    cases::all,
    ground::{Ground, Replica, Server, until},
};

/// Others.
const MANY: i64 = 3000;
/// More than what one of them takes, and far less than a look at all.
const FEW: i64 = 200;

#[tokio::test(flavor = "multi_thread")]
async fn what_callers_cost() {
    let server = Server::start().await;
    let cases = cases![&server;
        who_tells_of_a_worker_that_is_gone_reads_no_others,
        a_worker_of_one_conversation_reads_no_queue,
    ];
    all(cases).await;
}

/// The rows of a table that statements have read, those of connections that are closed by now.
async fn read(ground: &Ground, replica: Replica, table: &str) -> i64 {
    let name = replica.store.application_name().to_owned();
    replica.store.close().await;
    let open = format!("select count(*) from pg_stat_activity where application_name = '{name}'");
    until("its connections are closed", async || (ground.ask(&open).await == "0").then_some(())).await;
    let read = format!(
        "select seq_tup_read + idx_tup_fetch + (
           select sum(idx_tup_read) from pg_stat_user_indexes where relname = '{table}')
           from pg_stat_user_tables where relname = '{table}'"
    );
    ground.ask(&read).await.parse().unwrap()
}

async fn who_tells_of_a_worker_that_is_gone_reads_no_others(server: &Server) {
    let ground = server.ground().await;
    let replica = ground.replica().await;
    let conversations = [(); 2].map(|()| ConversationId(replica.store.clock().mint()));
    let workers = conversations.map(|conversation| RemoteWorker {
        id: WorkerId(replica.store.clock().mint()),
        agent: "demo".to_owned(),
        agent_revision: 1,
        conversation: Some(conversation),
        name: None,
    });
    for worker in &workers {
        let registered = replica.store.register_worker(worker, [1; 32]).await.unwrap();
        assert_eq!(registered, Registration::Done);
    }
    let others = format!(
        "insert into workers (id, replica_id, agent, agent_revision, runtime, conversation_id, state)
         select gen_random_uuid(), gen_random_uuid(), 'demo', 1, 'remote', gen_random_uuid(), 'ready'
           from generate_series(1, {MANY})"
    );
    assert_eq!(ground.run(&others).await.unwrap(), MANY as u64);
    let teller = ground.replica().await;
    let why = ExitReport { code: Code::WorkerExited, message: "It fell over.".to_owned(), detail: None };
    for _ in 0..2 {
        // Told twice it is told once.
        let told = teller.store.worker_gone(Some(workers[0].id), None, &why).await.unwrap();
        let of_conversation = teller.store.worker_gone(None, Some(conversations[1]), &why).await.unwrap();
        assert_eq!(told, of_conversation);
    }
    let told = teller.store.exit_reports(&workers.map(|worker| worker.id)).await.unwrap();
    assert_eq!(told.len(), 2);
    let read = read(&ground, teller, "workers").await;
    assert!(read < FEW, "{read} rows and entries of workers were read");
}

async fn a_worker_of_one_conversation_reads_no_queue(server: &Server) {
    let ground = server.ground().await;
    let replica = ground.replica().await;
    let [kept, queued] = [replica.claimed().await, replica.claimed().await];
    let as_they_call = "update inflight set runtime = 'remote'";
    assert_eq!(ground.run(as_they_call).await.unwrap(), 2);
    assert!(replica.store.release(queued.turn, queued.epoch, true).await.unwrap());
    let others = format!(
        "insert into inflight (turn_id, conversation_id, ordinal, agent, agent_revision, runtime, deadline, cap_at,
           queue_ms, startup_ms, progress_ms, cap_ms)
         select v.id, v.id, 1, 'demo', 1, 'remote', now(), now(), 1, 1, 1, 1
           from generate_series(1, {MANY}) n, lateral (select lpad(to_hex(n), 32, '0')::uuid) v (id)"
    );
    assert_eq!(ground.run(&others).await.unwrap(), MANY as u64);
    let other = ground.replica().await;
    let both = [kept.conversation, queued.conversation];
    let mut heads = other.store.remote_heads(&[], &both, END, &[]).await.unwrap();
    heads.sort_by_key(|head| head.turn);
    let mut expected = [(kept.turn, true), (queued.turn, false)];
    expected.sort();
    let found: Vec<_> = heads.iter().map(|head| (head.turn, head.is_reserved)).collect();
    assert_eq!(found, expected);
    // Who serves any conversation does not find them a second time.
    let demo = ["demo".to_owned()];
    let heads = replica.store.remote_heads(&demo, &both, FRONT, &[]).await.unwrap();
    assert_eq!(heads.iter().filter(|head| head.turn == queued.turn).count(), 1);
    let read = read(&ground, other, "inflight").await;
    assert!(read < FEW, "{read} rows and entries of the turns in flight were read");
}
