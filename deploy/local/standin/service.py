"""A Service: an address that deals connections out in turn to pods that are ready and not leaving.

Owns the endpoints and the proxy. The proxies of a real cluster hear of a change a moment later, so this one
does too; that moment is what preStop is for.
"""

import asyncio
import itertools

from . import pipe

# Between a change of a pod and the proxies that know of it.
_HEARD_AFTER = 0.5


class Service:
    """One Service; its endpoints are looked up at each change of a pod."""

    def __init__(self, thing, cluster):
        self.name = thing["metadata"]["name"]
        self.selector = thing["spec"]["selector"].items()
        self.ports = thing["spec"]["ports"]
        self.cluster = cluster
        self.endpoints, self.next = [], itertools.count()
        self.servers, self.address = [], None

    async def open(self):
        """Takes an address and a name, and listens."""
        self.address = await self.cluster.place.service_address()
        short = f"{self.name}.{self.cluster.namespace}.svc"
        for name in (short, f"{short}.cluster.local"):
            self.cluster.place.hosts[name] = self.address
        for port in self.ports:
            async def serve(reader, writer, target=port["targetPort"]):
                await self._serve(reader, writer, target)
            at = (self.address, port["port"])
            self.servers.append(await asyncio.start_server(pipe.kept(serve), *at, backlog=pipe.BACKLOG))

    def hear(self):
        """A pod has changed: what is true now is known a moment later."""
        now = [pod for pod in self.cluster.pods() if self.selector <= pod.labels.items()
               and pod.is_ready and not pod.is_leaving]
        asyncio.get_running_loop().call_later(_HEARD_AFTER, self._know, now)

    def _know(self, endpoints):
        self.endpoints = endpoints
        self.cluster.wake()

    async def _serve(self, reader, writer, target):
        if not self.endpoints:
            writer.close()
            return
        pod = self.endpoints[next(self.next) % len(self.endpoints)]
        await pipe.to((reader, writer), pod.ip, pipe.port_of(pod, target))

    def close(self):
        """Listens no more."""
        for server in self.servers:
            server.close()
