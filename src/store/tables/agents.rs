//! Agents: put, read, list, delete. Every revision is kept.
//!
//! The cache is in [`crate::store::live::agent_cache`].

use std::sync::Arc;

use chrono::{DateTime, Utc};

use crate::{
    agent::{AgentSpec, READS, StoredSpec, reader_min},
    store::{error::StoreError, handle::Store, records::agent::Agent},
};

/// An agent with the time of its newest revision.
#[derive(Debug, Clone)]
pub struct AgentRow {
    /// The agent at its newest revision.
    pub agent: Agent,
    /// When this revision was put.
    pub created_at: DateTime<Utc>,
}

impl Store {
    /// The agent for a new turn, from the cache or the database; `None` if there is none. The revision may be stale.
    pub async fn agent_to_use(&self, name: &str) -> Result<Option<Agent>, StoreError> {
        if let Some(agent) = self.agent_cache().newest(name) {
            return Ok(Some(agent));
        }
        let Some(row) = self.agent(name).await? else { return Ok(None) };
        self.agent_cache().keep_newest(&row.agent);
        Ok(Some(row.agent))
    }

    /// Drops the cached newest revision: the next use reads the database.
    pub fn forget_newest(&self, name: &str) {
        self.agent_cache().forget_newest(name);
    }

    /// Puts a spec; `None` deletes the agent. The same spec again makes no new revision. Returns the revision, and
    /// whether it is new.
    pub async fn put_agent(&self, name: &str, spec: Option<&AgentSpec>) -> Result<(i32, bool), StoreError> {
        let text = spec.map(serde_json::to_string).transpose();
        let text = text.map_err(|why| StoreError::unreadable("put_agent", why))?;
        self.put_agent_text(name, text.as_deref()).await
    }

    /// As [`Store::put_agent`], from the spec's JSON text. If the text has fields of a newer release, the agent's reader
    /// level stays: only that release knows what they need.
    pub async fn put_agent_text(&self, name: &str, text: Option<&str>) -> Result<(i32, bool), StoreError> {
        let reader_min = text.map(level).transpose()?.flatten();
        let query = sqlx::query!(
            r#"select o_revision as "revision!", o_is_new as "is_new!" from lastword.lw_agent_put_v2($1, $2, $3)"#,
            name,
            text,
            reader_min
        );
        let row = self.fetch_one("put_agent", query).await?;
        Ok((row.revision, row.is_new))
    }

    /// The newest revision of an agent; `None` if there is none or the agent was deleted.
    pub async fn agent(&self, name: &str) -> Result<Option<AgentRow>, StoreError> {
        let query = sqlx::query!(
            "select revision, spec, reader_min, created_at from lastword.agents
              where name = $1 order by revision desc limit 1",
            name
        );
        let row = self.fetch_optional("agent", query).await?;
        row.and_then(|row| {
            row.spec.map(|spec| read(name, row.revision, &spec, row.reader_min, row.created_at))
        })
        .transpose()
    }

    /// One revision of an agent, for turns accepted with it; also if the agent was deleted since.
    pub async fn agent_at(&self, name: &str, revision: i32) -> Result<Option<Agent>, StoreError> {
        if let Some(agent) = self.agent_cache().revision(name, revision) {
            return Ok(Some(agent));
        }
        let query = sqlx::query!(
            "select spec, reader_min, created_at from lastword.agents where name = $1 and revision = $2",
            name,
            revision
        );
        let row = self.fetch_optional("agent_at", query).await?;
        let agent = row
            .and_then(|row| row.spec.map(|spec| read(name, revision, &spec, row.reader_min, row.created_at)));
        let agent = agent.transpose()?.map(|row| row.agent);
        if let Some(agent) = &agent {
            self.agent_cache().keep(agent);
        }
        Ok(agent)
    }

    /// Agents by name, after the name `after`, at most `limit`.
    pub async fn agents(&self, after: Option<&str>, limit: i64) -> Result<Vec<AgentRow>, StoreError> {
        let query = sqlx::query!(
            r#"
            -- From one name to the next, so that old revisions are passed over unread.
            with recursive names (name) as (
              (select min(a.name) from lastword.agents a where a.name > coalesce($1, ''))
              union all
              select (select min(a.name) from lastword.agents a where a.name > n.name)
                from names n where n.name is not null)
            select a.name as "name!", a.revision as "revision!", a.spec as "spec!",
                   a.reader_min as "reader_min!", a.created_at as "created_at!"
              from names n
             cross join lateral (
               select * from lastword.agents a where a.name = n.name order by a.name desc, a.revision desc limit 1) a
             where a.spec is not null
             limit $2
            "#,
            after,
            limit
        );
        let rows = self.fetch_all("agents", query).await?;
        rows.into_iter()
            .map(|row| read(&row.name, row.revision, &row.spec, row.reader_min, row.created_at))
            .collect()
    }
}

/// The reader level that the text of a spec needs; `None` if this release does not understand all of the text.
fn level(text: &str) -> Result<Option<i32>, StoreError> {
    let unreadable = |why| StoreError::unreadable("put_agent", why);
    let StoredSpec { unread, .. } = StoredSpec::read(text, READS).map_err(unreadable)?;
    let spec = serde_json::from_str(text).map_err(unreadable)?;
    Ok(unread.is_none().then(|| reader_min(&spec)))
}

fn read(
    name: &str,
    revision: i32,
    spec: &str,
    reader_min: i32,
    created_at: DateTime<Utc>,
) -> Result<AgentRow, StoreError> {
    let StoredSpec { spec, unread } =
        StoredSpec::read(spec, reader_min).map_err(|why| StoreError::unreadable("agent", why))?;
    let agent = Agent { unread: unread.map(Arc::new), ..Agent::new(name, revision, spec) };
    Ok(AgentRow { agent, created_at })
}
