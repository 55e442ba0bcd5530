//! Stand-in for `kubernetes` in a build without that feature: [`Pods`] cannot be constructed.

use std::convert::Infallible;

use super::{deps::Deps, turn::Job};
use crate::{config::Config, store::Store, task::Supervisor};

/// Never constructed in this build.
#[derive(Debug, Clone)]
pub struct Pods(Infallible);

/// Always `None`.
///
/// # Errors
/// None: [`Config::validate`] refuses a configuration that asks for pods.
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
