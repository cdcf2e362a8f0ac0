"""Which GPUs of a node belong together: joined pairwise by NVLink, or on one NUMA node.

A container that gets several GPUs talks between them, so groups that are joined best come first; groups in which every
pair is joined are found exactly, by a search that prunes as soon as one pair is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from tessera.model.inventory import Gpu
from tessera.placement.wishes import Join

JOIN_NAMES: Final[dict[Join, str]] = {"nvlink": "NVLink", "numa": "one NUMA node", "any": "anything"}


class Budget:
    """How many steps a search may take; shared by all the loops of one search, so that the whole is bounded."""

    __slots__ = ("left",)

    def __init__(self, steps: int) -> None:
        """Allow so many steps."""
        self.left = steps

    def spend(self) -> bool:
        """Take one step; False once there are none left."""
        self.left -= 1
        return self.left >= 0


def joined(one: Gpu, other: Gpu, join: Join) -> bool:
    """Whether two GPUs of a node hang together so; either side's word is enough for a link."""
    if join == "nvlink":
        return one.links.get(other.id) == "nvlink" or other.links.get(one.id) == "nvlink"
    if join == "numa":
        return one.numa >= 0 and one.numa == other.numa
    return True


def groups(gpus: Sequence[Gpu], count: int, joins: Sequence[Join], budget: Budget) -> Iterator[tuple[int, ...]]:
    """Choose `count` of the GPUs in every way, the best joined first, then in the order given.

    Args:
        gpus: the best first.
        count: at least 1.
        joins: how they may hang together, in order of preference.
        budget: where it is spent, the search ends.

    Yields:
        Indices into `gpus`, ascending. A group that hangs together in two ways comes twice.
    """
    for join in joins:

        def fits(one: int, other: int, join: Join = join) -> bool:
            return joined(gpus[one], gpus[other], join)

        yield from _cliques(len(gpus), count, fits, budget)


def possible(gpus: Sequence[Gpu], count: int, joins: Sequence[Join], budget: Budget) -> bool:
    """Whether there is any such group."""
    return next(groups(gpus, count, joins, budget), None) is not None


def _cliques(
    size: int, count: int, fits: Callable[[int, int], bool], budget: Budget, chosen: tuple[int, ...] = ()
) -> Iterator[tuple[int, ...]]:
    if len(chosen) == count:
        yield chosen
        return
    first = chosen[-1] + 1 if chosen else 0
    for index in range(first, size - (count - len(chosen)) + 1):
        if not budget.spend():
            return
        if all(fits(index, other) for other in chosen):
            yield from _cliques(size, count, fits, budget, (*chosen, index))
