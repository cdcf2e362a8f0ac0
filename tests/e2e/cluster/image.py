"""A container image made by hand: no registry can be asked, and a test needs a shell and little else.

It is a docker-archive (manifest.json, the image's configuration, one layer), which `ctr images import` takes.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import subprocess
import tarfile
from pathlib import Path

from cluster.machine import BUSYBOX

PAUSE = "tessera.test/pause:1"
TEST = "tessera.test/busybox:1"


def write_busybox(path: Path) -> None:
    """Write an archive with busybox, tagged as the pause image and as the image of test pods."""
    _write(path, [PAUSE, TEST], _layer(), ["/bin/sleep", "2147483647"])


def write_program(path: Path, tag: str, program: Path) -> None:
    """Write an archive with one program that needs nothing beside it, in its PATH."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as layer:
        for folder in ("bin", "etc", "tmp"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if folder == "tmp" else 0o755
            layer.addfile(entry)
        _add(layer, f"bin/{program.name}", program.read_bytes(), mode=0o755)
    _write(path, [tag], buffer.getvalue(), [f"/bin/{program.name}"])


def _write(path: Path, tags: list[str], layer: bytes, command: list[str]) -> None:
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": command, "Env": ["PATH=/bin"], "WorkingDir": "/"},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
        }
    ).encode()
    manifest = json.dumps([{"Config": "config.json", "RepoTags": tags, "Layers": ["layer.tar.gz"]}]).encode()
    with tarfile.open(path, "w") as archive:
        for name, content in (
            ("manifest.json", manifest),
            ("config.json", config),
            ("layer.tar.gz", gzip.compress(layer, compresslevel=1, mtime=0)),
        ):
            _add(archive, name, content)


def _layer() -> bytes:
    applets = subprocess.run([str(BUSYBOX), "--list"], capture_output=True, text=True, check=True).stdout.split()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as layer:
        for folder in ("bin", "etc", "tmp", "proc", "sys", "dev"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            layer.addfile(entry)
        _add(layer, "bin/busybox", BUSYBOX.read_bytes(), mode=0o755)
        _add(layer, "etc/passwd", b"root:x:0:0:root:/:/bin/sh\n")
        for applet in sorted(set(applets) - {"busybox"}):
            entry = tarfile.TarInfo(f"bin/{applet}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            layer.addfile(entry)
    return buffer.getvalue()


def _add(archive: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    archive.addfile(entry, io.BytesIO(content))
