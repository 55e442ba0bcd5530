"""Breaks the chart on purpose, one thing at a time, and sees each check find it.

Owns the list of breakages. Each is a copy of the chart with one text replaced, and the check that must
say so; a check that finds nothing is a check that cannot fail.
"""

import pathlib
import shutil
import tempfile

import check as checks
import engine
import matrix
import policy
import program
import properties
import schemas
import semantics
import values_docs
from check import fits, lint, metaschema
from engine import OLDEST

T = "templates/"
LEAK = """  operator-token: {{ $operator }}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: leak, namespace: prod}
data: {token: {{ $operator | b64dec | quote }}}
"""


def api(chart):
    for _, values in matrix.cases():
        yield from schemas.wrongs(chart.render(values).objects)


def meaning(chart):
    for _, values in matrix.cases():
        yield from semantics.wrongs(chart.render(values))


def generated(chart):
    return properties.run(chart, fits, checks.EXAMPLES)[1]


def scan(chart):
    return policy.run(chart)[2]


def unused_exception(chart):
    exceptions = [{"check": "CKV_K8S_21", "kinds": ["Deployment"], "why": "none"}]
    return [line for line in policy.run(chart, exceptions)[2] if "not needed" in line]


# What is broken; file, text, what it becomes; the check, and a piece of what it must say.
BREAKAGES = [
    ("a template that does not end",
     T + "service.yaml", "{{- end }}", "", lint, "unexpected EOF"),
    ("a schema that is none",
     "values.schema.json", '"type": "boolean"', '"type": "bool"', metaschema, "bool"),
    ("a value without a description",
     "values.yaml", "\nreplicas: 2", "\nreplicas: 2\nspare: 1", values_docs.wrongs, "spare"),
    ("a table that is behind",
     "values.yaml", "# -- How many replicas;", "# -- How many;", values_docs.wrongs, "make chart-docs"),
    ("a misspelt field",
     T + "deployment.yaml", "revisionHistoryLimit:", "revisionHistoryLimits:", api, "revisionHistoryLimits"),
    ("a field of a newer Kubernetes",
     T + "deployment.yaml", "      enableServiceLinks: false", "      enableServiceLinks: false\n      hostnameOverride: x",
     api, f"in {OLDEST}"),
    ("a number where a custom kind takes a text",
     T + "scaledobject.yaml", "| int64 | toString | quote }}", "| int64 }}", api, "targetQueryValue"),
    ("a writable root",
     "values.yaml", "readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false", scan, "CKV_K8S_22"),
    ("an exception that nothing needs",
     None, "", "", unused_exception, "CKV_K8S_21"),
    ("a text that is not quoted",
     T + "agents-configmap.yaml", ".Values.agents.toml | quote", ".Values.agents.toml", generated, ""),
    ("a name that may be a number",
     T + "_names.tpl", ".root.Release.Name | quote", ".root.Release.Name", generated, "app.kubernetes.io/instance"),
    ("a grace without the preStop",
     T + "_refuse.tpl", "add (int64 .Values.drain.preStopSeconds)", "add 0", meaning, "grace:"),
    ("a grace that nobody guards",
     T + "_refuse.tpl", "{{- if lt (int64 (include", "{{- if gt 0 (int64 (include", matrix.refusals, "grace too short"),
    ("a Service that selects nobody",
     T + "service.yaml", "  selector:\n", "  selector:\n    x: y\n", meaning, "selectors:"),
    ("a port that nobody has",
     T + "service.yaml", "targetPort: http", "targetPort: web", meaning, "ports:"),
    ("a Secret that nobody makes",
     T + "auth-secret.yaml", 'include "lastword.auth.secretName" .', '"other"', meaning, "no Secret demo-lastword-auth"),
    ("a volume that is not there",
     T + "_gateway.tpl", "- name: tmp\n  emptyDir", "- name: temp\n  emptyDir", meaning, "no volume tmp"),
    ("a key that the Secret has not",
     T + "auth-secret.yaml", "  operator-token:", "  operatortoken:", meaning, "has no operator-token"),
    ("replicas beside an autoscaler",
     T + "deployment.yaml", '{{- if eq .Values.autoscaling.by "none" }}', "{{- if true }}", meaning, "replicas:"),
    ("a token in a ConfigMap",
     T + "auth-secret.yaml", "  operator-token: {{ $operator }}\n", LEAK, meaning, "secrets: ConfigMap leak"),
    ("a URL in the environment",
     T + "_gateway.tpl", "  value: /var/lib/lastword", "  value: postgres://u:p@h/d", meaning, "secrets:"),
    ("service links",
     T + "deployment.yaml", "enableServiceLinks: false", "enableServiceLinks: true", meaning, "pods:"),
    ("a role for everything",
     T + "rbac.yaml", "resources: [pods]", 'resources: ["*"]', meaning, "pods:"),
    ("a role that may change pods",
     T + "rbac.yaml", "verbs: [create, list, watch, delete]", "verbs: [create, list, watch, delete, patch]", meaning,
     "may do more, or less"),
    ("an owner in another namespace",
     T + "_names.tpl", '{{- if eq (include "lastword.runtimeNamespace" .) .Release.Namespace -}}true{{- end -}}', "true", meaning,
     "an owner in another namespace"),
    ("worker pods that can be called",
     T + "networkpolicy.yaml", "  ingress: []\n  egress:\n    {{- include \"lastword.egress.dns\" . | nindent 4 }}\n    - to:\n        - namespaceSelector",
     "  ingress: [{}]\n  egress:\n    {{- include \"lastword.egress.dns\" . | nindent 4 }}\n    - to:\n        - namespaceSelector", meaning,
     "can be called"),
    ("liveness that asks Postgres",
     T + "_gateway.tpl", '"livenessProbe" "/livez"', '"livenessProbe" "/readyz"', meaning, "probes:"),
    ("a route that times out",
     T + "httproute.yaml", "request: 0s", "request: 15s", meaning, "streams:"),
    ("a hook that needs what is not there yet",
     T + "migrate-job.yaml", "(or .Values.cnpg.enabled .Values.postgres.enabled)", "false", meaning, "jobs:"),
    ("a pod without a policy",
     T + "networkpolicy.yaml", "[agents, migrate, test]", "[agents, test]", meaning, "policies:"),
    ("a Job that keeps its name",
     T + "_pod.tpl", "| sha256sum | trunc 8)", '| trunc 3 | replace "." "" | printf "%s0000000")', checks.immutable, "cannot be changed"),
    ("traces that do not get out",
     T + "networkpolicy.yaml", "- port: {{ int $port }}", "- port: 1", meaning, "traces:"),
    ("a variable that the program does not know",
     T + "_gateway.tpl", "name: LASTWORD_DATA_DIR", "name: LASTWORD_DATADIR", program.wrongs, "LASTWORD_DATADIR"),
    ("a setting that the program does not have",
     "values.yaml", "  retain: 30d", "  retained: 30d", program.wrongs, "retained"),
    ("a default that is another one",
     "values.yaml", "turns_max: 64", "turns_max: 65", program.wrongs, "turns_max"),
    ("an alert about no metric",
     "alerts/turns-overdue.yaml", "lastword_overdue{", "lastword_late{", program.wrongs, "lastword_late"),
    ("an alert about no label",
     "alerts/drain-cut-short.yaml", "code=", "status=", program.wrongs, "no label status"),
    ("a dashboard about no metric",
     "dashboards/lastword.json", "max(lastword_overdue{", "max(lastword_due{", program.wrongs, "lastword_due"),
    ("an alert without a runbook",
     "alerts/queue-deep.yaml", "LastwordQueueDeep", "LastwordQueueLong", program.wrongs, "runbooks:"),
    ("another release of the program",
     "Chart.yaml", 'appVersion: "0.1.0"', 'appVersion: "9.9.9"', program.wrongs, "versions:"),
]


def run():
    """(how many breakages were found, one line for each that was not)."""
    found, missed = 0, []
    for what, file, before, after, check, wanted in BREAKAGES:
        with tempfile.TemporaryDirectory() as folder:
            copy = pathlib.Path(folder) / "lastword"
            shutil.copytree(engine.CHART, copy)
            if file:
                text = (copy / file).read_text()
                if before not in text:
                    missed.append(f"{what}: {file} has no {before!r} to break")
                    continue
                (copy / file).write_text(text.replace(before, after, 1))
            said = []
            try:
                for line in check(engine.Chart(copy)):
                    said.append(line)
                    if wanted in line:
                        break
            except engine.Refused as why:
                said.append(engine.reason(why))
        if said and wanted in said[-1]:
            found += 1
        else:
            missed.append(f"{what}: not found; the check said {said[:3]}")
    return found, missed
