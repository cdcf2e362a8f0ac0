"""Which nodes fit a shape and how good they are: one row of numbers per shape, kept and brought up to date.

The rules are those of `fit.judge`, written once more on arrays of nodes x GPUs, since asking node after node would cost
20 us each; a test holds the two together. Only nodes that have changed since the shape came last are judged again, so a
decision costs what has happened meanwhile and not what the cluster has. When the tables that price them are made anew,
everything is judged again, a part at a time where the caller can let others have the loop meanwhile.

What the arrays can't tell (several containers at once, GPUs that must hang together) `fit.place` tells for the node that
would be taken; its verdict is kept in the row until that node changes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

import numpy as np

from tessera.model.config import PolicyName
from tessera.model.guarantee import Guarantee
from tessera.placement.columns import ROOM, BoolArray, Columns, IntArray, grown
from tessera.placement.fit import what
from tessera.placement.instances import size_of
from tessera.placement.nodescores import anywhere, by_instances, cheapest, gpu_costs, node_scores
from tessera.placement.policies import Policy, policy
from tessera.placement.priced import Block, Named, Piece, Together
from tessera.placement.pricing import MEASURED, Pricing
from tessera.placement.reasons import Rejection, by_code
from tessera.placement.shape import Shape
from tessera.placement.stays import Stays
from tessera.placement.views import View
from tessera.placement.whynot import closed_codes, explain, free_instances, wished_masks

MOST_SHAPES: Final = 512
"""Shapes kept; at 5,000 nodes each costs 80 kB, and 120 kB more once it was refused."""
SLOTS_AT_ONCE: Final = 16_384
"""GPUs judged before others get the loop: about 1 ms, five times as much on a slow and busy machine."""
_BLOCK: Final = 10_240
"""GPUs judged by one pass over the arrays: 5,000 x 8 at once take 6.4 ms, in blocks that stay in the cache 2.1 ms."""
_NOTHING: Final = np.zeros(0, np.int64)


class ShapeRow:
    """What is known of one shape on every node.

    Attributes:
        fits: by row, whether the shape fits. softly: also beside what was just named.
        score: the higher the better, for nodes where it fits.
        code: by row, 0 where the shape fits, else the code of the reason why not. need, have: the reason's numbers.
            profile: number of the MIG profile it is about.
    """

    def __init__(self, shape: Shape, columns: Columns) -> None:
        """Nothing known yet."""
        self.shape = shape
        self.pieces = [Piece(shape, part) for part in shape.slices]
        self.together = shape.together
        wishes = shape.wishes
        self.picky = bool(
            shape.instances
            or wishes.company
            or wishes.uuids
            or wishes.models
            or wishes.not_models
            or wishes.least is not Guarantee.NONE
        )
        self.instances = shape.instances
        self.seen = -1
        self.generation = 0
        self.gain = 0
        self.pending = _NOTHING
        self.fits = np.zeros(0, np.bool_)
        self.softly = np.zeros(0, np.bool_)
        self.score = np.zeros(0, np.int64)
        self._columns = columns
        self._refused: dict[int, Rejection] = {}
        self._explained = -1
        self._why: IntArray = np.zeros((4, 0), np.int64)

    @property
    def code(self) -> IntArray:
        return np.asarray(self._reasons()[0], np.int64)

    @property
    def need(self) -> IntArray:
        return np.asarray(self._reasons()[1], np.int64)

    @property
    def have(self) -> IntArray:
        return np.asarray(self._reasons()[2], np.int64)

    @property
    def profile(self) -> IntArray:
        return np.asarray(self._reasons()[3], np.int64)

    def taken(self) -> IntArray | int:
        """MIG instances that the shape asks, by profile; 0 where it asks none."""
        if not self.instances:
            return 0
        return np.array([self.instances.get(profile, 0) for profile in self._columns.profiles], np.int64)

    def stale(self) -> IntArray:
        """Rows of the nodes that have changed since they were judged."""
        columns = self._columns
        if len(self.fits) < columns.allocated:
            for name in ("fits", "softly", "score"):
                setattr(self, name, grown(getattr(self, name), columns.allocated))
        if self.seen == columns.latest:
            return self.pending
        rows = (columns.version[: columns.rows] > self.seen).nonzero()[0]
        self.seen = columns.latest
        return np.union1d(rows, self.pending) if len(self.pending) else rows

    def judged(self, rows: IntArray, fits: BoolArray, softly: BoolArray, score: IntArray) -> None:
        """Keep what was found out about some nodes."""
        self.fits[rows], self.softly[rows], self.score[rows] = fits, softly, score
        if self._refused:
            self._explained = -1
            for row in self._refused.keys() & set(rows.tolist()):
                del self._refused[row]

    def refuse(self, row: int, rejection: Rejection) -> None:
        """Keep what `place` has found out about a node, until it changes."""
        self.fits[row] = self.softly[row] = False
        self._refused[row] = rejection

    def avoid(self, row: int) -> None:
        """`place` found no room beside what was just named; the node still fits without that."""
        self.softly[row] = False

    def rejection(self, row: int) -> Rejection:
        """Why the node of that row can't take the shape."""
        reason = by_code(int(self.code[row]))
        profiles = sorted(self.shape.instances)
        profile = profiles[int(self.profile[row])] if profiles else ""
        need, have, unit = int(self.need[row]), int(self.have[row]), self.shape.unit if reason.in_units else 0
        return Rejection(reason, need, have, what(self.shape, reason, profile), unit)

    def _reasons(self) -> IntArray:
        """The reasons of all nodes, worked out for those that have changed since they were last asked for."""
        columns = self._columns
        if self._why.shape[1] < columns.allocated:
            self._why = grown(self._why, 4, columns.allocated)
        rows = (columns.version[: columns.rows] > self._explained).nonzero()[0]
        self._explained = columns.latest
        if len(rows):
            self._why[:, rows] = 0
            rows = rows[~self.fits[rows]]
            verdict = explain(self.shape, columns, rows)
            self._why[:, rows] = (verdict.code, verdict.need, verdict.have, verdict.profile)
        for row, rejection in self._refused.items():
            self._why[:3, row] = (rejection.reason.code, rejection.need, rejection.have)
        return self._why


class Scores:
    """The rows of the shapes that came lately."""

    def __init__(self, columns: Columns, pricing: Pricing | None = None) -> None:
        """Score the nodes of these columns."""
        self.pricing = pricing or Pricing(columns)
        self._columns = columns
        self._rows: OrderedDict[Shape, ShapeRow] = OrderedDict()
        self._names: tuple[int, Named] = (-1, {})

    def row(self, shape: Shape) -> ShapeRow:
        """The row of a shape, as of now."""
        found = self._find(shape)
        stale = found.stale()
        if len(stale):
            self._judge_all(found, stale)
            found.pending = _NOTHING
        return found

    def prepare(self, shape: Shape) -> bool:
        """Bring a part of a shape's row up to date; True once the rest is little enough to be done at once."""
        found = self._find(shape)
        stale = found.stale()
        most = max(1, SLOTS_AT_ONCE // self._columns.width)
        if len(stale) <= most:
            found.pending = stale
            return True
        self._judge_all(found, stale[:most])
        found.pending = stale[most:]
        return False

    def chooser(self, shape: Shape, row: int, *, soft: bool) -> Policy:
        """How to choose among the GPUs of the node of that row, as its score has it."""
        name = shape.wishes.policy
        if name not in MEASURED:
            return policy(name)
        columns = self._columns
        if self._names[0] != len(columns.kinds):
            self._names = (len(columns.kinds), self.pricing.names())
        slots = columns.soft_slots if soft else columns.slots
        return self.pricing.measured(name).chooser(shape, slots[row], int(columns.cpu[row]), self._names[1])

    def gang_size(self, shape: Shape) -> int:
        """GPUs of the nodes that are kept from this shape, for pods that need whole ones; 0 where none is."""
        return self.pricing.gang_size(shape) if shape.wishes.policy == "priced" else 0

    def unreserved(self, rows: IntArray, *, running: int, stays: Stays) -> IntArray:
        """Of nodes that fit, those that are not kept; see `Pricing.unreserved`."""
        return self.pricing.unreserved(rows, running=running, stays=stays)

    def _find(self, shape: Shape) -> ShapeRow:
        found = self._rows.get(shape)
        if found is None:
            found = self._rows[shape] = ShapeRow(shape, self._columns)
            if len(self._rows) > MOST_SHAPES:
                self._rows.popitem(last=False)
        else:
            self._rows.move_to_end(shape)
        if shape.wishes.policy in MEASURED:
            self.pricing.refresh()
            if found.generation != self.pricing.generation:
                found.generation, found.seen, found.pending = self.pricing.generation, -1, _NOTHING
                found.gain = self.pricing.measured(shape.wishes.policy).gain(shape)
        return found

    def _judge_all(self, found: ShapeRow, rows: IntArray) -> None:
        step = max(1, _BLOCK // self._columns.width)
        for first in range(0, len(rows), step):
            self._judge(found, rows[first : first + step])

    def _judge(self, found: ShapeRow, rows: IntArray) -> None:
        """Judge these nodes anew: where the shape fits and how well, also beside what was named."""
        shape, columns = found.shape, self._columns
        fits, score = self._score(found, rows, soft=False)
        fits &= closed_codes(shape, columns, rows) == 0
        softly = fits
        named = (columns.has_soft[rows] & fits).nonzero()[0]
        if len(named):
            room, beside = self._score(found, rows[named], soft=True)
            softly = fits.copy()
            softly[named] = room
            score[named] = np.where(room, beside, score[named])
        found.judged(rows, fits, softly, score)

    def _score(self, found: ShapeRow, rows: IntArray, *, soft: bool) -> tuple[BoolArray, IntArray]:
        """Where every slice has room by itself and enough instances are free, and how good each of these nodes would be."""
        shape, columns = found.shape, self._columns
        masks = wished_masks(shape, columns, rows) if found.picky else None
        pool = masks.wished & masks.company if masks is not None else None
        slots = columns.soft_slots if soft else columns.slots
        there = slots.take(rows, axis=0)
        first = there[:, :ROOM]
        fitting: list[BoolArray] = []
        room = np.ones(len(rows), np.bool_)
        pieces: Sequence[Piece | Together] = found.pieces
        if found.together:
            pieces = [Together(shape, View(columns, rows, soft=soft))]
        for piece in pieces:
            fits = piece.room(first) if pool is None else piece.room(first) & pool
            fitting.append(fits)
            room &= anywhere(fits) if piece.gpus == 1 else fits.sum(axis=1) >= piece.gpus
        if masks is not None:
            for profile, need in found.instances.items():
                room &= free_instances(columns, profile, rows, masks, soft=soft) >= need
        score = np.zeros(len(rows), np.int64)
        places = room.nonzero()[0]
        if len(places):
            # Most nodes of a full cluster have no room, and to score one costs more than to see that.
            if len(places) < len(rows):
                rows, there = rows.take(places), there.take(places, axis=0)
                fitting = [fits.take(places, axis=0) for fits in fitting]
                if found.together:
                    pieces = [Together(shape, View(columns, rows, soft=soft))]
            instances = None
            if columns.profiles:
                instances = (columns.soft_instances if soft else columns.instances).take(rows, axis=0)
            block = Block(there, columns.cpu.take(rows), instances)
            choices = list(zip(pieces, fitting, strict=True))
            score[places] = self._compared(found, block, choices)
        return room, score

    def _compared(
        self, found: ShapeRow, block: Block, choices: Sequence[tuple[Piece | Together, BoolArray]]
    ) -> IntArray:
        """How good each of these nodes is, all of which have room."""
        name, cpu, profiles = found.shape.wishes.policy, found.shape.cpu, self._columns.profiles
        taken = found.taken()
        if name in MEASURED:
            score = self.pricing.measured(name).scores(cpu, found.gain, block, choices, taken)
        else:
            beside: IntArray | int = 0
            if block.instances is not None:
                beside = (block.instances - taken) @ np.array([size_of(profile) for profile in profiles], np.int64)
            score = simple_scores(name, cpu, block, choices, beside=beside)
        if not found.instances or block.instances is None:
            return score
        left = (block.instances - taken)[:, [profiles[profile] for profile in found.instances]].sum(axis=1)
        return by_instances(name, score, left, alone=not choices)


def simple_scores(
    name: PolicyName,
    cpu: int,
    block: Block,
    pieces: Sequence[tuple[Piece | Together, BoolArray]],
    *,
    beside: IntArray | int = 0,
) -> IntArray:
    """Score nodes by what would be left there, for the policies that know nothing of other pods; as `Measured.scores`.

    `beside` is what would be left of MIG instances, in thousandths of GPUs.
    """
    left = block.memory + block.calm
    before = np.asarray(left.sum(axis=1), np.int64)
    cost, size = np.zeros_like(before), np.zeros_like(before)
    places = np.arange(len(before))[:, None]
    for piece, fits in pieces:
        memory, calm = piece.after(block)
        costs = gpu_costs(name, memory + calm)
        at = (places, cheapest(costs, fits, piece.gpus))
        cost += costs[at].sum(axis=1)
        size += (left - memory - calm)[at].sum(axis=1)
    return node_scores(name, cost, before, size=size, cpu=block.cpu - cpu, beside=beside)
