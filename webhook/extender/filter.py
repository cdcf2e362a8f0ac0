"""Filter and prioritise: which node a pod should go to, and why not elsewhere.

One node is named (kube-scheduler breaks ties between equal scores by a coin, which costs more packing than any policy
gains). First comes what the pod prefers of nodes, then how well its slices lie there, then the node's name. A filter
reserves nothing and refuses nobody because of another unbound pod: what it has just named is avoided while anything else
fits, and given away again if nothing does. What is kept for a pod that was promised a node (`keeping`) is the exception.

The arrays judge all nodes at once; the node that would be taken is then tried exactly. Where that fails (several
containers, GPUs that must hang together) the verdict is kept and the next node is tried, a few at a time, so that one
hard pod never stops the loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from itertools import compress
from typing import Final

import msgspec
import numpy as np

from tessera.model.config import Config
from tessera.model.cpu import cpu_of
from tessera.model.errors import RequestError
from tessera.model.pod import Pod
from tessera.model.tickets import Ask, asks
from tessera.placement.choose import best
from tessera.placement.claims import Claim
from tessera.placement.columns import IntArray
from tessera.placement.fit import place
from tessera.placement.keeping import Kept
from tessera.placement.reasons import Reason, Rejection
from tessera.placement.scores import ShapeRow
from tessera.placement.shape import Shape, shape_of
from tessera.placement.wishes import wishes
from webhook.extender.cluster import Cluster
from webhook.extender.metrics import Metrics
from webhook.extender.namelists import NameList, NameLists
from webhook.extender.preferences import tolerates_cordon
from webhook.extender.verdicts import Keys, Verdicts, one_verdict, verdicts
from webhook.extender.wire import FilterArgs, FilterResult, HostPriority, SchedulingPod, check_names

TRIES: Final = 4
"""Exact tries that fail before others get the loop: each takes 5 ms at worst."""
_MOST_ROUNDS: Final = 10_000
_TOP: Final = 10
"""MaxExtenderPriority."""
_WORST: Final = -(1 << 62)

_log = logging.getLogger(__name__)


class Asked(msgspec.Struct, frozen=True):
    """A pod that asks, read."""

    uid: str
    asks: tuple[Ask, ...]
    shape: Shape
    priority: int = 0


def read_asked(pod: Pod, config: Config, *, cordoned: bool = False) -> Asked | None:
    """What a pod asks; None where it asks nothing of ours.

    Args:
        pod: to be placed.
        config: in force.
        cordoned: it tolerates cordoned nodes.

    Raises:
        RequestError: tickets or wishes that make no sense.
    """
    found = asks(pod, config.names)
    if not found:
        return None
    wished = wishes(pod.metadata.annotations, config.names, config.placement)
    shape = shape_of(found, unit=config.memory_unit, wishes=wished, cordoned=cordoned, cpu=cpu_of(pod))
    return Asked(pod.metadata.uid, found, shape, pod.spec.priority or 0)


class Filter:
    """Answers kube-scheduler's filter and prioritize calls."""

    def __init__(
        self,
        cluster: Cluster,
        *,
        config: Callable[[], Config],
        metrics: Metrics,
        rejected: Callable[[SchedulingPod, Kept, NameList], None] | None = None,
    ) -> None:
        """Decide by the state of this cluster.

        Args:
            cluster: as the caches have it.
            config: the config in force.
            metrics: counts answers and reasons.
            rejected: called with a pod that found no node but may find one later, what it asks, and where it was looked for.
        """
        self._cluster = cluster
        self._config = config
        self._metrics = metrics
        self._rejected = rejected
        self._lists = NameLists(cluster.ledger)
        self._keys = Keys(cluster.ledger)

    async def filter(self, args: FilterArgs) -> FilterResult:
        """Name one node, or none and a reason for every name; all that fit where config says ``answer: all``.

        Raises:
            WireError: names that no node has.
        """
        config = self._config()
        if config.names.scale_for in (args.pod.metadata.labels or {}):
            # It stays unschedulable for as long as it is there, which is all that an autoscaler looks at.
            return self._never(args, Rejection(Reason.SCALE_POD))
        try:
            asked = read_asked(args.pod, config, cordoned=tolerates_cordon(args.pod))
        except RequestError as error:
            return self._never(args, Rejection(Reason.INVALID, what=str(error)[:500]))
        if asked is None:
            return await self._plain(args, config)
        self._cluster.forget_old_names()
        self._cluster.scores.pricing.configure(config.placement.measure)
        if config.placement.answer == "all":
            return await self._all(asked, args)
        kept_from = self._cluster.refusals.against(args.pod)
        for _ in range(_MOST_ROUNDS):
            if not (self._cluster.scores.prepare(asked.shape) and self._cluster.preferences.prepare(args.pod)):
                await asyncio.sleep(0)
                continue
            listed = self._lists.resolve(args)
            self._cluster.ledger.forget_softly(args.pod.metadata.uid)
            if len(listed.known):
                found, decided = self._best(asked, args.pod, listed, kept_from)
                if found is not None:
                    self._metrics.filtered("named", {})
                    return _answer(args, [found])
                if not decided:
                    await asyncio.sleep(0)
                    continue
            break
        return self._none(asked, args, kept_from)

    async def prioritize(self, args: FilterArgs) -> list[HostPriority]:
        """Score the names 0..10, by the policy; for those who have kube-scheduler choose (``answer: all``).

        Raises:
            WireError: names that no node has.
        """
        listed = self._lists.resolve(args)
        try:
            asked = read_asked(args.pod, self._config(), cordoned=tolerates_cordon(args.pod))
        except RequestError:
            asked = None
        if asked is None or not len(listed.known):
            return [HostPriority(name, 0) for name in listed.names]
        row = self._cluster.scores.row(asked.shape)
        order = np.unique(row.score[listed.known[row.code[listed.known] == 0]])
        scores = {}
        for each in listed.known:
            if row.code[each] == 0 and len(order):
                step = int(np.searchsorted(order, row.score[each]))
                scores[listed.name(int(each))] = _TOP if len(order) == 1 else _TOP * step // (len(order) - 1)
        return [HostPriority(name, scores.get(name, 0)) for name in listed.names]

    def _best(
        self, asked: Asked, pod: SchedulingPod, listed: NameList, kept_from: dict[str, Rejection]
    ) -> tuple[str | None, bool]:
        """The best node that takes the pod; whether the verdict is final. Nodes kept from it are added to `kept_from`."""
        row = self._cluster.scores.row(asked.shape)
        failed = 0
        for soft in (True, False):
            while True:
                fitting = (row.softly if soft else row.fits)[listed.known]
                rows = listed.known[fitting]
                if kept_from:
                    rows = rows[~np.isin(rows, [self._cluster.ledger.row(name) for name in kept_from])]
                if not len(rows):
                    break
                at = self._pick(pod, row, rows)
                if self._try(asked, row, at, listed.name(at), kept_from, soft=soft):
                    return listed.name(at), True
                failed += 1
                if failed >= TRIES:
                    return None, False
        return None, True

    def _pick(self, pod: SchedulingPod, row: ShapeRow, rows: IntArray) -> int:
        """What the pod prefers, then the score, then the name."""
        preferred = self._cluster.preferences.scores(pod, rows)
        if preferred is not None:
            rows = rows[preferred == preferred.max()]
        return best(self._cluster.ledger, self._cluster.scores, row, rows)

    def _try(
        self, asked: Asked, row: ShapeRow, at: int, name: str, kept_from: dict[str, Rejection], *, soft: bool
    ) -> bool:
        """Place the pod on a node exactly; what comes out is named, or kept as the verdict on that node."""
        uid = asked.uid
        states = self._cluster.keeper.states(name, uid=uid, priority=asked.priority, soft=soft)
        found = place(asked.asks, asked.shape, states, by=self._cluster.scores.chooser(asked.shape, at, soft=soft))
        if not isinstance(found, Rejection):
            self._cluster.name_softly(uid, name, Claim(asked.asks, found, asked.shape.wishes.company))
            self._cluster.scores.pricing.placed(uid)
            return True
        kept = self._kept_from(asked, name, soft=soft)
        if kept is not None:
            # It holds for this pod only, not for its shape.
            kept_from[name] = kept
        elif soft:
            row.avoid(at)
        else:
            row.refuse(at, found)
        return False

    def _kept_from(self, asked: Asked, name: str, *, soft: bool) -> Rejection | None:
        """That a node would take the pod but for what is kept there for others; None where that is not why."""
        promises = self._cluster.keeper.against(name, uid=asked.uid, priority=asked.priority)
        if not promises:
            return None
        states = self._cluster.ledger.states(name, without=(asked.uid,), soft=soft)
        if isinstance(place(asked.asks, asked.shape, states), Rejection):
            return None
        return Rejection(Reason.KEPT, promises[0].priority)

    async def _plain(self, args: FilterArgs, config: Config) -> FilterResult:
        """Where a pod goes that asks for no GPU (``placement.cpuPods``).

        A node without GPUs loses nothing by any measure, so such nodes come first, and among them kube-scheduler's own
        scores decide. Where there are none, ``score`` names the node with GPUs that loses least.
        """
        mode = config.placement.cpu_pods
        cpu = cpu_of(args.pod)
        if mode != "ignore":
            listed = self._lists.resolve(args)
            closed = self._cluster.ledger.columns.closed[listed.rows]
            bare = (listed.rows < 0) | (closed == Reason.NO_GPU.code)
            if bare.any():
                self._metrics.filtered("passed", {})
                return _everything(args) if bare.all() else _answer(args, list(compress(listed.names, bare)))
            if mode == "score" and cpu:
                shape = Shape(config.memory_unit, (), wishes(None, config.names, config.placement), cpu=cpu)
                found = await self._least_lost(shape, args)
                if found is not None:
                    self._metrics.filtered("named", {})
                    return _answer(args, [found])
        self._metrics.filtered("passed", {})
        return _everything(args)

    async def _least_lost(self, shape: Shape, args: FilterArgs) -> str | None:
        """The node that loses least by CPU alone; None where all of them are closed to slices anyway."""
        self._cluster.scores.pricing.configure(self._config().placement.measure)
        for _ in range(_MOST_ROUNDS):
            if self._cluster.scores.prepare(shape) and self._cluster.preferences.prepare(args.pod):
                break
            await asyncio.sleep(0)
        listed = self._lists.resolve(args)
        row = self._cluster.scores.row(shape)
        rows = listed.known[row.fits[listed.known]]
        return listed.name(self._pick(args.pod, row, rows)) if len(rows) else None

    def _never(self, args: FilterArgs, why: Rejection) -> FilterResult:
        """No node, ever, for one reason."""
        found = one_verdict(self._lists.resolve(args), why, self._keys)
        self._metrics.filtered("refused", found.counts)
        return _answer(args, [], found)

    async def _all(self, asked: Asked, args: FilterArgs) -> FilterResult:
        """Every node that fits, and why the others don't."""
        tried: set[str] = set()
        kept_from = self._cluster.refusals.against(args.pod)
        for _ in range(_MOST_ROUNDS):
            listed = self._lists.resolve(args)
            row = self._cluster.scores.row(asked.shape)
            pending = [
                int(each) for each in listed.known[row.code[listed.known] == 0] if listed.name(int(each)) not in tried
            ]
            if not pending:
                break
            for each in pending[: 4 * TRIES]:
                name = listed.name(each)
                tried.add(name)
                states = self._cluster.keeper.states(name, uid=asked.uid, priority=asked.priority)
                found = place(asked.asks, asked.shape, states)
                if isinstance(found, Rejection):
                    kept = self._kept_from(asked, name, soft=False)
                    if kept is not None:
                        kept_from[name] = kept
                    else:
                        row.refuse(each, found)
            await asyncio.sleep(0)
        return self._none(asked, args, kept_from)

    def _none(self, asked: Asked, args: FilterArgs, kept_from: Mapping[str, Rejection]) -> FilterResult:
        """The nodes that fit (none, where one was looked for), and a reason for every other name."""
        listed = self._lists.resolve(args)
        row = self._cluster.scores.row(asked.shape)
        found = verdicts(row, listed, kept_from, self._keys, every=self._config().placement.answer == "all")
        self._metrics.filtered("named" if found.fitting else "refused", found.counts)
        if not found.fitting and found.may_later and Reason.REFUSING not in found.counts:
            self._cluster.scores.pricing.refused(asked.uid, asked.shape)
        if not found.fitting and found.may_later and self._rejected is not None:
            self._rejected(args.pod, Kept(asked.asks, asked.shape), listed)
        return _answer(args, found.fitting, found)


def _everything(args: FilterArgs) -> FilterResult:
    if args.nodes is not None:
        return FilterResult(Nodes={"items": list(args.nodes.values())})
    return FilterResult(NodeNames=check_names(args.raw_names))


def _answer(args: FilterArgs, names: list[str], others: Verdicts | None = None) -> FilterResult:
    """Answer in kind: names for names, nodes for nodes."""
    result = FilterResult()
    if others is not None:
        result.FailedNodes, result.FailedAndUnresolvableNodes = others.now, others.never
    if args.nodes is not None:
        result.Nodes = {"items": [args.nodes[name] for name in names]}
    else:
        result.NodeNames = names
    return result
