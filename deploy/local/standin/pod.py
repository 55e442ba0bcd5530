"""A pod: one container, started again when it ends, probed, and ended in the order of a kubelet.

Owns the states of a pod:

    Pending ─► Running ⇄ (ready, not ready) ─► Terminating ─► gone
                 │ ▲
                 ▼ │ at once, then after 10 s, 20 s, … 300 s
             CrashLoopBackOff

Keeps: preStop, SIGTERM and the wait after it share one grace; SIGKILL comes at its end and not before.
"""

import asyncio
import os
import pathlib
import signal
import time

from . import spec
from .place import CMD, ENTRYPOINT, PATH
from .probe import Probe

_BACK_OFF_FIRST, _BACK_OFF_MAX, _BACK_OFF_FORGOTTEN = 10, 300, 600
# A preStop that took all of the grace leaves so much, once.
_GRACE_LEAST = 2


class Pod:
    """What became of one template. `on_change` is called whenever anybody may want to look again."""

    def __init__(self, name, template, cluster, on_change):
        self.name = name
        self.labels = template.get("metadata", {}).get("labels", {})
        self.spec = template["spec"]
        spec.check(self.spec)
        self.own = self.spec["containers"][0]
        self.cluster, self.on_change = cluster, on_change
        self.home = pathlib.Path(cluster.home) / "pods" / name
        self.ip = self.pause = None
        self.is_ready = self.has_started = False
        self.phase, self.restarts, self.exit_code = "Pending", 0, None
        self.born_at, self.leaving_at = time.monotonic(), None
        self.child = self.pid = self.life = self.end = None
        self.born, self.leaving, self.gone = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @property
    def log(self):
        """The file with all that its containers said."""
        return self.cluster.logs / f"{self.name}.log"

    @property
    def is_leaving(self):
        return self.leaving_at is not None

    async def begin(self):
        """Makes its volumes and its address, and lets it live."""
        try:
            self.home.mkdir(parents=True)
            owner = (0, spec.users(self.spec)[2] or 0) if os.geteuid() == 0 else None
            self.volumes = spec.lay_out(self.spec, self.cluster.release, self.home, owner)
            await self.cluster.place.enter(self)
            self.life = asyncio.create_task(self._live())
            self.life.add_done_callback(self._say_why)
        finally:
            self.born.set()

    def _say_why(self, life):
        if not life.cancelled() and life.exception() is not None:
            self.cluster.say(f"{self.name} cannot live: {life.exception()!r}")

    async def _live(self):
        back_off = 0
        restart_policy = self.spec.get("restartPolicy", "Always")
        while not self.is_leaving:
            started_at = time.monotonic()
            self.exit_code = await self._run_once()
            if self.is_leaving or restart_policy == "OnFailure" and self.exit_code == 0:
                break
            if time.monotonic() - started_at > _BACK_OFF_FORGOTTEN:
                back_off = 0
            self._become("CrashLoopBackOff" if back_off else "Pending")
            self.restarts += 1
            # Whoever is deleted meanwhile need not wait.
            try:
                await asyncio.wait_for(self.leaving.wait(), back_off)
            except asyncio.TimeoutError:
                pass
            back_off = min(_BACK_OFF_MAX, back_off * 2 or _BACK_OFF_FIRST)
        if not self.is_leaving:
            self._become("Succeeded")

    async def _run_once(self):
        """One container, from its start to its end; its exit code, below 0 for a signal."""
        fields = {"status.podIP": self.ip, "metadata.name": self.name, "metadata.namespace": self.cluster.namespace}
        env = {"PATH": PATH, "HOSTNAME": self.name, "HOME": "/"}
        env |= spec.environment(self.own, self.cluster.release, fields)
        words = spec.command(self.own, ENTRYPOINT, CMD, env)
        self.child, self.pid = await self.cluster.place.start(self, env, words, self.log)
        if self.is_leaving:
            # It was deleted while it started, before there was anything to end.
            self.signal(signal.SIGKILL)
        self._become("Running")
        probing = asyncio.create_task(self._probe())
        code = await self.child.wait()
        probing.cancel()
        await self.cluster.place.after(self)
        self.pid, self.has_started = None, False
        self.is_ready = False
        self.on_change()
        return code

    async def _probe(self):
        """The startup probe first; then the two others, side by side."""
        probes = {name: Probe(self.own[name], spec.ports(self.own))
                  for name in ("startupProbe", "livenessProbe", "readinessProbe") if name in self.own}
        if "startupProbe" in probes:
            async for is_good in probes["startupProbe"].verdicts(self.ip):
                if is_good:
                    break
                return await self._fail("startup")
        self.has_started = True
        async with asyncio.TaskGroup() as both:
            both.create_task(self._watch_readiness(probes.get("readinessProbe")))
            both.create_task(self._watch_life(probes.get("livenessProbe")))

    async def _watch_readiness(self, probe):
        if probe is None:
            self._be_ready(True)
            return
        async for is_good in probe.verdicts(self.ip):
            self._be_ready(is_good)

    async def _watch_life(self, probe):
        if probe is None:
            return
        async for is_good in probe.verdicts(self.ip):
            if not is_good:
                return await self._fail("liveness")

    async def _fail(self, probe):
        self.cluster.say(f"{self.name}: the {probe} probe failed; the container is ended")
        pid = self.pid
        self.signal(signal.SIGTERM)
        await asyncio.sleep(self.grace)
        if self.pid == pid:
            self.signal(signal.SIGKILL)

    @property
    def grace(self):
        return self.spec.get("terminationGracePeriodSeconds", 30)

    def delete(self, grace=None):
        """Begins its end; a second call may only shorten the grace."""
        if not self.is_leaving:
            self.leaving_at = time.monotonic()
            self.leaving.set()
            self._become("Terminating")
            self.end = asyncio.create_task(self._end(self.grace if grace is None else grace))
        elif grace == 0:
            self.signal(signal.SIGKILL)

    async def _end(self, grace):
        until = time.monotonic() + grace
        await self.born.wait()
        if self.life is not None:
            if self.pid is not None and grace > 0:
                await self._leave_gently(until)
            self.signal(signal.SIGKILL)
            await asyncio.gather(self.life, return_exceptions=True)
            await self.cluster.place.leave(self)
        self._become("Gone")
        self.gone.set()

    async def _leave_gently(self, until):
        pre_stop = self.own.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        if pre_stop and self.has_started:
            await asyncio.wait({self.life}, timeout=min(pre_stop, until - time.monotonic()))
        self.signal(signal.SIGTERM)
        left = max(until - time.monotonic(), _GRACE_LEAST)
        _, running = await asyncio.wait({self.life}, timeout=left)
        if running:
            self.cluster.cut_short.append(self.name)
            self.cluster.say(f"{self.name}: its grace is over; it is killed")

    def signal(self, which):
        """Sends the container's program a signal."""
        if self.pid is not None:
            try:
                os.kill(self.pid, which)
            except ProcessLookupError:
                pass

    def _be_ready(self, is_ready):
        if is_ready != self.is_ready and not self.is_leaving:
            self.is_ready = is_ready
            self.on_change()

    def _become(self, phase):
        if not self.is_leaving or phase in ("Terminating", "Gone"):
            self.phase = phase
        self.on_change()

    def row(self):
        """What a list of pods says of it."""
        return {
            "name": self.name, "ready": self.is_ready and not self.is_leaving, "status": self.phase,
            "restarts": self.restarts, "ip": self.ip, "pid": self.pid, "age": round(time.monotonic() - self.born_at),
        }
