"""A number of zero GPUs switches a container's request off; what stands beside it would keep the pod waiting for ever."""

import pytest

ANNOTATION = "tessera.dev/request"


def pod(*limits, **spec):
    containers = [{"name": f"c{at}", "resources": {"limits": each}} for at, each in enumerate(limits)]
    return {"metadata": {"name": "p"}, "spec": {"containers": containers, **spec}}


@pytest.mark.parametrize(
    "limits",
    [
        {"nvidia.com/gpu": 0, "nvidia.com/gpumem": 3000},
        {"nvidia.com/gpu": "0", "nvidia.com/gpumem-percentage": "50", "nvidia.com/gpucores": 30},
        {"volcano.sh/vgpu-number": 0, "volcano.sh/vgpu-memory": 1024},
        {"nvidia.com/vgpu-number": 0, "nvidia.com/vgpu-memory": 1024, "nvidia.com/vgpu-cores": 10},
    ],
    ids=str,
)
def test_no_gpu_is_asked_and_nothing_is_left_to_wait_for(admit, limits):
    given = pod(limits | {"cpu": "1"}, {"memory": "1Gi"})
    given["spec"]["containers"][0]["resources"]["requests"] = dict(limits)
    found, outcome = admit(given)
    assert outcome.request is None
    assert found["spec"]["containers"][0]["resources"] == {"limits": {"cpu": "1"}, "requests": {}}
    assert found["spec"]["containers"][1] == given["spec"]["containers"][1]
    assert "annotations" not in found["metadata"]
    assert outcome.warnings == (
        'container "c0": its number of GPUs is 0, so it gets none; removed what stood beside it',
    )
    again, second = admit(found)
    assert (again, second.operations, second.warnings) == (found, (), ())


@pytest.mark.parametrize(
    "limits", [{"nvidia.com/gpu": 0}, {"nvidia.com/gpu": 0, "nvidia.com/gpumem": 0}, {"cpu": 1}], ids=str
)
def test_where_nothing_is_asked_beside_it_the_pod_is_left_as_it_is(admit, limits):
    given = pod(limits, schedulerName="hami-scheduler")
    assert admit(given)[0] == given


def test_a_mirror_pod_is_left_as_it_is(admit):
    given = pod({"nvidia.com/gpu": 0, "nvidia.com/gpumem": 3000})
    given["metadata"]["annotations"] = {"kubernetes.io/config.mirror": "x"}
    assert admit(given)[0] == given
