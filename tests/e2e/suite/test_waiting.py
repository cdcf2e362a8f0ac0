"""A full node: pods wait with a reason that helps, and go on as soon as there is room."""

from __future__ import annotations

from product import pods
from product.space import is_planned
from product.watching import Watching

# The most that a waiting pod may wait after the end of the one before it.
WAKE = 2.0


def ended(pod):
    return pod["status"].get("phase") in ("Succeeded", "Failed")


def test_a_pod_that_does_not_fit_says_why(space):
    space.run(*(pods.pod(f"full{number}", {"gpu-memory": "70Gi"}) for number in range(4)))
    space.create(pods.pod("waits", {"gpu-memory": "20Gi"}), pods.pod("never", {"gpu": 8}))
    space.waiting("waits")
    space.waiting("never")

    (why,) = {each for each in space.events("waits") if each.startswith("FailedScheduling")}
    assert "GPU" in why
    assert "80" in why, "how many units it needs"
    (why,) = {each for each in space.events("never") if each.startswith("FailedScheduling")}
    assert "needs 8 such GPUs, node has 4" in why


def test_a_freed_slice_is_given_to_who_waits_within_two_seconds(space):
    space.run(*(pods.pod(f"full{number}", {"gpu": 1}) for number in range(4)))
    space.create(pods.pod("waits", {"gpu-memory": "8Gi"}))
    space.waiting("waits")

    with Watching(space.api, space.path) as watching:
        space.delete("full2")
        bound = watching.moment("waits", is_planned)
        assert bound - watching.moment("full2", ended) < WAKE

    space.running("waits")
    space.just()


def test_a_freed_whole_gpu_is_used_by_slices_within_two_seconds(space):
    """At the kubelet's own status period of 10 s: what a Node's status says is not what is waited for."""
    space.run(*(pods.pod(f"full{number}", {"gpu": 1}) for number in range(4)))
    names = [f"slice{number}" for number in range(5)]
    space.create(*(pods.pod(name, {"gpu-memory": "15Gi"}) for name in names))
    for name in names:
        space.waiting(name)

    with Watching(space.api, space.path) as watching:
        space.delete("full1")
        free = watching.moment("full1", ended)
        assert max(watching.moment(name, is_planned) for name in names) - free < WAKE

    space.running(*names)
    space.just()
    space.nobody_was_refused()
