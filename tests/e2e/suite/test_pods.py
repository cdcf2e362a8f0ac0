"""Pods of several shapes: each container has the GPU of its plan, on a real kubelet."""

from __future__ import annotations

import json

from product import pods, truth
from product.programs import COMPUTE, PLAN, REQUEST, UNITS


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


def test_twenty_equal_pods_at_once_get_each_its_own(space):
    names = [f"p{number}" for number in range(20)]

    space.run(*(pods.pod(name, {"gpu-memory": "8Gi", "gpu-compute": 10}) for name in names), seconds=90)

    space.just()
    space.nobody_was_refused()


def test_twenty_unequal_pods_at_once_get_each_its_own(space):
    sizes = [(1 + number % 7, 5 * (number % 4)) for number in range(20)]
    wanted = [
        pods.pod(f"p{number}", {"gpu-memory": f"{memory}Gi", **({"gpu-compute": compute} if compute else {})})
        for number, (memory, compute) in enumerate(sizes)
    ]

    space.run(*wanted, seconds=90)

    space.just()
    space.nobody_was_refused()


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


def test_a_pod_that_does_not_fit_waits_with_a_reason_and_runs_when_a_slice_is_free(space):
    space.run(*(pods.pod(f"full{number}", {"gpu": 1}) for number in range(4)))
    space.create(pods.pod("waits", {"gpu-memory": "8Gi"}))
    space.waiting("waits")

    space.delete("full2")

    space.running("waits", seconds=20)
    assert [each for each in space.events("waits") if each.startswith("FailedScheduling") and "GPU" in each]
    space.just()


def test_a_freed_slice_is_used_again(space):
    for number in range(3):
        space.run(pods.pod(f"p{number}", {"gpu": 4}))
        space.just()
        space.delete(f"p{number}")
        space.gone(f"p{number}")
