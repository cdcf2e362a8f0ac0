"""Wake: make kube-scheduler try again what we rejected, as soon as there is room.

A pod that an extender rejected waits up to 5 minutes (kubernetes 122019) unless some event that kube-scheduler knows comes
by. GPUs that become free are no such event, a changed annotation on a Node is: pods are retried 5-8 ms after it. So the
node whose capacity grew gets its counter touched, within a second, at most once a second, and only while a pod is waiting
that was rejected for want of room.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final, NoReturn, Protocol

import msgspec

from tessera.kube.client import Patch
from tessera.kube.clock import Clock
from tessera.kube.errors import KubeError
from tessera.kube.resources import NODES, Resource
from tessera.model.names import Names
from tessera.model.node import Node
from webhook.extender.metrics import Metrics

INTERVAL: Final = 1.0
"""Seconds between two touches of one node."""
COALESCE: Final = 0.05
"""Seconds in which what grows is gathered before the first touch: a pod's end frees its slices one by one."""
LATELY: Final = 600.0
"""Seconds after which a rejected pod that was not asked for again counts as gone. kube-scheduler itself retries after 300."""
MOST_WAITING: Final = 20_000
AT_ONCE: Final = 8
_TIMEOUT: Final = 5.0

_log = logging.getLogger(__name__)


class Door(Protocol):
    """What a wake needs of the API client."""

    async def patch(
        self,
        resource: Resource,
        name: str,
        body: bytes,
        *,
        kind: Patch,
        timeout: float = ...,  # noqa: ASYNC109
    ) -> bytes: ...


class Waker:
    """Touches nodes that grew."""

    def __init__(
        self, door: Door, node: Callable[[str], Node | None], *, names: Names, clock: Clock, metrics: Metrics
    ) -> None:
        """Write through this door.

        Args:
            door: the API client.
            node: gives a Node object by name, for the counter it has.
            names: of this installation.
            clock: paces.
            metrics: counts.
        """
        self._door = door
        self._node = node
        self._names = names
        self._clock = clock
        self._metrics = metrics
        self._rejected: dict[str, float] = {}
        self._grown: set[str] = set()
        self._touched: dict[str, float] = {}
        self._counters: dict[str, int] = {}
        self._some = asyncio.Event()

    def rejected(self, uid: str) -> None:
        """A pod found no room."""
        self._rejected.pop(uid, None)
        self._rejected[uid] = self._clock.monotonic()
        if len(self._rejected) > MOST_WAITING:
            del self._rejected[next(iter(self._rejected))]
        self._metrics.waiting.set(len(self._rejected))

    def settled(self, uid: str) -> None:
        """A pod doesn't wait any more."""
        if self._rejected.pop(uid, None) is not None:
            self._metrics.waiting.set(len(self._rejected))

    def grew(self, node: str) -> None:
        """A node can take more than before."""
        if self._rejected:
            self._grown.add(node)
            self._some.set()

    async def run(self) -> NoReturn:
        """Touch what grew, until cancelled."""
        while True:
            await self._some.wait()
            await self._clock.sleep(COALESCE)
            await self._round()
            if not self._grown:
                self._some.clear()

    async def _round(self) -> None:
        now = self._clock.monotonic()
        while self._rejected and now - next(iter(self._rejected.values())) > LATELY:
            del self._rejected[next(iter(self._rejected))]
        if not self._rejected:
            self._grown.clear()
            self._touched.clear()
            return
        due = sorted(node for node in self._grown if now - self._touched.get(node, -INTERVAL) >= INTERVAL)
        for start in range(0, len(due), AT_ONCE):
            batch = due[start : start + AT_ONCE]
            self._grown.difference_update(batch)
            await asyncio.gather(*(self._touch(node) for node in batch))
        self._touched = {node: at for node, at in self._touched.items() if now - at < INTERVAL}

    async def _touch(self, name: str) -> None:
        node = self._node(name)
        if node is None:
            return
        self._touched[name] = self._clock.monotonic()
        count = max(_counter(node.metadata.annotation(self._names.wake)), self._counters.get(name, 0)) + 1
        body = msgspec.json.encode({"metadata": {"annotations": {self._names.wake: str(count)}}})
        try:
            await self._door.patch(NODES, name, body, kind=Patch.MERGE, timeout=_TIMEOUT)
        except KubeError as error:
            # Put back: with the next round, or with the next growth, it is tried again.
            _log.warning("node %s: waiting pods can't be woken: %s", name, error)
            self._grown.add(name)
            return
        self._counters[name] = count
        if len(self._counters) > MOST_WAITING:
            self._counters.clear()
        self._metrics.wakes.inc()


def _counter(text: str | None) -> int:
    """The counter as it stands; anything else counts as none."""
    return int(text) if text is not None and text.isascii() and text.isdecimal() and len(text) < 16 else 0
