"""The device manager's two tables: what the plugins announce, and what the containers hold.

They are kept apart, and both apart from the set of allocated IDs, because the kubelet keeps them apart: the ways in
which they can disagree (an ID that is held but no longer announced, an ID that is held but counted free) are exactly
what a device plugin has to survive. Modelled on manager.go and pod_devices.go of k8s.io/kubernetes v1.34.4.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from google.protobuf.message import DecodeError

from deviceplugin._proto import deviceplugin_v1beta1_pb2 as api
from deviceplugin._proto import podresources_v1_pb2 as podresources
from tessera.testing.kubelet.checkpoint import NO_NUMA, Entry

_log = logging.getLogger(__name__)

HEALTHY: Final = "Healthy"


class Announced:
    """What the plugins have announced: resource -> devices, healthy IDs, unhealthy IDs.

    The three maps have separate keys on purpose: a resource whose plugin went away before its first message is known
    as unhealthy only, and one read from the checkpoint is known as healthy and unhealthy with no device.
    """

    def __init__(self) -> None:
        """Start with nothing."""
        self.nodes: dict[str, dict[str, tuple[int, ...]]] = {}
        self.healthy: dict[str, set[str]] = {}
        self.unhealthy: dict[str, set[str]] = {}

    def update(self, resource: str, devices: Iterable[api.Device]) -> None:
        """Take one ListAndWatch message: it replaces everything known of the resource."""
        nodes: dict[str, tuple[int, ...]] = {}
        healthy: set[str] = set()
        unhealthy: set[str] = set()
        for device in devices:
            nodes[device.ID] = tuple(node.ID for node in device.topology.nodes)
            (healthy if device.health == HEALTHY else unhealthy).add(device.ID)
        self.nodes[resource], self.healthy[resource], self.unhealthy[resource] = nodes, healthy, unhealthy

    def lose(self, resource: str) -> None:
        """The plugin has gone: nothing of it is healthy any more (markResourceUnhealthy)."""
        lost: set[str] = set()
        if resource in self.healthy:
            lost, self.healthy[resource] = self.healthy[resource], set()
        self.unhealthy[resource] = self.unhealthy.get(resource, set()) | lost

    def expect(self, resource: str) -> None:
        """The checkpoint knows the resource: it counts zero until its plugin registers again."""
        self.healthy[resource] = set()
        self.unhealthy[resource] = set()

    def by_node(self, resource: str, ids: Iterable[str]) -> dict[int, tuple[str, ...]]:
        """Group IDs by NUMA node; -1 holds those without one."""
        grouped: dict[int, list[str]] = {}
        nodes = self.nodes.get(resource, {})
        for device in ids:
            for node in nodes.get(device) or (NO_NUMA,):
                grouped.setdefault(node, []).append(device)
        return {node: tuple(found) for node, found in grouped.items()}


@dataclass(frozen=True)
class Allocation:
    """What one container holds of one resource.

    Attributes:
        entry: who holds what, as the checkpoint keeps it.
        response: the plugin's answer that came with it.
    """

    entry: Entry
    response: api.ContainerAllocateResponse

    @cached_property
    def ids(self) -> frozenset[str]:
        return frozenset(device for ids in self.entry.devices.values() for device in ids)

    @cached_property
    def listing(self) -> podresources.ContainerResources:
        """Its part of a PodResources answer; kept, because every List copies all of them."""
        return podresources.ContainerResources(devices=listing(self.entry.resource, self.entry.devices))


class Held:
    """pod UID -> container -> resource -> allocation."""

    def __init__(self) -> None:
        """Start with nothing."""
        self._pods: dict[str, dict[str, dict[str, Allocation]]] = {}

    def insert(self, allocation: Allocation) -> None:
        entry = allocation.entry
        self._pods.setdefault(entry.pod_uid, {}).setdefault(entry.container, {})[entry.resource] = allocation

    def delete(self, uids: Iterable[str]) -> None:
        for uid in uids:
            self._pods.pop(uid, None)

    def pods(self) -> set[str]:
        return set(self._pods)

    def of_container(self, uid: str, container: str) -> Mapping[str, Allocation]:
        """By resource; empty where the container holds nothing."""
        return self._pods.get(uid, {}).get(container, {})

    def ids(self, uid: str, container: str, resource: str) -> frozenset[str] | None:
        """The IDs that a container holds of a resource, or None where nothing is recorded."""
        allocation = self.of_container(uid, container).get(resource)
        return None if allocation is None else allocation.ids

    def allocated(self) -> dict[str, set[str]]:
        """By resource, every ID that some pod holds: what `allocatedDevices` is rebuilt from."""
        found: dict[str, set[str]] = {}
        for allocation in self:
            found.setdefault(allocation.entry.resource, set()).update(allocation.ids)
        return found

    def __iter__(self) -> Iterator[Allocation]:
        """Every allocation."""
        for containers in self._pods.values():
            for resources in containers.values():
                yield from resources.values()

    def restore(self, entries: Iterable[Entry]) -> None:
        """Take what the checkpoint kept."""
        for entry in entries:
            try:
                response = api.ContainerAllocateResponse.FromString(entry.response)
            except DecodeError:
                # The kubelet logs it and goes on without the entry.
                _log.exception(
                    "pod %s, container %s: unreadable answer of %s", entry.pod_uid, entry.container, entry.resource
                )
                continue
            self.insert(Allocation(entry, response))


def listing(resource: str, devices: Mapping[int, Iterable[str]]) -> list[podresources.ContainerDevices]:
    """One PodResources entry per device ID and NUMA node, which is how a kubelet reports them (container_manager.go)."""
    return [
        podresources.ContainerDevices(
            resource_name=resource,
            device_ids=[device],
            topology=None if node == NO_NUMA else podresources.TopologyInfo(nodes=[podresources.NUMANode(ID=node)]),
        )
        for node, ids in devices.items()
        for device in ids
    ]
