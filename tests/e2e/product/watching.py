"""A watch that notes when what was seen: how long something took is read from the objects, not from a poll of them."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Self

from cluster import Api, ClusterError

Object = dict[str, Any]
Seen = tuple[float, str, Object]


class Watching(AbstractContextManager["Watching"]):
    """Follows a collection in a thread of its own."""

    def __init__(self, api: Api, path: str, *, seconds: float = 300) -> None:
        """Follow `path` from the beginning of the block, for so many seconds at most."""
        self._api, self._path, self._seconds = api, path, seconds
        self._seen: dict[str, list[Seen]] = defaultdict(list)
        self._news = threading.Condition()
        self._stopping = False
        self._listed = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Self:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop looking; the connection ends with its time."""
        self._stopping = True

    def _follow(self) -> None:
        for kind, each in self._api.watch(self._path, seconds=self._seconds):
            with self._news:
                if self._stopping:
                    return
                self._seen[each["metadata"]["name"]].append((time.monotonic(), kind, each))
                self._news.notify_all()

    def moment(self, name: str, check: Callable[[Object], bool], *, seconds: float = 30, gone: bool = False) -> float:
        """When an object was first seen as wanted (or deleted, where `gone`); wait for it.

        Raises:
            ClusterError: not in time.
        """

        def found() -> float | None:
            for at, kind, each in self._seen[name]:
                if (kind == "DELETED") == gone and check(each):
                    return at
            return None

        with self._news:
            if not self._news.wait_for(lambda: found() is not None, seconds):
                raise ClusterError(f"{self._path}/{name}: not seen as wanted within {seconds:g} s")
            at = found()
        assert at is not None
        return at
