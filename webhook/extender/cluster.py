"""The cluster as the extender sees it: what the watch caches tell, turned into the ledger.

Here stands the one rule of when a slice is free (contract, section 3). A bound pod holds its slice until a terminal phase
was seen. An object that vanishes without one (force delete, pod garbage collection, a relist) may still be running: it
holds its slice until its Node is gone, or 60 s have passed and the node does not name it as lingering.

And of what is being bound: a reservation holds like a bound pod from before the Binding is written until the watch shows
the pod bound, the write is known to have failed, or the pod is known to be gone. What is in doubt is held.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Literal, NoReturn, Protocol, TypeVar

from tessera.kube.changes import Added, Change, Deleted
from tessera.kube.clock import Clock
from tessera.model.config import Measure
from tessera.model.cpu import cpu_of
from tessera.model.names import Names
from tessera.model.node import Node
from tessera.model.pod import Pod
from tessera.model.tickets import Ask
from tessera.placement.claims import Claim, claim_of
from tessera.placement.ledger import Ledger
from tessera.placement.nodefacts import NodeFacts, read
from tessera.placement.pricing import Pricing
from tessera.placement.reasons import Reason
from tessera.placement.scores import Scores
from tessera.placement.workload import Demand, Demands, Workload
from webhook.extender.handback import Handback
from webhook.extender.keeping import Keeper
from webhook.extender.preferences import Preferences
from webhook.extender.refusals import Refusal, Refusals

VANISHED: Final = 60.0
"""Seconds for which a vanished pod's slice is kept although its node does not name it (contract, section 3)."""
NAMED: Final = 15.0
"""Seconds for which a slot that a filter has named is avoided by others. A bind follows within milliseconds, but within
seconds where 200 pods come at once on a busy machine; and nobody is refused for it, so a long time costs little."""
TICK: Final = 1.0
_MOST_SHARED: Final = 4096
_AWAY: Final = (Reason.NOT_READY, Reason.DRAINING, Reason.AGENT_AWAY)
"""What a node says of itself while its kubelet can't give devices."""

_log = logging.getLogger(__name__)
T_co = TypeVar("T_co", covariant=True)


class Objects(Protocol[T_co]):
    """What we need of a `WatchCache`."""

    @property
    def staleness(self) -> float: ...
    @property
    def synced(self) -> asyncio.Event: ...
    def get(self, name: str, namespace: str = "") -> T_co | None: ...
    def by_uid(self, uid: str) -> T_co | None: ...
    def __iter__(self) -> Iterator[T_co]: ...
    def __len__(self) -> int: ...


@dataclass(slots=True)
class _Reservation:
    """A booking that no watch event stands behind yet.

    `writing` while its bind runs, `written` once the API server has said yes.
    """

    node: str
    state: Literal["writing", "written"]
    since: float


@dataclass(frozen=True, slots=True)
class _Vanished:
    node: str
    since: float


class Cluster:
    """Nodes and pods as bookings in the ledger.

    Attributes:
        ledger: who holds what.
        workload: what pods ask, learned from all that were seen.
        scores: which nodes fit which shapes.
        preferences: what pods prefer of nodes.
        keeper: what is kept for pods that were promised a node.
        refusals: which nodes have just refused pods and are left alone.
        handback: on which GPUs a node agent is just handing back what it had withheld.
    """

    def __init__(
        self,
        pods: Objects[Pod],
        nodes: Objects[Node],
        *,
        names: Names,
        clock: Clock,
        grew: Callable[[str], None] | None = None,
        settled: Callable[[str], None] | None = None,
        refused: Callable[[Pod, Refusal], None] | None = None,
        measure: Measure | None = None,
        expected: Iterable[tuple[Demand, float]] = (),
    ) -> None:
        """Start with an empty ledger; subscribe `pod_changed` and `node_changed` to the caches.

        Args:
            pods: cache of all pods.
            nodes: cache of all nodes.
            names: of this installation.
            clock: measures how long what is kept.
            grew: called with the name of a node that can take more than before.
            settled: called with the UID of a pod that no longer waits for a node (bound, ended or gone).
            refused: called when a kubelet has refused a pod that was bound here.
            measure: constants of the measures that price nodes.
            expected: what pods will ask, before enough of them were seen.
        """
        self.pods = pods
        self.nodes = nodes
        self.names = names
        self.ledger = Ledger(grew=grew)
        constants = measure or Measure()
        self.workload = Workload(half_life=constants.half_life)
        self.workload.expect(expected)
        self.scores = Scores(self.ledger.columns, Pricing(self.ledger.columns, self.workload, constants))
        self.preferences = Preferences()
        self.keeper = Keeper(self.ledger, names=names, clock=clock, freed=grew)
        self.refusals = Refusals(names=names, clock=clock, opened=grew)
        self.handback = Handback(clock)
        self._in_step = True
        self._clock = clock
        self._settled = settled
        self._refused = refused
        self._demands = Demands(names)
        self._facts: dict[str, NodeFacts] = {}
        self._reservations: dict[str, _Reservation] = {}
        self._vanished: dict[str, _Vanished] = {}
        self._freed: dict[str, set[str]] = {}
        self._named: dict[str, float] = {}
        self._asks: dict[tuple[Ask, ...], tuple[Ask, ...]] = {}

    @property
    def problem(self) -> str | None:
        """Why no decision can be made yet, or None."""
        waits = [what for what, cache in (("nodes", self.nodes), ("pods", self.pods)) if not cache.synced.is_set()]
        if waits:
            return f"the first list of {' and '.join(waits)} is not in yet"
        return None if self._in_step else "what the first lists hold is being put in order"

    def node(self, name: str) -> Node | None:
        """The Node object, if there is one."""
        return self.nodes.get(name)

    # What the caches tell.

    def pod_changed(self, change: Change[Pod]) -> None:
        """Take in a change of a pod."""
        if isinstance(change, Deleted):
            self._pod_gone(change.final)
            return
        self._learn(change.new, None if isinstance(change, Added) else change.old)
        self._pod_seen(change.new)

    def node_changed(self, change: Change[Node]) -> None:
        """Take in a change of a node."""
        if isinstance(change, Deleted):
            self._node_gone(change.old.metadata.name)
        else:
            self._node_seen(change.new)

    def _pod_seen(self, pod: Pod) -> None:
        uid = pod.metadata.uid
        self.keeper.pod_seen(pod)
        refusal = self.refusals.pod_seen(pod)
        if refusal is not None and self._refused is not None:
            self._refused(pod, refusal)
        if pod.ended:
            self._free(uid, pod.spec.node_name)
            self.ledger.free_cpu(uid)
        elif pod.spec.node_name:
            self._forget(uid)
            self.ledger.use_cpu(uid, pod.spec.node_name, cpu_of(pod))
            claim = claim_of(pod, self.names)
            if claim is None:
                self.ledger.release(uid)
            else:
                self.ledger.book(uid, pod.spec.node_name, self._shared(claim))
        elif pod.metadata.deletion_timestamp is not None:
            # kube-scheduler never tries it again, however long a finalizer keeps it.
            self._done_waiting(uid)

    def _learn(self, pod: Pod, before: Pod | None) -> None:
        """Count what a pod asks, once: when it is first seen, one without a GPU when it takes CPU from GPUs."""
        if before is not None and (before.spec.node_name or not pod.spec.node_name):
            return
        demand = self._demands.of(pod)
        if demand is not None and (self.ledger.gpus(pod.spec.node_name) if demand.plain else before is None):
            self.workload.saw(demand)

    def _pod_gone(self, pod: Pod) -> None:
        uid = pod.metadata.uid
        self.keeper.pod_gone(uid)
        self.refusals.pod_gone(uid)
        self.ledger.free_cpu(uid)
        reservation = self._reservations.get(uid)
        booked = self.ledger.booked(uid)
        if pod.ended or booked is None:
            self._free(uid, pod.spec.node_name)
        elif reservation is not None and reservation.state == "writing":
            # Its bind is on the way and will find out.
            self._done_waiting(uid)
        else:
            self._vanish(uid, booked[0], self._clock.monotonic())

    def _vanish(self, uid: str, node: str, since: float) -> None:
        self._forget(uid)
        if self.nodes.get(node) is None:
            self.ledger.release(uid)
        else:
            self._vanished[uid] = _Vanished(node, since)

    def _free(self, uid: str, node: str) -> None:
        self._forget(uid)
        booked = self.ledger.booked(uid)
        if booked is not None:
            self.handback.left(*booked)
        self.ledger.release(uid)
        facts = self._facts.get(node)
        if facts is not None and uid in facts.drift:
            # The node goes on reporting an ended pod for a moment.
            self._freed.setdefault(node, set()).add(uid)
            self._set_node(node, facts)

    def _forget(self, uid: str) -> None:
        """Nothing of what was kept for the pod's sake is needed any more, except its booking."""
        self._reservations.pop(uid, None)
        self._vanished.pop(uid, None)
        self._done_waiting(uid)

    def _done_waiting(self, uid: str) -> None:
        self._forget_name(uid)
        if self._settled is not None:
            self._settled(uid)

    def _node_seen(self, node: Node) -> None:
        name = node.metadata.name
        before = self._facts.get(name)
        facts = self._facts[name] = read(node, self.names, before)
        if before is None or facts.problems != before.problems:
            for problem in facts.problems:
                _log.warning("node %s: %s", name, problem)
        freed = self._freed.get(name)
        if freed is not None:
            freed &= facts.drift.keys()
            if not freed:
                del self._freed[name]
        if before is not None and before.closed in _AWAY and facts.closed not in _AWAY:
            self.refusals.node_serves(name)
        self._set_node(name, facts)
        self.preferences.set(self.ledger.row(name), node)

    def _set_node(self, name: str, facts: NodeFacts) -> None:
        freed = self._freed.get(name, ())
        drift = {uid: told for uid, told in facts.drift.items() if uid not in freed} if freed else facts.drift
        self.ledger.set_node(name, facts.inventory, closed=facts.closed, drift=drift, cpu=facts.cpu)

    def _node_gone(self, name: str) -> None:
        self._facts.pop(name, None)
        self._freed.pop(name, None)
        self.refusals.node_gone(name)
        self.preferences.forget(self.ledger.row(name))
        self.ledger.drop_node(name)
        for uid in [uid for uid, each in self._vanished.items() if each.node == name]:
            del self._vanished[uid]
            self.ledger.release(uid)

    def _shared(self, claim: Claim) -> Claim:
        """Let claims of one kind share what they ask: 40,000 pods have few kinds."""
        known = self._asks.get(claim.asks)
        if known is None:
            if len(self._asks) >= _MOST_SHARED:
                self._asks.clear()
            self._asks[claim.asks] = claim.asks
            return claim
        return Claim(known, claim.places, claim.company)

    # What filter and bind tell.

    def name_softly(self, uid: str, node: str, claim: Claim) -> None:
        """A filter has named this to a pod; others avoid it for a moment."""
        self.ledger.name_softly(uid, node, claim)
        # At the end, so that the dict stays in the order of deadlines.
        self._named.pop(uid, None)
        self._named[uid] = self._clock.monotonic() + NAMED

    def forget_old_names(self) -> None:
        """Forget what was named too long ago."""
        now = self._clock.monotonic()
        while self._named:
            uid, deadline = next(iter(self._named.items()))
            if deadline > now:
                return
            self._forget_name(uid)

    def _forget_name(self, uid: str) -> None:
        self._named.pop(uid, None)
        self.ledger.forget_softly(uid)

    def reserve(self, uid: str, node: str, claim: Claim) -> None:
        """Book for a pod whose Binding is about to be written."""
        self._forget_name(uid)
        self.ledger.book(uid, node, claim)
        pod = self.pods.by_uid(uid)
        if pod is not None:
            self.ledger.use_cpu(uid, node, cpu_of(pod))
        self._reservations[uid] = _Reservation(node, "writing", self._clock.monotonic())

    def reserved(self, uid: str) -> bool:
        """Whether the pod's booking is a reservation whose Binding is not known to be in force."""
        reservation = self._reservations.get(uid)
        return reservation is not None and reservation.state == "writing"

    def confirm(self, uid: str) -> None:
        """The Binding that was reserved for is in force; the watch will show it."""
        reservation = self._reservations.get(uid)
        if reservation is not None:
            reservation.state = "written"
            reservation.since = self._clock.monotonic()
        self._done_waiting(uid)

    def observe(self, pod: Pod) -> None:
        """Take in a pod that was read from the API server and found bound, ahead of the watch.

        The watch may have overtaken the read: what it has shown by now counts more.
        """
        uid = pod.metadata.uid
        known = self.pods.by_uid(uid)
        if known is not None and (known.spec.node_name or known.ended):
            self._pod_seen(known)
            return
        self._pod_seen(pod)
        if self.ledger.booked(uid) is not None:
            self._reservations[uid] = _Reservation(pod.spec.node_name, "written", self._clock.monotonic())

    def cancel(self, uid: str) -> None:
        """The Binding is not in force and will not be. What is known to be bound by now stays."""
        if self.reserved(uid):
            del self._reservations[uid]
            self.ledger.release(uid)
            self.ledger.free_cpu(uid)
            self.refusals.unbound(uid)

    # Time.

    def tick(self) -> None:
        """Free what has been kept long enough."""
        now = self._clock.monotonic()
        self.forget_old_names()
        self.keeper.tick()
        self.refusals.tick()
        self.handback.tick()
        for uid, reservation in list(self._reservations.items()):
            # Bound and gone without the watch having shown it: as a pod that vanished.
            if reservation.state == "written" and now - reservation.since >= VANISHED and self.pods.by_uid(uid) is None:
                self._vanish(uid, reservation.node, reservation.since)
        for uid, vanished in list(self._vanished.items()):
            if now - vanished.since >= VANISHED and not self._lingers(uid, vanished.node):
                del self._vanished[uid]
                self.ledger.release(uid)

    def _lingers(self, uid: str, node: str) -> bool:
        facts = self._facts.get(node)
        return facts is not None and facts.inventory is not None and uid in facts.inventory.lingering

    async def run(self, *, synced: Callable[[], None] | None = None) -> NoReturn:
        """Let time pass, until cancelled.

        Args:
            synced: called once, when everything that there is was seen; nothing is decided before it returns.
        """
        self._in_step = False
        await asyncio.gather(self.pods.synced.wait(), self.nodes.synced.wait())
        _log.info("in step with the cluster: %d nodes, %d pods", len(self.nodes), len(self.pods))
        if synced is not None:
            synced()
        self._in_step = True
        while True:
            await self._clock.sleep(TICK)
            self.tick()
