"""Pods of several containers: init containers, sidecars, resources in random order."""

from __future__ import annotations

from tessera.model.names import names

UNITS, PERCENT, COMPUTE = names().tickets


async def test_each_container_follows_its_own_plan_in_whatever_order_its_resources_come(make_cluster):
    cluster = await make_cluster("A100-80GB", "A100-80GB", "A100-80GB")
    for number in range(6):
        plan = {"a": [(number % 3, 16, 10)], "b": [((number + 1) % 3, 8, 5)]}
        containers = [("a", {UNITS: 16, COMPUTE: 10}), ("b", {UNITS: 8, COMPUTE: 5})]
        uid = cluster.pod(f"p{number}", containers=containers, plan=plan)
        await cluster.running_pod(f"p{number}")
        for container, ((gpu, units, compute),) in plan.items():
            assert {UNITS: {cluster.gpu(gpu)}, COMPUTE: {cluster.gpu(gpu)}} == cluster.given(uid, container)
            env = cluster.env(uid, container)
            assert [cluster.nvml.gpus()[gpu].uuid, str(units * (256 << 20)), str(compute)] == [
                env["TESSERA_GPU_IDS"],
                env["TESSERA_GPU_MEMORY_BYTES"],
                env["TESSERA_GPU_COMPUTE"],
            ]
    allocations = [call.resource for call in cluster.kubelet.calls if call.method == "Allocate"]
    assert {UNITS, COMPUTE} == {allocations[number] for number in range(0, len(allocations), 2)}, "one order only"


async def test_an_init_containers_ids_go_to_the_next_container(make_cluster):
    cluster = await make_cluster()
    uid = cluster.pod(
        "p",
        init=[("warm", {UNITS: 40, COMPUTE: 20})],
        containers=[("main", {UNITS: 30, COMPUTE: 20}), ("second", {UNITS: 20})],
        plan={"warm": [(1, 40, 20)], "main": [(1, 30, 20)], "second": [(1, 20, 0)]},
    )
    await cluster.running_pod("p")
    for container in ("main", "second"):
        assert all(gpus == {cluster.gpu(1)} for gpus in cluster.given(uid, container).values())
    held = cluster.kubelet.allocations()[uid]
    assert held["main"][UNITS] <= held["warm"][UNITS]
    assert not held["main"][UNITS] & held["second"][UNITS]
    assert str(30 * (256 << 20)) == cluster.env(uid, "main")["TESSERA_GPU_MEMORY_BYTES"]
    assert str(20 * (256 << 20)) == cluster.env(uid, "second")["TESSERA_GPU_MEMORY_BYTES"]
    assert str(40 * (256 << 20)) == cluster.env(uid, "warm")["TESSERA_GPU_MEMORY_BYTES"]
    # It holds the larger of the two phases, as Kubernetes counts.
    assert cluster.agent.board.ledger.held(cluster.gpu(1)).units == 50
    assert cluster.drift() == {}


async def test_a_sidecar_keeps_its_ids(make_cluster):
    cluster = await make_cluster()
    uid = cluster.pod(
        "p",
        sidecars=[("proxy", {UNITS: 8})],
        containers=[("main", {UNITS: 8})],
        plan={"proxy": [(0, 8, 0)], "main": [(1, 8, 0)]},
    )
    await cluster.running_pod("p")
    assert {cluster.gpu(0)} == cluster.given(uid, "proxy")[UNITS]
    assert {cluster.gpu(1)} == cluster.given(uid, "main")[UNITS]
    assert [cluster.agent.board.ledger.held(cluster.gpu(index)).units for index in (0, 1)] == [8, 8]


async def test_percent_and_whole_gpus(make_cluster):
    cluster = await make_cluster()
    half = cluster.pod("half", {PERCENT: 50, COMPUTE: 50}, plan={"main": [(1, 158, 50)]})
    whole = cluster.pod("whole", {PERCENT: 100, COMPUTE: 100}, plan={"main": [(0, 316, 100)]})
    await cluster.running_pod("half")
    await cluster.running_pod("whole")
    assert cluster.given(half)[PERCENT] == {cluster.gpu(1)}
    assert cluster.given(whole) == {PERCENT: {cluster.gpu(0)}, COMPUTE: {cluster.gpu(0)}}
    assert str(158 * (256 << 20)) == cluster.env(half)["TESSERA_GPU_MEMORY_BYTES"]
    assert str(316 * (256 << 20)) == cluster.env(whole)["TESSERA_GPU_MEMORY_BYTES"]
    assert cluster.drift() == {}


async def test_a_container_that_restarts_keeps_its_slice_without_being_given_it_again(make_cluster):
    cluster = await make_cluster()
    uid = cluster.pod("p", {UNITS: 8}, plan={"main": [(0, 8, 0)]})
    await cluster.running_pod("p")
    before = cluster.kubelet.allocations()[uid]
    calls = sum(call.method == "Allocate" for call in cluster.kubelet.calls)
    cluster.kubelet.restart_container(uid, "main")
    assert await cluster.kubelet.settled(uid) == {"main": ""}
    await cluster.until(lambda: cluster.kubelet.containers(uid)[0].restart_count == 1)
    assert before == cluster.kubelet.allocations()[uid]
    assert calls == sum(call.method == "Allocate" for call in cluster.kubelet.calls)
