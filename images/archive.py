"""Writes a container image as a docker-archive, which both `ctr images import` and `docker load` take.

An archive is manifest.json, the image's configuration and its layers. Everything in it is sorted, has the dates it is given
and no names of users, so the same files give the same bytes.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import io
import json
import os
import stat
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from typing_extensions import Buffer  # collections.abc has it from Python 3.12 on

_CHUNK: Final = 1 << 20
_LEVEL: Final = 6
DEFAULT_EPOCH: Final = 0
ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True, slots=True)
class Layer:
    """A gzipped tar.

    Attributes:
        path: of the file.
        digest: sha256 of the tar before compression, hexadecimal.
    """

    path: Path
    digest: str


@dataclass(frozen=True, slots=True)
class File:
    """A file to put into a layer: its content (or where that is), and its mode."""

    content: bytes | Path
    mode: int = 0o644


def write(
    path: Path,
    *,
    tags: Sequence[str],
    layers: Sequence[Layer],
    config: Mapping[str, object],
    architecture: str,
    epoch: int = DEFAULT_EPOCH,
) -> None:
    """Write an image's archive, in one step.

    Args:
        path: where; the folder exists.
        tags: such as ``name:1``.
        layers: the lowest first.
        config: Env, Entrypoint, Cmd, User, WorkingDir, Labels, as the image specification names them.
        architecture: as the image specification names it, such as ``amd64``.
        epoch: seconds since 1970, the image's date.
    """
    created = _rfc3339(epoch)
    content = {
        "architecture": architecture,
        "os": "linux",
        "created": created,
        "config": dict(config),
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer.digest}" for layer in layers]},
        "history": [{"created": created, "created_by": "tessera images"} for _ in layers],
    }
    image = json.dumps(content, sort_keys=True).encode()
    name = f"{hashlib.sha256(image).hexdigest()}.json"
    names = [f"{layer.digest}.tar.gz" for layer in layers]
    manifest = json.dumps([{"Config": name, "RepoTags": list(tags), "Layers": names}]).encode()
    partial = path.with_name(f".{path.name}.partial")
    with tarfile.open(partial, "w", format=tarfile.PAX_FORMAT) as archive:
        _add(archive, "manifest.json", manifest, epoch=epoch)
        _add(archive, name, image, epoch=epoch)
        for layer, layer_name in zip(layers, names, strict=True):
            entry = tarfile.TarInfo(layer_name)
            entry.size, entry.mtime = layer.path.stat().st_size, epoch
            with layer.path.open("rb") as file:
                archive.addfile(entry, file)
    partial.replace(path)


def layer_of_files(path: Path, files: Mapping[str, File], *, epoch: int = DEFAULT_EPOCH) -> Layer:
    """Write a layer that holds these files, by path in the image; folders are made as needed.

    A program that is linked statically and such a layer are a whole image.
    """
    folders = {str(parent) for name in files for parent in Path(name.strip("/")).parents if str(parent) != "."}
    with _Writer(path) as writer:
        for folder in sorted(folders):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode, entry.mtime = tarfile.DIRTYPE, 0o755, epoch
            writer.tar.addfile(entry)
        for name in sorted(files):
            _add(writer.tar, name.strip("/"), files[name].content, mode=files[name].mode, epoch=epoch)
    return writer.layer


def layer_of_tree(root: Path, path: Path, *, members: Iterable[str], gone: Iterable[str] = (), epoch: int) -> Layer:
    """Write a layer of some of what is below a folder.

    Args:
        root: the folder.
        path: of the layer's file.
        members: paths relative to the root; a folder stands for itself alone.
        gone: paths that lower layers have and this image hasn't.
        epoch: no date is later than this.
    """
    with _Writer(path) as writer:
        for name in sorted({*members, *(_whiteout(name) for name in gone)}):
            if os.path.basename(name).startswith(".wh."):
                _add(writer.tar, name, b"", epoch=epoch)
                continue
            entry = writer.tar.gettarinfo(str(root / name), arcname=name)
            entry.uname = entry.gname = ""
            entry.mtime = min(int(entry.mtime), epoch)
            if entry.isreg():
                with (root / name).open("rb") as file:
                    writer.tar.addfile(entry, file)
            else:
                writer.tar.addfile(entry)
    return writer.layer


def layer_of_tar(tar: Path, path: Path) -> Layer:
    """Compress a tar that is there already into a layer."""
    with _Writer(path) as writer, tar.open("rb") as file:
        while chunk := file.read(_CHUNK):
            writer.write(chunk)
    return writer.layer


def difference(root: Path, base: Path) -> tuple[list[str], list[str]]:
    """Compare two trees: what the first has that the second hasn't in the same form, and what it lacks.

    The first began as a copy of the second that kept dates, so a file is the same where kind, mode, owner, size and date are.
    """
    here, there = _tree(root), _tree(base)
    changed = [name for name, what in here.items() if there.get(name) != what]
    # A folder whose contents changed has another date and nothing else that matters.
    changed = [
        name for name in changed if not (name in there and here[name][:4] == there[name][:4] and _is_dir(here[name]))
    ]
    gone = [name for name in there if name not in here]
    return changed, [name for name in gone if os.path.dirname(name) not in gone]


_What = tuple[int, int, int, str, int, int]


def _tree(root: Path) -> dict[str, _What]:
    found = {}
    for folder, names, files in os.walk(root):
        for name in (*names, *files):
            path = os.path.join(folder, name)
            what = os.lstat(path)
            if stat.S_ISSOCK(what.st_mode):  # no archive can hold one
                continue
            link = os.readlink(path) if stat.S_ISLNK(what.st_mode) else ""
            size = 0 if stat.S_ISDIR(what.st_mode) else what.st_size
            found[os.path.relpath(path, root)] = (what.st_mode, what.st_uid, what.st_gid, link, size, what.st_mtime_ns)
    return found


def _is_dir(what: _What) -> bool:
    return stat.S_ISDIR(what[0])


def _whiteout(name: str) -> str:
    return os.path.join(os.path.dirname(name), f".wh.{os.path.basename(name)}")


def _add(archive: tarfile.TarFile, name: str, content: bytes | Path, *, mode: int = 0o644, epoch: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.mode, entry.mtime = mode, epoch
    if isinstance(content, Path):
        entry.size = content.stat().st_size
        with content.open("rb") as file:
            archive.addfile(entry, file)
    else:
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))


def _rfc3339(epoch: int) -> str:
    return datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class _Sink(io.RawIOBase):
    """What `tarfile` writes a stream to."""

    def __init__(self, take: Callable[[bytes], int]) -> None:
        self._take = take

    def writable(self) -> bool:
        """Yes."""
        return True

    def write(self, data: Buffer, /) -> int:
        """Hand it on."""
        return self._take(bytes(data))


class _Writer:
    """A tar that is compressed and hashed as it is written, and put in place when it is whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._partial = path.with_name(f".{path.name}.partial")
        self._hash = hashlib.sha256()

    def __enter__(self) -> Self:
        self._file = self._partial.open("wb")
        self._gzip = gzip.GzipFile(filename="", mode="wb", compresslevel=_LEVEL, fileobj=self._file, mtime=0)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is None and "tar" in self.__dict__:
            self.tar.close()
        self._gzip.close()
        self._file.close()
        if kind is None:
            self._partial.replace(self._path)
        else:
            self._partial.unlink()

    @functools.cached_property
    def tar(self) -> tarfile.TarFile:
        """To add members to."""
        return tarfile.open(mode="w|", fileobj=_Sink(self.write), format=tarfile.PAX_FORMAT)

    @property
    def layer(self) -> Layer:
        """What was written."""
        return Layer(self._path, self._hash.hexdigest())

    def write(self, data: bytes) -> int:
        """Take a piece of the tar."""
        self._hash.update(data)
        self._gzip.write(data)
        return len(data)
