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

    __slots__ = ("calm", "capacity", "cpu", "kind", "memory", "percent", "spare", "units")

    def __init__(self, slots: IntArray, cpu: IntArray) -> None:
        """Take the fields apart; `slots` is of shape nodes x fields x GPUs."""
        self.memory, self.calm = slots[:, MEMORY], slots[:, CALM]
        self.units, self.percent = slots[:, UNITS], slots[:, PERCENT]
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

    def room(self, block: Block) -> BoolArray:
        """Where one more such piece fits."""
        found: BoolArray = block.calm >= self.calm
        if self.units:
            found &= block.units >= self.units
        if self.percent:
            found &= block.percent >= self.percent
        return found

    def after(self, block: Block) -> tuple[IntArray, IntArray]:
        """Free thousandths of memory and of compute beside one more; anything where it does not fit, within 0..1000."""
        taken: IntArray | int = self.units
        if self.whole:
            taken = block.spare
        elif self.percent:
            taken = np.maximum(1, self.percent * block.capacity // 100)
        memory = np.maximum(0, WHOLE * (block.spare - taken) // block.capacity)
        return memory, np.maximum(0, block.calm - self.calm)


class Together:
    """What all containers ask on one GPU: both views of memory at once, so it is counted on what is held there."""

    __slots__ = ("_pieces", "_view", "gpus")

    def __init__(self, shape: Shape, view: View) -> None:
        """For the nodes of a view."""
        self.gpus = 1
        self._view = view
        self._pieces = Pieces.together(shape, view.capacity)

    def room(self, block: Block) -> BoolArray:
        """Where all of it fits."""
        return self._view.room(self._pieces) & (block.percent > 0)

    def after(self, block: Block) -> tuple[IntArray, IntArray]:
        """Free thousandths of memory and of compute beside it."""
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

    def scores(self, shape: Shape, pieces: Sequence[Piece | Together], block: Block, pool: BoolArray | None) -> Scored:
        """Score nodes.

        Args:
            shape: of the pod.
            pieces: of its containers that ask for slices.
            block: the nodes.
            pool: GPUs that the pod's wishes allow, None where they allow all.

        Returns:
            By node the score, the higher the better, and whether every piece has room by itself; the score means nothing
            where it has not.
        """
        tables = self._tables
        before, after = self._cpu_place(block.cpu), self._cpu_place(block.cpu - shape.cpu)
        kind = block.kind.max(axis=1)
        idle = (block.memory == WHOLE) & (block.calm == WHOLE)
        devices = np.minimum(MOST_DEVICES, idle.sum(axis=1))
        now = self._devices(block.kind, after, block.memory, block.calm)
        lost = np.zeros(len(before), np.int64)
        if (before != after).any():
            lost += self._devices(block.kind, before, block.memory, block.calm).sum(axis=1) - now.sum(axis=1)
        room = np.ones(len(before), np.bool_)
        taken = np.zeros(len(before), np.int64)
        whole = np.zeros(len(before), np.int64)
        card = np.zeros(len(before), np.int64)
        places = np.arange(len(before))[:, None]
        gangs_after = (kind * tables.sizes[1] + after) * (MOST_DEVICES + 1)
        for piece in pieces:
            fits = piece.room(block)
            if pool is not None:
                fits &= pool
            memory, calm = piece.after(block)
            costs = now - self._devices(block.kind, after, memory, calm)
            one = tables.gangs[gangs_after + devices] - tables.gangs[gangs_after + np.maximum(0, devices - 1)]
            chosen, enough = cheapest(costs + idle * one[:, None], fits, piece.gpus)
            room &= enough
            at = (places, chosen)
            lost += costs[at].sum(axis=1)
            whole += idle[at].sum(axis=1)
            if self._plain:
                continue
            free = self._free(block.memory[at], block.calm[at]) - self._free(memory[at], calm[at])
            taken += free.sum(axis=1)
            if tables.card.any():
                share = np.maximum(block.memory[at] - memory[at], block.calm[at] - calm[at]).sum(axis=1)
                card += share * tables.card[block.kind[at][:, 0]]
        gangs_before = (kind * tables.sizes[1] + before) * (MOST_DEVICES + 1)
        lost += tables.gangs[gangs_before + devices] - tables.gangs[gangs_after + np.maximum(0, devices - whole)]
        if self._plain:
            return Scored(np.searchsorted(_SQUASHED, -lost, side="right"), room)
        total = self._free(block.memory, block.calm).sum(axis=1)
        delta = lost + card + self._balance(total - taken, block.cpu - shape.cpu) - self._balance(total, block.cpu)
        delta -= round(ONE * tables.measure.remainder * tables.price(demand_of(shape)))
        return Scored(-delta // (ONE * tables.measure.step), room)

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


class Scored:
    """Scores of nodes, and where there is room."""

    __slots__ = ("room", "score")

    def __init__(self, score: IntArray, room: BoolArray) -> None:
        """By node."""
        self.score = score
        self.room = room


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
