"""Pods without a usable plan: packed by the node's own ledger, and published as drift."""

from __future__ import annotations

from tessera.model.names import names
from tessera.model.plan import PlannedSlice

UNITS, PERCENT, COMPUTE = names().tickets


async def test_pods_without_a_plan_pack_on_one_gpu_and_show_as_drift(make_cluster):
    cluster = await make_cluster("A100-80GB", "A100-80GB", "A100-80GB")
    uids = [cluster.pod(f"p{number}", {UNITS: 32, COMPUTE: 10}) for number in range(4)]
    for number in range(4):
        await cluster.running_pod(f"p{number}")
    gpus = {gpu for uid in uids for gpus in cluster.given(uid).values() for gpu in gpus}
    assert len(gpus) == 1
    (gpu,) = gpus
    piece = (PlannedSlice(gpu=gpu, units=32, compute=10),)
    # What is said of a container grows with its resources: units first, or compute.
    await cluster.until(lambda: cluster.drift() == {uid: {"main": piece} for uid in uids})


async def test_drift_ends_with_the_pod(make_cluster):
    cluster = await make_cluster()
    cluster.pod("p", {UNITS: 32})
    await cluster.until(cluster.drift)
    cluster.api.remove("pods", "p", "default")
    await cluster.until(lambda: not cluster.drift())
    assert cluster.annotation(names().drift) is None


async def test_a_plan_for_another_node_is_not_followed(make_cluster):
    cluster = await make_cluster()
    uid = cluster.pod("p", {UNITS: 8}, plan={"main": [(1, 8, 0)]}, plan_node="elsewhere")
    await cluster.running_pod("p")
    assert {cluster.gpu(0)} == cluster.given(uid)[UNITS]
    await cluster.until(lambda: uid in cluster.drift())


async def test_a_plan_for_a_gpu_that_is_full_gives_another_gpu(make_cluster):
    cluster = await make_cluster()
    cluster.pod("first", {UNITS: 300}, plan={"main": [(1, 300, 0)]})
    await cluster.running_pod("first")
    uid = cluster.pod("second", {UNITS: 32}, plan={"main": [(1, 32, 0)]})
    await cluster.running_pod("second")
    assert {cluster.gpu(0)} == cluster.given(uid)[UNITS]
    await cluster.until(lambda: list(cluster.drift()) == [uid])


async def test_a_broken_plan_is_no_plan(make_cluster):
    cluster = await make_cluster()
    uid = cluster.pod("p", {UNITS: 8}, annotations={names().plan: '{"v":1,"node":'})
    await cluster.running_pod("p")
    await cluster.until(lambda: uid in cluster.drift())


async def test_the_pods_wishes_count_where_it_has_no_plan(make_cluster):
    cluster = await make_cluster("A100-80GB", "T4")
    uid = cluster.pod("p", {UNITS: 8}, annotations={names().gpu_models: "T4"})
    await cluster.running_pod("p")
    assert {cluster.gpu(1)} == cluster.given(uid)[UNITS]


async def test_with_the_api_away_a_static_pod_is_told_by_the_kubelets_own_list(make_cluster):
    cluster = await make_cluster(agent=False)
    await cluster.start_agent(with_api=False, kubelet_pods=True)
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "static-n1",
            "namespace": "kube-system",
            "uid": "0123456789abcdef0123456789abcdef",
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "annotations": {"kubernetes.io/config.source": "file"},
        },
        "spec": {
            "nodeName": "n1",
            "containers": [{"name": "main", "image": "i", "resources": {"limits": {UNITS: "16", COMPUTE: "10"}}}],
        },
    }
    admission = await cluster.kubelet.admit(pod)
    assert admission.admitted, admission.message
    assert await cluster.kubelet.settled("0123456789abcdef0123456789abcdef") == {"main": ""}
    (grant,) = cluster.agent.board.ledger
    assert (grant.uid, grant.name, grant.container) == ("0123456789abcdef0123456789abcdef", "static-n1", "main")
    env = cluster.env(grant.uid)
    assert str(4 << 30) == env["TESSERA_GPU_MEMORY_BYTES"]


async def test_a_pod_that_nobody_can_tell_still_gets_one_gpu_for_both_resources(make_cluster):
    cluster = await make_cluster(agent=False)
    await cluster.start_agent(with_api=False)
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "x", "namespace": "default", "uid": "u-x", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {
            "nodeName": "n1",
            "containers": [{"name": "main", "image": "i", "resources": {"limits": {UNITS: "16", COMPUTE: "10"}}}],
        },
    }
    admission = await cluster.kubelet.admit(pod)
    assert admission.admitted, admission.message
    await cluster.kubelet.settled("u-x")
    given = cluster.given("u-x")
    assert given[UNITS] == given[COMPUTE]
    assert len(given[UNITS]) == 1
    # Both answers carry the GPU, each only the amount that it knows: nothing is left to the kubelet's coin.
    env = cluster.env("u-x")
    assert str(4 << 30) == env["TESSERA_GPU_MEMORY_BYTES"]
    assert env["TESSERA_GPU_COMPUTE"] == "10"
    held = cluster.agent.board.ledger.held(next(iter(given[UNITS])))
    assert (held.units, held.compute) == (16, 10)
