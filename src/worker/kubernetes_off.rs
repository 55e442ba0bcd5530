//! The runtime `kubernetes` where it is not in the build: there are no pods, and no value of their type.

use std::convert::Infallible;

use super::{deps::Deps, turn::Job};
use crate::{config::Config, store::Store, task::Supervisor};

/// The pods of a fleet: none.
#[derive(Debug, Clone)]
pub struct Pods(Infallible);

/// Refused: see [`Config::validate`].
///
/// # Errors
/// None; a configuration that asks for pods is refused before.
pub async fn connect(_config: &Config, _url: &str) -> Result<Option<Pods>, Infallible> {
    Ok(None)
}

impl Pods {
    /// Cannot be called.
    pub fn start(&self, _supervisor: &Supervisor, _store: &Store) {
        match self.0 {}
    }
}

pub(super) async fn serve(_deps: &Deps, pods: &Pods, _job: Job) {
    match pods.0 {}
}
