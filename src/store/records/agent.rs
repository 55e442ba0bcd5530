//! An agent at one revision, as a turn runs with it.

use std::sync::Arc;

use crate::agent::{AgentSpec, Unread};

/// An agent at one revision.
#[derive(Debug, Clone, PartialEq)]
pub struct Agent {
    /// The agent's name.
    pub name: String,
    /// The revision, from 1.
    pub revision: i32,
    /// The stored spec, as far as this release understands it.
    pub spec: Arc<AgentSpec>,
    /// The parts of the stored spec that this release does not understand. Such an agent is not run here.
    pub unread: Option<Arc<Unread>>,
}

impl Agent {
    /// An agent whose spec this release understands completely.
    pub fn new(name: impl Into<String>, revision: i32, spec: AgentSpec) -> Agent {
        Agent { name: name.into(), revision, spec: Arc::new(spec), unread: None }
    }

    /// The name of the agent's runtime, which may be a newer release's.
    pub fn runtime(&self) -> &str {
        self.unread.as_ref().map_or_else(|| self.spec.runtime.as_str(), |unread| &unread.runtime)
    }
}
