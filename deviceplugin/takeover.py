"""One agent at a time serves a node's kubelet: a lock that the newcomer waits for and the leaver hands over.

A DaemonSet with maxSurge 1 starts the new agent beside the old one. The kubelet counts a resource as gone the moment its
stream ends and fails a pod admitted in that gap, so the newcomer does everything slow first and then waits here. The
kernel gives the lock back when its holder ends, however it ends.
"""

from __future__ import annotations

import errno
import fcntl
import os
from types import TracebackType
from typing import Final, Self

from deviceplugin.errors import TakeoverError
from tessera.kube.clock import Clock

POLL: Final = 0.05
"""Seconds between tries; the whole gap is to stay under 0.5."""


class NodeLock:
    """An exclusive lock on a file. Entering waits for it."""

    def __init__(self, path: str, *, clock: Clock) -> None:
        """Open nothing yet; the folder of `path` exists."""
        self._path = path
        self._clock = clock
        self._file: int | None = None

    async def __aenter__(self) -> Self:
        """Wait for the lock.

        Raises:
            TakeoverError: the file can't be opened.
        """
        try:
            file = self._open()
        except OSError as error:
            raise TakeoverError(
                f"{self._path} can't be opened: {error.strerror}; it keeps two agents from serving one kubelet"
            ) from error
        try:
            while not self._try(file):
                await self._clock.sleep(POLL)
        except BaseException:
            os.close(file)
            raise
        self._file = file
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Hand it over."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    @property
    def held(self) -> bool:
        """Whether it is ours."""
        return self._file is not None

    def _open(self) -> int:
        try:
            return os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                raise
            # Nothing is ever written to it: on a disk that takes nothing the file of an earlier agent does.
            return os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)

    def _try(self, file: int) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
