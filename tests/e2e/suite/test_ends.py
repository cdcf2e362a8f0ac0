"""Pods that are deleted in every phase: a slice is free when its containers are gone, and not before."""

from __future__ import annotations

from product import pods, truth
from product.programs import PLAN

STUBBORN = ["sleep", "100000"]


def test_deleted_before_it_is_bound(space):
    space.run(*(pods.pod(f"full{number}", {"gpu": 1}) for number in range(4)))
    space.create(pods.pod("waits", {"gpu-memory": "8Gi"}))
    space.waiting("waits")

    space.delete("waits")
    space.gone("waits")
    space.delete("full0")
    space.gone("full0")

    space.run(pods.pod("next", {"gpu": 1}), seconds=20)
    space.just()


def test_deleted_between_bind_and_admission(space, product):
    """Nobody on the node ever heard of it; its slice is used by the next one."""

    def meanwhile():
        space.create(*(pods.pod(f"never{number}", {"gpu": 1}) for number in range(4)))
        for number in range(4):
            space.until(f"never{number}", lambda pod: PLAN in pod["metadata"].get("annotations", {}))
            space.delete(f"never{number}", gracePeriodSeconds=0)

    space.cluster.restart_kubelet(between=meanwhile)
    product.wait_serving()

    # Force-deleted objects vanish without a terminal phase: their slices are free only after the node has been heard.
    space.run(*(pods.pod(f"next{number}", {"gpu": 1}) for number in range(4)), seconds=90)
    space.just()


def test_a_long_goodbye_holds_the_slice(space):
    stubborn = pods.container("main", {"gpu": 1}, command=STUBBORN)
    space.run(*(pods.pod(f"p{number}", containers=[stubborn]) for number in range(4)))
    space.create(pods.pod("next", {"gpu": 1}))

    space.delete("p0", gracePeriodSeconds=8)
    # It is marked, and its container runs on.
    space.waiting("next")
    assert space.get("p0")["metadata"]["deletionTimestamp"]
    assert "p0" in truth.pod_resources(space.cluster)
    assert not space.get("next")["spec"].get("nodeName")

    space.running("next", seconds=30)
    space.just()


def test_many_come_and_go(space):
    """Bursts of 20 with a third deleted in between: whatever the order, plan and reality agree."""
    names = []
    for burst in range(3):
        fresh = [f"b{burst}-{number}" for number in range(20)]
        space.create(
            *(
                pods.pod(name, {"gpu-memory": f"{1 + (7 * burst + number) % 9}Gi", "gpu-compute": 3 * (number % 3) + 1})
                for number, name in enumerate(fresh)
            )
        )
        names += fresh
        for gone in names[::3]:
            space.delete(gone)
            names.remove(gone)
    space.running(*names, seconds=120)

    space.just()
    space.nobody_was_refused()
