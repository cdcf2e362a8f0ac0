"""A driver of the real kubelet, with the methods of the fake one that its contract tests use.

Pods are created through the API with a nodeName, so that no scheduler has a say; processes of containers are ended from
the host. What a test learns of a pod's admission is what the kubelet wrote into the pod's status.
"""

from __future__ import annotations

import asyncio
import copy
import os
import re
import shutil
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cluster import ApiError, Cluster
from cluster.cluster import KUBELET
from cluster.components import kubelet as kubelet_command
from cluster.image import TEST
from cluster.processes import send, start_time
from cluster.record import Started
from product.pods import ENDS, STAYS
from product.truth import RUNTIME, listed, processes_of

from tessera.testing.kubelet.settings import Paths

POLL = 0.05
PODS = "/api/v1/namespaces/default/pods"
# What a Node has without any device plugin.
PLAIN = ("cpu", "memory", "pods", "ephemeral-storage", "hugepages-")
REJECTED = "Pod was rejected: "
# The first process of a container ignores SIGTERM.
STUBBORN = ["sleep", "100000"]
FAILED = "CreateContainerConfigError"


@dataclass(frozen=True)
class Admission:
    """How an admission ended, as the pod's status says."""

    admitted: bool
    reason: str = ""
    message: str = ""


@dataclass(frozen=True)
class Capacity:
    """What the Node's status says of plugins' resources."""

    capacity: dict[str, int]
    allocatable: dict[str, int]


class RealKubelet:
    """One kubelet process after another, on one node."""

    def __init__(self, cluster: Cluster) -> None:
        """Start nothing yet."""
        self.cluster = cluster
        # Tests wait for the Node's status many times.
        self._settings = replace(cluster.settings, status_period="200ms")
        self.paths = Paths(str(cluster.settings.kubelet_dir))
        self._names: dict[str, str] = {}
        self._before_restart: dict[tuple[str, str], str] = {}
        self._retried: set[str] = set()

    # Its life.

    async def start_fresh(self) -> None:
        """Begin with no pod, no plugin, no checkpoint and a Node that never had one."""
        await asyncio.to_thread(self.start_clean)

    def start_clean(self) -> None:
        """As `start_fresh`, for callers without an event loop."""
        api, node = self.cluster.api, f"/api/v1/nodes/{self.cluster.settings.node}"
        for pod in api.get(PODS)["items"]:
            api.raw("DELETE", f"{PODS}/{pod['metadata']['name']}", {"gracePeriodSeconds": 0})
        self.cluster.processes.stop(KUBELET)
        for path in os.scandir(self.paths.plugins) if os.path.exists(self.paths.plugins) else ():
            shutil.rmtree(path) if path.is_dir() else os.unlink(path)
        own = [name for name in api.get(node)["status"]["capacity"] if not name.startswith(PLAIN)]
        nothing = dict.fromkeys(own)
        api.patch(f"{node}/status", {"status": {"capacity": nothing, "allocatable": nothing}})
        self._start()
        self.cluster.processes.ready(KUBELET, lambda: os.path.exists(self.paths.registration) and self._pods() == [])

    def _start(self) -> None:
        self.cluster.processes.start(KUBELET, kubelet_command(self._settings, self.cluster.binaries))

    async def restart(
        self, pods: Sequence[Mapping[str, Any]] = (), *, before_admission: Callable[[], Awaitable[None]] | None = None
    ) -> list[Admission]:
        """End the process, let pods be bound meanwhile, start another; return how their admission ended."""
        before = _stamp(self.paths.registration)
        await asyncio.to_thread(self.cluster.processes.stop, KUBELET)
        for position, pod in enumerate(sorted(pods, key=lambda each: each["metadata"]["creationTimestamp"])):
            if position:
                # The API server's timestamps have whole seconds, and the kubelet admits by them.
                await asyncio.sleep(1.1)
            await self._create(pod)
        await asyncio.to_thread(self._start)
        await self._until(lambda: _stamp(self.paths.registration) not in (None, before), "the kubelet listens")
        if before_admission is not None:
            await before_admission()
        results = [await self._admission(pod["metadata"]["uid"]) for pod in pods]
        # Those that it had are admitted again, some 1.3 s after the start; nothing says when it is done.
        await asyncio.sleep(3)
        # One that was running and is refused now stays listed, and has no phase, until its containers have ended.
        await self._until(lambda: not self._refused() & listed(self.cluster), "refused pods are not listed")
        return results

    # Pods.

    async def admit(self, pod: Mapping[str, Any], *, stubborn: bool = False) -> Admission:
        """Create a pod on the node; return when the kubelet has taken or refused it.

        Args:
            pod: as the fake takes it.
            stubborn: its containers don't end before their grace period is over.
        """
        await self._create(pod, stubborn=stubborn)
        return await self._admission(pod["metadata"]["uid"])

    async def settled(self, uid: str) -> dict[str, str]:
        """Wait until each container has started or waits for a plugin; return container -> "" or why it waits."""
        found: dict[str, str] = {}

        def look(pod: dict[str, Any]) -> bool:
            found.clear()
            for status in _statuses(pod):
                name, state = status["name"], status.get("state", {})
                if status.get("containerID") == self._before_restart.get((uid, name), ""):
                    return False
                waiting = state.get("waiting", {})
                if "running" in state or "terminated" in state:
                    found[name] = ""
                elif waiting.get("reason") == FAILED and uid not in self._retried:
                    found[name] = waiting.get("message", "")
                    return True
                else:
                    return False
            return bool(found)

        await self._wait(uid, look)
        return dict(found)

    def retry(self, uid: str) -> None:
        """The kubelet retries by itself; the next look at the pod waits for the outcome."""
        self._retried.add(uid)

    async def terminate(self, uid: str) -> None:
        """Let a pod's containers end well; return when the kubelet has said so."""
        pod = await self._pod(uid)
        for status in pod["status"]["containerStatuses"]:
            self._signal(status, signal.SIGTERM)
        await self._wait(uid, lambda each: each["status"].get("phase") == "Succeeded")

    async def remove(self, uid: str) -> None:
        """Delete the object at once; return when the kubelet has forgotten the pod."""
        name = self._names[uid]
        await asyncio.to_thread(self.cluster.api.delete, f"{PODS}/{name}", gracePeriodSeconds=0)
        await self._until(lambda: self._forgot(name), f"the kubelet has forgotten {name}")

    def restart_container(self, uid: str, container: str) -> None:
        """Kill a container's process; the kubelet starts another one."""
        pod = self.cluster.api.get(f"{PODS}/{self._names[uid]}")
        status = next(each for each in _statuses(pod) if each["name"] == container)
        self._before_restart[uid, container] = status["containerID"]
        self._signal(status, signal.SIGKILL)

    # What can be seen.

    def capacity(self) -> Capacity:
        """What the Node's status says now."""
        status = self.cluster.node()["status"]
        return Capacity(_plugins(status["capacity"]), _plugins(status["allocatable"]))

    async def wait_for(self, condition: Callable[[RealKubelet], bool]) -> None:
        """Wait until a condition holds."""
        await self._until(lambda: condition(self), "as the test wants it")

    async def wait_serving(self, resource: str, healthy: int) -> None:
        """Wait until the Node shows that many healthy devices."""
        await self.wait_for(lambda _: self.capacity().allocatable.get(resource, 0) == healthy)

    # Inside.

    async def _create(self, pod: Mapping[str, Any], *, stubborn: bool = False) -> None:
        body = copy.deepcopy(dict(pod))
        meta = body["metadata"]
        self._names[meta["uid"]] = meta["name"]
        del body["status"]
        body["metadata"] = {"name": meta["name"], "namespace": "default"}
        spec = body["spec"]
        spec["nodeName"] = self.cluster.settings.node
        # A container that ends well stays ended, one that is killed comes back.
        spec.update(restartPolicy="OnFailure", terminationGracePeriodSeconds=1, dnsPolicy="Default")
        for each in [*spec["initContainers"], *spec["containers"]]:
            stays = each in spec["containers"] or "restartPolicy" in each
            each.update(
                image=TEST, imagePullPolicy="Never", command=(STUBBORN if stubborn else STAYS) if stays else ENDS
            )
        await asyncio.to_thread(self.cluster.api.post, PODS, body)

    async def _admission(self, uid: str) -> Admission:
        pod = await self._wait(uid, lambda each: each["status"].get("phase") == "Failed" or bool(_statuses(each)))
        status = pod["status"]
        if status.get("phase") != "Failed":
            return Admission(admitted=True)
        return Admission(
            admitted=False, reason=status.get("reason", ""), message=status.get("message", "").removeprefix(REJECTED)
        )

    async def _pod(self, uid: str) -> dict[str, Any]:
        found: dict[str, Any] = await asyncio.to_thread(self.cluster.api.get, f"{PODS}/{self._names[uid]}")
        return found

    async def _wait(self, uid: str, check: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        end = time.monotonic() + 30
        while True:
            pod = await self._pod(uid)
            if check(pod):
                return pod
            if time.monotonic() > end:
                raise TimeoutError(f"pod {self._names[uid]}: {pod['status']}")
            await asyncio.sleep(POLL)

    async def _until(self, check: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + 20
        while not await asyncio.to_thread(check):
            if time.monotonic() > end:
                raise TimeoutError(f"{what}: not in time; the Node says {self.capacity()}")
            await asyncio.sleep(POLL)

    def _pods(self) -> list[str] | None:
        """Names of the pods that the kubelet knows; None where it doesn't answer."""
        try:
            return [each["metadata"]["name"] for each in self.cluster.kubelet_api.get("/pods")["items"] or []]
        except (OSError, ApiError):
            return None

    def _refused(self) -> set[str]:
        """Names of the pods that this kubelet process has refused, by its log."""
        log = self.cluster.processes.log(KUBELET).read_text(errors="replace")
        return set(re.findall(r'"Pod admission denied".* pod="default/([^"]+)"', log[log.rindex("\n--- ") :]))

    def _forgot(self, name: str) -> bool:
        known = self._pods()
        return known is not None and name not in known

    def _signal(self, status: Mapping[str, Any], number: signal.Signals) -> None:
        pid = min(processes_of(self.cluster, status["containerID"].removeprefix(RUNTIME)))
        start = start_time(pid)
        if start is not None:
            send(Started(pid=pid, start=start), number)


def _statuses(pod: Mapping[str, Any]) -> list[dict[str, Any]]:
    status = pod.get("status", {})
    return [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]


def _plugins(found: Mapping[str, str]) -> dict[str, int]:
    # 100,000 is written as 100k.
    return {
        name: int(count.removesuffix("k")) * (1000 if count.endswith("k") else 1)
        for name, count in found.items()
        if not name.startswith(PLAIN)
    }


def _stamp(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_ctime_ns
