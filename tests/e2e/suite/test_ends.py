"""Pods that are deleted in every phase: a slice is free when its containers are gone, and not before."""

from __future__ import annotations

from product import pods, truth
from product.space import is_planned
from product.watching import Watching

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


def test_deleted_before_during_and_after_admission(space, product):
    """Some while the kubelet is away and never hears of them, some before it has seen them, some in the middle of Allocate.

    All of them fit on the node together: what vanishes without a word keeps its slice for a minute. Then all of the node is
    given again.
    """

    def meanwhile():
        names = [f"never{number}" for number in range(4)]
        space.create(*(pods.pod(name, {"gpu-memory": "20Gi"}) for name in names))
        for name in names:
            space.until(name, is_planned)
            space.delete(name, gracePeriodSeconds=0)

    space.cluster.restart_kubelet(between=meanwhile)
    product.wait_serving()
    rounds, each_round = 3, 10
    for number in range(rounds):
        names = [f"r{number}-{each}" for each in range(each_round)]
        with Watching(space.api, space.path, seconds=60) as watching:
            space.create_at_once(*(pods.pod(name, {"gpu-memory": "5Gi", "gpu-compute": 5}) for name in names))
            for position, name in enumerate(names):
                watching.moment(name, is_planned)
                space.delete(name, gracePeriodSeconds=position % 2)
        space.gone(*names, seconds=60)

    space.run(*(pods.pod(f"next{number}", {"gpu": 1}) for number in range(4)), seconds=90)
    space.just(least=8)
