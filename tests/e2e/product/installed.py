"""Tessera on a real cluster as its users install it: images built here, manifests applied, and nothing else.

Only the driver is a fake, mounted by the overlay beside this file. What a test does to a part, it does as an operator or
the world would: delete a pod, roll a Deployment, kill a process. No part runs as the cluster's admin.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster import Cluster, ClusterError, image
from cluster.api import plain
from cluster.processes import until
from cluster.settings import REPOSITORY

from product import truth
from product.names import COMPUTE, DOMAIN, INVENTORY, NAMESPACE, PERCENT, UNITS
from tessera.testing.nvml import FakeGpu, FakeNvml

WEBHOOK, SCHEDULER, EXTENDER, NODE = "webhook", "kube-scheduler", "extender", "node"
"""Parts, by the names of their containers."""
WORKLOADS = {
    WEBHOOK: ("deployment", "tessera-webhook"),
    SCHEDULER: ("deployment", "tessera-scheduler"),
    EXTENDER: ("deployment", "tessera-scheduler"),
    NODE: ("daemonset", "tessera-node"),
}
STATUS_PORTS = {WEBHOOK: 9464, NODE: 9465, EXTENDER: 9466}
OVERLAY = Path(__file__).with_name("overlay")
PREVIOUS = Path(__file__).with_name("previous")
IMAGES = ("tessera-webhook", "tessera-node")
SITE, PROFILE = "tessera.test/site", "idc-first"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
SCHEDULER_NAME = "tessera-scheduler"

GPU = "A100-80GB"
GPUS = 4


class Product:
    """The product, on one cluster."""

    def __init__(self, cluster: Cluster) -> None:
        """Do nothing yet."""
        self.cluster = cluster
        self.folder = cluster.settings.home / "product"
        self.fake = self.folder / "fake"
        self.archives: tuple[Path, ...] = ()

    # Coming and going.

    def install(self) -> None:
        """Build the images, import them, make the fake driver, apply the manifests, and wait until all of it serves."""
        self.load_images()
        self.make_driver()
        self.apply()
        self.wait_installed()

    def load_images(self) -> None:
        """`make images`, imported; and Kubernetes' own scheduler in an image of its own."""
        folder = self.cluster.settings.logs.parent / "images"
        command = [sys.executable, "-m", "images", "--out", str(folder)]
        command += ["--import", str(self.cluster.settings.containerd_socket)]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ClusterError(f"{' '.join(command)}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        for name in IMAGES:
            known = f"docker.io/library/{name}"
            self.cluster.ctr("images", "tag", "--force", f"{known}:{version()}", f"{known}:previous")
        self.folder.mkdir(parents=True, exist_ok=True)
        archive = self.folder / "kube-scheduler.tar"
        image.write_program(archive, "kube-scheduler:v1.34.4", self.cluster.binaries / "kube-scheduler")
        self.cluster.ctr("images", "import", str(archive))
        self.archives = (archive, *(folder / f"{name}.tar" for name in IMAGES))

    def make_driver(self) -> None:
        """Put the fake driver of the first node where the overlay mounts it from."""
        make_driver(self.fake, seed=self.cluster.settings.node)

    def apply(self, folder: Path = OVERLAY) -> None:
        """What a user does: kubectl apply -k."""
        self.cluster.kubectl("apply", "--server-side", "-k", str(folder))

    def uninstall(self, folder: Path = OVERLAY) -> None:
        """What a user does: kubectl delete -k."""
        self.cluster.kubectl("delete", "--wait=true", "--ignore-not-found", "-k", str(folder))

    def installed(self) -> bool:
        """Tell whether it is there."""
        return self.cluster.api.exists(f"/api/v1/namespaces/{NAMESPACE}")

    def wait_installed(self) -> None:
        """Wait until every workload is rolled out, the node serves and pods are admitted."""
        for part in (WEBHOOK, SCHEDULER, NODE):
            self.wait_rolled(part)
        self.wait_serving()
        until("the API server calls the webhook", self.admits, seconds=60)

    def wait_rolled(self, part: str, *, seconds: int = 90) -> None:
        """Wait until a part's workload is as it was applied, and ready."""
        kind, name = WORKLOADS[part]
        self.cluster.kubectl("-n", NAMESPACE, "rollout", "status", f"{kind}/{name}", f"--timeout={seconds}s")

    def wait_serving(self, *, seconds: float = 60) -> None:
        """Wait until the kubelet has the agent's devices, and the Node shows them."""
        until("the kubelet has the agent's devices", self._kubelet_has_devices, seconds=seconds)
        path = f"/api/v1/nodes/{self.cluster.settings.node}"

        def serves(node: dict[str, Any]) -> bool:
            inventory = json.loads(node["metadata"].get("annotations", {}).get(INVENTORY, "{}"))
            found = node["status"].get("allocatable", {})
            return inventory.get("state") == "serving" and all(
                int(found.get(name, 0)) > 0 for name in (UNITS, PERCENT, COMPUTE)
            )

        self.cluster.api.wait(path, serves, seconds=seconds, what="has the agent's inventory and tickets")

    def admits(self) -> bool:
        """A pod that isn't kept comes back with tickets."""
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "is-it-called"},
            "spec": {"containers": [{"name": "main", "image": "i", "resources": {"limits": {f"{DOMAIN}gpu": 1}}}]},
        }
        status, body = self.cluster.api.raw("POST", "/api/v1/namespaces/default/pods", pod, dryRun="All")
        return status < 300 and PERCENT in json.loads(body)["spec"]["containers"][0]["resources"]["limits"]

    # What happens to a part.

    def crash(self, part: str) -> None:
        """End one container of a part without a warning."""
        truth.kill(self.cluster, self.container(part))

    def back(self, part: str) -> None:
        """Wait until a part does its work again: the kubelet starts what has ended."""
        self.wait_rolled(part)
        if part == NODE:
            self.wait_serving()
        until("the API server calls the webhook", self.admits, seconds=30)

    def back_alone(self) -> None:
        """Wait until the agent serves its kubelet again, there being no API server to ask."""
        until("the kubelet has the agent's devices", self._kubelet_has_devices, seconds=60)

    def restart(self, part: str) -> None:
        """Let a part end well: its pod is deleted, and another one comes."""
        self.delete(part)
        self.back(part)

    def delete(self, part: str) -> None:
        """Delete one pod of a part, and return when it is gone."""
        path = f"{PODS}/{self._one(part)['metadata']['name']}"
        self.cluster.api.delete(path)
        self.cluster.api.wait_gone(path, seconds=60)

    def roll(self, part: str) -> None:
        """Replace every pod of a part, as an update does; return at once."""
        kind, name = WORKLOADS[part]
        self.cluster.kubectl("-n", NAMESPACE, "rollout", "restart", f"{kind}/{name}")

    def reboot_node(self) -> None:
        """Reboot the node; return when its kubelet serves."""
        self.cluster.reboot_node()

    @contextmanager
    def no_extender(self) -> Iterator[None]:
        """Let kube-scheduler decide alone for a while, for the same pods."""
        with self.no_scheduler():
            self.plain_scheduler()
            yield

    @contextmanager
    def no_scheduler(self) -> Iterator[None]:
        """Let nobody schedule pods that ask for GPUs; everything is as it was afterwards."""
        self.scale_scheduler(0)
        until("no scheduler of ours is left", lambda: not self.pods(SCHEDULER), seconds=60)
        try:
            yield
        finally:
            self.no_plain_scheduler()
            self.own_scheduler()

    def plain_scheduler(self) -> None:
        """Let the cluster's own scheduler, which knows no extender, take our pods too."""
        self.cluster.run_scheduler(profiles=("default-scheduler", SCHEDULER_NAME))

    def no_plain_scheduler(self) -> None:
        """Let the cluster's own scheduler leave our pods alone."""
        self.cluster.run_scheduler()

    def own_scheduler(self) -> None:
        """Have our scheduler run, with its extender."""
        self.scale_scheduler(2)
        self.wait_rolled(SCHEDULER)

    def scale_scheduler(self, replicas: int) -> None:
        """Have so many replicas of our scheduler; return at once."""
        self.cluster.kubectl("-n", NAMESPACE, "scale", "deployment/tessera-scheduler", f"--replicas={replicas}")

    # What can be seen.

    def nvml(self) -> FakeNvml:
        """Open the node's fake driver (close it after use)."""
        return FakeNvml.open(self.fake / "gpus")

    def pods(self, part: str) -> list[dict[str, Any]]:
        """The pods of a part's workload."""
        name = WORKLOADS[part][1]
        found: list[dict[str, Any]] = self.cluster.api.get(PODS, labelSelector=f"app.kubernetes.io/name={name}")[
            "items"
        ]
        return found

    def metrics(self, part: str) -> list[str]:
        """The metrics of each pod of a part."""
        return [plain(each["status"]["podIP"], STATUS_PORTS[part], "/metrics")[1] for each in self.pods(part)]

    def processes(self, part: str) -> list[int]:
        """The first process of each pod's container."""
        return [min(truth.processes_of(self.cluster, _container_id(each, part))) for each in self.pods(part)]

    def restarts(self) -> dict[str, int]:
        """By pod and container of ours, how often it was started again."""
        found = self.cluster.api.get(PODS)["items"]
        return {
            f"{pod['metadata']['name']}/{each['name']}": each["restartCount"]
            for pod in found
            for each in pod["status"].get("containerStatuses", [])
        }

    def container(self, part: str) -> str:
        """The ID of a part's container; of two replicas, that of the one which leads or comes first."""
        return _container_id(self._one(part), part)

    def _one(self, part: str) -> Mapping[str, Any]:
        living = [each for each in self.pods(part) if "deletionTimestamp" not in each["metadata"]]
        if part in (SCHEDULER, EXTENDER):
            path = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/tessera-scheduler"
            leader = self.cluster.api.get(path)["spec"]["holderIdentity"]
            living.sort(key=lambda each: not leader.startswith(each["metadata"]["name"]))
        return living[0]

    def _kubelet_has_devices(self) -> bool:
        found = truth.allocatable(self.cluster)
        return all(found.get(name, 0) > 0 for name in (UNITS, PERCENT, COMPUTE))


def make_driver(folder: Path, *, seed: str) -> None:
    """Make a fake library, its GPUs and their PCI devices; GPUs of another seed have other UUIDs."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for number in range(GPUS):
        device = folder / "sys" / "bus" / "pci" / "devices" / f"0000:{number:02x}:00.0"
        device.mkdir(parents=True)
        (device / "vendor").write_text("0x10de\n")
        (device / "class").write_text("0x030200\n")
    gpus = [FakeGpu.of(GPU, numa=number * 2 // GPUS) for number in range(GPUS)]
    with FakeNvml.create(folder / "gpus", gpus=gpus, seed=seed) as nvml:
        shutil.copy(nvml.library, folder / "libnvidia-ml.so.1")


def version() -> str:
    """The product's version, its images' tag."""
    found: str = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    return found


def _container_id(pod: Mapping[str, Any], container: str) -> str:
    status = next(each for each in pod["status"]["containerStatuses"] if each["name"] == container)
    return str(status["containerID"]).removeprefix(truth.RUNTIME)
