//! The plans of the hot statements: which index each one uses, and how many pages it reads.
//!
//! The texts are those of `.sqlx`, which the build checks against the source. Plans are generic, as those of prepared
//! statements are: over tables large enough that the choice matters, and over empty tables that are full of dead rows
//! later.

use std::{collections::HashMap, fs, path::Path};

use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};
use uuid::Uuid;

use crate::ground::{Replica, Server};

/// A statement's name, and words that stand in it alone.
const HOT: [(&str, &[&str]); 22] = [
    ("beat", &["pg_try_advisory_xact_lock_shared"]),
    ("claim", &["skip locked", "row_number()"]),
    ("commands", &["from commands c left join lateral"]),
    ("finished", &["join turn_events e on e.turn_id = t.id and e.seq = t.last_seq", "e.data = w.data"]),
    ("list_agents", &["with recursive names"]),
    ("list_conversations", &["from conversations where id < $1"]),
    ("list_conversations_of_agent", &["from conversations where agent >= $1"]),
    ("list_in_flight", &["select i.turn_id from inflight i where i.turn_id < $1"]),
    ("list_not_completed", &["from not_completed where status >= $1"]),
    ("list_not_completed_of_agent", &["from not_completed where (agent, status) >="]),
    ("list_not_completed_of_conversation", &["from not_completed where (conversation_id, status) >="]),
    ("list_replicas", &["group by replica)"]),
    ("list_turns", &["agent from turns where id < $1"]),
    ("list_turns_of_agent", &["agent from turns where agent >= $1"]),
    ("list_turns_of_conversation", &["agent from turns where conversation_id >= $1"]),
    ("list_turns_told", &["left join lateral ( select e.data from turn_events"]),
    ("list_workers", &["from replicas r cross join lateral"]),
    ("look_out", &["e.same <> 1"]),
    ("look_out_for_turns", &["t.ordinal > w.ordinal"]),
    ("outlook", &["closable"]),
    ("read_after", &["from turn_events", "order by seq", "seq >= w.cursor"]),
    ("start", &["'started'", "set phase = 'running'"]),
];

/// Days of a busy gateway, a quarter of them in each partition, and what it has in flight just now:
/// of 400 conversations the first turn of each with a worker, the second waiting.
const FILL: &str = "
    insert into replicas (id, url, pid, version, application_name, lock_key)
    select lw_first_id(now() - n * interval '1 s'), 'http://x', n, '1', 'lastword ' || n, n
      from generate_series(1, 3) n;
    insert into conversations (id, agent, holder)
    select lpad(to_hex(n), 32, '0')::uuid, 'demo', (select min(id::text)::uuid from replicas)
      from generate_series(1, 10000) n;
    insert into turns (id, conversation_id, ordinal, agent, agent_revision, input, traceparent)
    select (left(lw_first_id(now() + (n % 4 - 1) * interval '1 day')::text, 24) || lpad(to_hex(n), 12, '0'))::uuid,
           lpad(to_hex(n % 10000 + 1), 32, '0')::uuid, n / 10000 + 1, 'demo', 1, '{}', 'x'
      from generate_series(0, 29999) n;
    insert into turn_events (turn_id, seq, kind, data)
    select t.id, s, 'delta', '{}' from turns t, generate_series(0, 4) s;
    insert into inflight (turn_id, conversation_id, ordinal, agent, agent_revision, runtime, phase, clock, replica,
      deadline, cap_at, queue_ms, startup_ms, progress_ms, cap_ms)
    select t.id, t.conversation_id, t.ordinal, 'demo', 1, 'process',
           case t.ordinal when 2 then 'running' else 'queued' end, case t.ordinal when 2 then 'progress' else 'queue' end,
           case t.ordinal when 2 then (select min(id::text)::uuid from replicas) end,
           now() + interval '1 h', now() + interval '1 h', 1, 1, 1, 1
      from turns t
     where t.ordinal > 1 and t.conversation_id <= lpad(to_hex(400), 32, '0')::uuid;
    insert into not_completed (turn_id, status, agent, conversation_id, ordinal)
    select t.id, 'failed', t.agent, t.conversation_id, t.ordinal from turns t where t.ordinal = 1;
    insert into workers (id, replica_id, agent, agent_revision, runtime, state, ended_at)
    select lpad(to_hex(n), 32, '0')::uuid, r.id, 'demo', 1, 'process',
           case when n % 100 = 0 then 'ready' else 'ended' end, case when n % 100 <> 0 then now() end
      from generate_series(1, 2000) n, (select min(id::text)::uuid as id from replicas) r;
    insert into agents (name, revision, spec)
    select 'agent-' || n % 20, n / 20 + 1, '{}' from generate_series(0, 999) n;
    insert into commands (turn_id, kind, taken_at)
    select t.id, 'cancel', case when t.ordinal < 3 then now() end from turns t where t.ordinal in (2, 3)";

#[tokio::test(flavor = "multi_thread")]
async fn hot_statements_go_by_their_indexes() {
    let server = Server::start().await;
    let ground = server.ground().await;
    for statement in FILL.split(';') {
        ground.run(statement).await.unwrap();
    }
    let mut conn = PgConnection::connect(&ground.url).await.unwrap();
    prepare(&mut conn).await;
    let statements = statements();
    for (name, _) in HOT {
        let plan = explain(&mut conn, name, &statements[name]).await;
        insta::assert_snapshot!(name, scans(&plan));
    }
}

/// Each turn of the second half comes after so many rows that are gone, and that vacuum may not remove.
const DEAD: i64 = 20_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_reads_no_more_however_many_rows_are_dead() {
    let server = Server::start().await;
    let ground = server.ground().await;
    let replica = ground.replica().await;
    // A table with a page and no rows: as misleading as can be.
    let (claim, seq) = replica.running().await;
    replica.finish(&claim, seq).await;
    let mut conn = PgConnection::connect(&ground.url).await.unwrap();
    prepare(&mut conn).await;
    let mut elsewhere = PgConnection::connect(&ground.url).await.unwrap();
    for statement in ["begin isolation level repeatable read", "select from inflight"] {
        sqlx::query(statement).execute(&mut elsewhere).await.unwrap();
    }
    // The first time the catalog is read as well.
    pages_of_a_turn(&mut conn, &replica, Uuid::nil()).await;
    let few = pages_of_a_turn(&mut conn, &replica, Uuid::nil()).await;

    let fill = format!(
        "insert into inflight (turn_id, conversation_id, ordinal, agent, agent_revision, runtime, phase, clock, replica,
           deadline, cap_at, queue_ms, startup_ms, progress_ms, cap_ms)
         select v.id, v.id, 1, 'demo', 1, 'process', case when n % 2 = 0 then 'queued' else 'running' end,
                case when n % 2 = 0 then 'queue' else 'progress' end, case when n % 2 = 1 then r.id end,
                now(), now(), 1, 1, 1, 1
           from generate_series(1, {DEAD}) n, lateral (select lpad(to_hex(n), 32, '0')::uuid) v (id), replicas r"
    );
    assert_eq!(ground.run(&fill).await.unwrap(), DEAD as u64);
    let last = Uuid::from_u128(DEAD as u128);
    assert_eq!(
        ground.run(&format!("delete from inflight where turn_id <= '{last}'")).await.unwrap(),
        DEAD as u64
    );

    let many = pages_of_a_turn(&mut conn, &replica, last).await;
    for ((what, few), (_, many)) in few.into_iter().zip(many) {
        // The indexes are a level deeper.
        assert!(many < 2 * few, "{what}: {few} pages before, and {many} now");
    }
}

/// The pages that the database looks at for a turn that comes to a queue that was empty up to `from`, is claimed, says a
/// word and ends.
async fn pages_of_a_turn(conn: &mut PgConnection, replica: &Replica, from: Uuid) -> Vec<(&'static str, i64)> {
    let [turn, conversation] = [(); 2].map(|()| replica.store.clock().mint());
    let (me, worker) = (replica.store.replica().0, Uuid::from_u128(1));
    let (minute, none) = ("'{60000}'", "'{null}'");
    let accept = format!(
        "select * from lw_accept_v1('{me}', '{{{turn}}}', '{{{conversation}}}', '{{true}}', '{{demo}}', '{{1}}', '{{process}}',
           array['{{}}'], {none}, '{{x}}', {none}, {none}, {none}, '{{queue}}', {minute}, {minute}, {minute}, {minute}, '{{false}}',
           '{{9}}', '{{9999}}', '{from}', '{{false}}', {none}, {none}, array['{{\"ordinal\":'], {none})"
    );
    let nothing = "'{}', '{}', '{}'";
    let claim = format!(
        "execute claim ('{me}', '{{process}}', 9, '{{}}', {nothing}, '{{demo}}', '{{1}}', '{{1}}', '{{0}}', '{{{worker}}}', '{from}', '', '{{}}', '{{}}', '{{}}', 1)"
    );
    let append = format!(
        "select * from lw_append_v1('{{{turn}}}', '{{1}}', '{{1}}', '{{progress}}', '{{60000}}', '{me}', '{turn}', '{turn}', '{{{turn}}}', '{{1}}', '{{1}}', '{{delta}}', '{{hi}}')"
    );
    let finish = format!(
        "select * from lw_finish_v1('{{{turn}}}', '{{1}}', '{{2}}', '{{completed}}', array['{{}}'], '{me}', '{turn}', '{turn}', '{{}}', {nothing}, '{{}}')"
    );
    let mut pages = Vec::new();
    for (what, sql) in [("accept", accept), ("claim", claim), ("append", append), ("finish", finish)] {
        let explain = AssertSqlSafe(format!("explain (analyze, buffers, format json) {sql}"));
        let plan: Value = sqlx::query_scalar(explain).persistent(false).fetch_one(&mut *conn).await.unwrap();
        let read =
            ["Shared Hit Blocks", "Shared Read Blocks"].map(|it| plan[0]["Plan"][it].as_i64().unwrap());
        assert_eq!(plan[0]["Plan"]["Actual Rows"].as_f64(), Some(1.0), "{what} did nothing");
        pages.push((what, read.into_iter().sum()));
    }
    pages
}

/// A reader's and a writer's statement begins with the days that its turns are of: a year of others is not even opened.
#[tokio::test(flavor = "multi_thread")]
async fn a_turn_opens_its_own_day_alone() {
    let server = Server::start().await;
    let ground = server.ground().await;
    let replica = ground.replica().await;
    let days: i64 = ground.ask("select count(*) from lw_partitions").await.parse().unwrap();
    assert!(days > 2, "there is but one day to open");
    let (claim, seq) = replica.running().await;
    let (turn, me) = (claim.turn.0, replica.store.replica().0);
    let mut conn = PgConnection::connect(&ground.url).await.unwrap();
    prepare(&mut conn).await;
    let said = format!("'{{{turn}}}', '{{1}}', '{{1}}', '{{delta}}', '{{hi}}'");
    let two = format!("'{{{turn},{turn}}}', '{{1,2}}', '{{{seq},{seq}}}'");
    let append = |which: &str| {
        format!(
            "select * from lw_append_v1({which}, '{{progress,progress}}', '{{60000,60000}}', '{me}', '{turn}', '{turn}', {said})"
        )
    };
    let statements = [
        ("append", append(&format!("'{{{turn}}}', '{{1}}', '{{{seq}}}'"))),
        ("append of many", append(&two)),
        ("read_after", format!("execute read_after ('{{{turn}}}', '{{0}}', 9, 9999, '{turn}', '{turn}')")),
        (
            "look_out",
            format!(
                "execute look_out ('{{{turn}}}', '{{0}}', '{{now}}', '{{0}}', '{{delta}}', '{turn}', '{turn}')"
            ),
        ),
        (
            "finish",
            format!(
                "select * from lw_finish_v1('{{{turn}}}', '{{1}}', '{{{seq}}}', '{{completed}}', array['{{}}'], '{me}', '{turn}', '{turn}', {said})"
            ),
        ),
    ];
    for (what, statement) in statements {
        let mut opened = Vec::new();
        // The first time it is planned, for which all days are opened.
        for _ in 0..2 {
            let mut transaction = conn.begin().await.unwrap();
            let sql = AssertSqlSafe(statement.clone());
            let done = sqlx::raw_sql(sql).fetch_all(&mut *transaction).await.unwrap();
            assert!(!done.is_empty(), "{what} did nothing");
            // An index that is opened stays locked to the end.
            let days = "select count(distinct x.indrelid) from pg_locks l join pg_index x on x.indexrelid = l.relation
                          join pg_inherits i on i.inhrelid = x.indrelid
                         where l.pid = pg_backend_pid() and i.inhparent = 'turn_events'::regclass";
            opened.push(sqlx::query_scalar::<_, i64>(days).fetch_one(&mut *transaction).await.unwrap());
            transaction.rollback().await.unwrap();
        }
        assert_eq!(opened[1], 1, "{what} opens so many days");
    }
}

/// Makes a connection as `store::connections` has them, with the hot statements prepared by their names.
pub(crate) async fn prepare(conn: &mut PgConnection) {
    let settings = [
        "analyze",
        "set plan_cache_mode = force_generic_plan",
        "set enable_seqscan = off",
        "set enable_bitmapscan = off",
        "set jit = off",
    ];
    for setting in settings {
        sqlx::query(setting).execute(&mut *conn).await.unwrap();
    }
    for (name, statement) in statements() {
        let prepare = format!("prepare {name} as {}", statement.text);
        sqlx::query(AssertSqlSafe(prepare)).execute(&mut *conn).await.unwrap();
    }
}

struct Statement {
    /// One blank between words, no comments.
    text: String,
    /// The types of its parameters.
    parameters: Vec<String>,
}

/// The hot statements of the source.
fn statements() -> HashMap<&'static str, Statement> {
    let home = Path::new(env!("CARGO_MANIFEST_DIR")).join(".sqlx");
    let read = |entry: fs::DirEntry| {
        let text = fs::read_to_string(entry.path()).unwrap();
        let query: Value = serde_json::from_str(&text).unwrap();
        let lines = query["query"].as_str().unwrap().lines().map(|line| line.split("--").next().unwrap());
        let text = lines.flat_map(str::split_whitespace).collect::<Vec<_>>().join(" ");
        let parameters = query["describe"]["parameters"]["Left"].as_array().unwrap();
        let parameters = parameters.iter().map(|it| it.as_str().unwrap_or_default().to_owned()).collect();
        Statement { text, parameters }
    };
    let mut all: Vec<Statement> = fs::read_dir(home).unwrap().map(|entry| read(entry.unwrap())).collect();
    let found = HOT.map(|(name, words)| {
        let is_it = |it: &mut Statement| {
            let text = it.text.replace("lastword.", "");
            words.iter().all(|word| text.contains(word))
        };
        let mut found = all.extract_if(.., is_it);
        let statement = found.next().unwrap_or_else(|| panic!("{name} is not in .sqlx"));
        assert!(found.next().is_none(), "several statements look like {name}");
        (name, statement)
    });
    found.into_iter().collect()
}

async fn explain(conn: &mut PgConnection, name: &str, statement: &Statement) -> String {
    // A null id would rule out every partition.
    let argument = |kind: &String| if kind == "Uuid" { "lw_first_id(now())" } else { "null" };
    let arguments = statement.parameters.iter().map(argument).collect::<Vec<_>>().join(", ");
    let arguments = if arguments.is_empty() { arguments } else { format!("({arguments})") };
    // Unprepared: Postgres plans the inner statement when it explains it.
    let explain = format!("explain (costs off) execute {name}{arguments}");
    let rows = sqlx::raw_sql(AssertSqlSafe(explain)).fetch_all(conn).await.unwrap();
    rows.iter().map(|row| row.get::<String, _>(0)).collect::<Vec<_>>().join("\n")
}

/// The scans of a plan, each once, in order of the alphabet. Days of partitions are left out, and
/// what does not touch a table.
fn scans(plan: &str) -> String {
    let day = regex::Regex::new(r"_\d{8}(_\d+)?").unwrap();
    let mut scans: Vec<String> = plan
        .lines()
        .map(|line| day.replace_all(line.trim().trim_start_matches("->").trim(), "").into_owned())
        .filter(|line| line.contains("Scan"))
        .filter(|line| !["CTE Scan", "Function Scan", "Subquery Scan"].iter().any(|no| line.contains(no)))
        .map(|line| regex::Regex::new(r" [a-z_]+_\d+$").unwrap().replace(&line, "").into_owned())
        .collect();
    scans.sort();
    scans.dedup();
    scans.join("\n")
}
