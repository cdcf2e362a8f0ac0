"""Where a cluster lives on its machine, and on which addresses: said once, used by every part."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Settings:
    """One cluster. Every address is on a bridge of its own: nothing listens on the machine's network.

    Attributes:
        home: everything that the cluster keeps: certificates, data, sockets, the record of what was done.
        logs: one log for each component; kept after the end.
        node: name of the node.
        bridge: interface of the pods' network; its address is the node's and the API server's.
        network: first three numbers of the pods' /24 network; .1 is the bridge.
        services: range of the Services' addresses.
        cgroup: the node's pods live below this cgroup.
        status_period: the kubelet's nodeStatusUpdateFrequency; its own default is 10s.
        proxy: whether kube-proxy runs (Services inside the cluster need it).
        extenders: entries of KubeSchedulerConfiguration for the default scheduler.
        others: names of nodes that may come later; the API server reads its users at its start only.
        control: address of the API server; empty where it is the node's own.
        apart: folder below `home` of what belongs to the node alone; empty for the first node.
    """

    home: Path = Path("/var/lib/tessera-e2e")
    logs: Path = REPOSITORY / "out" / "e2e"
    node: str = "n1"
    bridge: str = "tessera0"
    network: str = "10.213.0"
    services: str = "10.214.0.0/24"
    cgroup: str = "tessera-e2e"
    status_period: str = "10s"
    proxy: bool = True
    extenders: tuple[dict[str, Any], ...] = field(default=())
    others: tuple[str, ...] = ("n2",)
    apart: str = ""
    control: str = ""

    # The kubelet's folder is not a choice: device plugins and CNI plugins of a real node look for it there.
    kubelet_dir: Path = Path("/var/lib/kubelet")

    @property
    def address(self) -> str:
        """The node's address, the API server's too."""
        return f"{self.network}.1"

    @property
    def api_url(self) -> str:
        return f"https://{self.control or self.address}:6443"

    @property
    def audit_log(self) -> Path:
        """What our accounts asked the API server."""
        return self.logs / "audit.log"

    @property
    def numbers(self) -> Path:
        """What the run measured."""
        return self.logs / "numbers.json"

    @property
    def kubernetes_service(self) -> str:
        """The API server's address inside the cluster."""
        return self.services.rsplit(".", 1)[0] + ".1"

    @property
    def record(self) -> Path:
        return self.home / "record.json"

    @property
    def pki(self) -> Path:
        return self.home / "pki"

    @property
    def own(self) -> Path:
        """What belongs to the node alone."""
        return self.home / self.apart

    @property
    def conf(self) -> Path:
        return self.own / "conf"

    @property
    def etcd_data(self) -> Path:
        return self.home / "etcd"

    @property
    def containerd_root(self) -> Path:
        return self.own / "containerd"

    @property
    def containerd_socket(self) -> Path:
        return self.own / "run" / "containerd.sock"

    @property
    def manifests(self) -> Path:
        """The kubelet's folder of static pods."""
        return self.own / "static-pods"

    def kubeconfig(self, user: str) -> Path:
        """Return the path of a user's kubeconfig."""
        return self.home / "kubeconfigs" / f"{user}.yaml"
