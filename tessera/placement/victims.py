"""Who would have to go so that a pod fits on a node: the fewest, then those of the lowest priority, and nobody in vain.

First everybody of lower priority is thought away; where the pod still finds no room, nothing helps. Then they are put back
one by one, the important and the small first, as long as the pod fits: who can't be put back is a victim. That alone never
ends anybody in vain, and for one victim it is exact. Where it names several, smaller sets are tried one by one, up to a
bound, because putting back in one order can free two small slices where one large one would have done.

Several thousand steps may be needed on a node with hundreds of small slices, so the search hands control back in between.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from itertools import combinations
from typing import Final

import msgspec

from tessera.placement.claims import Taken
from tessera.placement.fit import place
from tessera.placement.gpustate import GpuState
from tessera.placement.holding import NOTHING
from tessera.placement.keeping import Kept
from tessera.placement.reasons import Rejection

STEPS: Final = 400
"""Smaller sets that are tried on one node; 50 us each."""
PAUSE: Final = 32
"""Steps between two pauses: 2 ms."""


class Holder(msgspec.Struct, frozen=True):
    """A pod that might have to go.

    Attributes:
        key: its UID.
        name: ``namespace/name``.
        priority: lower than that of the pod it would go for.
        since: when it was created, as the API writes it; the younger goes first.
        taken: what it holds on the node.
    """

    key: str
    name: str
    priority: int
    since: str
    taken: Taken

    @property
    def size(self) -> int:
        """How much it holds, to compare."""
        return sum(held.all_units + held.compute for held in self.taken.holdings.values()) + sum(
            len(ids) for ids in self.taken.instances.values()
        )


Victims = tuple[Holder, ...]
Without = Callable[[Collection[str]], Sequence[GpuState]]
"""The node's GPUs as they will be without those keys (and without who is going anyway)."""


def cost(victims: Victims) -> tuple[int, int, int]:
    """What compares two sets of victims: how many, the most important of them, all their priorities."""
    return (
        len(victims),
        max((each.priority for each in victims), default=0),
        sum(each.priority for each in victims),
    )


def choose(
    kept: Kept, without: Without, holders: Iterable[Holder], *, smaller: bool = True
) -> Generator[None, None, Victims | None]:
    """Search one node.

    Args:
        kept: what the pod asks.
        without: the node's GPUs.
        holders: who might go.
        smaller: try smaller sets too, which can take 400 steps; without that, nobody is ended in vain either.

    Yields:
        Nothing, every few steps.

    Returns:
        The victims, none where it needs none; None where nobody's going helps.
    """
    if _fits(kept, without(())):
        return ()
    order = sorted(holders, key=lambda each: (-each.priority, each.size, each.since, each.key))
    states = list(without([each.key for each in order]))
    if not _fits(kept, states):
        return None
    victims: list[Holder] = []
    for step, holder in enumerate(order, 1):
        more = _beside(states, holder.taken)
        if _fits(kept, more):
            states = more
        else:
            victims.append(holder)
        if step % PAUSE == 0:
            yield
    found = tuple(victims)
    if smaller and len(found) > 1:
        fewer = yield from _fewer(kept, without, order[::-1], len(found))
        found = fewer or found
    return tuple(sorted(found, key=lambda each: each.key))


def _fewer(kept: Kept, without: Without, order: Sequence[Holder], most: int) -> Generator[None, None, Victims | None]:
    """A smaller set than of `most`, the best of the smallest size, as far as the steps reach."""
    steps = 0
    for count in range(1, most):
        best: Victims | None = None
        for chosen in combinations(order, count):
            steps += 1
            if steps > STEPS:
                return best
            if steps % PAUSE == 0:
                yield
            if (best is None or cost(chosen) < cost(best)) and _fits(kept, without([each.key for each in chosen])):
                best = chosen
        if best is not None:
            return best
    return None


def _fits(kept: Kept, states: Sequence[GpuState]) -> bool:
    return not isinstance(place(kept.asks, kept.shape, states), Rejection)


def _beside(states: Sequence[GpuState], taken: Taken) -> list[GpuState]:
    instances = taken.instances
    return [
        GpuState(
            state.gpu,
            state.held + taken.holdings.get(state.gpu.id, NOTHING),
            {*state.taken, *instances[state.gpu.id]} if state.gpu.id in instances else state.taken,
            (*state.companies, taken.company) if taken.company and state.gpu.id in taken.holdings else state.companies,
        )
        if state.gpu.id in taken.holdings or state.gpu.id in instances
        else state
        for state in states
    ]
