"""The control plane is away, three honest cases: containers and the agent restart, the kubelet restarts, the node reboots."""

from __future__ import annotations

import os
import time

from cluster.processes import until
from product import pods, truth
from product.installed import NODE
from product.pods import deployment, ready
from product.space import is_running

AWAY = float(os.environ.get("TESSERA_E2E_AWAY", "120"))
"""Seconds without an API server; a shorter time is for whoever works on these tests."""
RECOVERS = 150.0
IDS = "TESSERA_GPU_IDS"
BACK = 60.0
"""Seconds from the reboot's end until owned pods are back, the webhook's replicas and the scheduler being on the same node:
their controllers are refused until the webhook serves, and wait twice as long before each further try."""


def gpus(space, uid):
    """Container ID -> UUIDs, of a pod's containers that have GPUs."""
    return {each: found[IDS] for each, found in truth.containers_of(space.cluster, uid).items() if IDS in found}


def restarted(space, pod):
    """Kill a pod's only container of ours; wait for another one; return the GPUs before and after."""
    uid = pod["metadata"]["uid"]
    ((before, had),) = gpus(space, uid).items()
    truth.kill(space.cluster, before)
    until("its container runs again", lambda: gpus(space, uid).keys() - {before}, seconds=40)
    ((_, has),) = [each for each in gpus(space, uid).items() if each[0] != before]
    return had, has


def test_containers_and_the_agent_restart_while_the_api_server_is_away(space, product):
    first, second, whole, other = space.run(
        pods.pod("first", {"gpu-memory": "8Gi"}),
        pods.pod("second", {"gpu-memory": "8Gi", "gpu-compute": 20}),
        pods.pod("whole", {"gpu": 1}),
        pods.pod("other", {"gpu-memory": "8Gi"}),
    )
    devices = truth.pod_resources(space.cluster)
    agent = product.container(NODE)

    def meanwhile():
        began = time.monotonic()
        had, has = restarted(space, first)
        assert had == has
        truth.kill(space.cluster, agent)
        product.back_alone()
        for pod in (second, whole):
            had, has = restarted(space, pod)
            assert had == has
        # Nobody announces the end of two minutes.
        until("the API server has been away for long enough", lambda: time.monotonic() - began > AWAY, seconds=AWAY + 5)
        assert list(gpus(space, other["metadata"]["uid"])) == [container_id(other)]

    space.cluster.restart_api_server(between=meanwhile)
    # Nobody's test: after such an absence its watches wait for more than a minute, and what comes next needs it.
    space.cluster.run_controllers()
    # A node that was silent for 40 s is called not ready with all its pods, ours too. Its kubelet watches again after up to
    # a minute, and sees no need to contradict before.
    until("the node is called ready again", space.cluster.node_ready, seconds=RECOVERS)
    space.running("first", "second", "whole", "other", seconds=RECOVERS)
    product.wait_installed()
    assert same(truth.pod_resources(space.cluster), devices)
    # kube-scheduler's watches wait as long (client-go: 30 s and up to as much again).
    space.run(pods.pod("next", {"gpu": 1}), seconds=RECOVERS)
    space.just(least=15)
    space.nobody_was_refused()


def test_a_kubelet_that_restarts_while_the_api_server_is_away_leaves_containers_alone(space, product):
    space.run(pods.pod("slice", {"gpu-memory": "8Gi"}), pods.pod("whole", {"gpu": 1}))
    devices = truth.pod_resources(space.cluster)

    with space.undisturbed():
        space.cluster.restart_api_server(between=space.cluster.restart_kubelet)
        product.wait_installed()
        space.run(pods.pod("next", {"gpu-memory": "8Gi"}), seconds=RECOVERS)
        found = truth.pod_resources(space.cluster)
        assert same({name: found[name] for name in devices}, devices)
        space.just(least=9)
    space.nobody_was_refused()


def test_a_reboot_of_the_node(space, product):
    """Owned pods are back within a minute; bare ones run again with their own GPU, or end with a documented reason."""
    space.api.apply(deployment(space.name, "owned", 8, {"gpu-memory": "8Gi", "gpu-compute": 5}))
    space.api.apply(deployment(space.name, "whole", 1, {"gpu": 1}))
    path = space.path_of("apps/v1", "deployments")
    space.api.wait(f"{path}/owned", ready(8))
    space.api.wait(f"{path}/whole", ready(1))
    bare = [f"bare{number}" for number in range(3)]
    space.run(*(pods.pod(name, {"gpu-memory": "4Gi"}) for name in bare))
    before = {key: each for key, (each, _) in space.containers().items()}

    product.reboot_node()
    began = time.monotonic()

    def back():
        owned = [each for each in space.all() if each["metadata"].get("labels", {}).get("app")]
        return sum(is_running(each) and renewed(each) for each in owned) >= 9

    def renewed(pod):
        # What the API still shows of before the reboot is not back.
        name = pod["metadata"]["name"]
        return bool(gpus(space, pod["metadata"]["uid"])) and all(
            each["ready"] and each.get("containerID") != before.get((name, each["name"]), "")
            for each in pod["status"].get("containerStatuses", [])
        )

    until("every owned pod is back", back, seconds=BACK)
    assert time.monotonic() - began < BACK
    product.wait_serving()
    for name in bare:
        pod = space.get(name)
        if pod["status"]["phase"] == "Failed":
            assert pod["status"]["reason"] == "UnexpectedAdmissionError", pod["status"]
        else:
            space.running(name)
    space.just(least=20)


def container_id(pod):
    (status,) = pod["status"]["containerStatuses"]
    return status["containerID"].removeprefix(truth.RUNTIME)


def same(found, expected):
    """Device IDs in no order: the kubelet keeps them in Go's maps."""

    def ordered(resources):
        return {
            (pod, container, name): sorted(ids)
            for pod, containers in resources.items()
            for container, held in containers.items()
            for name, ids in held.items()
        }

    return ordered(found) == ordered(expected)
