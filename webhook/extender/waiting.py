"""The pods that were rejected lately for want of room: who is to be woken, who may preempt, whom a new node would help.

Only a filter knows them: a pod's status says that it is unschedulable, not that a slice is what it lacks, nor which nodes
kube-scheduler had let through.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from heapq import nsmallest
from typing import Final, NamedTuple
from weakref import WeakValueDictionary

import msgspec

from tessera.kube.clock import Clock
from tessera.placement.keeping import Kept
from tessera.placement.shape import Shape
from webhook.extender.metrics import Metrics
from webhook.extender.namelists import NameList, Nodes
from webhook.extender.wire import SchedulingPod, SchedulingSpec

LATELY: Final = 600.0
"""Seconds after which a rejected pod that was not asked for again counts as gone. kube-scheduler itself retries after 300."""
MOST_WAITING: Final = 20_000
MOST_LISTS: Final = 1024
"""Different lists of nodes; 40 kB each at 5,000 nodes. Who came with one too many waits for kube-scheduler's own retry."""


class Kind(NamedTuple):
    """Pods of one kind fit the same nodes, and the same victims would do for them: 20,000 that wait are a few kinds."""

    shape: Shape
    priority: int
    preempts: bool
    listed: Nodes


@dataclass(frozen=True, slots=True)
class Rejected:
    """A pod that found no room.

    Attributes:
        uid, namespace, name: of the pod.
        kept: what it asks.
        priority: of the pod.
        preempts: whether others may be ended for it.
        spec: where it may go; its containers are left out.
        listed: the nodes that kube-scheduler had let through.
        since: when it was rejected first. at: when last.
    """

    uid: str
    namespace: str
    name: str
    kept: Kept
    priority: int
    preempts: bool
    spec: SchedulingSpec
    listed: Nodes
    since: float
    at: float

    @property
    def key(self) -> str:
        """``namespace/name``."""
        return f"{self.namespace}/{self.name}"

    @property
    def kind(self) -> Kind:
        """Its kind."""
        return Kind(self.kept.shape, self.priority, self.preempts, self.listed)


class Waiting:
    """Who waits, in the order of the last rejection."""

    def __init__(self, *, clock: Clock, metrics: Metrics) -> None:
        """Nobody waits."""
        self._clock = clock
        self._metrics = metrics
        self._pods: dict[str, Rejected] = {}
        self._kinds: dict[Kind, dict[str, Rejected]] = {}
        self._lists: WeakValueDictionary[tuple[str, ...], Nodes] = WeakValueDictionary()
        self._watching: list[Callable[[Rejected], None]] = []

    def subscribe(self, callback: Callable[[Rejected], None]) -> None:
        """Call back for every rejection."""
        self._watching.append(callback)

    def __len__(self) -> int:
        """How many wait."""
        return len(self._pods)

    def kinds(self) -> Iterator[Kind]:
        """The kinds of those who wait, the most important first."""
        self.forget_old()
        return iter(sorted(self._kinds, key=lambda kind: -kind.priority))

    def of(self, kind: Kind, most: int) -> list[Rejected]:
        """Of one kind those who have waited longest."""
        pods = self._kinds.get(kind, {}).values()
        return nsmallest(most, pods, key=lambda pod: (pod.since, pod.key))

    def get(self, uid: str) -> Rejected | None:
        """The pod of that UID, if it waits."""
        return self._pods.get(uid)

    def rejected(self, pod: SchedulingPod, kept: Kept, names: NameList) -> None:
        """A pod found no room on these nodes, though it may later."""
        listed = self._lists.setdefault(names.nodes.names, names.nodes)
        now, meta, spec = self._clock.monotonic(), pod.metadata, pod.spec
        before = self._take(meta.uid)
        if before is not None and len(before.listed.names) > len(listed.names) == 1 and now - before.at < LATELY:
            # A promised node alone: it is asked about all of them right after, unless this one takes it.
            listed = before.listed
        found = Rejected(
            uid=meta.uid,
            namespace=meta.namespace,
            name=meta.name,
            kept=kept,
            priority=spec.priority or 0,
            preempts=spec.preemption_policy != "Never",
            spec=msgspec.structs.replace(spec, containers=None, init_containers=None),
            listed=listed,
            since=before.since if before is not None else now,
            at=now,
        )
        self._pods[meta.uid] = found
        self._kinds.setdefault(found.kind, {})[meta.uid] = found
        before = None
        while len(self._pods) > MOST_WAITING or (len(self._lists) > MOST_LISTS and len(self._pods) > 1):
            self._take(next(iter(self._pods)))
        self._metrics.waiting.set(len(self._pods))
        for callback in self._watching:
            callback(found)

    def settled(self, uid: str) -> None:
        """A pod doesn't wait any more."""
        if self._take(uid) is not None:
            self._metrics.waiting.set(len(self._pods))

    def _take(self, uid: str) -> Rejected | None:
        found = self._pods.pop(uid, None)
        if found is not None:
            alike = self._kinds[found.kind]
            del alike[uid]
            if not alike:
                del self._kinds[found.kind]
        return found

    def forget_old(self) -> None:
        """Forget who was rejected long ago and not asked for since."""
        now = self._clock.monotonic()
        while self._pods:
            first = next(iter(self._pods.values()))
            if now - first.at <= LATELY:
                return
            self.settled(first.uid)
