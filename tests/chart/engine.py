"""The chart in this process: values and a release become objects, by Helm's own engine.

Owns the rendering and the reading of what comes out. Refuses YAML that says one key twice: the engine
and the API server would each keep one of the two.
"""

import contextlib
import json
import os
import pathlib
import re
from dataclasses import dataclass, field

import helm_python
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "lastword"
# The oldest that Chart.yaml takes, and the newest whose schemas are installed.
OLDEST, NEWEST = "1.30", "1.37"


class Refused(Exception):
    """The chart or its schema says no to these values, and why."""


@dataclass
class Rendered:
    """What one release is made of."""

    values: dict
    objects: list = field(default_factory=list)
    notes: str = ""
    namespace: str = "prod"

    def of(self, *kinds):
        return [thing for thing in self.objects if thing["kind"] in kinds]

    def text(self):
        return yaml.safe_dump_all(self.objects, sort_keys=False)


class _Loader(yaml.CSafeLoader):
    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"`{key}` stands twice", node.start_mark)
        return super().construct_mapping(node, deep)

    def construct_yaml_map(self, node):
        data = {}
        yield data
        data.update(self.construct_mapping(node))


_Loader.add_constructor("tag:yaml.org,2002:map", _Loader.construct_yaml_map)


class Chart:
    """A chart's directory, loaded once."""

    def __init__(self, path=CHART):
        self.path = pathlib.Path(path)
        self.loaded = helm_python.Chart.load(str(path))

    def render(self, values=None, name="demo", namespace="prod", is_upgrade=False):
        """The objects of a release; `Refused` where the chart does not take the values."""
        values = values or {}
        try:
            manifests = self.loaded.render(
                values, name=name, namespace=namespace, is_upgrade=is_upgrade, is_install=not is_upgrade
            )
        except helm_python.HelmError as why:
            raise Refused(str(why)) from None
        rendered = Rendered(values=self.loaded.merge_values(values), namespace=namespace)
        for path, text in sorted(manifests.items()):
            if path.endswith("NOTES.txt"):
                rendered.notes = text
                continue
            for thing in yaml.load_all(text, Loader=_Loader):
                if thing is not None:
                    thing.setdefault("metadata", {}).setdefault("name", "")
                    rendered.objects.append(thing)
        # As JSON sees it: no anchors, no dates, nothing that only YAML has.
        rendered.objects = json.loads(json.dumps(rendered.objects, default=str))
        return rendered

    def lint(self, values, version):
        """What `helm lint --strict` finds, errors and warnings."""
        with _quiet():
            report = helm_python.lint(str(self.path), values, strict=True, kube_version=version)
        return [f"{m['path']}: {m['error']}" for m in report["messages"] if m["severity"] > 1] + report["errors"]


@contextlib.contextmanager
def _quiet():
    """While it lints, the engine writes each `fail` of a template to stderr, and goes on."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


_BY_CHART = re.compile(r"^execution error at \([^)]*\): ")


def reason(refusal):
    """The sentence that a person gets to see, without the engine's way to it."""
    return _BY_CHART.sub("", str(refusal)).strip()


def is_by_chart(refusal):
    """Whether a sentence of the chart's own says no; else it is the schema, or an engine that gave up."""
    return bool(_BY_CHART.match(str(refusal)))


def pod_specs(objects):
    """Every pod that these objects lead to: (owner, labels, spec)."""
    for thing in objects:
        if thing["kind"] == "Pod":
            yield thing, thing["metadata"].get("labels", {}), thing["spec"]
        elif thing["kind"] in ("Deployment", "StatefulSet", "Job"):
            template = thing["spec"]["template"]
            yield thing, template.get("metadata", {}).get("labels", {}), template["spec"]


def title(thing):
    return f"{thing['kind']} {thing['metadata']['name']}"
