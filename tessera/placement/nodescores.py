"""How `pack`, `spread` and `best-fit` compare nodes: by what would be left there, once more on arrays.

Kept for those who want a rule that can be told in one sentence, and as the benchmark's baselines.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from tessera.model.config import PolicyName
from tessera.placement.columns import BoolArray, IntArray

NEVER: Final = 1 << 40
"""A cost above any; more than this times the GPUs of a node stays within 64 bits."""
_NODE_SCALE: Final = 1 << 20
"""Above anything that the second of two criteria can come to: 128 GPUs with 2000 left each."""
_INSTANCES: Final = 1 << 12
"""Above the instances of any node."""
_SCORES: Final = 1 << 48
"""Above any score of `pack` or `spread` where no slices are asked."""
_CORES_PER_GPU: Final = 16
"""CPU beside one GPU; best-fit adds thousandths of both up."""
_ONES: Final = np.ones(256, np.int64)
_TRUE: Final = np.ones(256, np.bool_)


def added(amounts: IntArray) -> IntArray:
    """The sum over the last axis, at most 256 long: as a product, in half the time of `sum` for rows of a few GPUs."""
    found: IntArray = amounts @ _ONES[: amounts.shape[-1]]
    return found


def anywhere(there: BoolArray) -> BoolArray:
    """`any` over the last axis, likewise."""
    found: BoolArray = there @ _TRUE[: there.shape[-1]]
    return found


def gpu_costs(name: PolicyName, left: IntArray) -> IntArray:
    """Costs of the GPUs of some nodes by what would be left on each, as `policies` gives them one by one."""
    return -left if name == "spread" else left


def node_scores(
    name: PolicyName, cost: IntArray, left: IntArray, *, size: IntArray, cpu: IntArray, beside: IntArray | int = 0
) -> IntArray:
    """Order of nodes, the highest first.

    Args:
        name: ``pack``: the tightest fit, among equals the fullest node. ``spread``: the emptiest node, among equals the one
            with the emptiest GPU. ``best-fit``: the node that is left with least, CPU and GPU added up.
        cost: by node, the sum of `gpu_costs` over the GPUs that would be taken.
        left: by node, what is left on all its GPUs before.
        size: by node, what the pod would take of that.
        cpu: by node, thousandths of a core that would be left.
        beside: by node, what would be left of MIG instances, in thousandths of GPUs; best-fit adds it to the rest.
    """
    if name == "spread":
        return left * _NODE_SCALE - cost
    if name == "best-fit":
        rest = (left - size) // 2 + beside + np.clip(cpu, 0, 1 << 24) // _CORES_PER_GPU
        return -(rest * _NODE_SCALE + cost)
    return -(cost * _NODE_SCALE + left)


def by_instances(name: PolicyName, score: IntArray, left: IntArray, *, alone: bool) -> IntArray:
    """Order of nodes for a pod that asks for MIG instances: the fewest left first, with `spread` the most.

    For `pack` and `spread` that is all that there is to a pod which asks for nothing else of GPUs (`alone`), and the score
    decides between equals. The others have weighed the instances, so there it decides between equal scores.

    Args:
        name: of the policy.
        score: by node, what is asked beside considered.
        left: by node, instances of the profiles asked that would be left.
        alone: no slices are asked beside.
    """
    order = left if name == "spread" else -left
    if alone and name in {"pack", "spread"}:
        return order * _SCORES + score
    return score * _INSTANCES + order


def cheapest(costs: IntArray, room: BoolArray, count: int) -> IntArray:
    """The places of the `count` lowest costs of each node among its GPUs with room, of which there have to be so many.

    Returns:
        Indices of shape nodes x count, the first of equal costs first.
    """
    masked = np.where(room, costs, NEVER)
    if count == 1:
        return np.asarray(masked.argmin(axis=1), np.int64)[:, None]
    return np.asarray(np.argsort(masked, axis=1, kind="stable")[:, :count], np.int64)
