"""Which of the GPUs and nodes that fit is best: `pack` keeps GPUs whole, `spread` keeps them calm.

A policy sees what would be *left*: thousandths of a GPU's memory plus thousandths of its compute, so 2000 is an idle GPU.
It counts with plain arithmetic only, which is the same on one integer (the node agent, no numpy) and on an array of all
nodes (the extender). Ties are the caller's, in a stable order: a coin there costs more packing than any policy gains.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from tessera.placement.holding import Holding
from tessera.placement.wishes import PolicyName

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

IDLE: Final = 2000
"""What is left of an idle GPU."""
_NODE_SCALE: Final = 1 << 20
"""Above anything that the second of two criteria can come to: 128 GPUs with 2000 left each."""

Amount = TypeVar("Amount", int, "NDArray[np.int64]")


class Policy(Protocol):
    """One way to choose."""

    @property
    def name(self) -> PolicyName:
        """As config and annotation write it."""
        ...

    def gpu_cost(self, left: Amount) -> Amount:
        """Order of the GPUs of one node, the lowest first, by what would be left of each."""
        ...

    def node_score(self, cost: Amount, left: Amount) -> Amount:
        """Order of nodes, the highest first.

        Args:
            cost: the sum of `gpu_cost` over the GPUs that would be taken.
            left: what is left on all GPUs of the node before.
        """
        ...


class Pack:
    """The GPU that is left with least, then the node that has least: whole GPUs and whole nodes stay free."""

    name: Final[PolicyName] = "pack"

    def gpu_cost(self, left: Amount) -> Amount:
        """Fullest first."""
        return left

    def node_score(self, cost: Amount, left: Amount) -> Amount:
        """The tightest fit; among equals the fullest node."""
        return -(cost * _NODE_SCALE + left)


class Spread:
    """The node with most left, then its emptiest GPU: neighbours disturb each other least."""

    name: Final[PolicyName] = "spread"

    def gpu_cost(self, left: Amount) -> Amount:
        """Emptiest first."""
        return -left

    def node_score(self, cost: Amount, left: Amount) -> Amount:
        """The emptiest node; among equals the one with the emptiest GPU."""
        return left * _NODE_SCALE - cost


_POLICIES: Final[dict[PolicyName, Policy]] = {"pack": Pack(), "spread": Spread()}


def policy(name: PolicyName) -> Policy:
    """The policy of that name."""
    return _POLICIES[name]


def left(total: Holding, *, capacity: int) -> int:
    """What is left of a GPU of `capacity` units that holds so much, 0..2000; never below 0."""
    if capacity <= 0:
        return 0
    return max(0, 1000 * (capacity - total.all_units) // capacity) + max(0, 10 * (100 - total.compute))
