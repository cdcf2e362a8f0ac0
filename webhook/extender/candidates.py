"""On which node the fewest pods would have to go for one that waits, and who they are.

Never a pod of equal or higher priority, a static or mirror pod (the kubelet would start it again at once), or one of a
DaemonSet (its controller would), nor one that a PodDisruptionBudget protects just now. Who is going already counts as gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Generator
from typing import Final, TypeVar

from tessera.kube.clock import Clock
from tessera.model.pod import Pod
from tessera.placement.claims import Taken
from tessera.placement.fit import place
from tessera.placement.gpustate import GpuState
from tessera.placement.keeping import Kept, fixed, occupied
from tessera.placement.reasons import Reason, Rejection
from tessera.placement.victims import Holder, Victims, choose, cost
from webhook.extender.cluster import Cluster
from webhook.extender.waiting import Rejected

T = TypeVar("T")

TOGETHER: Final = 16
"""Nodes looked at before others get the loop: 100 us each, where nobody can go."""
SEARCHED: Final = 16
"""Nodes on which smaller sets of victims are looked for."""
CRITICAL: Final = 2_000_000_000
"""system-cluster-critical; such pods are nobody's victims, whatever the priority of who waits."""
_MIRROR: Final = "kubernetes.io/config.mirror"
"""On the API's copy of every static pod; no kubelet runs another that carries it, so nobody escapes by it."""


class Candidates:
    """Looks for victims."""

    def __init__(self, cluster: Cluster, *, clock: Clock) -> None:
        """Look in this cluster."""
        self._cluster = cluster
        self._clock = clock
        self._left_alone: dict[str, float] = {}

    def leave_alone(self, uid: str, seconds: float) -> None:
        """A pod can't be evicted just now."""
        now = self._clock.monotonic()
        self._left_alone = {each: until for each, until in self._left_alone.items() if until > now}
        self._left_alone[uid] = now + seconds

    async def best(self, pod: Rejected) -> tuple[str, Victims] | None:
        """The node and its victims (none where enough is going already); None where nobody's going would help."""
        found: list[tuple[tuple[int, int, int], str, Victims]] = []
        for count, name in enumerate(sorted(pod.listed.names), 1):
            victims = await through(self.on(pod.kept, name, uid=pod.uid, priority=pod.priority, smaller=False))
            if victims is not None:
                found.append((cost(victims), name, victims))
                if not victims:
                    return name, victims
            if count % TOGETHER == 0:
                await asyncio.sleep(0)
        # Smaller sets cost hundreds of steps a node, so they are looked for where a set is small already.
        found.sort(key=lambda each: each[:2])
        for at, (_, name, victims) in enumerate(found[:SEARCHED]):
            if len(victims) > 1:
                fewer = await through(self.on(pod.kept, name, uid=pod.uid, priority=pod.priority)) or victims
                found[at] = (cost(fewer), name, fewer)
        return min(found, key=lambda each: each[:2])[1:] if found else None

    def still(self, pod: Rejected, node: str, victims: Victims) -> bool:
        """Whether a node's search would end the same way now; others have had the loop since."""
        return at_once(self.on(pod.kept, node, uid=pod.uid, priority=pod.priority)) == victims

    def fits(self, pod: Rejected, node: str) -> bool:
        """Whether a pod fits on a node as it is: it need only be tried again."""
        states = self._cluster.keeper.states(node, uid=pod.uid, priority=pod.priority)
        return not isinstance(place(pod.kept.asks, pod.kept.shape, states), Rejection)

    def on(
        self,
        kept: Kept,
        node: str,
        *,
        uid: str,
        priority: int,
        gone: Collection[str] = (),
        smaller: bool = True,
    ) -> Generator[None, None, Victims | None]:
        """Search one node.

        Args:
            kept: what the pod asks.
            node: where.
            uid: of the pod.
            priority: of the pod.
            gone: UIDs of pods that go anyway.
            smaller: try smaller sets too, see `choose`.
        """
        ledger, keeper = self._cluster.ledger, self._cluster.keeper
        pod = self._cluster.pods.by_uid(uid)
        if pod is not None and self._cluster.refusals.on(node, pod) is not None:
            # Nobody is ended for a place that would not be taken.
            return None
        closed = ledger.closed(node)
        if closed is not None and not (closed is Reason.CORDONED and kept.shape.cordoned):
            return None
        promises = keeper.against(node, uid=uid, priority=priority, equal=True)
        # Fixed before anybody is thought away: what is kept must not move to where a victim was.
        kept_there = fixed(keeper.later(node, uid=uid, without=gone), [promise.kept for promise in promises])

        def without(keys: Collection[str]) -> list[GpuState]:
            states = keeper.later(node, uid=uid, without=(*gone, *keys))
            for each, places in kept_there:
                states = occupied(each, places, states)
            return states

        holdings = ledger.holdings(node)
        going = keeper.going(node)
        holders = [
            holder
            for holder in (
                self._holder(key, taken, node, priority)
                for key, taken in holdings.items()
                if key not in gone and key not in going and key != uid
            )
            if holder is not None
        ]
        if not holders and isinstance(place(kept.asks, kept.shape, without(())), Rejection):
            return None
        return (yield from choose(kept, without, holders, smaller=smaller))

    def _holder(self, uid: str, taken: Taken, node: str, priority: int) -> Holder | None:
        pod = self._cluster.pods.by_uid(uid)
        if pod is None or not may_go(pod, node, priority):
            return None
        if self._left_alone.get(uid, 0.0) > self._clock.monotonic():
            return None
        return Holder(uid, pod.key, pod.spec.priority or 0, pod.metadata.creation_timestamp or "", taken)


def may_go(pod: Pod, node: str, priority: int) -> bool:
    """Whether a pod on a node may be ended for one of that priority."""
    there = pod.spec.priority or 0
    meta = pod.metadata
    return (
        pod.spec.node_name == node
        and not pod.ended
        # Who is to end soon counts as gone; who is overdue would be no sooner gone for being ended once more.
        and meta.deletion_timestamp is None
        and there < priority
        and there < CRITICAL
        and meta.annotation(_MIRROR) is None
        and not any(owner.kind in ("DaemonSet", "Node") and owner.controller for owner in meta.owner_references or ())
    )


async def through(steps: Generator[None, None, T]) -> T:
    """Go through a search, letting others have the loop at every pause."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
        await asyncio.sleep(0)


def at_once(steps: Generator[None, None, T]) -> T:
    """Go through a search without a pause."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
