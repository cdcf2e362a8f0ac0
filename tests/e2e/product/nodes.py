"""Nodes without a kubelet: Node objects held Ready, with the inventories that agents there would have published.

What an agent writes is made by the agent's own code (`deviceplugin.publish.metadata`); only the GPUs are made up. Pods
that go there stay Pending, as on a node whose kubelet is slow.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from cluster import Api, Cluster

from deviceplugin.publish import metadata
from product.names import COMPUTE, DOMAIN, NAMESPACE, PERCENT, UNITS
from tessera.model.guarantee import Guarantees
from tessera.model.inventory import Gpu, Inventory, gpu_id
from tessera.model.names import DOMAIN as CONFIGURED
from tessera.model.names import MEMORY_UNIT, names

RENEW = 10.0
LABEL = "tessera.test/fake"
"""Label and taint of such nodes: whatever is meant for real ones keeps away."""
TOLERATION = {"key": LABEL, "operator": "Exists", "effect": "NoSchedule"}
MODEL, MEMORY, UNITS_EACH = "NVIDIA A100-SXM4-80GB", 80 << 30, 316
AT_ONCE = 8


@dataclass(frozen=True)
class FakeNode:
    """One node.

    Attributes:
        name: of the Node.
        gpus: how many it has.
        held: units of each GPU that are in foreign use.
        labels: beside ours.
    """

    name: str
    gpus: int = 4
    held: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)


class FakeNodes(AbstractContextManager["FakeNodes"]):
    """Nodes that exist during a block."""

    def __init__(self, cluster: Cluster, nodes: Sequence[FakeNode]) -> None:
        """Make nothing yet."""
        self._api, self._nodes = cluster.api, nodes
        self._ca = cluster.settings.pki / "ca.crt"
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)

    def __enter__(self) -> Self:
        """Make the nodes, and hold them Ready."""
        with ThreadPoolExecutor(AT_ONCE) as threads:
            list(threads.map(self._make, self._nodes))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take them away; their pods are to be gone before."""
        self._done.set()
        self._thread.join()
        with ThreadPoolExecutor(AT_ONCE) as threads:
            list(threads.map(self._remove, self._nodes))

    def cordon(self, closed: bool) -> None:
        """Close all nodes to new pods, or open them."""
        body = {"spec": {"unschedulable": closed}}
        with ThreadPoolExecutor(AT_ONCE) as threads:
            list(threads.map(lambda node: self._api.patch(f"/api/v1/nodes/{node.name}", body), self._nodes))

    def _make(self, node: FakeNode) -> None:
        labels = {"kubernetes.io/hostname": node.name, LABEL: "true", **node.labels}
        body = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": node.name, "labels": labels},
            "spec": {"taints": [{"key": LABEL, "effect": "NoSchedule"}]},
        }
        made = self._api.post("/api/v1/nodes", body)
        tickets = {UNITS: node.gpus * UNITS_EACH, PERCENT: node.gpus * 100, COMPUTE: node.gpus * 100}
        amounts = {"cpu": "64", "memory": "256Gi", "pods": "500", **{name: str(n) for name, n in tickets.items()}}
        now = _now()
        ready = {
            "type": "Ready",
            "status": "True",
            "reason": "KubeletReady",
            "lastHeartbeatTime": now,
            "lastTransitionTime": now,
        }
        status = {"capacity": amounts, "allocatable": amounts, "conditions": [ready]}
        self._lease(node, "POST")
        self._api.patch(f"/api/v1/nodes/{node.name}/status", {"status": status})
        about = metadata(inventory(node), {}, names(CONFIGURED, MEMORY_UNIT))
        # Nobody but the agent of that very node may write this, the cluster's admin included.
        agent = Api(self._api.url, ca_file=self._ca, token=self._token(made["metadata"]))
        agent.patch(f"/api/v1/nodes/{node.name}", {"metadata": about})

    def _token(self, node: Mapping[str, str]) -> str:
        """The token that the agent's pod on such a node would have."""
        bound = {"apiVersion": "v1", "kind": "Node", "name": node["name"], "uid": node["uid"]}
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": 3600, "boundObjectRef": bound},
        }
        return str(self._api.post(f"{_ACCOUNT}/token", body)["status"]["token"])

    def _remove(self, node: FakeNode) -> None:
        self._api.raw("DELETE", f"/api/v1/nodes/{node.name}")
        self._api.raw("DELETE", f"{_LEASES}/{node.name}")

    def _renew(self) -> None:
        while not self._done.wait(RENEW):
            for node in self._nodes:
                try:
                    self._lease(node, "PATCH")
                except OSError:
                    # The API server is away; the next round is in time.
                    break

    def _lease(self, node: FakeNode, method: str) -> None:
        spec = {"holderIdentity": node.name, "leaseDurationSeconds": 40, "renewTime": _now(micro=True)}
        body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": node.name}, "spec": spec}
        if method == "POST":
            self._api.raw("POST", _LEASES, body)
        else:
            self._api.raw("PATCH", f"{_LEASES}/{node.name}", {"spec": spec}, kind="application/merge-patch+json")


_ACCOUNT = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/tessera-node"
_LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"


def inventory(node: FakeNode) -> Inventory:
    """What the agent of such a node sees."""
    gpus = []
    for index in range(node.gpus):
        digest = hashlib.sha256(f"{node.name}/{index}".encode()).hexdigest()
        uuid = f"GPU-{digest[:8]}-{digest[8:12]}-{digest[12:16]}-{digest[16:20]}-{digest[20:32]}"
        gpus.append(
            Gpu(
                id=gpu_id(uuid),
                uuid=uuid,
                index=index,
                model=MODEL,
                memory=MEMORY,
                units=UNITS_EACH,
                numa=index * 2 // node.gpus,
                guarantee=Guarantees(),
                held=node.held,
            )
        )
    return Inventory(v=1, unit=MEMORY_UNIT, gpus=tuple(gpus))


def elsewhere(name: str, limits: Mapping[str, object], **more: Any) -> dict[str, Any]:
    """A small pod that goes to such nodes only; it never runs."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "annotations": dict(more.pop("annotations", {}))},
        "spec": {
            "containers": [
                {
                    "name": "main",
                    "image": "tessera.test/none",
                    "resources": {
                        "limits": {key if "/" in key else f"{DOMAIN}{key}": str(each) for key, each in limits.items()}
                    },
                }
            ],
            "nodeSelector": {LABEL: "true"},
            "tolerations": [TOLERATION],
            "terminationGracePeriodSeconds": 0,
            **more,
        },
    }


def _now(*, micro: bool = False) -> str:
    at = dt.datetime.fromtimestamp(time.time(), tz=dt.UTC)
    return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ" if micro else "%Y-%m-%dT%H:%M:%SZ")
