"""The Node object as its kubelet keeps it: created once, its status and its Lease renewed by the clock.

Plugins' resources reach the API server only with the next renewal, up to ten seconds late on a real node; what the
kubelet itself decides by is the device manager. Status writes are merge patches: resources that are not named stay.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from tessera.model.errors import QuantityError
from tessera.model.quantity import Raw, whole
from tessera.testing.kubelet.client import ApiClient, ApiError, Object
from tessera.testing.kubelet.kubelet import FakeKubelet
from tessera.testing.kubelet.registration import is_extended_resource
from tessera.testing.kubelet.settings import World

_log = logging.getLogger(__name__)

VERSION: Final = "v1.34.4"
_LEASES: Final = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
_DEFAULT_RESOURCES: Final = {"cpu": "64", "memory": "512Gi", "ephemeral-storage": "1Ti", "pods": "250"}
_HEALTHY: Final = {
    "MemoryPressure": ("KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
    "DiskPressure": ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
    "PIDPressure": ("KubeletHasSufficientPID", "kubelet has sufficient PID available"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings:
    """What the Node object says and how often.

    Attributes:
        name: the node's name.
        labels: beside the hostname, operating system and architecture.
        annotations: given at creation.
        taints: given at creation.
        resources: capacity that no plugin brings; allocatable is the same.
        address: the node's InternalIP, where `pods_url` is answered.
        status_period: seconds between two status writes (a kubelet's nodeStatusUpdateFrequency: 10).
        lease_period: seconds between two renewals of the Lease (10 at the default duration of 40); None: no Lease.
        retry_period: seconds after which something that failed is tried again.
        post_events: write Events for rejections and containers that can't start.
    """

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    taints: tuple[Mapping[str, str], ...] = ()
    resources: Mapping[str, str] = field(default_factory=lambda: dict(_DEFAULT_RESOURCES))
    address: str = "127.0.0.1"
    status_period: float = 10.0
    lease_period: float | None = 10.0
    retry_period: float = 1.0
    post_events: bool = True


class NodeStatus:
    """Keeps the Node object and the Lease."""

    def __init__(self, kubelet: FakeKubelet, api: ApiClient, *, settings: NodeSettings, world: World) -> None:
        """Write nothing yet.

        Args:
            kubelet: whose capacity is published.
            api: the API server.
            settings: see `NodeSettings`.
            world: see `World`.
        """
        self._kubelet = kubelet
        self._api = api
        self._settings = settings
        self._world = world
        self._ready_since = world.timestamp()
        self._ready = True

    async def register(self) -> None:
        """Create the Node, or take over the one that is there, as a kubelet does that comes back.

        Raises:
            ApiError: the API server refuses, or can't be reached.
        """
        name = self._settings.name
        labels = {
            "kubernetes.io/hostname": name,
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": "amd64",
            **self._settings.labels,
        }
        metadata = {"name": name, "labels": labels, "annotations": dict(self._settings.annotations)}
        node = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": metadata,
            "spec": {"taints": [dict(taint) for taint in self._settings.taints]},
        }
        try:
            await self._api.create("/api/v1/nodes", node)
        except ApiError as error:
            if error.status != 409:
                raise
            await self._api.merge_patch(f"/api/v1/nodes/{name}", {"metadata": {"labels": labels}})

    def set_ready(self, *, ready: bool) -> None:
        """Change the Ready condition; the next `publish` writes it."""
        self._ready, self._ready_since = ready, self._world.timestamp()

    async def publish(self) -> None:
        """Write capacity, allocatable, conditions and addresses.

        Raises:
            ApiError: the API server refuses, or can't be reached.
        """
        now = self._world.timestamp()
        seen = self._kubelet.capacity()
        capacity = {**self._settings.resources, **{name: str(count) for name, count in seen.capacity.items()}}
        # A forgotten resource stays in the status, as zero: it tells node resources from cluster-wide ones.
        capacity.update(dict.fromkeys(seen.removed, "0"))
        allocatable = {**capacity, **{name: str(count) for name, count in seen.allocatable.items()}}
        status = {
            "capacity": capacity,
            "allocatable": allocatable,
            "conditions": self._conditions(now),
            "addresses": [
                {"type": "InternalIP", "address": self._settings.address},
                {"type": "Hostname", "address": self._settings.name},
            ],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self._kubelet.pods_port}},
            "nodeInfo": _node_info(),
        }
        path = f"/api/v1/nodes/{self._settings.name}/status"
        node = await self._api.merge_patch(path, {"status": status})
        # From now on admission compares with what the API says, as a kubelet's node lister gives it.
        self._kubelet.node_allocatable = _extended(node)

    async def renew(self) -> None:
        """Renew the Lease, creating it where there is none.

        Raises:
            ApiError: the API server refuses, or can't be reached.
        """
        name = self._settings.name
        spec = {
            "holderIdentity": name,
            "leaseDurationSeconds": 40,
            "renewTime": self._world.now().strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        }
        try:
            await self._api.merge_patch(f"{_LEASES}/{name}", {"spec": spec})
        except ApiError as error:
            if error.status != 404:
                raise
            lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name}, "spec": spec}
            await self._api.create(_LEASES, lease)

    def _conditions(self, now: str) -> list[dict[str, str]]:
        found = [
            {"type": kind, "status": "False", "reason": reason, "message": message}
            for kind, (reason, message) in _HEALTHY.items()
        ]
        if self._ready:
            last = ("True", "KubeletReady", "kubelet is posting ready status")
        else:
            last = ("False", "KubeletNotReady", "container runtime is down")
        found.append(dict(zip(("type", "status", "reason", "message"), ("Ready", *last), strict=True)))
        return [{**each, "lastHeartbeatTime": now, "lastTransitionTime": self._ready_since} for each in found]


def _extended(node: Object) -> dict[str, int]:
    status = node.get("status")
    found = status.get("allocatable") if isinstance(status, dict) else None
    numbers: dict[str, int] = {}
    for name, amount in found.items() if isinstance(found, dict) else ():
        if is_extended_resource(name) and isinstance(amount, Raw):
            try:
                numbers[name] = whole(amount)
            except QuantityError as error:
                _log.warning("the node's allocatable %s can't be read: %s", name, error)
    return numbers


def _node_info() -> dict[str, str]:
    return {
        "architecture": "amd64",
        "bootID": "fake",
        "containerRuntimeVersion": "containerd://2.1.0",
        "kernelVersion": "6.8.0",
        "kubeProxyVersion": "",
        "kubeletVersion": VERSION,
        "machineID": "fake",
        "operatingSystem": "linux",
        "osImage": "fake",
        "systemUUID": "fake",
    }
