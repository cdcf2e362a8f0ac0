"""What is certain to be wrong ends in a message that the pod's author can act on."""

from __future__ import annotations

import pytest

from tessera.model.names import names
from tessera.testing.kubelet import AllocationError

UNITS, PERCENT, COMPUTE = names().tickets


async def test_a_pod_that_fits_on_no_single_gpu_is_refused_with_what_there_is(make_cluster):
    cluster = await make_cluster()
    for index in (0, 1):
        cluster.pod(f"full{index}", {UNITS: 300}, plan={"main": [(index, 300, 0)]})
        await cluster.running_pod(f"full{index}")
    cluster.pod("p", {UNITS: 32})
    message = await cluster.rejected("p")
    assert "tessera: pod default/p, container main: no GPU of this node can serve it" in message
    assert "needs 32 units" in message


async def test_two_memory_views_in_one_container_make_no_sense(make_cluster):
    cluster = await make_cluster()
    cluster.pod("p", {UNITS: 8, PERCENT: 10})
    assert "keep one of the two" in await cluster.rejected("p")


async def test_no_id_is_given_twice_when_the_kubelet_loses_its_reservations(make_cluster):
    """What is in flight while the kubelet purges a finished pod counts as free (kubernetes PR 137534)."""
    cluster = await make_cluster()
    cluster.kubelet.faults.lose_reservations = True
    uids = [cluster.pod(f"p{n}", {UNITS: 40, COMPUTE: 10}, plan={"main": [(n % 2, 40, 10)]}) for n in range(8)]
    for number in range(8):
        await cluster.running_pod(f"p{number}")
    held = cluster.kubelet.allocations()
    for resource in (UNITS, COMPUTE):
        ids = [device for uid in uids for device in held[uid]["main"][resource]]
        assert len(set(ids)) == len(ids)
    for index in (0, 1):
        total = cluster.agent.board.ledger.held(cluster.gpu(index))
        assert (total.units, total.compute) == (160, 40)


async def test_ids_that_another_pod_holds_are_refused_at_allocate(make_cluster):
    cluster = await make_cluster()
    cluster.pod("p", {UNITS: 8}, plan={"main": [(0, 8, 0)]})
    await cluster.running_pod("p")
    endpoint = cluster.kubelet._run.manager.endpoints[UNITS].reach()
    taken = [device for owners in cluster.kubelet.allocations().values() for device in owners["main"][UNITS]]
    with pytest.raises(AllocationError, match="default/p, container main holds"):
        await endpoint.allocate(taken)


async def test_ids_on_more_gpus_than_asked_are_refused_at_allocate(make_cluster):
    cluster = await make_cluster()
    endpoint = cluster.kubelet._run.manager.endpoints[UNITS].reach()
    with pytest.raises(AllocationError, match="where 1 GPU with equal parts are asked"):
        await endpoint.allocate([f"{cluster.gpu(0)}-m000", f"{cluster.gpu(1)}-m000"])


async def test_ids_that_are_not_ours_are_refused(make_cluster):
    cluster = await make_cluster()
    endpoint = cluster.kubelet._run.manager.endpoints[UNITS].reach()
    for ids in (["nonsense"], [f"{cluster.gpu(0)}-c00"], [f"{cluster.gpu(0)}-m999"], []):
        with pytest.raises(AllocationError, match="tessera:"):
            await endpoint.allocate(ids)


async def test_a_guarantee_that_cannot_be_kept_stops_the_container_until_it_can(make_cluster):
    cluster = await make_cluster()
    uid = cluster.pod("p", {UNITS: 8}, plan={"main": [(0, 8, 0)]}, annotations={names().guarantee: "kernel"})
    await cluster.until(lambda: cluster.events("SliceRefused"))
    assert "asks for the memory guarantee kernel" in cluster.events("SliceRefused")[0]
    await cluster.until(lambda: "kernel" in cluster.kubelet.pod(uid).waiting.get("main", ""))
    # The user gives in.
    stored = cluster.api.get("pods", "p", "default")
    stored["metadata"]["annotations"].pop(names().guarantee)
    cluster.api.put("pods", stored)
    await cluster.running_pod("p")
