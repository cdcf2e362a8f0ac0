"""The fixtures of the fake kubelet's contract tests, on the real one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from cluster import Cluster
from contract.loader import load
from contract.real_kubelet import RealKubelet
from product.installed import Product

theirs: Any = load("testing/kubelet/conftest.py")
make_plugin, make_pod, pod_resources = theirs.make_plugin, theirs.make_pod, theirs.pod_resources


@pytest.fixture(scope="module")
def driver() -> Iterator[RealKubelet]:
    """The kubelet of the running cluster, without the product."""
    cluster = Cluster.attach()
    product = Product(cluster)
    if product.installed():
        product.uninstall()
    driver = RealKubelet(cluster)
    yield driver
    driver.start_clean()
    cluster.restart_kubelet()


@pytest.fixture
async def kubelet(driver: RealKubelet) -> RealKubelet:
    """A kubelet that has seen nothing."""
    await driver.start_fresh()
    return driver
