"""Which pod is next: the active queue, the pods found unschedulable, and what brings those back.

kube-scheduler keeps an unschedulable pod aside until an event that may help (a node changed, a pod went away), then waits
out its backoff (1 s, doubling, at most 10 s). Times are the caller's clock.
"""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass, field


@dataclass(order=True, slots=True)
class _Entry:
    ready: float
    priority: int
    order: int
    uid: str = field(compare=False)


class SchedulingQueue:
    """Pods by UID, waiting for a cycle."""

    def __init__(self, *, backoff: float, most: float) -> None:
        """Start empty; `backoff` is the first wait after a failure in seconds, `most` the longest."""
        self._backoff = backoff
        self._most = most
        self._order = itertools.count()
        self._heap: list[_Entry] = []
        self._waiting: dict[str, _Entry] = {}
        self._aside: dict[str, int] = {}
        self._attempts: dict[str, int] = {}

    def __len__(self) -> int:
        """Pods that wait for a cycle or for an event."""
        return len(self._waiting) + len(self._aside)

    @property
    def aside(self) -> frozenset[str]:
        """Pods found unschedulable that wait for an event."""
        return frozenset(self._aside)

    def add(self, uid: str, priority: int, *, now: float) -> None:
        """Queue a pod, unless it is there."""
        if uid not in self._waiting and uid not in self._aside:
            self._push(uid, priority, now)

    def unschedulable(self, uid: str, priority: int, *, now: float, missed: bool) -> None:
        """Put a pod aside after a failed cycle; straight back into the queue where an event came in meanwhile."""
        self._attempts[uid] = self._attempts.get(uid, 0) + 1
        if missed:
            self._push(uid, priority, now + self._wait(uid))
        else:
            self._aside[uid] = priority

    def drop(self, uid: str) -> None:
        """Forget a pod that is bound or gone."""
        self._waiting.pop(uid, None)
        self._aside.pop(uid, None)
        self._attempts.pop(uid, None)

    def event(self, *, now: float) -> None:
        """Something changed that may help: every pod set aside is tried again after its backoff."""
        for uid, priority in self._aside.items():
            self._push(uid, priority, now + self._wait(uid))
        self._aside.clear()

    def pop(self, *, now: float) -> str | None:
        """Take the next pod whose time has come."""
        while self._heap and self._heap[0].ready <= now:
            entry = heapq.heappop(self._heap)
            if self._waiting.get(entry.uid) is entry:
                del self._waiting[entry.uid]
                return entry.uid
        return None

    def next_time(self) -> float | None:
        """When the next pod's time comes, or None where none waits for a time."""
        while self._heap and self._waiting.get(self._heap[0].uid) is not self._heap[0]:
            heapq.heappop(self._heap)
        return self._heap[0].ready if self._heap else None

    def _push(self, uid: str, priority: int, ready: float) -> None:
        entry = _Entry(ready, -priority, next(self._order), uid)
        self._waiting[uid] = entry
        heapq.heappush(self._heap, entry)

    def _wait(self, uid: str) -> float:
        attempts = self._attempts.get(uid, 0)
        return min(self._most, self._backoff * 2 ** min(attempts - 1, 30)) if attempts else 0.0
