"""When a slice is free again, and when it isn't yet."""

from __future__ import annotations

import uuid

from tessera.model.names import names

UNITS, PERCENT, COMPUTE = names().tickets


def held(cluster, index):
    return cluster.agent.board.ledger.held(cluster.gpu(index)).units


async def test_a_pod_that_ends_frees_its_slice_and_the_next_one_gets_it(make_cluster):
    cluster = await make_cluster()
    for number in range(3):
        name = f"p{number}"
        uid = cluster.pod(
            name,
            {UNITS: 300},
            plan={"main": [(0, 300, 0)]},
            annotations={"tessera.test/run-seconds": "0.05"},
        )
        await cluster.until(lambda name=name: cluster.phase(name) in {"Succeeded", "Failed"})
        assert cluster.phase(name) == "Succeeded", cluster.message(name)
        assert uid not in cluster.drift()
    await cluster.until(lambda: held(cluster, 0) == 0)


async def test_a_rejected_pod_keeps_nothing(make_cluster):
    cluster = await make_cluster()
    cluster.pod("full", {UNITS: 200}, plan={"main": [(0, 200, 0)]})
    cluster.pod("full1", {UNITS: 300}, plan={"main": [(1, 300, 0)]})
    await cluster.running_pod("full")
    await cluster.running_pod("full1")
    # Its first container fits, its second nowhere: the kubelet rejects the pod when the first has been given already.
    cluster.pod(
        "p",
        containers=[("a", {UNITS: 50}), ("b", {UNITS: 100})],
        plan={"a": [(0, 50, 0)], "b": [(0, 100, 0)]},
    )
    await cluster.rejected("p")
    await cluster.until(lambda: held(cluster, 0) == 200)
    cluster.pod("q", {UNITS: 110}, plan={"main": [(0, 110, 0)]})
    await cluster.running_pod("q")
    assert cluster.drift() == {}


async def test_a_pod_deleted_by_force_lingers_until_its_containers_have_ended(make_cluster):
    cluster = await make_cluster()
    uid = str(uuid.uuid4())
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "p",
            "namespace": "default",
            "uid": uid,
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {"nodeName": "n1", "containers": [{"name": "main", "resources": {"limits": {UNITS: "300"}}}]},
        "status": {"phase": "Running", "qosClass": "BestEffort"},
    }
    # The node's own loop is stopped, so that the test decides when containers end.
    for loop in cluster.node._loops:
        loop.cancel()
    cluster.api.put("pods", pod)
    await cluster.until(lambda: cluster.agent.pods.by_uid(uid))
    await cluster.kubelet.admit(pod)
    await cluster.kubelet.settled(uid)
    assert held(cluster, 0) == 300
    cluster.api.remove("pods", "p", "default")
    await cluster.kubelet.remove(uid, lingering=True)
    await cluster.until(lambda: cluster.inventory().lingering == (uid,))
    # The kubelet counts its IDs free; ours are withheld, and so are the other view's.
    await cluster.until(lambda: cluster.kubelet.capacity().allocatable[UNITS] == 632 - 300)
    assert held(cluster, 0) == 300
    again = {**pod, "metadata": {**pod["metadata"], "name": "q", "uid": str(uuid.uuid4())}}
    cluster.api.put("pods", again)
    await cluster.until(lambda: cluster.agent.pods.by_uid(again["metadata"]["uid"]))
    admission = await cluster.kubelet.admit(again)
    assert admission.admitted
    assert cluster.given(again["metadata"]["uid"])[UNITS] == {cluster.gpu(1)}
    cluster.kubelet.reap(uid)
    await cluster.until(lambda: cluster.inventory().lingering == ())
    assert held(cluster, 0) == 0
    await cluster.until(lambda: cluster.kubelet.capacity().allocatable[UNITS] == 632)


async def test_a_pod_that_uses_more_than_its_slice_is_named(make_cluster):
    cluster = await make_cluster()
    uid = cluster.pod("greedy", {UNITS: 4}, plan={"main": [(0, 4, 0)]})
    await cluster.running_pod("greedy")
    (record,) = cluster.kubelet.containers(uid)
    cluster.nvml.add_process(0, record.pid, memory=3 << 30)
    await cluster.until(lambda: cluster.events("SliceExceeded"))
    assert 'container "main" uses 3 GiB' in cluster.events("SliceExceeded")[0]
