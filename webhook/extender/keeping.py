"""Room that is kept for a pod which was promised a node (contract, section 4).

A filter refuses nobody because of another unbound pod, with this one exception: a slice on the node that a pod's
status.nominatedNodeName names, or that our preemptor frees for it, is kept against lower priorities until the pod is bound
or gone, is promised another node, or a minute has passed. Else every small pod that comes by would take what others were
ended for.

A promise by status can be read from the pods again after a restart. kube-scheduler clears that field whenever the pod is
tried before its room is free; a promise of our preemptor outlives that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final

from tessera.kube.clock import Clock, parse_rfc3339
from tessera.model.config import Placement
from tessera.model.errors import RequestError
from tessera.model.names import Names
from tessera.model.pod import Pod
from tessera.model.tickets import asks
from tessera.placement.gpustate import GpuState
from tessera.placement.keeping import Kept, beside
from tessera.placement.ledger import Ledger
from tessera.placement.shape import shape_of
from tessera.placement.wishes import wishes

KEPT: Final = 60.0
"""Seconds for which room is kept (contract, section 4)."""
OVERDUE: Final = 60.0
"""Seconds beyond its grace after which a pod that is ending is not believed to end soon."""
MOST_PER_NODE: Final = 64
"""Promises on one node that are looked at, the most important first."""


@dataclass(frozen=True, slots=True)
class Promise:
    """Room promised to one pod.

    Attributes:
        uid: of the pod.
        node: where.
        kept: what it asks.
        priority: pods below it are held back.
        since: when it was promised.
        victims: UIDs of pods that are being ended for it.
        ours: promised by our preemptor, not by the pod's status.
    """

    uid: str
    node: str
    kept: Kept
    priority: int
    since: float
    victims: frozenset[str] = frozenset()
    ours: bool = False


class Keeper:
    """Knows what is promised, and who is about to go."""

    def __init__(
        self, ledger: Ledger, *, names: Names, clock: Clock, freed: Callable[[str], None] | None = None
    ) -> None:
        """Promise nothing yet.

        Args:
            ledger: who holds what.
            names: of this installation.
            clock: measures a promise's age.
            freed: called with the name of a node on which something is no longer kept.
        """
        self._ledger = ledger
        self._names = names
        self._clock = clock
        self._freed = freed
        self._promises: dict[str, Promise] = {}
        self._on: dict[str, set[str]] = {}
        self._run_out: dict[str, str] = {}
        self._going: dict[str, dict[str, float]] = {}
        self._goes_from: dict[str, str] = {}

    # What the cache tells.

    def pod_seen(self, pod: Pod) -> None:
        """Take in a pod as it is now."""
        uid, node = pod.metadata.uid, pod.spec.node_name
        if pod.ended:
            self.pod_gone(uid)
        elif node:
            self._drop(uid)
            self._run_out.pop(uid, None)
            if pod.metadata.deletion_timestamp is not None:
                self._goes(uid, node, pod.metadata.deletion_timestamp)
        elif pod.metadata.deletion_timestamp is not None:
            self.pod_gone(uid)
        else:
            self._nominated(pod)

    def pod_gone(self, uid: str) -> None:
        """A pod has ended or is gone."""
        self._drop(uid)
        self._run_out.pop(uid, None)
        node = self._goes_from.pop(uid, None)
        if node is not None:
            del self._going[node][uid]
            if not self._going[node]:
                del self._going[node]

    def _nominated(self, pod: Pod) -> None:
        uid, node = pod.metadata.uid, pod.status.nominated_node_name or ""
        known = self._promises.get(uid)
        if known is not None and (node == known.node or (known.ours and not node)):
            return
        self._drop(uid)
        if not node:
            self._run_out.pop(uid, None)
        elif self._run_out.get(uid) != node:
            self._run_out.pop(uid, None)
            kept = kept_of(pod, self._names)
            if kept is not None:
                self._add(Promise(uid, node, kept, pod.spec.priority or 0, self._clock.monotonic()))

    def _goes(self, uid: str, node: str, deadline: str) -> None:
        if uid in self._goes_from:
            return
        try:
            until = parse_rfc3339(deadline)
        except ValueError:
            until = -math.inf
        self._goes_from[uid] = node
        self._going.setdefault(node, {})[uid] = until

    # What the preemptor tells.

    def promise(self, promise: Promise) -> None:
        """Keep room for a pod, instead of what was promised to it before."""
        self._drop(promise.uid)
        self._run_out.pop(promise.uid, None)
        self._add(promise)

    def take_back(self, uid: str) -> None:
        """Keep nothing for a pod any more."""
        self._drop(uid)

    def promised(self, uid: str) -> Promise | None:
        """What is kept for a pod."""
        return self._promises.get(uid)

    def _add(self, promise: Promise) -> None:
        self._promises[promise.uid] = promise
        self._on.setdefault(promise.node, set()).add(promise.uid)

    def _drop(self, uid: str) -> None:
        promise = self._promises.pop(uid, None)
        if promise is None:
            return
        there = self._on[promise.node]
        there.discard(uid)
        if not there:
            del self._on[promise.node]
        if self._freed is not None:
            self._freed(promise.node)

    # What filter, bind and preemptor ask.

    def going(self, node: str) -> frozenset[str]:
        """UIDs of the pods on a node that are about to go: ending within their grace, or just being evicted."""
        now = self._clock.wall()
        there = {uid for uid, until in self._going.get(node, {}).items() if now - until < OVERDUE}
        for uid in self._on.get(node, ()):
            there |= self._promises[uid].victims
        return frozenset(there)

    def against(self, node: str, *, uid: str, priority: int, equal: bool = False) -> list[Promise]:
        """The promises on a node that hold a pod of this priority back, the most important first.

        Args:
            node: its name.
            uid: of the pod; its own promise is none to it.
            priority: of the pod.
            equal: those to pods of the same priority too, for who chooses victims: two must not count on one slice.
        """
        there = self._on.get(node)
        if not there:
            return []
        found = [
            self._promises[other]
            for other in there
            # Who is being bound holds what it was promised.
            if other != uid
            and self._promises[other].priority >= priority + (not equal)
            and self._ledger.booked(other) is None
        ]
        found.sort(key=lambda promise: (-promise.priority, promise.since, promise.uid))
        return found[:MOST_PER_NODE]

    def states(
        self, node: str, *, uid: str, priority: int, soft: bool = False, gone: Collection[str] = ()
    ) -> list[GpuState]:
        """A node's GPUs as a pod may use them: with what others hold there, and what is kept from it.

        Args:
            node: its name.
            uid: of the pod that asks; what it holds itself is left out.
            priority: of that pod.
            soft: count what was named to others, too.
            gone: UIDs of pods to think away.
        """
        now = self._ledger.states(node, without=(uid, *gone), soft=soft)
        promises = self.against(node, uid=uid, priority=priority)
        if not promises:
            return now
        return beside(now, self.later(node, uid=uid, without=gone, soft=soft), [promise.kept for promise in promises])

    def later(self, node: str, *, uid: str, without: Collection[str] = (), soft: bool = False) -> list[GpuState]:
        """A node's GPUs as they are once everybody has gone who is about to, and those of `without`."""
        return self._ledger.states(node, without=(uid, *self.going(node), *without), soft=soft)

    # Time.

    def tick(self) -> None:
        """Let go of what has been kept long enough."""
        now = self._clock.monotonic()
        for promise in [each for each in self._promises.values() if now - each.since >= KEPT]:
            self._run_out[promise.uid] = promise.node
            self._drop(promise.uid)


def kept_of(pod: Pod, names: Names) -> Kept | None:
    """What a pod asks; None where it asks nothing, or nothing that makes sense."""
    try:
        found = asks(pod, names)
        if not found:
            return None
        wished = wishes(pod.metadata.annotations, names, Placement())
        return Kept(found, shape_of(found, unit=names.memory_unit, wishes=wished))
    except RequestError:
        return None
