"""The measures as tables: everything that pricing a node needs, looked up by kind of card, CPU left and what is free.

FGD's measure (Weng et al., "Beware of Fragmentation", USENIX ATC '23) asks, for every popular request m with share p_m of
all pods: how much of a node's idle GPU could m not use? With q the idle part of a device, T their sum, and one device per
request, that is

    F = sum over m of p_m (T - sum over devices with q >= share_m of q)  where the node has the CPU and the card for m,
        sum over m of p_m T                                              where it has not
      = T - sum over devices of q A(q),   A(q) = sum of p_m over the m that have their CPU and card here and share_m <= q

so the whole measure is one look-up per device instead of a loop over requests. Requests for several whole devices have a
table of their own, by the number of idle devices. A device is only as free as its scarcer dimension for a request: one
that asks for memory alone sees the free memory, one that asks for compute too the lesser of both.

All entries are integers (shares of pods times 2**20, devices in thousandths), so a score is the same wherever and however
often it is computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import numpy as np

from tessera.model.config import Measure
from tessera.placement.columns import IntArray, Kind
from tessera.placement.instances import NOTHING_CUT, Cut, Instances, supposed
from tessera.placement.remainder import WHOLE, price, threshold, worths
from tessera.placement.stays import Stays
from tessera.placement.workload import Demand, shares

ONE: Final = 1 << 20
"""All pods together, in table entries."""
MOST_DEVICES: Final = 64
_MOST_STEPS: Final = 48
"""Different amounts of CPU, and of memory, that are told apart; where more are asked, they are rounded up."""
_MOST_COMPUTE: Final = 24
_CPU_GRAIN: Final = 500
_GRAIN: Final = 10
_GANGS_SUPPOSED: Final = 0.01
"""Pods that ask for a whole node, to one that asks for one GPU, where nothing is known."""
SMALLEST_GANG: Final = 2
"""Whole nodes of fewer GPUs need no reserve."""


class Stock:
    """The cards there are: numbers that change only when nodes come, go or fall sick.

    Attributes:
        kinds: by number, with the product names.
        gpus: how many of each kind.
        node: GPUs of the largest node.
        cpu: thousandths of a core that there are beside one GPU, on average; 0 where unknown.
        cut: the MIG instances, and the CPU beside those.
    """

    __slots__ = ("cpu", "cut", "gpus", "kinds", "models", "node")

    def __init__(
        self,
        kinds: Sequence[Kind],
        models: Sequence[str],
        gpus: IntArray,
        *,
        node: int,
        cores: int,
        cut: Cut = NOTHING_CUT,
    ) -> None:
        """Describe the cards of a cluster; `models` are the product names by number."""
        self.cut = cut
        self.kinds = tuple(kinds)
        self.models = tuple(models)
        self.gpus = gpus
        self.node = node
        self.cpu = cores / max(1, int(gpus.sum()))


class Tables:
    """One state of the workload and the cards, as tables.

    Attributes:
        seen: weight by request. counts: with what is supposed beside what was seen.
        cpu_steps: amounts of CPU; a node's place among them is its second index.
        memory_step, compute_step: places of 0..1000 free thousandths among the amounts asked.
        usable: A of requests that ask for compute too, flat, by kind, CPU, memory and compute steps.
        usable_memory: A of requests that ask for memory alone, by kind, CPU and memory steps.
        worth, worth_memory: what 0..1000 thousandths are worth less what they weigh in F, by kind: of the lesser of both
            dimensions, and of memory. plain, plain_memory: the same without the worth of rests, for FGD alone.
        gangs: what idle devices are worth to requests for several whole ones, by kind, CPU and number of idle devices.
        by_memory: whether there are requests for memory alone.
        ratio: thousandths of a core that pods ask beside a thousandth of a GPU.
        card: by kind, what taking it costs, per thousandth of a GPU.
        instances: what is known of MIG instances, None where there are none.
    """

    def __init__(self, counts: Mapping[Demand, float], stock: Stock, measure: Measure) -> None:
        """Make the tables; takes a few milliseconds."""
        self.measure = measure
        self.stock = stock
        self.seen = counts
        self.counts = _supposed(counts, stock, measure)
        kinds = max(1, len(stock.kinds))
        everything = [(demand, weight) for demand, weight in self.counts.items() if weight > 0]
        self._fitting: dict[tuple[tuple[str, ...], tuple[str, ...]], list[int]] = {}
        self._sizes = {demand: self._size(demand) for demand, _ in everything}
        gpu = sum(weight * self.gpu(demand) for demand, weight in everything)
        memory = sum(weight * self.gpu(demand) for demand, weight in everything if not demand.compute)
        cpu = sum(weight * demand.cpu for demand, weight in everything if demand.gpus)
        self.ratio = cpu / gpu if gpu else 0.0
        if stock.cpu and measure.balance:
            # More CPU than there is beside an average GPU can't be kept beside all of them.
            self.ratio = min(self.ratio, stock.cpu / WHOLE / measure.balance)
        self.by_memory = memory > 0
        self.memory_part = round(ONE * memory / gpu) if gpu else 0
        """How much of the demand for GPUs is for memory alone, of ONE."""
        self.low = threshold(self._weights(everything, None))
        scale = WHOLE * int(stock.gpus.sum()) / gpu if gpu else 0.0
        self.card = self._cards(everything, scale)
        targets = [(demand, round(ONE * part)) for demand, part in shares(self.counts, measure.coverage)]
        self._steps(targets, kinds)
        self._fill(targets, kinds)
        self._value(targets, everything, kinds)
        self.instances = self._instances(targets) if stock.cut.counts else None

    def whole_nodes(self, stays: Stays) -> tuple[float, float]:
        """What to expect of pods that need a whole node, once the cluster is full.

        Args:
            stays: how long pods stay: who stays twice as long is met twice as often.

        Returns:
            How many there will be, and the CPU that at least half of them find enough.
        """
        factors = {gpus: stays.factor(gpus) for gpus in {d.gpus if d.whole else 0 for d in self.counts}}
        met = [(d, w * factors[d.gpus if d.whole else 0]) for d, w in self.counts.items() if d.gpus and w > 0]
        gpu = sum(weight * self.gpu(demand) for demand, weight in met)
        least = max(SMALLEST_GANG, self.stock.node)
        whole = sorted((d.cpu, weight) for d, weight in met if d.whole and d.gpus >= least)
        total = sum(weight for _, weight in whole)
        if not total:
            return 0.0, 0.0
        count = WHOLE * int(self.stock.gpus.sum()) / gpu * total
        below = np.cumsum([weight for _, weight in whole])
        return count, float(whole[int(np.searchsorted(below, total / 2))][0])

    def gpu(self, demand: Demand) -> float:
        """Thousandths of GPUs that a request takes in all, over the kinds that it may have."""
        size = self._sizes.get(demand)
        return demand.gpus * (size if size is not None else self._size(demand))

    def price(self, demand: Demand) -> int:
        """What a request's shares count as, in thousandths."""
        return demand.gpus * price(min(WHOLE, round(self.gpu(demand) / max(1, demand.gpus))), self.low)

    def share(self, demand: Demand, kind: int) -> tuple[int, int]:
        """Thousandths of memory and of compute that a request takes of one GPU of a kind; above 1000 it does not fit."""
        units = self.stock.kinds[kind].units
        memory = 10 * demand.percent or WHOLE * demand.units // max(1, units)
        if demand.units > units:
            memory = WHOLE + 1
        return memory, 10 * demand.compute

    def _size(self, demand: Demand) -> float:
        """Thousandths of one GPU, on average over the cards that it may have."""
        if not demand.gpus:
            return 0.0
        fitting = [(max(self.share(demand, k)), int(self.stock.gpus[k])) for k in self._kinds(demand)]
        total = sum(count for share, count in fitting if share <= WHOLE)
        if total:
            return sum(share * count for share, count in fitting if share <= WHOLE) / total
        return float(min(WHOLE, max([10 * demand.percent, 10 * demand.compute, *(share for share, _ in fitting)])))

    def _kinds(self, demand: Demand) -> list[int]:
        """Numbers of the kinds that a request may have."""
        key = (demand.models, demand.not_models)
        found = self._fitting.get(key)
        if found is None:
            models, kinds = self.stock.models, enumerate(self.stock.kinds)
            found = self._fitting[key] = [n for n, kind in kinds if demand.takes_model(models[kind.model])]
        return found

    def _weights(self, demands: Iterable[tuple[Demand, float]], kind: int | None) -> dict[int, float]:
        """Weight of each share asked, on a kind or on average."""
        found: dict[int, float] = {}
        for demand, weight in demands:
            if demand.gpus:
                share = round(self._sizes[demand]) if kind is None else max(self.share(demand, kind))
                if 0 < share <= WHOLE:
                    found[share] = found.get(share, 0.0) + weight
        return found

    def _cards(self, demands: Sequence[tuple[Demand, float]], scale: float) -> IntArray:
        """What a kind is short of when the cluster is full, by what pods that name it will want; 0 on average."""
        gpus = self.stock.gpus.astype(np.float64)
        wanted = np.zeros(len(gpus))
        for demand, weight in demands:
            if demand.gpus and (demand.models or demand.not_models):
                named = self._kinds(demand)
                there = gpus[named].sum()
                if 0 < len(named) < len(gpus) and there:
                    wanted[named] += weight * self.gpu(demand) * scale * gpus[named] / there
        if not wanted.any() or not gpus.sum():
            return np.zeros(max(1, len(gpus)), np.int64)
        short = np.minimum(self.measure.card_most, wanted / np.maximum(1.0, WHOLE * gpus))
        short -= (short * gpus).sum() / gpus.sum()
        return np.rint(ONE * self.measure.card * short).astype(np.int64)

    def _steps(self, targets: Sequence[tuple[Demand, int]], kinds: int) -> None:
        gpus = [demand for demand, _ in targets if demand.gpus]
        memory = {self.share(demand, kind)[0] for demand in gpus for kind in range(len(self.stock.kinds))}
        self.cpu_steps, self._cpu_grain = _coarse({d.cpu for d, _ in targets}, _CPU_GRAIN, _MOST_STEPS)
        steps, self._memory_grain = _coarse({share for share in memory if share <= WHOLE}, _GRAIN, _MOST_STEPS)
        compute, self._compute_grain = _coarse({10 * d.compute for d in gpus if d.compute}, _GRAIN, _MOST_COMPUTE)
        every = np.arange(WHOLE + 1)
        self.memory_step = np.searchsorted(steps, every, side="right").astype(np.int64)
        self.compute_step = np.searchsorted(compute, every, side="right").astype(np.int64)
        self._memory_steps, self._compute_steps = steps, compute
        self.sizes = (kinds, len(self.cpu_steps) + 1, len(steps) + 1, len(compute) + 1)

    def _fill(self, targets: Sequence[tuple[Demand, int]], kinds: int) -> None:
        """Put every request at its corner, then add up: what has more of everything is usable for all below."""
        both = np.zeros(self.sizes, np.int64)
        memory = np.zeros(self.sizes[:3], np.int64)
        gangs = np.zeros((kinds, self.sizes[1], MOST_DEVICES + 1), np.int64)
        for demand, part in targets:
            if not demand.gpus:
                continue
            cpu = _place(self.cpu_steps, demand.cpu, self._cpu_grain)
            for kind in self._kinds(demand):
                share, compute = self.share(demand, kind)
                if demand.whole and demand.gpus > 1:
                    gangs[kind, cpu, min(demand.gpus, MOST_DEVICES)] += part
                elif share <= WHOLE:
                    at = _place(self._memory_steps, share, self._memory_grain)
                    if compute:
                        both[kind, cpu, at, _place(self._compute_steps, compute, self._compute_grain)] += part
                    else:
                        memory[kind, cpu, at] += part
        for axis in (1, 2, 3):
            both = both.cumsum(axis=axis)
        for axis in (1, 2):
            memory, gangs = memory.cumsum(axis=axis), gangs.cumsum(axis=axis)
        self.usable, self.usable_memory = both.ravel(), memory.ravel()
        self.gangs = (gangs * WHOLE * np.arange(MOST_DEVICES + 1)).ravel()

    def _instances(self, targets: Sequence[tuple[Demand, int]]) -> Instances:
        places = {d: _place(self.cpu_steps, d.cpu, self._cpu_grain) for d, _ in targets if d.instances}
        return Instances(
            self.counts,
            targets,
            self.stock.cut,
            balance=self.measure.balance,
            places=places,
            steps=self.sizes[1],
            one=ONE,
        )

    def _value(
        self, targets: Sequence[tuple[Demand, int]], everything: Sequence[tuple[Demand, float]], kinds: int
    ) -> None:
        both_part = ONE - self.memory_part
        without = ONE - sum(part for demand, part in targets if demand.gpus)
        by_memory = sum(part for demand, part in targets if demand.gpus and not demand.compute)
        with_compute = ONE - without - by_memory
        every = np.arange(WHOLE + 1)
        # What a CPU-only pod can't use is all idle GPU, in the mixture of both dimensions.
        self.plain = np.tile(-every * (with_compute + without * both_part // ONE), (kinds, 1))
        self.plain_memory = np.tile(-every * (by_memory + without * self.memory_part // ONE), (kinds, 1))
        known: dict[tuple[tuple[int, float], ...], IntArray] = {}
        worth, worth_memory = self.plain.copy(), self.plain_memory.copy()
        groups = (
            (worth, [each for each in everything if each[0].compute], both_part),
            (worth_memory, [each for each in everything if not each[0].compute], self.memory_part),
        )
        for table, demands, part in groups:
            for kind in range(len(self.stock.kinds)) if part else ():
                weights = self._weights(demands, kind)
                key = tuple(sorted(weights.items()))
                if key not in known:
                    known[key] = worths(weights)
                table[kind] += np.rint(self.measure.remainder * part * known[key]).astype(np.int64)
        self.worth, self.worth_memory = worth.ravel(), worth_memory.ravel()
        self.plain, self.plain_memory = self.plain.ravel(), self.plain_memory.ravel()


def _supposed(counts: Mapping[Demand, float], stock: Stock, measure: Measure) -> dict[Demand, float]:
    """The workload, with what is supposed of it before much was seen: that GPUs are asked for one by one, sometimes a whole
    node of them, each with the CPU that there is for it.

    Who knows nothing else packs small pods as if none but small ones came, until nothing larger fits: with the trace's list
    in order of size, 66 % of the GPUs were allocated instead of 92 %.
    """
    found = dict(counts)
    weight = measure.prior * int(stock.gpus.sum())
    cpu = stock.cpu / measure.balance if measure.balance else 0.0
    for gpus, part in ((1, weight), (stock.node, weight * _GANGS_SUPPOSED)):
        if gpus and part:
            demand = Demand(cpu=int(cpu * gpus), gpus=gpus, percent=100, compute=100)
            found[demand] = found.get(demand, 0.0) + part
    for demand, part in supposed(stock.cut, prior=measure.prior, balance=measure.balance):
        found[demand] = found.get(demand, 0.0) + part
    return found


def _coarse(amounts: set[int], grain: int, most: int) -> tuple[IntArray, int]:
    """Amounts in order, and the grain that they were rounded up to so that there are at most so many (1 where not)."""
    if len(amounts) <= most:
        return np.array(sorted(amounts), np.int64), 1
    while len({-(-amount // grain) for amount in amounts}) > most:
        grain *= 2
    return np.array(sorted({-(-amount // grain) * grain for amount in amounts}), np.int64), grain


def _place(steps: IntArray, amount: int, grain: int) -> int:
    """The index from which on a table counts an amount."""
    return int(np.searchsorted(steps, -(-amount // grain) * grain, side="left")) + 1
