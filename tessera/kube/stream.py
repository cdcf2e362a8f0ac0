"""The bytes of a watch stream, cut into events.

A watch is one JSON object per line. Lines are cut by hand, because reading by line hands a hostile or broken server the
choice of how much memory one line takes; the object inside stays bytes until its owner decodes it into its own type.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from tessera.kube.errors import DecodeError

LONGEST_LINE: Final = 8 << 20
"""Bytes of one event. etcd takes objects up to 1.5 MiB; JSON can be a few times what etcd stores."""


class Event(msgspec.Struct):
    """One line: ``ADDED``, ``MODIFIED``, ``DELETED``, ``BOOKMARK`` or ``ERROR``, and the object's own bytes."""

    type: str
    object: msgspec.Raw


class _VersionMeta(msgspec.Struct):
    resourceVersion: str = ""  # noqa: N815  the field's own name
    namespace: str = ""
    name: str = ""


class Versioned(msgspec.Struct):
    """The little of an object that is needed where the whole can't be, or need not be, decoded."""

    metadata: _VersionMeta = msgspec.field(default_factory=_VersionMeta)

    @property
    def version(self) -> str:
        """The resourceVersion."""
        return self.metadata.resourceVersion

    @property
    def key(self) -> tuple[str, str]:
        """Namespace ("" for cluster-scoped objects) and name."""
        return self.metadata.namespace, self.metadata.name


_EVENT: Final = msgspec.json.Decoder(Event)
VERSIONED: Final = msgspec.json.Decoder(Versioned)


class Lines:
    """Cuts chunks, as they arrive, into lines of bounded length."""

    def __init__(self, *, longest: int = LONGEST_LINE) -> None:
        """Keep at most `longest` bytes of a line that has not ended yet."""
        self._longest = longest
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Yield the lines that `chunk` completes, without their ends; empty lines are skipped.

        Raises:
            DecodeError: a line is longer than the limit.
        """
        head, end, tail = chunk.partition(b"\n")
        self._keep(head)
        if not end:
            return
        first = b"".join(self._parts)
        self._parts, self._size = [], 0
        if first.strip():
            yield first
        *lines, last = tail.split(b"\n")
        for line in lines:
            if line.strip():
                yield line
        self._keep(last)

    def _keep(self, part: bytes) -> None:
        if part:
            self._size += len(part)
            self._parts.append(part)
        if self._size > self._longest:
            raise DecodeError(f"watch: an event has more than {self._longest} bytes")


def parse_event(line: bytes) -> Event:
    """Read the frame of one event.

    Raises:
        DecodeError: the line is no watch event.
    """
    try:
        return _EVENT.decode(line)
    except msgspec.MsgspecError as error:
        raise DecodeError(f"watch: a line is no event: {error}") from error


def parse_versioned(raw: bytes | msgspec.Raw) -> Versioned:
    """Read an object's name and version.

    Raises:
        DecodeError: it is no object of the API, or has no resourceVersion.
    """
    try:
        found = VERSIONED.decode(raw)
    except msgspec.MsgspecError as error:
        raise DecodeError(f"watch: an event holds no object: {error}") from error
    if not found.version:
        raise DecodeError("watch: an object has no resourceVersion, so the watch can't go on from it")
    return found
