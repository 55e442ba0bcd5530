"""The values that are tried by name: each feature on, each off, all together, and what is refused.

Owns the list of features. A feature that the chart has and that is missing here is found by
`untried`: every value that the chart has must differ from its default in some case.
"""

import copy

import yaml

from engine import CHART, Refused, reason

SECRET = {"database": {"existingSecret": "lastword-database"}}
AGENTS = "[agents.demo]\nruntime = 'process'\ncommand = ['lastword', 'demo-agent']\n"
PEER = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "friends"}}}

# Where Postgres can be.
DATABASES = {
    "secret": SECRET,
    "another key and port": {"database": {"existingSecret": "db", "secretKey": "dsn", "port": 6432}},
    "file": {"database": {"urlFile": "/mnt/db/url"},
             "extraVolumes": [{"name": "db", "csi": {"driver": "secrets-store.csi.k8s.io", "readOnly": True}}],
             "extraVolumeMounts": [{"name": "db", "mountPath": "/mnt/db", "readOnly": True}]},
    "pooler": {"database": {"existingSecret": "db", "listener": {"existingSecret": "db", "secretKey": "direct", "port": 5433}}},
    "pooler, files": {"database": {"urlFile": "/mnt/url", "listener": {"urlFile": "/mnt/direct"}}},
    "cloudnative-pg": {"cnpg": {"enabled": True, "imageName": "postgresql:18", "storage": {"storageClass": "fast", "size": "1Ti"},
                                "resources": {"limits": {"memory": "4Gi"}}, "spec": {"enablePDB": True}}},
    "cloudnative-pg, asynchronous": {"cnpg": {"enabled": True, "instances": 2, "synchronousStandbys": 0,
                                              "maxConnections": 400}},
    "trial": {"postgres": {"enabled": True, "image": {"repository": "mirror/postgres", "tag": "17"}, "maxConnections": 150,
                           "storage": {"size": "1Gi", "storageClass": "slow"},
                           "resources": {"limits": {"memory": "1Gi"}}}},
}

FEATURES = {
    "names": {"nameOverride": "talk", "fullnameOverride": "talk-of-the-town"},
    "image": {"image": {"repository": "registry.example.com:5000/team/lastword", "tag": "1.2.3", "pullPolicy": "Always"},
              "imagePullSecrets": [{"name": "pull"}]},
    "digest": {"image": {"digest": "sha256:" + "0" * 64}},
    "one replica": {"replicas": 1},
    "no replica": {"replicas": 0},
    "cpu": {"autoscaling": {"by": "cpu", "min": 3, "max": 9, "cpu": {"targetPercent": 50}, "scaleDownAfterSeconds": 60}},
    "queue": {"autoscaling": {"by": "queue", "queue": {"targetPerReplica": 10, "pollingSeconds": 5, "query": "select 1",
                                                       "authenticationRef": "mine"}}},
    "settings": {"settings": {"turns_max": 8, "workers_max": 12, "worker_file_max": "1GiB", "worker_env_pass": "HTTPS_PROXY,no_proxy", "queue_max": 10_000_000, "conversation_depth_max": 5, "pool_max": 4,
                              "streams_max": 100, "connections_max": 200,
                              "connections_per_address_max": 50, "waits_max": 200, "unread_max": "16MiB",
                              "token_share": 50, "token_rows_per_minute_max": 6000, "body_max": "512KiB", "bodies_max": "8MiB", "doorbell": "off", "retain": "7d",
                              "keep_alive": "5s", "connection_idle_max": "2m", "database_schema": "chat", "stream_stall_max": "5m", "cors_origins": "https://a.example,http://localhost:3000", "postgres_away_max": "1m", "log": "lastword=debug,info",
                              "log_format": "text", "otlp_endpoint": "http://collector.monitoring:4318"}},
    "settings left to the program": {"settings": {"retain": None, "turns_max": None}},
    "ipv6": {"listenHost": "[::]", "port": 9090, "settings": {"otlp_endpoint": "https://[2001:db8::1]/v1/traces"}},
    "long drain": {"drain": {"preStopSeconds": 15, "seconds": 3600, "marginSeconds": 30}},
    "short drain": {"drain": {"preStopSeconds": 0, "seconds": 0}},
    "more grace": {"terminationGracePeriodSeconds": 4000},
    "tokens": {"auth": {"existingSecret": "tokens", "clientTokensKey": "c", "operatorTokensKey": "o", "operatorTokenKey": "o1"}},
    "migrate by job": {"migrations": {"mode": "job"}},
    "jobs": {"jobs": {"useHelmHooks": False, "backoffLimit": 3, "activeDeadlineSeconds": 60,
                      "resources": {"limits": {"memory": "1Gi"}}}},
    "agents": {"agents": {"toml": AGENTS}},
    "agent secrets": {"agentSecrets": [{"name": "key", "secretName": "model", "key": "api-key"},
                                       {"name": "other", "secretName": "model", "key": "other"}]},
    "workspaces": {"workspaces": {"sizeLimit": "10Gi", "tmpSizeLimit": "1Gi"}},
    "kubernetes runtime": {"kubernetesRuntime": {"enabled": True}},
    "kubernetes runtime elsewhere": {"kubernetesRuntime": {"enabled": True, "namespace": "workers",
                                                           "egress": [{"ports": [{"port": 443, "protocol": "TCP"}]}]},
                                     "serviceAccount": {"create": True, "name": "gate"}},
    "service account": {"serviceAccount": {"create": True, "name": "gate.chat", "annotations": {"cloud/role": "arn:aws:iam::1:role/x"}}},
    "service": {"service": {"type": "LoadBalancer", "port": 80, "annotations": {"a/b": "yes"}}},
    "http route": {"httpRoute": {"enabled": True, "parentRefs": [{"name": "gate", "namespace": "infra"}],
                                 "hostnames": ["chat.example.com", "*.example.org"], "annotations": {"a": "b"}}},
    "ingress": {"ingress": {"enabled": True, "className": "nginx", "hosts": ["chat.example.com"],
                            "tls": [{"secretName": "tls", "hosts": ["chat.example.com"]}], "annotations": {"a": "1"}}},
    "no network policy": {"networkPolicy": {"enabled": False}},
    "network policy": {"networkPolicy": {"ingress": {"from": [PEER], "metricsFrom": [PEER]},
                                         "egress": {"postgres": [{"ipBlock": {"cidr": "10.0.0.0/8"}}],
                                                    "upstreams": [{"to": [PEER], "ports": [{"port": 443}]}]}}},
    "no pdb": {"pdb": {"enabled": False}},
    "pdb": {"pdb": {"maxUnavailable": None, "minAvailable": "50%"}},
    "strategy": {"strategy": {"rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 1}}, "revisionHistoryLimit": 2},
    "recreate": {"strategy": {"type": "Recreate"}},
    "service monitor": {"serviceMonitor": {"enabled": True, "interval": "1m", "labels": {"release": "prometheus"}}},
    "alerts": {"prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}, "exclude": ["LastwordVersionSkew"],
                                  "queueDeepTurns": 5, "runbookUrl": "https://example.com/runbooks/"}},
    "dashboard": {"dashboard": {"enabled": True, "labels": {"grafana_dashboard": "yes"}, "annotations": {"folder": "chat"}}},
    "probes": {"probes": {p: {"periodSeconds": 7, "timeoutSeconds": 2, "failureThreshold": 9}
                          for p in ("startup", "liveness", "readiness")}},
    "resources": {"resources": {"requests": {"cpu": "2"}, "limits": {"memory": "8Gi"}}},
    "openshift": {"podSecurityContext": {"runAsUser": None, "runAsGroup": None, "fsGroup": None},
                  "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}}},
    "metadata": {"annotations": {"a": "true"}, "podAnnotations": {"b": "1", "multi": "two\nlines: {{ x }}"},
                 "podLabels": {"team": "chat", "app.kubernetes.io/component": "stolen"}},
    "extras": {"extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"},
                            {"name": "LASTWORD_INSECURE", "value": "false"},
                            {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}],
               "extraVolumes": [{"name": "agents", "configMap": {"name": "agent-code"}}],
               "extraVolumeMounts": [{"name": "agents", "mountPath": "/opt/agents"}],
               "initContainers": [{"name": "fetch", "image": "busybox:1", "command": ["true"]}],
               "extraContainers": [{"name": "beside", "image": "busybox:1", "command": ["sleep", "1d"]}]},
    "placement": {"nodeSelector": {"kubernetes.io/arch": "amd64"}, "priorityClassName": "high", "runtimeClassName": "gvisor",
                  "tolerations": [{"key": "chat", "operator": "Exists", "effect": "NoSchedule"}],
                  "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
                      {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"a": "b"}}}]}},
                  "topologySpreadConstraints": [{"maxSkew": 2, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule",
                                                 "labelSelector": {"matchLabels": {"a": "b"}}}]},
    "no spread": {"topologySpreadConstraints": []},
    "test": {"test": {"image": {"repository": "lastword-workers", "tag": "1"}, "agent": "demo"}},
    "no test": {"test": {"enabled": False}},
}

# Values that must be refused, and a piece of the reason.
REFUSED = {
    "no Postgres": ({}, "Where is Postgres?"),
    "two of them": ({**SECRET, "cnpg": {"enabled": True}}, "Which Postgres?"),
    "two listeners": ({"database": {"existingSecret": "a", "listener": {"existingSecret": "b", "urlFile": "/c"}}}, "Keep one"),
    "no commit ever": ({"cnpg": {"enabled": True, "instances": 1}}, "no commit would ever count"),
    "more connections than there are": ({"postgres": {"enabled": True, "maxConnections": 42}}, "may take 43 connections"),
    "grace too short": ({**SECRET, "terminationGracePeriodSeconds": 64}, "would kill replicas that still owe last words"),
    "longer drain in the same grace": ({**SECRET, "terminationGracePeriodSeconds": 65, "drain": {"seconds": 46}}, "is 66"),
    "min above max": ({**SECRET, "autoscaling": {"by": "cpu", "min": 9, "max": 3}}, "autoscaling.min is above"),
    "percent of nothing": ({**SECRET, "autoscaling": {"by": "cpu"}, "resources": {"requests": {"cpu": None}}}, "resources.requests.cpu"),
    "keda and a file": ({"database": {"urlFile": "/u"}, "autoscaling": {"by": "queue"}}, "authenticationRef"),
    "both of pdb": ({**SECRET, "pdb": {"minAvailable": 1}}, "exactly one"),
    "neither of pdb": ({**SECRET, "pdb": {"maxUnavailable": None}}, "exactly one"),
    "route to nowhere": ({**SECRET, "httpRoute": {"enabled": True}}, "parentRefs"),
    "ingress for everybody": ({**SECRET, "ingress": {"enabled": True}}, "ingress.hosts"),
    "roll-out that cannot move": ({**SECRET, "strategy": {"rollingUpdate": {"maxSurge": 0}}}, "cannot both be 0"),
    "a variable of the chart's own": ({**SECRET, "extraEnv": [{"name": "LASTWORD_DRAIN", "value": "9h"}]}, "LASTWORD_DRAIN is set by the chart"),
    "no name of an account": ({**SECRET, "serviceAccount": {"name": "gate..chat"}}, "serviceAccount"),
    "a misspelt value": ({**SECRET, "replicaCount": 3}, "replicaCount"),
    "a misspelt setting": ({**SECRET, "settings": {"turn_max": 3}}, "turn_max"),
    "a boolean doorbell": ({**SECRET, "settings": {"doorbell": False}}, "doorbell"),
    "a keep-alive past every proxy": ({**SECRET, "settings": {"keep_alive": "60s"}}, "keep_alive"),
    "a port of root": ({**SECRET, "port": 80}, "port"),
    "a text for a number": ({**SECRET, "replicas": "two"}, "replicas"),
}


def over(*layers):
    """The layers on top of each other, as Helm lays values; lists and scalars replace."""
    result = {}
    for layer in layers:
        _lay(result, copy.deepcopy(layer))
    return result


def _lay(under, layer):
    for key, value in layer.items():
        if isinstance(value, dict) and isinstance(under.get(key), dict):
            _lay(under[key], value)
        else:
            under[key] = value


def cases():
    """(name, values) of everything that must render."""
    for name, values in DATABASES.items():
        yield f"database: {name}", values
    for name, values in FEATURES.items():
        yield f"{name}", over(SECRET, values)
    for path in sorted((CHART / "examples").glob("*.yaml")):
        yield f"examples/{path.name}", yaml.safe_load(path.read_text())
    # Together: those that bear each other, with each database, with either autoscaler.
    alone = {"digest", "no replica", "one replica", "cpu", "queue", "settings left to the program", "short drain", "no network policy",
             "no pdb", "recreate", "no spread", "no test", "openshift", "kubernetes runtime"}
    together = over(*[values for name, values in FEATURES.items() if name not in alone])
    for database, values in DATABASES.items():
        for by in ("cpu", "queue"):
            yield f"all together, {database}, {by}", _both_lists(together, over(values, FEATURES[by]))
    off = over(SECRET, *(FEATURES[name] for name in ("no network policy", "no pdb", "no test", "no spread", "short drain")))
    yield "all off", off
    # Two at a time: what one switch leaves out another may refer to.
    names = sorted(FEATURES)
    for first, second in zip(names, names[7:] + names[:7]):
        yield f"{first} + {second}", over(DATABASES["trial"], FEATURES[first], FEATURES[second])


def _both_lists(first, second):
    result = over(first, second)
    for key in ("extraVolumes", "extraVolumeMounts"):
        result[key] = first.get(key, []) + second.get(key, [])
    return result


def refusals(chart):
    """One line for each of REFUSED that the chart takes, or refuses for another reason."""
    for name, (values, wanted) in REFUSED.items():
        try:
            chart.render(values)
        except Refused as why:
            if wanted not in reason(why):
                yield f"{name}: refused, but for this: {reason(why)}"
        else:
            yield f"{name}: taken"


def untried(chart):
    """Values of the chart that no case changes."""
    def leaves(node, path=()):
        for key, value in node.items():
            if isinstance(value, dict) and value:
                yield from leaves(value, (*path, key))
            else:
                yield (*path, key), value

    def at(values, path):
        for key in path:
            if not isinstance(values, dict) or key not in values:
                return None
            values = values[key]
        return [values]

    # Kubernetes' own words, handed on as they are.
    handed_on = ("resources", "podSecurityContext", "securityContext")
    tried = [values for _, values in cases()]
    for path, default in leaves(yaml.safe_load((chart.path / "values.yaml").read_text())):
        if any(name in path for name in handed_on):
            continue
        given = [at(values, path) for values in tried]
        if not any(value and value[0] != default for value in given):
            yield f"no case changes {'.'.join(path)}"
