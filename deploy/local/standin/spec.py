"""What a pod's spec means here: its variables, its files, its ports.

Owns the reading of specs and the list of fields that are known. Keeps: a field that is neither carried out nor
known to be without a meaning for processes is refused.
"""

import os
import pathlib
import re
import shutil

from .release import Unknown

# Carried out here or in `pod`, `container` and `inside`.
_POD = {"containers", "volumes", "terminationGracePeriodSeconds", "securityContext", "restartPolicy"}
_CONTAINER = {"name", "image", "command", "args", "env", "ports", "startupProbe", "livenessProbe",
              "readinessProbe", "lifecycle", "securityContext", "volumeMounts", "workingDir"}
# Without a meaning for processes of one machine, or what they do anyway.
_POD_IDLE = {"serviceAccountName", "automountServiceAccountToken", "enableServiceLinks", "affinity",
             "topologySpreadConstraints", "nodeSelector", "tolerations", "priorityClassName", "imagePullSecrets"}
_CONTAINER_IDLE = {"imagePullPolicy", "resources"}


def check(spec):
    """Refuses a pod of which something would be skipped."""
    _only(spec, _POD | _POD_IDLE, "pod")
    for container in spec["containers"]:
        _only(container, _CONTAINER | _CONTAINER_IDLE, f"container {container['name']}")
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            _only(container.get(probe, {}), {"httpGet", "periodSeconds", "timeoutSeconds", "failureThreshold",
                                             "successThreshold", "initialDelaySeconds"}, probe)
        _only(container.get("lifecycle", {}), {"preStop"}, "lifecycle")
        _only(container.get("lifecycle", {}).get("preStop", {}), {"sleep"}, "preStop")
    if len(spec["containers"]) != 1:
        raise Unknown("the stand-in has one image, so one container a pod")


def _only(thing, known, what):
    odd = sorted(set(thing) - known)
    if odd:
        raise Unknown(f"the stand-in does not know {', '.join(odd)} of a {what}")


def environment(container, release, fields):
    """The variables that the container is given; `fields` are those of the pod that a variable may name."""
    env = {}
    for entry in container.get("env", []):
        env[entry["name"]] = _expanded(_value(entry, release, fields), env)
    return env


def _value(entry, release, fields):
    source = entry.get("valueFrom")
    if source is None:
        return entry.get("value", "")
    if "fieldRef" in source:
        path = source["fieldRef"]["fieldPath"]
        if path not in fields:
            raise Unknown(f"{entry['name']}: the field {path}")
        return fields[path]
    for reference, kind in (("secretKeyRef", "Secret"), ("configMapKeyRef", "ConfigMap")):
        if reference in source:
            return release.value(kind, source[reference]["name"], source[reference]["key"]).decode()
    raise Unknown(f"{entry['name']}: a value from {', '.join(source)}")


def _expanded(text, env):
    """`$(NAME)` of an earlier variable; one that is not there stays, and `$$` is a `$`."""
    def of(match):
        if match.group(1) is None:
            return "$"
        return env.get(match.group(1), match.group())
    return re.sub(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_]*)\)", of, text)


def command(container, entrypoint, cmd, env):
    """What is started: the image's entry point and words where the container does not say."""
    words = container.get("command", entrypoint)
    args = container.get("args", [] if "command" in container else cmd)
    return [_expanded(word, env) for word in [*words, *args]]


def ports(container):
    """The container's ports by name."""
    return {port["name"]: port["containerPort"] for port in container.get("ports", []) if "name" in port}


def lay_out(spec, release, home, owner):
    """Makes the pod's volumes as directories below `home`: name → directory. `owner` gets those it may write."""
    made = {}
    for volume in spec.get("volumes", []):
        place = pathlib.Path(home) / "volumes" / volume["name"]
        place.mkdir(parents=True)
        made[volume["name"]] = place
        if "emptyDir" in volume:
            place.chmod(0o777)
        else:
            for name, content, mode in _files(volume, release):
                _write(place / name, content, mode, owner)
    return made


def _files(volume, release):
    """(path, bytes, mode) of each file of a volume."""
    if "projected" in volume:
        mode = volume["projected"].get("defaultMode", 0o644)
        for source in volume["projected"]["sources"]:
            for name, content, _ in _files(source, release):
                yield name, content, mode
        return
    for field, kind, name in (("secret", "Secret", "secretName"), ("configMap", "ConfigMap", "name")):
        if field in volume:
            said = volume[field]
            entries = release.entries(kind, said.get(name) or said["name"])
            items = said.get("items") or [{"key": key, "path": key} for key in entries]
            for item in items:
                if item["key"] not in entries:
                    raise Unknown(f"{kind} {said.get(name) or said['name']} has no key {item['key']}")
                yield item["path"], entries[item["key"]], said.get("defaultMode", 0o644)
            return
    raise Unknown(f"a volume of {', '.join(volume)}: only emptyDir, secret, configMap and projected are known")


def _write(path, content, mode, owner):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    if owner is not None:
        shutil.chown(path, *owner)
    os.chmod(path, mode)


def users(spec):
    """(user, group, fsGroup) that the pod's processes run as, as far as it says."""
    pod = spec.get("securityContext", {})
    own = spec["containers"][0].get("securityContext", {})
    return own.get("runAsUser", pod.get("runAsUser")), own.get("runAsGroup", pod.get("runAsGroup")), pod.get("fsGroup")
