"""A whole node in one process: fake API server, fake kubelet, fake NVML, and the real agent between them.

`make_cluster` makes one; `Cluster` is what the tests drive and look at. Pods are put into the API as a scheduler would leave
them: bound, with or without a plan.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from random import Random

import pytest
from prometheus_client import CollectorRegistry

from deviceplugin import agent as agents
from deviceplugin import leaving, monitor, settle
from deviceplugin.agent import Agent, Places
from deviceplugin.isolation.environment import Environment
from deviceplugin.kubeletpods import KubeletPods
from deviceplugin.mpsdaemon import MpsDaemon
from deviceplugin.nvml.binding import Binding
from deviceplugin.nvml.driver import NvmlDriver
from deviceplugin.nvml.facts import GpuSample, Look, RecoveryAction
from deviceplugin.nvml.pci import PciBus
from deviceplugin.nvml.source import GpuSource
from deviceplugin.processes import ProcessMap
from tessera.kube.client import ApiClient
from tessera.kube.clock import SystemClock
from tessera.kube.config import StaticConnection
from tessera.model import inventory as inventories
from tessera.model import plan as plans
from tessera.model.config import Config
from tessera.model.config import parse as parse_config
from tessera.model.guarantee import Guarantee, Guarantees
from tessera.model.names import names as names_of
from tessera.testing.apiserver import ADMIN, FakeApiServer
from tessera.testing.kubelet import FakeKubelet, Settings
from tessera.testing.kubelet.client import ApiClient as KubeletApiClient
from tessera.testing.kubelet.node import KubeletNode
from tessera.testing.kubelet.nodestatus import NodeSettings
from tessera.testing.nvml import STATE_VARIABLE, FakeGpu, FakeNvml

NODE = "n1"
NAMES = names_of()
UNITS, PERCENT, COMPUTE = NAMES.tickets
PATIENCE = 15.0


class SameGpus:
    """A driver that shows what another agent's driver showed: one process can't have NVML open twice."""

    def __init__(self, facts):
        self.facts = facts
        self.processes = {}

    def open(self):
        pass

    def close(self):
        pass

    def read(self):
        return self.facts

    def look(self):
        def sample(gpu):
            return GpuSample(processes=self.processes.get(gpu, ()), used=0, recovery=RecoveryAction.NONE)

        return Look(samples={gpu.id: sample(gpu.id) for gpu in self.facts.gpus})


class Cluster:
    """One node and its API server."""

    def __init__(
        self,
        folder: str,
        stack: AsyncExitStack,
        api: FakeApiServer,
        nvml: FakeNvml,
        config: Config,
        *,
        list_rate: float,
        list_burst: int,
    ) -> None:
        self.folder = folder
        self.stack = stack
        self.api = api
        self.nvml = nvml
        self.config = config
        self.kubelet = FakeKubelet(
            os.path.join(folder, "k"),
            settings=Settings(
                node=NODE,
                seed=3,
                startup_delay=0.9,
                retry_interval=0.3,
                list_rate=list_rate,
                list_burst=list_burst,
            ),
        )
        self.node: KubeletNode | None = None
        self.agent: Agent | None = None
        self.stop = asyncio.Event()
        self.running: asyncio.Task[None] | None = None
        self.token = 0
        self.offline = False

    # Parts come and go.

    async def start_kubelet(self) -> None:
        client = await self.stack.enter_async_context(KubeletApiClient(self.api.url, token=self.api.token(ADMIN)))
        self.node = KubeletNode(self.kubelet, client, settings=NodeSettings(name=NODE, status_period=0.05))
        self.stack.push_async_callback(self.kubelet.close)
        self.stack.push_async_callback(self.node.stop)
        await self.node.start()

    async def make_agent(
        self,
        *,
        with_api: bool = True,
        kubelet_pods: bool = False,
        driver: SameGpus | None = None,
        mps: MpsDaemon | None = None,
    ) -> Agent:
        clock, rng = SystemClock(), Random(1)
        client = None
        if with_api:
            connection = StaticConnection(self.api.url, token=self.api.token(ADMIN))
            client = await self.stack.enter_async_context(ApiClient(connection, clock=clock, rng=rng))
        pods = KubeletPods(self.kubelet.pods_url) if kubelet_pods else None
        if pods is not None:
            await self.stack.enter_async_context(pods)
        self.token += 1
        pci = PciBus(os.path.join(self.folder, "sys"))

        async def survey() -> Environment:
            return Environment()

        return Agent(
            NODE,
            Places(
                plugins=self.kubelet.paths.plugins,
                pod_resources=self.kubelet.paths.pod_resources,
                state=os.path.join(self.folder, "state"),
            ),
            config=lambda: self.config,
            source=GpuSource(
                driver or NvmlDriver(Binding(str(self.nvml.library)), pci),
                clock=clock,
                pci=pci,
                insist=True,
                interval=0.1,
            ),
            survey=survey,
            processes=ProcessMap(self.kubelet.paths.proc),
            client=client,
            kubelet_pods=pods,
            token=f"t{self.token}",
            clock=clock,
            rng=rng,
            registry=CollectorRegistry(),
            mps=mps,
        )

    def same_gpus(self) -> SameGpus:
        """What the running agent's driver shows, for a second agent."""
        assert self.agent is not None
        return SameGpus(self.agent._source.state.facts)

    async def start_agent(self, **options: bool | MpsDaemon) -> Agent:
        self.agent = await self.make_agent(**options)
        self.stop = asyncio.Event()
        self.running = asyncio.create_task(self.agent.run(self.stop))
        await self.serving()
        return self.agent

    async def stop_agent(self) -> None:
        """SIGTERM."""
        if self.running is not None:
            running, self.running = self.running, None
            self.stop.set()
            async with asyncio.timeout(PATIENCE):
                await running

    async def kill_agent(self) -> None:
        """SIGKILL, as far as that can be had in one process: nothing is handed over, the ledger is not written."""
        if self.running is not None:
            running, self.running = self.running, None
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    async def serving(self) -> None:
        """Wait until the kubelet sees devices of every ticket that the board offers."""
        assert self.agent is not None
        agent = self.agent
        await self.until(lambda: bool(agent.board.offers) and agent.registrar.unheard is None)
        for resource in agent.board.offers:
            await self.until(lambda resource=resource: self.kubelet.capacity().allocatable.get(resource, 0) > 0)
            await self.until(lambda resource=resource: resource in self.api.get("nodes", NODE)["status"]["allocatable"])

    # Pods.

    def pod(
        self,
        name: str,
        limits: dict[str, int] | None = None,
        *,
        plan: dict[str, list[tuple[int, int, int]]] | None = None,
        containers: list[tuple[str, dict[str, int]]] | None = None,
        init: list[tuple[str, dict[str, int]]] | None = None,
        sidecars: list[tuple[str, dict[str, int]]] | None = None,
        annotations: dict[str, str] | None = None,
        plan_node: str = NODE,
    ) -> str:
        """Bind a pod to the node; returns its UID. `plan`: by container, (index of the GPU, units, compute)."""
        uid = str(uuid.uuid4())
        notes = dict(annotations or {})
        if plan is not None:
            made = {
                container: tuple(
                    plans.PlannedSlice(
                        gpu=self.gpu(index), units=units, compute=compute, whole=units == 316 and compute == 100
                    )
                    for index, units, compute in slices
                )
                for container, slices in plan.items()
            }
            notes[NAMES.plan] = plans.encode(
                plans.Plan(v=1, node=plan_node, guarantee=Guarantees(memory=Guarantee.WATCHED), containers=made)
            )
        inits = [_container(each, amounts, restartPolicy="Always") for each, amounts in sidecars or []]
        inits += [_container(each, amounts) for each, amounts in init or []]
        self.api.put(
            "pods",
            {
                "metadata": {"name": name, "namespace": "default", "uid": uid, "annotations": notes},
                "spec": {
                    "nodeName": NODE,
                    "initContainers": inits,
                    "containers": [_container(*each) for each in containers or [("main", limits or {})]],
                },
                "status": {"phase": "Pending", "qosClass": "BestEffort"},
            },
        )
        return uid

    def gpu(self, index: int) -> str:
        return inventories.gpu_id(self.nvml.gpus()[index].uuid)

    def phase(self, name: str) -> str:
        found = self.api.get("pods", name, "default")
        return "" if found is None else str(found["status"].get("phase"))

    def message(self, name: str) -> str:
        found = self.api.get("pods", name, "default")
        return "" if found is None else str(found["status"].get("message", ""))

    async def running_pod(self, name: str) -> None:
        await self.until(lambda: self.phase(name) in {"Running", "Failed"})
        assert self.phase(name) == "Running", self.message(name)
        uid = str(self.api.get("pods", name, "default")["metadata"]["uid"])
        assert not any((await self.kubelet.settled(uid)).values())

    async def rejected(self, name: str) -> str:
        await self.until(lambda: self.phase(name) in {"Running", "Failed"})
        assert self.phase(name) == "Failed"
        return self.message(name)

    def env(self, uid: str, container: str = "main") -> dict[str, str]:
        return next(each.plugin_env for each in self.kubelet.containers(uid) if each.container == container)

    def given(self, uid: str, container: str = "main") -> dict[str, set[str]]:
        """By resource, the GPUs of the IDs that the kubelet recorded."""
        held = self.kubelet.allocations()[uid][container]
        return {resource: {device[:12] for device in ids} for resource, ids in held.items()}

    # The Node.

    def inventory(self) -> inventories.Inventory | None:
        text = self.annotation(NAMES.inventory)
        return None if text is None else inventories.decode(text)

    def drift(self) -> plans.Drift:
        text = self.annotation(NAMES.drift)
        return {} if text is None else plans.decode_drift(text)

    def annotation(self, name: str) -> str | None:
        found = self.api.get("nodes", NODE)
        return None if found is None else (found["metadata"].get("annotations") or {}).get(name)

    def events(self, reason: str) -> list[str]:
        return [str(event["message"]) for event in self.api.objects("events") if event.get("reason") == reason]

    # Waiting.

    async def until(self, condition: Callable[[], object], *, seconds: float = PATIENCE) -> None:
        """Wait for something that no event tells; looked at often, with a deadline."""
        async with asyncio.timeout(seconds):
            while not condition():  # noqa: ASYNC110 - three programs are looked at, none of which calls back
                await asyncio.sleep(0.01)


def _container(name: str, limits: dict[str, int], **more: str) -> dict[str, object]:
    amounts = {resource: str(amount) for resource, amount in limits.items()}
    return {"name": name, "image": "i", "resources": {"limits": amounts, "requests": amounts}, **more}


@pytest.fixture
def folder():
    """Short: it holds sockets."""
    path = tempfile.mkdtemp(prefix="tn")
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
async def make_cluster(folder, monkeypatch):
    """Make a node of these GPUs; one at a time, as one process has one driver.

    Waits that only keep a real node from acting on a moment's doubt are short here.
    """
    for module, name, seconds in (
        (settle, "SURE_AFTER", 0.2),
        (settle, "SOON", 0.1),
        (agents, "SYNC_WITHIN", 0.5),
        (leaving, "QUIET", 0.1),
        (monitor, "SETTLE", 0.3),
    ):
        monkeypatch.setattr(module, name, seconds)
    async with AsyncExitStack() as stack:
        files = stack.enter_context(ExitStack())

        async def make(*gpus, config="", agent=True, list_rate=1000.0, list_burst=100):
            cards = [FakeGpu.of(gpu) if isinstance(gpu, str) else gpu for gpu in gpus or ("A100-80GB", "A100-80GB")]
            nvml = files.enter_context(FakeNvml.create(Path(folder) / "nvml", gpus=cards))
            monkeypatch.setenv(STATE_VARIABLE, str(nvml.path))
            api = await stack.enter_async_context(FakeApiServer())
            settings = parse_config(config)
            cluster = Cluster(folder, stack, api, nvml, settings, list_rate=list_rate, list_burst=list_burst)
            await cluster.start_kubelet()
            stack.push_async_callback(cluster.kill_agent)
            if agent:
                await cluster.start_agent()
            return cluster

        yield make
