"""The measures `priced` and `fragmentation` on arrays: what a node would be worth less with a pod on it.

For a node with idle GPU T and CPU left c, in thousandths (docs/placement.md has the reasons and a picture):

    Phi = F                          idle GPU that popular requests could not use (tables)
        + h^2 / (T + slack)          h = max(0, balance * r * T - c) / r: idle GPU without the CPU to use it
        - remainder * sum of V       what the rest of every device is worth to other pods (remainder)

    delta = Phi after - Phi before - remainder * price of the shares taken + card price of what is taken

The lowest delta wins, in steps, so that nodes which hardly differ are taken in a stable order. `fragmentation` is F alone,
squashed as its authors do. On each node the GPUs are chosen first, by what each device is worth less.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from tessera.model.inventory import Gpu
from tessera.placement.columns import CALM, CAPACITY, KIND, MEMORY, PERCENT, SPARE, UNITS, BoolArray, IntArray
from tessera.placement.holding import Holding
from tessera.placement.instances import Instances
from tessera.placement.nodescores import added, anywhere, cheapest
from tessera.placement.remainder import WHOLE
from tessera.placement.shape import Part, Shape
from tessera.placement.tables import MOST_DEVICES, ONE, Tables
from tessera.placement.views import Pieces, View
from tessera.placement.workload import demand_of

Named = Mapping[tuple[str, int], int]
"""Numbers of the kinds of cards by product name and units."""

_SQUASHED: Final = np.array(
    # floor(100 * sigmoid(x / 1000)) reaches n where x = 1000 * logit(n / 100).
    [math.ceil(ONE * 1000 * math.log(n / (100 - n))) for n in range(1, 100)],
    np.int64,
)
_WHOLLY: Final = (WHOLE, WHOLE)
_MOST_KNOWN: Final = 16_384
"""Devices whose worth is remembered."""


class Block:
    """Some nodes as scoring reads them: arrays of nodes x GPUs out of `Columns.slots`, the CPU left, and free MIG instances
    (nodes x profiles), None where no node has any.
    """

    __slots__ = ("calm", "capacity", "cpu", "instances", "kind", "memory", "spare")

    def __init__(self, slots: IntArray, cpu: IntArray, instances: IntArray | None = None) -> None:
        """Take the fields apart; `slots` is of shape nodes x fields x GPUs."""
        self.instances = instances
        self.memory, self.calm = slots[:, MEMORY], slots[:, CALM]
        self.spare, self.kind = slots[:, SPARE], slots[:, KIND].copy()
        self.capacity = np.maximum(1, slots[:, CAPACITY])
        self.cpu = cpu


class Piece:
    """What one container asks on each of its GPUs, as numbers."""

    __slots__ = ("calm", "gpus", "percent", "units", "whole")

    def __init__(self, shape: Shape, part: Part) -> None:
        """Read a container's request; not for MIG."""
        request = part.request
        self.gpus = request.gpus
        self.whole = request.whole
        self.units = shape.units(part)
        self.percent = 100 if request.whole else request.memory_percent or 0
        self.calm = 10 * (100 if request.whole else request.compute or 0)

    def room(self, slots: IntArray) -> BoolArray:
        """Where one more such piece fits, by the first fields of `Columns.slots`."""
        found: BoolArray = slots[:, UNITS] >= self.units if self.units else slots[:, PERCENT] >= max(1, self.percent)
        if self.calm:
            found &= slots[:, CALM] >= self.calm
        return found

    def after(self, block: Block) -> tuple[IntArray, IntArray]:
        """Free thousandths of memory and of compute beside one more; anything where it does not fit, within 0..1000."""
        if self.whole:
            nothing = np.zeros_like(block.memory)
            return nothing, nothing
        taken = np.maximum(1, self.percent * block.capacity // 100) if self.percent else self.units
        memory = np.maximum(0, WHOLE * (block.spare - taken) // block.capacity)
        return memory, np.maximum(0, block.calm - self.calm) if self.calm else block.calm


class Together:
    """What all containers ask on one GPU: both views of memory at once, so it is counted on what is held there."""

    __slots__ = ("_pieces", "_view", "gpus")

    def __init__(self, shape: Shape, view: View) -> None:
        """For the nodes of a view."""
        self.gpus = 1
        self._view = view
        self._pieces = Pieces.together(shape, view.capacity)

    def room(self, slots: IntArray) -> BoolArray:
        """Where all of it fits; the nodes are those of the view."""
        return self._view.room(self._pieces) & (slots[:, PERCENT] > 0)

    def after(self, block: Block) -> tuple[IntArray, IntArray]:
        """Free thousandths of memory and of compute beside it; the nodes are those of the view."""
        memory = WHOLE * (block.spare - self._pieces.units - self._pieces.percent_units) // block.capacity
        return np.maximum(0, memory), np.maximum(0, block.calm - 10 * self._pieces.compute)


class Measured:
    """One of the two measures over one state of the tables."""

    def __init__(self, tables: Tables, *, plain: bool) -> None:
        """Measure by these tables; `plain` is FGD's measure alone."""
        self._tables = tables
        self._plain = plain
        self._worth = tables.plain if plain else tables.worth
        self._worth_memory = tables.plain_memory if plain else tables.worth_memory
        self._cards = not plain and bool(tables.card.any())
        self._gangs = bool(tables.gangs.any())
        self._memory_place = tables.memory_step * tables.sizes[3]
        # What one idle device more is worth to requests for several; none below the first.
        self._gang_steps = np.diff(tables.gangs, prepend=tables.gangs[:1])
        self._gang_steps[:: MOST_DEVICES + 1] = 0
        self._cpu_steps: list[int] = tables.cpu_steps.tolist()
        self._known: dict[tuple[int, int, int, int], int] = {}

    def gain(self, shape: Shape) -> int:
        """What a pod of this shape is worth wherever it goes, which the score is counted from."""
        tables = self._tables
        return 0 if self._plain else round(ONE * tables.measure.remainder * tables.price(demand_of(shape)))

    def scores(
        self,
        cpu: int,
        gain: int,
        block: Block,
        pieces: Sequence[tuple[Piece | Together, BoolArray]],
        taken: IntArray | int = 0,
    ) -> IntArray:
        """Score nodes that have room for every piece by itself, the higher the better.

        Args:
            cpu: thousandths of a core that the pod requests.
            gain: of its shape.
            block: the nodes.
            pieces: of its containers that ask for slices, with the GPUs that each may have.
            taken: MIG instances that it asks, by profile; the nodes have them.
        """
        tables = self._tables
        cpus = np.array([block.cpu, block.cpu - cpu])
        before, after = self._cpu_place(cpus)
        # One pass over everything: the nodes before, beside the pod's CPU alone, and with each piece on each GPU. A decision
        # looks at few nodes, so it costs what the number of calls costs.
        states = [(block.memory, block.calm), *(piece.after(block) for piece, _ in pieces)]
        place = after[:, None]
        same = not np.count_nonzero(before != after)
        if not same:
            place = np.array([*[after] * len(states), before])[:, :, None]
            states.append((block.memory, block.calm))
        memory, calm = _stack([m for m, _ in states]), _stack([c for _, c in states])
        free = np.minimum(memory, calm)
        worth = self._devices(block.kind, place, memory, calm, free)
        now, free = worth[0], self._mixed(free, memory)
        lost = np.zeros(len(after), np.int64) if same else added(worth[-1] - now)
        total = added(free[0])
        rest = total
        places = np.arange(0, now.size, now.shape[1])[:, None]
        gangs = _Gangs(tables, self._gang_steps, block, before, after) if self._gangs else None
        for number, (piece, fits) in enumerate(pieces, 1):
            costs = now - worth[number]
            chosen = cheapest(costs if gangs is None else costs + gangs.costs(), fits, piece.gpus) + places
            lost += _each(costs, chosen)
            rest = rest - _each(free[0] - free[number], chosen)
            if gangs is not None:
                gangs.take(chosen)
            if self._cards:
                share = np.maximum(block.memory - memory[number], block.calm - calm[number])
                lost += _each(share, chosen) * tables.card[block.kind.take(chosen[:, 0])]
        if gangs is not None:
            lost += gangs.lost()
        instances, left = tables.instances, block.instances
        if left is not None and instances is not None:
            lost += instances.worth(left, before) - instances.worth(left - taken, after)
        if self._plain:
            return np.searchsorted(_SQUASHED, -lost, side="right").astype(np.int64)
        idle = np.array([total, rest])
        lack = self._balance(idle, cpus)
        if left is not None and instances is not None:
            cut = anywhere(left > 0).nonzero()[0]
            lack[:, cut] = self._balance_cut(
                instances, idle[:, cut], cpus[:, cut], np.array([left, left - taken])[:, cut]
            )
        lost += lack[1] - lack[0]
        return np.asarray((gain - lost) // (ONE * tables.measure.step), np.int64)

    def chooser(self, shape: Shape, row: IntArray, cpu: int, names: Named) -> Chooser:
        """The same choice among one node's GPUs, by plain integers for `fit.place`.

        Args:
            shape: of the pod.
            row: the node's fields x GPUs out of `Columns.slots`, or with what was named.
            cpu: thousandths of a core left there.
            names: of the kinds of cards.
        """
        tables = self._tables
        place = bisect_right(self._cpu_steps, cpu - shape.cpu)
        calm, memory, kinds = (row[field].tolist() for field in (CALM, MEMORY, KIND))
        idle = list(zip(memory, calm, strict=True)).count(_WHOLLY)
        at = (max(kinds) * tables.sizes[1] + place) * (MOST_DEVICES + 1) + min(MOST_DEVICES, idle)
        one = int(tables.gangs[at] - tables.gangs[at - 1]) if idle else 0
        return Chooser(self, names, place, one)

    def device(self, kind: int, cpu: int, memory: int, calm: int) -> int:
        """What one device is worth, as `_devices` counts it."""
        key = (kind, cpu, memory, calm)
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            found = self._known[key] = self._device(*key)
        return found

    def _device(self, kind: int, cpu: int, memory: int, calm: int) -> int:
        tables = self._tables
        _, steps, sizes, computes = tables.sizes
        free = min(memory, calm)
        at = (kind * steps + cpu) * sizes + tables.memory_step.item(memory)
        place = at * computes + tables.compute_step.item(calm)
        worth = free * tables.usable.item(place) + self._worth.item(kind * (WHOLE + 1) + free)
        if tables.by_memory:
            worth += memory * tables.usable_memory.item(at) + self._worth_memory.item(kind * (WHOLE + 1) + memory)
        return int(worth)

    def _devices(self, kind: IntArray, cpu: IntArray, memory: IntArray, calm: IntArray, free: IntArray) -> IntArray:
        """What devices are worth beside so much CPU: what of them is usable and what the rest is worth, less their weight."""
        tables = self._tables
        _, steps, sizes, computes = tables.sizes
        # What is the same for all states is added up first, on the smaller array.
        corner = kind * (steps * sizes) + cpu * sizes
        at = self._memory_place.take(memory)
        at += tables.compute_step.take(calm)
        at += corner * computes
        found: IntArray = tables.usable.take(at)
        found *= free
        kind = kind * (WHOLE + 1)
        found += self._worth.take(kind + free)
        if tables.by_memory:
            corner = corner + tables.memory_step.take(memory)
            found += memory * tables.usable_memory.take(corner) + self._worth_memory.take(kind + memory)
        return found

    def _cpu_place(self, cpu: IntArray) -> IntArray:
        return np.asarray(self._tables.cpu_steps.searchsorted(cpu, "right"), np.int64)

    def _mixed(self, free: IntArray, memory: IntArray) -> IntArray:
        """Idle thousandths in the mixture in which pods ask for both dimensions or memory alone."""
        tables = self._tables
        if not tables.by_memory:
            return free
        return np.asarray(((ONE - tables.memory_part) * free + tables.memory_part * memory) // ONE, np.int64)

    def _balance(self, idle: IntArray, cpu: IntArray) -> IntArray:
        """Idle GPU without the CPU to use it, squared over what is idle: the more of it, the worse each bit."""
        tables = self._tables
        if not tables.ratio:
            return np.zeros_like(idle)
        lacking = tables.measure.balance * tables.ratio * idle - cpu
        np.maximum(lacking, 0.0, out=lacking)
        lacking /= tables.ratio
        lacking *= lacking
        lacking /= idle + tables.measure.slack
        lacking *= ONE
        return np.asarray(np.rint(lacking), np.int64)

    def _balance_cut(self, instances: Instances, idle: IntArray, cpu: IntArray, free: IntArray) -> IntArray:
        """The same where instances are free too, which want their CPU out of the same cores."""
        tables = self._tables
        wanted = tables.ratio * idle + free @ instances.cpu
        idle = idle + free @ instances.sizes
        lacking = np.maximum(0.0, tables.measure.balance * wanted - cpu) * idle / np.maximum(1.0, wanted)
        return np.asarray(np.rint(ONE * lacking * lacking / (idle + tables.measure.slack)), np.int64)


def _stack(arrays: Sequence[IntArray]) -> IntArray:
    """`np.stack` of arrays of one shape, in a third of the time: a decision makes a handful of small ones."""
    stacked = np.empty((len(arrays), *arrays[0].shape), np.int64)
    for number, array in enumerate(arrays):
        stacked[number] = array
    return stacked


def _each(amounts: IntArray, chosen: IntArray) -> IntArray:
    """Of each node, the sum over its chosen devices, which are given by flat places."""
    if chosen.shape[1] == 1:
        return amounts.take(chosen[:, 0])
    return added(amounts.take(chosen))


class _Gangs:
    """What idle devices of some nodes are worth to requests for several whole ones, as they are taken."""

    __slots__ = ("_before", "_devices", "_idle", "_least", "_steps", "_table")

    def __init__(self, tables: Tables, steps: IntArray, block: Block, before: IntArray, after: IntArray) -> None:
        self._table = tables.gangs
        self._steps = steps
        self._idle = ((block.memory == WHOLE) & (block.calm == WHOLE)).astype(np.int64)
        self._devices = np.minimum(MOST_DEVICES, added(self._idle))
        kind = block.kind.max(axis=1) * tables.sizes[1]
        self._least = (kind + after) * (MOST_DEVICES + 1)
        self._before = self._table.take((kind + before) * (MOST_DEVICES + 1) + self._devices)

    def costs(self) -> IntArray:
        """Of each device, what one idle device less costs."""
        return np.asarray(self._idle * self._steps.take(self._least + self._devices)[:, None], np.int64)

    def take(self, chosen: IntArray) -> None:
        """Take devices, at flat places."""
        self._devices = np.maximum(0, self._devices - _each(self._idle, chosen))

    def lost(self) -> IntArray:
        """What the nodes are worth less."""
        return np.asarray(self._before - self._table.take(self._least + self._devices), np.int64)


class Chooser:
    """A `policies.Policy` for the GPUs of one node, by what each device would be worth less."""

    def __init__(self, measured: Measured, kinds: Named, cpu: int, one: int) -> None:
        """Choose by a measure on a node with so much CPU, where an idle device more is worth `one` to whole requests."""
        self._measured = measured
        self._kinds = kinds
        self._cpu = cpu
        self._one = one

    def cost(self, gpu: Gpu, before: Holding, after: Holding) -> int:
        """What the device would be worth less."""
        kind = self._kinds.get((gpu.model, gpu.units), 0)
        was, now = _free(before, gpu.units), _free(after, gpu.units)
        lost = self._measured.device(kind, self._cpu, *was) - self._measured.device(kind, self._cpu, *now)
        return lost + self._one if was == (WHOLE, WHOLE) else lost


def _free(held: Holding, units: int) -> tuple[int, int]:
    return max(0, WHOLE * (units - held.all_units) // max(1, units)), max(0, 10 * (100 - held.compute))
