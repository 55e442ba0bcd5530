"""The API's own schemas, strict, of the oldest and the newest Kubernetes; and shapes of custom kinds.

Owns the shapes of the kinds that operators bring: they are as narrow as what the chart uses, so that a
key that is misspelt or in the wrong place is found without the operator.
"""

import functools

import jsonschema
from kubernetes_validate import utils
from referencing import Registry, Resource

from engine import NEWEST, OLDEST, title

TEXT, NUMBER, TRUTH, ANY = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}, {}


def _only(**properties):
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _some(required=(), **properties):
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def _list(items):
    return {"type": "array", "items": items, "minItems": 1}


_SECRET_KEY = _only(name=TEXT, key=TEXT)
_TARGET = _only(apiVersion=TEXT, kind=TEXT, name=TEXT)
_DURATION = {"type": "string", "pattern": "^([0-9]{1,5}(h|m|s|ms)){1,4}$"}
_HPA_BEHAVIOUR = _only(scaleDown=_only(
    stabilizationWindowSeconds={"type": "integer", "minimum": 0, "maximum": 3600},
    policies=_list(_only(type={"enum": ["Pods"]}, value=NUMBER,
                         periodSeconds={"type": "integer", "minimum": 1, "maximum": 1800}))))

CUSTOM = {
    "keda.sh/v1alpha1 TriggerAuthentication": _only(
        secretTargetRef=_list(_only(parameter={"enum": ["connection"]}, name=TEXT, key=TEXT))),
    "keda.sh/v1alpha1 ScaledObject": _only(
        scaleTargetRef=_TARGET, minReplicaCount=NUMBER, maxReplicaCount=NUMBER, pollingInterval=NUMBER,
        cooldownPeriod=NUMBER,
        fallback=_only(failureThreshold=NUMBER, replicas=NUMBER, behavior={"enum": ["currentReplicasIfHigher"]}),
        advanced=_only(horizontalPodAutoscalerConfig=_only(behavior=_HPA_BEHAVIOUR)),
        # The metadata of a trigger are texts, numbers too.
        triggers=_list(_only(type={"enum": ["postgresql"]}, metricType={"enum": ["AverageValue"]},
                             metadata=_only(query=TEXT, targetQueryValue=TEXT), authenticationRef=_only(name=TEXT)))),
    "gateway.networking.k8s.io/v1 HTTPRoute": _some(
        ["parentRefs", "rules"], parentRefs=_list({"type": "object", "required": ["name"]}), hostnames=_list(TEXT),
        rules=_list(_only(matches=_list(_only(path=_only(type={"enum": ["PathPrefix"]}, value=TEXT))),
                          timeouts=_only(request=_DURATION, backendRequest=_DURATION),
                          backendRefs=_list(_only(name=TEXT, port=NUMBER))))),
    "monitoring.coreos.com/v1 ServiceMonitor": _only(
        selector=_only(matchLabels={"type": "object"}),
        endpoints=_list(_only(port=TEXT, path=TEXT, interval=TEXT,
                              authorization=_only(credentials=_SECRET_KEY)))),
    "monitoring.coreos.com/v1 PrometheusRule": _only(groups=_list(_only(name=TEXT, rules={
        "type": "array", "items": _some(
            ["alert", "expr", "labels", "annotations"], alert={"type": "string", "pattern": "^Lastword[A-Za-z]+$"},
            expr={"type": "string", "minLength": 1}, **{"for": TEXT}, labels=_only(severity={"enum": ["critical", "warning"]}),
            annotations=_some(["summary", "description"], summary=TEXT, description=TEXT, runbook_url=TEXT, runbook=TEXT))}))),
    # Its spec is open: `cnpg.spec` is laid over it.
    "postgresql.cnpg.io/v1 Cluster": {
        "type": "object", "required": ["instances", "storage", "bootstrap", "postgresql"], "properties": {
            "instances": NUMBER, "imageName": TEXT,
            "storage": _some(["size"], size=TEXT, storageClass=TEXT),
            "bootstrap": _only(initdb=_only(database=TEXT, owner=TEXT)),
            "postgresql": {"type": "object", "properties": {
                # Parameters are texts, numbers too.
                "parameters": {"type": "object", "additionalProperties": TEXT},
                "synchronous": _only(method={"enum": ["any", "first"]}, number=NUMBER,
                                     dataDurability={"enum": ["required", "preferred"]})}}}},
}


@functools.cache
def _validator(version, kind, api_version):
    """The strict schema of one kind; None where Kubernetes itself does not have the kind."""
    group = api_version.split("/")[0].split(".")[0] + "-" if "/" in api_version else ""
    where = f"kubernetes-json-schema/v{version}.0-local-strict"
    try:
        schema = utils.schema_contents(f"{where}/{kind.lower()}-{group}{api_version.split('/')[-1]}.json", version)
    except FileNotFoundError:
        return None
    return jsonschema.Draft202012Validator(schema, registry=_definitions(where, version))


@functools.cache
def _definitions(where, version):
    definitions = utils.schema_contents(f"{where}/_definitions.json", version)
    return Resource.from_contents(definitions) @ Registry()


def wrongs(objects, versions=(OLDEST, NEWEST)):
    """What the API of either version would refuse, one line each."""
    found = []
    for thing in objects:
        custom = CUSTOM.get(f"{thing['apiVersion']} {thing['kind']}")
        if custom:
            found += _errors(jsonschema.Draft202012Validator(custom), thing["spec"], f"{title(thing)}: spec")
            continue
        for version in versions:
            validator = _validator(version, thing["kind"], thing["apiVersion"])
            if validator is None:
                found.append(f"{title(thing)}: Kubernetes {version} has no {thing['apiVersion']} {thing['kind']}")
            else:
                found += _errors(validator, thing, f"{title(thing)} in {version}: ")
    return found


def _errors(validator, data, where):
    for error in validator.iter_errors(data):
        path = "".join(f".{part}" for part in error.absolute_path)
        yield f"{where}{path}: {error.message[:300]}"
