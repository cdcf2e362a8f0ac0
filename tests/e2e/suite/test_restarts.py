"""What a restart of a part does to pods: nothing to those that run, and the right GPU for those that come."""

from __future__ import annotations

from product import pods, truth
from product.programs import EXTENDER, NODE, WEBHOOK


def held(space, pod):
    """Device IDs in no order: the kubelet keeps them in Go's maps."""
    containers = truth.pod_resources(space.cluster)[pod]
    return {name: {key: sorted(ids) for key, ids in found.items()} for name, found in containers.items()}


def test_kubelet_restart_leaves_running_pods_and_serves_new_ones(space, product):
    (before,) = space.run(pods.pod("old", {"gpu-memory": "8Gi"}))
    devices = held(space, "old")

    space.cluster.restart_kubelet()
    product.wait_serving()
    space.run(pods.pod("new", {"gpu-memory": "8Gi"}))

    (after,) = space.running("old")
    assert restarts(after) == restarts(before)
    assert held(space, "old") == devices
    space.just()


def test_agent_restart_leaves_running_pods_and_serves_new_ones(space, product):
    (before,) = space.run(pods.pod("old", {"gpu-memory": "8Gi"}))
    devices = held(space, "old")

    space.cluster.processes.kill(NODE)
    product.start_node()
    product.wait_serving()
    space.run(pods.pod("new", {"gpu-memory": "8Gi"}))

    (after,) = space.running("old")
    assert restarts(after) == restarts(before)
    assert held(space, "old") == devices
    space.just()


def test_extender_restart_in_a_burst_plans_nothing_twice(space, product):
    space.create(*(pods.pod(f"a{number}", {"gpu-memory": "8Gi"}) for number in range(10)))
    space.cluster.processes.kill(EXTENDER)
    space.create(*(pods.pod(f"b{number}", {"gpu-memory": "8Gi"}) for number in range(10)))
    product.start_extender()

    space.running(*(f"{letter}{number}" for letter in "ab" for number in range(10)), seconds=90)

    space.just()


def test_webhook_away_means_no_gpu_pod_is_created_unmanaged(space, product):
    space.cluster.processes.kill(WEBHOOK)
    status, _ = space.api.raw("POST", space.path, pods.pod("p", {"gpu-memory": "8Gi"}))
    product.start_webhook()

    assert status == 500
    space.run(pods.pod("p", {"gpu-memory": "8Gi"}))
    space.just()


def test_api_server_restart_in_a_burst(space):
    space.create(*(pods.pod(f"a{number}", {"gpu-memory": "8Gi"}) for number in range(10)))
    space.cluster.restart_api_server()
    space.create(*(pods.pod(f"b{number}", {"gpu-memory": "8Gi"}) for number in range(10)))

    space.running(*(f"{letter}{number}" for letter in "ab" for number in range(10)), seconds=120)

    space.just()


def restarts(pod):
    return [each["restartCount"] for each in pod["status"]["containerStatuses"]]
