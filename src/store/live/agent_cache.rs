//! Agents that this process remembers.
//!
//! A revision never changes, so it is read once. The newest one may be old by the time it is used: an accept with it is
//! refused then, and asks again.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::store::records::agent::Agent;

/// Revisions that are remembered; more, and all are forgotten.
const REMEMBERED_MAX: usize = 1024;

/// What this process remembers.
#[derive(Debug, Default)]
pub(in crate::store) struct AgentCache {
    revisions: Mutex<HashMap<(String, i32), Agent>>,
    newest: Mutex<HashMap<String, i32>>,
    /// Revisions that this release does not understand whole, as [`revision_key`] has them.
    unserved: Mutex<BTreeSet<String>>,
}

impl AgentCache {
    /// This revision of an agent, where it is remembered.
    pub(in crate::store) fn revision(&self, name: &str, revision: i32) -> Option<Agent> {
        lock(&self.revisions).get(&(name.to_owned(), revision)).cloned()
    }

    /// The newest revision that is remembered; there may be a newer one.
    pub(in crate::store) fn newest(&self, name: &str) -> Option<Agent> {
        let revision = lock(&self.newest).get(name).copied()?;
        self.revision(name, revision)
    }

    /// Remembers a revision.
    pub(in crate::store) fn keep(&self, agent: &Agent) {
        if let Some(unread) = &agent.unread {
            self.note_unserved(agent, &unread.fields);
        }
        let mut revisions = lock(&self.revisions);
        if revisions.len() >= REMEMBERED_MAX {
            revisions.clear();
        }
        revisions.insert((agent.name.clone(), agent.revision), agent.clone());
    }

    /// The same of an agent's newest revision.
    pub(in crate::store) fn keep_newest(&self, agent: &Agent) {
        self.keep(agent);
        lock(&self.newest).insert(agent.name.clone(), agent.revision);
    }

    /// There is a newer revision: the next use reads it.
    pub(in crate::store) fn forget_newest(&self, name: &str) {
        lock(&self.newest).remove(name);
    }

    /// Revisions that this process has met and does not understand whole, as the claims name them.
    pub(in crate::store) fn unserved(&self) -> Vec<String> {
        lock(&self.unserved).iter().cloned().collect()
    }

    fn note_unserved(&self, agent: &Agent, fields: &[String]) {
        let mut unserved = lock(&self.unserved);
        if unserved.len() >= REMEMBERED_MAX {
            unserved.clear();
        }
        if unserved.insert(revision_key(&agent.name, agent.revision)) {
            tracing::warn!(
                agent = agent.name,
                revision = agent.revision,
                ?fields,
                "an agent of a newer release: its turns are left to replicas that understand it"
            );
        }
    }
}

/// A revision as the claims name it.
fn revision_key(name: &str, revision: i32) -> String {
    format!("{name}@{revision}")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
