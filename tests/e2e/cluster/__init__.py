"""A real Kubernetes on this machine: etcd, control plane, containerd, kubelet, from bare programs and as root.

Fakes prove that code agrees with what we believe; this proves what we believe. Everything lives in one folder, on one
bridge of its own and in one cgroup of its own, and is written down in a record before it is done, so that a later call
can take it away again even where this one was killed.

    with Cluster(Settings()) as cluster:
        cluster.api.get("/api/v1/nodes")
"""

from cluster.api import Api, ApiError
from cluster.cluster import Cluster
from cluster.errors import ClusterError, MachineError
from cluster.settings import Settings

__all__ = ["Api", "ApiError", "Cluster", "ClusterError", "MachineError", "Settings"]
