"""Pods of several shapes: each container has the GPU of its plan, on a real kubelet."""

from __future__ import annotations

import json

from product import pods, truth
from product.names import COMPUTE, PLAN, REQUEST, UNITS
from product.space import is_running


def test_a_native_pod_gets_its_slice(space, plan):
    (pod,) = space.run(pods.pod("p", {"gpu-memory": "8Gi", "gpu-compute": 30}))

    limits = pod["spec"]["containers"][0]["resources"]["limits"]
    assert limits == {UNITS: "32", COMPUTE: "30"}
    assert json.loads(pod["metadata"]["annotations"][REQUEST])["containers"]["main"] == {
        "gpus": 1,
        "memory": 8 << 30,
        "compute": 30,
    }
    (piece,) = plan(pod)["main"]
    assert (piece["units"], piece["compute"]) == (32, 30)
    held = truth.pod_resources(space.cluster)["p"]["main"]
    assert {name: len(ids) for name, ids in held.items()} == {UNITS: 32, COMPUTE: 30}
    assert truth.gpus_of(held) == {piece["gpu"]}
    environment = truth.environments(space.cluster, pod)["main"]
    assert environment["TESSERA_GPU_MEMORY_BYTES"] == str(8 << 30)
    assert environment["TESSERA_GPU_COMPUTE"] == "30"
    assert environment["NVIDIA_VISIBLE_DEVICES"] == environment["TESSERA_GPU_IDS"]
    space.just()


def test_init_container_and_sidecar(space, plan):
    (pod,) = space.run(
        pods.pod(
            "p",
            init=[pods.sidecar("side", {"gpu-memory": "1Gi"}), pods.init("first", {"gpu-memory": "2Gi"})],
            containers=[pods.container("main", {"gpu-memory": "4Gi"}), pods.container("plain")],
        )
    )

    assert {len({piece["gpu"] for piece in pieces}) for pieces in plan(pod).values()} == {1}
    assert len({piece["gpu"] for pieces in plan(pod).values() for piece in pieces}) == 1
    found = truth.environments(space.cluster, pod)
    assert {name: each.get("TESSERA_GPU_MEMORY_BYTES") for name, each in found.items()} == {
        "side": str(1 << 30),
        "first": str(2 << 30),
        "main": str(4 << 30),
        "plain": None,
    }
    space.just()


def test_several_gpus_and_a_whole_one(space, plan):
    two, whole = space.run(pods.pod("two", {"gpu": 2, "gpu-memory": "8Gi"}), pods.pod("whole", {"gpu": 1}))

    assert len({piece["gpu"] for piece in plan(two)["main"]}) == 2
    (piece,) = plan(whole)["main"]
    assert piece["whole"]
    assert piece["gpu"] not in {each["gpu"] for each in plan(two)["main"]}
    space.just()


def test_a_pod_with_a_node_name_has_no_plan_and_one_gpu(space):
    """Nobody planned it: the agent chooses, and says so on the Node."""
    (pod,) = space.run(pods.pod("p", {"gpu-memory": "8Gi"}, nodeName=space.cluster.settings.node))

    assert PLAN not in pod["metadata"].get("annotations", {})
    held = truth.pod_resources(space.cluster)["p"]["main"]
    assert {name: len(ids) for name, ids in held.items()} == {UNITS: 32}
    (gpu,) = truth.gpus_of(held)
    environment = truth.environments(space.cluster, pod)["main"]
    assert gpu in environment["TESSERA_GPU_IDS"].replace("-", "")
    space.drift(pod, {"main": [{"gpu": gpu, "units": 32, "compute": 0}]})


def test_a_freed_slice_is_used_again(space):
    for number in range(3):
        space.run(pods.pod(f"p{number}", {"gpu": 4}))
        space.just()
        space.delete(f"p{number}")
        space.gone(f"p{number}")


def test_two_containers_each_with_its_own_slice(space, plan):
    (pod,) = space.run(
        pods.pod(
            "p",
            containers=[
                pods.container("one", {"gpu-memory": "8Gi", "gpu-compute": 30}),
                pods.container("two", {"gpu": 2, "gpu-memory": "4Gi"}),
                pods.container("none"),
            ],
        )
    )

    assert {name: len(pieces) for name, pieces in plan(pod).items()} == {"one": 1, "two": 2}
    held = truth.pod_resources(space.cluster)["p"]
    for name, pieces in plan(pod).items():
        assert truth.gpus_of(held[name]) == {each["gpu"] for each in pieces}
    assert "none" not in held
    assert "TESSERA_GPU_IDS" not in truth.environments(space.cluster, pod)["none"]
    space.just()


def test_a_static_pod_has_a_gpu_and_is_told_of_on_the_node(space):
    """A static pod comes past admission and scheduler: tickets written by hand are all that it can ask with."""
    node = space.cluster.settings.node
    body = pods.pod("static", containers=[pods.container("main", {UNITS: 32})])
    body["metadata"]["namespace"] = space.name
    manifest = space.cluster.settings.manifests / "static.json"
    manifest.write_text(json.dumps(body))
    try:
        space.api.wait(f"{space.path}/static-{node}", is_running, seconds=40)
        pod = space.get(f"static-{node}")
        held = truth.pod_resources(space.cluster)[f"static-{node}"]["main"]
        (gpu,) = truth.gpus_of(held)
        assert gpu in truth.environments(space.cluster, pod)["main"]["TESSERA_GPU_IDS"].replace("-", "")
        space.drift(pod, {"main": [{"gpu": gpu, "units": 32, "compute": 0}]})
        # Who comes next is placed around it.
        space.run(*(pods.pod(f"whole{number}", {"gpu": 1}) for number in range(3)))
        assert all(
            gpu not in truth.gpus_of(truth.pod_resources(space.cluster)[f"whole{each}"]["main"]) for each in range(3)
        )
    finally:
        manifest.unlink()
    space.gone(f"static-{node}", seconds=40)


def test_without_an_extender_each_slice_is_on_one_gpu(space, product):
    """The default scheduler counts the node's tickets; the agent packs, or says why it can't."""
    with product.no_extender():
        space.create(*(pods.pod(f"p{number}", {"gpu-memory": "30Gi"}) for number in range(8)))
        for number in range(8):
            space.running(f"p{number}")
        gpus = [truth.gpus_of(truth.pod_resources(space.cluster)[f"p{number}"]["main"]) for number in range(8)]
        assert all(len(each) == 1 for each in gpus)
        # Two of 30 GiB fit on 79, and none was left that could not be used.
        assert sorted(sum(each == {gpu} for each in gpus) for gpu in set().union(*gpus)) == [2, 2, 2, 2]
        # 4 x 19 GiB are free, and no GPU has 40.
        space.create(pods.pod("big", {"gpu-memory": "40Gi"}))
        space.api.wait(f"{space.path}/big", lambda pod: pod["status"].get("phase") == "Failed")
        status = space.get("big")["status"]
        assert status["reason"] == "UnexpectedAdmissionError"
        assert "GPU" in status["message"]
        assert "160" in status["message"], status["message"]
