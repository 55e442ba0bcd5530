"""The cluster: one release, its pods, its Services, its Postgres.

Owns the order in which things come and go. Every change of a pod leads to one look at everything, as in a
cluster every watch does.
"""

import asyncio
import os
import pathlib
import random
import sys
import time

from .deployment import Deployment
from .pod import Pod
from .postgres import Postgres
from .release import NAMESPACE, Release
from .service import Service

_READY_MAX, _JOB_MAX = 90, 60


class Cluster:
    """Everything, from `open` to `close`. `make_place` is given the home, and makes where pods live."""

    namespace = NAMESPACE

    def __init__(self, home, values_files, make_place):
        self.home = pathlib.Path(home)
        self.home.chmod(0o755)
        self.logs = self.home / "logs"
        self.logs.mkdir()
        self.values_files = values_files
        self.place = make_place(self.home)
        self.began_at = time.monotonic()
        self.changed = asyncio.Event()
        self.release = self.deployment = self.postgres = None
        self.services, self.job_pods, self.births = [], [], set()
        self.is_closing = self.has_look_ahead = False
        # Pods that were killed at the end of their grace.
        self.cut_short = []

    def say(self, text):
        """A line of what happens, for a person."""
        print(f"[{time.monotonic() - self.began_at:6.1f} s] {text}", file=sys.stderr, flush=True)

    def pods(self):
        """All of them."""
        return [*(self.deployment.pods if self.deployment else []), *self.job_pods]

    def pod(self, name):
        """The one of this name, while there is one."""
        for pod in self.pods():
            if pod.name == name:
                return pod
        raise LookupError(f"there is no pod {name}")

    async def open(self):
        """As `helm install --wait`: Postgres first, which an operator has, then the release, then its jobs."""
        await self.place.open()
        self.postgres = Postgres(self.home, self.place.node)
        await self.postgres.make()
        self.release = Release(self.values_files, self.postgres.url)
        for thing in self.release.services:
            service = Service(thing, self)
            await service.open()
            self.services.append(service)
        self.deployment = Deployment(self.release.deployment, self._make_pod)
        self.on_change()
        await self.rolled_out()
        for job in self.release.jobs:
            await self._run_job(job)
        self.say(f"{len(self.deployment.pods)} pods are ready, in {self.place.name}")

    def _make_pod(self, name, template):
        pod = Pod(name, template, self, self.on_change)
        birth = asyncio.create_task(pod.begin())
        self.births.add(birth)
        birth.add_done_callback(self._was_born)
        self.say(f"{name} is made")
        return pod

    def _was_born(self, birth):
        self.births.discard(birth)
        if not birth.cancelled() and birth.exception() is not None:
            self.say(f"a pod could not be made: {birth.exception()!r}")

    def on_change(self):
        """Something about a pod is different: everybody looks."""
        if not self.has_look_ahead:
            self.has_look_ahead = True
            asyncio.get_running_loop().call_soon(self._look)

    def _look(self):
        # Later, and once: what is done now may be one of many changes, and the looks lead to changes too.
        self.has_look_ahead = False
        if self.deployment is not None and not self.is_closing:
            self.deployment.look()
        for service in self.services:
            service.hear()
        self.wake()

    def wake(self):
        """Whoever waits for something to be so looks again."""
        self.changed.set()
        self.changed = asyncio.Event()

    async def until(self, is_so, at_most, what):
        """Waits until something is so, looking at each change."""
        try:
            async with asyncio.timeout(at_most):
                while not is_so():
                    await self.changed.wait()
        except TimeoutError:
            raise TimeoutError(f"not within {at_most} s: {what}") from None

    async def rolled_out(self):
        """Until the Deployment is as it should be."""
        await self.until(self.deployment.is_rolled_out, _READY_MAX, "all pods are ready")

    async def _run_job(self, job):
        name = f"{job['metadata']['name']}-{random.randrange(1 << 20):05x}"
        # A job's pod takes longer to be there than the proxies take to know the replicas.
        known = "the Services know their pods"
        await self.until(lambda: all(service.endpoints for service in self.services), _READY_MAX, known)
        pod = Pod(name, job["spec"]["template"], self, self.on_change)
        self.job_pods.append(pod)
        await pod.begin()
        tries = job["spec"].get("backoffLimit", 6)
        await self.until(lambda: pod.phase == "Succeeded" or pod.restarts > tries, _JOB_MAX, f"the job {name} ends")
        if pod.phase != "Succeeded":
            raise OSError(f"the job {name} failed:\n{pod.log.read_text()}")
        self.say(f"the job {job['metadata']['name']} is done")
        pod.delete(0)
        await pod.gone.wait()
        self.job_pods.remove(pod)

    async def close(self, is_gentle):
        """Ends everything; gently, or at once. What was cut short is said."""
        self.is_closing = True
        pods = self.pods()
        await asyncio.gather(*self.births, return_exceptions=True)
        for pod in pods:
            pod.delete(None if is_gentle else 0)
        await asyncio.gather(*(pod.gone.wait() for pod in pods))
        for service in self.services:
            service.close()
        if self.postgres is not None:
            await self.postgres.stop("fast" if is_gentle else "immediate")

    def token(self):
        """An operator's token, from the Secret that the chart made."""
        return self.release.value("Secret", f"{self.deployment.name}-auth", "operator-token").decode()

    def variables(self):
        """What a command needs to know of this cluster."""
        front = next(service for service in self.services if service.name == self.deployment.name)
        return {"FRONT": f"http://{front.address}:{front.ports[0]['port']}", "CLUSTER_HOME": str(self.home),
                "DATABASE_URL": self.postgres.local_url, "TOKEN": self.token(),
                "PATH": f"{pathlib.Path(__file__).resolve().parents[1]}:{os.environ['PATH']}"}
