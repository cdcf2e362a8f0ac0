"""How a container gets its devices: which IDs, in which order of calls, and what is left behind when it fails.

Modelled on Allocate, devicesToAllocate, allocateContainerResources and GetDeviceRunContainerOptions in manager.go of
k8s.io/kubernetes v1.34.4. The order in which a container's resources are served is random, as is every choice among IDs
that nobody expressed a preference about: Go's maps decide there, `DeviceManager.random` here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet

from tessera.testing.kubelet.checkpoint import Entry
from tessera.testing.kubelet.devices import Allocation
from tessera.testing.kubelet.errors import AllocationError
from tessera.testing.kubelet.manager import DeviceManager
from tessera.testing.kubelet.pods import Container, KubeletPod
from tessera.testing.kubelet.settings import Faults

_log = logging.getLogger(__name__)


class Allocator:
    """Gives devices to the containers of a pod in admission, one pod at a time."""

    def __init__(
        self,
        manager: DeviceManager,
        *,
        faults: Faults,
        prestart_timeout: float,
        is_active: Callable[[str], bool],
    ) -> None:
        """Allocate from `manager`'s tables.

        Args:
            manager: the tables and the plugins.
            faults: see `Faults`.
            prestart_timeout: seconds that PreStartContainer may take.
            is_active: tells by UID whether a pod is not finished.
        """
        self._manager = manager
        self._faults = faults
        self._prestart_timeout = prestart_timeout
        self._is_active = is_active
        self._reusable: dict[str, dict[str, set[str]]] = {}

    async def allocate(self, pod: KubeletPod, container: Container) -> None:
        """Give one container what it asks for.

        What a plain init container got may be used again by the containers after it; what a sidecar or an app container
        got may not. Only the pod in admission has such a stock: another pod's is dropped.

        Raises:
            AllocationError: it can't have it. What it got before the failing resource stays recorded until the pod is
                purged, as in the real one.
        """
        reusable = self._reusable.get(pod.uid, {})
        self._reusable = {pod.uid: reusable}
        await self._allocate_resources(pod, container, reusable)
        for resource, allocation in self._manager.held.of_container(pod.uid, container.name).items():
            stock = reusable.setdefault(resource, set())
            if container.role == "init":
                stock |= allocation.ids
            else:
                stock -= allocation.ids

    async def prepare_start(self, pod: KubeletPod, container: Container) -> None:
        """Call PreStartContainer of each resource whose plugin wants it, right before the container starts.

        Raises:
            AllocationError: a plugin failed; the caller shows it as CreateContainerConfigError and tries again.
        """
        manager = self._manager
        missing = False
        for resource, amount in self._in_random_order(container):
            if not manager.is_plugin_resource(resource) or amount == 0:
                continue
            await self._pre_start(pod, container, resource)
            if self._is_active(pod.uid) and manager.held.ids(pod.uid, container.name, resource) is None:
                missing = True
        if missing:
            # "Likely due to a race during node restart": the resource was not known when the pod was admitted.
            await self.allocate(pod, container)

    async def _pre_start(self, pod: KubeletPod, container: Container, resource: str) -> None:
        endpoint = self._manager.endpoints.get(resource)
        if endpoint is None:
            raise AllocationError(f"endpoint not found in cache for a registered resource: {resource}")
        if endpoint.options is None or not endpoint.options.pre_start_required:
            return
        ids = self._manager.held.ids(pod.uid, container.name, resource)
        if ids is None:
            raise AllocationError(
                f"no devices found allocated in local cache for pod {pod.uid}, container {container.name}, "
                f"resource {resource}"
            )
        try:
            await endpoint.reach().pre_start_container(self._manager.shuffled(ids), self._prestart_timeout)
        except AllocationError as error:
            raise AllocationError(f"device plugin PreStartContainer rpc failed with err: {error}") from error

    async def _allocate_resources(self, pod: KubeletPod, container: Container, reusable: dict[str, set[str]]) -> None:
        manager = self._manager
        purged = changed = False
        for resource, amount in self._in_random_order(container):
            if not manager.is_plugin_resource(resource):
                continue
            if not purged:
                manager.update_allocated()
                purged = True
            ids = await self._choose(pod, container, resource, amount, reusable.get(resource, set()))
            if not ids:
                continue
            await self._call_allocate(pod, container, resource, ids)
            changed = True
        if changed:
            manager.write_checkpoint()

    async def _call_allocate(self, pod: KubeletPod, container: Container, resource: str, ids: AbstractSet[str]) -> None:
        manager = self._manager
        endpoint = manager.endpoints.get(resource)
        if endpoint is None:
            manager.allocated = manager.held.allocated()
            raise AllocationError(f"unknown Device Plugin {resource}")
        if self._faults.lose_reservations:
            manager.allocated = manager.held.allocated()
        try:
            answer = await endpoint.reach().allocate(manager.shuffled(ids))
        except AllocationError:
            manager.allocated = manager.held.allocated()
            raise
        if not answer.container_responses:
            raise AllocationError("no containers return in allocation response &AllocateResponse{}")
        response = answer.container_responses[0]
        devices = manager.announced.by_node(resource, sorted(ids))
        entry = Entry(pod.uid, container.name, resource, devices, response.SerializeToString())
        manager.held.insert(Allocation(entry, response))

    async def _choose(
        self, pod: KubeletPod, container: Container, resource: str, required: int, reusable: AbstractSet[str]
    ) -> AbstractSet[str]:
        """Pick IDs (devicesToAllocate); an empty set means that there is nothing to allocate."""
        manager = self._manager
        held = manager.held.ids(pod.uid, container.name, resource)
        needed = required - len(held or ())
        if held is not None and needed != 0:
            raise AllocationError(
                f'pod "{pod.uid}" container "{container.name}" changed request for resource "{resource}" '
                f"from {len(held)} to {required}"
            )
        if not manager.sources_ready and (pod.uid, container.name) in manager.running:
            return frozenset()
        self._check_health(resource, held or frozenset())
        if needed <= 0:
            return frozenset()

        taken: set[str] = set()
        if self._take(resource, taken, reusable, required):
            return taken
        needed = required - len(taken)
        free = manager.announced.healthy[resource] - manager.allocated.get(resource, set())
        if len(free) < needed:
            raise AllocationError(
                f"requested number of devices unavailable for {resource}. Requested: {needed}, Available: {len(free)}"
            )
        preferred = await self._preferred(resource, free | taken, taken, required)
        # What the plugin leaves open, or names without its being free, is filled at random.
        if self._take(resource, taken, preferred & free, required) or self._take(resource, taken, free, required):
            return taken
        raise AllocationError(
            f"unexpectedly allocated less resources than required. Requested: {required}, Got: {len(taken)}"
        )

    def _check_health(self, resource: str, held: AbstractSet[str]) -> None:
        healthy = self._manager.announced.healthy.get(resource)
        if healthy is None:
            raise AllocationError(f"cannot allocate unregistered device {resource}")
        if not healthy:
            raise AllocationError(f"no healthy devices present; cannot allocate unhealthy devices {resource}")
        if not held <= healthy:
            raise AllocationError(
                f"previously allocated devices are no longer healthy; cannot allocate unhealthy devices {resource}"
            )

    def _take(self, resource: str, taken: set[str], source: Iterable[str], required: int) -> bool:
        """Reserve IDs of `source` at random until `required` are taken; tells whether they are."""
        allocated = self._manager.allocated.setdefault(resource, set())
        for device in self._manager.shuffled(set(source) - taken):
            allocated.add(device)
            taken.add(device)
            if len(taken) == required:
                return True
        return False

    async def _preferred(
        self, resource: str, available: AbstractSet[str], must: AbstractSet[str], size: int
    ) -> set[str]:
        manager = self._manager
        endpoint = manager.endpoints.get(resource)
        if endpoint is None:
            raise AllocationError(f"endpoint not found in cache for a registered resource: {resource}")
        if endpoint.options is None or not endpoint.options.get_preferred_allocation_available:
            return set()
        try:
            answer = await endpoint.reach().get_preferred_allocation(
                manager.shuffled(available), manager.shuffled(must), size
            )
        except AllocationError as error:
            raise AllocationError(f"device plugin GetPreferredAllocation rpc failed with err: {error}") from error
        responses = answer.container_responses
        return set(responses[0].deviceIDs) if responses else set()

    def _in_random_order(self, container: Container) -> list[tuple[str, int]]:
        order = sorted(container.limits.items())
        self._manager.random.shuffle(order)
        return order
