"""The commands that ask a stand-in that runs: lists, orders, forwards.

Owns what a person or the driver types and sees. Finds the stand-in by CLUSTER_HOME, else by the file that
`up` leaves.
"""

import asyncio
import json
import os
import pathlib
import sys

from . import pipe
from .control import SOCKET
from .release import REPOSITORY

POINTER = REPOSITORY / "target" / "local-cluster"


class Refused(Exception):
    """The stand-in said no, or is not there."""


def home():
    """Where the stand-in that runs has its home."""
    if "CLUSTER_HOME" in os.environ:
        return pathlib.Path(os.environ["CLUSTER_HOME"])
    if POINTER.exists():
        return pathlib.Path(POINTER.read_text().strip())
    raise Refused("no stand-in runs here; `deploy/local/cluster up` starts one")


async def _open(**asked):
    try:
        reader, writer = await asyncio.open_unix_connection(home() / SOCKET)
    except OSError as why:
        raise Refused(f"no stand-in answers at {home()}: {why}") from None
    writer.write(json.dumps(asked).encode() + b"\n")
    line = await reader.readline()
    answer = json.loads(line) if line else {"error": "no answer"}
    if "error" in answer:
        raise Refused(answer["error"])
    return answer["ok"], (reader, writer)


async def ask(**asked):
    """One question, its answer."""
    answer, (_, writer) = await _open(**asked)
    writer.close()
    return answer


async def pods(is_ready_only):
    """A table, or the names of those that are ready."""
    rows = await ask(do="pods")
    if is_ready_only:
        print("".join(f"{row['name']}\n" for row in rows if row["ready"]), end="")
        return
    heads = ("NAME", "READY", "STATUS", "RESTARTS", "IP", "AGE")
    table = [heads] + [(row["name"], "1/1" if row["ready"] else "0/1", row["status"], str(row["restarts"]),
                        row["ip"] or "", f"{row['age']}s") for row in rows]
    widths = [max(len(line[n]) for line in table) for n in range(len(heads))]
    for line in table:
        print("   ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())


async def forward(pod, ports):
    """Listens on loopback for one pod, as `kubectl port-forward pod/NAME`: ends with the pod."""
    local, _, remote = ports.partition(":")
    _, (held, _writer) = await _open(do="hold", pod=pod)

    async def serve(reader, writer):
        try:
            _, there = await _open(do="connect", pod=pod, port=int(remote or local))
        except Refused:
            pipe.abort(writer)
            return
        await pipe.join((reader, writer), there)

    server = await asyncio.start_server(pipe.kept(serve), "127.0.0.1", int(local), backlog=pipe.BACKLOG)
    print(f"Forwarding from 127.0.0.1:{local} -> {remote or local}", flush=True)
    await held.read()
    server.close()
    raise Refused(f"lost connection to pod {pod}")


async def logs(pod):
    """What the pod's containers said."""
    sys.stdout.write(pathlib.Path(await ask(do="logs", pod=pod)).read_text())


async def env():
    """The variables of this cluster, to be taken by a shell."""
    for name, value in (await ask(do="variables")).items():
        if name != "PATH":
            print(f"export {name}='{value}'")
