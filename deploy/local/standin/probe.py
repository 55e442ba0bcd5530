"""Probes: whether a container has started, lives and is ready, as the kubelet finds out.

Owns one question by HTTP and the counting of answers. Defaults are those of Kubernetes.
"""

import asyncio


class Probe:
    """One probe of a container, with what it counts."""

    def __init__(self, said, ports):
        get = said["httpGet"]
        self.path = get.get("path", "/")
        self.port = ports.get(get["port"], get["port"])
        self.period = said.get("periodSeconds", 10)
        self.timeout = said.get("timeoutSeconds", 1)
        self.delay = said.get("initialDelaySeconds", 0)
        self.failures_max = said.get("failureThreshold", 3)
        self.successes_min = said.get("successThreshold", 1)

    async def ask(self, address):
        """One question; true for any answer from 200 to 399 in time."""
        try:
            return await asyncio.wait_for(self._get(address), self.timeout)
        except (OSError, asyncio.TimeoutError, ValueError, IndexError):
            return False

    async def _get(self, address):
        reader, writer = await asyncio.open_connection(address, self.port)
        try:
            writer.write(f"GET {self.path} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: kube-probe/stand-in\r\n"
                         "Connection: close\r\n\r\n".encode())
            status = (await reader.readline()).split()
            return 200 <= int(status[1]) < 400
        finally:
            writer.close()

    async def verdicts(self, address):
        """Asks for ever; yields True or False as often as enough answers in a row say so."""
        await asyncio.sleep(self.delay)
        loop = asyncio.get_running_loop()
        is_last, count = None, 0
        while True:
            asked_at = loop.time()
            is_good = await self.ask(address)
            count = count + 1 if is_good == is_last else 1
            is_last = is_good
            if count >= (self.successes_min if is_good else self.failures_max):
                yield is_good
            await asyncio.sleep(max(0.0, asked_at + self.period - loop.time()))
