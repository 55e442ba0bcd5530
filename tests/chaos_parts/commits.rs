//! A commit whose answer is lost: it happened once, and its client sees a broken connection.

use lastword_devkit::postgres::Postgres;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use sqlx::{Connection as _, Executor as _, PgConnection};

use crate::proxy::{
    Proxy,
    wire::{Answer, Armed, Talk},
};

const INSERT: &str = "insert into marks (mark) values ($1)";
const PATTERN: &str = "insert into marks";

/// A table behind a proxy.
struct Table {
    postgres: Postgres,
    proxy: Proxy,
}

impl Table {
    async fn open() -> Table {
        let postgres = Postgres::for_test().unwrap();
        let proxy = Proxy::start(([127, 0, 0, 1], postgres.port()).into()).unwrap();
        let table = Table { postgres, proxy };
        table.direct().await.execute("create table marks (mark int primary key)").await.unwrap();
        table
    }

    async fn direct(&self) -> PgConnection {
        PgConnection::connect(&self.postgres.url()).await.unwrap()
    }

    async fn by_proxy(&self) -> PgConnection {
        PgConnection::connect(&self.proxy.url_of(&self.postgres.url())).await.unwrap()
    }

    async fn marks(&self) -> Vec<i32> {
        let all = sqlx::query_scalar("select mark from marks order by mark");
        all.fetch_all(&mut self.direct().await).await.unwrap()
    }
}

async fn insert(conn: &mut PgConnection, mark: i32) -> Result<(), sqlx::Error> {
    sqlx::query(INSERT).bind(mark).execute(conn).await.map(|_| ())
}

fn is_broken(outcome: &Result<(), sqlx::Error>) -> bool {
    matches!(outcome, Err(sqlx::Error::Io(_)))
}

#[tokio::test]
async fn a_cut_commit_happened_once_and_its_client_hears_of_a_broken_connection() {
    let table = Table::open().await;
    let mut conn = table.by_proxy().await;
    // Prepared here, so that the cut must know the statement by its name.
    insert(&mut conn, 1).await.unwrap();
    table.proxy.cut_after_commit(1, PATTERN);
    // What does not match passes.
    conn.execute("select 1").await.unwrap();

    let outcome = insert(&mut conn, 2).await;
    assert!(is_broken(&outcome), "{outcome:?}");
    assert_eq!((table.marks().await, table.proxy.cuts_done()), (vec![1, 2], 1));

    // One was asked for, and one only was cut.
    let mut conn = table.by_proxy().await;
    insert(&mut conn, 3).await.unwrap();
    assert_eq!((table.marks().await, table.proxy.cuts_done()), (vec![1, 2, 3], 1));

    table.proxy.cut_after_commit(2, PATTERN);
    for mark in [4, 5] {
        // Fresh: prepared and run for the first time; and by the simple protocol.
        let mut conn = table.by_proxy().await;
        let outcome = if mark == 4 {
            insert(&mut conn, mark).await
        } else {
            sqlx::raw_sql("insert into marks (mark) values (5)").execute(&mut conn).await.map(|_| ())
        };
        assert!(is_broken(&outcome), "{outcome:?}");
    }
    assert_eq!((table.marks().await, table.proxy.cuts_done()), (vec![1, 2, 3, 4, 5], 3));
    insert(&mut table.by_proxy().await, 6).await.unwrap();
}

#[tokio::test]
async fn what_did_not_commit_is_answered_and_the_cut_stays_armed() {
    let table = Table::open().await;
    let mut conn = table.by_proxy().await;
    insert(&mut conn, 1).await.unwrap();
    table.proxy.cut_after_commit(1, PATTERN);

    let refused = insert(&mut conn, 1).await.unwrap_err();
    assert!(refused.as_database_error().is_some_and(|why| why.is_unique_violation()), "{refused}");
    let mut open = conn.begin().await.unwrap();
    insert(&mut open, 2).await.unwrap();
    open.rollback().await.unwrap();
    assert_eq!((table.marks().await, table.proxy.cuts_done()), (vec![1], 0));

    assert!(is_broken(&insert(&mut conn, 3).await));
    assert_eq!((table.marks().await, table.proxy.cuts_done()), (vec![1, 3], 1));
}

#[tokio::test]
async fn a_large_answer_comes_through_the_reading_of_it_unchanged() {
    let table = Table::open().await;
    let question = "select string_agg(md5(n::text), '') from generate_series(1, 200000) n";
    let direct: String = sqlx::query_scalar(question).fetch_one(&mut table.direct().await).await.unwrap();
    let by_proxy: String = sqlx::query_scalar(question).fetch_one(&mut table.by_proxy().await).await.unwrap();
    assert_eq!(direct.len(), 6_400_000);
    assert!(direct == by_proxy, "bytes were changed on their way");
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
    [&[tag], length.as_slice(), body].concat()
}

#[test]
fn messages_are_read_however_they_were_cut_into_pieces() {
    let requests = [
        [8u32.to_be_bytes(), 80_877_103u32.to_be_bytes()].concat(),
        [9u32.to_be_bytes(), 196_608u32.to_be_bytes()].concat(),
        vec![0],
        [message(b'P', b"one\0select 1\0\0\0"), message(b'S', b"")].concat(),
        message(b'P', b"two\0select lw_accept_v1($1)\0\0\0"),
        [message(b'B', b"\0one\0rest"), message(b'E', b"\0\0\0\0\0"), message(b'S', b"")].concat(),
        [message(b'B', b"\0two\0rest"), message(b'E', b"\0\0\0\0\0"), message(b'S', b"")].concat(),
    ]
    .concat();
    let heard = [
        b"N".to_vec(),
        [message(b'R', &[0; 4]), message(b'Z', b"I")].concat(),
        [message(b'1', b""), message(b'Z', b"I")].concat(),
        [message(b'1', b""), message(b'2', b""), message(b'D', b"row"), message(b'C', b"SELECT 1\0")]
            .concat(),
        message(b'Z', b"I"),
    ]
    .concat();
    let unheard =
        [message(b'2', b""), message(b'D', b"secret"), message(b'C', b"SELECT 1\0"), message(b'Z', b"I")]
            .concat();
    let answers = [heard.clone(), unheard].concat();
    for seed in 0..200 {
        let mut chance = StdRng::seed_from_u64(seed);
        let mut pieces = |bytes: &[u8]| {
            let (mut rest, mut pieces) = (bytes, Vec::new());
            while !rest.is_empty() {
                let (piece, after) = rest.split_at(chance.random_range(1..=rest.len().min(12)));
                pieces.push(piece.to_vec());
                rest = after;
            }
            pieces
        };
        let mut talk = Talk::default();
        let mut armed = Armed { left: 1, pattern: "lw_accept_v1".to_owned(), done: 0 };
        pieces(&requests).iter().for_each(|piece| talk.request(piece, &mut armed));
        let (mut passed, mut is_cut) = (Vec::new(), false);
        for piece in pieces(&answers) {
            match talk.answer(&piece, &mut armed) {
                Answer::Pass(bytes) => passed.extend(bytes),
                Answer::Cut => is_cut = true,
            }
        }
        assert!(is_cut && armed.done == 1 && armed.left == 0, "seed {seed}: {armed:?}");
        assert!(passed == heard, "seed {seed}: {}", String::from_utf8_lossy(&passed));
    }
}
