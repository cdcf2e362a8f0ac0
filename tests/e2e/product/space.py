"""A namespace, and what tests do in it: create pods, wait for them, and have them judged."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from cluster import Cluster
from cluster.processes import until

from product import truth
from product.names import DRIFT, PLAN

Pod = dict[str, Any]
AT_ONCE = 8
"""Requests that are under way together where pods are created at the same instant."""


class Space:
    """A namespace of a test's own."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        """Wrap a namespace that exists."""
        self.cluster = cluster
        self.api = cluster.api
        self.name = name
        self.path = f"/api/v1/namespaces/{name}/pods"

    # Doing.

    def create(self, *pods: Pod) -> None:
        """Create pods, one right after the other."""
        for pod in pods:
            self.api.post(self.path, pod)

    def create_at_once(self, *pods: Pod) -> None:
        """Create pods at the same instant, as controllers do."""
        with ThreadPoolExecutor(AT_ONCE) as threads:
            list(threads.map(self.create, pods))

    def insist(self, *pods: Pod) -> None:
        """Create pods at the same instant as controllers do, which try again where no webhook could be reached.

        The address of a replica that died goes out of its Service seconds later, when its kubelet has noticed.
        """

        def create(pod: Pod) -> None:
            def created() -> bool:
                status, body = self.api.raw("POST", self.path, pod)
                assert status == 201 or (status == 500 and b"failed calling webhook" in body), body
                return status == 201

            until(f"{pod['metadata']['name']} is created", created, seconds=30)

        with ThreadPoolExecutor(AT_ONCE) as threads:
            list(threads.map(create, pods))

    def run(self, *pods: Pod, seconds: float = 60) -> list[Pod]:
        """Create pods and wait until they are ready."""
        self.create(*pods)
        return self.running(*(each["metadata"]["name"] for each in pods), seconds=seconds)

    def delete(self, name: str, **options: Any) -> None:
        """Delete a pod; `options` are those of DeleteOptions."""
        self.api.delete(f"{self.path}/{name}", **options)

    def delete_at_once(self, *names: str, **options: Any) -> None:
        """Delete pods at the same instant."""
        with ThreadPoolExecutor(AT_ONCE) as threads:
            list(threads.map(lambda name: self.delete(name, **options), names))

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True) -> str:
        """Run kubectl in this namespace."""
        return self.cluster.kubectl("--namespace", self.name, *arguments, stdin=stdin, check=check)

    def path_of(self, group: str, plural: str, name: str = "") -> str:
        """The path of another collection, or of an object in it."""
        return f"/apis/{group}/namespaces/{self.name}/{plural}" + (f"/{name}" if name else "")

    # Looking.

    def get(self, name: str) -> Pod:
        """One pod."""
        found: Pod = self.api.get(f"{self.path}/{name}")
        return found

    def all(self) -> list[Pod]:
        """Every pod."""
        found: list[Pod] = self.api.get(self.path)["items"]
        return found

    def log(self, name: str, container: str = "main") -> str:
        """What a container wrote."""
        return self.api.text(f"{self.path}/{name}/log", container=container)

    def events(self, name: str) -> list[str]:
        """What is told of an object, as "Reason: message"."""
        found = self.api.get(f"/api/v1/namespaces/{self.name}/events", fieldSelector=f"involvedObject.name={name}")
        return [f"{each['reason']}: {each.get('message', '')}" for each in found["items"]]

    # Waiting.

    def until(self, name: str, check: Callable[[Pod], bool], *, seconds: float = 60) -> Pod:
        """Wait until a pod is as wanted; one that has failed never will be."""
        return self.api.wait(f"{self.path}/{name}", lambda pod: as_wanted(pod, check), seconds=seconds)

    def running(self, *names: str, seconds: float = 60) -> list[Pod]:
        """Wait until pods are ready; fail at once where one has failed."""
        found = self.api.wait_all(self.path, names, lambda pod: as_wanted(pod, is_running), seconds=seconds)
        return [found[name] for name in names]

    def waiting(self, name: str) -> Pod:
        """Wait until the scheduler has found no place for a pod."""
        return self.until(name, is_unschedulable)

    def gone(self, *names: str, seconds: float = 30) -> None:
        """Wait until there are no such pods."""
        self.api.wait_all_gone(self.path, names, seconds=seconds)

    def drift(self, pod: Pod, expected: dict[str, Any] | None) -> None:
        """Wait until the Node says of a pod that its allocation has no plan, or says nothing of it (None)."""
        uid = pod["metadata"]["uid"]

        def told(node: dict[str, Any]) -> bool:
            known: dict[str, Any] = json.loads(node["metadata"].get("annotations", {}).get(DRIFT, "{}"))
            return known.get(uid) == expected

        self.api.wait(f"/api/v1/nodes/{self.cluster.settings.node}", told, seconds=15, what=f"shows {expected}")

    # Judging.

    def nobody_was_refused(self, *names: str) -> None:
        """No kubelet ended a pod (one of these, where any are named) in admission."""
        found = self.api.get(f"/api/v1/namespaces/{self.name}/events", fieldSelector="reason=UnexpectedAdmissionError")
        told = {each["involvedObject"]["name"]: each["message"] for each in found["items"]}
        assert {name: text for name, text in told.items() if not names or name in names} == {}

    def just(self, *, least: int = 1) -> list[Pod]:
        """Every pod here has exactly what was planned for it, by an independent judge; return the pods."""
        self.gone(*(pod["metadata"]["name"] for pod in self.all() if "deletionTimestamp" in pod["metadata"]))
        pods = self.all()
        looked_at = 0
        for check in truth.verdict(self.cluster, pods):
            assert check.problems == [], check.title
            looked_at += check.looked_at
        assert looked_at >= least
        return pods

    def containers(self) -> dict[tuple[str, str], tuple[str, int]]:
        """By pod and container, which container of the runtime it is and how often it was started again."""
        return {
            (pod["metadata"]["name"], each["name"]): (each.get("containerID", ""), each["restartCount"])
            for pod in self.all()
            for each in pod["status"].get("containerStatuses", [])
        }

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """What runs before and is there afterwards is the same containers, never started again."""
        before = self.containers()
        yield
        after = self.containers()
        assert {key: found for key, found in before.items() if key in after} == {
            key: found for key, found in after.items() if key in before
        }


@contextmanager
def opened(cluster: Cluster) -> Iterator[Space]:
    """A new namespace; its pods are gone afterwards."""
    name = f"t-{uuid.uuid4().hex[:8]}"
    cluster.api.post("/api/v1/namespaces", {"metadata": {"name": name}})
    # Pods are refused before their namespace's account exists; controllers whose API server was away need a while.
    cluster.api.wait(f"/api/v1/namespaces/{name}/serviceaccounts/default", lambda _: True, seconds=90)
    space = Space(cluster, name)
    yield space
    # Controllers make pods anew until they are gone themselves, and then so are their pods.
    for kind, group in (("deployments", "apps/v1"), ("replicasets", "apps/v1")):
        for each in cluster.api.get(space.path_of(group, kind))["items"]:
            path = space.path_of(group, kind, each["metadata"]["name"])
            cluster.api.raw("DELETE", path, {"propagationPolicy": "Foreground"})
    with ThreadPoolExecutor(AT_ONCE) as threads:
        # Some are on their way already.
        list(threads.map(lambda pod: cluster.api.raw("DELETE", f"{space.path}/{pod['metadata']['name']}"), space.all()))
    space.gone(*(pod["metadata"]["name"] for pod in space.all()), seconds=60)
    cluster.api.delete(f"/api/v1/namespaces/{name}")


def as_wanted(pod: Pod, check: Callable[[Pod], bool]) -> bool:
    """Tell whether a pod is as wanted; assert that it still can be."""
    if check(pod):
        return True
    status = pod.get("status", {})
    name = pod["metadata"]["name"]
    assert status.get("phase") != "Failed", f"{name}: {status.get('reason')}: {status.get('message')}"
    return False


def is_running(pod: Pod) -> bool:
    """Ready."""
    conditions = pod.get("status", {}).get("conditions", [])
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def is_unschedulable(pod: Pod) -> bool:
    """The scheduler has found no place for it."""
    return any(each.get("reason") == "Unschedulable" for each in pod.get("status", {}).get("conditions", []))


def plan_of(pod: Pod) -> dict[str, list[dict[str, Any]]]:
    """A pod's plan: container -> slices."""
    found: dict[str, list[dict[str, Any]]] = json.loads(pod["metadata"]["annotations"][PLAN])["containers"]
    return found


def is_planned(pod: Pod) -> bool:
    """Bound, with a plan."""
    return PLAN in pod["metadata"].get("annotations", {})
