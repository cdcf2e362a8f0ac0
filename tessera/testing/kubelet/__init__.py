"""A kubelet for tests and the demo: what a real kubelet 1.34 does towards a device plugin, in one asyncio process.

`FakeKubelet` is driven by method calls; `KubeletNode` attaches one to an API server and makes it a node of a cluster;
``python -m tessera.testing.kubelet`` is such a node as a process. `Plugin` is the smallest device plugin that behaves.

Every behaviour was read in k8s.io/kubernetes v1.34.4; the modules name their source files. Known to be left out:
TopologyInfo's part in the choice of devices (without effect under the default topologyManagerPolicy), dynamic resource
allocation, CPU and memory managers, the predicates that are not about plugins' resources, in-place resize, probes,
ephemeral containers, and plugins that register through the plugin watcher instead of kubelet.sock.
"""

from tessera.testing.kubelet.admission import Admission
from tessera.testing.kubelet.checkpoint import Checkpoint, Entry
from tessera.testing.kubelet.client import ApiClient, ApiError
from tessera.testing.kubelet.containers import ContainerRecord, Hooks
from tessera.testing.kubelet.endpoint import PluginCall
from tessera.testing.kubelet.errors import AllocationError, CheckpointError, KubeletError, PodError
from tessera.testing.kubelet.kubelet import FakeKubelet
from tessera.testing.kubelet.manager import Capacity
from tessera.testing.kubelet.node import KubeletNode
from tessera.testing.kubelet.nodestatus import NodeSettings
from tessera.testing.kubelet.plugin import Plugin, PluginError
from tessera.testing.kubelet.settings import Faults, Paths, Settings, World
from tessera.testing.kubelet.workers import PodState

__all__ = [
    "Admission",
    "AllocationError",
    "ApiClient",
    "ApiError",
    "Capacity",
    "Checkpoint",
    "CheckpointError",
    "ContainerRecord",
    "Entry",
    "FakeKubelet",
    "Faults",
    "Hooks",
    "KubeletError",
    "KubeletNode",
    "NodeSettings",
    "Paths",
    "Plugin",
    "PluginCall",
    "PluginError",
    "PodError",
    "PodState",
    "Settings",
    "World",
]
