"""Bytes from one connection to another, both ways, with their ends and their aborts.

Owns the copying for Services and forwards. Keeps: a connection that was cut is cut on the other side too, not
closed as if all had been said.
"""

import asyncio
import socket
import struct

from . import spec

# Of connections that come at once; one that finds no place there is tried again a second later.
BACKLOG = 1024
_PIECE = 65536
_RESET = struct.pack("ii", 1, 0)


def kept(serve):
    """Serves each connection in a task that is held: the loop itself holds tasks so weakly that they may vanish."""
    tasks = set()

    def accept(reader, writer):
        task = asyncio.create_task(serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    return accept


def port_of(pod, target):
    """A pod's port by number or by name."""
    return spec.ports(pod.own).get(target, target)


async def to(client, address, port):
    """Joins a connection to an address until both sides have ended."""
    try:
        server = await asyncio.open_connection(address, port)
    except OSError:
        abort(client[1])
        return
    await join(client, server)


async def join(one, other):
    """Copies both ways. A clean end is passed on as such; anything else aborts both."""
    try:
        async with asyncio.TaskGroup() as both:
            both.create_task(_copy(one[0], other[1]))
            both.create_task(_copy(other[0], one[1]))
    except* OSError:
        abort(one[1])
        abort(other[1])
    except* asyncio.CancelledError:
        abort(one[1])
        abort(other[1])
        raise
    finally:
        one[1].close()
        other[1].close()


async def _copy(reader, writer):
    while piece := await reader.read(_PIECE):
        writer.write(piece)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


def abort(writer):
    """Ends a connection so that the other side sees a reset."""
    held = writer.get_extra_info("socket")
    if held is not None and held.family in (socket.AF_INET, socket.AF_INET6):
        try:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        except OSError:
            pass
    writer.transport.abort()
