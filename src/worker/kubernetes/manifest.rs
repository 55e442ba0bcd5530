//! The manifest: one conversation's pod, from its agent's template. Pure.
//!
//! Owns the pod's name (made from its worker's id, so that a creation whose answer was lost is not done twice),
//! the labels by which any replica finds it, and a security context that Kubernetes' `restricted` profile lets
//! through. Refuses to pass on anything of this replica's own: no variables, no Secrets, no ServiceAccount.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{
    api::core::v1::{
        Capabilities, Container, DownwardAPIVolumeFile, DownwardAPIVolumeSource, EmptyDirVolumeSource,
        EnvVar, EnvVarSource, LocalObjectReference, ObjectFieldSelector, Pod, PodSecurityContext, PodSpec,
        ResourceRequirements, SeccompProfile, SecretKeySelector, SecurityContext, Toleration, Volume,
        VolumeMount,
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{ObjectMeta, OwnerReference},
    },
};

use super::verdict::WORKER;
use crate::{
    agent::{AgentSpec, OWN_PREFIX, PodTemplate, is_label_value},
    id::{ConversationId, ReplicaId, WorkerId},
    store::turns::Agent,
    token::{self, TokenHash},
    units::{Size, Span},
};

/// The pod's labels, without [`OWN_PREFIX`].
const FLEET: &str = "fleet";
const WORKER_ID: &str = "worker";
const CONVERSATION: &str = "conversation";
const REPLICA: &str = "replica";
const AGENT: &str = "agent";
/// An annotation, as a whole agent's name is.
const REVISION: &str = "agent-revision";
/// The worker's token, good for its conversation alone and until its pod ends. The pod gets it as a file. Whoever
/// may read pods there may read it: the right to keep it in a Secret would be one over Secrets.
const TOKEN: &str = "token";
/// Whoever sees the pod end can revoke its token by that. It tells nothing of the token.
const TOKEN_HASH: &str = "token-sha256";

/// Where the worker works; it may write there and in `/tmp`.
const WORKSPACE: &str = "/workspace";
/// What a pod may live beyond its lifetime and a whole turn.
const DEADLINE_MARGIN: Duration = Duration::from_secs(60);
/// What a worker's host needs of its grace to say goodbye.
const CLOSE_MARGIN: Duration = Duration::from_secs(5);
/// What it needs beside the agent's memory: then the agent's own limit is the one that is met, and told.
const HOST_MEMORY: Size = Size::mib(64);
/// Where the token stands: not in the environment, which is inherited.
const TOKEN_DIR: &str = "/run/lastword";
const TOKEN_FILE: &str = "token";

/// What is the same for every pod of this replica.
#[derive(Debug, Clone)]
pub struct Home {
    /// Whose pods they are: gateways of one name share a database.
    pub fleet: String,
    /// Where a worker calls home.
    pub gateway_url: String,
    /// The gateway's Deployment, where it stands in the workers' namespace: they go with it. Not a replica's own
    /// pod, since a worker may outlive the replica that it was started by.
    pub owner: Option<Owner>,
}

/// A Deployment that pods belong to.
#[derive(Debug, Clone)]
pub struct Owner {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
}

/// What a pod is made for.
#[derive(Debug, Clone)]
pub struct PodOrder {
    /// The worker inside.
    pub worker: WorkerId,
    /// What it runs.
    pub agent: Agent,
    /// Whose turns.
    pub conversation: ConversationId,
    /// Who asks for it.
    pub replica: ReplicaId,
    /// What the worker shows when it calls home.
    pub token: Token,
}

/// A worker's token. Not shown.
#[derive(Clone)]
pub struct Token(pub String);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(***)")
    }
}

/// The name of this worker's pod.
pub fn name_of(worker: WorkerId) -> String {
    format!("{WORKER_PREFIX}{}", worker.0.as_hyphenated())
}

const WORKER_PREFIX: &str = "lastword-worker-";

/// Whose a pod is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    /// The worker inside.
    pub worker: WorkerId,
    /// Whose turns it serves.
    pub conversation: ConversationId,
    /// The agent, and its revision.
    pub agent: (String, i32),
    /// What the worker's token is known by.
    pub token_hash: Option<TokenHash>,
}

/// Whose this pod is; `None` where it was not made here.
pub fn about(pod: &Pod) -> Option<About> {
    let label = |name: &str| pod.metadata.labels.as_ref()?.get(&own(name)).cloned();
    let note = |name: &str| pod.metadata.annotations.as_ref()?.get(&own(name)).cloned();
    Some(About {
        worker: label(WORKER_ID)?.parse().ok()?,
        conversation: label(CONVERSATION)?.parse().ok()?,
        agent: (note(AGENT)?, note(REVISION)?.parse().ok()?),
        token_hash: note(TOKEN_HASH).and_then(|digits| token::hash_from(&digits)),
    })
}

/// The selector of all pods of a fleet.
pub fn selector(fleet: &str) -> String {
    format!("app.kubernetes.io/managed-by=lastword,{OWN_PREFIX}{FLEET}={fleet}")
}

/// The pod; `None` where the agent has no template.
pub fn manifest(order: &PodOrder, home: &Home) -> Option<Pod> {
    let spec = &order.agent.spec;
    let template = spec.pod.as_ref()?;
    let owner = home.owner.as_ref().map(|owner| OwnerReference {
        api_version: "apps/v1".to_owned(),
        kind: "Deployment".to_owned(),
        name: owner.name.clone(),
        uid: owner.uid.clone(),
        ..OwnerReference::default()
    });
    let metadata = ObjectMeta {
        name: Some(name_of(order.worker)),
        labels: Some(labels(order, template, &home.fleet)),
        annotations: Some(annotations(order, template)),
        owner_references: owner.map(|owner| vec![owner]),
        ..ObjectMeta::default()
    };
    Some(Pod { metadata, spec: Some(pod_spec(order, spec, template, home)), status: None })
}

fn own(name: &str) -> String {
    format!("{OWN_PREFIX}{name}")
}

fn labels(order: &PodOrder, template: &PodTemplate, fleet: &str) -> BTreeMap<String, String> {
    let mut labels = template.labels.clone();
    labels.extend([
        ("app.kubernetes.io/name".to_owned(), "lastword-worker".to_owned()),
        ("app.kubernetes.io/managed-by".to_owned(), "lastword".to_owned()),
        (own(FLEET), fleet.to_owned()),
        (own(WORKER_ID), order.worker.to_string()),
        (own(CONVERSATION), order.conversation.to_string()),
        (own(REPLICA), order.replica.to_string()),
    ]);
    // An agent's name may be one character longer than a label's value, or end in a dash.
    if is_label_value(&order.agent.name) {
        labels.insert(own(AGENT), order.agent.name.clone());
    }
    labels
}

fn annotations(order: &PodOrder, template: &PodTemplate) -> BTreeMap<String, String> {
    let mut annotations = template.annotations.clone();
    annotations.insert(own(AGENT), order.agent.name.clone());
    annotations.insert(own(REVISION), order.agent.revision.to_string());
    annotations.insert(own(TOKEN), order.token.0.clone());
    annotations.insert(own(TOKEN_HASH), token::digits(&token::hash(&order.token.0)));
    // What saves nodes by moving pods would end a turn in its middle.
    annotations.insert("cluster-autoscaler.kubernetes.io/safe-to-evict".to_owned(), "false".to_owned());
    annotations
}

fn pod_spec(order: &PodOrder, spec: &AgentSpec, template: &PodTemplate, home: &Home) -> PodSpec {
    let volume = |name: &str| Volume {
        name: name.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource::default()),
        ..Volume::default()
    };
    let tolerations = template.tolerations.iter().map(|toleration| Toleration {
        key: toleration.key.clone(),
        operator: Some(if toleration.value.is_some() { "Equal" } else { "Exists" }.to_owned()),
        value: toleration.value.clone(),
        effect: toleration.effect.clone(),
        toleration_seconds: None,
    });
    let pull_secrets = template.image_pull_secrets.iter();
    let pull_secrets = pull_secrets.map(|name| LocalObjectReference { name: name.clone() });
    PodSpec {
        containers: vec![container(order, spec, template, home)],
        restart_policy: Some("Never".to_owned()),
        active_deadline_seconds: Some(whole_seconds(active_deadline(spec, template))),
        termination_grace_period_seconds: Some(whole_seconds(template.stop_grace.0)),
        automount_service_account_token: Some(template.mount_service_account_token),
        service_account_name: template.service_account.clone(),
        enable_service_links: Some(false),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: template.run_as_user,
            run_as_group: template.run_as_user,
            fs_group: template.run_as_user,
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".to_owned(),
                localhost_profile: None,
            }),
            ..PodSecurityContext::default()
        }),
        node_selector: (!template.node_selector.is_empty()).then(|| template.node_selector.clone()),
        tolerations: Some(tolerations.collect::<Vec<_>>()).filter(|all| !all.is_empty()),
        image_pull_secrets: Some(pull_secrets.collect::<Vec<_>>()).filter(|all| !all.is_empty()),
        priority_class_name: template.priority_class.clone(),
        runtime_class_name: template.runtime_class.clone(),
        volumes: Some(vec![volume("workspace"), volume("tmp"), token_volume()]),
        ..PodSpec::default()
    }
}

/// The token's annotation as a file.
fn token_volume() -> Volume {
    let field = ObjectFieldSelector {
        field_path: format!("metadata.annotations['{}']", own(TOKEN)),
        ..ObjectFieldSelector::default()
    };
    let file = DownwardAPIVolumeFile {
        path: TOKEN_FILE.to_owned(),
        field_ref: Some(field),
        ..DownwardAPIVolumeFile::default()
    };
    let source = DownwardAPIVolumeSource { items: Some(vec![file]), default_mode: Some(0o444) };
    Volume { name: "token".to_owned(), downward_api: Some(source), ..Volume::default() }
}

/// The cluster's own clock over a pod. It runs out only where a worker does not retire in time: it takes its last
/// turn within its lifetime, and that one may take its whole cap.
fn active_deadline(spec: &AgentSpec, template: &PodTemplate) -> Duration {
    template.lifetime.0 + spec.timeouts.startup.0 + spec.timeouts.cap.0 + DEADLINE_MARGIN
}

fn whole_seconds(span: Duration) -> i64 {
    i64::try_from(span.as_millis().div_ceil(1000)).unwrap_or(i64::MAX)
}

fn container(order: &PodOrder, spec: &AgentSpec, template: &PodTemplate, home: &Home) -> Container {
    let mount = |name: &str, path: &str| VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        ..VolumeMount::default()
    };
    Container {
        name: WORKER.to_owned(),
        image: Some(template.image.clone()),
        image_pull_policy: template.image_pull_policy.map(|policy| policy.as_str().to_owned()),
        command: Some(host(spec, template)).filter(|command| !command.is_empty()),
        args: Some(spec.command.iter().map(|word| as_it_is(word)).collect()),
        env: Some(variables(order, spec, template, home)),
        resources: Some(resources(spec, template)),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
            privileged: Some(false),
            read_only_root_filesystem: Some(!template.writable_root),
            run_as_non_root: Some(true),
            ..SecurityContext::default()
        }),
        // The end of what it wrote, where it left no message of its own.
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        volume_mounts: Some(vec![
            mount("workspace", WORKSPACE),
            mount("tmp", "/tmp"),
            mount("token", TOKEN_DIR),
        ]),
        working_dir: Some(WORKSPACE.to_owned()),
        ..Container::default()
    }
}

/// What calls home.
fn host(spec: &AgentSpec, template: &PodTemplate) -> Vec<String> {
    if let Some(command) = &template.command {
        return command.iter().map(|word| as_it_is(word)).collect();
    }
    let idle = spec.idle_ttl.to_string();
    let drain = Span(template.stop_grace.0.saturating_sub(CLOSE_MARGIN)).to_string();
    let mut words: Vec<String> = vec!["lastword".to_owned(), "work".to_owned()];
    let old = template.lifetime.to_string();
    for (option, span) in [("--exit-when-idle", idle), ("--retire-after", old), ("--drain", drain)] {
        words.extend([option.to_owned(), span]);
    }
    words.extend(["--data-dir", WORKSPACE, "--"].map(str::to_owned));
    words
}

/// Kubernetes replaces `$(NAME)` in arguments and variables; doubled, it leaves it alone.
fn as_it_is(text: &str) -> String {
    text.replace("$(", "$$(")
}

fn resources(spec: &AgentSpec, template: &PodTemplate) -> ResourceRequirements {
    let quantities = |of: &BTreeMap<String, String>| -> BTreeMap<String, Quantity> {
        of.iter().map(|(name, quantity)| (name.clone(), Quantity(quantity.clone()))).collect()
    };
    let mut limits = quantities(&template.resources.limits);
    let memory = || Quantity((spec.limits.memory.0 + HOST_MEMORY.0).to_string());
    limits.entry("memory".to_owned()).or_insert_with(memory);
    let requests = quantities(&template.resources.requests);
    ResourceRequirements {
        limits: Some(limits),
        requests: (!requests.is_empty()).then_some(requests),
        ..ResourceRequirements::default()
    }
}

fn variables(order: &PodOrder, spec: &AgentSpec, template: &PodTemplate, home: &Home) -> Vec<EnvVar> {
    let plain = |name: &str, value: String| EnvVar {
        name: name.to_owned(),
        value: Some(as_it_is(&value)),
        value_from: None,
    };
    let mut variables = vec![
        plain("HOME", WORKSPACE.to_owned()),
        plain("LASTWORD_URL", home.gateway_url.clone()),
        plain("LASTWORD_WORKER_TOKEN_FILE", format!("{TOKEN_DIR}/{TOKEN_FILE}")),
        plain("LASTWORD_WORKER_NAME", name_of(order.worker)),
        plain("LASTWORD_AGENT", order.agent.name.clone()),
        plain("LASTWORD_CONVERSATION_ID", order.conversation.to_string()),
        plain("LASTWORD_WORKER_ID", order.worker.to_string()),
    ];
    variables.retain(|own| !spec.env.contains_key(&own.name) && !template.env.contains_key(&own.name));
    variables.extend(spec.env.iter().map(|(name, value)| plain(name, value.clone())));
    variables.extend(template.env.iter().map(|(name, from)| EnvVar {
        name: name.clone(),
        value: None,
        value_from: Some(EnvVarSource {
            secret_key_ref: Some(SecretKeySelector {
                name: from.secret.clone(),
                key: from.key.clone(),
                optional: from.optional.then_some(true),
            }),
            ..EnvVarSource::default()
        }),
    }));
    variables
}

#[cfg(test)]
mod tests;
