"""One real cluster with the product on it, for the whole run; a namespace of its own for each test."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cluster import Cluster
from product.installed import Product
from product.space import Space, opened, plan_of


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    """The cluster that `run.py` started."""
    return Cluster.attach()


@pytest.fixture(scope="session")
def product(cluster: Cluster) -> Product:
    """Tessera, freshly installed; it goes with the cluster."""
    product = Product(cluster)
    product.install()
    return product


@pytest.fixture
def space(cluster: Cluster, product: Product) -> Iterator[Space]:
    """A namespace of the test's own; its pods are gone after the test."""
    del product
    with opened(cluster) as space:
        yield space


@pytest.fixture
def plan() -> Callable[..., dict[str, list[dict[str, object]]]]:
    """Return a function that reads a pod's plan: container -> slices."""
    return plan_of


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[Any]:
    """Keep what a failed test left to look at: pods' logs, objects and events, beside the components' logs."""
    report = yield
    if report.failed:
        cluster = Cluster.attach()
        folder = cluster.settings.logs / "failed" / item.name.replace("/", "_")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copytree(cluster.settings.home / "pod-logs", folder / "pods", dirs_exist_ok=True, symlinks=True)
        for what in ("pods", "nodes", "events") if cluster.api.healthy() else ():
            status, body = cluster.api.raw("GET", f"/api/v1/{what}")
            if status == 200:
                (folder / f"{what}.json").write_text(json.dumps(json.loads(body)["items"], indent=1))
        report.sections.append(("kept", f"pods' logs, objects and events: {folder}"))
    return report
