"""The stand-in's own Postgres, which can be broken and healed.

Owns one data directory and the server over it. Listens on the node's address for the pods, and on a socket for
whoever is on this machine. Durable as far as a crash of the server goes; not for a power cut.
"""

import asyncio
import os
import pathlib
import pwd
import random
import secrets
import shutil
import signal
import socket
import subprocess

from . import process
from .release import REPOSITORY

_START_MAX, _STOP_MAX = 60, 20
_SIGNALS = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT, "kill": signal.SIGKILL}


class Postgres:
    """One server; `stop` and `start` as often as wanted."""

    def __init__(self, home, address):
        self.home = pathlib.Path(home) / "postgres"
        self.address, self.port = address, _free_port(address)
        finder = subprocess.run([REPOSITORY / ".ci/postgres-bin"], capture_output=True, text=True, check=False)
        if finder.returncode:
            raise FileNotFoundError(finder.stderr.strip())
        self.bin = pathlib.Path(finder.stdout.strip())
        # Postgres does not run as root.
        self.user = _stand_in_for_root() if os.geteuid() == 0 else None
        self.env = {"PATH": os.environ["PATH"], "LC_ALL": "C"}
        self.child = None
        # Whoever else is on this machine reaches the port too.
        self.password = secrets.token_hex(16)

    @property
    def url(self):
        """As pods reach it."""
        return f"postgres://postgres:{self.password}@{self.address}:{self.port}/postgres"

    @property
    def local_url(self):
        """As this machine reaches it, whatever its network."""
        return f"postgres://postgres:{self.password}@localhost:{self.port}/postgres?host={self.home}"

    async def make(self):
        """Makes the data directory and starts."""
        self.home.mkdir(mode=0o700)
        secret = self.home / "password"
        secret.touch(0o600)
        secret.write_text(self.password)
        if self.user is not None:
            os.chown(self.home, *self.user)
            os.chown(secret, *self.user)
        words = [self.bin / "initdb", "-D", self.home / "data", "--username=postgres", "--auth=scram-sha-256",
                 f"--pwfile={secret}", "--encoding=UTF8", "--locale=C", "--no-sync"]
        log = self.home.parent / "initdb.log"
        made = await process.start(words, log, self.env, cwd=self.home, user=self.user)
        if await made.wait():
            raise OSError(log.read_text())
        with open(self.home / "data" / "pg_hba.conf", "a") as rules:
            rules.write("host all all samenet scram-sha-256\n")
        await self.start()

    async def start(self):
        """Starts it and waits until it takes connections."""
        if self.child is not None and self.child.returncode is None:
            return
        words = [self.bin / "postgres", "-D", self.home / "data", "-p", self.port,
                 "-c", f"listen_addresses={self.address}", "-c", f"unix_socket_directories={self.home}",
                 "-c", "fsync=off"]
        self.child = await process.start(words, self.home.parent / "postgres.log", self.env, cwd=self.home,
                                         user=self.user, death=signal.SIGQUIT)
        pid_file = self.home / "data" / "postmaster.pid"
        for _ in range(_START_MAX * 100):
            if self.child.returncode is not None:
                raise OSError("Postgres ended: " + (self.home.parent / "postgres.log").read_text()[-2000:])
            lines = pid_file.read_text().splitlines() if pid_file.exists() else []
            if len(lines) > 7 and lines[7].strip() == "ready" and lines[0] == str(self.child.pid):
                return
            await asyncio.sleep(0.01)
        raise TimeoutError("Postgres does not start")

    async def stop(self, mode="fast"):
        """Stops it: `fast` ends sessions and writes all, `immediate` and `kill` do not."""
        if self.child is None or self.child.returncode is not None:
            return
        process.signal_to(self.child.pid, _SIGNALS[mode])
        try:
            await asyncio.wait_for(self.child.wait(), _STOP_MAX)
        except asyncio.TimeoutError:
            process.signal_to(self.child.pid, signal.SIGKILL)
            await self.child.wait()

    def remove(self):
        """Its directory goes too."""
        shutil.rmtree(self.home, ignore_errors=True)


def _stand_in_for_root():
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return entry.pw_uid, entry.pw_gid
    raise OSError("Postgres does not run as root, and there is neither a user `postgres` nor `nobody`")


def _free_port(address):
    """Below the ports that systems take for outgoing connections: nobody is on it after a restart."""
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as held:
            try:
                held.bind((address, port))
            except OSError:
                continue
            return port
    raise OSError("no free port")
