//! A cache of agents.
//!
//! A revision never changes, so each is read once. The cached newest revision may be stale: an accept with a stale
//! revision is refused (`LW412`), and its caller reads the agent again.

use std::collections::{BTreeSet, HashMap};

use parking_lot::Mutex;

use crate::store::records::agent::Agent;

/// Revisions kept. At the limit the whole cache is cleared.
const REMEMBERED_MAX: usize = 1024;

/// The cache of one process.
#[derive(Debug, Default)]
pub(in crate::store) struct AgentCache {
    revisions: Mutex<HashMap<(String, i32), Agent>>,
    newest: Mutex<HashMap<String, i32>>,
    /// Revisions that this release understands only in part, as [`revision_key`] writes them.
    unserved: Mutex<BTreeSet<String>>,
}

impl AgentCache {
    /// A cached revision of an agent.
    pub(in crate::store) fn revision(&self, name: &str, revision: i32) -> Option<Agent> {
        self.revisions.lock().get(&(name.to_owned(), revision)).cloned()
    }

    /// The newest cached revision; the database may have a newer one.
    pub(in crate::store) fn newest(&self, name: &str) -> Option<Agent> {
        let revision = self.newest.lock().get(name).copied()?;
        self.revision(name, revision)
    }

    /// Caches a revision.
    pub(in crate::store) fn keep(&self, agent: &Agent) {
        if let Some(unread) = &agent.unread {
            self.note_unserved(agent, &unread.fields);
        }
        let mut revisions = self.revisions.lock();
        if revisions.len() >= REMEMBERED_MAX {
            revisions.clear();
        }
        revisions.insert((agent.name.clone(), agent.revision), agent.clone());
    }

    /// Caches an agent's newest revision.
    pub(in crate::store) fn keep_newest(&self, agent: &Agent) {
        self.keep(agent);
        self.newest.lock().insert(agent.name.clone(), agent.revision);
    }

    /// Drops the newest revision: the next use reads the database.
    pub(in crate::store) fn forget_newest(&self, name: &str) {
        self.newest.lock().remove(name);
    }

    /// Revisions seen by this process that this release understands only in part: claims exclude them.
    pub(in crate::store) fn unserved(&self) -> Vec<String> {
        self.unserved.lock().iter().cloned().collect()
    }

    fn note_unserved(&self, agent: &Agent, fields: &[String]) {
        let mut unserved = self.unserved.lock();
        if unserved.len() >= REMEMBERED_MAX {
            unserved.clear();
        }
        if unserved.insert(revision_key(&agent.name, agent.revision)) {
            tracing::warn!(
                agent = agent.name,
                revision = agent.revision,
                ?fields,
                "a newer release has stored this agent: its turns are left to newer replicas"
            );
        }
    }
}

/// A revision as claims name it: `name@revision`.
fn revision_key(name: &str, revision: i32) -> String {
    format!("{name}@{revision}")
}
