"""The command `cluster`: brings the stand-in up, runs something in it, asks it, takes it down.

Owns the command line and the lives of the stand-in's own process. Keeps: whatever ends `run`, nothing that it
started is left, and its exit code is that of the command that it ran.
"""

import argparse
import asyncio
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from . import client, place, process
from .cluster import Cluster
from .containers import Containers
from .control import Control
from .release import REPOSITORY, Unknown

_UP_MAX = 120
# Set where this process has a network namespace of its own already.
_MARK = "STAND_IN_HAS_A_NETWORK"
_SELF = [sys.executable, "-m", "standin.main"]


def parser():
    """What can be typed."""
    top = argparse.ArgumentParser(prog="deploy/local/cluster", description=__doc__.splitlines()[0])
    words = top.add_subparsers(dest="command", required=True)
    for name, told in (("run", "bring it up, run a command in it, take it down"), ("up", "bring it up"),
                       ("serve", None)):
        # Without a line in the help where nobody types it.
        one = words.add_parser(name, **({"help": told} if told else {}))
        one.add_argument("--binary", type=pathlib.Path, default=REPOSITORY / "target/debug/lastword",
                         help="the program in the image")
        one.add_argument("--values", type=pathlib.Path, action="append", default=[],
                         help="laid over deploy/local/values.yaml")
        one.add_argument("--place", choices=("auto", "namespaces", "loopback", "containers"), default="auto",
                         help="where pods live; auto is namespaces where they are permitted, else loopback")
        one.add_argument("--image", help="what pods are containers of, with --place containers")
        one.add_argument("--logs", type=pathlib.Path, help="keep the pods' logs in this directory")
        one.add_argument("--home", type=pathlib.Path, help=argparse.SUPPRESS)
        if name == "run":
            one.add_argument("words", nargs="+", help="the command, after --")
    listing = words.add_parser("pods", help="list the pods")
    listing.add_argument("--ready", action="store_true", help="only names, of those that are ready")
    words.add_parser("kill", help="SIGKILL to a pod's program; the pod stays").add_argument("pod")
    delete = words.add_parser("delete", help="delete a pod; another one comes")
    delete.add_argument("pod")
    delete.add_argument("--grace", type=float, help="seconds; its own unless given, 0 kills")
    delete.add_argument("--wait", action="store_true", help="until it is gone")
    postgres = words.add_parser("postgres", help="break Postgres, or heal it")
    postgres.add_argument("order", choices=("stop", "crash", "kill", "start"))
    forward = words.add_parser("forward", help="as kubectl port-forward: ends with the pod")
    forward.add_argument("pod")
    forward.add_argument("ports", help="LOCAL or LOCAL:REMOTE")
    words.add_parser("logs", help="what a pod said").add_argument("pod")
    for name, told in (("rollout", "restart all pods one after another, and wait"), ("ready", "wait until all are"),
                       ("endpoints", "the addresses behind each Service"), ("env", "its variables, for a shell"),
                       ("down", "take it down")):
        words.add_parser(name, help=told)
    return top


def main():
    """The exit code."""
    args = parser().parse_args()
    try:
        if args.command in ("run", "serve"):
            return _serve(args)
        if args.command == "up":
            return _up(args)
        return asyncio.run(_ask(args)) or 0
    except (client.Refused, Unknown, OSError, TimeoutError) as why:
        print(f"error: {why}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


async def _ask(args):
    match args.command:
        case "pods":
            await client.pods(args.ready)
        case "forward":
            await client.forward(args.pod, args.ports)
        case "logs":
            await client.logs(args.pod)
        case "env":
            await client.env()
        case "delete":
            await client.ask(do="delete", pod=args.pod, grace=args.grace, wait=args.wait)
        case "kill":
            await client.ask(do="kill", pod=args.pod)
        case "postgres":
            await client.ask(do="postgres", order=args.order)
        case "endpoints":
            for name, addresses in (await client.ask(do="endpoints")).items():
                print(name, *addresses)
        case "down":
            home = client.home()
            await client.ask(do="down")
            while home.exists():
                await asyncio.sleep(0.05)
            client.POINTER.unlink(missing_ok=True)
        case other:
            await client.ask(do=other)


def _up(args):
    """Starts `serve` apart from this terminal, and waits until its pods are ready."""
    home = pathlib.Path(tempfile.mkdtemp(prefix="lastword-local-"))
    words = [*_SELF, "serve", "--home", home, "--binary", args.binary, "--place", args.place]
    words += ["--image", args.image] if args.image else []
    words += [word for path in args.values for word in ("--values", path)]
    words += ["--logs", args.logs] if args.logs else []
    log = client.POINTER.with_suffix(".log")
    with open(log, "w") as out:
        served = subprocess.Popen(list(map(str, words)), stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                  start_new_session=True)
    until = time.monotonic() + _UP_MAX
    while not (home / "ready").exists():
        if served.poll() is not None or time.monotonic() > until:
            served.terminate()
            print(log.read_text(), file=sys.stderr)
            return 1
        time.sleep(0.05)
    client.POINTER.write_text(f"{home}\n")
    print(log.read_text(), end="")
    print("Now, for example:\n  deploy/local/cluster pods\n  eval \"$(deploy/local/cluster env)\"\n"
          "  deploy/local/cluster forward POD 8080")
    return 0


def _serve(args):
    has_namespaces = args.place == "namespaces" or args.place == "auto" and place.are_namespaces_permitted()
    if has_namespaces and _MARK not in os.environ:
        # The node's network is one of its own: nothing of it is on the machine, and it goes with us.
        os.execvpe("unshare", ["unshare", "--net", *_SELF, *sys.argv[1:]], os.environ | {_MARK: "1"})
    os.environ.pop(_MARK, None)
    home = args.home or pathlib.Path(tempfile.mkdtemp(prefix="lastword-local-"))
    if args.place == "containers" and not args.image:
        raise Unknown("--place containers needs an --image")
    try:
        return asyncio.run(_life(args, home, _places(args, has_namespaces)))
    finally:
        if args.logs:
            shutil.rmtree(args.logs, ignore_errors=True)
            shutil.copytree(home / "logs", args.logs)
        shutil.rmtree(home, ignore_errors=True)


def _places(args, has_namespaces):
    """What makes the place where pods live, in a home."""
    if args.place == "containers":
        return lambda home: Containers(home, args.image)
    kind = place.Namespaces if has_namespaces else place.Loopback
    return lambda home: kind(home, args.binary)


async def _life(args, home, make_place):
    cluster = Cluster(home, [REPOSITORY / "deploy/local/values.yaml", *args.values], make_place)
    control = Control(cluster)
    for which in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(which, control.is_over.set)
    code = 1
    try:
        await control.open()
        if await _unless_over(control, cluster.open()):
            (home / "ready").touch()
            if args.command == "run":
                code = await _command(cluster, control, args.words)
            else:
                await control.is_over.wait()
                code = 0
    finally:
        is_gentle = not control.is_over.is_set()
        await cluster.close(is_gentle)
        control.close()
    return _verdict(cluster, code)


async def _unless_over(control, work):
    """Whether it came to its end before the stand-in was told to leave."""
    work, over = asyncio.create_task(work), asyncio.create_task(control.is_over.wait())
    await asyncio.wait({work, over}, return_when=asyncio.FIRST_COMPLETED)
    over.cancel()
    if not work.done():
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        return False
    work.result()
    return True


async def _command(cluster, control, words):
    """Runs the command; its exit code, 130 where the stand-in was told to leave before its end."""
    child = await asyncio.create_subprocess_exec(
        *words, env=os.environ | cluster.variables(), start_new_session=True, preexec_fn=process.die_with_parent)
    if await _unless_over(control, child.wait()):
        return child.returncode if child.returncode >= 0 else 128 - child.returncode
    for which, at_most in ((signal.SIGTERM, 3), (signal.SIGKILL, 3)):
        try:
            os.killpg(child.pid, which)
            await asyncio.wait_for(child.wait(), at_most)
            break
        except (ProcessLookupError, TimeoutError):
            pass
    return 130


def _verdict(cluster, code):
    """What only the stand-in can see: pods that were killed at the end of their grace, panics, what is left."""
    wrong = [f"{name}: killed at the end of its grace" for name in cluster.cut_short]
    for log in sorted(cluster.logs.glob("*.log")):
        lines = log.read_text(errors="replace").splitlines()
        wrong += [f"{log.name}: {line}" for line in lines if "panicked" in line]
    wrong += [f"process {pid} was left behind" for pid in process.below(cluster.home)]
    for line in wrong:
        cluster.say(f"WRONG: {line}")
    cluster.say("everything is taken down")
    return code or int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
