"""The API server's door against the fake API server, with a clock that never waits."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest

from tessera.kube.changes import Added, Change, Deleted, Modified
from tessera.kube.client import ApiClient
from tessera.kube.config import StaticConnection
from tessera.kube.resources import PODS
from tessera.kube.watch import WatchCache
from tessera.model.pod import Pod
from tessera.testing.apiserver import FakeApiServer

PATIENCE = 10.0


class ManualClock:
    """Time that passes only where somebody sleeps; every sleep is written down and takes no time."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now + 1_700_000_000

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


class Recorder:
    """A subscriber that keeps what it hears, for tests to wait for."""

    def __init__(self) -> None:
        self.changes: list[Change[Pod]] = []
        self._heard = asyncio.Event()

    def __call__(self, change: Change[Pod]) -> None:
        self.changes.append(change)
        self._heard.set()

    async def wait(self, count: int) -> list[Change[Pod]]:
        async with asyncio.timeout(PATIENCE):
            while len(self.changes) < count:
                self._heard.clear()
                await self._heard.wait()
        return self.changes

    @property
    def words(self) -> list[str]:
        """The changes in short: ``+a``, ``~a``, ``-a`` (the end was seen), ``?a`` (it was not)."""
        short = []
        for change in self.changes:
            match change:
                case Added(new):
                    short.append(f"+{new.metadata.name}")
                case Modified(_, new):
                    short.append(f"~{new.metadata.name}")
                case Deleted(old, _, seen):
                    short.append(f"{'-' if seen else '?'}{old.metadata.name}")
        return short


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def api() -> AsyncIterator[FakeApiServer]:
    async with FakeApiServer() as fake:
        yield fake


@pytest.fixture
async def client(api: FakeApiServer, clock: ManualClock) -> AsyncIterator[ApiClient]:
    async with ApiClient(StaticConnection(api.url), clock=clock, rng=random.Random(1), user_agent="test") as made:
        yield made


@pytest.fixture
def put_pod(api: FakeApiServer) -> Callable[..., Any]:
    """Put a pod straight into the fake's store."""

    def put_pod(name: str, *, node: str = "", phase: str = "Pending", **metadata: Any) -> Any:
        spec: dict[str, Any] = {"containers": [{"name": "main", "image": "i"}]}
        if node:
            spec["nodeName"] = node
        return api.put(
            "pods",
            {"metadata": {"name": name, "namespace": "default", **metadata}, "spec": spec, "status": {"phase": phase}},
        )

    return put_pod


@pytest.fixture
async def start(client: ApiClient, clock: ManualClock) -> AsyncIterator[Callable[..., Any]]:
    """Start a watch cache of pods and its recorder; it is stopped with the test."""
    tasks: list[asyncio.Task[None]] = []

    def start(**options: Any) -> tuple[WatchCache[Pod], Recorder, asyncio.Task[None]]:
        decoder = options.pop("decoder", None) or msgspec.json.Decoder(Pod)
        rng = options.pop("rng", None) or random.Random(2)
        cache = WatchCache(client, PODS, decoder, clock=clock, rng=rng, **options)
        recorder = Recorder()
        cache.subscribe(recorder)
        task = asyncio.create_task(cache.run())
        tasks.append(task)
        return cache, recorder, task

    yield start
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
def pod_body() -> Callable[[str], bytes]:
    def pod_body(name: str) -> bytes:
        return json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": name},
                "spec": {"containers": [{"name": "main", "image": "i"}]},
            }
        ).encode()

    return pod_body


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], Any]:
    """Wait for something that nothing announces, with a deadline."""

    async def until(holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not holds():  # noqa: ASYNC110  there is no event for it
                await asyncio.sleep(0)

    return until
