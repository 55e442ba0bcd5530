//! Other content of the database: tables of other programs, other installations, an installation of an older release.

use std::{borrow::Cow, path::Path};

use lastword::{
    config::Config,
    event::Kind,
    store::{Store, StoreError, doctor::Severity, group_commit::Written},
};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, postgres::PgListener};

use crate::{
    cases,
    cases::all,
    ground::{Ground, Server},
};

#[tokio::test(flavor = "multi_thread")]
async fn what_else_is_in_a_database_is_not_met() {
    let server = Server::start().await;
    let cases = cases![&server;
        another_programs_tables_and_migrations_stay_as_they_are,
        two_installations_in_one_database_do_not_meet,
        an_installation_of_an_older_release_stays_where_it_is,
        a_database_that_is_not_utf8_is_refused_before_anything_is_changed,
        every_function_finds_its_tables_by_itself,
    ];
    all(cases).await;
}

/// An empty database as people make them: sessions find what is in `public`.
async fn plain(server: &Server) -> Ground {
    let ground = server.bare_ground().await;
    let name = ground.url.rsplit_once('/').unwrap().1;
    ground.run(&format!("alter database {name} set search_path = public")).await.unwrap();
    ground.anew().await
}

fn open(ground: &Ground, schema: Option<&str>) -> Store {
    let schema = schema.map(str::to_owned);
    Store::open(&Config { database_url: ground.url.clone(), database_schema: schema, ..Config::default() })
        .unwrap()
}

/// A turn's whole way.
async fn serves(ground: &Ground, store: Store) {
    let replica = ground.replica_of(store).await;
    let (claim, seq) = replica.running().await;
    assert_eq!(replica.append(&claim, seq, Kind::Delta).await, Written::Done(seq + 1));
    assert_eq!(replica.finish(&claim, seq + 1).await, Written::Done(seq + 2));
    let findings = replica.store.verify().await.unwrap();
    assert!(findings.iter().all(|finding| finding.broken.is_empty()), "{findings:?}");
}

async fn another_programs_tables_and_migrations_stay_as_they_are(server: &Server) {
    let ground = plain(server).await;
    for table in [
        "create table _sqlx_migrations (version bigint primary key, description text not null, \
           installed_on timestamptz not null default now(), success boolean not null, checksum bytea not null, \
           execution_time bigint not null)",
        "insert into _sqlx_migrations values (1, 'theirs', now(), true, '\\x00', 1)",
        "create table turns (n int)",
        "insert into turns values (7)",
        "create function lw_first_id(timestamptz) returns uuid language sql as 'select gen_random_uuid()'",
    ] {
        ground.run(table).await.unwrap();
    }
    let theirs = "select jsonb_agg(c.relname order by c.relname) from pg_class c where c.relnamespace = 'public'::regnamespace";
    let before = ground.ask(theirs).await;
    let store = open(&ground, None);
    store.migrate().await.unwrap();
    assert!(store.is_migrated().await.unwrap());
    // What the database gives to its sessions by default is theirs too.
    let name = ground.url.rsplit_once('/').unwrap().1;
    ground
        .run(&format!("alter database {name} set default_transaction_isolation = serializable"))
        .await
        .unwrap();
    let exams = store.examine(&Config::default()).await;
    let faults: Vec<_> = exams.iter().filter(|exam| exam.severity == Severity::Fault).collect();
    assert!(faults.is_empty(), "{faults:?}");
    serves(&ground, store).await;
    assert_eq!(ground.ask(theirs).await, before);
    assert_eq!(ground.ask("select sum(n) from turns").await, "7");
    assert_eq!(ground.ask("select count(*) from _sqlx_migrations").await, "1");
    assert_eq!(ground.ask("select count(*) from lastword.turns").await, "1");
}

async fn two_installations_in_one_database_do_not_meet(server: &Server) {
    let ground = plain(server).await;
    let (one, other) = (open(&ground, None), open(&ground, Some("team_b")));
    one.migrate().await.unwrap();
    other.migrate().await.unwrap();
    // Locks that one holds do not hold the other up.
    let mut held = ground.sql.begin().await.unwrap();
    for locked in ["lw_agent_put_v1('demo', '{}')", "lw_partition_make_v1('2031-01-01')"] {
        sqlx::raw_sql(AssertSqlSafe(format!("select lastword.{locked}"))).execute(&mut *held).await.unwrap();
    }
    let there =
        ground.run("select team_b.lw_agent_put_v1('demo', '{}'), team_b.lw_partition_make_v1('2031-01-01')");
    tokio::time::timeout(std::time::Duration::from_secs(20), there).await.unwrap().unwrap();
    held.rollback().await.unwrap();

    // Each hears what it rings itself, and nothing of the other's.
    let channels = ["lastword.lastword", "lastword.team_b"];
    let replicas = [ground.replica_of(one).await, ground.replica_of(other).await];
    for (replica, [own, others]) in replicas.iter().zip([channels, [channels[1], channels[0]]]) {
        let mut heard = PgListener::connect(&ground.url).await.unwrap();
        heard.listen(own).await.unwrap();
        let mut unheard = PgListener::connect(&ground.url).await.unwrap();
        unheard.listen(others).await.unwrap();
        replica.accept().await;
        replica.store.wake().queue.moved();
        // Rings what is pending, and ends.
        let ended = tokio_util::sync::CancellationToken::new();
        ended.cancel();
        lastword::store::notify_sender::ring_on(replica.store.clone(), ended).await;
        let ring = heard.recv().await.unwrap();
        assert_eq!(ring.channel(), own);
        ground.run(&format!("select pg_notify('{others}', 'the end')")).await.unwrap();
        assert_eq!(unheard.recv().await.unwrap().payload(), "the end");
    }
    let [one, other] = replicas;
    assert_eq!(one.claim(100).await.len(), 1);
    assert_eq!(other.claim(100).await.len(), 1);
    let counts = "select (select count(*) from lastword.turns) || ' ' || (select count(*) from team_b.turns)";
    assert_eq!(ground.ask(counts).await, "1 1");
}

async fn an_installation_of_an_older_release_stays_where_it_is(server: &Server) {
    let ground = plain(server).await;
    // What a release without a schema of its own did.
    let all =
        sqlx::migrate::Migrator::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations")).await.unwrap();
    let older = all.iter().filter(|migration| migration.version < 22).cloned().collect::<Vec<_>>();
    let older = sqlx::migrate::Migrator { migrations: Cow::Owned(older), ..sqlx::migrate::Migrator::DEFAULT };
    older.run(&mut PgConnection::connect(&ground.url).await.unwrap()).await.unwrap();
    ground
        .run("insert into agents (name, revision, spec) values ('kept', 1, '{\"command\": [\"true\"]}')")
        .await
        .unwrap();

    let store = open(&ground, None);
    assert!(!store.is_migrated().await.unwrap());
    store.migrate().await.unwrap();
    assert!(store.is_migrated().await.unwrap());
    assert!(store.agent("kept").await.unwrap().is_some());
    serves(&ground, store).await;
    assert_eq!(ground.ask("select count(*) from public.turns").await, "1");
    assert_eq!(ground.ask("select to_regnamespace('lastword') is null").await, "true");
    // Replicas of that release go on: their list of migrations is the same, and a newer one is no harm.
    let newest = all.iter().map(|migration| migration.version).max().unwrap();
    assert_eq!(ground.ask("select max(version) from _sqlx_migrations").await, newest.to_string());

    // Who wants a schema beside the old installation says so, and gets a new one.
    let apart = open(&ground, Some("lastword"));
    assert!(!apart.is_migrated().await.unwrap());
    apart.migrate().await.unwrap();
    serves(&ground, apart).await;
    assert_eq!(ground.ask("select count(*) from public.turns").await, "1");
}

async fn a_database_that_is_not_utf8_is_refused_before_anything_is_changed(server: &Server) {
    let ground = server.bare_ground().await;
    ground
        .run("create database latin encoding 'LATIN1' lc_collate 'C' lc_ctype 'C' template template0")
        .await
        .unwrap();
    let (place, _) = ground.url.rsplit_once('/').unwrap();
    let latin = Ground::at(format!("{place}/latin")).await;
    let refused = open(&latin, None).migrate().await.unwrap_err();
    assert!(
        matches!(&refused, StoreError::Broken { why, .. } if why.contains("LATIN1") && why.contains("UTF8")),
        "{refused}"
    );
    let exams = open(&latin, None).examine(&Config::default()).await;
    let found = exams.iter().find(|exam| exam.name == "encoding").unwrap();
    assert_eq!((found.severity, found.finding.as_str()), (Severity::Fault, "LATIN1"));
    let made = "select count(*) from pg_namespace where nspname = 'lastword'";
    assert_eq!(latin.ask(made).await, "0");
}

/// What a function leaves without its schema is looked for where the session looks.
async fn every_function_finds_its_tables_by_itself(server: &Server) {
    let ground = server.ground().await;
    let functions = "select p.proname::text, p.prosrc from pg_proc p
      where p.pronamespace = 'lastword'::regnamespace and p.proname like 'lw\\_%'
        and not coalesce(p.proconfig::text like '%search_path=lastword, pg_temp%', false)";
    let functions: Vec<(String, String)> = sqlx::query_as(functions).fetch_all(&ground.sql).await.unwrap();
    let tables = "select c.relname::text from pg_class c where c.relnamespace = 'lastword'::regnamespace
      and c.relkind in ('r', 'p', 'v') and not c.relispartition";
    let tables: Vec<String> = sqlx::query_scalar(tables).fetch_all(&ground.sql).await.unwrap();
    let lost = regex::Regex::new(&format!(
        r"(?i)(?:\b(?:from|join|into|update|v_\w+)\s+(?:{})\b|(?:^|[^.\w])lw_\w+\s*\()",
        tables.join("|")
    ))
    .unwrap();
    assert!(functions.len() > 20 && tables.len() > 12, "{functions:?} {tables:?}");
    for (name, text) in functions {
        let code = text.lines().map(|line| line.split("--").next().unwrap()).collect::<Vec<_>>().join("\n");
        assert_eq!(lost.find(&code).map(|found| found.as_str()), None, "{name}");
    }
}
