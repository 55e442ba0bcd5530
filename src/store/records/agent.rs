//! An agent at one revision, as a turn runs with it.

use std::sync::Arc;

use crate::{
    agent::{AgentSpec, Runtime, Unread},
    word::Open,
};

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

    /// The agent's runtime, which may be a newer release's.
    pub fn runtime(&self) -> Open<Runtime> {
        self.unread.as_ref().map_or(Open::Known(self.spec.runtime), |unread| unread.runtime.clone())
    }
}
