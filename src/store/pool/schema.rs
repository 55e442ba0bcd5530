//! Where in the database this installation stands: one schema for tables, functions and the list of migrations, so
//! that other programs and other installations in the same database are not met, not even by a NOTIFY.
//!
//! Statements name their tables as `lastword.turns`. An installation in another schema has that prefix replaced before
//! a statement is prepared. Functions name it in their texts (migration 22).

use std::{
    borrow::Cow,
    collections::HashMap,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use sqlx::{AssertSqlSafe, Postgres, SqlSafeStr as _, SqlStr};

/// The schema of an installation that names none.
pub const DEFAULT: &str = "lastword";
/// How statements name the schema.
const PREFIX: &str = "lastword.";
/// The list of applied migrations.
const MIGRATIONS: &str = "lw_migrations";
/// The same of an installation that was made before there was a schema.
const FIRST_MIGRATIONS: &str = "_sqlx_migrations";
const FIRST_CHANNEL: &str = "lastword";

/// The schema of one installation. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Schema(Arc<SchemaParts>);

#[derive(Debug)]
struct SchemaParts {
    name: String,
    /// Whether the installation was made by a release that knew no schema: it stays where it is, and older replicas
    /// go on beside newer ones.
    is_first: bool,
    /// Statements as they are sent, by their text. Empty in the default schema.
    placed: Mutex<HashMap<String, Arc<str>>>,
}

impl Schema {
    fn new(name: &str, is_first: bool) -> Schema {
        Schema(Arc::new(SchemaParts { name: name.to_owned(), is_first, placed: Mutex::default() }))
    }

    /// Its name, which needs no quotes.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Whether the installation was made by a release that knew no schema.
    pub(in crate::store) fn is_first(&self) -> bool {
        self.0.is_first
    }

    /// The table of applied migrations, with its schema.
    pub(in crate::store) fn migrations(&self) -> String {
        let table = if self.is_first() { FIRST_MIGRATIONS } else { MIGRATIONS };
        format!("{}.{table}", self.name())
    }

    /// The channel of this installation's notifications.
    pub(in crate::store) fn channel(&self) -> Cow<'static, str> {
        match self.is_first() {
            true => FIRST_CHANNEL.into(),
            false => format!("lastword.{}", self.name()).into(),
        }
    }

    /// A statement as it is sent.
    pub(in crate::store) fn place(&self, sql: SqlStr) -> SqlStr {
        if self.name() == DEFAULT {
            return sql;
        }
        let mut placed = self.0.placed.lock().unwrap_or_else(PoisonError::into_inner);
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

/// Which schema a process uses: the configured one, or the one where an installation is found.
#[derive(Debug)]
pub(in crate::store) struct Choice {
    configured: Option<String>,
    /// Set once an installation was seen.
    found: OnceLock<Schema>,
}

impl Choice {
    pub(in crate::store) fn new(configured: Option<String>) -> Choice {
        Choice { configured, found: OnceLock::new() }
    }

    /// The schema as far as the database of this connection has one: the configured schema or `lastword`; without a
    /// configured one, the only installation that an older release made for this role.
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
