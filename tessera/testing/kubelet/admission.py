"""Whether a pod may run here: devices first, then the node's arithmetic.

The order is that of the handlers in kubelet.go: the resource managers allocate, then the predicates look at the node. Of
the predicates only the one on plugins' resources is modelled; cpu, memory, the pod count, ports, taints and selectors are
the scheduler's business here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tessera.testing.kubelet.allocation import Allocator
from tessera.testing.kubelet.errors import AllocationError
from tessera.testing.kubelet.manager import DeviceManager
from tessera.testing.kubelet.pods import KubeletPod
from tessera.testing.kubelet.registration import is_extended_resource


@dataclass(frozen=True, slots=True)
class Admission:
    """How an admission ended.

    Attributes:
        reason: "" where the pod was admitted; else ``UnexpectedAdmissionError`` or ``OutOf<resource>``.
        message: the kubelet's text, without the "Pod was rejected: " that the pod's status gets in front.
    """

    admitted: bool
    reason: str = ""
    message: str = ""


async def admit(
    pod: KubeletPod,
    *,
    others: Iterable[KubeletPod],
    allocator: Allocator,
    manager: DeviceManager,
    node_allocatable: Mapping[str, int],
) -> Admission:
    """Give a pod its devices and check it against the node.

    Args:
        pod: the pod, which PodResources lists already.
        others: the other pods that are not finished.
        allocator: gives the devices.
        manager: who holds what.
        node_allocatable: what the Node object says, which may be older than what the device manager knows.
    """
    try:
        for container in pod.containers:
            await allocator.allocate(pod, container)
    except AllocationError as error:
        return Admission(
            admitted=False,
            reason="UnexpectedAdmissionError",
            message=f"Allocate failed due to {error}, which is unexpected",
        )
    return _fits(pod, list(others), _sanitized(pod, manager, node_allocatable))


def _sanitized(pod: KubeletPod, manager: DeviceManager, allocatable: Mapping[str, int]) -> dict[str, int]:
    """Raise the node's numbers to what is allocated (sanitizeNodeAllocatable), so that a late Node object does no harm."""
    numbers = dict(allocatable)
    if pod.uid in manager.held.pods():
        for resource, ids in manager.allocated.items():
            numbers[resource] = max(numbers.get(resource, 0), len(ids))
    return numbers


def _fits(pod: KubeletPod, others: list[KubeletPod], allocatable: Mapping[str, int]) -> Admission:
    names = {name for container in pod.containers for name in container.limits if is_extended_resource(name)}
    # A resource that the node has never heard of is not counted (removeMissingExtendedResources): the pod runs without it.
    for resource in sorted(names & allocatable.keys()):
        asked, used = pod.requests(resource), sum(other.requests(resource) for other in others)
        if asked > allocatable[resource] - used:
            return Admission(
                admitted=False,
                reason=f"OutOf{resource}",
                message=f"Node didn't have enough resource: {resource}, requested: {asked}, used: {used}, "
                f"capacity: {allocatable[resource]}",
            )
    return Admission(admitted=True)
