"""What no schema knows: that the objects of one release fit each other, and the program.

Owns the rules about one release's objects. Each rule takes a `Rendered` and yields one line for each
thing that is wrong. What pods refer to is in `references`.
"""

import base64
import re

import references
from engine import pod_specs, title

# What the program says of itself: last words, last streams, last traces (src/engine/drain.rs,
# src/cli/serve.rs, src/telemetry.rs).
AFTER_DRAIN_SECONDS = 5 + 5 + 3
LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
# What the policies of the chart must not leave out.
RUNTIME_VERBS = {"create", "list", "watch", "delete"}


def wrongs(rendered):
    found = []
    for rule in RULES:
        found += [f"{rule.__name__}: {line}" for line in rule(rendered)]
    return found


def names(rendered):
    """Names are names, and nobody else's; labels are labels."""
    seen = set()
    for thing in rendered.objects:
        meta = thing["metadata"]
        key = (thing["kind"], meta.get("namespace"), meta["name"])
        if key in seen:
            yield f"{title(thing)} is there twice"
        seen.add(key)
        longest = 253 if thing["kind"] in ("Role", "RoleBinding", "NetworkPolicy", "ServiceAccount") else 63
        # The name of a ServiceAccount is the user's, and the API takes a DNS subdomain there.
        shape = rf"{LABEL}(\.{LABEL})*" if thing["kind"] == "ServiceAccount" else LABEL
        if len(meta["name"]) > longest or not re.fullmatch(shape, meta["name"]):
            yield f"{title(thing)}: not a name"
        if "namespace" not in meta:
            yield f"{title(thing)} names no namespace"
        for label, value in meta.get("labels", {}).items():
            if not re.fullmatch(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?", value) or len(value) > 63:
                yield f"{title(thing)}: label {label} has the value {value!r}"


def _matches(selector, labels):
    for name, value in (selector.get("matchLabels") or {}).items():
        if labels.get(name) != value:
            return False
    return all(labels.get(e["key"]) in e["values"] for e in selector.get("matchExpressions", ()))


def selectors(rendered):
    """Who selects pods finds some, its own, and only those that it means."""
    pods = [(owner, labels) for owner, labels, _ in pod_specs(rendered.objects)]
    for thing in rendered.of("Deployment", "StatefulSet"):
        if not _matches(thing["spec"]["selector"], thing["spec"]["template"]["metadata"]["labels"]):
            yield f"{title(thing)} does not select its own pods"
    for thing in rendered.of("Service", "PodDisruptionBudget", "Deployment", "StatefulSet"):
        selector = thing["spec"]["selector"]
        selector = {"matchLabels": selector} if thing["kind"] == "Service" else selector
        owners = {owner["kind"] for owner, labels in pods if _matches(selector, labels)}
        if owners not in ({"Deployment"}, {"StatefulSet"}):
            yield f"{title(thing)} selects the pods of {sorted(owners) or 'nobody'}"
    for thing in rendered.of("ServiceMonitor"):
        services = [s for s in rendered.of("Service") if _matches(thing["spec"]["selector"], s["metadata"]["labels"])]
        if len(services) != 1:
            yield f"{title(thing)} selects {len(services)} Services"
    for thing in rendered.of("Deployment"):
        for spread in thing["spec"]["template"]["spec"].get("topologySpreadConstraints", ()):
            if "labelSelector" not in spread:
                yield f"{title(thing)}: a spread without a selector counts nothing"


def policies(rendered):
    """Where there are network policies, they are about somebody, and nobody is left out."""
    if not rendered.values["networkPolicy"]["enabled"]:
        if rendered.of("NetworkPolicy"):
            yield "networkPolicy is off, and there are some"
        return
    selectors_ = [policy["spec"]["podSelector"] for policy in rendered.of("NetworkPolicy")]
    for owner, labels, _ in pod_specs(rendered.objects):
        if not any(_matches(selector, labels) for selector in selectors_):
            yield f"{title(owner)} has no network policy"
    for policy in rendered.of("NetworkPolicy"):
        if policy["spec"].get("policyTypes") != ["Ingress", "Egress"]:
            yield f"{title(policy)} leaves a direction open"


def ports(rendered):
    """What names a port finds it."""
    services = {service["metadata"]["name"]: service for service in rendered.of("Service")}
    for service in services.values():
        targets = set()
        for _, labels, spec in pod_specs(rendered.objects):
            if _matches({"matchLabels": service["spec"]["selector"]}, labels):
                targets |= {p.get("name") for c in spec["containers"] for p in c.get("ports", ())}
        for port in service["spec"]["ports"]:
            if port["targetPort"] not in targets:
                yield f"{title(service)}: no container has a port {port['targetPort']}"
    for owner, _, spec in pod_specs(rendered.objects):
        for container in spec["containers"]:
            own = {p.get("name") for p in container.get("ports", ())}
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                target = container.get(probe, {}).get("httpGet", {}).get("port")
                if target is not None and target not in own:
                    yield f"{title(owner)}: {probe} asks port {target}"
    backends = [(ingress, path["backend"]["service"]["name"], path["backend"]["service"]["port"].get("name"))
                for ingress in rendered.of("Ingress")
                for rule in ingress["spec"]["rules"] for path in rule["http"]["paths"]]
    backends += [(route, ref["name"], ref["port"]) for route in rendered.of("HTTPRoute")
                 for rule in route["spec"]["rules"] for ref in rule["backendRefs"]]
    for thing, name, port in backends:
        known = services.get(name, {"spec": {"ports": []}})["spec"]["ports"]
        if port not in [value for p in known for value in (p["name"], p["port"])]:
            yield f"{title(thing)}: no Service {name} with a port {port}"
    for policy in rendered.of("NetworkPolicy"):
        if any(isinstance(port.get("port"), str) for rule in policy["spec"].get("egress") or ()
               for port in rule.get("ports", ()) if rule not in _upstreams(rendered)):
            yield f"{title(policy)}: not every network knows the name of a port on the way out"


def _upstreams(rendered):
    return rendered.values["networkPolicy"]["egress"]["upstreams"]


def traces(rendered):
    """Where traces go is let out."""
    url = rendered.values["settings"].get("otlp_endpoint")
    if not url or not rendered.values["networkPolicy"]["enabled"]:
        return
    authority = url.split("/")[2].rpartition("]")[2]
    wanted = int(authority.partition(":")[2] or (443 if url.startswith("https:") else 80))
    gateway = next(p for p in rendered.of("NetworkPolicy")
                   if p["metadata"]["labels"]["app.kubernetes.io/component"] == "gateway")
    if not any(port["port"] == wanted and "to" not in rule for rule in gateway["spec"]["egress"]
               for port in rule.get("ports", ())):
        yield f"{title(gateway)}: nothing gets out to port {wanted}, where traces go"


def grace(rendered):
    """Nobody is killed who still owes last words."""
    for deployment in rendered.of("Deployment"):
        spec = deployment["spec"]["template"]["spec"]
        gateway = next(c for c in spec["containers"] if c["name"] == "lastword")
        env = {e["name"]: e.get("value") for e in gateway["env"]}
        drain = re.fullmatch(r"(\d+)s", env["LASTWORD_DRAIN"])
        sleep = gateway.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        needed = sleep + int(drain.group(1)) + AFTER_DRAIN_SECONDS
        if spec["terminationGracePeriodSeconds"] < needed:
            yield f"{title(deployment)}: {spec['terminationGracePeriodSeconds']} s of grace, {needed} s are needed"


def replicas(rendered):
    """One decides how many, and only one."""
    scalers = rendered.of("HorizontalPodAutoscaler", "ScaledObject")
    by = rendered.values["autoscaling"]["by"]
    if len(scalers) != (by != "none"):
        yield f"autoscaling.by is {by}, and there are {[title(s) for s in scalers]}"
    for deployment in rendered.of("Deployment"):
        if ("replicas" in deployment["spec"]) == bool(scalers):
            yield f"{title(deployment)}: replicas beside {[title(s) for s in scalers]}"
        for scaler in scalers:
            target = scaler["spec"]["scaleTargetRef"]
            if (target["kind"], target["name"]) != ("Deployment", deployment["metadata"]["name"]):
                yield f"{title(scaler)} scales {target}"


def secrets(rendered):
    """What a Secret of this release holds stands nowhere else, and no URL with a password does."""
    values = {}
    for secret in rendered.of("Secret"):
        for key, data in secret.get("data", {}).items():
            values[base64.b64decode(data).decode()] = f"{title(secret)}: {key}"
    for thing in rendered.objects:
        if thing["kind"] == "Secret":
            continue
        texts = list(_texts(thing))
        for value, whose in values.items():
            if any(value in text for text in texts):
                yield f"{title(thing)} holds what {whose} holds"
        # What users write in agents.toml and in variables of their own is theirs to answer for.
        if thing["kind"] != "ConfigMap" and any(re.search(r"postgres(ql)?://[^/\s]+:[^/\s]+@", t) for t in texts):
            yield f"{title(thing)} holds a URL with a password"


def _texts(node):
    if isinstance(node, dict):
        for value in node.values():
            yield from _texts(value)
    elif isinstance(node, list):
        for value in node:
            yield from _texts(value)
    elif isinstance(node, str):
        yield node


def pods(rendered):
    """What every pod of ours has, and what only the runtime gives it."""
    has_runtime = rendered.values["kubernetesRuntime"]["enabled"]
    for owner, _, spec in pod_specs(rendered.objects):
        if spec.get("enableServiceLinks") is not False:
            yield f"{title(owner)}: service links put LASTWORD_ variables into it that the program refuses"
        if spec.get("automountServiceAccountToken") is not (has_runtime and owner["kind"] == "Deployment"):
            yield f"{title(owner)}: a token of the API is mounted, or missing"
        for container in spec["containers"]:
            variables = [e["name"] for e in container.get("env", ())]
            for name in {name for name in variables if variables.count(name) > 1}:
                yield f"{title(owner)}: {name} is set twice"
    if bool(rendered.of("Role", "RoleBinding")) != has_runtime or rendered.of("ClusterRole", "ClusterRoleBinding"):
        yield "roles are for the Kubernetes runtime, of one namespace"
    for role in rendered.of("Role"):
        yield from _runtime_role(rendered, role)


def _runtime_role(rendered, role):
    """Runs pods, and reads its own Deployment where that can own them: no more, and no less."""
    deployment, = rendered.of("Deployment")
    env = {e["name"]: e.get("value") for e in deployment["spec"]["template"]["spec"]["containers"][0]["env"]}
    namespace = role["metadata"]["namespace"]
    if env.get("LASTWORD_KUBERNETES_NAMESPACE") != namespace:
        yield f"{title(role)} is of {namespace}, and pods are made elsewhere"
    wanted = [{"apiGroups": [""], "resources": ["pods"], "verbs": RUNTIME_VERBS}]
    owner = env.get("LASTWORD_KUBERNETES_OWNER")
    if (owner is not None) != (namespace == deployment["metadata"]["namespace"]):
        yield f"{title(role)}: an owner in another namespace, or none in this one"
    if owner is not None:
        wanted.append({"apiGroups": ["apps"], "resources": ["deployments"], "resourceNames": [owner], "verbs": {"get"}})
        if owner != deployment["metadata"]["name"]:
            yield f"{title(deployment)}: worker pods belong to {owner}"
    found = [{**rule, "verbs": set(rule["verbs"])} for rule in role["rules"]]
    if found != wanted:
        yield f"{title(role)} may do more, or less, than run pods: {role['rules']}"
    for policy in rendered.of("NetworkPolicy"):
        selector = policy["spec"]["podSelector"]["matchLabels"]
        if selector.get("lastword/fleet") == env.get("LASTWORD_KUBERNETES_FLEET"):
            if policy["metadata"]["namespace"] != namespace or policy["spec"].get("ingress") != []:
                yield f"{title(policy)}: worker pods are elsewhere, or can be called"
            return
    if rendered.values["networkPolicy"]["enabled"]:
        yield "worker pods have no network policy"


def probes(rendered):
    """Only readiness asks Postgres."""
    wanted = {"startupProbe": "/livez", "livenessProbe": "/livez", "readinessProbe": "/readyz"}
    for deployment in rendered.of("Deployment"):
        gateway = next(c for c in deployment["spec"]["template"]["spec"]["containers"] if c["name"] == "lastword")
        paths = {probe: gateway.get(probe, {}).get("httpGet", {}).get("path") for probe in wanted}
        if paths != wanted:
            yield f"{title(deployment)}: {paths}"


def streams(rendered):
    """No route ends a stream by the clock."""
    for route in rendered.of("HTTPRoute"):
        for rule in route["spec"]["rules"]:
            if rule.get("timeouts") != {"request": "0s", "backendRequest": "0s"}:
                yield f"{title(route)}: {rule.get('timeouts')}"


def jobs(rendered):
    """A hook that runs first needs nothing that comes later; an ordinary Job has a name of its own."""
    ours = {(t["kind"], t["metadata"]["name"]) for t in rendered.objects}
    for job in rendered.of("Job"):
        hook = job["metadata"].get("annotations", {}).get("helm.sh/hook", "")
        if bool(hook) != rendered.values["jobs"]["useHelmHooks"]:
            yield f"{title(job)}: hook {hook!r}"
        if not hook and not re.search(r"-[0-9a-f]{8}$", job["metadata"]["name"]):
            yield f"{title(job)} has the same name after a change, and Jobs cannot be changed"
        if "pre-install" in hook:
            for kind, name, _ in references.of_pod(job["spec"]["template"]["spec"]):
                if (kind, name) in ours:
                    yield f"{title(job)} runs before {kind} {name} is there"


RULES = [names, selectors, policies, ports, traces, grace, replicas, secrets, pods, probes, streams, jobs, references.resolve]
