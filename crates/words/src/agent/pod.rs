//! The pod template in the spec of an agent whose runtime is `kubernetes`.
//!
//! Owns the fields, their defaults and the checks before the spec is stored: otherwise the cluster would refuse the
//! pod later, at the first turn, and not tell the author of the spec. Refuses everything that gives a worker's pod
//! more than a worker needs: other containers, the host's namespaces, host volumes.
//!
//! A template names Secrets and never contains them: the kubelet reads them, and the gateway has no right to.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::invalid::InvalidSpec;
use crate::units::Span;

/// The template of each conversation's pod.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PodTemplate {
    /// The image of the worker.
    pub image: String,
    /// A program in the image that calls the gateway itself and gets the agent's `command` as its arguments; `[]` is
    /// the image's entry point. If absent, `lastword work` runs the agent's `command`: then the image must have
    /// `lastword` in its `PATH`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// When the image is pulled: `Always`, `IfNotPresent` or `Never`. If absent, the cluster's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_pull_policy: Option<PullPolicy>,
    /// Secrets with credentials for the image's registry.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub image_pull_secrets: Vec<String>,
    /// Environment variables of the worker from Secrets, which must be in the pod's namespace.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, SecretKey>,
    /// The worker's resource requests and limits. `limits.memory` of the agent applies unless a memory limit is given
    /// here.
    #[serde(default)]
    pub resources: Resources,
    /// Labels that the node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Node taints that the pod tolerates.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Vec<Toleration>,
    /// A PriorityClass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority_class: Option<String>,
    /// A RuntimeClass, such as one that isolates better.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime_class: Option<String>,
    /// The ServiceAccount of the pod. If absent, the namespace's `default`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account: Option<String>,
    /// Whether the worker gets the ServiceAccount's token.
    #[serde(default)]
    pub mount_service_account_token: bool,
    /// The user id of the worker. If absent, the image's own. Never root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub run_as_user: Option<i64>,
    /// Whether the root file system is writable. `/workspace` and `/tmp` always are.
    #[serde(default)]
    pub writable_root: bool,
    /// Labels in addition to the runtime's own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations in addition to the runtime's own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// How long a turn waits for a node with free capacity, as part of its startup timeout. By default 0: without
    /// capacity, the turn fails at once. Set this to the time that the cluster needs to add a node.
    #[serde(default = "no_wait")]
    #[schema(value_type = String, example = "0s")]
    pub wait_for_node: Span,
    /// The age at which a pod is replaced before its next turn.
    #[serde(default = "default_lifetime")]
    #[schema(value_type = String, example = "12h")]
    pub lifetime: Span,
    /// The time from the stop request to the kill. A running turn has this time minus 5 s to end.
    #[serde(default = "default_grace")]
    #[schema(value_type = String, example = "30s")]
    pub stop_grace: Span,
}

/// When an image is pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum PullPolicy {
    /// At every start.
    Always,
    /// If the node does not have the image.
    IfNotPresent,
    /// Never: the node must have the image.
    Never,
}

impl PullPolicy {
    /// The name in Kubernetes.
    pub const fn as_str(self) -> &'static str {
        match self {
            PullPolicy::Always => "Always",
            PullPolicy::IfNotPresent => "IfNotPresent",
            PullPolicy::Never => "Never",
        }
    }
}

/// One key of a Secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SecretKey {
    /// The name of the Secret.
    pub secret: String,
    /// The key in the Secret.
    pub key: String,
    /// Whether the worker also starts without the key.
    #[serde(default)]
    pub optional: bool,
}

/// Resource requests and limits, in Kubernetes' notation: `cpu = "500m"`, `memory = "1Gi"`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Resources {
    /// Resources reserved for the worker.
    pub requests: BTreeMap<String, String>,
    /// The most that the worker may use.
    pub limits: BTreeMap<String, String>,
}

/// A taint that the pod tolerates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Toleration {
    /// The taint's key. If absent, every key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The taint's value. If absent, every value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`. If absent, every effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effect: Option<String>,
}

fn no_wait() -> Span {
    Span(Duration::ZERO)
}

fn default_lifetime() -> Span {
    Span::seconds(12 * 3600)
}

fn default_grace() -> Span {
    Span::seconds(30)
}

/// A pod's tokens and certificates would expire before a longer lifetime ends.
const LIFETIME_MAX: Span = Span::seconds(7 * 24 * 3600);
const LIFETIME_MIN: Span = Span::seconds(60);
const GRACE_MAX: Span = Span::seconds(3600);
/// The prefix of the runtime's own labels and annotations.
pub const OWN_PREFIX: &str = "lastword/";
/// The prefix of the variables that the runtime sets.
const OWN_VARIABLES: &str = "LASTWORD_";

impl PodTemplate {
    /// Refuses a template that a cluster would refuse, or should refuse. `env`: the agent's own variables.
    pub(super) fn validate(&self, env: &BTreeMap<String, String>) -> Result<(), InvalidSpec> {
        ensure(is_image(&self.image), "pod.image", "needs the name of an image, without blanks")?;
        let mut words = self.command.iter().flatten();
        let is_clean = words.all(|word| !word.is_empty() && !word.contains('\0'));
        ensure(is_clean, "pod.command", "must not contain empty words or NUL characters")?;
        self.validate_names()?;
        self.validate_env(env)?;
        for quantities in [&self.resources.requests, &self.resources.limits] {
            for (name, quantity) in quantities {
                ensure(is_qualified(name), "pod.resources", "needs names such as `cpu` and `memory`")?;
                let why = format!("`{quantity}` is no quantity, such as `500m` or `1Gi`");
                ensure(is_quantity(quantity), "pod.resources", &why)?;
            }
        }
        for toleration in &self.tolerations {
            let is_known = |effect: &String| EFFECTS.contains(&effect.as_str());
            let why = "needs NoSchedule, PreferNoSchedule or NoExecute as `effect`";
            ensure(toleration.effect.as_ref().is_none_or(is_known), "pod.tolerations", why)?;
            let is_named = toleration.key.is_some() || toleration.value.is_none();
            ensure(is_named, "pod.tolerations", "needs a `key` beside a `value`")?;
            let is_sound = toleration.key.as_deref().is_none_or(is_qualified)
                && toleration.value.as_deref().is_none_or(is_label_value);
            ensure(
                is_sound,
                "pod.tolerations",
                "needs a label's name as `key`, and a label's value as `value`",
            )?;
        }
        ensure(
            self.run_as_user.is_none_or(|id| (1..=i64::from(i32::MAX)).contains(&id)),
            "pod.run_as_user",
            "must lie between 1 and 2147483647",
        )?;
        let is_lifetime = (LIFETIME_MIN..=LIFETIME_MAX).contains(&self.lifetime);
        ensure(is_lifetime, "pod.lifetime", "must lie between 1 minute and 7 days")?;
        ensure(self.stop_grace <= GRACE_MAX, "pod.stop_grace", "must not be longer than 1 hour")?;
        ensure(self.wait_for_node <= GRACE_MAX, "pod.wait_for_node", "must not be longer than 1 hour")
    }

    fn validate_names(&self) -> Result<(), InvalidSpec> {
        let why = "needs names of lower-case letters, digits, `-` and `.`";
        for secret in &self.image_pull_secrets {
            ensure(is_subdomain(secret), "pod.image_pull_secrets", why)?;
        }
        for (field, name) in [
            ("pod.priority_class", &self.priority_class),
            ("pod.runtime_class", &self.runtime_class),
            ("pod.service_account", &self.service_account),
        ] {
            ensure(name.as_deref().is_none_or(is_subdomain), field, why)?;
        }
        for (field, labels) in [("pod.node_selector", &self.node_selector), ("pod.labels", &self.labels)] {
            let is_label = |(name, value): (&String, &String)| is_qualified(name) && is_label_value(value);
            ensure(labels.iter().all(is_label), field, "needs names and values of labels")?;
        }
        let is_named = self.annotations.keys().all(|name| is_qualified(name));
        ensure(is_named, "pod.annotations", "needs names of annotations")?;
        for (field, names) in [("pod.labels", &self.labels), ("pod.annotations", &self.annotations)] {
            let is_free =
                |name: &String| !name.starts_with(OWN_PREFIX) && !OWN_LABELS.contains(&name.as_str());
            ensure(names.keys().all(is_free), field, "must not contain the runtime's own names")?;
        }
        Ok(())
    }

    fn validate_env(&self, plain: &BTreeMap<String, String>) -> Result<(), InvalidSpec> {
        for (name, from) in &self.env {
            ensure(is_variable(name), "pod.env", "needs names without blanks and `=`")?;
            let is_key = is_subdomain(&from.secret) && is_secret_key(&from.key);
            ensure(is_key, "pod.env", "needs the name of a Secret and a key in it")?;
            ensure(!plain.contains_key(name), "pod.env", "must not name a variable that `env` has too")?;
        }
        let mut names = self.env.keys().chain(plain.keys());
        let is_free = names.clone().all(|name| !name.starts_with(OWN_VARIABLES));
        ensure(is_free, "env", "must not contain names that begin with `LASTWORD_`: the runtime sets those")?;
        ensure(
            names.all(|name| is_variable(name)),
            "env",
            "needs names without blanks, `=` and special characters",
        )
    }
}

const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
/// The runtime and the chart's network policies select pods by these labels.
const OWN_LABELS: [&str; 3] =
    ["app.kubernetes.io/name", "app.kubernetes.io/instance", "app.kubernetes.io/managed-by"];

fn ensure(is_right: bool, field: &'static str, why: &str) -> Result<(), InvalidSpec> {
    if is_right { Ok(()) } else { Err(InvalidSpec { field, why: why.to_owned() }) }
}

fn is_image(text: &str) -> bool {
    (1..=500).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
}

/// End characters at both ends, end or inner characters between them.
fn is_name(text: &str, longest: usize, is_inner: impl Fn(u8) -> bool, is_end: impl Fn(u8) -> bool) -> bool {
    let bytes = text.as_bytes();
    let ends = bytes.first().is_some_and(|&b| is_end(b)) && bytes.last().is_some_and(|&b| is_end(b));
    ends && bytes.len() <= longest && bytes.iter().all(|&b| is_end(b) || is_inner(b))
}

/// An RFC 1123 subdomain, the form of most names in a cluster.
fn is_subdomain(text: &str) -> bool {
    let is_end = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    text.len() <= 253 && text.split('.').all(|part| is_name(part, 253, |b| b == b'-', is_end))
}

/// A label's name, with an optional prefix.
fn is_qualified(text: &str) -> bool {
    let (prefix, name) = text.split_once('/').map_or((None, text), |(prefix, name)| (Some(prefix), name));
    prefix.is_none_or(is_subdomain)
        && is_name(name, 63, |b| b"-_.".contains(&b), |b| b.is_ascii_alphanumeric())
}

/// Whether the text is a valid label value.
pub fn is_label_value(text: &str) -> bool {
    text.is_empty() || is_name(text, 63, |b| b"-_.".contains(&b), |b| b.is_ascii_alphanumeric())
}

fn is_secret_key(text: &str) -> bool {
    (1..=253).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

fn is_variable(text: &str) -> bool {
    let is_inner = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    text.bytes().all(is_inner) && text.bytes().next().is_some_and(|b| !b.is_ascii_digit())
}

/// A non-negative number with an optional suffix or exponent.
fn is_quantity(text: &str) -> bool {
    const SUFFIXES: [&str; 16] =
        ["", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let is_number = number.bytes().any(|b| b.is_ascii_digit()) && number.matches('.').count() <= 1;
    let is_exponent = || {
        let exponent =
            suffix.strip_prefix(['e', 'E']).map(|rest| rest.strip_prefix(['+', '-']).unwrap_or(rest));
        exponent.is_some_and(|digits| {
            (1..=2).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit())
        })
    };
    is_number && text.len() <= 32 && (SUFFIXES.contains(&suffix) || is_exponent())
}

#[cfg(test)]
mod tests;
