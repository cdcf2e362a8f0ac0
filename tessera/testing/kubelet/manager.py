"""The device manager: endpoints, tables, capacity and the checkpoint, between plugins and admission.

Modelled on pkg/kubelet/cm/devicemanager/manager.go of k8s.io/kubernetes v1.34.4, function by function; the rules by which
IDs are chosen are in `allocation`. Where the real one holds a mutex, this one doesn't await; where it lets the mutex go
(during every call to a plugin), this one awaits. So what can happen in between is the same.

Left out: TopologyInfo's part in the choice. With topologyManagerPolicy "none", a kubelet's default, it has none
(filterByAffinity hands all devices back); under the other policies it narrows the offer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from random import Random

from deviceplugin._proto import deviceplugin_v1beta1_pb2 as api
from deviceplugin._proto import podresources_v1_pb2 as podresources
from tessera.testing.kubelet import checkpoint
from tessera.testing.kubelet.devices import Announced, Held, listing
from tessera.testing.kubelet.endpoint import Endpoint, PluginClient
from tessera.testing.kubelet.errors import CheckpointError
from tessera.testing.kubelet.settings import Settings, World

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Capacity:
    """What the node status gets: resource -> count.

    Attributes:
        allocatable: may lack a resource that `capacity` has (its plugin went away before its first message); the node
            status then shows the capacity's number (nodestatus/setters.go).
        removed: resources just forgotten; the node status sets their capacity to zero.
    """

    capacity: dict[str, int]
    allocatable: dict[str, int]
    removed: tuple[str, ...]


class DeviceManager:
    """The device manager of one run of the kubelet; a restart makes a new one from the checkpoint."""

    def __init__(
        self,
        path: str,
        *,
        settings: Settings,
        world: World,
        random: Random,
        active: Callable[[], AbstractSet[str]],
        changed: Callable[[], None],
    ) -> None:
        """Read the checkpoint, if there is one.

        Args:
            path: the checkpoint file.
            settings: see `Settings`.
            world: see `World`.
            random: decides what Go's map order decides.
            active: UIDs of the pods that are not finished.
            changed: called after every change that somebody may wait for.
        """
        self._path = path
        self._settings = settings
        self._world = world
        self._active = active
        self._changed = changed
        self.random = random
        self.endpoints: dict[str, Endpoint] = {}
        self.announced = Announced()
        self.held = Held()
        self.allocated: dict[str, set[str]] = {}
        self.sources_ready = True
        """False from a restart until the pods found then are admitted: nothing is purged in that time."""
        self.running: AbstractSet[tuple[str, str]] = frozenset()
        """(pod UID, container) that ran when this run of the kubelet started."""
        self._restore()

    def is_plugin_resource(self, resource: str) -> bool:
        """A plugin announces it, or announced it once and somebody holds it. Others are not looked at in admission."""
        return resource in self.announced.healthy or resource in self.allocated

    async def plugin_connected(self, client: PluginClient) -> None:
        """A plugin registered: ask for its options, then let it replace whatever served the resource before.

        Raises:
            KubeletError: it can't be reached or doesn't answer.
        """
        options = await client.connect(self._settings.dial_timeout)
        self.endpoints[client.resource] = Endpoint(client.resource, client, options)
        self._changed()

    def plugin_disconnected(self, resource: str) -> None:
        """The plugin's stream has ended: all its devices are unhealthy from now on, allocatable is 0 at once."""
        endpoint = self.endpoints.get(resource)
        if endpoint is not None:
            self.announced.lose(resource)
            endpoint.stopped = self._world.monotonic()
            self._changed()

    def devices_announced(self, resource: str, devices: Iterable[api.Device]) -> None:
        """One message of ListAndWatch."""
        self.announced.update(resource, devices)
        self.write_checkpoint()
        self._changed()

    def update_allocated(self) -> None:
        """Free what finished pods hold (UpdateAllocatedDevices): at the next allocation or PodResources List, no sooner.

        Only when there is something to free is the set of allocated IDs rebuilt; a reservation in flight is lost then.
        """
        if not self.sources_ready:
            return
        gone = self.held.pods() - self._active()
        if gone:
            self.held.delete(gone)
            self.allocated = self.held.allocated()

    def capacity(self) -> Capacity:
        """What the node status says now. Plugins that stayed away longer than the grace period are forgotten here."""
        capacity: dict[str, int] = {}
        allocatable: dict[str, int] = {}
        removed: list[str] = []
        tables = self.announced
        for resource in sorted({*tables.healthy, *tables.unhealthy}):
            endpoint = self.endpoints.get(resource)
            if endpoint is None or self._grace_expired(endpoint):
                self.endpoints.pop(resource, None)
                tables.healthy.pop(resource, None)
                tables.unhealthy.pop(resource, None)
                removed.append(resource)
                continue
            healthy = tables.healthy.get(resource)
            if healthy is not None:
                allocatable[resource] = len(healthy)
            capacity[resource] = len(healthy or ()) + len(tables.unhealthy.get(resource, ()))
        if removed:
            self.write_checkpoint()
        return Capacity(capacity, allocatable, tuple(removed))

    def write_checkpoint(self) -> None:
        """Write who holds what and what is registered."""
        registered = {name: tuple(sorted(ids)) for name, ids in self.announced.healthy.items()}
        checkpoint.write(self._path, checkpoint.Checkpoint(tuple(each.entry for each in self.held), registered))

    def container_resources(self, uid: str, container: str) -> podresources.ContainerResources:
        """What PodResources shows of a container."""
        found = podresources.ContainerResources(name=container)
        for allocation in self.held.of_container(uid, container).values():
            found.MergeFrom(allocation.listing)
        return found

    def allocatable_devices(self) -> list[podresources.ContainerDevices]:
        """Every healthy device, held or not."""
        found: list[podresources.ContainerDevices] = []
        for resource, healthy in self.announced.healthy.items():
            if resource in self.announced.nodes:
                found += listing(resource, self.announced.by_node(resource, sorted(healthy)))
        return found

    def shuffled(self, ids: Iterable[str]) -> list[str]:
        """The IDs in an order that tells nothing, the same for the same seed."""
        order = sorted(ids)
        self.random.shuffle(order)
        return order

    def _grace_expired(self, endpoint: Endpoint) -> bool:
        stopped = endpoint.stopped
        return stopped is not None and self._world.monotonic() - stopped > self._settings.stop_grace

    def _restore(self) -> None:
        try:
            found = checkpoint.read(self._path)
        except CheckpointError:
            # The kubelet goes on without it: "Device allocation info may NOT be up-to-date".
            _log.exception("continuing after failing to read %s", self._path)
            return
        if found is None:
            return
        self.held.restore(found.entries)
        self.allocated = self.held.allocated()
        for resource in found.registered:
            self.announced.expect(resource)
            self.endpoints[resource] = Endpoint(resource, stopped=self._world.monotonic())
