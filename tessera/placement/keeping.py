"""Room that is kept: what the GPUs of a node have left for a pod, once others' slices are kept free beside it.

A slice can be kept for a pod before it is free (its holders are just ending). So there are two states of a node to think
of: now, and later, when those who are going have gone and what is kept is taken. Who comes in between has to fit into
both, so for it each GPU holds the larger of the two.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from tessera.model.tickets import Ask
from tessera.placement.fit import place
from tessera.placement.gpustate import GpuState, Places
from tessera.placement.holding import NOTHING, pod_holdings
from tessera.placement.reasons import Rejection
from tessera.placement.shape import Shape


class Kept(msgspec.Struct, frozen=True):
    """What is kept for one pod: its containers that ask, and the shape that was made of them."""

    asks: tuple[Ask, ...]
    shape: Shape


def occupied(kept: Kept, places: Places, gpus: Sequence[GpuState]) -> list[GpuState]:
    """The GPUs as they are once a pod holds these places too.

    Args:
        kept: what the pod asks.
        places: where it is, as `place` chose on the same GPUs.
        gpus: of the node.
    """
    on = {name: tuple(each.gpu for each in chosen if each.instance is None) for name, chosen in places.items()}
    capacity = {state.gpu.id: state.gpu.units for state in gpus}
    more = pod_holdings(kept.asks, on, capacity=capacity, unit=kept.shape.unit)
    company = kept.shape.wishes.company
    instances: dict[str, set[str]] = {}
    for chosen in places.values():
        for each in chosen:
            if each.instance is not None:
                instances.setdefault(each.gpu, set()).add(each.instance)
    return [
        GpuState(
            state.gpu,
            state.held + more.get(state.gpu.id, NOTHING),
            {*state.taken, *instances[state.gpu.id]} if state.gpu.id in instances else state.taken,
            (*state.companies, company) if company and state.gpu.id in more else state.companies,
        )
        for state in gpus
    ]


def fixed(gpus: Sequence[GpuState], keeps: Iterable[Kept]) -> list[tuple[Kept, Places]]:
    """Choose where each is kept, one after the other; what has no room is kept nowhere.

    Args:
        gpus: of the node, without what is about to go.
        keeps: what is kept, the most important first.
    """
    found = []
    taken = list(gpus)
    for kept in keeps:
        places = place(kept.asks, kept.shape, taken)
        if not isinstance(places, Rejection):
            found.append((kept, places))
            taken = occupied(kept, places, taken)
    return found


def beside(now: Sequence[GpuState], later: Sequence[GpuState], keeps: Iterable[Kept]) -> list[GpuState]:
    """The GPUs as they are for a pod that must leave room for others.

    Args:
        now: the GPUs with all that is held on them.
        later: the same GPUs without what is about to go.
        keeps: what is kept, the most important first; what has no room later either is kept nowhere.
    """
    taken = list(later)
    for kept, places in fixed(later, keeps):
        taken = occupied(kept, places, taken)
    return [
        GpuState(
            one.gpu,
            one.held | two.held,
            {*one.taken, *two.taken} if one.taken or two.taken else (),
            {*one.companies, *two.companies} if one.companies or two.companies else (),
        )
        for one, two in zip(now, taken, strict=True)
    ]
