"""Why a node does not take a shape: the first reason of `fit.judge`, on arrays of nodes x GPUs.

Asked only when a pod is refused, so it is worked out then, for the nodes that have changed since it was last.
"""

from __future__ import annotations

import numpy as np

from tessera.model.errors import AnnotationError
from tessera.model.guarantee import Guarantee
from tessera.model.inventory import gpu_id
from tessera.placement.columns import BoolArray, Columns, IntArray, gpu_number, guarantee_rank
from tessera.placement.reasons import Reason
from tessera.placement.shape import Part, Shape
from tessera.placement.views import Pieces, View


def explain(shape: Shape, columns: Columns, rows: IntArray) -> Verdict:
    """The first reason against each of these nodes; where there is none, the code is 0."""
    masks = wished_masks(shape, columns, rows)
    verdict = Verdict(closed_codes(shape, columns, rows))
    if shape.slices:
        _explain_slices(verdict, shape, View(columns, rows, soft=False), masks)
    _explain_instances(verdict, shape, columns, rows, masks)
    return verdict


def closed_codes(shape: Shape, columns: Columns, rows: IntArray) -> IntArray:
    """Codes of the reasons why nodes are not offered to this shape, 0 where they are."""
    closed = columns.closed[rows]
    return np.where(closed == Reason.CORDONED.code, 0, closed) if shape.cordoned else closed


class Verdict:
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


class Masks:
    """Which GPUs count: all that can be sliced, and those that the wishes allow, step by step."""

    __slots__ = ("company", "firm", "healthy", "model", "sliceable", "uuid")

    def __init__(
        self,
        *,
        sliceable: BoolArray,
        uuid: BoolArray,
        model: BoolArray,
        firm: BoolArray,
        healthy: BoolArray,
        company: BoolArray,
    ) -> None:
        self.sliceable = sliceable
        self.uuid = uuid
        self.model = model
        self.firm = firm
        self.healthy = healthy
        self.company = company

    @property
    def wished(self) -> BoolArray:
        return self.uuid & self.model & self.firm


def wished_masks(shape: Shape, columns: Columns, rows: IntArray) -> Masks:
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
    company = every
    if wishes.company:
        classes, avoids = columns.mask(wishes.company.classes), columns.mask(wishes.company.avoids)
        company = ((columns.classes[rows] & avoids) | (columns.avoided[rows] & classes)) == 0
    return Masks(
        sliceable=columns.sliceable[rows],
        uuid=uuid,
        model=model,
        firm=firm,
        healthy=columns.healthy[rows],
        company=company,
    )


def _ident(uuid: str) -> int:
    try:
        return gpu_number(gpu_id(uuid.replace("gpu-", "GPU-", 1)))
    except AnnotationError:
        return 0


def _explain_slices(verdict: Verdict, shape: Shape, view: View, masks: Masks) -> None:
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
    pool = pool & masks.company
    verdict.refuse(_count(pool) < most, Reason.NEIGHBOURS, most, _count(pool))
    for part in slices:
        _explain_part(verdict, shape, part, view, pool)
    if total is not None:
        verdict.refuse(~_any(pool & view.room(total)), Reason.TOGETHER)


def _explain_part(verdict: Verdict, shape: Shape, part: Part, view: View, pool: BoolArray) -> None:
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


def _explain_instances(verdict: Verdict, shape: Shape, columns: Columns, rows: IntArray, masks: Masks) -> None:
    for index, (profile, need) in enumerate(sorted(shape.instances.items())):
        counts = columns.mig_there.get(profile)
        there = _count(np.where(masks.wished, counts[rows], 0)) if counts is not None else np.zeros_like(rows)
        verdict.refuse(there < need, Reason.NO_MIG, need, there, index)
        free = free_instances(columns, profile, rows, masks)
        verdict.refuse(free < need, Reason.MIG_TAKEN, need, free, index)


def free_instances(columns: Columns, profile: str, rows: IntArray, masks: Masks, *, soft: bool = False) -> IntArray:
    """Free instances of a profile on the GPUs that the shape may have; `soft`: beside what was named."""
    counts = (columns.mig_soft if soft else columns.mig_free).get(profile)
    return _count(np.where(masks.wished, counts[rows], 0)) if counts is not None else np.zeros_like(rows)


def _count(counts: BoolArray | IntArray) -> IntArray:
    return np.asarray(counts.sum(axis=1), np.int64)


def _any(mask: BoolArray) -> BoolArray:
    return np.asarray(mask.any(axis=1), np.bool_)


def _most(amounts: IntArray, mask: BoolArray) -> IntArray:
    return np.asarray(np.where(mask, amounts, 0).max(axis=1), np.int64)
