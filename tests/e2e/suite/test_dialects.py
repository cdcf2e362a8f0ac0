"""A pod in each dialect gets what its words mean, on a real API server, scheduler and kubelet."""

from __future__ import annotations

import pytest
from product import pods, truth
from product.names import COMPUTE, PERCENT, UNITS


@pytest.mark.parametrize(
    ("limits", "tickets"),
    [
        ({"gpu-memory": "8Gi", "gpu-compute": 30}, {UNITS: 32, COMPUTE: 30}),
        ({"gpu-memory-percent": 50}, {PERCENT: 50}),
        ({"gpu-compute": 50}, {PERCENT: 50, COMPUTE: 50}),
        ({"gpu": 2, "gpu-memory": "8Gi", "gpu-compute": 30}, {UNITS: 64, COMPUTE: 60}),
        ({"gpu": 1}, {PERCENT: 100, COMPUTE: 100}),
        ({"nvidia.com/gpu": 1, "nvidia.com/gpumem": 8192, "nvidia.com/gpucores": 30}, {UNITS: 32, COMPUTE: 30}),
        ({"aliyun.com/gpu-mem": 8}, {UNITS: 32}),
    ],
)
def test_words_become_tickets_and_tickets_a_slice(*, space, limits, tickets):
    (pod,) = space.run(pods.pod("p", limits))

    found = pod["spec"]["containers"][0]["resources"]
    assert found["limits"] == {name: str(count) for name, count in tickets.items()}
    assert found["requests"] == found["limits"]
    held = truth.pod_resources(space.cluster)["p"]["main"]
    assert {name: len(ids) for name, ids in held.items()} == tickets
    space.just()


def test_aliyun_programs_find_the_variables_that_they_read(space):
    (pod,) = space.run(pods.pod("p", {"aliyun.com/gpu-mem": 8}))

    environment = truth.environments(space.cluster, pod)["main"]
    assert environment["ALIYUN_COM_GPU_MEM_CONTAINER"] == "8"
    assert environment["ALIYUN_COM_GPU_MEM_DEV"] == "80"
    assert environment["ALIYUN_COM_GPU_MEM_POD"] == "8"
    assert environment["ALIYUN_COM_GPU_MEM_IDX"] in {"0", "1", "2", "3"}


def test_a_request_that_contradicts_itself_is_refused_with_the_fix(space):
    status, body = space.api.raw("POST", space.path, pods.pod("p", {"gpu-memory": "8Gi", "gpu-memory-percent": 50}))

    assert 400 <= status < 500
    assert b"container" in body
    assert b"main" in body
    assert b"keep one of the two" in body


def test_a_pod_without_a_gpu_is_left_as_it_is(space):
    wanted = pods.pod("p")
    (pod,) = space.run(wanted)

    assert not [key for key in pod["metadata"].get("annotations", {}) if key.startswith("tessera.dev/")]
    assert "TESSERA_GPU_IDS" not in truth.environments(space.cluster, pod)["main"]
