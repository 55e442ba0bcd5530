"""Where pods live: in namespaces of their own, or on loopback addresses of their own.

Owns addresses, and how a container's program is started and found. Namespaces give what a node gives: an
address that others reach by routing, a root of its own that cannot be written, the rendered user, process 1.
They need root. On loopback every pod has an address 127.x.y.z, and what the spec says of addresses, names and
paths is translated, since the pod sees the machine's own files; the user is whoever starts the stand-in.
"""

import asyncio
import itertools
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys

from . import process, spec
from .release import REPOSITORY

# What deploy/Dockerfile and deploy/image/archive.py say of the image.
ENTRYPOINT, CMD = ["/usr/local/bin/lastword"], ["serve"]
PATH, WORKDIR = "/usr/local/bin", "/var/lib/lastword"

_BRIDGE, _NETWORK = "node", "10.42.0"


def are_namespaces_permitted():
    """Whether this user may make what `Namespaces` needs; tried, not guessed."""
    if os.geteuid() != 0 or not all(shutil.which(tool) for tool in ("ip", "unshare", "nsenter")):
        return False
    tried = "ip link add lw0 type veth peer name lw1 && mount -t tmpfs none /mnt"
    words = ["unshare", "--net", "--mount", "--pid", "--uts", "--fork", "sh", "-c", tried]
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


def lay_image(home, binary):
    """The image's root with this program, as the image's own build lays it out. A copy: the build may go on
    meanwhile, and the pods' user need not reach the repository."""
    subprocess.run([REPOSITORY / "deploy/image/root", home / "image", binary], check=True)


class Namespaces:
    """Pods with namespaces, on a bridge inside the stand-in's own network namespace."""

    name = "namespaces"
    node = f"{_NETWORK}.1"

    def __init__(self, home, binary):
        self.home = pathlib.Path(home)
        lay_image(self.home, binary)
        self.numbers = itertools.count(10)
        self.hosts = {}

    async def open(self):
        """Makes the node's network. The stand-in must have a network namespace of its own by now."""
        await _ip("link set lo up")
        await _ip(f"link add {_BRIDGE} type bridge")
        await _ip(f"addr add {self.node}/24 dev {_BRIDGE}")
        await _ip(f"link set {_BRIDGE} up")

    async def service_address(self):
        """An address of the node's that a Service gets."""
        address = f"{_NETWORK}.{next(self.numbers)}"
        await _ip(f"addr add {address}/32 dev {_BRIDGE}")
        return address

    async def enter(self, pod):
        """Makes a pod's network, which outlives its containers: a process that does nothing holds it."""
        number = next(self.numbers)
        pod.ip = f"{_NETWORK}.{number}"
        pause = ["unshare", "--net", "sleep", "infinity"]
        pod.pause = await process.start(pause, pod.home / "pause.log", {"PATH": os.environ["PATH"]})
        own = os.stat("/proc/self/ns/net").st_ino
        while os.stat(f"/proc/{pod.pause.pid}/ns/net").st_ino == own:
            await asyncio.sleep(0.005)
        inside = f"nsenter --net=/proc/{pod.pause.pid}/ns/net ip"
        await _ip(f"link add pod{number} type veth peer name eth0 netns {pod.pause.pid}")
        await _ip(f"link set pod{number} master {_BRIDGE} up")
        for words in (f"addr add {pod.ip}/24 dev eth0", "link set lo up", "link set eth0 up"):
            await _run(f"{inside} {words}")

    async def leave(self, pod):
        """Takes the pod's network away, and its end of the bridge with it."""
        process.signal_to(pod.pause.pid, signal.SIGKILL)
        await pod.pause.wait()

    async def start(self, pod, env, words, log):
        """Starts the container's program as process 1; returns the process to wait for and the one to signal."""
        user, group, fs_group = spec.users(pod.spec)
        own = pod.spec["containers"][0]
        plan = {
            "root": str(pod.home / "root"), "hostname": pod.name, "words": words, "env": env,
            "image": str(self.home / "image"), "cwd": own.get("workingDir", WORKDIR),
            "hosts": self.hosts | {pod.name: pod.ip},
            "user": user or 0, "group": group or 0, "fs_group": fs_group,
            "is_root_read_only": own.get("securityContext", {}).get("readOnlyRootFilesystem", False),
            "mounts": [[str(pod.volumes[m["name"]]), m["mountPath"], bool(m.get("readOnly"))]
                       for m in own.get("volumeMounts", [])],
        }
        (pod.home / "plan.json").write_text(json.dumps(plan))
        program = ["nsenter", f"--net=/proc/{pod.pause.pid}/ns/net", "unshare", "--mount", "--pid", "--uts", "--ipc",
                   "--fork", "--kill-child=KILL", sys.executable, pathlib.Path(__file__).with_name("inside.py"),
                   pod.home / "plan.json"]
        outer = await process.start(program, log, {"PATH": os.environ["PATH"]})
        while (inner := process.child_of(outer.pid)) is None and outer.returncode is None:
            await asyncio.sleep(0.005)
        return outer, inner or outer.pid

    async def after(self, _pod):
        """The kernel has ended whatever was in the container with its process 1."""


class Loopback:
    """Pods with an address of 127.0.0.0/8 each, and every path translated."""

    name = "loopback"
    node = "127.0.0.1"

    def __init__(self, home, binary=None):
        self.home = pathlib.Path(home)
        if binary is not None:
            lay_image(self.home, binary)
        # Two stand-ins on one machine, and the pods of one after another, do not meet.
        self.network = f"127.{random.randrange(2, 255)}.{random.randrange(1, 255)}"
        self.numbers = itertools.count(2)
        self.hosts = {}

    async def open(self):
        """Loopback is there."""

    async def service_address(self):
        """An address that a Service gets."""
        return f"{self.network}.{next(self.numbers)}"

    async def enter(self, pod):
        """Gives the pod an address."""
        pod.ip = f"{self.network}.{next(self.numbers)}"

    async def leave(self, pod):
        """An address of loopback needs no taking away."""

    async def start(self, pod, env, words, log):
        """Starts the container's program; returns the process, twice."""
        here = self._translation(pod)
        env = {name: here(value) for name, value in env.items()}
        words = [here(word) for word in words]
        cwd = here(pod.spec["containers"][0].get("workingDir", WORKDIR))
        if cwd == WORKDIR:
            # The image's own directory, over which nothing is mounted.
            cwd = pod.home
        child = await process.start(words, log, env, cwd=cwd)
        return child, child.pid

    async def after(self, pod):
        """What a container's program left behind ends with it, as in a container."""
        for pid in process.below(pod.home):
            process.signal_to(pid, signal.SIGKILL)

    def addresses(self, pod):
        """From the addresses and names that the spec says to those of this machine."""
        return _translated(self.hosts | {"0.0.0.0": pod.ip, "[::]": pod.ip})

    def _translation(self, pod):
        """The same, and from the container's paths to those of this machine."""
        paths = {m["mountPath"]: str(pod.volumes[m["name"]])
                 for m in pod.spec["containers"][0].get("volumeMounts", [])}
        paths[PATH] = f"{self.home}/image{PATH}"
        return _translated(paths | self.hosts | {"0.0.0.0": pod.ip, "[::]": pod.ip})


def _translated(told):
    """What replaces each of these texts in a text, where it stands by itself."""
    # Of paths whole ones only, from their root on; a name of a host follows upon `//`.
    before = {text: r"(?<![\w./-])" if text.startswith("/") else r"(?<![\w.-])" for text in told}
    longest_first = sorted(told, key=len, reverse=True)
    pattern = re.compile("|".join(rf"{before[text]}{re.escape(text)}(?![\w.-])" for text in longest_first))
    return lambda text: pattern.sub(lambda match: told[match.group()], text)


async def _ip(words):
    await _run(f"ip {words}")


async def _run(words):
    pipe, out = asyncio.subprocess.PIPE, asyncio.subprocess.STDOUT
    child = await asyncio.create_subprocess_exec(*words.split(), stdout=pipe, stderr=out)
    said, _ = await child.communicate()
    if child.returncode:
        raise OSError(f"{words}: {said.decode().strip()}")
