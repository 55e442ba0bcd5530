"""The stand-in's door for commands: a socket in its home, one request a connection.

Owns the requests. A request is one line of JSON, `{"do": NAME, …}`; so is the answer, `{"ok": …}` or
`{"error": TEXT}`. After `connect` the connection goes on as one to the pod, as a port-forward's streams do.
"""

import asyncio
import json
import signal

from . import pipe

SOCKET = "control"


class Control:
    """Serves one cluster."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.server = None
        self.is_over = asyncio.Event()

    async def open(self):
        """Listens."""
        at = self.cluster.home / SOCKET
        self.server = await asyncio.start_unix_server(pipe.kept(self._serve), at, backlog=pipe.BACKLOG)

    def close(self):
        """Listens no more."""
        if self.server is not None:
            self.server.close()

    async def _serve(self, reader, writer):
        try:
            asked = json.loads(await reader.readline())
            do = getattr(self, f"do_{asked.pop('do')}")
            if do in (self.do_connect, self.do_hold):
                await do(reader, writer, **asked)
                return
            answer = {"ok": await do(**asked)}
        except (LookupError, ValueError, TypeError, AttributeError, OSError) as why:
            answer = {"error": str(why)}
        try:
            _say(writer, answer)
            await writer.drain()
        except OSError:
            pass
        writer.close()

    async def do_pods(self):
        """All pods, a row each."""
        return [pod.row() for pod in self.cluster.deployment.pods]

    async def do_variables(self):
        """What a command needs to know."""
        return self.cluster.variables()

    async def do_logs(self, pod):
        """Where the pod's log is; it stays when the pod goes."""
        return str(self.cluster.logs / f"{pod}.log")

    async def do_kill(self, pod):
        """SIGKILL to the container's program. The pod stays, and starts it again."""
        self.cluster.pod(pod).signal(signal.SIGKILL)
        self.cluster.say(f"{pod}: its program is killed")

    async def do_delete(self, pod, grace=None, wait=False):
        """Deletes a pod, with its own grace unless another is given."""
        found = self.cluster.pod(pod)
        found.delete(grace)
        self.cluster.say(f"{pod} is deleted" + ("" if grace is None else f", with a grace of {grace} s"))
        self.cluster.on_change()
        if wait:
            await found.gone.wait()

    async def do_rollout(self):
        """Restarts all pods, one after another, and waits for the last."""
        self.cluster.say("a roll-out begins")
        self.cluster.deployment.restart()
        self.cluster.on_change()
        await self.cluster.rolled_out()
        self.cluster.say("rolled out")

    async def do_ready(self):
        """Waits until the Deployment is as it should be."""
        await self.cluster.rolled_out()

    async def do_endpoints(self):
        """The addresses behind each Service."""
        return {service.name: [pod.ip for pod in service.endpoints] for service in self.cluster.services}

    async def do_postgres(self, order):
        """`start`, or one of the ways to stop."""
        self.cluster.say(f"Postgres: {order}")
        if order == "start":
            await self.cluster.postgres.start()
        else:
            await self.cluster.postgres.stop({"stop": "fast", "crash": "immediate", "kill": "kill"}[order])

    async def do_down(self):
        """Everything ends."""
        self.is_over.set()

    async def do_hold(self, _reader, writer, pod):
        """Keeps the connection for as long as the pod lives: what a forward ends with."""
        found = self.cluster.pod(pod)
        _say(writer, {"ok": None})
        await found.gone.wait()
        writer.close()

    async def do_connect(self, reader, writer, pod, port):
        """Becomes a connection to the pod. Where there is none, it ends without an answer."""
        found = self.cluster.pod(pod)
        try:
            there = await asyncio.open_connection(found.ip, pipe.port_of(found, port))
        except OSError:
            writer.transport.abort()
            return
        _say(writer, {"ok": None})
        await pipe.join((reader, writer), there)


def _say(writer, answer):
    writer.write(json.dumps(answer).encode() + b"\n")
