//! A statement that returns rows, as the macros of sqlx make it: of records, or of single values.

use sqlx::{
    FromRow, Postgres,
    postgres::{PgArguments, PgRow},
    query::{Map, QueryScalar},
};

use super::conn::Conn;

/// A statement that returns rows.
pub(in crate::store) trait RowQuery: Send {
    /// What one row is read as.
    type Row;

    /// All rows.
    fn all(self, conn: &mut Conn) -> impl Future<Output = Result<Vec<Self::Row>, sqlx::Error>> + Send;

    /// The first row, if there is any.
    fn first(self, conn: &mut Conn) -> impl Future<Output = Result<Option<Self::Row>, sqlx::Error>> + Send;
}

impl<O, F> RowQuery for Map<'_, Postgres, F, PgArguments>
where
    F: FnMut(PgRow) -> Result<O, sqlx::Error> + Send,
    O: Send + Unpin,
{
    type Row = O;

    async fn all(self, conn: &mut Conn) -> Result<Vec<O>, sqlx::Error> {
        self.fetch_all(conn).await
    }

    async fn first(self, conn: &mut Conn) -> Result<Option<O>, sqlx::Error> {
        self.fetch_optional(conn).await
    }
}

impl<O> RowQuery for QueryScalar<'_, Postgres, O, PgArguments>
where
    (O,): for<'r> FromRow<'r, PgRow>,
    O: Send + Unpin,
{
    type Row = O;

    async fn all(self, conn: &mut Conn) -> Result<Vec<O>, sqlx::Error> {
        self.fetch_all(conn).await
    }

    async fn first(self, conn: &mut Conn) -> Result<Option<O>, sqlx::Error> {
        self.fetch_optional(conn).await
    }
}
