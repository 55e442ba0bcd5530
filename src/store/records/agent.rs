//! An agent as a turn runs with it.

use std::sync::Arc;

use crate::agent::{AgentSpec, Unread};

/// An agent at one revision.
#[derive(Debug, Clone, PartialEq)]
pub struct Agent {
    /// Its name.
    pub name: String,
    /// Counts from 1.
    pub revision: i32,
    /// How its workers run, as far as this release understands the stored spec.
    pub spec: Arc<AgentSpec>,
    /// What this release does not understand of the stored spec; such an agent is not run here.
    pub unread: Option<Arc<Unread>>,
}

impl Agent {
    /// An agent that this release understands whole.
    pub fn new(name: impl Into<String>, revision: i32, spec: AgentSpec) -> Agent {
        Agent { name: name.into(), revision, spec: Arc::new(spec), unread: None }
    }

    /// The name of its runtime, which may be of a newer release.
    pub fn runtime(&self) -> &str {
        self.unread.as_ref().map_or_else(|| self.spec.runtime.as_str(), |unread| &unread.runtime)
    }
}
