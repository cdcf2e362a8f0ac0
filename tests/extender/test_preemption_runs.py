"""Scheduler, extender, preemptor and waker together: a pod of high priority gets its GPU, and a small one doesn't steal it."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from tessera.kube.clock import SystemClock
from tessera.model.names import names
from tessera.testing.scheduler import FakeScheduler, SchedulerSettings

NAMES = names()


@pytest.fixture
def clock():
    return SystemClock()


@pytest.fixture
async def running(rig):
    """Everything runs by itself."""
    settings = SchedulerSettings(
        names=frozenset({"tessera-scheduler"}),
        extender=rig.url,
        managed="tessera.dev/",
        backoff=0.01,
        most_backoff=0.05,
    )
    scheduler = FakeScheduler(rig.client, settings, clock=rig.clock, rng=Random(1))
    jobs = [asyncio.create_task(job) for job in (rig.waker.run(), rig.preemptor.run(), rig.cluster.run())]
    async with scheduler.running():
        yield rig
    for job in jobs:
        job.cancel()
    await asyncio.gather(*jobs, return_exceptions=True)


def node_of(rig, name):
    return rig.server.get("pods", name, "default")["spec"].get("nodeName", "")


def ending(rig):
    return [p["metadata"]["name"] for p in rig.server.objects("pods") if p["metadata"].get("deletionTimestamp")]


async def test_high_priority_gets_one_gpu_and_small_ones_do_not_steal_it(running):
    running.put_node("n1", 64, 64, allocatable={"pods": "110", NAMES.memory_units: "128"})
    for name in ("a", "b"):
        running.put_pod(name, units=40, spec={"terminationGracePeriodSeconds": 30})
    await running.until(lambda: node_of(running, "a") and node_of(running, "b"))
    for name in ("a", "b"):
        made = running.server.get("pods", name, "default")
        made["status"]["phase"] = "Running"
        running.server.put("pods", made)
    running.put_pod("high", whole=True, spec={"priority": 100})
    await running.until(lambda: ending(running))
    for number in range(5):
        running.put_pod(f"small-{number}", units=30)
    await running.until(lambda: all(running.waiting.get(f"uid-small-{n}") for n in range(5)))
    (victim,) = ending(running)
    made = running.server.get("pods", victim, "default")
    made["status"]["phase"] = "Succeeded"
    running.server.put("pods", made)
    running.server.remove("pods", victim, "default")
    await running.until(lambda: node_of(running, "high"))
    assert not any(node_of(running, f"small-{number}") for number in range(5))
    assert running.events.of("high") == ["Preempting"]
