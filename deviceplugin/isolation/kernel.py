"""The strongest guarantee: the driver itself refuses device memory above the limit, for the whole container.

Driver branch 615 brought memory limits for cgroups (NVIDIA, "MPS v3 Memory Partitioning"): cgroup v2, no MIG, hard limit
enforced at allocation. Here the limit is set by NVIDIA's container toolkit when the container is created: its CDI hook
``apply-cuda-memory-limits`` reads NVIDIA_GPU_MEMORY_REQUEST (soft) and NVIDIA_GPU_MEMORY_LIMIT (hard), in whole MiB, and
passes them to nvmlDeviceSetMemoryLimits_v1 for each of the container's GPUs. The driver's library must therefore have that
function and the hook must run; a variable that nobody reads is no guarantee.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from deviceplugin.isolation.environment import Environment, Mode
from deviceplugin.nvml.facts import GpuFacts, NodeFacts
from tessera.model.quantity import MIB

DRIVER_BRANCH: Final = 615
REQUEST: Final = "NVIDIA_GPU_MEMORY_REQUEST"
LIMIT: Final = "NVIDIA_GPU_MEMORY_LIMIT"


def problem(node: NodeFacts, gpu: GpuFacts, environment: Environment, mode: Mode) -> str | None:
    """Why this guarantee can't be given for one GPU, None where it can."""
    if gpu.mig_mode:
        return "MIG is on, and the driver limits no memory there"
    if node.branch < DRIVER_BRANCH:
        return f"the driver is {node.driver}, memory limits came with branch {DRIVER_BRANCH}"
    if not node.memory_limits:
        return "the driver's NVML has no nvmlDeviceSetMemoryLimits_v1"
    if not environment.cgroup_v2:
        return "the node has no unified cgroup v2 hierarchy"
    if mode == "cdi":
        if gpu.uuid in environment.cdi.limited:
            return None
        return "the GPU's CDI spec has no hook that applies memory limits; write it anew with container toolkit 1.20.1"
    return environment.toolkit.limit_problem()


def variables(amounts: Iterable[int]) -> dict[str, str]:
    """The two variables for a container that holds these bytes on its GPUs, each a whole number of MiB.

    The hook applies one pair of numbers to all GPUs of a container. Where they differ (a percentage on mixed cards) the
    smallest counts: a tenant that gets less is told so by its own limit, a neighbour that is robbed is told nothing.
    """
    limit = str(min(amounts) // MIB)
    return {REQUEST: limit, LIMIT: limit}
