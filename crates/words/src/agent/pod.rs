//! The pod of an agent whose runtime is `kubernetes`, as its spec gives it.
//!
//! Owns the fields, their defaults and what is refused before anything is stored: what the cluster would refuse
//! later, at the first turn, and far from whoever wrote it. Refuses what would make a worker's pod more than a
//! worker's pod: other containers, the host's namespaces, volumes of the host.
//!
//! Secrets are named here, never held: the kubelet reads them, and the gateway has no right to.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::invalid::InvalidSpec;
use crate::units::Span;

/// What each conversation's pod is made from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PodTemplate {
    /// The image that the worker runs in.
    pub image: String,
    /// A program of the image's own that calls home, with the agent's `command` as its arguments; `[]` is the
    /// image's entry point. Where absent it is `lastword work`, which runs the agent's `command`: the image must
    /// have it in its `PATH`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// When the image is pulled: `Always`, `IfNotPresent` or `Never`; the cluster's default where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_pull_policy: Option<PullPolicy>,
    /// Secrets that hold credentials of the image's registry.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub image_pull_secrets: Vec<String>,
    /// Variables of the worker that come from Secrets, which must be in the pod's namespace.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, SecretKey>,
    /// What the worker asks for and may take. `limits.memory` of the agent stands where no other is given.
    #[serde(default)]
    pub resources: Resources,
    /// Labels that a node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that the pod bears.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Vec<Toleration>,
    /// A PriorityClass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority_class: Option<String>,
    /// A RuntimeClass, such as one that isolates better.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime_class: Option<String>,
    /// The ServiceAccount that the pod runs as; the namespace's `default` where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account: Option<String>,
    /// Whether the worker gets the ServiceAccount's token.
    #[serde(default)]
    pub mount_service_account_token: bool,
    /// The user that the worker runs as; the image's own where absent. Never root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub run_as_user: Option<i64>,
    /// Whether the image's files can be changed. `/workspace` and `/tmp` can in any case.
    #[serde(default)]
    pub writable_root: bool,
    /// More labels, beside the runtime's own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// More annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// How long a turn waits for a node with room, within its startup clock. Nothing, by default: then no room
    /// is a last word at once. Where a cluster makes nodes on demand give it the time that this takes.
    #[serde(default = "no_wait")]
    #[schema(value_type = String, example = "0s")]
    pub wait_for_node: Span,
    /// How old a pod grows before the next turn gets a fresh one.
    #[serde(default = "default_lifetime")]
    #[schema(value_type = String, example = "12h")]
    pub lifetime: Span,
    /// From the request to end to the kill. A turn that runs then has all but 5 s of it.
    #[serde(default = "default_grace")]
    #[schema(value_type = String, example = "30s")]
    pub stop_grace: Span,
}

/// When an image is pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum PullPolicy {
    /// At every start.
    Always,
    /// Where the node has none.
    IfNotPresent,
    /// Never: the node must have it.
    Never,
}

impl PullPolicy {
    /// As Kubernetes writes it.
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
    /// The Secret.
    pub secret: String,
    /// The key in it.
    pub key: String,
    /// Whether the worker starts without it too.
    #[serde(default)]
    pub optional: bool,
}

/// What a worker asks for and may take, as Kubernetes writes it: `cpu = "500m"`, `memory = "1Gi"`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Resources {
    /// What is set aside for it.
    pub requests: BTreeMap<String, String>,
    /// What it may take.
    pub limits: BTreeMap<String, String>,
}

/// A taint that a pod bears.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Toleration {
    /// The taint's key; every one where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The taint's value; every one where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`; every one where absent.
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

/// Longer ones would be outlived by the tokens and certificates that a pod is given.
const LIFETIME_MAX: Span = Span::seconds(7 * 24 * 3600);
const LIFETIME_MIN: Span = Span::seconds(60);
const GRACE_MAX: Span = Span::seconds(3600);
/// Labels and annotations of the runtime's own begin so.
pub const OWN_PREFIX: &str = "lastword/";
/// Variables that the runtime sets.
const OWN_VARIABLES: &str = "LASTWORD_";

impl PodTemplate {
    /// A template of this image, with the default of everything else.
    pub fn new(image: &str) -> Self {
        PodTemplate {
            image: image.to_owned(),
            command: None,
            image_pull_policy: None,
            image_pull_secrets: Vec::new(),
            env: BTreeMap::new(),
            resources: Resources::default(),
            node_selector: BTreeMap::new(),
            tolerations: Vec::new(),
            priority_class: None,
            runtime_class: None,
            service_account: None,
            mount_service_account_token: false,
            run_as_user: None,
            writable_root: false,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            wait_for_node: no_wait(),
            lifetime: default_lifetime(),
            stop_grace: default_grace(),
        }
    }

    /// Refuses what no cluster would run, or none should. `env`: the agent's own variables.
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
            ensure(names.keys().all(is_free), field, "must leave the runtime's own names alone")?;
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
        ensure(is_free, "env", "must leave variables that begin with `LASTWORD_` to the runtime")?;
        ensure(
            names.all(|name| is_variable(name)),
            "env",
            "needs names without blanks, `=` and odd characters",
        )
    }
}

const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
/// By these the runtime and the chart's network policies find the pods.
const OWN_LABELS: [&str; 3] =
    ["app.kubernetes.io/name", "app.kubernetes.io/instance", "app.kubernetes.io/managed-by"];

fn ensure(is_right: bool, field: &'static str, why: &str) -> Result<(), InvalidSpec> {
    if is_right { Ok(()) } else { Err(InvalidSpec { field, why: why.to_owned() }) }
}

fn is_image(text: &str) -> bool {
    (1..=500).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
}

/// Letters and digits at both ends, and these between.
fn is_name(text: &str, longest: usize, is_inner: impl Fn(u8) -> bool, is_end: impl Fn(u8) -> bool) -> bool {
    let bytes = text.as_bytes();
    let ends = bytes.first().is_some_and(|&b| is_end(b)) && bytes.last().is_some_and(|&b| is_end(b));
    ends && bytes.len() <= longest && bytes.iter().all(|&b| is_end(b) || is_inner(b))
}

/// RFC 1123, as most names in a cluster.
fn is_subdomain(text: &str) -> bool {
    let is_end = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    text.len() <= 253 && text.split('.').all(|part| is_name(part, 253, |b| b == b'-', is_end))
}

/// A label's name, with or without a prefix.
fn is_qualified(text: &str) -> bool {
    let (prefix, name) = text.split_once('/').map_or((None, text), |(prefix, name)| (Some(prefix), name));
    prefix.is_none_or(is_subdomain)
        && is_name(name, 63, |b| b"-_.".contains(&b), |b| b.is_ascii_alphanumeric())
}

/// Whether this can be the value of a label.
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

/// A number that is not negative, and a suffix or an exponent.
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
