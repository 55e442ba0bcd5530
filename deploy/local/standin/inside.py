"""What happens inside a container's namespaces before its program: its root, its user, then the program.

Run as a program of its own, as process 1 of a new PID namespace: PLAN.json. Keeps: nothing of the machine's
files is left but libraries that the binary needs (the image's binary is static and needs none), and no way to
more rights.
"""

import ctypes
import json
import os
import pathlib
import socket
import sys

_LIBC = ctypes.CDLL(None, use_errno=True)
_RDONLY, _NOSUID, _NODEV, _REMOUNT, _BIND, _REC, _PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _SIGKILL = 1, 24, 38, 9
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")
_DEVICES = ("null", "zero", "full", "random", "urandom")


def mount(source, target, kind, flags, data=None):
    words = [word.encode() if word else None for word in (str(source), str(target), kind)]
    if _LIBC.mount(*words, ctypes.c_ulong(flags), data.encode() if data else None):
        why = ctypes.get_errno()
        raise OSError(why, f"mount {source} on {target}: {os.strerror(why)}")


def bind(source, target, is_read_only):
    target = pathlib.Path(target)
    if pathlib.Path(source).is_dir():
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    mount(source, target, None, _BIND | _REC)
    if is_read_only:
        mount(source, target, None, _BIND | _REMOUNT | _RDONLY | _NOSUID)


def lay_root(plan):
    """The container's root: an empty file system, the binary, and the pod's volumes."""
    mount("none", "/", None, _REC | _PRIVATE)
    root = pathlib.Path(plan["root"])
    root.mkdir(exist_ok=True)
    mount("tmpfs", root, "tmpfs", _NOSUID, "mode=755")
    for path in map(pathlib.Path, _LIBRARIES):
        inside = root / path.relative_to("/")
        if path.is_symlink():
            inside.parent.mkdir(parents=True, exist_ok=True)
            inside.symlink_to(os.readlink(path))
        elif path.is_dir():
            bind(path, inside, True)
    lay_image(pathlib.Path(plan["image"]), root)
    for name in _DEVICES:
        bind(f"/dev/{name}", root / "dev" / name, False)
    (root / "proc").mkdir()
    mount("proc", root / "proc", "proc", _NOSUID | _NODEV)
    names = {"localhost": "127.0.0.1"} | plan["hosts"]
    (root / "etc/hosts").write_text("".join(f"{address} {name}\n" for name, address in names.items()))
    for source, target, is_read_only in sorted(plan["mounts"], key=lambda entry: entry[1]):
        bind(source, root / target.lstrip("/"), is_read_only)
    if plan["is_root_read_only"]:
        mount("tmpfs", root, None, _REMOUNT | _RDONLY | _NOSUID)
    os.chroot(root)


def lay_image(image, root):
    """The image's files, shared by all pods, and its directories, each pod's own."""
    for path in sorted(image.rglob("*")):
        inside = root / path.relative_to(image)
        if path.is_dir():
            inside.mkdir(exist_ok=True)
            inside.chmod(path.stat().st_mode & 0o7777)
        else:
            bind(path, inside, True)


def become(plan):
    """The rendered user, without capabilities and without a way to get any."""
    os.setgroups([plan["fs_group"]] if plan["fs_group"] is not None else [])
    os.setgid(plan["group"])
    for capability in range(64):
        _LIBC.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    os.setuid(plan["user"])
    _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    # A change of user has undone what `unshare --kill-child` set.
    _LIBC.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)


def main():
    plan = json.loads(pathlib.Path(sys.argv[1]).read_text())
    socket.sethostname(plan["hostname"])
    lay_root(plan)
    os.chdir(plan["cwd"])
    become(plan)
    os.execve(plan["words"][0], plan["words"], plan["env"])


if __name__ == "__main__":
    main()
