"""The fixtures of the fake API server's behaviour tests, on a real one.

Whoever would answer to what the tests write is stopped meanwhile: scheduler, kubelet and most controllers. The tests bind
pods themselves and play the kubelet.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import pytest
from cluster import Cluster
from cluster.cluster import KUBELET, SCHEDULER
from contract.loader import load

theirs: Any = load("testing/apiserver/conftest.py")
make, pods, identity, webhook, register = (
    theirs.make,
    theirs.pods,
    theirs.identity,
    theirs.webhook,
    theirs.register,
)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[Cluster]:
    """The control plane of the running cluster, with nobody who would move pods."""
    cluster = Cluster.attach()
    cluster.processes.stop(KUBELET, SCHEDULER)
    cluster.run_controllers("serviceaccount-controller", "namespace-controller")
    yield cluster
    cluster.run_controllers()
    cluster.start_node()


@pytest.fixture
async def api(cluster: Cluster) -> AsyncIterator[Any]:
    """The real API server, as its admin."""
    connector = aiohttp.TCPConnector(ssl=cluster.api.tls)
    headers = {"Authorization": f"Bearer {cluster.api.token}"}
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
        yield theirs.Api(session, cluster.api.url)


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """A namespace whose service account is there: a real one is made a moment later, and pods are refused until then."""
    name = f"c-{uuid.uuid4().hex[:8]}"
    cluster.api.post("/api/v1/namespaces", {"metadata": {"name": name}})
    cluster.api.wait(f"/api/v1/namespaces/{name}/serviceaccounts/default", lambda _: True)
    yield name
    for pod in cluster.api.get(f"/api/v1/namespaces/{name}/pods")["items"]:
        path = f"/api/v1/namespaces/{name}/pods/{pod['metadata']['name']}"
        if pod["metadata"].get("finalizers"):
            cluster.api.patch(path, {"metadata": {"finalizers": None}})
        # The answer to a pod that is gone by now is a fine one too.
        cluster.api.raw("DELETE", path, {"gracePeriodSeconds": 0})
    cluster.api.raw("DELETE", f"/api/v1/namespaces/{name}")
