//! The cluster: the few calls to the API server that this runtime needs, and what its refusals mean.
//!
//! Owns which refusal is for good, which may pass, and the words for the person who waits. Refuses to wait
//! longer than [`CALL_TIMEOUT`] for an answer: a creation without one may have happened, and is asked for again
//! under the same name.

use std::time::Duration;

use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::{
    Api, Client,
    api::{DeleteParams, PostParams},
    core::Status,
};
use tokio::time::timeout;

use super::manifest::Owner;

/// How long an answer may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Where pods are made, watched and deleted. Cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    pods: Api<Pod>,
    client: Client,
    /// Where this gateway itself runs.
    own_namespace: String,
    namespace: String,
}

/// Why something was not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// For a person, to be put behind "could not be started".
    pub message: &'static str,
    /// For operators.
    pub detail: String,
    /// Whether the same may be done later.
    pub may_pass: bool,
    /// How long the server wants to be left alone.
    pub after: Option<Duration>,
}

impl Cluster {
    /// The cluster that this process runs in, or that its kubeconfig names. Pods live in `namespace`, or where
    /// this process does. Nothing is called yet.
    ///
    /// # Errors
    /// Where there is neither, or it cannot be read.
    pub async fn infer(namespace: Option<&str>) -> Result<Self, kube::Error> {
        let config = kube::Config::infer().await.map_err(kube::Error::InferConfig)?;
        Cluster::new(config, namespace)
    }

    /// The same, of this configuration.
    ///
    /// # Errors
    /// What of it cannot be used.
    pub fn new(mut config: kube::Config, namespace: Option<&str>) -> Result<Self, kube::Error> {
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        // Backing off is done here, within a turn's clock.
        config.default_retry = false;
        let own_namespace = config.default_namespace.clone();
        let namespace = namespace.unwrap_or(&own_namespace).to_owned();
        let client = Client::try_from(config)?;
        let pods = Api::namespaced(client.clone(), &namespace);
        Ok(Cluster { pods, client, own_namespace, namespace })
    }

    /// Pods, to be watched.
    pub(super) fn pods(&self) -> Api<Pod> {
        self.pods.clone()
    }

    /// Creates a pod; one of its name counts as this one.
    pub(super) async fn create(&self, pod: &Pod) -> Result<(), Refusal> {
        match self.call(self.pods.create(&PostParams::default(), pod)).await {
            Ok(_) => Ok(()),
            // Named after its worker: an earlier try, whose answer was lost.
            Err(Failed::Said(status)) if status.is_already_exists() => Ok(()),
            Err(failed) => Err(refused(failed)),
        }
    }

    /// Deletes a pod, if it is there.
    pub(super) async fn delete(&self, name: &str) -> Result<(), Refusal> {
        match self.call(self.pods.delete(name, &DeleteParams::default())).await {
            Ok(_) => Ok(()),
            Err(Failed::Said(status)) if status.is_not_found() => Ok(()),
            Err(failed) => Err(refused(failed)),
        }
    }

    /// The Deployment that new pods belong to; `None` where they cannot.
    pub(super) async fn owner(&self, name: &str) -> Result<Option<Owner>, Refusal> {
        if self.own_namespace != self.namespace {
            // An owner in another namespace would be none: its pods would be deleted at once.
            return Ok(None);
        }
        let deployments: Api<Deployment> = Api::namespaced(self.client.clone(), &self.own_namespace);
        match self.call(deployments.get_metadata(name)).await {
            Ok(found) => Ok(found.metadata.uid.map(|uid| Owner { name: name.to_owned(), uid })),
            Err(Failed::Said(status)) if status.is_not_found() || status.is_forbidden() => {
                tracing::warn!(
                    name,
                    why = status.message,
                    "worker pods have no owner: they outlive an uninstall"
                );
                Ok(None)
            }
            Err(failed) => Err(refused(failed)),
        }
    }

    async fn call<T>(&self, call: impl Future<Output = Result<T, kube::Error>>) -> Result<T, Failed> {
        match timeout(CALL_TIMEOUT, call).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(kube::Error::Api(status))) => Err(Failed::Said(status)),
            Ok(Err(why)) => Err(Failed::Unheard(why.to_string())),
            Err(_) => Err(Failed::Unheard("no answer in time".to_owned())),
        }
    }
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

/// Why a call came to nothing.
enum Failed {
    /// The server said no.
    Said(Box<Status>),
    /// It said nothing, or nothing that can be understood.
    Unheard(String),
}

fn refused(failed: Failed) -> Refusal {
    match failed {
        Failed::Said(status) => judged(&status),
        Failed::Unheard(detail) => {
            Refusal { message: "the cluster cannot be reached", detail, may_pass: true, after: None }
        }
    }
}

/// What the server's no means.
fn judged(status: &Status) -> Refusal {
    let is_quota = status.code == 403 && status.message.contains("exceeded quota");
    let (message, may_pass) = match status.code {
        403 if is_quota => ("its namespace has no room for another one", true),
        403 => ("the cluster does not allow it", false),
        // A token that is just being renewed.
        401 => ("the cluster does not know this gateway", true),
        409 | 429 => ("the cluster is too busy", true),
        500.. => ("the cluster cannot do it now", true),
        _ => ("the cluster does not accept its pod", false),
    };
    let seconds = status.details.as_ref().map(|details| details.retry_after_seconds).filter(|n| *n > 0);
    Refusal {
        message,
        detail: format!("{} {}: {}", status.code, status.reason, status.message),
        may_pass,
        after: seconds.map(|n| Duration::from_secs(n.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_whether_it_may_pass() {
        let said = |code: u16, reason: &str, message: &str| {
            let refusal = judged(&Status::failure(message, reason).with_code(code));
            (refusal.message, refusal.may_pass)
        };
        let quota = r#"pods "x" is forbidden: exceeded quota: pods, requested: pods=1, used: pods=5, limited: pods=5"#;
        assert_eq!(said(403, "Forbidden", quota), ("its namespace has no room for another one", true));
        let policy = r#"pods "x" is forbidden: violates PodSecurity "restricted:latest""#;
        assert_eq!(said(403, "Forbidden", policy), ("the cluster does not allow it", false));
        assert!(!said(422, "Invalid", "spec.containers[0].image: Required value").1);
        assert!(!said(404, "NotFound", "namespaces \"x\" not found").1);
        for code in [401, 409, 429, 500, 503, 504] {
            assert!(said(code, "", "").1, "{code}");
        }
    }
}
