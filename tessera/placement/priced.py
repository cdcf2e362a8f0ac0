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
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from tessera.model.inventory import Gpu
from tessera.placement.columns import CALM, CAPACITY, KIND, MEMORY, PERCENT, SPARE, UNITS, BoolArray, IntArray
from tessera.placement.holding import Holding
from tessera.placement.nodescores import cheapest
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


class Block:
    """Some nodes as scoring reads them: arrays of nodes x GPUs out of `Columns.slots`, and the CPU left."""

    __slots__ = ("calm", "capacity", "cpu", "kind", "memory", "spare")

    def __init__(self, slots: IntArray, cpu: IntArray) -> None:
        """Take the fields apart; `slots` is of shape nodes x fields x GPUs."""
        self.memory, self.calm = slots[:, MEMORY], slots[:, CALM]
        self.spare, self.kind = slots[:, SPARE], slots[:, KIND]
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

    def gain(self, shape: Shape) -> int:
        """What a pod of this shape is worth wherever it goes, which the score is counted from."""
        tables = self._tables
        return 0 if self._plain else round(ONE * tables.measure.remainder * tables.price(demand_of(shape)))

    def scores(
        self, cpu: int, gain: int, block: Block, pieces: Sequence[tuple[Piece | Together, BoolArray]]
    ) -> IntArray:
        """Score nodes that have room for every piece by itself, the higher the better.

        Args:
            cpu: thousandths of a core that the pod requests.
            gain: of its shape.
            block: the nodes.
            pieces: of its containers that ask for slices, with the GPUs that each may have.
        """
        tables = self._tables
        before, after = self._cpu_place(block.cpu), self._cpu_place(block.cpu - cpu)
        now = self._devices(block.kind, after, block.memory, block.calm)
        lost = np.zeros(len(before), np.int64)
        if (before != after).any():
            lost = self._devices(block.kind, before, block.memory, block.calm).sum(axis=1) - now.sum(axis=1)
        taken = np.zeros(len(before), np.int64)
        places = np.arange(len(before))[:, None]
        idle: IntArray | None = None
        if self._gangs:
            idle = ((block.memory == WHOLE) & (block.calm == WHOLE)).astype(np.int64)
            devices = np.minimum(MOST_DEVICES, idle.sum(axis=1))
            kind = block.kind.max(axis=1) * tables.sizes[1]
            least = (kind + after) * (MOST_DEVICES + 1)
            one = tables.gangs[least + devices] - tables.gangs[least + np.maximum(0, devices - 1)]
            lost += tables.gangs[(kind + before) * (MOST_DEVICES + 1) + devices]
        for piece, fits in pieces:
            memory, calm = piece.after(block)
            costs = now - self._devices(block.kind, after, memory, calm)
            chosen = cheapest(costs if idle is None else costs + idle * one[:, None], fits, piece.gpus)
            at = (places, chosen)
            lost += costs[at].sum(axis=1)
            if idle is not None:
                devices = devices - idle[at].sum(axis=1)
            if not self._plain:
                free = self._free(block.memory[at], block.calm[at]) - self._free(memory[at], calm[at])
                taken += free.sum(axis=1)
            if self._cards:
                share = np.maximum(block.memory[at] - memory[at], block.calm[at] - calm[at]).sum(axis=1)
                lost += share * tables.card[block.kind[at][:, 0]]
        if idle is not None:
            lost -= tables.gangs[least + np.maximum(0, devices)]
        if self._plain:
            return np.searchsorted(_SQUASHED, -lost, side="right").astype(np.int64)
        total = self._free(block.memory, block.calm).sum(axis=1)
        lost += self._balance(total - taken, block.cpu - cpu) - self._balance(total, block.cpu)
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
        place = int(np.searchsorted(tables.cpu_steps, cpu - shape.cpu, side="right"))
        idle = int(((row[MEMORY] == WHOLE) & (row[CALM] == WHOLE)).sum())
        at = (int(row[KIND].max()) * tables.sizes[1] + place) * (MOST_DEVICES + 1) + min(MOST_DEVICES, idle)
        one = int(tables.gangs[at] - tables.gangs[at - 1]) if idle else 0
        return Chooser(self, names, place, one)

    def device(self, kind: int, cpu: int, memory: int, calm: int) -> int:
        """What one device is worth, as `_devices` counts it."""
        tables = self._tables
        _, steps, sizes, computes = tables.sizes
        free = min(memory, calm)
        at = (kind * steps + cpu) * sizes + tables.memory_step.item(memory)
        place = at * computes + tables.compute_step.item(calm)
        worth = free * tables.usable.item(place) + self._worth.item(kind * (WHOLE + 1) + free)
        if tables.by_memory:
            worth += memory * tables.usable_memory.item(at) + self._worth_memory.item(kind * (WHOLE + 1) + memory)
        return int(worth)

    def _devices(self, kind: IntArray, cpu: IntArray, memory: IntArray, calm: IntArray) -> IntArray:
        """What devices are worth beside so much CPU: what of them is usable and what the rest is worth, less their weight."""
        tables = self._tables
        _, steps, sizes, computes = tables.sizes
        free = np.minimum(memory, calm)
        at = (kind * steps + cpu[:, None]) * sizes + tables.memory_step[memory]
        found: IntArray = free * tables.usable[at * computes + tables.compute_step[calm]]
        found += self._worth[kind * (WHOLE + 1) + free]
        if tables.by_memory:
            found += memory * tables.usable_memory[at] + self._worth_memory[kind * (WHOLE + 1) + memory]
        return found

    def _cpu_place(self, cpu: IntArray) -> IntArray:
        return np.searchsorted(self._tables.cpu_steps, cpu, side="right").astype(np.int64)

    def _free(self, memory: IntArray, calm: IntArray) -> IntArray:
        """Idle thousandths in the mixture in which pods ask for both dimensions or memory alone."""
        tables = self._tables
        free: IntArray = np.minimum(memory, calm)
        if not tables.by_memory:
            return free
        return np.asarray(((ONE - tables.memory_part) * free + tables.memory_part * memory) // ONE, np.int64)

    def _balance(self, idle: IntArray, cpu: IntArray) -> IntArray:
        """Idle GPU without the CPU to use it, squared over what is idle: the more of it, the worse each bit."""
        tables = self._tables
        if not tables.ratio:
            return np.zeros(len(idle), np.int64)
        lacking = np.maximum(0.0, tables.measure.balance * tables.ratio * idle - cpu) / tables.ratio
        return np.asarray(np.rint(ONE * (lacking * lacking / (idle + tables.measure.slack))), np.int64)


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
