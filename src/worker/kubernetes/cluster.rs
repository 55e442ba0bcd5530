//! The calls to the Kubernetes API server that this runtime needs.
//!
//! Owns which refusals are final, which may pass, and their wording for clients. Waits at most [`CALL_TIMEOUT`]
//! for an answer. A creation that timed out may have happened, so the caller repeats it under the same pod name.

use std::time::Duration;

use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::{
    Api, Client,
    api::{DeleteParams, PostParams},
    core::Status,
};
use tokio::time::timeout;

use super::manifest::Owner;

/// Timeout of one call.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Client of the API server for one namespace. Cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    pods: Api<Pod>,
    client: Client,
    /// The namespace of the gateway itself.
    own_namespace: String,
    namespace: String,
}

/// Why a call was refused or failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// For clients, as the reason after "could not be started".
    pub message: &'static str,
    /// For operators.
    pub detail: String,
    /// Whether a retry may succeed.
    pub may_pass: bool,
    /// The server's Retry-After, if any.
    pub after: Option<Duration>,
}

impl Cluster {
    /// A client for the cluster this process runs in, or the cluster of its kubeconfig. Pods live in `namespace`,
    /// or in this process's own namespace. Makes no call yet.
    ///
    /// # Errors
    /// No configuration was found, or it is unreadable.
    pub async fn infer(namespace: Option<&str>) -> Result<Self, kube::Error> {
        let config = kube::Config::infer().await.map_err(kube::Error::InferConfig)?;
        Cluster::new(config, namespace)
    }

    /// Like [`infer`](Self::infer), from this configuration.
    ///
    /// # Errors
    /// The configuration is unusable.
    pub fn new(mut config: kube::Config, namespace: Option<&str>) -> Result<Self, kube::Error> {
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        // Retries are made by the caller, within the turn's startup clock.
        config.default_retry = false;
        let own_namespace = config.default_namespace.clone();
        let namespace = namespace.unwrap_or(&own_namespace).to_owned();
        let client = Client::try_from(config)?;
        let pods = Api::namespaced(client.clone(), &namespace);
        Ok(Cluster { pods, client, own_namespace, namespace })
    }

    /// For the watch.
    pub(super) fn pods(&self) -> Api<Pod> {
        self.pods.clone()
    }

    /// Creates a pod. A pod of the same name counts as created.
    pub(super) async fn create(&self, pod: &Pod) -> Result<(), Refusal> {
        match self.call(self.pods.create(&PostParams::default(), pod)).await {
            Ok(_) => Ok(()),
            // Pod names contain the worker's id, so the pod comes from an earlier try whose answer was lost.
            Err(Failed::Said(status)) if status.is_already_exists() => Ok(()),
            Err(failed) => Err(refused(failed)),
        }
    }

    /// Deletes a pod; no error if there is none.
    pub(super) async fn delete(&self, name: &str) -> Result<(), Refusal> {
        match self.call(self.pods.delete(name, &DeleteParams::default())).await {
            Ok(_) => Ok(()),
            Err(Failed::Said(status)) if status.is_not_found() => Ok(()),
            Err(failed) => Err(refused(failed)),
        }
    }

    /// The Deployment that owns new pods; `None` if pods cannot have an owner.
    pub(super) async fn owner(&self, name: &str) -> Result<Option<Owner>, Refusal> {
        if self.own_namespace != self.namespace {
            // Owners do not reach across namespaces: Kubernetes would delete such pods at once.
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

enum Failed {
    /// The server refused.
    Said(Box<Status>),
    /// No answer, or an unreadable one.
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

/// Maps the server's status to a refusal.
fn judged(status: &Status) -> Refusal {
    let is_quota = status.code == 403 && status.message.contains("exceeded quota");
    let (message, may_pass) = match status.code {
        403 if is_quota => ("its namespace has no room for another pod", true),
        403 => ("the cluster does not allow it", false),
        // The gateway's own token may be in renewal.
        401 => ("the cluster does not accept this gateway's credentials", true),
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
        assert_eq!(said(403, "Forbidden", quota), ("its namespace has no room for another pod", true));
        let policy = r#"pods "x" is forbidden: violates PodSecurity "restricted:latest""#;
        assert_eq!(said(403, "Forbidden", policy), ("the cluster does not allow it", false));
        assert!(!said(422, "Invalid", "spec.containers[0].image: Required value").1);
        assert!(!said(404, "NotFound", "namespaces \"x\" not found").1);
        for code in [401, 409, 429, 500, 503, 504] {
            assert!(said(code, "", "").1, "{code}");
        }
    }
}
