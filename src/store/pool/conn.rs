//! A connection whose statements are rewritten to the schema of its installation.

use futures_util::{future::BoxFuture, stream::BoxStream};
use sqlx::{
    Database, Either, Execute, Executor, PgConnection, Postgres, SqlStr,
    error::BoxDynError,
    postgres::{PgQueryResult, PgRow, PgStatement, PgTypeInfo},
};

use super::schema::Schema;

/// A connection to one installation.
#[derive(Debug)]
pub(in crate::store) struct Conn {
    /// The driver's connection, for commands that name no table.
    pub(in crate::store) bare: PgConnection,
    pub(in crate::store) schema: Schema,
}

impl<'c> Executor<'c> for &'c mut Conn {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(
        self,
        query: E,
    ) -> BoxStream<'e, Result<Either<PgQueryResult, PgRow>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        self.bare.fetch_many(Placed { query, schema: self.schema.clone() })
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        self.bare.fetch_optional(Placed { query, schema: self.schema.clone() })
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, Result<PgStatement, sqlx::Error>>
    where
        'c: 'e,
    {
        self.bare.prepare_with(self.schema.place(sql), parameters)
    }

    #[doc(hidden)]
    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<sqlx::Describe<Postgres>, sqlx::Error>>
    where
        'c: 'e,
    {
        self.bare.describe(self.schema.place(sql))
    }
}

/// A query whose text is rewritten to a schema.
struct Placed<E> {
    query: E,
    schema: Schema,
}

impl<'q, E: Execute<'q, Postgres>> Execute<'q, Postgres> for Placed<E> {
    fn sql(self) -> SqlStr {
        self.schema.place(self.query.sql())
    }

    fn statement(&self) -> Option<&PgStatement> {
        self.query.statement()
    }

    fn take_arguments(&mut self) -> Result<Option<<Postgres as Database>::Arguments>, BoxDynError> {
        self.query.take_arguments()
    }

    fn persistent(&self) -> bool {
        self.query.persistent()
    }
}
