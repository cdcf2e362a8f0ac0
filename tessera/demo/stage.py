"""The demo's cluster: five GPU nodes of a data centre and of two cloud regions, all of it processes on this machine.

Real are the webhook (over TLS, called by the API server), the extender and one node agent per node. Fake are what a
machine without GPU and cluster lacks: the API server, the kubelets, NVML below the agents, and kube-scheduler.
"""

from __future__ import annotations

import asyncio
import base64
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp
import yaml

from tessera.demo.api import Api
from tessera.demo.processes import DemoError, Processes, free_port, program, python
from tessera.testing.nvml import FakeGpu, FakeNvml

SITE: Final = "demo.tessera.dev/site"
REGION: Final = "topology.kubernetes.io/region"
CLOUD_TAINT: Final = "demo.tessera.dev/cloud"
SCHEDULER: Final = "tessera-scheduler"


@dataclass(frozen=True, slots=True)
class DemoNode:
    """One node: its place, its GPUs and its host resources."""

    name: str
    site: str
    region: str
    gpu: str
    gpus: int
    cpu: int
    memory: str


NODES: Final = (
    DemoNode("idc-a", "idc", "shenzhen", "A100-80GB", 8, 96, "768Gi"),
    DemoNode("idc-b", "idc", "shenzhen", "A10", 8, 96, "512Gi"),
    DemoNode("idc-c", "idc", "shenzhen", "V100-32GB", 4, 64, "384Gi"),
    DemoNode("hangzhou-a", "cloud", "cn-hangzhou", "A10", 8, 96, "512Gi"),
    DemoNode("beijing-a", "cloud", "cn-beijing", "T4", 4, 64, "256Gi"),
)

CONFIG: Final = {
    "schedulerName": SCHEDULER,
    "profiles": [
        {
            "name": "idc-first",
            "units": [
                {"name": "idc", "nodeSelector": {SITE: "idc"}},
                {
                    "name": "hangzhou",
                    "regions": ["cn-hangzhou"],
                    "tolerations": [{"key": CLOUD_TAINT, "operator": "Exists", "effect": "NoSchedule"}],
                },
                {
                    "name": "beijing",
                    "regions": ["cn-beijing"],
                    "tolerations": [{"key": CLOUD_TAINT, "operator": "Exists", "effect": "NoSchedule"}],
                },
            ],
        }
    ],
}


@dataclass(frozen=True, slots=True)
class Stage:
    """Where everything is, once it runs.

    Attributes:
        api: base URL of the API server.
        extender: base URL of the extender.
        kubeconfig: an administrator's.
        folders: by node, its kubelet's folder.
        states: by node, the state file of its fake NVML.
        status: by program, the address of its status port.
    """

    api: str
    extender: str
    kubeconfig: str
    folders: dict[str, str]
    states: dict[str, str]
    status: dict[str, str]


class Builder:
    """Starts the cluster's programs."""

    def __init__(
        self, processes: Processes, session: aiohttp.ClientSession, *, folder: str, run_dir: str, seed: int
    ) -> None:
        """Prepare.

        Args:
            processes: starts and ends programs.
            session: for requests to the API server.
            folder: for config, certificates and logs.
            run_dir: for the kubelets; its path must be short, since it holds unix sockets.
            seed: of the kubelets' random choices.
        """
        self._processes = processes
        self._session = session
        self._folder = folder
        self._run_dir = run_dir
        self._seed = seed
        self._config = os.path.join(folder, "config.yaml")
        self._kubeconfig = os.path.join(folder, "kubeconfig")
        self._certificates = os.path.join(folder, "certificates")
        self._status = {name: f"127.0.0.1:{free_port()}" for name in ("webhook", "extender", *(n.name for n in NODES))}

    async def build(self) -> Stage:
        """Start everything and wait until all of it is ready.

        Raises:
            DemoError: a program did not start or did not become ready.
        """
        os.makedirs(self._certificates, exist_ok=True)
        _write(self._config, yaml.safe_dump(CONFIG, sort_keys=False))
        said = await self._processes.announced(
            "apiserver", python("tessera.testing.apiserver", "--kubeconfig", self._kubeconfig)
        )
        url = str(said["url"])
        api = Api(self._session, url)
        webhook, extender = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
        async with asyncio.TaskGroup() as group:
            group.create_task(self._webhook(webhook))
            group.create_task(self._extender(extender))
            for node in NODES:
                group.create_task(self._node(node, api, url))
        for name, address in self._status.items():
            await self._processes.ready(name, address)
        await api.create(
            "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations",
            _registration(webhook, self._certificates),
        )
        return Stage(
            api=url,
            extender=f"http://{extender}",
            kubeconfig=self._kubeconfig,
            folders={node.name: self._dir(node) for node in NODES},
            states={node.name: self._state(node) for node in NODES},
            status=self._status,
        )

    def _dir(self, node: DemoNode) -> str:
        return os.path.join(self._run_dir, node.name)

    def _state(self, node: DemoNode) -> str:
        return os.path.join(self._run_dir, f"{node.name}.nvml")

    def _common(self, program: str) -> list[str]:
        return ["--config", self._config, "--kubeconfig", self._kubeconfig, "--status-listen", self._status[program]]

    async def _webhook(self, listen: str) -> None:
        where = ["--listen", listen, "--cert-dir", self._certificates, "--drain", "0"]
        await self._processes.start("webhook", program("tessera-webhook", *self._common("webhook"), *where))

    async def _extender(self, listen: str) -> None:
        where = ["--listen", listen, "--dashboard-listen", f"127.0.0.1:{free_port()}"]
        await self._processes.start("extender", program("tessera-extender", *self._common("extender"), *where))

    async def _node(self, node: DemoNode, api: Api, url: str) -> None:
        """One node: its fake GPUs, its kubelet, its taint, and the agent on it."""
        folder, number = self._dir(node), NODES.index(node)
        gpus = [FakeGpu.of(node.gpu, numa=at * 2 // node.gpus) for at in range(node.gpus)]
        with FakeNvml.create(Path(self._state(node)), gpus=gpus, seed=node.name) as nvml:
            library, environment = str(nvml.library), nvml.environment()
        sysfs = os.path.join(folder, "sys")
        _pci(sysfs, node.gpus)
        kubelet = ["--dir", folder, "--node", node.name, "--server", url, "--status-period", "1"]
        kubelet += ["--seed", str(self._seed + number), "--first-pid", str(100_000 * (number + 1))]
        kubelet += ["--label", f"{SITE}={node.site}", "--label", f"{REGION}={node.region}"]
        kubelet += ["--resource", f"cpu={node.cpu}", "--resource", f"memory={node.memory}"]
        said = await self._processes.announced(f"kubelet-{node.name}", python("tessera.testing.kubelet", *kubelet))
        if node.site == "cloud":
            taint = {"key": CLOUD_TAINT, "value": "true", "effect": "NoSchedule"}
            await api.merge(f"/api/v1/nodes/{node.name}", {"spec": {"taints": [taint]}})
        agent = ["--node-name", node.name, "--kubelet-dir", folder, "--kubelet-pods", str(said["pods"])]
        agent += ["--nvml-library", library, "--host-root", folder, "--sysfs", sysfs]
        agent += ["--proc-root", os.path.join(folder, "proc")]
        command = program("tessera-node", *self._common(node.name), *agent)
        await self._processes.start(node.name, command, env=environment)


def _pci(sysfs: str, gpus: int) -> None:
    """The PCI devices that a kernel would show."""
    for number in range(gpus):
        device = os.path.join(sysfs, "bus", "pci", "devices", f"0000:{number:02x}:00.0")
        os.makedirs(device)
        _write(os.path.join(device, "vendor"), "0x10de\n")
        _write(os.path.join(device, "class"), "0x030200\n")


def _registration(webhook: str, certificates: str) -> dict[str, object]:
    """The webhook as the API server has to know it."""
    try:
        with open(os.path.join(certificates, "ca.crt"), "rb") as file:
            bundle = base64.b64encode(file.read()).decode()
    except OSError as error:
        raise DemoError(f"the webhook made no CA certificate: {error}") from error
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": "tessera"},
        "webhooks": [
            {
                "name": "pods.tessera.dev",
                "clientConfig": {"url": f"https://{webhook}/mutate", "caBundle": bundle},
                "rules": [
                    {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]},
                ],
                "failurePolicy": "Fail",
                "reinvocationPolicy": "IfNeeded",
                "sideEffects": "None",
                "admissionReviewVersions": ["v1"],
                "timeoutSeconds": 5,
            }
        ],
    }


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
