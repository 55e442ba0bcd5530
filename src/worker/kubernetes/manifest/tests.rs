//! What a pod's manifest must say, whatever its template.

use serde_json::{Value, json};
use uuid::Uuid;

use super::*;
use crate::agent::{Runtime, SecretKey};

fn template(image: &str) -> PodTemplate {
    serde_json::from_value(json!({ "image": image })).unwrap()
}

fn order(template: PodTemplate) -> PodOrder {
    let command = vec!["python3".into(), "-c".into(), "print('$(HOME)')".into()];
    let mut spec =
        AgentSpec { runtime: Runtime::Kubernetes, pod: Some(template), ..AgentSpec::process(command) };
    spec.env.insert("LOG".into(), "$(PATH)".into());
    PodOrder {
        worker: WorkerId(Uuid::from_u128(7)),
        agent: Agent::new("support", 3, spec),
        conversation: ConversationId(Uuid::from_u128(8)),
        replica: ReplicaId(Uuid::from_u128(9)),
        token: Token("s3cret".into()),
    }
}

fn home() -> Home {
    Home {
        fleet: "lastword".into(),
        gateway_url: "http://lastword:8080".into(),
        owner: Some(Owner { name: "lastword".into(), uid: "uid-0".into() }),
    }
}

fn made(template: PodTemplate) -> Value {
    serde_json::to_value(manifest(&order(template), &home()).unwrap()).unwrap()
}

#[test]
fn a_pod_is_as_the_restricted_profile_wants_it() {
    let pod = made(template("registry.example/agent:1"));
    let (spec, container) = (&pod["spec"], &pod["spec"]["containers"][0]);
    assert_eq!(spec["securityContext"]["runAsNonRoot"], true);
    assert_eq!(spec["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
    assert_eq!(spec["automountServiceAccountToken"], false);
    assert_eq!(spec["enableServiceLinks"], false);
    assert_eq!(spec["restartPolicy"], "Never");
    let security = &container["securityContext"];
    assert_eq!(security["allowPrivilegeEscalation"], false);
    assert_eq!(security["capabilities"], json!({"drop": ["ALL"]}));
    assert_eq!(security["readOnlyRootFilesystem"], true);
    assert!(
        spec["hostNetwork"].is_null() && spec["hostPID"].is_null() && spec["serviceAccountName"].is_null()
    );
}

#[test]
fn a_pod_is_found_by_its_labels_and_goes_with_the_gateway() {
    let pod = manifest(&order(template("a")), &home()).unwrap();
    let agent = ("support".to_owned(), 3);
    let token_hash = Some(token::hash("s3cret"));
    let wanted = About {
        worker: WorkerId(Uuid::from_u128(7)),
        conversation: ConversationId(Uuid::from_u128(8)),
        agent,
        token_hash,
    };
    assert_eq!(about(&pod), Some(wanted));
    let pod = serde_json::to_value(pod).unwrap();
    let labels = &pod["metadata"]["labels"];
    for pair in selector("lastword").split(',') {
        let (name, value) = pair.split_once('=').unwrap();
        assert_eq!(labels[name], value);
    }
    assert_eq!(labels["lastword/agent"], "support");
    assert_eq!(pod["metadata"]["name"], "lastword-worker-00000000-0000-0000-0000-000000000007");
    let owner = json!([{"apiVersion": "apps/v1", "kind": "Deployment", "name": "lastword", "uid": "uid-0"}]);
    assert_eq!(pod["metadata"]["ownerReferences"], owner);
    for (name, value) in labels.as_object().unwrap() {
        assert!(is_label_value(value.as_str().unwrap()), "{name}");
    }
}

#[test]
fn a_name_that_no_label_can_hold_is_an_annotation_alone() {
    let mut order = order(template("a"));
    order.agent.name = "ends-in-a-dash-".into();
    let pod = serde_json::to_value(manifest(&order, &home()).unwrap()).unwrap();
    assert!(pod["metadata"]["labels"]["lastword/agent"].is_null());
    assert_eq!(pod["metadata"]["annotations"]["lastword/agent"], "ends-in-a-dash-");
}

#[test]
fn the_worker_is_told_where_home_is_and_nothing_is_expanded() {
    let mut template = template("a");
    let from = SecretKey { secret: "model".into(), key: "api-key".into(), optional: false };
    template.env.insert("MODEL_KEY".into(), from);
    let pod = made(template);
    let container = &pod["spec"]["containers"][0];
    let host = "lastword work --exit-when-idle 10m --retire-after 12h --drain 25s --data-dir /workspace --";
    let host: Vec<&str> = host.split(' ').collect();
    assert_eq!(container["command"], json!(host));
    assert_eq!(container["args"], json!(["python3", "-c", "print('$$(HOME)')"]));
    let variable = |name: &str| {
        let all = container["env"].as_array().unwrap();
        let mut found = all.iter().filter(|variable| variable["name"] == name);
        let first = found.next().unwrap_or_else(|| panic!("no {name}"));
        assert!(found.next().is_none(), "{name} twice");
        first.clone()
    };
    assert_eq!(variable("LASTWORD_URL")["value"], "http://lastword:8080");
    assert_eq!(variable("LASTWORD_WORKER_TOKEN_FILE")["value"], "/run/lastword/token");
    assert!(!container.to_string().contains("s3cret"), "no variable holds the token");
    assert_eq!(pod["metadata"]["annotations"]["lastword/token"], "s3cret");
    let item = &pod["spec"]["volumes"][2]["downwardAPI"]["items"][0];
    assert_eq!(item["fieldRef"]["fieldPath"], "metadata.annotations['lastword/token']");
    assert_eq!(variable("LASTWORD_AGENT")["value"], "support");
    assert_eq!(variable("LOG")["value"], "$$(PATH)");
    let key = json!({"secretKeyRef": {"name": "model", "key": "api-key"}});
    assert_eq!(variable("MODEL_KEY")["valueFrom"], key);
}

#[test]
fn limits_and_deadlines_come_from_the_agent_where_the_template_gives_none() {
    let mut template = template("a");
    template.lifetime = crate::units::Span::seconds(3600);
    let pod = made(template.clone());
    assert_eq!(pod["spec"]["containers"][0]["resources"], json!({"limits": {"memory": "1140850688"}}));
    // Lifetime, startup, cap and one minute of margin.
    assert_eq!(pod["spec"]["activeDeadlineSeconds"], 3600 + 60 + 1800 + 60);
    assert_eq!(pod["spec"]["terminationGracePeriodSeconds"], 30);
    template.command = Some(Vec::new());
    assert!(
        made(template.clone())["spec"]["containers"][0]["command"].is_null(),
        "the image's own entry point"
    );
    template.resources.limits.insert("memory".into(), "512Mi".into());
    template.resources.requests.insert("cpu".into(), "100m".into());
    let wanted = json!({"limits": {"memory": "512Mi"}, "requests": {"cpu": "100m"}});
    assert_eq!(made(template)["spec"]["containers"][0]["resources"], wanted);
}

#[test]
fn a_token_is_not_shown() {
    assert!(!format!("{:?}", order(template("a"))).contains("s3cret"));
}
