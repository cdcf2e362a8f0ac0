"""Starts Tessera's programs beside a real cluster, and tells it of them."""

from __future__ import annotations

import json
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

from cluster import Cluster
from cluster.api import plain
from cluster.pki import write_kubeconfig
from cluster.processes import until

from product import truth
from tessera.testing.nvml import FakeGpu, FakeNvml

NAMESPACE = "tessera-system"
WEBHOOK, EXTENDER, NODE = "tessera-webhook", "tessera-extender", "tessera-node"
NEXT_NODE = "tessera-node-next"
PROGRAMS = {WEBHOOK: WEBHOOK, EXTENDER: EXTENDER, NODE: NODE, NEXT_NODE: NODE}
RBAC = Path(__file__).with_name("rbac.yaml")

DOMAIN = "tessera.dev/"
UNITS, PERCENT, COMPUTE = (
    f"{DOMAIN}{name}" for name in ("gpu-memory.256Mi", "gpu-memory.percent", "gpu-compute.percent")
)
INVENTORY, PLAN, REQUEST, DRIFT = (f"{DOMAIN}{name}" for name in ("inventory", "plan", "request", "drift"))

GPU = "A100-80GB"
GPUS = 4
TOKEN_SECONDS = 24 * 3600
STATUS_PORTS = {WEBHOOK: 9464, NODE: 9465, EXTENDER: 9466, NEXT_NODE: 9475}


class Product:
    """The three programs, on one cluster."""

    def __init__(self, cluster: Cluster) -> None:
        """Start nothing yet."""
        self.cluster = cluster
        self.folder = cluster.settings.home / "product"
        self._address = cluster.settings.address

    def install(self) -> None:
        """Make accounts, rights, configuration and the fake GPUs; what an earlier call started is stopped."""
        for name in PROGRAMS:
            self.cluster.processes.kill(name)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.cluster.kubectl("apply", "-f", str(RBAC))
        for name in (WEBHOOK, EXTENDER, NODE):
            write_kubeconfig(self.cluster.settings, self._kubeconfig(name), self._token(name))
        (self.folder / "config.yaml").write_text(json.dumps({"schedulerName": "default-scheduler"}))
        (self.folder / "certificates").mkdir()
        _pci(self.folder / "sys", GPUS)
        gpus = [FakeGpu.of(GPU, numa=number * 2 // GPUS) for number in range(GPUS)]
        FakeNvml.create(self.nvml_state, gpus=gpus, seed=self.cluster.settings.node).close()

    def start(self) -> None:
        """Start the programs, have the API server and the scheduler call them, and wait until a pod can come."""
        self.start_webhook()
        self.start_extender()
        self.cluster.run_scheduler(self._extender_entry())
        self.start_node()
        self.wait_serving()

    def start_webhook(self) -> None:
        """Register the webhook by its URL, then start it; it writes its own authority into the registration."""
        port = _free_port()
        self.cluster.api.apply(self._registration(port))
        flags = ["--listen", f"127.0.0.1:{port}", "--cert-dir", str(self.folder / "certificates"), "--drain", "0"]
        self._start(WEBHOOK, flags)
        self.ready(WEBHOOK)
        path = f"/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/{WEBHOOK}"
        self.cluster.api.wait(
            path, lambda each: "caBundle" in each["webhooks"][0]["clientConfig"], what="has a caBundle"
        )
        # The API server reads the registration by a watch of its own.
        until("the API server calls the webhook", self._called, seconds=15)

    def start_extender(self) -> None:
        """Start the extender and wait until its caches are filled."""
        flags = ["--listen", f"{self._address}:9460", "--dashboard-listen", f"{self._address}:9470"]
        self._start(EXTENDER, flags)
        self.ready(EXTENDER)

    def start_node(self, name: str = NODE) -> None:
        """Start the node agent, or a second one beside it as a roll-out does."""
        with self.nvml() as nvml:
            library, environment = str(nvml.library), nvml.environment()
        flags = ["--node-name", self.cluster.settings.node, "--kubelet-dir", str(self.cluster.settings.kubelet_dir)]
        flags += ["--nvml-library", library, "--sysfs", str(self.folder / "sys")]
        self._start(name, flags, environment)

    def wait_serving(self, name: str = NODE, *, seconds: float = 30) -> None:
        """Wait until the agent is ready, the kubelet has its devices, and the Node shows them."""
        self.ready(name)
        until("the kubelet has the agent's devices", self._kubelet_has_devices, seconds=seconds)
        path = f"/api/v1/nodes/{self.cluster.settings.node}"

        def serves(node: dict[str, Any]) -> bool:
            annotations, found = node["metadata"].get("annotations", {}), node["status"].get("allocatable", {})
            return INVENTORY in annotations and all(int(found.get(name, 0)) > 0 for name in (UNITS, PERCENT, COMPUTE))

        self.cluster.api.wait(path, serves, seconds=seconds, what="has the agent's inventory and tickets")

    def ready(self, name: str, *, seconds: float = 30) -> None:
        """Wait until a program says that it is ready."""
        self.cluster.processes.ready(name, lambda: self._ready(name), seconds=seconds)

    def wait_warm(self, name: str) -> None:
        """Wait until a second agent has nothing left to wait for but the first one's lock."""

        def warm() -> bool:
            try:
                status, text = plain(self._address, STATUS_PORTS[name], "/readyz")
            except OSError:
                return False
            return status == 200 or all(line.startswith("lock:") for line in text.splitlines())

        self.cluster.processes.ready(name, warm)

    def nvml(self) -> FakeNvml:
        """Open the node's fake driver (close it after use)."""
        return FakeNvml.open(self.nvml_state)

    @property
    def nvml_state(self) -> Path:
        """The state file of the node's fake driver."""
        return self.folder / "gpus"

    def metrics(self, name: str) -> str:
        """Return a program's metrics."""
        return plain(self._address, STATUS_PORTS[name], "/metrics")[1]

    def _start(self, name: str, flags: list[str], environment: dict[str, str] | None = None) -> None:
        program = Path(sys.executable).with_name(PROGRAMS[name])
        common = ["--config", str(self.folder / "config.yaml"), "--kubeconfig", str(self._kubeconfig(PROGRAMS[name]))]
        status = ["--status-listen", f"{self._address}:{STATUS_PORTS[name]}"]
        self.cluster.processes.start(name, [str(program), *common, *status, *flags], environment)

    def _ready(self, name: str) -> bool:
        try:
            return plain(self._address, STATUS_PORTS[name], "/readyz")[0] == 200
        except OSError:
            return False

    def _called(self) -> bool:
        """A pod that isn't kept comes back with tickets."""
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "is-it-called"},
            "spec": {"containers": [{"name": "main", "image": "i", "resources": {"limits": {f"{DOMAIN}gpu": 1}}}]},
        }
        status, body = self.cluster.api.raw("POST", "/api/v1/namespaces/default/pods", pod, dryRun="All")
        return status < 300 and PERCENT in json.loads(body)["spec"]["containers"][0]["resources"]["limits"]

    def _kubelet_has_devices(self) -> bool:
        return {UNITS, PERCENT, COMPUTE} <= set(truth.allocatable(self.cluster))

    def _kubeconfig(self, name: str) -> Path:
        return self.folder / f"{name}.kubeconfig"

    def _token(self, account: str) -> str:
        """A service account's token; the agent's is bound to its Node, as that of a pod there would be."""
        spec: dict[str, Any] = {"expirationSeconds": TOKEN_SECONDS}
        if account == NODE:
            node = self.cluster.node()["metadata"]
            spec["boundObjectRef"] = {"apiVersion": "v1", "kind": "Node", "name": node["name"], "uid": node["uid"]}
        path = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{account}/token"
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        return str(self.cluster.api.post(path, body)["status"]["token"])

    def _extender_entry(self) -> dict[str, Any]:
        return {
            "urlPrefix": f"http://{self._address}:9460",
            "filterVerb": "filter",
            "bindVerb": "bind",
            "enableHTTPS": False,
            "nodeCacheCapable": True,
            "ignorable": False,
            "httpTimeout": "10s",
            "managedResources": [{"name": name, "ignoredByScheduler": True} for name in (UNITS, PERCENT, COMPUTE)],
        }

    def _registration(self, port: int) -> dict[str, Any]:
        return {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": WEBHOOK},
            "webhooks": [
                {
                    "name": "pods.tessera.dev",
                    "clientConfig": {"url": f"https://127.0.0.1:{port}/mutate"},
                    "rules": [
                        {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
                    ],
                    "failurePolicy": "Fail",
                    "reinvocationPolicy": "IfNeeded",
                    "sideEffects": "None",
                    "admissionReviewVersions": ["v1"],
                    "timeoutSeconds": 5,
                }
            ],
        }


def _pci(sysfs: Path, gpus: int) -> None:
    """Make the PCI devices that a kernel would show."""
    for number in range(gpus):
        device = sysfs / "bus" / "pci" / "devices" / f"0000:{number:02x}:00.0"
        device.mkdir(parents=True)
        (device / "vendor").write_text("0x10de\n")
        (device / "class").write_text("0x030200\n")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
