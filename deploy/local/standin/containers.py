"""Pods as containers of the real image, for machines with a Docker engine.

Owns the words of `docker run` for a pod. The containers share this machine's network and get addresses of loopback,
as `place.Loopback` gives them; everything else is the container's own: the image's root, read-only where the pod
says so, the pod's user, its volumes at their paths, no capabilities.
"""

import asyncio
import os
import signal

from . import process, spec
from .place import Loopback


class Containers(Loopback):
    """Pods on loopback addresses, in containers."""

    name = "containers"

    def __init__(self, home, image):
        super().__init__(home)
        self.image = image
        self.started = 0
        # A pod's newest container.
        self.newest = {}

    async def start(self, pod, env, words, log):
        """Starts a container; returns the process that waits for it and the container's process 1."""
        self.started += 1
        name = self.newest[pod.name] = f"{self.home.name}-{pod.name}-{self.started}"
        own = pod.spec["containers"][0]
        here = self.addresses(pod)
        docker = ["docker", "run", "--rm", "--name", name, "--network", "host", "--entrypoint", words[0]]
        docker += _confinement(pod.spec, own)
        for variable, value in env.items():
            docker += ["--env", f"{variable}={here(value)}"]
        for host, address in self.hosts.items():
            docker += ["--add-host", f"{host}:{address}"]
        for mount in own.get("volumeMounts", []):
            mode = "ro" if mount.get("readOnly") else "rw"
            docker += ["--volume", f"{pod.volumes[mount['name']]}:{mount['mountPath']}:{mode}"]
        docker += [self.image, *(here(word) for word in words[1:])]
        told = {word: os.environ[word] for word in ("PATH", "HOME", "DOCKER_HOST") if word in os.environ}
        waiting = await process.start(docker, log, told)
        pid = None
        while pid is None and waiting.returncode is None:
            pid = await _process_of(name)
        return waiting, pid or waiting.pid

    async def after(self, pod):
        """A container that outlives whoever waits for it is removed."""
        if pod.name in self.newest:
            await _docker("rm", "--force", self.newest.pop(pod.name))

    async def leave(self, pod):
        """Whatever is left of the pod goes."""
        await self.after(pod)


def _confinement(pod, container):
    """The flags for what the pod says of its security."""
    user, group, fs_group = spec.users(pod)
    said = pod.get("securityContext", {}) | container.get("securityContext", {})
    flags = ["--cap-drop", "ALL"] if "ALL" in said.get("capabilities", {}).get("drop", []) else []
    if user is not None:
        flags += ["--user", f"{user}:{group if group is not None else user}"]
    if fs_group is not None:
        flags += ["--group-add", str(fs_group)]
    if said.get("readOnlyRootFilesystem"):
        flags.append("--read-only")
    if said.get("allowPrivilegeEscalation") is False:
        flags += ["--security-opt", "no-new-privileges"]
    return flags


async def _process_of(name):
    """The process 1 of a container, as this machine counts processes; None where it has not started."""
    said = (await _docker("inspect", "--format", "{{.State.Pid}}", name)).strip()
    return int(said) if said.isdigit() and said != "0" else None


async def _docker(*words):
    child = await asyncio.create_subprocess_exec(
        "docker", *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL)
    try:
        said, _ = await child.communicate()
    except asyncio.CancelledError:
        process.signal_to(child.pid, signal.SIGKILL)
        raise
    return said.decode()
