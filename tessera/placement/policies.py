"""Which of the GPUs of one node are best, by plain integers: what extender and node agent share.

A policy gives every GPU that fits a cost by what is held there before and after; the lowest is taken, the first in the
node's order where costs are equal. `pack` and `spread` see what would be *left*: thousandths of a GPU's memory plus
thousandths of its compute, so 2000 is an idle GPU. The measures (`priced`, `fragmentation`) need to know what pods ask in
this cluster, which only the extender learns; where nobody knows, as on the node, they pack.

How nodes are compared stands in `nodescores` (for `pack`, `spread` and `best-fit`) and in `priced`.
"""

from __future__ import annotations

from typing import Final, Protocol

from tessera.model.config import PolicyName
from tessera.model.inventory import Gpu
from tessera.placement.holding import Holding

IDLE: Final = 2000
"""What is left of an idle GPU."""


class Policy(Protocol):
    """One way to choose among the GPUs of a node."""

    def cost(self, gpu: Gpu, before: Holding, after: Holding) -> int:
        """Order of the GPUs, the lowest first, by what would be held on each."""
        ...


class Pack:
    """The GPU that is left with least: whole GPUs stay free."""

    def cost(self, gpu: Gpu, before: Holding, after: Holding) -> int:  # noqa: ARG002
        """Fullest first."""
        return left(after, capacity=gpu.units)


class Spread:
    """The emptiest GPU: neighbours disturb each other least."""

    def cost(self, gpu: Gpu, before: Holding, after: Holding) -> int:  # noqa: ARG002
        """Emptiest first."""
        return -left(after, capacity=gpu.units)


_PACK: Final = Pack()
_SPREAD: Final = Spread()


def policy(name: PolicyName) -> Policy:
    """What the policy of that name does on one node, where nothing is known of the pods to come."""
    return _SPREAD if name == "spread" else _PACK


def left(total: Holding, *, capacity: int) -> int:
    """What is left of a GPU of `capacity` units that holds so much, 0..2000; never below 0."""
    if capacity <= 0:
        return 0
    return max(0, 1000 * (capacity - total.all_units) // capacity) + max(0, 10 * (100 - total.compute))
