#!/usr/bin/env python3
"""Writes a directory as an image of one layer, without an engine: ROOT ARCHIVE TAG.

The archive is what `docker save` writes, so `docker load`, `podman load`, `ctr images import` and
`kind load image-archive` take it. The same root gives the same bytes: no times, no owners.
"""

import gzip
import hashlib
import io
import json
import os
import pathlib
import platform
import sys
import tarfile

CONFIG = {
    "User": "65532:65532",
    "ExposedPorts": {"8080/tcp": {}},
    "Env": ["PATH=/usr/local/bin"],
    "Entrypoint": ["/usr/local/bin/lastword"],
    "Cmd": ["serve"],
    "WorkingDir": "/var/lib/lastword",
}
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
EPOCH = "1970-01-01T00:00:00Z"


def layer(root):
    """The directory as a tar, in the order of names."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path in sorted(root.rglob("*")):
            entry = tar.gettarinfo(path, arcname=str(path.relative_to(root)))
            entry.uid = entry.gid = entry.mtime = 0
            entry.uname = entry.gname = ""
            if entry.isfile():
                with open(path, "rb") as file:
                    tar.addfile(entry, file)
            else:
                tar.addfile(entry)
    return buffer.getvalue()


def add(tar, name, data):
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), 0o644
    tar.addfile(entry, io.BytesIO(data))


def main():
    root, archive, tag = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    content = layer(root)
    config = {
        "architecture": ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "created": EPOCH,
        "config": {**CONFIG, "Labels": {"org.opencontainers.image.title": "lastword",
                                        "org.opencontainers.image.version": tag.rpartition(":")[2]}},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(content).hexdigest()]},
        "history": [{"created": EPOCH, "created_by": "deploy/image/build"}],
    }
    encoded = json.dumps(config, sort_keys=True).encode()
    config_name = hashlib.sha256(encoded).hexdigest() + ".json"
    packed = gzip.compress(content, compresslevel=6, mtime=0)
    manifest = [{"Config": config_name, "RepoTags": [tag], "Layers": ["layer.tar.gz"]}]
    with tarfile.open(archive + ".new", "w", format=tarfile.USTAR_FORMAT) as tar:
        add(tar, config_name, encoded)
        add(tar, "layer.tar.gz", packed)
        add(tar, "manifest.json", json.dumps(manifest).encode())
    os.replace(archive + ".new", archive)
    print(f"{archive}: {tag}, {len(content) / 1e6:.1f} MB, {len(packed) / 1e6:.1f} MB to send")


main()
