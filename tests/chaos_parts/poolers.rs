//! The pooler: transactions of one client go to several backends, and prepared statements with them.

use lastword_devkit::postgres::Postgres;
use sqlx::{Connection as _, PgConnection};

use crate::pooler::{Pooler, version_in};

#[test]
fn a_pooler_that_knows_no_prepared_statements_is_refused_by_its_version() {
    for (said, found) in [
        ("PgBouncer 1.18.0\nlibevent 2.1", Err("PgBouncer 1.18.0 knows no prepared statements; 1.21 does")),
        ("PgBouncer 1.21.0\n", Ok("1.21.0")),
        ("PgBouncer 2.0.1\n", Ok("2.0.1")),
        ("bash: no", Err("not a version of PgBouncer: `bash: no`")),
    ] {
        let version = version_in(said);
        assert_eq!(version.as_deref().map_err(String::as_str), found);
    }
}

#[tokio::test]
async fn transactions_of_one_client_go_to_several_backends() {
    let pooler = Pooler::find().unwrap();
    let postgres = Postgres::for_test().unwrap();
    let pool = pooler.start(&postgres.url(), 4).unwrap();
    let mut one = PgConnection::connect(&pool.url()).await.unwrap();
    let mut other = PgConnection::connect(&pool.url()).await.unwrap();
    // Holds a backend, so that there must be a second.
    let mut held = other.begin().await.unwrap();
    sqlx::query("select 1").execute(&mut *held).await.unwrap();
    let mut backends = std::collections::HashSet::new();
    backends.insert(backend(&mut one).await);
    held.rollback().await.unwrap();
    for _ in 0..4 {
        backends.insert(backend(&mut one).await);
    }
    assert_eq!(backends.len(), 2, "{}", pool.log());
}

/// By a prepared statement, made once and used on whichever backend there is.
async fn backend(conn: &mut PgConnection) -> i32 {
    sqlx::query_scalar("select pg_backend_pid() + $1").bind(0).fetch_one(conn).await.unwrap()
}
