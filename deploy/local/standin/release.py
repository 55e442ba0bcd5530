"""A release: the chart's objects as Helm's own engine renders them, in the order in which Helm makes them.

Owns the values, the look-ups of ConfigMaps and Secrets, and what an operator makes beside the chart. Refuses
kinds that the stand-in has nothing for.
"""

import base64
import pathlib
import sys

REPOSITORY = pathlib.Path(__file__).resolve().parents[3]
NAME, NAMESPACE = "lastword", "default"
# Known, and without a meaning here: nothing routes, scrapes, evicts or scales.
WITHOUT_MEANING = {"NetworkPolicy", "PodDisruptionBudget", "ServiceAccount"}


class Unknown(Exception):
    """The chart asks for something that the stand-in does not have."""


class Release:
    """What `helm install --wait` would have made, with the same parts."""

    def __init__(self, values_files, database_url):
        sys.path.insert(0, str(REPOSITORY / "tests" / "chart"))
        import engine
        import yaml

        values = {}
        for path in values_files:
            values = _laid_over(values, yaml.safe_load(pathlib.Path(path).read_text()) or {})
        rendered = engine.Chart().render(values, name=NAME, namespace=NAMESPACE)
        self.data = {("Secret", "lastword-database"): {"url": database_url.encode()}}
        self.deployment = None
        self.services, self.jobs = [], []
        for thing in rendered.objects:
            self._take(thing)
        if self.deployment is None:
            raise Unknown("the chart rendered no Deployment")

    def _take(self, thing):
        kind, name = thing["kind"], thing["metadata"]["name"]
        hooks = thing["metadata"].get("annotations", {}).get("helm.sh/hook", "").split(",")
        if kind == "Deployment":
            self.deployment = thing
        elif kind == "Service":
            self.services.append(thing)
        elif kind == "Secret":
            decoded = {key: base64.b64decode(text) for key, text in thing.get("data", {}).items()}
            self.data[kind, name] = decoded | {k: v.encode() for k, v in thing.get("stringData", {}).items()}
        elif kind == "ConfigMap":
            self.data[kind, name] = {key: text.encode() for key, text in thing.get("data", {}).items()}
        elif kind == "Job" and "post-install" in hooks:
            self.jobs.append(thing)
        elif kind not in WITHOUT_MEANING and "test" not in hooks:
            raise Unknown(f"{kind} {name}: the stand-in has nothing for it")

    def value(self, kind, name, key):
        """One entry of a ConfigMap or Secret, as bytes."""
        entries = self.entries(kind, name)
        if key not in entries:
            raise Unknown(f"{kind} {name} has no key {key}")
        return entries[key]

    def entries(self, kind, name):
        """All entries of a ConfigMap or Secret."""
        if (kind, name) not in self.data:
            raise Unknown(f"there is no {kind} {name}")
        return self.data[kind, name]


def _laid_over(under, over):
    if not isinstance(under, dict) or not isinstance(over, dict):
        return over
    return under | {key: _laid_over(under.get(key), value) for key, value in over.items()}
