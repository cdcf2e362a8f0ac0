"""Two real kubelets: each has the pods, and only the GPUs, that were planned for its node."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from cluster.processes import until
from cluster.second import SecondNode
from product import pods, truth
from product.installed import make_driver
from product.names import COMPUTE, UNITS
from product.pods import deployment, ready
from product.space import is_running

PODS = 40
BACK = 60.0
"""Seconds from Ready within which owned pods are back after a reboot."""


@pytest.fixture(scope="module")
def node(cluster, product) -> Iterator[SecondNode]:
    """Another node with four GPUs of its own; the DaemonSet brings the agent."""
    fake = cluster.settings.home / "n2" / "fake"
    make_driver(fake, seed="n2")
    with SecondNode(cluster, archives=product.archives, over={fake: product.fake}) as node:
        cluster.api.wait(
            "/api/v1/nodes/n2",
            lambda found: all(int(found["status"]["allocatable"].get(name, 0)) > 0 for name in (UNITS, COMPUTE)),
            seconds=90,
            what="has the agent's tickets",
        )
        until("the kubelet has the agent's devices", lambda: truth.allocatable(node.view).get(UNITS), seconds=30)
        yield node


@pytest.fixture
def second(node):
    """The cluster as seen from the other node."""
    return node.view


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


def test_a_reboot_of_a_node(*, node, space):
    """The agent starts with everybody else: pods that come before it are refused, and their controllers make them again."""
    name = node.view.settings.node
    wanted = deployment(space.name, "owned", 8, {"gpu-memory": "8Gi", "gpu-compute": 5})
    wanted["spec"]["template"]["spec"]["nodeSelector"] = {"kubernetes.io/hostname": name}
    space.api.apply(wanted)
    space.api.wait(space.path_of("apps/v1", "deployments", "owned"), ready(8))
    bare = [f"bare{number}" for number in range(3)]
    space.run(
        *(pods.pod(each, {"gpu-memory": "4Gi"}, nodeSelector={"kubernetes.io/hostname": name}) for each in bare),
        pods.pod("elsewhere", {"gpu": 1}, nodeSelector={"kubernetes.io/hostname": space.cluster.settings.node}),
    )
    before = {key: each for key, (each, _) in space.containers().items()}
    started = space.containers()["elsewhere", "main"]

    node.reboot()

    def back():
        return sum(
            is_running(pod)
            and all(
                each.get("containerID") != before.get((pod["metadata"]["name"], each["name"]), "")
                for each in pod["status"]["containerStatuses"]
            )
            for pod in space.all()
            if pod["metadata"].get("labels", {}).get("app")
        )

    until("every owned pod is back", lambda: back() == 8, seconds=BACK)
    assert space.containers()["elsewhere", "main"] == started
    for each in bare:
        status = space.get(each)["status"]
        if status["phase"] == "Failed":
            assert status["reason"] == "UnexpectedAdmissionError", status
        else:
            space.running(each)
    for check in truth.verdict_of_nodes([space.cluster, node.view], space.all()):
        assert check.problems == [], check.title
