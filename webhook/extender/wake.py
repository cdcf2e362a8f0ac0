"""Wake: make kube-scheduler try again what we rejected, as soon as there is room.

A pod that an extender rejected waits up to 5 minutes (kubernetes 122019) unless some event that kube-scheduler knows comes
by. GPUs that become free are no such event, a changed annotation on a Node is: pods are retried 5-8 ms after it. So the
node whose capacity grew gets its counter touched, within a second, at most once a second, and only while a pod is waiting
that was rejected for want of room and would find it there now. A node that can't be touched is tried ever more seldom.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, NoReturn, Protocol

import msgspec

from tessera.kube.client import Patch
from tessera.kube.clock import Clock
from tessera.kube.errors import KubeError
from tessera.kube.resources import NODES, Resource
from tessera.model.names import Names
from tessera.model.node import Node
from tessera.placement.fit import place
from tessera.placement.gpustate import GpuState
from tessera.placement.reasons import Rejection
from tessera.placement.shape import Shape
from webhook.extender.metrics import Metrics
from webhook.extender.waiting import Rejected, Waiting

INTERVAL: Final = 1.0
"""Seconds between two touches of one node."""
LONGEST: Final = 60.0
"""Seconds until a touch that failed over and over is tried again; a right that is missing comes back by no haste."""
COALESCE: Final = 0.05
"""Seconds in which what grows is gathered before the first touch: a pod's end frees its slices one by one."""
MOST_COUNTERS: Final = 20_000
MOST_SHAPES: Final = 32
"""Shapes of waiting pods that are tried on a node that grew (50 us each); beyond it is simply touched."""
AT_ONCE: Final = 8
_TIMEOUT: Final = 5.0

Room = Callable[[str, Rejected], Sequence[GpuState]]
"""A node's GPUs as a pod may use them."""

_log = logging.getLogger(__name__)


class _Failing(NamedTuple):
    """A node that can't be touched: the seconds that are waited now, and the time until which."""

    wait: float
    until: float


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
        self,
        door: Door,
        node: Callable[[str], Node | None],
        *,
        names: Names,
        clock: Clock,
        metrics: Metrics,
        waiting: Waiting,
    ) -> None:
        """Write through this door.

        Args:
            door: the API client.
            node: gives a Node object by name, for the counter it has.
            names: of this installation.
            clock: paces.
            metrics: counts.
            waiting: who is to be woken.
        """
        self._door = door
        self._node = node
        self._names = names
        self._clock = clock
        self._metrics = metrics
        self._waiting = waiting
        self._room: Room | None = None
        self._grown: set[str] = set()
        self._touched: dict[str, float] = {}
        self._counters: dict[str, int] = {}
        self._failing: dict[str, _Failing] = {}
        self._some = asyncio.Event()

    def look_at(self, room: Room) -> None:
        """Wake only where somebody fits, by what this tells of a node's GPUs for a pod."""
        self._room = room

    def grew(self, node: str) -> None:
        """A node can take more than before."""
        if len(self._waiting):
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
        # Long past its time nothing had grown there, or nobody waited: what stands in the way then is another thing.
        self._failing = {node: old for node, old in self._failing.items() if now - old.until < LONGEST}
        self._waiting.forget_old()
        if not len(self._waiting):
            self._grown.clear()
            self._touched.clear()
            return
        due = sorted(node for node in self._grown if now - self._touched.get(node, -INTERVAL) >= INTERVAL)
        due = [node for node in due if node not in self._failing or now >= self._failing[node].until]
        for start in range(0, len(due), AT_ONCE):
            batch = due[start : start + AT_ONCE]
            self._grown.difference_update(batch)
            await asyncio.gather(*(self._touch(node) for node in batch if self._helps(node)))
            await asyncio.sleep(0)
        self._touched = {node: at for node, at in self._touched.items() if now - at < INTERVAL}

    def _helps(self, name: str) -> bool:
        """Whether one of those who wait would fit on the node now, as far as that is soon told."""
        if self._room is None:
            return True
        tried: set[tuple[Shape, int]] = set()
        for kind in self._waiting.kinds():
            if (kind.shape, kind.priority) in tried or name not in kind.listed:
                continue
            if len(tried) >= MOST_SHAPES:
                return True
            (pod,) = self._waiting.of(kind, 1)
            if not isinstance(place(pod.kept.asks, kind.shape, self._room(name, pod)), Rejection):
                return True
            tried.add((kind.shape, kind.priority))
        return False

    async def _touch(self, name: str) -> None:
        node = self._node(name)
        if node is None:
            self._failing.pop(name, None)
            return
        self._touched[name] = self._clock.monotonic()
        count = max(_counter(node.metadata.annotation(self._names.wake)), self._counters.get(name, 0)) + 1
        body = msgspec.json.encode({"metadata": {"annotations": {self._names.wake: str(count)}}})
        try:
            await self._door.patch(NODES, name, body, kind=Patch.MERGE, timeout=_TIMEOUT)
        except KubeError as error:
            self._failed(name, error)
            return
        self._failing.pop(name, None)
        self._counters[name] = count
        if len(self._counters) > MOST_COUNTERS:
            self._counters.clear()
        self._metrics.wakes.inc()

    def _failed(self, name: str, error: KubeError) -> None:
        """Put a node back, to be tried again later."""
        self._metrics.wake_failures.inc()
        now = self._clock.monotonic()
        if not self._failing:
            # Once: what keeps us from one node mostly keeps us from all.
            _log.warning("node %s: waiting pods can't be woken, tried again in up to %g s: %s", name, LONGEST, error)
        before = self._failing.get(name)
        wait = INTERVAL if before is None else min(LONGEST, 2 * before.wait)
        self._failing[name] = _Failing(wait, now + wait)
        self._grown.add(name)


def _counter(text: str | None) -> int:
    """The counter as it stands; anything else counts as none."""
    return int(text) if text is not None and text.isascii() and text.isdecimal() and len(text) < 16 else 0
