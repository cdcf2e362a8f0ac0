"""Two real kubelets: each has the pods, and only the GPUs, that were planned for its node."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from cluster.processes import until
from cluster.second import second_node
from product import pods, truth
from product.installed import make_driver
from product.names import COMPUTE, UNITS

PODS = 40


@pytest.fixture(scope="module")
def second(cluster, product) -> Iterator[object]:
    """Another node with four GPUs of its own; the DaemonSet brings the agent."""
    fake = cluster.settings.home / "n2" / "fake"
    make_driver(fake, seed="n2")
    with second_node(cluster, archives=product.archives, over={fake: product.fake}) as view:
        cluster.api.wait(
            "/api/v1/nodes/n2",
            lambda node: all(int(node["status"]["allocatable"].get(name, 0)) > 0 for name in (UNITS, COMPUTE)),
            seconds=90,
            what="has the agent's tickets",
        )
        until("the kubelet has the agent's devices", lambda: truth.allocatable(view).get(UNITS), seconds=30)
        yield view


def test_a_burst_over_two_nodes(second, space):
    wanted = [
        pods.pod(f"p{number}", {"gpu-memory": f"{8 + number % 5}Gi", "gpu-compute": 15 + number % 4})
        for number in range(PODS)
    ]
    names = [each["metadata"]["name"] for each in wanted]

    space.create_at_once(*wanted)
    space.running(*names, seconds=120)

    found = space.all()
    on_second = [each for each in found if each["spec"]["nodeName"] == second.settings.node]
    assert 0 < len(on_second) < PODS
    for check in truth.verdict_of_nodes([space.cluster, second], found):
        assert check.problems == [], check.title
        assert check.looked_at > 0 or "no GPU" in check.title
    space.nobody_was_refused()
    space.delete_at_once(*names)
    space.gone(*names, seconds=60)


def test_whole_gpus_of_both_nodes_are_given_once(second, space):
    names = [f"p{number}" for number in range(8)]
    space.create_at_once(*(pods.pod(name, {"gpu": 1}) for name in names))
    space.running(*names, seconds=60)

    held = {**truth.pod_resources(space.cluster), **truth.pod_resources(second)}
    gpus = [gpu for name in names for gpu in truth.gpus_of(held[name]["main"])]
    assert len(gpus) == len(set(gpus)) == 8
    space.nobody_was_refused()
    space.delete_at_once(*names)
    space.gone(*names, seconds=60)
