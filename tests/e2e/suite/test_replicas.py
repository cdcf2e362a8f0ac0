"""Controllers make their pods at the same instant, and make them again."""

from __future__ import annotations

import pytest
from cluster.processes import until
from product import pods
from product.installed import NODE
from product.pods import deployment, ready
from product.space import is_running

# What the kubelet says of a pod that came while nobody served the tickets: docs/real-cluster.md.
AGENT_DEAD = (
    "requested number of devices unavailable",
    "no healthy devices present; cannot allocate unhealthy devices",
    "rpc failed with err: rpc error: code = Unavailable",
    "rpc failed with err: rpc error: code = Canceled desc = grpc: the client connection is closing",
)


def test_a_deployment_of_twenty_equal_pods(space):
    space.api.apply(deployment(space.name, "d", 20, {"gpu-memory": "8Gi", "gpu-compute": 10}))
    space.api.wait(space.path_of("apps/v1", "deployments", "d"), ready(20), seconds=90)

    assert len(space.just(least=60)) == 20
    space.nobody_was_refused()


def test_four_deployments_of_unequal_pods_at_the_same_instant(space):
    wanted = {
        "a": {"gpu-memory": "2Gi"},
        "b": {"gpu-compute": 7},
        "c": {"gpu": 2, "gpu-memory": "1Gi"},
        "d": {"gpu-memory-percent": 5},
    }
    space.api.apply(*(deployment(space.name, name, 5, limits) for name, limits in wanted.items()))
    for name in wanted:
        space.api.wait(space.path_of("apps/v1", "deployments", name), ready(5), seconds=90)

    assert len(space.just(least=60)) == 20
    space.nobody_was_refused()


def test_twenty_unequal_pods_at_the_same_instant(space):
    sizes = [(1 + number % 7, 5 * (number % 4)) for number in range(20)]
    wanted = [
        pods.pod(f"p{number}", {"gpu-memory": f"{memory}Gi", **({"gpu-compute": compute} if compute else {})})
        for number, (memory, compute) in enumerate(sizes)
    ]

    space.create_at_once(*wanted)
    space.running(*(each["metadata"]["name"] for each in wanted), seconds=90)

    space.just(least=60)
    space.nobody_was_refused()


def test_a_deployment_of_another_size_rolls(space):
    """Pods of a ReplicaSet have a generateName: the API server's review has no name."""
    path = space.path_of("apps/v1", "deployments", "d")
    space.api.apply(deployment(space.name, "d", 5, {"gpu-memory": "4Gi"}))
    space.api.wait(path, ready(5), seconds=60)

    space.api.apply(deployment(space.name, "d", 5, {"gpu-memory": "6Gi"}))
    space.api.wait(
        path,
        lambda each: (
            each["status"].get("observedGeneration") == each["metadata"]["generation"]
            and each["status"].get("updatedReplicas") == each["status"].get("availableReplicas") == 5
            and ready(5)(each)
        ),
        seconds=60,
    )

    space.just()


@pytest.mark.parametrize("replicas", [40])
def test_an_agent_that_crashes_in_a_burst_costs_only_pods_that_came_while_it_was_dead(*, space, product, replicas):
    """The kubelet refuses what comes while nobody serves it; the controller makes those again, and none is wrong."""
    space.run(*(pods.pod(f"old{number}", {"gpu-memory": "4Gi"}) for number in range(4)))
    with space.undisturbed():
        space.api.apply(deployment(space.name, "d", replicas, {"gpu-memory": "2Gi"}))
        until("a quarter is bound", lambda: bound(space) > replicas // 4, seconds=30)
        product.crash(NODE)
        product.back(NODE)
        space.api.wait(space.path_of("apps/v1", "deployments", "d"), ready(replicas), seconds=120)

        failed = [each for each in space.all() if each["status"].get("phase") == "Failed"]
        assert {each["status"]["reason"] for each in failed} <= {"UnexpectedAdmissionError"}
        assert [each for each in failed if not any(why in each["status"]["message"] for why in AGENT_DEAD)] == []
        assert sum(is_running(each) for each in space.just()) == replicas + 4


def bound(space):
    return sum(bool(each["spec"].get("nodeName")) for each in space.all())
