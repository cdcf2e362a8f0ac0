"""One agent hands a node over to the next, and no pod notices."""

from __future__ import annotations

import asyncio
import os
from collections import deque

import pytest

from deviceplugin import leaving as leave
from deviceplugin.nvml.facts import GpuProcess
from tessera.model.names import names

UNITS, PERCENT, COMPUTE = names().tickets


def problems(agent):
    """What /readyz says."""
    return {name: reason for name, check in agent.checks.items() if (reason := check()) is not None}


async def test_a_newcomer_waits_for_the_old_agent_and_takes_over_at_once(make_cluster):
    cluster = await make_cluster()
    cluster.pod("p", {UNITS: 16}, plan={"main": [(1, 16, 0)]})
    await cluster.running_pod("p")
    old, old_stop = cluster.running, cluster.stop
    newcomer = await cluster.make_agent(driver=cluster.same_gpus())
    assert newcomer.checks["lock"]() == "warming up", "nobody is to leave for one that isn't warm"
    stop = asyncio.Event()
    running = asyncio.create_task(newcomer.run(stop))
    await cluster.until(lambda: newcomer.pods.synced and newcomer.board.offers)
    await cluster.until(lambda: "another agent holds" in (newcomer.notes["lock"]() or ""))
    # Or a roll-out would wait for the newcomer for ever, and the newcomer for the roll-out.
    assert problems(newcomer) == {}
    assert cluster.kubelet.capacity().allocatable[COMPUTE] == 200
    shown = []
    newcomer.board.ledger.subscribe(lambda: shown.append(problems(newcomer)))
    old_stop.set()
    await old
    cluster.agent, cluster.running, cluster.stop = newcomer, running, stop
    await cluster.until(lambda: all(cluster.kubelet.capacity().allocatable.get(name) for name in (UNITS, COMPUTE)))
    assert "not registered" in shown[0]["lock"], "it has the lock, and the kubelet doesn't know it yet"
    await cluster.until(lambda: problems(newcomer) == {})
    assert newcomer.notes["lock"]() is None
    assert [grant.name for grant in newcomer.board.ledger] == ["p"]
    uid = cluster.pod("after", {UNITS: 16}, plan={"main": [(0, 16, 0)]})
    await cluster.running_pod("after")
    assert cluster.given(uid)[UNITS] == {cluster.gpu(0)}
    await cluster.until(lambda: cluster.inventory().state == "serving")


async def test_a_newcomer_calls_nobody_foreign_while_it_knows_no_slice(make_cluster):
    cluster = await make_cluster()
    uid = cluster.pod("p", {UNITS: 16}, plan={"main": [(1, 16, 0)]})
    await cluster.running_pod("p")
    (record,) = cluster.kubelet.containers(uid)
    driver = cluster.same_gpus()
    driver.processes[cluster.gpu(1)] = (GpuProcess(pid=record.pid, memory=4 << 30),)
    newcomer = await cluster.make_agent(driver=driver)
    ticks = []
    newcomer._source.on_tick(ticks.append)
    held = []
    newcomer.board.subscribe(lambda: held.append([gpu.held for gpu in newcomer.board.gpus.values()]))
    stop = asyncio.Event()
    running = asyncio.create_task(newcomer.run(stop))
    # Three tenths of a second are enough to be foreign here.
    await cluster.until(lambda: newcomer.notes["lock"]() and len(ticks) > 6)
    await cluster.stop_agent()
    cluster.agent, cluster.running, cluster.stop = newcomer, running, stop
    await cluster.serving()
    await cluster.until(lambda: newcomer.gpus.monitor.report.usage)
    assert max(map(max, held)) == 0, "its first word to the kubelet would have withheld what the pod uses"


async def test_a_leaving_agent_serves_the_pod_that_is_planned_for_it(make_cluster):
    cluster = await make_cluster()
    await cluster.node.stop()
    cluster.pod("late", {UNITS: 16}, plan={"main": [(0, 16, 0)]})
    await cluster.until(lambda: len(cluster.agent.pods.all()) == 1)
    leaving = asyncio.create_task(cluster.stop_agent())
    await cluster.until(lambda: cluster.inventory().state == "draining")
    await cluster.node.start()
    await cluster.running_pod("late")
    await leaving
    assert not [name for name in os.listdir(cluster.kubelet.paths.plugins) if name.startswith("tessera-")]


@pytest.mark.parametrize("planned", [True, False])
async def test_a_leaving_agent_serves_all_of_a_containers_tickets(make_cluster, monkeypatch, planned):
    cluster = await make_cluster()
    allocator, prefer = cluster.agent.allocator, cluster.agent.allocator.prefer
    halfway, go_on = asyncio.Event(), asyncio.Event()

    async def slow(resource, *rest):
        if len(cluster.agent.board.ledger):
            halfway.set()
            await go_on.wait()
        return await prefer(resource, *rest)

    monkeypatch.setattr(allocator, "prefer", slow)
    plan = {"plan": {"main": [(0, 16, 10)]}} if planned else {}
    uid = cluster.pod("p", {UNITS: 16, COMPUTE: 10}, **plan)
    await halfway.wait()
    leaving = asyncio.create_task(cluster.stop_agent())
    await cluster.until(lambda: cluster.inventory().state == "draining")
    done, _ = await asyncio.wait([leaving], timeout=0.6)
    assert not done, "the kubelet is in the middle of a container"
    go_on.set()
    await cluster.until(lambda: cluster.phase("p") in {"Running", "Failed"})
    assert cluster.message("p") == ""
    assert set(cluster.given(uid)) == {UNITS, COMPUTE}
    await leaving


async def test_a_pod_that_is_bound_as_the_agent_says_that_it_leaves_is_served(make_cluster, monkeypatch):
    cluster = await make_cluster()
    monkeypatch.setattr(leave, "QUIET", 0.5)
    leaving = asyncio.create_task(cluster.stop_agent())
    await cluster.until(lambda: cluster.inventory().state == "draining")
    # Whoever bound it had not heard yet.
    cluster.pod("late", {UNITS: 16}, plan={"main": [(0, 16, 0)]})
    await cluster.running_pod("late")
    await leaving


async def test_a_roll_out_in_the_middle_of_a_burst_costs_no_pod(make_cluster, monkeypatch):
    monkeypatch.setattr(leave, "QUIET", 0.5)
    cluster = await make_cluster()
    bound = []

    async def schedule():
        """Bind pods as fast as an extender whose view of the Node is a tenth of a second old."""
        views = deque(["serving"] * 10, maxlen=10)
        while len(bound) < 40:
            views.append(cluster.inventory().state)
            if views[0] == "serving":
                number = len(bound)
                bound.append(cluster.pod(f"p{number}", {UNITS: 8, COMPUTE: 4}, plan={"main": [(number % 2, 8, 4)]}))
            await asyncio.sleep(0.01)

    scheduling = asyncio.create_task(schedule())
    for _ in range(2):
        newcomer, stop = await cluster.make_agent(driver=cluster.same_gpus()), asyncio.Event()
        running = asyncio.create_task(newcomer.run(stop))
        await cluster.until(lambda newcomer=newcomer: newcomer.notes["lock"]())
        await cluster.stop_agent()
        cluster.agent, cluster.running, cluster.stop = newcomer, running, stop
        await cluster.serving()
    await scheduling
    for number, uid in enumerate(bound):
        await cluster.running_pod(f"p{number}")
        assert cluster.given(uid) == {name: {cluster.gpu(number % 2)} for name in (UNITS, COMPUTE)}
    assert cluster.drift() == {}


async def test_a_leaving_agent_waits_for_no_api_server(make_cluster, monkeypatch):
    cluster = await make_cluster()
    monkeypatch.setattr(leave, "WITHIN", 0.3)
    never = asyncio.Event()

    async def hangs(*_, **__):
        await never.wait()

    monkeypatch.setattr(cluster.agent._publisher, "publish", hangs)
    await cluster.stop_agent()
    assert not [name for name in os.listdir(cluster.kubelet.paths.plugins) if name.startswith("tessera-")]
