"""Whether a pod fits on the GPUs of one node, and on which of them: exact, and the same for extender and node agent.

First the conditions that hold for each container alone, in the order of `Reason` (`judge`; the extender looks at all
nodes at once with the same rules on arrays); they decide everything for a pod of one container. Then, for several
containers or GPUs that must hang together, a search: containers by size, GPUs by the policy, back where it leads nowhere,
each state tried once. Its steps are bounded; a pod for which they don't suffice is refused as one that does not fit.

No numpy here: the node agent places pods without a plan by this code, and has to stay small.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from tessera.model.guarantee import Guarantee
from tessera.model.tickets import Ask
from tessera.placement.gpustate import GpuState, Place, Places, bears, has_room, matches, sliceable
from tessera.placement.holding import Holding, fits, free_percent, free_units, hold, pod_holdings, within
from tessera.placement.mig import choose_instances, judge_instances
from tessera.placement.policies import Policy, policy
from tessera.placement.reasons import Reason, Rejection
from tessera.placement.shape import Part, Shape
from tessera.placement.topology import JOIN_NAMES, Budget, groups, possible

STEPS: Final = 2000
"""Steps of one search. A pod of 6 containers on 8 GPUs takes under 100; 2000 take about 5 ms."""
_LONGEST_WHAT: Final = 120


def judge(shape: Shape, gpus: Sequence[GpuState]) -> Rejection | None:
    """The first reason why a node with these GPUs can't take the shape, or None.

    None is final for a pod whose one container asks for slices without a required topology, for one whose slices have to
    be on one GPU, and for MIG instances; for others `place` has the last word.
    """
    slices = shape.slices
    if slices:
        pool = [state for state in gpus if not state.gpu.mig and state.gpu.units > 0]
        found = _matching(shape, pool)
        if isinstance(found, Rejection):
            return found
        rejection = _judge_slices(shape, slices, found)
        if rejection is not None:
            return rejection
    return judge_instances(shape, gpus)


def place(
    asks: Sequence[Ask], shape: Shape, gpus: Sequence[GpuState], *, by: Policy | None = None
) -> Places | Rejection:
    """Choose GPUs for every container of a pod on one node.

    Args:
        asks: the pod's containers that ask; `shape` was made of them.
        shape: of the pod.
        gpus: of the node, in a stable order, with what is held on them now.
        by: how to choose; None takes the one that the shape's wishes name.

    Returns:
        Places for every ask, or why there are none.
    """
    chosen_policy = by or policy(shape.wishes.policy)
    if len(asks) == 1 and shape.parts[0].request.gpus == 1 and shape.parts[0].request.mig is None:
        # Nearly all pods are so; what is below comes to the same in four times the time.
        alone = _alone(shape, gpus, chosen_policy)
        if alone is not None:
            return {asks[0].container: (Place(alone),)}
    rejection = judge(shape, gpus)
    if rejection is not None:
        return rejection
    pool = [state for state in gpus if state.gpu.health == "ok" and matches(shape, state)]
    whole = [state for state in pool if not state.gpu.mig and state.gpu.units > 0 and bears(shape, state)]
    named = [(ask.container, part) for ask, part in zip(asks, shape.parts, strict=True)]
    slices = [(name, part) for name, part in named if part.request.mig is None]
    places: dict[str, tuple[Place, ...]] = {}
    if slices and shape.together:
        gpu = _one_gpu(shape, whole, chosen_policy)
        places |= {name: (Place(gpu),) for name, _ in slices}
    elif slices:
        found = _Search(slices, whole, shape, chosen_policy).run()
        if found is None:
            return _no_arrangement(shape, [state for state in gpus if sliceable(state) and matches(shape, state)])
        places |= found
    places |= choose_instances(named, pool, apart=shape.wishes.policy == "spread")
    return places


def _alone(shape: Shape, gpus: Sequence[GpuState], by: Policy) -> str | None:
    """The GPU for one slice on one GPU, or None where none has room."""
    request, wishes, unit = shape.parts[0].request, shape.wishes, shape.unit
    picky = bool(wishes.models or wishes.not_models or wishes.uuids or wishes.least is not Guarantee.NONE)
    pieces: dict[int, Holding] = {}
    best, chosen = 0, None
    for state in gpus:
        gpu = state.gpu
        if gpu.health != "ok" or gpu.mig or (picky and not matches(shape, state)):
            continue
        if state.companies and not bears(shape, state):
            continue
        piece = pieces.get(gpu.units)
        if piece is None:
            piece = pieces[gpu.units] = hold(request, capacity=gpu.units, unit=unit)
        total = state.held + piece
        if within(total, capacity=gpu.units):
            cost = by.cost(gpu, state.held, total)
            if chosen is None or cost < best:
                best, chosen = cost, gpu.id
    return chosen


def still_fits(asks: Sequence[Ask], shape: Shape, places: Places, gpus: Sequence[GpuState]) -> bool:
    """Whether a choice that `place` made some time ago is one that it could make now."""
    there = {state.gpu.id: state for state in gpus}
    used = {place.gpu for chosen in places.values() for place in chosen}
    if not all(gpu in there and there[gpu].gpu.health == "ok" for gpu in used):
        return False
    instances = [place for chosen in places.values() for place in chosen if place.instance is not None]
    for at in instances:
        state = there[at.gpu]
        if at.instance in state.taken or not any(i.id == at.instance for i in state.gpu.mig):
            return False
    on = {name: tuple(place.gpu for place in chosen) for name, chosen in places.items()}
    capacity = {gpu: there[gpu].gpu.units for gpu in used}
    if any(there[place.gpu].gpu.mig for chosen in places.values() for place in chosen if place.instance is None):
        return False
    more = pod_holdings(asks, on, capacity=capacity, unit=shape.unit)
    if not all(bears(shape, there[gpu]) for gpu in more):
        return False
    return all(fits(there[gpu].held, piece, capacity=capacity[gpu]) for gpu, piece in more.items())


def _matching(shape: Shape, pool: list[GpuState]) -> list[GpuState] | Rejection:
    """The GPUs that the pod's wishes allow."""
    wishes = shape.wishes
    if not pool:
        return Rejection(Reason.NO_GPU)
    pool = [state for state in pool if wishes.takes_uuid(state.gpu.uuid)]
    if not pool:
        return Rejection(Reason.NO_UUID, what=what(shape, Reason.NO_UUID))
    pool = [state for state in pool if wishes.takes_model(state.gpu.model)]
    if not pool:
        return Rejection(Reason.NO_MODEL, what=what(shape, Reason.NO_MODEL))
    pool = [state for state in pool if state.gpu.guarantee.memory.satisfies(wishes.least)]
    if not pool:
        return Rejection(Reason.WEAK_GUARANTEE, what=what(shape, Reason.WEAK_GUARANTEE))
    return pool


def _judge_slices(shape: Shape, slices: tuple[Part, ...], pool: list[GpuState]) -> Rejection | None:
    most = max(part.request.gpus for part in slices)
    if len(pool) < most:
        return Rejection(Reason.FEW_GPUS, most, len(pool))
    for part in slices:
        units = shape.units(part)
        large = sum(state.gpu.units >= units for state in pool)
        if large < part.request.gpus:
            largest = max(state.gpu.units for state in pool)
            if largest < units:
                return Rejection(Reason.SMALL_GPUS, units, largest, unit=shape.unit)
            return Rejection(Reason.FEW_GPUS, part.request.gpus, large)
    together = shape.together and len(slices) > 1
    if together and not any(within(shape.total(s.gpu.units), capacity=s.gpu.units) for s in pool):
        return Rejection(Reason.SMALL_TOGETHER)
    healthy = [state for state in pool if state.gpu.health == "ok"]
    if len(healthy) < most:
        return Rejection(Reason.SICK, most, len(healthy))
    healthy = [state for state in healthy if bears(shape, state)]
    if len(healthy) < most:
        return Rejection(Reason.NEIGHBOURS, most, len(healthy))
    for part in slices:
        rejection = _judge_part(shape, part, healthy)
        if rejection is not None:
            return rejection
    if together and not any(fits(s.held, shape.total(s.gpu.units), capacity=s.gpu.units) for s in healthy):
        return Rejection(Reason.TOGETHER)
    return None


def _judge_part(shape: Shape, part: Part, pool: list[GpuState]) -> Rejection | None:
    """Why one container alone finds no room, said by the scarcest amount."""
    request = part.request
    room = sum(has_room(state, part, shape) for state in pool)
    if room >= request.gpus:
        return None
    if request.whole:
        return Rejection(Reason.WHOLE_GPUS, request.gpus, room)
    if request.memory is not None:
        units = shape.units(part)
        best = max(free_units(state.held, capacity=state.gpu.units) for state in pool)
        if best < units:
            return Rejection(Reason.UNITS, units, best, unit=shape.unit)
    else:
        percent = request.memory_percent or 0
        best = max(free_percent(state.held, capacity=state.gpu.units) for state in pool)
        if best < percent:
            return Rejection(Reason.PERCENT, percent, best)
    compute = request.compute or 0
    calmest = max(max(0, 100 - state.held.compute) for state in pool)
    if calmest < compute:
        return Rejection(Reason.COMPUTE, compute, calmest)
    if request.gpus > 1:
        return Rejection(Reason.FREE_GPUS, request.gpus, room)
    return Rejection(Reason.BOTH)


def what(shape: Shape, reason: Reason, profile: str = "") -> str:
    """The name or list that a reason's text has for this shape."""
    wishes = shape.wishes
    match reason:
        case Reason.NO_UUID:
            text = ",".join(wishes.uuids)
        case Reason.NO_MODEL:
            text = wishes.models_text
        case Reason.WEAK_GUARANTEE:
            text = wishes.least.value
        case Reason.NO_LINKS | Reason.FREE_LINKS:
            text = JOIN_NAMES[wishes.joins[-1]]
        case Reason.NO_MIG | Reason.MIG_TAKEN:
            text = profile
        case _:
            text = ""
    return text if len(text) <= _LONGEST_WHAT else f"{text[:_LONGEST_WHAT]}..."


def _one_gpu(shape: Shape, pool: list[GpuState], by: Policy) -> str:
    """The best GPU for all slices together; `judge` has seen that there is one."""
    best: tuple[int, int] | None = None
    chosen = ""
    for index, state in enumerate(pool):
        capacity = state.gpu.units
        total = state.held + shape.total(capacity)
        if within(total, capacity=capacity):
            key = (by.cost(state.gpu, state.held, total), index)
            if best is None or key < best:
                best, chosen = key, state.gpu.id
    return chosen


def _no_arrangement(shape: Shape, pool: list[GpuState]) -> Rejection:
    several = max(part.request.gpus for part in shape.slices)
    joins = shape.wishes.joins
    if joins[-1] == "any" or several == 1:
        return Rejection(Reason.ARRANGEMENT)
    gpus = [state.gpu for state in pool]
    reason = Reason.FREE_LINKS if possible(gpus, several, joins, Budget(STEPS)) else Reason.NO_LINKS
    return Rejection(reason, several, what=what(shape, reason))


class _Search:
    """Containers by size, GPUs by the policy, back where it leads nowhere."""

    def __init__(self, slices: list[tuple[str, Part]], pool: list[GpuState], shape: Shape, by: Policy) -> None:
        self._pool = pool
        self._shape = shape
        self._by = by
        self._held = [state.held for state in pool]
        self._budget = Budget(STEPS)
        self._failed: set[tuple[int, tuple[object, ...]]] = set()
        self._slices = sorted(slices, key=lambda item: _size(item[1]), reverse=True)
        # Where no container has several GPUs, it doesn't matter which of two GPUs in the same state is which.
        self._alike = all(part.request.gpus == 1 for _, part in slices)
        self._chosen: dict[str, tuple[Place, ...]] = {}

    def run(self) -> dict[str, tuple[Place, ...]] | None:
        return self._chosen if self._put(0) else None

    def _put(self, index: int) -> bool:
        if index == len(self._slices):
            return True
        state = (index, self._signature())
        if state in self._failed:
            return False
        name, part = self._slices[index]
        for group in self._groups(part):
            if not self._budget.spend():
                return False
            before = [self._held[gpu] for gpu in group]
            for gpu in group:
                self._held[gpu] += self._piece(gpu, part)
            if self._put(index + 1):
                self._chosen[name] = tuple(Place(self._pool[gpu].gpu.id) for gpu in group)
                return True
            for gpu, held in zip(group, before, strict=True):
                self._held[gpu] = held
        self._failed.add(state)
        return False

    def _groups(self, part: Part) -> Iterator[tuple[int, ...]]:
        fitting: list[tuple[int, int]] = []
        for index, state in enumerate(self._pool):
            total, capacity = self._held[index] + self._piece(index, part), state.gpu.units
            if within(total, capacity=capacity):
                fitting.append((self._by.cost(state.gpu, self._held[index], total), index))
        order = [index for _, index in sorted(fitting)]
        if part.request.gpus > 1:
            ordered = [self._pool[index].gpu for index in order]
            for group in groups(ordered, part.request.gpus, self._shape.wishes.joins, self._budget):
                yield tuple(order[index] for index in group)
            return
        seen: set[tuple[int, Holding]] = set()
        for index in order:
            kind = (self._pool[index].gpu.units, self._held[index])
            if not self._alike or kind not in seen:
                seen.add(kind)
                yield (index,)

    def _piece(self, index: int, part: Part) -> Holding:
        return hold(part.request, capacity=self._pool[index].gpu.units, unit=self._shape.unit)

    def _signature(self) -> tuple[object, ...]:
        if not self._alike:
            return tuple(self._held)
        kinds = [
            (state.gpu.units, held.units, held.percent, held.percent_units, held.compute)
            for state, held in zip(self._pool, self._held, strict=True)
        ]
        return tuple(sorted(kinds))


def _size(part: Part) -> tuple[int, int, int]:
    """The larger first: whole GPUs, then by number of GPUs, then by thousandths of a nominal 80 GiB GPU."""
    request = part.request
    memory = 10 * (request.memory_percent or 0) + 1000 * (request.memory or 0) // (80 << 30)
    return (int(request.whole), request.gpus, max(memory, 10 * (request.compute or 0)))
