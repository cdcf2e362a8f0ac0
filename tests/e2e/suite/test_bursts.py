"""520 pods in bursts of 40, of random shapes, while others are deleted at random and parts of the cluster come and go.

After every burst an independent judge holds each container's devices and environment against its pod's plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import pytest
from cluster import Cluster
from product import pods
from product.installed import EXTENDER, NODE, SCHEDULER, WEBHOOK, Product
from product.space import Space, opened

BURST = 40
KEPT = 30
SEED = 20_260

MEANWHILE: dict[str, Callable[[Product], None]] = {
    "nothing-1": lambda _: None,
    "kubelet": lambda product: product.cluster.restart_kubelet(),
    "extender": lambda product: crashed(product, EXTENDER),
    "nothing-2": lambda _: None,
    "webhook": lambda product: crashed(product, WEBHOOK),
    "scheduler": lambda product: crashed(product, SCHEDULER),
    "nothing-3": lambda _: None,
    "api-server": lambda product: product.cluster.restart_api_server(),
    "agent": lambda product: product.restart(NODE),
    "nothing-4": lambda _: None,
    "controllers": lambda product: product.cluster.run_controllers(),
    "agent-again": lambda product: product.restart(NODE),
    "nothing-5": lambda _: None,
}


def crashed(product: Product, part: str) -> None:
    product.crash(part)
    product.back(part)


class Churn:
    """Pods that come and go in one namespace."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.rng = Random(SEED)
        self.made = 0
        self.living: list[str] = []

    def pod(self) -> dict[str, Any]:
        """A pod of some shape; the mean is a thirtieth of a GPU."""
        self.made += 1
        name, rng = f"p{self.made}", self.rng
        gib = f"{rng.randint(1, 4)}Gi"
        shapes: list[Callable[[], dict[str, Any]]] = [
            lambda: pods.pod(name, {"gpu-memory": gib}),
            lambda: pods.pod(name, {"gpu-memory": gib, "gpu-compute": rng.randint(1, 4)}),
            lambda: pods.pod(name, {"gpu-memory-percent": rng.randint(1, 4)}),
            lambda: pods.pod(name, {"gpu-compute": rng.randint(1, 4)}),
            lambda: pods.pod(name, {"gpu": 2, "gpu-memory": "1Gi"}),
            lambda: pods.pod(name, {"aliyun.com/gpu-mem": rng.randint(1, 4)}),
            lambda: pods.pod(name, {"nvidia.com/gpu": 1, "nvidia.com/gpumem": 2048, "nvidia.com/gpucores": 2}),
            lambda: pods.pod(
                name,
                containers=[
                    pods.container("one", {"gpu-memory": gib}),
                    pods.container("two", {"gpu-memory": "1Gi", "gpu-compute": 1}),
                ],
            ),
            lambda: pods.pod(name, {"gpu-memory": gib}, init=[pods.sidecar("side", {"gpu-memory": "1Gi"})]),
            lambda: pods.pod(name),
        ]
        return rng.choice(shapes)()

    def burst(self, meanwhile: Callable[[], None], *, errors: bool = False) -> None:
        """Delete all but some, create 40 at the same instants, let something happen in their midst.

        Where it leads to `errors`, who creates pods tries again.
        """
        going = self.rng.sample(self.living, max(0, len(self.living) - KEPT))
        staying = [name for name in self.living if name not in going]
        fresh = [self.pod() for _ in range(BURST)]
        names = [each["metadata"]["name"] for each in fresh]
        # What a burst that fails leaves is not to be held against the next one.
        self.living = []
        with self.space.undisturbed():
            self.space.delete_at_once(*going)
            self.space.create_at_once(*fresh[: BURST // 2])
            meanwhile()
            create = self.space.insist if errors else self.space.create_at_once
            create(*fresh[BURST // 2 :])
            self.space.running(*names, seconds=120)
            assert {each["metadata"]["name"] for each in self.space.just(least=BURST)} == {*staying, *names}
        self.space.nobody_was_refused(*names)
        self.living = [*staying, *names]

    def clear(self) -> None:
        """Delete what no burst vouches for."""
        strangers = {each["metadata"]["name"] for each in self.space.all()} - set(self.living)
        for name in strangers:
            # Some are on their way already.
            self.space.api.raw("DELETE", f"{self.space.path}/{name}")
        self.space.gone(*strangers, seconds=60)


@pytest.fixture(scope="module")
def churn(cluster: Cluster, product: Product) -> Iterator[Churn]:
    """One namespace for all bursts: what an earlier burst left runs on through the later ones."""
    del product
    with opened(cluster) as space:
        yield Churn(space)


@pytest.mark.parametrize("meanwhile", MEANWHILE)
def test_burst(churn, product, meanwhile):
    churn.clear()
    # A webhook replica that was killed is the one thing here that a client notices, as an error that says so.
    churn.burst(lambda: MEANWHILE[meanwhile](product), errors=meanwhile == "webhook")
