"""Priority: kube-scheduler sees node totals only, so room on ONE GPU is made by our preemptor."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from product import pods, truth
from product.space import is_running, plan_of

HIGH, LOW = "tessera-test-high", "tessera-test-low"


@pytest.fixture(scope="module")
def classes(cluster) -> Iterator[None]:
    for name, value in ((HIGH, 1000), (LOW, -10)):
        cluster.api.apply(
            {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name}, "value": value}
        )
    yield
    for name in (HIGH, LOW):
        cluster.api.delete(f"/apis/scheduling.k8s.io/v1/priorityclasses/{name}")


def test_a_whole_gpu_is_freed_for_a_high_priority_and_not_stolen_by_a_small_pod(classes, space):
    """Two GPUs are full, two half full: the node's totals would do, and no GPU does."""
    del classes
    space.run(*(pods.pod(f"full{number}", {"gpu": 1}, priorityClassName=HIGH) for number in range(2)))
    halves = [f"half{number}" for number in range(2)]
    space.run(*(pods.pod(name, {"gpu-memory": "41Gi"}, priorityClassName=LOW) for name in halves))
    before = {name: plan_of(space.get(name))["main"][0]["gpu"] for name in halves}
    assert len(set(before.values())) == 2

    space.create(pods.pod("whole", {"gpu": 1}, priorityClassName=HIGH))
    # It comes while the victim ends: it would fit on what is being freed, and on what is left of the other half.
    space.create(*(pods.pod(f"small{number}", {"gpu-memory": "30Gi"}, priorityClassName=LOW) for number in range(2)))

    (whole,) = space.running("whole", seconds=40)
    (piece,) = plan_of(whole)["main"]
    assert piece["whole"]
    assert piece["gpu"] in before.values()
    left = [each["metadata"]["name"] for each in space.all() if is_running(each)]
    (victim,) = [name for name in halves if before[name] == piece["gpu"]]
    (other,) = set(halves) - {victim}
    assert victim not in left
    assert other in left
    assert [each for each in space.events(victim) if each.startswith("Preempted")]
    held = {
        name: truth.gpus_of(found["main"])
        for name, found in truth.pod_resources(space.cluster).items()
        if "main" in found
    }
    assert [name for name, gpus in held.items() if piece["gpu"] in gpus] == ["whole"]
    space.just()
