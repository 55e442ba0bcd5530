//! The schema of this installation. One schema holds the tables, the functions and the list of migrations, so that
//! other programs and other installations in the same database are unaffected, even by a NOTIFY.
//!
//! Statements name their tables as `lastword.turns`. For an installation in another schema the prefix is replaced
//! before the statement is prepared. Functions have the schema's name in their bodies (migration 22).

use std::{
    borrow::Cow,
    collections::HashMap,
    sync::{Arc, OnceLock},
};

use parking_lot::Mutex;
use sqlx::{AssertSqlSafe, Postgres, SqlSafeStr as _, SqlStr};

/// The default schema.
pub const DEFAULT: &str = "lastword";
/// The prefix of table names in statements.
const PREFIX: &str = "lastword.";
/// The table of applied migrations.
const MIGRATIONS: &str = "lw_migrations";
/// The same table, in an installation made by a release before schemas.
const FIRST_MIGRATIONS: &str = "_sqlx_migrations";
const FIRST_CHANNEL: &str = "lastword";

/// The schema of one installation. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Schema(Arc<SchemaParts>);

#[derive(Debug)]
struct SchemaParts {
    name: String,
    /// Whether a release before schemas made this installation. Its tables stay where they are, so that older replicas
    /// can run beside newer ones.
    is_first: bool,
    /// Rewritten statements by their original text. Empty for the default schema.
    placed: Mutex<HashMap<String, Arc<str>>>,
}

impl Schema {
    fn new(name: &str, is_first: bool) -> Schema {
        Schema(Arc::new(SchemaParts { name: name.to_owned(), is_first, placed: Mutex::default() }))
    }

    /// The schema's name, which needs no quotes.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Whether a release before schemas made this installation.
    pub(in crate::store) fn is_first(&self) -> bool {
        self.0.is_first
    }

    /// The table of applied migrations, qualified with the schema.
    pub(in crate::store) fn migrations(&self) -> String {
        let table = if self.is_first() { FIRST_MIGRATIONS } else { MIGRATIONS };
        format!("{}.{table}", self.name())
    }

    /// The NOTIFY channel of this installation.
    pub(in crate::store) fn channel(&self) -> Cow<'static, str> {
        match self.is_first() {
            true => FIRST_CHANNEL.into(),
            false => format!("lastword.{}", self.name()).into(),
        }
    }

    /// Rewrites a statement to this schema.
    pub(in crate::store) fn place(&self, sql: SqlStr) -> SqlStr {
        if self.name() == DEFAULT {
            return sql;
        }
        let mut placed = self.0.placed.lock();
        let text = match placed.get(sql.as_str()) {
            Some(text) => text.clone(),
            None => {
                let text: Arc<str> = sql.as_str().replace(PREFIX, &format!("{}.", self.name())).into();
                placed.insert(sql.as_str().to_owned(), text.clone());
                text
            }
        };
        AssertSqlSafe(text).into_sql_str()
    }
}

/// The choice of a schema: the configured one, or the one of an existing installation.
#[derive(Debug)]
pub(in crate::store) struct Choice {
    configured: Option<String>,
    /// Set once an installation was found.
    found: OnceLock<Schema>,
}

impl Choice {
    pub(in crate::store) fn new(configured: Option<String>) -> Choice {
        Choice { configured, found: OnceLock::new() }
    }

    /// The schema to use in the database of this connection: the configured schema, or `lastword`. Without a configured
    /// schema, an installation of an older release is used instead if this role owns exactly one.
    pub(in crate::store) async fn of<'c, C>(&self, conn: C) -> Result<Schema, sqlx::Error>
    where
        C: sqlx::Executor<'c, Database = Postgres>,
    {
        if let Some(schema) = self.found.get() {
            return Ok(schema.clone());
        }
        let installed = sqlx::query!(
            r#"
            select n.nspname::text as "name!", pg_get_userbyid(p.proowner) = current_user as "is_ours!",
                   to_regclass(format('%I.lw_migrations', n.nspname)) is null as "is_first!"
              from pg_proc p join pg_namespace n on n.oid = p.pronamespace
             where p.proname = 'lw_accept_v1'
            "#
        )
        .fetch_all(conn)
        .await?;
        let wanted = self.configured.as_deref().unwrap_or(DEFAULT);
        let mut older = installed.iter().filter(|there| there.is_ours && there.is_first);
        let older = older.next().filter(|_| self.configured.is_none() && older.next().is_none());
        let found = installed.iter().find(|there| there.name == wanted).or(older);
        Ok(match found {
            Some(there) => {
                let schema = Schema::new(&there.name, there.is_first);
                self.found.get_or_init(|| schema).clone()
            }
            None => Schema::new(wanted, false),
        })
    }
}
