"""Values that nobody thought of: generated from values.schema.json, rendered, and checked like the others.

Owns the way from the schema to values. The schema says what may be written, so whatever it lets
through must render to objects that the API takes and that fit each other, or be refused by the chart
with a sentence of its own.
"""

import json
import re
from collections import Counter

import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings, strategies as st

from engine import Refused, is_by_chart, reason

# Texts that YAML, templates or people trip over.
NASTY = ["", "yes", "null", "0123", "1e3", "- a", "a: b", "#", "'", '"', "{{ .Values }}", "%", "\\", "é\u2028", " x ",
         "line\nline", "[", "*x", "&x", "!x", "true", "~", "a" * 300]
FREE = {
    "extraVolumes": [{"name": "more", "emptyDir": {}}],
    "extraVolumeMounts": [{"name": "more", "mountPath": "/more"}],
    "initContainers": [{"name": "before", "image": "busybox:1"}],
    "extraContainers": [{"name": "beside", "image": "busybox:1"}],
    "tolerations": [{"operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "podSecurityContext": {"runAsUser": 12345},
    "securityContext": {"readOnlyRootFilesystem": True},
    "resources": {"requests": {"cpu": "1", "memory": "1Gi"}},
    "cnpg.spec": {"enablePDB": True},
    "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}],
    "networkPolicy.ingress.from": [{"podSelector": {}}],
    "networkPolicy.ingress.metricsFrom": [{"podSelector": {}}],
    "networkPolicy.egress.postgres": [{"ipBlock": {"cidr": "10.0.0.0/8"}}],
    "networkPolicy.egress.upstreams": [{"ports": [{"port": 443}]}],
    "httpRoute.parentRefs": [{"name": "gate"}],
}


# A release's name may be 53 long, and have dots.
RELEASES = ["demo", "lastword", "a" * 53, "x.y", "123"]
ASCII = st.characters(codec="ascii")


class Generator:
    """Strategies for one schema."""

    def __init__(self, schema):
        self.definitions = schema["definitions"]
        self.root = schema

    def values(self):
        return self.of(self.root, "").map(_coherent)

    def of(self, schema, path):
        """A strategy for what `schema`, which stands at `path`, lets through."""
        if path in FREE:
            return st.just(FREE[path])
        if "$ref" in schema:
            name = schema["$ref"].rsplit("/", 1)[1]
            if name == "resources":
                return st.just(FREE["resources"])
            return self.of(self.definitions[name], path)
        if "oneOf" in schema:
            return st.one_of(*(self.of(one, path) for one in schema["oneOf"]))
        if "enum" in schema:
            return st.sampled_from(schema["enum"])
        return getattr(self, "_" + schema["type"])(schema, path)

    def _null(self, schema, path):
        return st.none()

    def _boolean(self, schema, path):
        return st.booleans()

    def _integer(self, schema, path):
        lowest, highest = schema["minimum"], schema.get("maximum", 100_000)
        return st.integers(lowest, highest) | st.sampled_from([lowest, highest])

    def _string(self, schema, path):
        if "pattern" not in schema:
            return st.sampled_from(NASTY).filter(lambda text: len(text) >= schema.get("minLength", 0))
        longest = schema.get("maxLength", 60)
        texts = st.from_regex(re.compile(schema["pattern"], re.ASCII), fullmatch=True, alphabet=ASCII)
        return texts.filter(lambda text: len(text) <= min(longest, 60) and not text.endswith("\n"))

    def _array(self, schema, path):
        return st.lists(self.of(schema["items"], path + "[]"), max_size=2)

    def _object(self, schema, path):
        properties = {name: self.of(one, f"{path}.{name}".lstrip(".")) for name, one in schema.get("properties", {}).items()
                      if name != "global"}
        if properties:
            required = {name: properties.pop(name) for name in schema.get("required", ())}
            return st.fixed_dictionaries(required, optional=properties)
        if isinstance(schema.get("additionalProperties"), dict):
            value = self.of(schema["additionalProperties"], path + ".*")
            return st.dictionaries(st.sampled_from(["a", "example.com/b", "yes", "0"]), value, max_size=2)
        return st.just({})


def _coherent(values):
    """Most combinations of databases are refused: keep one, so that the rest is tried too. And what
    is mounted is there."""
    if values.get("extraVolumeMounts"):
        values = {**values, "extraVolumes": FREE["extraVolumes"]}
    database, cnpg, postgres = (values.get(name) or {} for name in ("database", "cnpg", "postgres"))
    given = [name for name, is_on in (("secret", database.get("existingSecret")), ("file", database.get("urlFile")),
                                      ("cnpg", cnpg.get("enabled")), ("postgres", postgres.get("enabled"))) if is_on]
    if not given:
        return {**values, "database": {**database, "existingSecret": "db"}}
    keep = given[len(str(values)) % len(given)]
    return {
        **values,
        "database": {**database, "existingSecret": database.get("existingSecret", "") if keep == "secret" else "",
                     "urlFile": database.get("urlFile", "") if keep == "file" else ""},
        "cnpg": {**cnpg, "enabled": keep == "cnpg"},
        "postgres": {**postgres, "enabled": keep == "postgres"},
    }


def run(chart, wrongs, examples, from_seed=0):
    """Tries until `examples` value sets were rendered and checked, or one was found wrong. Returns
    (counts, findings)."""
    counts, findings = Counter(), {}
    # The name is drawn first: behind a large value set hypothesis has little left to choose by.
    generated = st.tuples(st.sampled_from(RELEASES), Generator(chart.loaded.schema).values())
    while counts["rendered"] < examples and not findings:

        @seed(from_seed + counts["rounds"])
        @settings(max_examples=examples - counts["rendered"], deadline=None, database=None,
                  phases=[Phase.generate], suppress_health_check=list(HealthCheck))
        @given(generated)
        def one(case):
            name, values = case
            for line in _try(chart, wrongs, values, name, counts):
                findings.setdefault(line, f"{line}\n  release {name}, values {json.dumps(values)}")

        one()
        counts["rounds"] += 1
    return counts, list(findings.values())


def _try(chart, wrongs, values, name, counts):
    """What is wrong with one release."""
    counts["tried"] += 1
    try:
        rendered = chart.render(values, name=name)
    except Refused as why:
        counts["refused"] += 1
        # The schema let it through: then the chart itself must say why not.
        return [] if is_by_chart(why) else [reason(why)]
    except yaml.YAMLError as why:
        return [f"no YAML: {why}"]
    counts["rendered"] += 1
    return wrongs(rendered)
