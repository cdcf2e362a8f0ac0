"""A cluster on the fake API server, with an extender that can be stopped at any moment and started anew."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from random import Random
from typing import TypeVar

import aiohttp
import msgspec
import pytest
from prometheus_client import CollectorRegistry

from tessera.daemon.flags import Address
from tessera.kube.client import ApiClient
from tessera.kube.clock import SystemClock
from tessera.kube.config import StaticConnection
from tessera.kube.resources import NODES, PODS
from tessera.kube.watch import WatchCache, WatchTiming
from tessera.model.config import Config
from tessera.model.guarantee import Guarantee, Guarantees
from tessera.model.inventory import Gpu, Inventory, MigInstance, encode
from tessera.model.names import names
from tessera.model.node import Node
from tessera.model.pod import Pod
from tessera.model.quantity import MIB
from tessera.model.request import ContainerRequest, PodRequest
from tessera.model.request import encode as encode_request
from tessera.model.tickets import tickets
from tessera.testing.apiserver import FakeApiServer
from webhook.extender import telling
from webhook.extender.bind import Binder
from webhook.extender.candidates import Candidates
from webhook.extender.cluster import Cluster
from webhook.extender.filter import Filter
from webhook.extender.http import Limits
from webhook.extender.metrics import Metrics
from webhook.extender.preemptor import Preemptor
from webhook.extender.scaler import Scaler
from webhook.extender.server import Extender
from webhook.extender.waiting import Waiting
from webhook.extender.wake import Waker

T = TypeVar("T")

UNIT = 256 * MIB
NAMES = names()


class ManualClock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return 1_700_000_000.0 + self.now

    async def sleep(self, seconds: float) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers.append((self.now + seconds, future))
        await future

    async def advance(self, seconds: float, *, step: float = 1.0) -> None:
        """Let time pass in steps, and everybody who wakes do what they do."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + step)
            await self.turn()

    async def turn(self) -> None:
        """Wake who is due and let the loop run until it is quiet."""
        for due, future in list(self._sleepers):
            if due <= self.now:
                self._sleepers.remove((due, future))
                if not future.done():
                    future.set_result(None)
        for _ in range(20):
            await asyncio.sleep(0)


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
async def time_passes(clock) -> AsyncIterator[None]:
    """Time goes on by itself, so slowly that nothing that is kept for a minute is ever over."""

    async def go_on() -> None:
        while True:
            await asyncio.sleep(0.005)
            await clock.advance(0.01)

    task = asyncio.create_task(go_on())
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def make_inventory(*sizes: int, first: int = 0, state: str = "serving", lingering: tuple[str, ...] = (), **gpu) -> str:
    """An inventory annotation: GPUs of so many units, numbered from `first`."""
    mig = tuple(MigInstance(id=f"g{n}", profile=p) for n, p in enumerate(gpu.pop("mig", ())))
    gpus = tuple(
        Gpu(
            id=f"{first + n:012x}",
            uuid=f"GPU-{first + n:012x}-0000-0000",
            index=n,
            model=gpu.get("model", "NVIDIA A100"),
            memory=size * UNIT,
            units=size,
            guarantee=Guarantees(memory=gpu.get("memory", Guarantee.WATCHED)),
            health=gpu.get("health", "ok"),
            held=gpu.get("held", 0),
            mig=mig,
        )
        for n, size in enumerate(sizes)
    )
    return encode(Inventory(v=1, unit=gpu.get("unit", UNIT), gpus=gpus, state=state, lingering=lingering))


_numbers = itertools.count(1)


def make_node(
    name: str, *sizes: int, inventory: str | None = None, ready: bool = True, spec: dict | None = None, **gpu
) -> dict:
    """A Node object with GPUs of so many units."""
    labels = gpu.pop("labels", {})
    allocatable = gpu.pop("allocatable", None)
    annotations = {**gpu.pop("annotations", {})}
    if sizes and inventory is None:
        inventory = make_inventory(*sizes, first=gpu.pop("first", next(_numbers) * 64), **gpu)
    if inventory is not None:
        annotations[NAMES.inventory] = inventory
    if allocatable is None:
        allocatable = {NAMES.memory_units: str(sum(sizes))} if annotations.get(NAMES.inventory) else {}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": labels, "annotations": annotations},
        "spec": spec or {},
        "status": {
            "allocatable": {"cpu": "32", **allocatable},
            "capacity": {"cpu": "32", **allocatable},
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
        },
    }


def make_pod(
    name: str,
    *,
    gpus: int = 1,
    units: int | None = None,
    percent: int | None = None,
    compute: int | None = None,
    whole: bool = False,
    mig: str | None = None,
    containers: dict[str, dict] | None = None,
    init: tuple[str, ...] = (),
    uid: str | None = None,
    node: str = "",
    phase: str = "Pending",
    annotations: dict[str, str] | None = None,
    labels: dict[str, str] | None = None,
    spec: dict | None = None,
) -> dict:
    """A pod as admission leaves it: tickets in limits and requests, the request in an annotation."""
    if containers is None:
        one = {"units": units, "percent": percent, "compute": compute, "whole": whole, "mig": mig, "gpus": gpus}
        containers = {"main": one} if any((units, percent, compute, whole, mig)) else {"main": {}}
    asked, made = {}, {"initContainers": [], "containers": []}
    for title, amounts in containers.items():
        container = {"name": title, "image": "busybox"}
        if amounts:
            request = ContainerRequest(
                gpus=amounts.get("gpus", 1),
                memory=amounts["units"] * UNIT if amounts.get("units") else None,
                memory_percent=amounts.get("percent"),
                compute=amounts.get("compute"),
                whole=amounts.get("whole", False),
                mig=amounts.get("mig"),
                init=title in init,
            )
            asked[title] = request
            counts = {ticket: str(count) for ticket, count in tickets(request, NAMES).items()}
            container["resources"] = {"limits": counts, "requests": counts}
        made["initContainers" if title in init else "containers"].append(container)
    notes = dict(annotations or {})
    if asked:
        notes[NAMES.request] = encode_request(PodRequest(v=1, dialect="tessera", containers=asked))
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": "default",
            "uid": uid or f"uid-{name}",
            "annotations": notes,
            "labels": labels or {},
        },
        "spec": {"schedulerName": "tessera-scheduler", **made, **({"nodeName": node} if node else {}), **(spec or {})},
        "status": {"phase": phase},
    }


class Told:
    """Events that were emitted, as (reason, object, message)."""

    def __init__(self) -> None:
        self.all: list[tuple[str, str, str]] = []

    def emit(self, regarding, *, reason, message, warning=False):
        assert warning == (reason in ("PreemptionRefused", "KubeletRefuses"))
        self.all.append((reason, regarding.name, message))

    def of(self, name: str) -> list[str]:
        return [reason for reason, there, _ in self.all if there == name]


@dataclass
class Rig:
    """One extender on one API server; what a test looks at and turns."""

    server: FakeApiServer
    clock: object
    config: Config = field(default_factory=Config)
    limits: Limits | None = None
    _stack: AsyncExitStack | None = None
    _tasks: list[asyncio.Task] = field(default_factory=list)

    async def start(self) -> Rig:
        """Start an extender that knows nothing, and wait until it is in step."""
        self._stack = AsyncExitStack()
        system, rng = SystemClock(), Random(1)
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry)
        self.client = await self._stack.enter_async_context(
            ApiClient(StaticConnection(self.server.url), clock=system, rng=rng)
        )
        timing = WatchTiming(backoff=0.01, backoff_cap=0.05)
        self.pods = WatchCache(self.client, PODS, msgspec.json.Decoder(Pod), clock=system, rng=rng, timing=timing)
        self.nodes = WatchCache(self.client, NODES, msgspec.json.Decoder(Node), clock=system, rng=rng, timing=timing)
        self.waiting = Waiting(clock=self.clock, metrics=self.metrics)
        self.waker = Waker(
            self.client, self.nodes.get, names=NAMES, clock=self.clock, metrics=self.metrics, waiting=self.waiting
        )
        self.events = Told()
        self.cluster = Cluster(
            self.pods,
            self.nodes,
            names=NAMES,
            clock=self.clock,
            grew=self.waker.grew,
            settled=self.waiting.settled,
            refused=telling.Told(self.events, count=self.metrics.refused).refused,
        )
        self.metrics.refusing.set_function(lambda: len(self.cluster.refusals))
        self.waker.look_at(lambda node, pod: self.cluster.keeper.states(node, uid=pod.uid, priority=pod.priority))
        self.pods.subscribe(self.cluster.pod_changed)
        self.nodes.subscribe(self.cluster.node_changed)
        self.filter_ = Filter(
            self.cluster, config=lambda: self.config, metrics=self.metrics, rejected=self.waiting.rejected
        )
        self.binder = Binder(
            self.cluster, self.client, config=lambda: self.config, clock=self.clock, metrics=self.metrics
        )
        candidates = Candidates(self.cluster, clock=self.clock)
        self.extender = Extender(
            self.cluster,
            self.filter_,
            self.binder,
            candidates=candidates,
            config=lambda: self.config,
            metrics=self.metrics,
        )
        self.leads = True
        self.preemptor = Preemptor(
            self.cluster,
            self.client,
            self.waiting,
            candidates=candidates,
            config=lambda: self.config,
            leading=lambda: self.leads,
            events=self.events,
            clock=self.clock,
            metrics=self.metrics,
        )
        self.scaler = Scaler(
            self.cluster,
            self.client,
            self.waiting,
            config=lambda: self.config,
            leading=lambda: self.leads,
            events=self.events,
            clock=self.clock,
            metrics=self.metrics,
        )
        self.pods.subscribe(self.scaler.pod_changed)
        self.listener = await self._stack.enter_async_context(
            self.extender.listener(Address("127.0.0.1", 0), limits=self.limits)
        )
        self.session = await self._stack.enter_async_context(aiohttp.ClientSession())
        self._tasks = [asyncio.create_task(self.pods.run()), asyncio.create_task(self.nodes.run())]
        await asyncio.gather(self.pods.synced.wait(), self.nodes.synced.wait())
        await self.caught_up()
        return self

    async def stop(self) -> None:
        """Stop it at once: whatever is under way is dropped."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.binder.close()
        await self._stack.aclose()

    @property
    def url(self) -> str:
        return f"http://{self.listener.address}"

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until something holds, as the caches bring it."""
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110  what it waits for comes over a socket
                await asyncio.sleep(0.002)

    async def soon(self, something: Awaitable[T]) -> T:
        """Await something that a fault of ours could keep from happening."""
        async with asyncio.timeout(10):
            return await something

    async def caught_up(self) -> None:
        """Wait until the caches hold what the server holds."""

        def same() -> bool:
            for plural, cache in (("pods", self.pods), ("nodes", self.nodes)):
                there = {
                    (o["metadata"].get("namespace", ""), o["metadata"]["name"]): o["metadata"]["resourceVersion"]
                    for o in self.server.objects(plural)
                }
                here = {(o.metadata.namespace, o.metadata.name): o.metadata.resource_version for o in cache}
                if there != here:
                    return False
            return True

        await self.until(same)

    async def post(self, path: str, body: object) -> dict:
        """POST JSON and read JSON; an HTTP error is a failure of the test."""
        async with self.session.post(self.url + path, data=json.dumps(body)) as answer:
            assert answer.status == 200, await answer.text()
            return await answer.json()

    async def filter(self, pod: dict, *nodes: str) -> dict:
        """Filter by names; all of the server's nodes where none are given."""
        names_ = list(nodes) or [node["metadata"]["name"] for node in self.server.objects("nodes")]
        return await self.post("/filter", {"Pod": pod, "Nodes": None, "NodeNames": names_})

    async def bind(self, pod: dict, node: str) -> str:
        """Bind and return the error, "" for success."""
        meta = pod["metadata"]
        answer = await self.post(
            "/bind",
            {"PodName": meta["name"], "PodNamespace": meta["namespace"], "PodUID": meta["uid"], "Node": node},
        )
        return answer["Error"]

    async def schedule(self, pod: dict) -> str:
        """Filter and bind as kube-scheduler does; the node, or "" where there is none."""
        chosen = (await self.filter(pod))["NodeNames"]
        if not chosen:
            return ""
        assert len(chosen) == 1
        error = await self.bind(pod, chosen[0])
        assert not error, error
        return chosen[0]

    def plan(self, name: str) -> dict:
        """The plan annotation of a pod, as it stands in the API."""
        return json.loads(self.server.get("pods", name, "default")["metadata"]["annotations"][NAMES.plan])

    def put_pod(self, name: str, **asked) -> dict:
        """Create a pod in the API."""
        return self.server.put("pods", make_pod(name, **asked))

    def put_node(self, name: str, *sizes: int, **facts) -> dict:
        """Create or replace a node in the API."""
        return self.server.put("nodes", make_node(name, *sizes, **facts))


@pytest.fixture
async def server() -> AsyncIterator[FakeApiServer]:
    async with FakeApiServer() as fake:
        yield fake


@pytest.fixture
async def new_rig(server, clock) -> AsyncIterator[Callable]:
    """Start extenders on the server; all are stopped at the end."""
    rigs: list[Rig] = []

    async def start(*, config: Config | None = None, limits: Limits | None = None) -> Rig:
        rig = Rig(server, clock, config or Config(), limits)
        rigs.append(rig)
        return await rig.start()

    yield start
    for rig in rigs:
        await rig.stop()


@pytest.fixture
async def rig(new_rig) -> Rig:
    return await new_rig()


@pytest.fixture(scope="session")
def node() -> Callable[..., dict]:
    return make_node


@pytest.fixture(scope="session")
def pod() -> Callable[..., dict]:
    return make_pod


@pytest.fixture(scope="session")
def inventory() -> Callable[..., str]:
    return make_inventory
