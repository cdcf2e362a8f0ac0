"""One real cluster with the product on it, for the whole run; a namespace of its own for each test."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cluster import Cluster
from product import truth
from product.programs import DRIFT, PLAN, Product

Pod = dict[str, Any]


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    """The cluster that `run.py` started."""
    return Cluster.attach()


@pytest.fixture(scope="session")
def product(cluster: Cluster) -> Product:
    """Tessera, freshly installed; it goes with the cluster."""
    product = Product(cluster)
    product.install()
    product.start()
    return product


class Space:
    """A namespace, and what tests do in it."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster = cluster
        self.api = cluster.api
        self.name = name
        self.path = f"/api/v1/namespaces/{name}/pods"

    def create(self, *pods: Pod) -> None:
        """Create pods, one right after the other."""
        for pod in pods:
            self.api.post(self.path, pod)

    def get(self, name: str) -> Pod:
        return self.api.get(f"{self.path}/{name}")

    def all(self) -> list[Pod]:
        return self.api.get(self.path)["items"]

    def running(self, *names: str, seconds: float = 60) -> list[Pod]:
        """Wait until pods are ready; fail at once where one has failed."""
        return [self.until(name, is_running, seconds=seconds) for name in names]

    def until(self, name: str, check: Callable[[Pod], bool], *, seconds: float = 60) -> Pod:
        def look(pod: Pod) -> bool:
            if check(pod):
                return True
            status = pod.get("status", {})
            assert status.get("phase") != "Failed", f"{name}: {status.get('reason')}: {status.get('message')}"
            return False

        return self.api.wait(f"{self.path}/{name}", look, seconds=seconds)

    def waiting(self, name: str) -> Pod:
        """Wait until the scheduler has found no place for a pod."""
        return self.until(name, is_unschedulable)

    def run(self, *pods: Pod, seconds: float = 60) -> list[Pod]:
        """Create pods and wait until they are ready."""
        self.create(*pods)
        return self.running(*(each["metadata"]["name"] for each in pods), seconds=seconds)

    def delete(self, name: str, **options: Any) -> None:
        self.api.delete(f"{self.path}/{name}", **options)

    def gone(self, name: str, *, seconds: float = 30) -> None:
        self.api.wait_gone(f"{self.path}/{name}", seconds=seconds)

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True) -> str:
        return self.cluster.kubectl("--namespace", self.name, *arguments, stdin=stdin, check=check)

    def log(self, name: str, container: str = "main") -> str:
        return self.api.text(f"{self.path}/{name}/log", container=container)

    def events(self, name: str) -> list[str]:
        found = self.api.get(f"/api/v1/namespaces/{self.name}/events", fieldSelector=f"involvedObject.name={name}")
        return [f"{each['reason']}: {each.get('message', '')}" for each in found["items"]]

    def nobody_was_refused(self) -> None:
        """No kubelet ended a pod in admission."""
        found = self.api.get(f"/api/v1/namespaces/{self.name}/events", fieldSelector="reason=UnexpectedAdmissionError")
        assert [f"{each['involvedObject']['name']}: {each['message']}" for each in found["items"]] == []

    def drift(self, pod: Pod, expected: dict[str, Any]) -> None:
        """Wait until the Node says of a pod that its allocation has no plan."""
        uid = pod["metadata"]["uid"]

        def told(node: dict[str, Any]) -> bool:
            return json.loads(node["metadata"].get("annotations", {}).get(DRIFT, "{}")).get(uid) == expected

        self.api.wait(f"/api/v1/nodes/{self.cluster.settings.node}", told, seconds=15, what=f"shows {expected}")

    def just(self, *, checks: int = 0) -> None:
        """Every pod here has exactly what was planned for it, by an independent judge."""
        for leaving in [pod["metadata"] for pod in self.all() if "deletionTimestamp" in pod["metadata"]]:
            self.gone(leaving["name"])
        pods = self.all()
        for check in truth.verdict(self.cluster, pods):
            assert check.problems == [], check.title
            checks += check.looked_at
        assert checks > 0


def is_running(pod: Pod) -> bool:
    conditions = pod.get("status", {}).get("conditions", [])
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def is_unschedulable(pod: Pod) -> bool:
    return any(each.get("reason") == "Unschedulable" for each in pod.get("status", {}).get("conditions", []))


@pytest.fixture
def space(cluster: Cluster, product: Product) -> Iterator[Space]:
    """A namespace of the test's own; its pods are gone after the test."""
    del product
    name = f"t-{uuid.uuid4().hex[:8]}"
    cluster.api.post("/api/v1/namespaces", {"metadata": {"name": name}})
    # Pods are refused before their namespace's account exists.
    cluster.api.wait(f"/api/v1/namespaces/{name}/serviceaccounts/default", lambda _: True)
    space = Space(cluster, name)
    yield space
    for pod in space.all():
        space.delete(pod["metadata"]["name"])
    for pod in space.all():
        space.gone(pod["metadata"]["name"])
    cluster.api.delete(f"/api/v1/namespaces/{name}")


@pytest.fixture
def plan() -> Callable[[Pod], dict[str, list[dict[str, Any]]]]:
    """Return a function that reads a pod's plan: container -> slices."""
    return lambda pod: json.loads(pod["metadata"]["annotations"][PLAN])["containers"]
