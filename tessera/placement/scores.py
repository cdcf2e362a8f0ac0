"""Which nodes fit a shape and how good they are: one row of numbers per shape, kept and brought up to date.

The rules are those of `fit.judge`, written once more on arrays of nodes x GPUs, since asking node after node would cost
20 us each; a test holds the two together. Only nodes that have changed since the shape came last are judged again, so a
decision costs what has happened meanwhile and not what the cluster has.

What the arrays can't tell (several containers at once, GPUs that must hang together) `fit.place` tells for the node that
would be taken; its verdict is kept in the row until that node changes.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

import numpy as np

from tessera.model.errors import AnnotationError
from tessera.model.guarantee import Guarantee
from tessera.model.inventory import gpu_id
from tessera.placement.columns import BoolArray, Columns, IntArray, gpu_number, grown, guarantee_rank
from tessera.placement.fit import what
from tessera.placement.policies import Policy, policy
from tessera.placement.reasons import Reason, Rejection, by_code
from tessera.placement.shape import Part, Shape
from tessera.placement.views import Pieces, View

MOST_SHAPES: Final = 256
"""Shapes kept; at 5,000 nodes each costs 200 kB."""
_NEVER: Final = 1 << 40
"""A cost above any; more than this times the GPUs of a node stays within 64 bits."""


class ShapeRow:
    """What is known of one shape on every node.

    Attributes:
        code: by row, 0 where the shape fits, else the code of the reason why not. need, have: the reason's numbers.
        softly: it fits beside what was just named, too.
        score: the higher the better, for nodes where it fits.
    """

    __slots__ = ("code", "have", "need", "profile", "score", "seen", "shape", "size", "softly")

    def __init__(self, shape: Shape) -> None:
        """Nothing known yet."""
        self.shape = shape
        self.size = 0
        self.seen = -1
        self.code = np.zeros(0, np.int64)
        self.need = np.zeros(0, np.int64)
        self.have = np.zeros(0, np.int64)
        self.profile = np.zeros(0, np.int64)
        self.softly = np.zeros(0, np.bool_)
        self.score = np.zeros(0, np.int64)

    def ensure(self, size: int) -> None:
        """Make room for rows."""
        if size <= self.size:
            return
        self.size = size
        for name in ("code", "need", "have", "profile", "softly", "score"):
            setattr(self, name, grown(getattr(self, name), size))

    def refuse(self, row: int, rejection: Rejection) -> None:
        """Keep what `place` has found out about a node, until it changes."""
        self.code[row] = rejection.reason.code
        self.need[row] = rejection.need
        self.have[row] = rejection.have
        self.softly[row] = False

    def avoid(self, row: int) -> None:
        """`place` found no room beside what was just named; the node still fits without that."""
        self.softly[row] = False

    def rejection(self, row: int) -> Rejection:
        """Why the node of that row can't take the shape."""
        reason = by_code(int(self.code[row]))
        profiles = sorted(self.shape.instances)
        profile = profiles[int(self.profile[row])] if profiles else ""
        return Rejection(reason, int(self.need[row]), int(self.have[row]), what(self.shape, reason, profile))


class Scores:
    """The rows of the shapes that came lately."""

    def __init__(self, columns: Columns) -> None:
        """Score the nodes of these columns."""
        self._columns = columns
        self._rows: OrderedDict[Shape, ShapeRow] = OrderedDict()

    def row(self, shape: Shape) -> ShapeRow:
        """The row of a shape, as of now."""
        found = self._rows.get(shape)
        if found is None:
            found = self._rows[shape] = ShapeRow(shape)
            if len(self._rows) > MOST_SHAPES:
                self._rows.popitem(last=False)
        else:
            self._rows.move_to_end(shape)
        columns = self._columns
        if found.seen != columns.latest:
            found.ensure(columns.allocated)
            stale = np.flatnonzero(columns.version > found.seen)
            found.seen = columns.latest
            if len(stale):
                _judge(found, columns, stale)
        return found


def _judge(row: ShapeRow, columns: Columns, rows: IntArray) -> None:
    """Judge these nodes anew: first where the shape fits and how well, then, for the others only, why not."""
    shape = row.shape
    masks = _masks(shape, columns, rows)
    score, room = _score(shape, View(columns, rows, soft=False), masks)
    for profile, need in shape.instances.items():
        room &= _free_instances(columns, profile, rows, masks) >= need
    closed = columns.closed[rows]
    if shape.cordoned:
        closed = np.where(closed == Reason.CORDONED.code, 0, closed)
    fits = room & (closed == 0)
    row.code[rows], row.softly[rows], row.score[rows] = 0, fits, score
    others = np.flatnonzero(~fits)
    if len(others):
        _explain(row, columns, rows[others], _Verdict(closed[others]), masks.at(others))
    soft = np.flatnonzero(columns.has_soft[rows] & fits)
    if len(soft):
        part = rows[soft]
        score, room = _score(shape, View(columns, part, soft=True), masks.at(soft))
        row.softly[part] = room
        row.score[part] = np.where(room, score, row.score[part])


def _explain(row: ShapeRow, columns: Columns, rows: IntArray, verdict: _Verdict, masks: _Masks) -> None:
    """The first reason against each of these nodes, in the order of `fit.judge`."""
    shape = row.shape
    if shape.slices:
        _explain_slices(verdict, shape, View(columns, rows, soft=False), masks)
    _explain_instances(verdict, shape, columns, rows, masks)
    row.code[rows], row.need[rows], row.have[rows] = verdict.code, verdict.need, verdict.have
    row.profile[rows] = verdict.profile


class _Verdict:
    """The first reason against each node."""

    def __init__(self, closed: IntArray) -> None:
        self.code = closed.copy()
        self.need = np.zeros_like(closed)
        self.have = np.zeros_like(closed)
        self.profile = np.zeros_like(closed)

    def refuse(
        self, where: BoolArray, reason: Reason, need: int = 0, have: IntArray | int = 0, profile: int = 0
    ) -> None:
        """Where nothing else was in the way before."""
        hit = where & (self.code == 0)
        if not hit.any():
            return
        self.code[hit] = reason.code
        self.need[hit] = need
        self.have[hit] = have if isinstance(have, int) else have[hit]
        self.profile[hit] = profile


class _Masks:
    """Which GPUs count: all that can be sliced, and those that the wishes allow, step by step."""

    __slots__ = ("firm", "healthy", "model", "sliceable", "uuid")

    def __init__(
        self, sliceable: BoolArray, uuid: BoolArray, model: BoolArray, firm: BoolArray, healthy: BoolArray
    ) -> None:
        self.sliceable = sliceable
        self.uuid = uuid
        self.model = model
        self.firm = firm
        self.healthy = healthy

    def at(self, places: IntArray) -> _Masks:
        """The masks of some of the rows."""
        return _Masks(*(mask[places] for mask in (self.sliceable, self.uuid, self.model, self.firm, self.healthy)))

    @property
    def wished(self) -> BoolArray:
        return self.uuid & self.model & self.firm


def _masks(shape: Shape, columns: Columns, rows: IntArray) -> _Masks:
    wishes = shape.wishes
    every = np.ones((len(rows), columns.width), np.bool_)
    uuid = model = firm = every
    if wishes.uuids:
        uuid = np.isin(columns.ident[rows], [number for number in map(_ident, wishes.uuids) if number])
    if wishes.models or wishes.not_models:
        taken = np.array([wishes.takes_model(name) for name in columns.models], np.bool_)
        model = taken[columns.model[rows]]
    rank = guarantee_rank(wishes.least)
    if rank < guarantee_rank(Guarantee.NONE):
        firm = columns.guarantee[rows] <= rank
    return _Masks(columns.sliceable[rows], uuid, model, firm, columns.healthy[rows])


def _ident(uuid: str) -> int:
    try:
        return gpu_number(gpu_id(uuid.replace("gpu-", "GPU-", 1)))
    except AnnotationError:
        return 0


def _explain_slices(verdict: _Verdict, shape: Shape, view: View, masks: _Masks) -> None:
    pool = masks.sliceable
    verdict.refuse(~_any(pool), Reason.NO_GPU)
    for mask, reason in (
        (masks.uuid, Reason.NO_UUID),
        (masks.model, Reason.NO_MODEL),
        (masks.firm, Reason.WEAK_GUARANTEE),
    ):
        pool = pool & mask
        verdict.refuse(~_any(pool), reason)
    slices = shape.slices
    most = max(part.request.gpus for part in slices)
    verdict.refuse(_count(pool) < most, Reason.FEW_GPUS, most, _count(pool))
    for part in slices:
        units, gpus = shape.units(part), part.request.gpus
        large = _count(pool & (view.capacity >= units))
        largest = _most(view.capacity, pool)
        verdict.refuse((large < gpus) & (largest < units), Reason.SMALL_GPUS, units, largest)
        verdict.refuse(large < gpus, Reason.FEW_GPUS, gpus, large)
    together = shape.together and len(slices) > 1
    total = Pieces.together(shape, view.capacity) if together else None
    if total is not None:
        verdict.refuse(~_any(pool & total.within(view.capacity)), Reason.SMALL_TOGETHER)
    pool = pool & masks.healthy
    verdict.refuse(_count(pool) < most, Reason.SICK, most, _count(pool))
    for part in slices:
        _explain_part(verdict, shape, part, view, pool)
    if total is not None:
        verdict.refuse(~_any(pool & view.room(total)), Reason.TOGETHER)


def _explain_part(verdict: _Verdict, shape: Shape, part: Part, view: View, pool: BoolArray) -> None:
    request = part.request
    room = _count(pool & view.room(Pieces.of(shape, part, view.capacity)))
    short = room < request.gpus
    if not (short & (verdict.code == 0)).any():
        return
    if request.whole:
        verdict.refuse(short, Reason.WHOLE_GPUS, request.gpus, room)
        return
    if request.memory is not None:
        units, best = shape.units(part), _most(view.free_units(), pool)
        verdict.refuse(short & (best < units), Reason.UNITS, units, best)
    else:
        percent, best = request.memory_percent or 0, _most(view.free_percent(), pool)
        verdict.refuse(short & (best < percent), Reason.PERCENT, percent, best)
    compute, calmest = request.compute or 0, _most(np.maximum(0, 100 - view.compute), pool)
    verdict.refuse(short & (calmest < compute), Reason.COMPUTE, compute, calmest)
    if request.gpus > 1:
        verdict.refuse(short, Reason.FREE_GPUS, request.gpus, room)
    verdict.refuse(short, Reason.BOTH)


def _explain_instances(verdict: _Verdict, shape: Shape, columns: Columns, rows: IntArray, masks: _Masks) -> None:
    for index, (profile, need) in enumerate(sorted(shape.instances.items())):
        counts = columns.mig_there.get(profile)
        there = _count(np.where(masks.wished, counts[rows], 0)) if counts is not None else np.zeros_like(rows)
        verdict.refuse(there < need, Reason.NO_MIG, need, there, index)
        free = _free_instances(columns, profile, rows, masks)
        verdict.refuse(free < need, Reason.MIG_TAKEN, need, free, index)


def _free_instances(columns: Columns, profile: str, rows: IntArray, masks: _Masks) -> IntArray:
    counts = columns.mig_free.get(profile)
    return _count(np.where(masks.wished, counts[rows], 0)) if counts is not None else np.zeros_like(rows)


def _score(shape: Shape, view: View, masks: _Masks) -> tuple[IntArray, BoolArray]:
    """How good each node would be, and where every slice has room by itself; a node without room has any score."""
    by = policy(shape.wishes.policy)
    pool = masks.sliceable & masks.wished & masks.healthy
    cost = np.zeros(len(view.capacity), np.int64)
    room = np.ones(len(view.capacity), np.bool_)
    if shape.slices and shape.together:
        cost, room = _cheapest(Pieces.together(shape, view.capacity), 1, view, pool, by)
    elif shape.slices:
        for part in shape.slices:
            more, fits = _cheapest(Pieces.of(shape, part, view.capacity), part.request.gpus, view, pool, by)
            cost, room = cost + more, room & fits
    return by.node_score(cost, view.left().sum(axis=1)), room


def _cheapest(piece: Pieces, count: int, view: View, pool: BoolArray, by: Policy) -> tuple[IntArray, BoolArray]:
    """The sum of the lowest `count` costs of a node, and whether it has so many GPUs with room."""
    room = pool & view.room(piece)
    costs = np.where(room, by.gpu_cost(view.left(piece)), _NEVER)
    if count == 1:
        return np.asarray(costs.min(axis=1), np.int64), _any(room)
    enough = _count(room) >= count
    return np.asarray(np.sort(costs, axis=1)[:, :count].sum(axis=1), np.int64), enough


def _count(counts: BoolArray | IntArray) -> IntArray:
    return np.asarray(counts.sum(axis=1), np.int64)


def _any(mask: BoolArray) -> BoolArray:
    return np.asarray(mask.any(axis=1), np.bool_)


def _most(amounts: IntArray, mask: BoolArray) -> IntArray:
    return np.asarray(np.where(mask, amounts, 0).max(axis=1), np.int64)
