"""Processes that never outlive the stand-in.

Owns how they are started: in a session of their own, so that a terminal's Ctrl-C reaches the stand-in alone,
and with the kernel's promise to end them when the stand-in ends, however it ends. (The promise is lost where
a process changes its user; `inside` renews it.)
"""

import asyncio
import ctypes
import os
import pathlib
import signal

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


def die_with_parent(which=signal.SIGKILL):
    """For the time between fork and exec, after any change of user."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, int(which), 0, 0, 0)


async def start(words, log, env, cwd="/", user=None, death=signal.SIGKILL):
    """Starts a program; its output goes to the file `log`. `user` is (user id, group id)."""
    def before_exec():
        if user is not None:
            os.setgroups([])
            os.setgid(user[1])
            os.setuid(user[0])
        die_with_parent(death)

    with open(log, "ab") as out:
        return await asyncio.create_subprocess_exec(
            *map(str, words), stdin=asyncio.subprocess.DEVNULL, stdout=out, stderr=out, env=env, cwd=cwd,
            start_new_session=True, preexec_fn=before_exec)


def signal_to(pid, which):
    """Sends a signal; a process that is gone needs none."""
    try:
        os.kill(pid, which)
    except ProcessLookupError:
        pass


def below(directory):
    """The processes that work in a directory or below it."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                cwd = pathlib.Path(os.readlink(entry / "cwd"))
            except OSError:
                continue
            if cwd.is_relative_to(directory):
                found.append(int(entry.name))
    return found


def child_of(pid):
    """The one child of a process; None where it has none yet."""
    try:
        text = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return None
    return int(text.split()[0]) if text.split() else None
