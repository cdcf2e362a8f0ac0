"""A kubelet, a device plugin that is killed, kube-scheduler and a ReplicaSet beside the extender: no storm, and all run."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from random import Random

import pytest

from tessera.kube.clock import SystemClock
from tessera.model.names import names
from tessera.testing.kubelet import ApiClient, FakeKubelet, KubeletNode, NodeSettings, Plugin, Settings
from tessera.testing.scheduler import FakeScheduler, SchedulerSettings

NAMES = names()
PODS = 30


@pytest.fixture
def clock():
    return SystemClock()


@pytest.fixture
def directory():
    """Sockets live here, so its path is short."""
    path = tempfile.mkdtemp(prefix="tk")
    yield path
    shutil.rmtree(path)


@pytest.fixture
async def plugin(directory, server, inventory):
    """The agent of node n1, which its kubelet and the API server know; a test stops and starts it."""
    settings = NodeSettings(name="n1", annotations={NAMES.inventory: inventory(64, first=1)}, lease_period=None)
    async with ApiClient(server.url) as api:
        kubelet = FakeKubelet(directory, settings=Settings(node="n1", startup_delay=0, list_rate=1e6))
        node = KubeletNode(kubelet, api, settings=settings)
        await node.start()
        made = Plugin(directory, NAMES.memory_units, [f"{1:012x}-m{number:03d}" for number in range(64)])
        await made.start()
        await kubelet.wait_serving(NAMES.memory_units, 64)
        await node.set_ready(ready=True)
        yield made
        await made.stop()
        await node.stop()
        await kubelet.close()


@pytest.fixture
async def running(plugin, rig):
    """Everything runs by itself; `plugin` was there before the extender saw the node."""
    assert plugin.streams
    settings = SchedulerSettings(
        names=frozenset({"tessera-scheduler"}),
        extender=rig.url,
        managed="tessera.dev/",
        backoff=0.01,
        most_backoff=0.05,
    )
    scheduler = FakeScheduler(rig.client, settings, clock=rig.clock, rng=Random(1))
    jobs = [asyncio.create_task(job) for job in (rig.waker.run(), rig.cluster.run())]
    async with scheduler.running():
        yield rig
    for job in jobs:
        job.cancel()
    await asyncio.gather(*jobs, return_exceptions=True)


def phases(rig, phase):
    return [pod for pod in rig.server.objects("pods") if pod["status"]["phase"] == phase]


async def replace(rig, pod):
    """A ReplicaSet: whatever has failed is made again at once."""
    made = 0
    async with ApiClient(rig.server.url) as api:
        while True:
            there = [each for each in rig.server.objects("pods") if each["status"]["phase"] != "Failed"]
            for _ in range(PODS - len(there)):
                new = pod(f"p{made}", units=1)
                del new["metadata"]["uid"], new["status"]
                await api.create("/api/v1/namespaces/default/pods", new)
                made += 1
            await asyncio.sleep(0.01)


async def test_an_agent_that_is_killed_in_a_burst(running, plugin, pod):
    await plugin.stop()
    controller = asyncio.create_task(replace(running, pod))
    await running.until(lambda: len(running.waiting) == PODS)
    (why,) = {pod["status"]["message"] for pod in phases(running, "Failed")}
    assert "no healthy devices present; cannot allocate unhealthy devices" in why
    assert running.cluster.ledger.closed("n1") is None, "the API server has not heard of it"
    await plugin.start()
    await running.until(lambda: len(phases(running, "Running")) == PODS)
    controller.cancel()
    await asyncio.gather(controller, return_exceptions=True)
    assert len(phases(running, "Failed")) <= 2 * PODS, "those that were on their way, and who was tried"
    assert len(running.cluster.refusals) == 0
