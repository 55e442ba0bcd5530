"""What objects refer to by name: each of it is there, in this release or among what the user brings.

Owns the walk over pods and the other kinds that name something.
"""

from engine import pod_specs, title


def resolve(rendered):
    """Every name leads somewhere."""
    things = {(t["kind"], t["metadata"]["name"]): t for t in rendered.objects}
    brought = _brought_by_user(rendered.values)
    cluster = next((t["metadata"]["name"] for t in rendered.of("Cluster")), None)

    def missing(kind, name, key):
        if cluster and (kind, name, key) == ("Secret", f"{cluster}-app", "uri"):
            return None  # The operator makes it.
        if (kind, name) in brought:
            return None
        if (kind, name) not in things:
            return f"no {kind} {name}"
        thing = things[kind, name]
        if key and key not in {**thing.get("data", {}), **thing.get("stringData", {})}:
            return f"{kind} {name} has no {key}"
        return None

    for owner, _, spec in pod_specs(rendered.objects):
        for kind, name, key in of_pod(spec):
            if why := missing(kind, name, key):
                yield f"{title(owner)}: {why}"
        yield from (f"{title(owner)}: {line}" for line in _mounts(spec, rendered.values))
    for owner, kind, name, key in _of_others(rendered):
        if why := missing(kind, name, key):
            yield f"{title(owner)}: {why}"


def of_pod(spec):
    """(kind, name, key) of what a pod needs to start; key is None where the whole is meant."""
    if spec.get("serviceAccountName", "default") != "default":
        yield "ServiceAccount", spec["serviceAccountName"], None
    for secret in spec.get("imagePullSecrets", ()):
        yield "Secret", secret["name"], None
    for volume in spec.get("volumes", ()):
        yield from _of_volume(volume)
        for source in volume.get("projected", {}).get("sources", ()):
            yield from _of_volume(source)
    for container in spec.get("initContainers", []) + spec["containers"]:
        for variable in container.get("env", ()):
            source = variable.get("valueFrom", {})
            if "secretKeyRef" in source:
                yield "Secret", source["secretKeyRef"]["name"], source["secretKeyRef"]["key"]
            if "configMapKeyRef" in source:
                yield "ConfigMap", source["configMapKeyRef"]["name"], source["configMapKeyRef"]["key"]


def _of_volume(volume):
    if "secret" in volume:
        secret = volume["secret"]
        name = secret.get("secretName", secret.get("name"))
        yield from (("Secret", name, item["key"]) for item in secret.get("items", [{"key": None}]))
    if "configMap" in volume:
        items = volume["configMap"].get("items", [{"key": None}])
        yield from (("ConfigMap", volume["configMap"]["name"], item["key"]) for item in items)


def _of_others(rendered):
    for monitor in rendered.of("ServiceMonitor"):
        for endpoint in monitor["spec"]["endpoints"]:
            credentials = endpoint["authorization"]["credentials"]
            yield monitor, "Secret", credentials["name"], credentials["key"]
    for authentication in rendered.of("TriggerAuthentication"):
        for ref in authentication["spec"]["secretTargetRef"]:
            yield authentication, "Secret", ref["name"], ref["key"]
    for scaled in rendered.of("ScaledObject"):
        for trigger in scaled["spec"]["triggers"]:
            yield scaled, "TriggerAuthentication", trigger["authenticationRef"]["name"], None
    for binding in rendered.of("RoleBinding"):
        yield binding, "Role", binding["roleRef"]["name"], None
        for subject in binding["subjects"]:
            yield binding, "ServiceAccount", subject["name"], None
    for stateful in rendered.of("StatefulSet"):
        yield stateful, "Service", stateful["spec"]["serviceName"], None


def _mounts(spec, values):
    """Volumes that are mounted are there, and files that variables name lie in one."""
    volumes = [volume["name"] for volume in spec.get("volumes", ())]
    for name in {name for name in volumes if volumes.count(name) > 1}:
        yield f"volume {name} is there twice"
    by_name = {volume["name"]: volume for volume in spec.get("volumes", ())}
    claims = {"data"}
    brought = {values["database"]["urlFile"], values["database"]["listener"]["urlFile"]}
    for container in spec["containers"]:
        files = set()
        for mount in container.get("volumeMounts", ()):
            if mount["name"] not in by_name and mount["name"] not in claims:
                yield f"no volume {mount['name']}"
            secret = by_name.get(mount["name"], {}).get("secret", {})
            files |= {f"{mount['mountPath']}/{item['path']}" for item in secret.get("items", ())}
        for variable in container.get("env", ()):
            path = variable.get("value", "")
            if variable["name"].endswith("_FILE") and path not in files | brought:
                yield f"{variable['name']}: no volume brings {path}"


def _brought_by_user(values):
    """What the values name as being there already."""
    names = {values["database"]["existingSecret"], values["database"]["listener"]["existingSecret"],
             values["auth"]["existingSecret"], *(s["secretName"] for s in values["agentSecrets"]),
             *(s["name"] for s in values["imagePullSecrets"])}
    brought = {("Secret", name) for name in names if name}
    for volume in values["extraVolumes"]:
        brought |= {(kind, name) for kind, name, _ in of_pod({"volumes": [volume], "containers": []})}
    for variable in values["extraEnv"]:
        container = {"env": [variable]}
        brought |= {(kind, name) for kind, name, _ in of_pod({"containers": [container]})}
    if values["serviceAccount"]["name"] and not values["serviceAccount"]["create"]:
        brought.add(("ServiceAccount", values["serviceAccount"]["name"]))
    if values["autoscaling"]["queue"]["authenticationRef"]:
        brought.add(("TriggerAuthentication", values["autoscaling"]["queue"]["authenticationRef"]))
    return brought
